"""Trajectories from a start on the unstable mode."""

from collections.abc import Iterator

import numpy as np

from odes import solve
from validation.checks.base import Case, Result
from validation.simulation.result import mean_and_error, observables


def trajectory(case: Case) -> Iterator[Result]:
    """|m|, |u|, |s|, w·ω* and the loss at three times around the escape, from a start on the unstable mode."""
    case = case.at(dimension=case.effort.trajectory_dimension)
    start = case.mode_start()
    end = case.predicted_escape(start)
    if not np.isfinite(end):
        yield case.no_escape("trajectory")
        return
    steps = np.unique(np.round(np.array([0, 0.5, 1, 1.3]) * end / float(case.problem.sgd.learning_rate)).astype(int))
    run = case.run(steps, case.effort.trajectory_seeds, start=start)
    theory = solve(case.theory, start, t1=run.t[-1], times=run.t, finite_steps=True)
    simulated, predicted = observables(run), observables(theory)
    for name, values in simulated.items():
        if name == "s" and float(case.problem.alignment) > 1 - 1e-9:
            continue
        for i in range(1, run.t.size):
            mean, error = mean_and_error(values[:, i])
            name_at = f"{name} at t = {float(run.t[i]):.4g}"
            yield case.check(name_at, predicted[name][i], mean, error, runs=values.shape[0])
