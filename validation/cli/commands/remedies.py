"""`searchphase remedies`: what shortens fine-tuning from given weights, ranked by the samples it takes."""

import dataclasses
import json
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from odes import Escape, Problem
from theory import WAYS, Remedy, possible_ways, remedies
from validation.checks.confirm import RemedyJob
from validation.cli.options import ConfirmOptions, EscapeOptions, FileOptions, ModelOptions
from validation.cli.report import table
from validation.cli.work import ResumeOptions
from validation.figures.style import log_width
from validation.jobs.engine import Advanced, all_results, carry_out

_WORDS = ("words", "settings", "edge", "doubt")
"""What is told of a remedy beside its numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remedies(ResumeOptions, EscapeOptions, ConfirmOptions, ModelOptions, FileOptions):
    """Rank what shortens fine-tuning from given weights by samples to escape: batch size, rank, LoRA+, scale, curriculum, full weights.

    The samples per dimension of a run of time t are t/theta; for every remedy the best noise scale theta is computed. The goal is
    the escape unless --goal is given. The exact chain confirms what is found (--confirm 0: it does not). About three minutes for all
    ways, half of them for the curriculum.
    """

    confirm: int = 20
    """Simulate the exact chain, with this many seeds, beside the theory (0: theory alone)."""

    ways: Annotated[tuple[str, ...], tyro.conf.arg(metavar="WAY [WAY ...]", help_behavior_hint="")] = WAYS
    """Which ways to look into: noise, rank, lr-ratio, scale, full, curriculum (all unless given, of several units all but the last)."""

    def compute(self) -> list[dict[str, Any]]:
        self.check_confirm()
        goal = self.escape if self.goal is None else Escape("absolute", self.goal)
        stored = self.stored()
        problem = self.asked(self.sgd) if stored is None else stored
        asked = possible_ways(problem, None if self.ways == WAYS else self.ways)
        parts, first = self.parts(), WaysJob(problem, goal, ("noise",))
        others = [(way,) for way in asked if way != "noise"]
        with self.work() as work:
            ((given, plain),) = all_results(carry_out([first], unit="remedy", parts=parts, **work))
            jobs = [WaysJob(problem, goal, way, plain) for way in others]
            found = [given, *([plain] if "noise" in asked else [])]
            found += sum(all_results(carry_out(jobs, unit="remedy", parts=parts, **work)), [])
            found.sort(key=lambda remedy: (not np.isfinite(remedy.samples), remedy.samples))
            rows = [describe(remedy, found) for remedy in found]
            if self.confirm:
                key = jax.random.key(self.seed)
                confirming = [RemedyJob(remedy, goal, self.confirm, key) for remedy in found]
                simulated = all_results(carry_out(confirming, unit="remedy", parts=parts, **work))
                rows = [row | some for row, some in zip(rows, simulated, strict=True)]
        return rows

    def document(self, result: list[dict[str, Any]]) -> dict[str, Any]:
        return {"remedies": result}

    def report(self, result: list[dict[str, Any]]) -> None:
        print(table([{name: row[name] for name in row if name not in _WORDS} for row in result]))
        for row in result:
            chosen = ", ".join(f"{name} {value:.4g}" for name, value in row["settings"].items())
            print(f"{row['remedy']}: {row['words']}{f' ({chosen})' if chosen else ''}")
            if row["edge"]:
                print(f"  on the edge of what was searched: {', '.join(row['edge'])}")
            if row["doubt"]:
                print(f"  {'not a' if row['settings'] else 'no'} mean time: {row['doubt']}")

    def rows(self, result: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return result

    def dataset(self, result: list[dict[str, Any]]) -> Any:
        import xarray

        names = [name for name in result[0] if name not in _WORDS]
        columns = {name: ("remedy_number", np.array([row[name] for row in result])) for name in names}
        told = {
            name: json.dumps({row["remedy"]: row[name] for row in result}) for name in ("settings", "edge", "doubt")
        }
        return xarray.Dataset(columns, attrs=told)

    def draw(self, result: list[dict[str, Any]]) -> Any:
        """Samples of every remedy as bars, with the simulated ones as dots."""
        import matplotlib.pyplot as plt

        shown = [row for row in result if np.isfinite(row["samples"])]
        figure, ax = plt.subplots(figsize=(4.2, 0.28 * len(shown) + 0.9))
        places = np.arange(len(shown))
        ax.barh(places, [row["samples"] for row in shown], color="0.75")
        if "chain_samples" in result[0]:
            means, errors = ([row[name] for row in shown] for name in ("chain_samples", "standard_error"))
            ax.errorbar(means, places, xerr=errors, fmt="o", markersize=3, label="chain")
            ax.legend()
        names = [row["remedy"] for row in shown]
        log_width(ax)
        ax.set(xlabel="samples per dimension $n/d$", yticks=places, yticklabels=names)
        ax.invert_yaxis()
        return figure


@dataclasses.dataclass(frozen=True)
class WaysJob:
    """Some ways of training, with the best noise scale if it is known already."""

    problem: Problem
    goal: Escape
    ways: tuple[str, ...]
    plain: Remedy | None = None
    size: int = 1

    @property
    def name(self) -> str:
        """What it is called among the others."""
        return "-".join(("ways", *self.ways))

    def run(self, advanced: Advanced) -> list[Remedy]:
        """The remedies."""
        return list(remedies(self.problem, self.goal, ways=self.ways, plain=self.plain))


def describe(remedy: Remedy, found: list[Remedy]) -> dict[str, Any]:
    """What theory says of a remedy; `gain` is by how much fewer samples it takes than the training as given."""
    given = next(other.samples for other in found if other.name == "as given")
    sgd = remedy.stages[-1].problem.sgd
    rate, batch = (float(x) if remedy.settings else np.nan for x in (sgd.learning_rate, sgd.batch_size))
    return {
        "remedy": remedy.name,
        "samples": remedy.samples,
        "gain": given / remedy.samples if remedy.samples else np.nan,
        "time": remedy.time,
        "learning_rate": rate,
        "batch_size": batch,
        "words": remedy.words,
        "settings": remedy.settings,
        "edge": list(remedy.edge),
        "doubt": remedy.doubt,
    }
