"""What is printed and drawn of several units: covariances of the preactivations, and readouts."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from odes import Overlaps, Problem, Solution, covariances, noise_error
from odes.trajectory import Trajectory
from validation.figures.style import TIME_LABEL

_MOST_COLUMNS = 12
"""Tables for people have so many columns of numbers at most."""


def of_units(trajectory: Trajectory) -> dict[str, Any]:
    """Q and M along a trajectory, and the readouts where they are trained."""
    both = trajectory.covariances
    trained = {} if trajectory.overlaps.readout is None else {"readout": trajectory.overlaps.readout}
    return {"Q": both.Q, "M": both.M} | trained


def scalars(columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Columns of numbers, for a table: the entries of arrays by themselves, of matrices with many entries the diagonal.

    Standard deviations of matrices are left out. Of u, m and s, whose first axis is that of the adapter's rows, the first row is shown.
    """
    shown: dict[str, np.ndarray] = {}
    for name, values in columns.items():
        array = np.asarray(values)
        if array.ndim == 1:
            shown[name] = array
        elif name in ("m", "u", "s"):
            shown[name] = array[0]
        else:
            stem, _, what = name.partition("_")
            if what == "std":
                continue
            places = list(np.ndindex(array.shape[1:]))
            if stem == "Q" or len(places) * 2 > _MOST_COLUMNS:
                places = [place for place in places if len(set(place)) == 1] if array.ndim == 3 else places
            for place in places[:_MOST_COLUMNS]:
                label = f"{stem}{','.join(str(n + 1) for n in place)}"
                shown["_".join(filter(None, (label, what)))] = array[(slice(None), *place)]
    return shown


def points_error(problem: Problem, overlaps: Overlaps) -> str:
    """What is to be said of the accuracy of the noise, if it is an average over quasi-random points."""
    if float(problem.sgd.noise_scale) == 0:
        return ""
    error = float(noise_error(problem, covariances(problem, overlaps)))
    return f"SGD noise is an average over quasi-random points, at the end to {error:.1g} of itself" if error > 0 else ""


def draw_units(ax: Any, solution: Solution) -> None:
    """Every student's overlaps with the teachers (solid, a colour each), square length (dashed) and, if trained, readout (dotted)."""
    both = solution.covariances
    for k in range(both.Q.shape[1]):
        ax.plot(solution.t, both.M[:, k], color=f"C{k % 10}", linewidth=1)
        ax.plot(solution.t, both.Q[:, k, k], color=f"C{k % 10}", linestyle="--", linewidth=1)
        if solution.overlaps.readout is not None:
            ax.plot(solution.t, solution.readout[:, k], color=f"C{k % 10}", linestyle=":", linewidth=1)
    ax.plot([], [], "k-", linewidth=1, label="$M_{kj}$")
    ax.plot([], [], "k--", linewidth=1, label="$Q_{kk}$")
    if solution.overlaps.readout is not None:
        ax.plot([], [], "k:", linewidth=1, label="$a_k$")
    ax.set(xlabel=TIME_LABEL, ylabel="overlap")
    ax.legend()
