r"""Where the mean time of fine-tuning from given weights is computed, to leading order: few differentiable passages."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from odes import Escape, Overlaps, Problem, in_closed_form, pretrained
from odes.arguments import real_array
from odes.programs import program
from odes.shown import Shown
from theory.averages import controlled_mean
from theory.modes import EscapeModes, escape_modes
from theory.passages import passage, patience
from theory.search import SearchPhase, UnstableMode, fastest_decay, leading_phase, unstable_mode
from theory.starts import moves, random_start, start_normals, typical_amplitude, typical_start
from theory.trust import Validity, kinked, met, shortest, stretched, too_fast, validity

_STEP = 1.5
"""The integrator's largest step in units of the fastest time scale, within the stability of the explicit solver."""

_LARGEST_AMPLITUDE = 0.2
"""Of the start, or with kinks its ratio to |w0|: beyond this no start is typical."""

_MOST_ROWS = 0.01
"""The rank over the dimension: the typical start's rows are orthogonal, and those of random starts only up to its root."""

_SPLIT = 0.03
"""The time is trusted if it is known to this part: that of a start which the rows share in another way differs by no more, and the
standard error of a mean over starts is no larger."""

_STARTS = 64
"""So many random starts stand for all those of several units unless they are given."""

_ESCAPING = 0.95
"""The goal is reached if at least this part of the starts reaches it."""


class FineTuning(Shown):
    r"""Fine-tuning from given weights w0.

    - `time`: how long it takes, NaN where the goal is not reached ([`theory.patience`][]); of one unit from a typical random start, of
        several the mean over random starts;
    - `error`: how well it is known: by how much the time of one unit changes where the rows share the start in another way, the standard
        error of the mean for several;
    - `tau`: the time scale of the search phase, `D` its damping;
    - `amplitude`: of the unstable mode at the start;
    - `validity`: whether `time` is the mean over random starts and SGD noise to leading order, a number of [`theory.Validity`][].
    """

    time: Float[Array, "*n"]
    error: Float[Array, "*n"]
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


@program
def fine_tuning(
    problem: Problem,
    goal: Escape | None = None,
    *,
    normals: Float[Array, "starts r k"] | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
    max_steps: int = 2**13,
) -> FineTuning:
    r"""How long fine-tuning takes to a goal (escape unless given), on average over the starts that stand for all.

    Since the time from amplitude a of the unstable mode is $T_0 - \tau\log a$ for small a, the flow of finite steps from the
    amplitude whose logarithm is the mean one takes the mean time, as long as it does not matter how the rows share it. For one unit
    that start is all there is ([`theory.typical_start`][]), and how much the sharing matters is seen from the time of a start whose rows
    share the amplitude equally. Several units search in several modes, of which the later ones start from what the first leaves them: no
    start is typical, and the mean is that over random ones ([`theory.random_start`][], with the `normals` of 64 of them, always the same,
    unless others are given), with $\log a$ as a control variate; their links are those that the law follows. Differentiable in
    everything that defines the problem, by `jax.grad`; by `jax.jvp` with `adjoint=diffrax.ForwardMode()`. After `max_steps` of the
    integrator it is given up.

    **Raises** ArgumentError for a problem without pretrained weights or whose readouts are trained.
    """
    problem.require_known_search()
    goal = Escape() if goal is None else goal
    if problem.units != (1, 1):
        problem = in_closed_form(problem) or problem
    modes = escape_modes(problem)
    phase, mode = leading_phase(modes), unstable_mode(problem, modes)
    moving, already = moves(problem, phase), met(problem, goal)
    if problem.units[0] == 1:
        starts = _typical_starts(problem, phase, mode)
    else:
        starts = _random_starts(problem, modes, moving, normals)
    options = {"rtol": 1e-7, "atol": 1e-12, "adjoint": adjoint, "max_steps": max_steps}
    horizon = jnp.where(moving & ~already, patience(phase, modes), 1.0)  # no run counts where w0 meets the goal
    step = stable_step(problem)
    runs = jax.vmap(lambda start: passage(problem, start, goal, horizon, largest_step=step, **options))(starts.overlaps)
    found = jax.lax.stop_gradient(runs.escape_time)
    searched = moving & (phase.D > 0) & (found > 0)
    # The derivative of an escape time that is NaN is NaN, and would make all derivatives NaN.
    times = jnp.where(jnp.isfinite(found), jnp.where(found > 0, runs.t_final, 0), jnp.nan)
    times += jnp.where(searched, mode.lag * starts.logs, 0)
    amplitude = typical_amplitude(problem, mode)
    over = controlled_mean(times, starts.logs, jnp.log(amplitude), starts.weights)
    reached = over.reached >= _ESCAPING
    time = jnp.where(already, 0, jnp.where(moving & reached, over.mean, jnp.nan))
    middle = jnp.argsort(jnp.where(starts.weights > 0, times, jnp.inf))[jnp.sum(starts.weights > 0) // 2]
    crossing = jax.tree.map(lambda x: x[middle], runs.final)
    coarse = too_fast(problem, phase) | stretched(problem, crossing)
    unknown = jnp.sum(jnp.where(runs.result == diffrax.RESULTS.max_steps_reached, starts.weights, 0))
    given_up = ~reached & (over.reached + unknown >= _ESCAPING)
    valid = validity(
        problem,
        goal,
        phase,
        mode,
        time=time,
        reached=reached,
        crossing=crossing,
        coarse=coarse,
        given_up=given_up,
        already=already,
    )
    apart = jnp.max(jnp.where(starts.weights > 0, 0, jnp.abs(times - over.mean)))
    sampled = over.error(jnp.sum(starts.weights > 0).astype(times.dtype))
    error = jnp.where(already, 0, jnp.maximum(sampled, apart))
    doubts, codes = [already, valid != Validity.holds], [int(Validity.holds), valid]
    if problem.units[0] == 1:
        doubts += [_large(problem, mode) | (found[0] == 0), phase.D <= 0]
        codes += [int(Validity.large_start), int(Validity.plateau)]
    doubts, codes = [*doubts, ~(error <= _SPLIT * time)], [*codes, int(Validity.split)]
    valid = jnp.select(doubts, [jnp.asarray(code) for code in codes], int(Validity.holds))
    return FineTuning(time, error, phase.tau, phase.D, amplitude, valid)


class _Starts(Shown):
    """Starts with the logarithms of their amplitudes along the fastest mode, and the weights with which they count; those of weight 0
    show how much the time depends on what is left open."""

    overlaps: Overlaps
    logs: Float[Array, " n"]
    weights: Float[Array, " n"]


def _typical_starts(problem: Problem, phase: SearchPhase, mode: UnstableMode) -> _Starts:
    """The typical start, and beside it, from rank 2, one whose rows share the amplitude equally, which does not count."""
    starts = [typical_start(problem, phase, mode, equal=equal) for equal in (False, True)][: problem.adapter.rank]
    logs = jnp.full(len(starts), jnp.log(typical_amplitude(problem, mode)))
    return _Starts(jax.tree.map(lambda *x: jnp.stack(x), *starts), logs, real_array(np.eye(len(starts))[0]))


def _random_starts(problem: Problem, modes: EscapeModes, moving: Bool[Array, ""], normals: Array | None) -> _Starts:
    """Random starts; w0 itself where nothing moves."""
    if normals is None:
        normals = real_array(start_normals(_STARTS, problem.adapter.rank, problem.frame_size, problem.units[0]))
    drawn, amplitudes = jax.vmap(lambda numbers: random_start(problem, modes, numbers))(normals)
    overlaps = jax.tree.map(lambda a, b: jnp.where(moving, a, b[None]), drawn, pretrained(problem))
    return _Starts(overlaps, jnp.log(amplitudes), jnp.full(len(normals), 1 / len(normals)))


def _large(problem: Problem, mode: UnstableMode) -> Bool[Array, ""]:
    """Whether a start is no small perturbation, so that none is typical."""
    whole = jnp.sqrt(problem.adapter.trained_rows * mode.variance)
    large = whole > _LARGEST_AMPLITUDE * jnp.where(kinked(problem), shortest(problem), 1.0)
    return large | (problem.adapter.trained_rows > _MOST_ROWS * problem.sgd.dimension)
