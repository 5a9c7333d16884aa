"""Trajectories from a start on the unstable mode: of the flow, and of the mean step iterated."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from odes import Overlaps, solve
from theory import passage, patience, search_phase
from validation.checks.base import MOST_STEPS, Case, Note, Result
from validation.checks.limits import HIGH_DIMENSION
from validation.simulation.result import mean_and_error, observables

_NEXT_ORDER, _SCATTER = 1e-3, 0.01
"""By so much the next orders in 1/d may change observables, relative to their largest values, while seeds scatter by so little."""


def trajectory(case: Case) -> Iterator[Result]:
    """|m|, |u|, |s|, w·ω* and the loss at three times around the escape, from a start on the unstable mode, or their like of every
    unit and direction."""
    case = case.at(dimension=case.effort.trajectory_dimension)
    start = case.mode_start()
    end = case.predicted_escape(start)
    if not np.isfinite(end):
        yield case.no_escape("trajectory")
        return
    yield from _compared(case, end, start, finite_steps=True)


def mean_step(case: Case) -> Iterator[Result]:
    """The same at any learning rate, in so high a dimension that only the mean step is left, against that iterated.

    Beyond what is stable the mean step may be chaotic: noise grows until the mean of the seeds follows no equation. Times from
    which on they scatter are not compared.
    """
    case = case.at(dimension=HIGH_DIMENSION)
    start, eta = case.mode_start(), float(case.problem.sgd.learning_rate)
    horizon = min(float(patience(search_phase(case.theory))), MOST_STEPS * eta)
    options = {"iterated": True, "max_steps": 2 * MOST_STEPS}
    end = float(passage(case.theory, start, case.escape, horizon, **options).escape_time)
    yield from _compared(case, end if end > 0 else horizon / 10, start, mean_alone=True, **options)


def _compared(case: Case, end: float, start: Overlaps, *, mean_alone: bool = False, **options: Any) -> Iterator[Result]:
    """Observables of the chain beside those of `solve` with some `options`, at three times around `end`.

    If the `mean_alone` is left of the chain, times from which on seeds scatter are noted instead.
    """
    steps = np.unique(np.round(np.array([0, 0.5, 1, 1.3]) * end / float(case.problem.sgd.learning_rate)).astype(int))
    if steps[-1] == 0:
        yield Note(case.name, "trajectory: it escapes within half a step")
        return
    run = case.run(steps, case.effort.trajectory_seeds, start=start)
    theory = solve(case.theory, start, t1=run.t[-1], times=run.t, **options)
    simulated, predicted = observables(run), observables(theory)
    number = run.t.size
    if mean_alone:
        scatter = [~(values.std(axis=0) <= _SCATTER * np.nanmax(np.abs(values))) for values in simulated.values()]
        number = int(np.argmax([*np.any(scatter, axis=0), True]))
    if number < run.t.size:
        time = float(run.t[number])
        yield Note(
            case.name, f"mean-step from t = {time:.4g} on: noise has grown, seeds scatter by more than {_SCATTER:.0%}"
        )
    for name, values in simulated.items():
        if name == "s" and float(case.problem.alignment) > 1 - 1e-9:  # m, in other units
            continue
        for i in range(1, number):
            mean, error = mean_and_error(values[:, i])
            error = np.hypot(error, _NEXT_ORDER * mean_alone * np.abs(predicted[name][:number]).max())
            name_at = f"{name} at t = {float(run.t[i]):.4g}"
            yield case.check(name_at, predicted[name][i], mean, error, runs=values.shape[0])
