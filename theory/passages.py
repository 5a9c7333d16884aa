r"""Passages: how long the flow takes from a start to a goal, within a horizon."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, ScalarLike

from odes import Escape, Overlaps, Problem, Solution, solve
from odes.arguments import real_array
from theory.modes import EscapeModes
from theory.search import SearchPhase

_PATIENCE, _PLATEAU = 50, 10


def patience(phase: SearchPhase, modes: EscapeModes | None = None) -> Float[Array, ""]:
    """The horizon of a search: 50 of its time scales, ten times as many where D <= 0 and U grows to a plateau first.

    A run that has not arrived by then does not arrive. Where the search never ends the horizon is 1. With the `modes` of several units
    the time scale is that of the slowest one, which may be searched for when the first search is over.
    """
    scales = jnp.where(phase.D > 0, _PATIENCE, _PATIENCE * _PLATEAU)
    tau = phase.tau if modes is None else 1 / modes.slowest
    return jnp.where(jnp.isfinite(tau), scales * tau, 1.0)


def passage(
    problem: Problem,
    start: Overlaps,
    goal: Escape,
    horizon: ScalarLike,
    *,
    finite_steps: bool = True,
    **options: Any,
) -> Solution:
    """The flow (of finite steps unless told otherwise) from `start` to the goal, or to the `horizon`.

    Its `escape_time` is the time that the passage takes, NaN if it takes longer than the horizon; its `final` are the
    overlaps there. `options` are those of [`odes.solve`][].
    """
    return solve(
        problem,
        start,
        t1=real_array(horizon),
        times=np.zeros(0),
        escape=goal,
        until_escape=True,
        finite_steps=finite_steps,
        **options,
    )
