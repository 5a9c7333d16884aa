"""What theory says of checkpoints and of remedies, beside the same from the exact chain."""

import dataclasses
import re
import zlib
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from odes import Escape, Stage, Transfer
from theory import FineTuning, Remedy, Validity, Verdict, checkpoints, pretrained_until, remedies
from validation.checks.base import LAW_ACCURACY, Case, Note, Result
from validation.jobs.engine import Advanced, all_results, carry_out
from validation.simulation.chain import affordable_chain
from validation.simulation.ensemble import simulate_stages
from validation.simulation.fine_tuning import simulated_fine_tuning
from validation.simulation.result import last_step, mean_and_error

_CONFIRMED = 6
"""So many checkpoints of a sweep are simulated besides those where the cost turns."""

_MOST_STEPS = 40_000
"""Fine-tuning from a checkpoint that would need more steps is not simulated."""

_LEARNT = (0.1, 0.01)
"""Checkpoints are checked when the source loss has fallen to these fractions, and after twice the time of the last."""

_RARE = 0.01
"""So large a part of the runs may be later than the time that chains are given."""

_RECORDS = 300
_LONGER = 2.5
"""Chains are given so many times the time that theory says."""

_MOST_REMEDY_STEPS = 100_000
_MOST_SAMPLES = 5e8
_FEWEST_SEEDS = 20
"""Remedies whose chains need many samples are simulated with fewer seeds."""


@dataclasses.dataclass(frozen=True)
class TuningJob:
    """Fine-tuning from the checkpoint at pretraining time `at`, on the chain, for at most `longest`; theory says `expected`."""

    name: str
    transfer: Transfer
    at: float
    expected: float
    longest: float
    goal: Escape
    seeds: int
    key: PRNGKeyArray
    size: int = 1

    def run(self, advanced: Advanced) -> dict[str, float]:
        """Theory and chain side by side."""
        options = {"longest": self.longest, "seeds": self.seeds, "key": self.key}
        mean, error, reached = _moments(simulated_fine_tuning(self.transfer, self.at, self.goal, **options))
        compared = {"pretraining_time": self.at, "theory": self.expected, "chain": mean}
        return compared | {"standard_error": error, "reached": reached}


def confirming_checkpoints(
    transfer: Transfer, goal: Escape, verdict: Verdict, *, seeds: int, key: PRNGKeyArray, name: str = "checkpoint"
) -> list[TuningJob]:
    """Fine-tuning at the turns, the ends and some checkpoints between, where no run needs too many steps."""
    grid = np.asarray(verdict.swept.time)
    if verdict.last is None:
        return []
    between = grid[np.linspace(0, grid.size - 1, _CONFIRMED).astype(int)]
    chosen = np.array(sorted({*between.tolist(), *(turn.at for turn in verdict.turns)}))
    tuning = checkpoints(transfer, chosen, goal).tuning
    return _tunings(transfer, tuning, chosen, goal, seeds=seeds, key=key, name=name)


def _tunings(
    transfer: Transfer,
    tuning: FineTuning,
    times: np.ndarray,
    goal: Escape,
    *,
    seeds: int,
    key: PRNGKeyArray,
    name: str = "checkpoint",
) -> list[TuningJob]:
    """Fine-tuning from the checkpoints at some `times`, where no run needs too many steps."""
    jobs = []
    columns = (np.asarray(x).tolist() for x in (times, tuning.time, tuning.tau))
    for place, (at, expected, tau) in enumerate(zip(*columns, strict=True)):
        longest = 1.5 * expected + 8 * tau
        if longest <= _MOST_STEPS * float(transfer.sgd.learning_rate):
            own = jax.random.fold_in(key, place)
            jobs.append(TuningJob(f"{name}-{place}", transfer, at, expected, longest, goal, seeds, own))
    return jobs


def checkpoint_checks(case: Case) -> Iterator[Result]:
    """Fine-tuning from three checkpoints of a pretraining, of one unit on w0's direction, where its time is trusted, against the chain."""
    (transfer, theory), seeds = case.staged, case.effort.law_seeds
    learnt = [np.max(pretrained_until(theory, fraction=fraction).escape_time) for fraction in _LEARNT]
    if not np.all(np.isfinite(learnt)):
        yield Note(case.name, "checkpoints: pretraining does not learn the source")
        return
    rate = float(theory.pretraining_sgd.learning_rate)
    times = rate * np.unique(np.maximum(np.round(np.array([*learnt, 2 * learnt[-1]]) / rate), 1))
    tuning = checkpoints(theory, times, case.escape).tuning
    trusted = (np.asarray(tuning.validity) == Validity.holds) & (np.asarray(tuning.time) > 0)
    tuning, chosen = jax.tree.map(lambda x: x[trusted], tuning), times[trusted]
    jobs = _tunings(transfer, tuning, chosen, case.escape, seeds=seeds, key=case.key)
    for row in all_results(carry_out(jobs)):
        where = f"from the checkpoint at t = {row['pretraining_time']:.4g}"
        yield case.arrivals(f"fraction fine-tuned {where}", int(row["reached"]), seeds, missing=_RARE)
        name = f"fine-tuning time {where}"
        error = case.known(row["standard_error"])
        yield case.check(name, row["theory"], row["chain"], error, accuracy=LAW_ACCURACY)
    if left := times.size - len(jobs):
        yield Note(case.name, f"checkpoints: the time from {left} of {times.size} is 0, not trusted, or too long")


@dataclasses.dataclass(frozen=True)
class RemedyJob:
    """A remedy on the chain: exact, or that of normal batches in a stage in which a seed would need more than 2.5e7 samples.

    The random numbers are those of `key` and of the remedy's name.
    """

    remedy: Remedy
    goal: Escape
    seeds: int
    key: PRNGKeyArray
    size: int = 1

    @property
    def name(self) -> str:
        """What it is called among the others."""
        return f"confirm-{re.sub('[^a-z0-9]+', '-', self.remedy.name.lower())}"

    def run(self, advanced: Advanced) -> dict[str, Any]:
        """The samples per dimension that the chain takes, with the standard error, and how many seeds got there."""
        return confirmed_remedy(self.remedy, self.goal, seeds=self.seeds, key=self.key)


def confirmed_remedy(remedy: Remedy, goal: Escape, *, seeds: int, key: PRNGKeyArray) -> dict[str, Any]:
    """What the [`RemedyJob`][] of these finds."""
    key = jax.random.fold_in(key, zlib.crc32(remedy.name.encode()))
    *before, last = (
        eqx.tree_at(lambda s: s.problem, stage, stage.problem.replace(sgd=stage.problem.sgd.whole_batches()))
        for stage in remedy.stages
    )
    sgd, longest = last.problem.sgd, _LONGER * float(last.duration)
    rate = float(sgd.learning_rate)
    samples = np.zeros(0)
    if _short(remedy):
        expected = remedy.time / rate * float(sgd.batch_size)
        *first, run = simulate_stages(
            [*before, Stage(last.name, last.problem, rate * last_step(longest, rate), restart=last.restart)],
            lambda problem, steps: affordable_chain(
                problem, steps, samples=_MOST_SAMPLES / _FEWEST_SEEDS, start=remedy.start
            ),
            key=key,
            seeds=min(seeds, max(_FEWEST_SEEDS, int(_MOST_SAMPLES / max(expected, 1)))),
            records=[1] * len(before) + [_RECORDS],
            escape=goal,
            until_escape=True,
            since=0,
        )
        spent = sum(float(one.problem.sgd.samples_per_dimension(one.t[-1])) for one in first)
        samples = spent + np.asarray(run.escape_times) / float(sgd.noise_scale)
    mean, error, reached = _moments(samples)
    return {"chain_samples": mean, "standard_error": error, "reached": reached}


def _short(remedy: Remedy) -> bool:
    """Whether the chain is run long enough for the remedy."""
    last = remedy.stages[-1]
    return _LONGER * float(last.duration) <= _MOST_REMEDY_STEPS * float(last.problem.sgd.learning_rate)


def _moments(values: np.ndarray) -> tuple[float, float, int]:
    """Mean and standard error of the finite values (NaN unless there are two), and how many there are."""
    values = values[np.isfinite(values)]
    mean, error = mean_and_error(values) if values.size > 1 else (np.nan, np.nan)
    return mean, error, values.size


def remedy_checks(case: Case) -> Iterator[Result]:
    """The samples that the best noise scale, alone and with the best scale, takes against those of the chain."""
    if not np.isfinite(float(case.theory.sgd.batch_size)):
        yield Note(case.name, "remedies: batches are infinite")
        return
    seeds = min(case.effort.trajectory_seeds, _FEWEST_SEEDS)
    for remedy in remedies(case.theory, case.escape, ways=("noise", "scale")):
        if remedy.doubt or not remedy.samples > 0:
            yield Note(case.name, f"remedies: {remedy.name}: {remedy.doubt or 'w0 meets the goal'}")
            continue
        if not _short(remedy):
            yield Note(case.name, f"remedies: {remedy.name}: more than {_MOST_REMEDY_STEPS} steps")
            continue
        found = confirmed_remedy(remedy, case.escape, seeds=seeds, key=case.key)
        yield case.arrivals(f"fraction that arrives, {remedy.name}", found["reached"], seeds, missing=_RARE)
        name = f"samples per dimension, {remedy.name}"
        sgd = remedy.stages[-1].problem.sgd
        error = case.known(found["standard_error"], float(sgd.samples_per_dimension(sgd.learning_rate)))
        yield case.check(name, remedy.samples, found["chain_samples"], error, accuracy=LAW_ACCURACY)
