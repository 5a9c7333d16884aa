"""`searchphase remedies`: what shortens fine-tuning from given weights, ranked by the samples it takes."""

import dataclasses
import zlib
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from odes import Escape, Problem
from odes.storage import write_dataset
from theory import WAYS, Remedy, remedies
from validation.cli.options import ConfirmOptions, EscapeOptions, ModelOptions, OutputOptions, save_figure
from validation.cli.report import print_json, table
from validation.figures.style import figure_style
from validation.simulation.chain import chain_simulator
from validation.simulation.ensemble import simulate_stages
from validation.simulation.result import even_steps, mean_and_error

_RECORDS = 300
_MOST_STEPS = 100_000
_MOST_SAMPLES = 5e8
_FEWEST_SEEDS = 20
"""Remedies whose chains need many samples are simulated with fewer seeds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remedies(OutputOptions, EscapeOptions, ConfirmOptions, ModelOptions):
    """Rank what shortens fine-tuning from given weights by samples to escape: batch size, rank, LoRA+, scale, curriculum, full weights.

    The samples per dimension of a run of time t are t/theta; for every remedy the best noise scale theta is computed. The goal is
    the escape unless --goal is given. About two minutes for all ways, half of them for the curriculum.
    """

    ways: Annotated[tuple[str, ...], tyro.conf.arg(metavar="WAY [WAY ...]", help_behavior_hint="")] = WAYS
    """Which ways to look into: noise, rank, lr-ratio, scale, full, curriculum (all unless given)."""

    def run(self) -> int:
        self.check_paths()
        self.check_confirm()
        goal = self.escape if self.goal is None else Escape("absolute", self.goal)
        found = list(tqdm(remedies(self.problem(self.sgd), goal, ways=self.ways), unit="remedy", disable=None))
        found.sort(key=lambda remedy: (not np.isfinite(remedy.samples), remedy.samples))
        rows = [describe(remedy, found) for remedy in found]
        if self.confirm:
            for row, remedy in zip(rows, found, strict=True):
                key = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(remedy.name.encode()))
                row |= confirmed(remedy, goal, self.confirm, key)
        self.report(rows)
        if self.output:
            self.save(self.output, rows)
        if self.plot:
            draw(self.plot, rows)
        return 0

    def report(self, rows: list[dict[str, Any]]) -> None:
        if self.json:
            print_json({"remedies": rows})
            return
        print(
            table([{name: value for name, value in row.items() if name not in ("words", "settings")} for row in rows])
        )
        for row in rows:
            chosen = ", ".join(f"{name} {value:.4g}" for name, value in row["settings"].items())
            print(f"{row['remedy']}: {row['words']} ({chosen})")

    def save(self, path: str, rows: list[dict[str, Any]]) -> None:
        import xarray

        names = [name for name in rows[0] if name not in ("settings", "words")]
        columns = {name: ("remedy_number", np.array([row[name] for row in rows])) for name in names}
        chosen = {row["remedy"]: row["settings"] for row in rows}
        write_dataset(xarray.Dataset(columns), path, kind="remedies", command=dataclasses.asdict(self), settings=chosen)


def describe(remedy: Remedy, found: list[Remedy]) -> dict[str, Any]:
    """What theory says of a remedy; `gain` is by how much fewer samples it takes than the training as given."""
    given = next(other.samples for other in found if other.name == "as given")
    sgd = remedy.problems[-1].sgd
    return {
        "remedy": remedy.name,
        "samples": remedy.samples,
        "gain": given / remedy.samples,
        "time": float(remedy.outcome.time),
        "learning_rate": float(sgd.learning_rate),
        "batch_size": float(sgd.batch_size),
        "words": remedy.words,
        "settings": remedy.settings,
    }


def whole_batch(problem: Problem) -> Problem:
    """The problem with a whole number of samples in a batch and the learning rate that keeps its noise scale."""
    batch = max(1.0, round(float(problem.sgd.batch_size)))
    rate = float(problem.sgd.noise_scale) * batch / float(problem.sgd.dimension)
    values = jnp.asarray(batch), jnp.asarray(rate)
    return eqx.tree_at(lambda p: (p.sgd.batch_size, p.sgd.learning_rate), problem, values)


def confirmed(remedy: Remedy, goal: Escape, seeds: int, key: jax.Array) -> dict[str, Any]:
    """The samples per dimension that the exact chain takes, with the standard error, and how many seeds got there."""
    nothing = {"chain_samples": np.nan, "standard_error": np.nan, "reached": 0}
    problems = [whole_batch(problem) for problem in remedy.problems]
    last = problems[-1].sgd
    longest = 2.5 * (float(remedy.outcome.time) - remedy.first_time)
    if not longest <= _MOST_STEPS * float(last.learning_rate):
        return nothing
    steps = even_steps(longest, float(last.learning_rate), _RECORDS)
    before = 0.0
    stages = [steps]
    if len(problems) > 1:
        first = problems[0].sgd
        count = max(1, round(remedy.first_time / float(first.learning_rate)))
        before = count * float(first.learning_rate) / float(first.noise_scale)
        stages = [np.array([0, count]), steps]
    expected = float(remedy.outcome.time) / float(last.learning_rate) * float(last.batch_size)
    seeds = min(seeds, max(_FEWEST_SEEDS, int(_MOST_SAMPLES / expected)))
    runs = simulate_stages(
        [chain_simulator(problem, start=remedy.start) for problem in problems],
        key=key,
        seeds=seeds,
        steps=stages,
        until=goal,
        since=0,
        restarts=[1] if remedy.restart else [],
        progress=True,
    )
    times = np.asarray(runs[-1].escape_times(goal, runs[0].start))
    times = times[np.isfinite(times)]
    if times.size < 2:
        return nothing | {"reached": times.size}
    samples, error = mean_and_error(before + times / float(last.noise_scale))
    return {"chain_samples": samples, "standard_error": error, "reached": times.size}


def draw(path: str, rows: list[dict[str, Any]]) -> None:
    """Samples of every remedy as bars, with the simulated ones as dots."""
    with figure_style():
        import matplotlib.pyplot as plt

        shown = [row for row in rows if np.isfinite(row["samples"])]
        figure, ax = plt.subplots(figsize=(4.2, 0.28 * len(shown) + 0.9))
        places = np.arange(len(shown))
        ax.barh(places, [row["samples"] for row in shown], color="0.75")
        if "chain_samples" in shown[0]:
            means, errors = ([row[name] for row in shown] for name in ("chain_samples", "standard_error"))
            ax.errorbar(means, places, xerr=errors, fmt="o", markersize=3, label="chain")
            ax.legend()
        ax.set(
            xscale="log", xlabel="samples per dimension $n/d$", yticks=places, yticklabels=[r["remedy"] for r in shown]
        )
        ax.invert_yaxis()
        save_figure(figure, path)
