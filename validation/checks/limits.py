"""The limits of the theory: dimension to infinity, learning rate to 0, and the noise scale at which escapes end."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from odes import solve
from theory import largest_noise_scale, passage, patience, search_phase, shared_start, stretched, too_fast
from validation.checks.base import MOST_STEPS, Case, Note, Result
from validation.simulation.result import mean_and_error

HIGH_DIMENSION = 1e9
"""Where the limit is checked: fluctuations are below a thousandth of what they are at a usual dimension."""

_SIDE, _SEEDS = 1.2, 32
"""The largest noise scale is checked with so many seeds at this factor above and below."""

_SMALL = 0.01
"""Amplitude of the unstable mode from which the largest noise scale is that of an escape."""


def approach(case: Case) -> Iterator[Result]:
    r"""The deviation of w·ω* from the limit falls like $d^{-1/2}$: the fitted exponent of its root mean square."""
    start = case.mode_start()
    middle = case.predicted_escape(start)
    if not np.isfinite(middle):
        yield case.no_escape("approach")
        return
    seeds, logs, values = case.effort.sweep_seeds, [], []
    for i, d in enumerate(case.effort.approach):
        there = case.at(dimension=d).stream(i)
        steps = np.array([0, max(1, round(middle / float(there.problem.sgd.learning_rate)))])
        run = there.run(steps, seeds, start=start)
        theory = solve(there.theory, start, t1=run.t[-1], times=run.t, finite_steps=True)
        deviation = np.asarray(run.target_overlap[:, 1] - theory.target_overlap[1])
        logs.append(np.log(d))
        values.append(np.log(np.mean(deviation**2)) / 2)
    (slope, _), covariance = np.polyfit(logs, values, 1, w=np.full(len(logs), np.sqrt(2 * seeds)), cov="unscaled")
    yield case.check("exponent of the deviation in d", -0.5, slope, np.sqrt(covariance[0, 0]))


def learning_rate(case: Case) -> Iterator[Result]:
    """Escape times from a start on the unstable mode as the learning rate falls to 0 at fixed noise scale."""
    case = case.at(dimension=case.effort.trajectory_dimension)
    start = case.mode_start()
    limit = case.predicted_escape(start, finite_steps=False)
    if not np.isfinite(limit):
        yield case.no_escape("learning-rate")
        return
    first = float(case.problem.sgd.learning_rate)
    etas, means, errors = [], [], []
    for factor in (1, 2, 4):
        there = case.at(learning_rate=first * factor).stream(factor)
        eta = float(there.problem.sgd.learning_rate)
        predicted = there.predicted_escape(start)
        times = there.escape_times(case.effort.sweep_seeds, 3 * limit, start=start)
        mean, error = mean_and_error(times)
        etas.append(eta)
        means.append(mean)
        errors.append(error)
        yield case.check(f"escape time from a given start, eta = {eta:g}", predicted, mean, error)
    (_, constant), covariance = np.polyfit(etas, means, 1, w=1 / np.array(errors), cov="unscaled")
    error = np.sqrt(covariance[1, 1])
    yield case.check("escape time from a given start, eta -> 0", limit, constant, error)


def noise_limit(case: Case) -> Iterator[Result]:
    """Most runs from a small start that all rows share equally escape below the largest noise scale, and few above."""
    case = case.at(dimension=HIGH_DIMENSION)
    phase = search_phase(case.theory)
    if too_fast(case.theory, phase):
        yield Note(case.name, "noise-limit: the learning rate is too large for the flow of finite steps")
        return
    limit, end = float(largest_noise_scale(case.theory, case.escape)), float(patience(phase))
    if not (0 < limit < np.inf) or end > MOST_STEPS * float(case.problem.sgd.learning_rate):
        yield Note(case.name, f"noise-limit: it is {limit:g}, or patience takes more than {MOST_STEPS} steps")
        return
    below = case.theory.replace(sgd=case.theory.sgd.whole_batches(limit / _SIDE))
    crossing = passage(below, shared_start(below, _SMALL), case.escape, end).final
    if stretched(below, crossing):
        yield Note(case.name, "noise-limit: the rows grow, or turn to each other, until the steps are too large")
        return
    for number, (factor, expected) in enumerate(((1 / _SIDE, 1), (_SIDE, 0))):
        problem = case.problem.replace(sgd=case.problem.sgd.whole_batches(factor * limit))
        there = dataclasses.replace(case.stream(number), problem=problem)
        escaped = there.escape_times(_SEEDS, end, start=shared_start(problem, _SMALL)).size / _SEEDS
        z = abs(escaped - expected) * 2 * np.sqrt(_SEEDS) * (abs(escaped - expected) > 0.5)
        yield there.check(
            f"fraction escaped at {factor:.2f} of the largest noise scale", expected, escaped, np.nan, z=z
        )
