"""What theory says of checkpoints and of remedies, beside the same from the exact chain."""

import zlib
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from odes import Escape, Stage, Transfer
from theory import Remedy, Verdict, checkpoints, remedies
from validation.checks.base import LAW_ACCURACY, Case, Note, Result
from validation.simulation.chain import affordable_chain
from validation.simulation.ensemble import simulate_stages
from validation.simulation.fine_tuning import simulated_fine_tuning
from validation.simulation.result import last_step, mean_and_error

_CONFIRMED = 6
"""So many checkpoints of a sweep are simulated besides those where the cost turns."""

_MOST_STEPS = 40_000
"""Fine-tuning from a checkpoint that would need more steps is not simulated."""

_RECORDS = 300
_LONGER = 2.5
"""Chains are given so many times the time that theory says."""

_MOST_REMEDY_STEPS = 100_000
_MOST_SAMPLES = 5e8
_FEWEST_SEEDS = 20
"""Remedies whose chains need many samples are simulated with fewer seeds."""


def confirmed_checkpoints(
    transfer: Transfer, goal: Escape, verdict: Verdict, *, seeds: int, key: PRNGKeyArray
) -> list[dict[str, float]]:
    """Theory and chain at the turns, the ends and some checkpoints between, where no run needs too many steps."""
    grid, rows = np.asarray(verdict.swept.time), []
    if verdict.last is None:
        return rows
    between = grid[np.linspace(0, grid.size - 1, _CONFIRMED).astype(int)]
    chosen = np.array(sorted({*between.tolist(), *(turn.at for turn in verdict.turns)}))
    tuning = checkpoints(transfer, chosen, goal).tuning
    columns = (np.asarray(x).tolist() for x in (chosen, tuning.time, tuning.tau))
    for place, (at, expected, tau) in enumerate(zip(*columns, strict=True)):
        longest = 1.5 * expected + 8 * tau
        if not longest <= _MOST_STEPS * float(transfer.sgd.learning_rate):
            continue
        own = jax.random.fold_in(key, place)
        times = simulated_fine_tuning(transfer, at, goal, longest=longest, seeds=seeds, key=own, progress=True)
        mean, error, reached = _moments(times)
        row = {"pretraining_time": at, "theory": expected, "chain": mean, "standard_error": error, "reached": reached}
        rows.append(row)
    return rows


def confirmed_remedy(remedy: Remedy, goal: Escape, *, seeds: int, key: PRNGKeyArray) -> dict[str, Any]:
    """The samples per dimension that the exact chain takes, with the standard error, and how many seeds got there.

    The random numbers are those of `key` and of the remedy's name.
    """
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
            seeds=min(seeds, max(_FEWEST_SEEDS, int(_MOST_SAMPLES / expected))),
            records=[1] * len(before) + [_RECORDS],
            until=goal,
            since=0,
            progress=True,
        )
        times = run.escape_times(goal, [*first, run][0].start)
        spent = sum(float(one.problem.sgd.samples_per_dimension(one.t[-1])) for one in first)
        samples = spent + times / float(sgd.noise_scale)
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
    for remedy in remedies(case.theory, case.escape, ways=("noise", "scale")):
        if remedy.doubt or not np.isfinite(remedy.samples):
            yield Note(case.name, f"remedies: {remedy.name}: {remedy.doubt or 'the goal is not reached'}")
            continue
        if not _short(remedy):
            yield Note(case.name, f"remedies: {remedy.name}: more than {_MOST_REMEDY_STEPS} steps")
            continue
        found = confirmed_remedy(remedy, case.escape, seeds=case.effort.trajectory_seeds, key=case.key)
        name = f"samples per dimension, {remedy.name}"
        yield case.check(name, remedy.samples, found["chain_samples"], found["standard_error"], accuracy=LAW_ACCURACY)
