"""The limits of the theory: dimension to infinity, learning rate to 0."""

from collections.abc import Iterator

import numpy as np

from odes import solve
from validation.checks.base import Case, Result
from validation.simulation.result import mean_and_error


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
