"""`searchphase figures`: the figures of the theory and its check, by name or all."""

import contextlib
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import tyro

from odes.arguments import ArgumentError, nearest
from odes.storage import write_whole
from validation.cli.report import print_json
from validation.cli.values import writable_folder
from validation.cli.work import WorkOptions
from validation.figures.effort import FULL, QUICK, Effort
from validation.figures.registry import all_figures
from validation.jobs.engine import Advanced, Failure, carry_out, give_up, said

Names = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures(WorkOptions):
    """Draw figures, all or those that are named: a PDF, a PNG and a netCDF file with the data and what made them.

    Data that the same settings and versions made before are drawn again, not computed; an interrupted run goes on
    where it was.
    """

    names: Names = ()
    """Which figures (see --list); all unless given."""
    folder: str = "figures"
    """Where the files are written; made if it does not exist."""
    list: bool = False
    """Print the names, with a sentence on each, and do nothing else."""
    quick: bool = False
    """Fewer seeds, points and dimensions: all figures in about eight minutes."""
    redraw: bool = False
    """Draw stored data whatever settings made them; compute nothing."""
    again: bool = False
    """Compute again what is stored already."""
    seed: int = 0
    """Seed of the random numbers."""
    json: bool = False
    """Print JSON instead of the paths."""

    def run(self) -> int:
        figures = all_figures()
        for name in self.names:
            if name not in figures:
                raise ArgumentError(None, f"there is no figure {name!r}{nearest(name, figures)} (--list names them)")
        chosen = [name for name in figures if name in self.names or not self.names]
        if self.list:
            self.report({name: figures[name].sentence for name in chosen})
            return 0
        if self.redraw and self.again:
            raise ArgumentError(None, "--redraw and --again exclude each other")
        folder = writable_folder("folder", self.folder)
        if self.redraw:
            for name in chosen:
                figures[name].stored(folder)
        effort = dataclasses.replace(QUICK if self.quick else FULL, seed=self.seed)
        jobs = [FigureJob(name, str(folder.absolute()), effort, self.redraw, self.again) for name in chosen]
        written, failures = [], []
        with self.work() as work:
            for _, files in carry_out(jobs, unit="figure", **work):
                if isinstance(files, Failure):
                    failures.append(files)
                    continue
                paths = [folder / name for name in files]
                for path, content in zip(paths, files.values(), strict=True):
                    if not (path.exists() and path.read_bytes() == content):
                        write_whole(path, lambda temporary, content=content: temporary.write_bytes(content))
                written.extend(map(str, paths))
                if not self.json:
                    print(*paths, sep="\n", flush=True)
        if len(failures) == len(jobs):
            give_up(failures, len(jobs))
        if self.json:
            print_json({"written": written})
        if failures:
            print(f"searchphase: {said(failures)}", file=sys.stderr)
        return 1 if failures else 0

    def interrupted(self) -> str:
        """What is to be said of an interrupted run."""
        return f"{self.folder} keeps what is finished: the same command goes on"

    def report(self, sentences: dict[str, str]) -> None:
        if self.json:
            print_json({"figures": [{"name": name, "shows": sentence} for name, sentence in sentences.items()]})
            return
        width = max(map(len, sentences))
        for name, sentence in sentences.items():
            print(f"{name:<{width}}  {sentence}")


@dataclasses.dataclass(frozen=True)
class FigureJob:
    """One figure to be made, in a folder; where there is no such folder, on another machine say, in a temporary one."""

    name: str
    folder: str
    effort: Effort
    redraw: bool
    again: bool
    size: int = 1

    def run(self, advanced: Advanced) -> dict[str, bytes]:
        """The files that were written, by name."""
        with contextlib.ExitStack() as stack:
            folder = Path(self.folder)
            if not folder.is_dir():
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            return {path.name: path.read_bytes() for path in self._written(folder)}

    def _written(self, folder: Path) -> list[Path]:
        figure, paths = all_figures()[self.name], []
        if self.redraw:
            dataset = figure.stored(folder)
        else:
            dataset = None if self.again else figure.up_to_date(folder, self.effort)
        if dataset is None:
            dataset = figure.computed(folder, self.effort)
            paths.append(figure.data_file(folder))
        return [*paths, *figure.files(folder, dataset)]
