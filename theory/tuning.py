r"""Where the mean time of fine-tuning from given weights is computed, to leading order: one differentiable passage."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from odes import Escape, Problem
from odes.shown import Shown
from theory.modes import escape_modes
from theory.passages import passage, patience
from theory.search import fastest_decay, leading_phase, unstable_mode
from theory.starts import moves, typical_amplitude, typical_start
from theory.trust import Validity, kinked, met, shortest, stretched, too_fast, validity

_STEP = 1.5
"""The integrator's largest step in units of the fastest time scale, within the stability of the explicit solver."""

_LARGEST_AMPLITUDE = 0.2
"""Of the start, or with kinks its ratio to |w0|: beyond this no start is typical."""

_MOST_ROWS = 0.01
"""The rank over the dimension: the typical start's rows are orthogonal, and those of random starts only up to its root."""

_SPLIT = 0.03
"""The time is trusted if that of a start which the rows share in another way differs by no more than this part."""


class FineTuning(Shown):
    r"""Fine-tuning from given weights w0.

    - `time`: how long it takes from a typical random start, NaN where the goal is not reached ([`theory.patience`][]);
    - `tau`: the time scale of the search phase, `D` its damping;
    - `amplitude`: of the unstable mode at the start;
    - `validity`: whether `time` is the mean over random starts and SGD noise to leading order, a number of [`theory.Validity`][].
    """

    time: Float[Array, "*n"]
    tau: Float[Array, "*n"]
    D: Float[Array, "*n"]
    amplitude: Float[Array, "*n"]
    validity: Int[Array, "*n"]

    def shown(self) -> dict[str, Any]:
        return super().shown() | {"validity": Validity.named(self.validity)}

    @property
    def trusted(self) -> Bool[Array, "*n"]:
        """Where `time` is the mean over random starts and SGD noise."""
        return self.validity == Validity.holds


def stable_step(problem: Problem) -> Float[Array, ""]:
    """The largest step for an explicit integrator whose derivatives matter: 1.5 over the fastest rate of decay."""
    return _STEP / fastest_decay(problem)


@eqx.filter_jit
def fine_tuning(
    problem: Problem,
    goal: Escape | None = None,
    *,
    adjoint: diffrax.AbstractAdjoint | None = None,
    max_steps: int = 2**13,
) -> FineTuning:
    r"""How long fine-tuning takes to a goal (escape unless given), from a typical start of the search ([`theory.typical_start`][]).

    Since the time from amplitude a of the unstable mode is $T_0 - \tau\log a$ for small a, the flow of finite steps from the
    amplitude whose logarithm is the mean one takes the mean time, as long as it does not matter how the rows share it: that is
    seen from the time of a start whose rows share it equally. Differentiable in everything that defines the problem, by
    `jax.grad`; by `jax.jvp` with `adjoint=diffrax.ForwardMode()`. After `max_steps` of the integrator it is given up.

    **Raises** ArgumentError unless the problem is single-index with pretrained weights.
    """
    problem.require_single_index()
    goal = Escape() if goal is None else goal
    modes = escape_modes(problem)
    phase, mode = leading_phase(modes), unstable_mode(problem, modes)
    moving = moves(problem, phase)
    options = {"rtol": 1e-7, "atol": 1e-12, "adjoint": adjoint, "max_steps": max_steps}
    horizon, step = jnp.where(moving, patience(phase), 1.0), stable_step(problem)
    starts = [typical_start(problem, phase, mode, equal=equal) for equal in (False, True)][: problem.adapter.rank]
    runs = jax.vmap(lambda start: passage(problem, start, goal, horizon, largest_step=step, **options))(
        jax.tree.map(lambda *x: jnp.stack(x), *starts)
    )
    amplitude, found = typical_amplitude(problem, mode), runs.escape_time[0]
    already, searched = met(problem, goal), moving & (phase.D > 0) & (found > 0)
    time = found + jnp.where(searched, mode.lag * jnp.log(amplitude), 0)
    time = jnp.where(already, 0, jnp.where(moving, time, jnp.nan))
    crossing = jax.tree.map(lambda x: x[0], runs.final)
    coarse = too_fast(problem, phase) | stretched(problem, crossing)
    valid = validity(
        problem, goal, phase, mode, time=time, reached=jnp.isfinite(time), crossing=crossing, coarse=coarse
    )
    whole = jnp.sqrt(problem.adapter.rank * mode.variance)
    large = whole > _LARGEST_AMPLITUDE * jnp.where(kinked(problem), shortest(problem), 1.0)
    large |= found == 0  # a start that meets the goal, though w0 does not
    large |= problem.adapter.rank > _MOST_ROWS * problem.sgd.dimension
    divided = ~(jnp.abs(runs.escape_time[-1] - found) <= _SPLIT * found)
    doubts = [already, valid != Validity.holds, large, phase.D <= 0, divided]
    codes = [int(Validity.holds), valid, int(Validity.large_start), int(Validity.plateau), int(Validity.split)]
    valid = jnp.select(doubts, [jnp.asarray(code) for code in codes], int(Validity.holds))
    return FineTuning(time, phase.tau, phase.D, amplitude, valid)
