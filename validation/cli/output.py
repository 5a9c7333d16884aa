"""What a command does with its result: prints, stores and draws it."""

import dataclasses
import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from odes.arguments import ArgumentError
from odes.storage import open_dataset, write_dataset, write_whole
from validation.cli.report import print_json, write_table
from validation.cli.values import DeviceOptions, OptionalPath, check_writable
from validation.jobs.parts import made_by

_FILES = ("problem", "settings")
"""Flags that name files which are read."""


def content(file: bytes) -> str:
    """What stands for a file's content beside its name."""
    return f" (content {hashlib.sha256(file).hexdigest()[:8]})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions(DeviceOptions):
    json: bool = False
    """Print JSON instead of a table."""
    output: OptionalPath = None
    """Also write the result, with all that made it, to this netCDF file (.nc), or its table alone to a .csv file, where there is one."""
    force: bool = False
    """Write it even where --output holds the result of another command or of other flags."""
    plot: OptionalPath = None
    """Also draw the result to this file (.png, .pdf or .svg)."""

    def run(self) -> int:
        """Computes, prints, stores and draws; returns the exit code."""
        check_writable("output", self.output, (".nc", ".csv") if self.has_table else (".nc",))
        check_writable("plot", self.plot, (".png", ".pdf", ".svg"))
        if self.output and not self.force and not self.may_replace(Path(self.output)):
            raise ArgumentError(
                "output", f"{self.output} holds something else: name another file, or replace it by --force"
            )
        result = self.compute()
        if self.json:
            print_json(self.document(result))
        else:
            self.report(result)
        failures = self.failures(result)
        if failures:
            print(f"searchphase: {self.unfinished(failures)}", file=sys.stderr)
        elif self.is_csv:
            write_table(self.rows(result), str(self.output))
        elif self.output:
            self.store(result, self.output)
        if self.plot:
            from validation.figures.style import figure_style

            with figure_style():
                write_whole(self.plot, self.draw(result).savefig)
        return 1 if failures else self.exit_code(result)

    @property
    def brief(self) -> bool:
        """Whether computing takes less time than compiling what is computed, done with any care, takes."""
        return False

    @property
    def has_table(self) -> bool:
        """Whether the result is a table, which a CSV file can hold."""
        return type(self).rows is not OutputOptions.rows

    @property
    def is_csv(self) -> bool:
        """Whether the table is to be written as text."""
        return self.output is not None and self.output.endswith(".csv")

    @property
    def flags(self) -> dict[str, Any]:
        """What determines the result: all flags, with what is in the files that they name."""
        flags = dataclasses.asdict(self)
        for name in _FILES:
            if flags.get(name) is not None and Path(flags[name]).is_file():
                flags[name] += content(Path(flags[name]).read_bytes())
        return flags

    def may_replace(self, file: Path) -> bool:
        """Whether a file may be written: it is not there, or holds what the same flags made."""
        if not file.exists():
            return True
        if self.is_csv:  # which says nothing of what made it
            return False
        try:
            return made_by(open_dataset(file), self.flags)
        except (ValueError, KeyError, OSError):
            return False

    def interrupted(self) -> str:
        """What is to be said of an interrupted run: what is kept, and how to go on."""
        return "nothing is kept"

    def failures(self, result: Any) -> Sequence[Any]:
        """What of the result is missing because of an error; then it is not written."""
        return ()

    def unfinished(self, failures: Sequence[Any]) -> str:
        """What is to be said of failures."""
        raise NotImplementedError

    def compute(self) -> Any:
        """The command's result."""
        raise NotImplementedError

    def document(self, result: Any) -> Any:
        """What `--json` prints."""
        raise NotImplementedError

    def report(self, result: Any) -> None:
        """Prints the result for people."""
        raise NotImplementedError

    def dataset(self, result: Any) -> Any:
        """The result as an `xarray.Dataset`; what is no array goes into its attributes, as JSON."""
        raise NotImplementedError

    def rows(self, result: Any) -> Sequence[Mapping[str, Any]]:
        """The result as the rows of a table with the same columns, for CSV files; commands whose result is none leave this out."""
        raise NotImplementedError

    def draw(self, result: Any) -> Any:
        """The result as a Matplotlib figure."""
        raise NotImplementedError

    def store(self, result: Any, path: str) -> None:
        """Writes the result, with all flags, to a netCDF file."""
        kind = re.sub("(?<!^)(?=[A-Z])", "-", type(self).__name__).lower()
        write_dataset(self.dataset(result), path, kind=kind, command=self.flags)

    def exit_code(self, result: Any) -> int:
        """0 if all is well."""
        return 0
