"""Saddles on the way, the search phase among them: when runs come near and when they leave, against the flow from the same start."""

from collections.abc import Iterator

import jax
import numpy as np

from odes import solve
from theory import escape_modes, leading_phase, patience, saddles, spread_start, visit
from validation.checks.base import MOST_STEPS, Case, Note, Result
from validation.simulation.result import even_records, mean_and_error

_DIMENSION = 1e7
"""Where runs are followed: what noise does along the second mode at a usual dimension is like the start on it."""

_SMALL = 0.05
"""Amplitude of the fastest mode at the start: within the radius of the first saddle."""

_RECORDS = 400
"""Runs are recorded at so many times."""

_LONGER = 1.5
"""Runs are followed for so many times the time at which the flow leaves the last saddle."""


def saddle_times(case: Case) -> Iterator[Result]:
    """When runs that start on the growing modes leave the saddle at U = 0, and come near and leave further ones that the flow passes."""
    case = case.at(dimension=_DIMENSION)
    start, rate, modes = (
        spread_start(case.problem, _SMALL),
        float(case.problem.sgd.learning_rate),
        escape_modes(case.theory),
    )
    horizon = min(float(patience(leading_phase(modes), modes)), MOST_STEPS * rate)
    first = solve(case.theory, start, t1=horizon, times=np.linspace(0, horizon, 10 * _RECORDS + 1), finite_steps=True)
    passed = [saddle for saddle in saddles(first, finite_steps=True) if saddle.left < horizon]
    if not passed:
        yield Note(case.name, f"saddles: the flow passes none until t = {horizon:.4g}")
        return
    end = min(_LONGER * max(saddle.left for saddle in passed), horizon)
    steps = even_records(int(np.ceil(end / rate)), _RECORDS)
    run = case.run(steps, case.effort.trajectory_seeds, start=start)
    times = np.asarray(run.t)
    flow = solve(case.theory, start, t1=run.t[-1], times=run.t, finite_steps=True)
    for number, saddle in enumerate(passed, 1):
        entered, left = visit(case.theory, saddle.overlaps, times, flow.overlaps)
        visits = np.array(
            [
                visit(case.theory, saddle.overlaps, times, jax.tree.map(lambda x, i=i: x[i], run.overlaps))
                for i in range(run.loss.shape[0])
            ]
        )
        seen = np.isfinite(visits[:, 0])
        yield case.arrivals(f"fraction that comes near saddle {number}", int(seen.sum()), seen.size)
        if not seen.all():
            continue
        known = {"left": (left, visits[:, 1])}
        if entered > 0:
            known |= {"entered": (entered, visits[:, 0]), "residence": (left - entered, visits[:, 1] - visits[:, 0])}
        for name, (expected, values) in known.items():
            mean, error = mean_and_error(values)
            yield case.check(f"saddle {number}, {name}", expected, mean, case.known(error), runs=seen.size)
