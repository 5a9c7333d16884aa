r"""Fine-tuning from the checkpoints of a pretraining run: its time as a function of the time at which pretraining was stopped."""

import dataclasses
import math
import statistics

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odes import Escape, Overlaps, Solution, Transfer, gradient_at, self_moments, solve
from odes.arguments import ArrayLike
from odes.shown import Shown
from theory.lanes import in_lanes
from theory.trust import Validity
from theory.tuning import FineTuning, fine_tuning

_HORIZON = 500.0
"""Pretraining is given so many units of 1/E[σ'^2] to learn the source."""

_MOST_STEPS = 2**14
"""Pretraining of so many steps at most is iterated step by step; longer ones, whose steps are short, are solved as a flow."""

_LUCK = np.array([statistics.NormalDist().inv_cdf((i + 0.5) / 16) for i in range(16)])
"""Quantiles of equal probability of a standard normal number."""

_MOST_MOVED = 0.03
"""By so much of itself the mean time from random pretrainings may differ from that from the typical one."""

_ELSEWHERE = 0.1
"""Random weights that are so far from typical ones, relative to these, may have been pretrained to something else."""

_RECORDS = 256
"""Random pretrainings are recorded at so many times, and linear between."""

Pretrainings = tuple[Float[Array, " T"], Float[Array, "starts T 3"]]

_NEVER = math.inf
"""At this fraction of the source loss the start counts as arrived, so that nothing stops pretraining before its end."""


class Checkpoints(Shown):
    r"""Weights along a pretraining run, and fine-tuning from each of them; every field is (n,).

    - `time`: the pretraining time; `strength` |w|, `alignment` cos(w, ω*), `distance` |w - ω*|;
    - `source_loss`, `target_loss`: of the weights on the labels of both tasks;
    - `tuning`: fine-tuning from there; `slope`: the derivative of its time in the pretraining time.
    """

    time: Float[Array, "*n"]
    strength: Float[Array, "*n"]
    alignment: Float[Array, "*n"]
    distance: Float[Array, "*n"]
    source_loss: Float[Array, "*n"]
    target_loss: Float[Array, "*n"]
    tuning: FineTuning
    slope: Float[Array, "*n"]

    def samples(self, transfer: Transfer) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
        """Fresh samples per dimension spent on pretraining, and on pretraining and fine-tuning together."""
        before = transfer.pretraining_sgd.samples_per_dimension(self.time)
        return before, before + transfer.sgd.samples_per_dimension(self.tuning.time)


def checkpoints(
    transfer: Transfer, times: ArrayLike, goal: Escape | None = None, start: Overlaps | None = None
) -> Checkpoints:
    r"""Fine-tuning from the weights at n pretraining `times`, with its derivative in the pretraining time.

    Pretraining starts from [`odes.Transfer.typical_start`][] unless `start` is given and is solved once to the last time
    ([`pretrained_until`][]); each checkpoint's w0 makes a single-index problem ([`odes.Transfer.fine_tuning`][]) whose time is a
    function of $w\cdot\omega^*$ and $|w|^2$, and the chain rule with their velocities gives the slope. Time 0 is a random w0.
    Looks at its numbers, and so does not work under jit or vmap.

    Random weights differ from the typical ones by a factor N in their overlap with the source, N standard normal, and are
    pretrained as well, at quantiles of N (of |N| for even links, whose sign means nothing). Where their mean is ahead or behind of
    the typical ones by a time that, with the slope, moves fine-tuning by more than 3 %, or where they are apart from these by a tenth of
    their length and overlaps, its time is that of typical weights, no mean (`Validity.unsettled`); not so for a `start` that is given.
    """
    grid = np.asarray(times, jnp.result_type(float))
    run = pretrained_until(transfer, float(grid.max()), start=start)
    return tuned_from(transfer, run, grid, goal, others=random_pretrainings(transfer, run) if start is None else None)


def pretrained_until(
    transfer: Transfer, end: float | None = None, *, fraction: float = 1e-3, start: Overlaps | None = None
) -> Solution:
    """Pretraining, to be evaluated at any time until `end`, or until the source loss is `fraction` of its start.

    Where it does not get there (searching, or kept from it by noise) it goes on for 500 units of 1/E[σ'^2]. As long as that takes
    at most 16384 steps the mean step is iterated, and the weights' overlaps are linear between two steps: how close the
    weights come to the source, and hence how long fine-tuning takes, depends on the learning rate more than the flow of
    finite steps knows.
    """
    rate = float(transfer.pretraining_sgd.learning_rate)
    if end is None:
        end = _HORIZON / float(self_moments(transfer.student, 1.0).cross)
    else:
        end, fraction = (end if end > 0 else 1.0) + rate, _NEVER  # to the end of a step, at last
    return _pretrained(transfer, start, jnp.asarray(end), jnp.asarray(fraction), iterated=end <= _MOST_STEPS * rate)


def random_pretrainings(transfer: Transfer, run: Solution) -> Pretrainings:
    """Pretraining as in `run`, of the typical weights, for as long from weights whose overlap is N times as large, at quantiles of
    equal probability of N, standard normal, or of |N| where the student's link function is even: times (T,) and the weights of
    n runs at these, (n, T, 3)."""
    end, x = run.t_final, jnp.linspace(0.1, 3.0, 16)
    times = end * jnp.concatenate([jnp.zeros(1), jnp.geomspace(1e-3, 1, _RECORDS)])
    even = bool(jnp.allclose(transfer.student(x), transfer.student(-x)))
    luck = jnp.asarray(np.abs(_LUCK) if even else _LUCK, end.dtype)
    iterated = bool(end <= _MOST_STEPS * transfer.pretraining_sgd.learning_rate)
    return times, _randomly_pretrained(transfer, times, luck, iterated=iterated)


def _weights_alone(transfer: Transfer) -> Transfer:
    """The transfer with one adapter row, which rests in pretraining: all that is kept of a run are its weights."""
    return dataclasses.replace(transfer, adapter=transfer.adapter.replace(rank=1))


def _solved(
    alone: Transfer, start: Overlaps, end: Array, fraction: Array, *, iterated: bool, times: Array | None = None
) -> Solution:
    """Pretraining from a start, dense or recorded at `times`."""
    return solve(
        alone.pretraining,
        start,
        t1=end,
        times=np.zeros(0) if times is None else times,
        escape=Escape("loss", fraction),
        origin=start,
        until_escape=True,
        dense=times is None,
        finite_steps=True,
        iterated=iterated,
        adjoint=diffrax.ForwardMode(),
        max_steps=_MOST_STEPS + 1,
    )


@eqx.filter_jit
def _pretrained(transfer: Transfer, start: Overlaps | None, end: Array, fraction: Array, *, iterated: bool) -> Solution:
    alone = _weights_alone(transfer)
    start = (
        alone.typical_start() if start is None else Overlaps(start.up[:, :2], start.cross[:2], start.down_gram[:2, :2])
    )
    return _solved(alone, start, end, fraction, iterated=iterated)


@eqx.filter_jit
def _randomly_pretrained(
    transfer: Transfer, times: Float[Array, " T"], luck: Float[Array, " starts"], *, iterated: bool
) -> Float[Array, "starts T 3"]:
    alone = _weights_alone(transfer)
    typical, never = alone.typical_start(), jnp.full((), _NEVER, times.dtype)

    def one(factor: Array) -> Array:
        start = eqx.tree_at(lambda x: x.cross, typical, typical.cross.at[0].multiply(factor))
        return _weights(_solved(alone, start, times[-1], never, iterated=iterated, times=times).overlaps)

    return jax.vmap(one)(luck)


def _weights(overlaps: Overlaps) -> Float[Array, "*batch 3"]:
    """What is known of the weights: their overlaps with target and source, and their square length."""
    return jnp.concatenate([overlaps.cross[..., 0, :], overlaps.down_gram[..., 0, :1]], -1)


def tuned_from(
    transfer: Transfer,
    run: Solution,
    times: np.ndarray,
    goal: Escape | None = None,
    *,
    others: Pretrainings | None = None,
) -> Checkpoints:
    """[`checkpoints`][] at times of a pretraining that is solved already; NaN after its end.

    `others` are the [`random_pretrainings`][] if `run` began with typical weights that stand for random ones.
    """
    goal = Escape() if goal is None else goal
    found, weights, velocity = in_lanes(lambda at: _tuned_from(transfer, run, at, goal), times)
    if others is None:
        return found
    unsettled = (found.tuning.validity == Validity.holds) & _unsettled(found, weights, velocity, others)
    valid = np.where(unsettled, int(Validity.unsettled), found.tuning.validity)
    return eqx.tree_at(lambda c: c.tuning.validity, found, valid)


def _unsettled(found: Checkpoints, weights: np.ndarray, velocity: np.ndarray, others: Pretrainings) -> np.ndarray:
    """Whether random pretrainings are ahead or behind on average by what moves the time of fine-tuning, or whether they are
    elsewhere, by more than a tenth of the weights' length and overlaps."""
    recorded, runs = (np.asarray(x) for x in others)
    there = np.stack([[np.interp(found.time, recorded, x) for x in run.T] for run in runs]).transpose(2, 0, 1)
    square = np.sum(velocity**2, axis=-1)
    ahead = np.sum((there.mean(axis=1) - weights) * velocity, axis=-1) / np.where(square > 0, square, 1)
    apart = np.linalg.norm(there - weights[:, None], axis=-1).mean(axis=1)
    moved = ~(np.abs(found.slope * ahead) <= _MOST_MOVED * found.tuning.time)
    return moved | (apart > _ELSEWHERE * np.linalg.norm(weights, axis=-1))


@eqx.filter_jit
def _tuned_from(
    transfer: Transfer, run: Solution, times: Float[Array, " n"], goal: Escape
) -> tuple[Checkpoints, Float[Array, "n 3"], Float[Array, "n 3"]]:
    """Checkpoints, their [`_weights`][] and the velocities of these."""
    alone = _weights_alone(transfer)

    def tuned(overlaps: Overlaps) -> tuple[Array, tuple[FineTuning, Array]]:
        problem = alone.fine_tuning(overlaps).replace(adapter=transfer.adapter)
        tuning = fine_tuning(problem, goal, adjoint=diffrax.ForwardMode())
        return tuning.time, (tuning, problem.frame_gram)

    safe = alone.typical_start()

    def one(time: Array) -> tuple[Checkpoints, Array, Array]:
        overlaps, velocity = jax.jvp(run.evaluate, (time,), (jnp.ones_like(time),))
        finite = jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((overlaps, velocity))]).all()
        sound = finite & (overlaps.down_gram[0, 0] > 0) & (time <= run.t_final)
        at = jax.tree.map(lambda x, safe: jnp.where(sound, x, safe), overlaps, safe)
        moving = jax.tree.map(lambda x: jnp.where(sound, x, 0.0), velocity)
        _, slope, (tuning, gram) = jax.jvp(tuned, (at,), (moving,), has_aux=True)
        overlap, square = gram[0, 1], gram[1, 1]
        known = Checkpoints(
            time=time,
            strength=jnp.sqrt(square),
            alignment=overlap / jnp.sqrt(square),
            distance=jnp.sqrt(jnp.maximum(square - 2 * overlap + 1, 0)),
            source_loss=gradient_at(alone.pretraining, at).loss,
            target_loss=gradient_at(alone.lora, at).loss,
            tuning=tuning,
            slope=jnp.where(jnp.isfinite(tuning.time), slope, jnp.nan),
        )
        numbers, codes = eqx.partition(known, eqx.is_inexact_array)
        known = eqx.combine(jax.tree.map(lambda x: jnp.where(sound, x, jnp.nan), numbers), codes)
        valid = jnp.where(sound, tuning.validity, int(Validity.trapped))
        known = eqx.tree_at(lambda c: (c.time, c.tuning.validity), known, (time, valid))
        return known, _weights(at), _weights(moving)

    return jax.vmap(one)(times)


def pretraining_times(
    transfer: Transfer, n: int, *, end: float | None = None, fraction: float = 1e-3
) -> Float[np.ndarray, " n"]:
    r"""n pretraining times: 0, and evenly in the logarithm up to `end`.

    Unless it is given that is when the source loss has fallen to `fraction` of its start ([`pretrained_until`][]).
    """
    last = float(pretrained_until(transfer, fraction=fraction).t_final) if end is None else end
    return np.concatenate([np.zeros(1), np.geomspace(last / 200, last, n - 1)])
