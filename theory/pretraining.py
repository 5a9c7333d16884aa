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

from odes import (
    Escape,
    Overlaps,
    Solution,
    Transfer,
    covariances,
    gradient_at,
    noise_at,
    self_moments,
    solve,
    with_own_readout,
)
from odes.arguments import ArrayLike, real_array
from odes.diagonals import diagonal
from odes.programs import ahead, program
from odes.quadrature import safe_sqrt
from odes.shown import Shown
from theory.lanes import in_lanes
from theory.starts import start_normals
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

_RUNS, _STARTS = 8, 16
"""Several units are pretrained from so many random weights, and fine-tuned from every checkpoint with so many random adapters."""

_KNOWN = 0.03
"""A mean over random pretrainings is trusted if its standard error is at most this part of it."""

_LARGEST_FED = 0.1
"""What SGD noise adds to random weights in pretraining is nothing if its variance is at most this part of what they have."""

_LOOKS = 64
"""The noise of pretraining is integrated over so many times."""

Pretrainings = tuple[Float[Array, " T"], Float[Array, "starts T 3"]]
"""Times, and what is known of random weights at each."""

_NEVER = math.inf
"""At this fraction of the source loss the start counts as arrived, so that nothing stops pretraining before its end."""


class Checkpoints(Shown):
    r"""Weights along a pretraining run, and fine-tuning from each of them; every field is (n,).

    - `time`: the pretraining time; `strength` |w|, `alignment` cos(w, ω*), `distance` |w - ω*|;
    - `source_loss`, `target_loss`: of the weights on the labels of both tasks;
    - `tuning`: fine-tuning from there; `slope`: the derivative of its time in the pretraining time.

    Of several units the strength is the root mean square of the rows' lengths, the alignment the mean of every unit's cosine with
    the teacher's direction that is nearest to its row, up to sign, and the distance the root mean square of that from every teacher's
    direction to the nearest row; all are means over the random pretrainings.
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

    Pretraining is solved once to the last time ([`pretrained_until`][]); the weights at each checkpoint make a problem
    ([`odes.Transfer.fine_tuning`][]) whose time ([`theory.fine_tuning`][]) is a function of their overlaps, and the chain rule with the
    velocities of these gives the slope. Time 0 is a random w0. Looks at its numbers, and so does not work under jit or vmap.

    One unit that learns one direction is pretrained from [`odes.Transfer.typical_start`][] unless `start` is given. Random weights
    differ from the typical ones by a factor N in their overlap with the source, N standard normal, and are
    pretrained as well, at quantiles of N (of |N| for even links, whose sign means nothing). Where their mean is ahead or behind of
    the typical ones by a time that, with the slope, moves fine-tuning by more than 3 %, or where they are apart from these by a tenth of
    their length and overlaps, its time is that of typical weights, no mean (`Validity.unsettled`); not so for a `start` that is given.

    No weights of several units are typical: which unit learns what, and when they part, is a matter of the start. They are pretrained from
    8 random ones ([`odes.Transfer.random_start`][], always the same) unless `start` is given, fine-tuned from each with 16 random
    adapters, and all numbers are means over these. Where the standard error of the mean time is above 3 %, or where the pretrainings
    differ by more than this and SGD noise, which is not part of them, adds to the weights a tenth of the variance of the start
    or more, $\theta_s\int_0^T\max_kN_{kk}dt$ in units of the rows' squared length over d, the time is not trusted either.
    """
    grid = np.asarray(times, jnp.result_type(float))
    begin(transfer, goal, end=float(grid.max()), start=start)
    run = pretrained_until(transfer, float(grid.max()), start=start)
    return tuned_from(
        transfer, run, grid, goal, others=None if start is not None else random_pretrainings(transfer, run)
    )


def begin(
    transfer: Transfer, goal: Escape | None = None, *, end: float | None = None, start: Overlaps | None = None
) -> None:
    """Begins to compile what fine-tuning from any number of [`checkpoints`][] needs ([`odes.programs.ahead`][]), of a pretraining until
    `end`.

    Unless that is given it is a tenth of the longest: then, and if the end turns out to be another, what was begun is right as long as
    both are iterated or neither is.
    """
    end = _longest(transfer) / 10 if end is None else end
    ahead(lambda: tuned_from(transfer, pretrained_until(transfer, end, start=start), np.array([end]), goal))


def pretrained_until(
    transfer: Transfer, end: float | None = None, *, fraction: float = 1e-3, start: Overlaps | None = None
) -> Solution:
    """Pretraining from one or several starts (the axis in front), to be evaluated at any time until `end`, or until the source loss is
    `fraction` of its start.

    Where it does not get there (searching, or kept from it by noise) it goes on for 500 units of 1/E[σ'^2]. As long as that takes
    at most 16384 steps the mean step is iterated, and the weights' overlaps are linear between two steps: how close the
    weights come to the source, and hence how long fine-tuning takes, depends on the learning rate more than the flow of
    finite steps knows.
    """
    rate = float(transfer.pretraining_sgd.learning_rate)
    if end is None:
        end = _longest(transfer)
    else:
        end, fraction = (end if end > 0 else 1.0) + rate, _NEVER  # to the end of a step, at last
    alone, rows = _weights_alone(transfer), transfer.units + 1
    if start is not None:
        start = Overlaps(start.up[:, :rows], start.cross[:rows], start.down_gram[:rows, :rows])
    begin = _starts(alone) if start is None else jax.tree.map(lambda x: x[None], start)
    return _pretrained(alone, begin, jnp.asarray(end), jnp.asarray(fraction), iterated=end <= _MOST_STEPS * rate)


def _longest(transfer: Transfer) -> float:
    """How long pretraining goes on at most where no end is given."""
    return _HORIZON / float(self_moments(transfer.student, 1.0).cross)


def one_of_each(transfer: Transfer) -> bool:
    """Whether there is one student and one teacher unit, of which one start is typical."""
    return (transfer.units, transfer.teachers) == (1, 1)


def _starts(alone: Transfer) -> Overlaps:
    """The starts that stand for all: the typical one, or some random ones where none is typical; in front the axis of the runs."""
    if one_of_each(alone):
        return jax.tree.map(lambda x: x[None], alone.typical_start())
    return jax.vmap(alone.random_start)(jax.random.split(jax.random.key(0), _RUNS))


def random_pretrainings(transfer: Transfer, run: Solution) -> Pretrainings | None:
    """Pretraining as in `run`, of the typical weights, for as long from weights whose overlap is N times as large, at quantiles of
    equal probability of N, standard normal, or of |N| where the student's link function is even: times (T,) and what is known of the
    weights of n runs at these, (n, T, 3). None where no weights are typical and those of `run` are random already."""
    if not one_of_each(transfer):
        return None
    end, x = run.t_final[0], jnp.linspace(0.1, 3.0, 16)
    times = end * jnp.concatenate([jnp.zeros(1), jnp.geomspace(1e-3, 1, _RECORDS)])
    even = bool(jnp.allclose(transfer.student(x), transfer.student(-x)))
    luck = jnp.asarray(np.abs(_LUCK) if even else _LUCK, end.dtype)
    iterated = bool(end <= _MOST_STEPS * transfer.pretraining_sgd.learning_rate)
    return times, _randomly_pretrained(_weights_alone(transfer), times, luck, iterated=iterated)


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


@program
def _pretrained(alone: Transfer, starts: Overlaps, end: Array, fraction: Array, *, iterated: bool) -> Solution:
    return eqx.filter_vmap(lambda start: _solved(alone, start, end, fraction, iterated=iterated))(starts)


@program
def _randomly_pretrained(
    alone: Transfer, times: Float[Array, " T"], luck: Float[Array, " starts"], *, iterated: bool
) -> Float[Array, "starts T 3"]:
    typical, never = alone.typical_start(), jnp.full((), _NEVER, times.dtype)

    def one(factor: Array) -> Array:
        start = eqx.tree_at(lambda x: x.cross, typical, typical.cross.at[0].multiply(factor))
        return _weights(_solved(alone, start, times[-1], never, iterated=iterated, times=times).overlaps)

    return jax.vmap(one)(luck)


def _weights(overlaps: Overlaps) -> Float[Array, "*batch f"]:
    """What is known of the first unit's weights: their overlaps with target and source, and their square length."""
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
    runs, units = run.t_final.size, transfer.units
    drawn = start_normals(runs * _STARTS, transfer.adapter.rank, transfer.teachers + units, units)
    normals = real_array(drawn.reshape(runs, _STARTS, *drawn.shape[1:]))
    found, weights, velocity = in_lanes(lambda at: _tuned_from(transfer, run, normals, at, goal), times)
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


@program
def _tuned_from(
    transfer: Transfer, run: Solution, normals: Float[Array, "runs starts r k"], times: Float[Array, " n"], goal: Escape
) -> tuple[Checkpoints, Float[Array, "n f"], Float[Array, "n f"]]:
    """Checkpoints, the [`_weights`][] of the first pretraining and the velocities of these."""
    alone = _weights_alone(transfer)
    safe = with_own_readout(alone.pretraining, jax.tree.map(lambda x: x[0], _starts(alone)))

    def from_run(run: Solution, normals: Array, time: Array) -> tuple[Checkpoints, Overlaps, Overlaps]:
        def tuned(overlaps: Overlaps) -> tuple[Array, FineTuning]:
            problem = alone.fine_tuning(overlaps).replace(adapter=transfer.adapter)
            tuning = fine_tuning(problem, goal, normals=normals, adjoint=diffrax.ForwardMode())
            return tuning.time, tuning

        overlaps, velocity = jax.jvp(run.evaluate, (time,), (jnp.ones_like(time),))
        finite = jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((overlaps, velocity))]).all()
        long = diagonal(overlaps.down_gram)[: transfer.units] > 0
        sound = finite & jnp.all(long) & (time <= run.t_final)
        at = jax.tree.map(lambda x, safe: jnp.where(sound, x, safe), overlaps, safe)
        moving = jax.tree.map(lambda x: jnp.where(sound, x, 0.0), velocity)
        _, slope, tuning = jax.jvp(tuned, (at,), (moving,), has_aux=True)
        known = Checkpoints(
            time=time,
            **_places(alone, at),
            source_loss=gradient_at(alone.pretraining, at).loss,
            target_loss=gradient_at(alone.lora, at).loss,
            tuning=tuning,
            slope=jnp.where(jnp.isfinite(tuning.time), slope, jnp.nan),
        )
        numbers, codes = eqx.partition(known, eqx.is_inexact_array)
        known = eqx.combine(jax.tree.map(lambda x: jnp.where(sound, x, jnp.nan), numbers), codes)
        valid = jnp.where(sound, tuning.validity, int(Validity.trapped))
        known = eqx.tree_at(lambda c: (c.time, c.tuning.validity), known, (time, valid))
        return known, at, moving

    def one(time: Array) -> tuple[Checkpoints, Array, Array]:
        if len(normals) == 1:
            known, at, moving = from_run(jax.tree.map(lambda x: x[0], run), normals[0], time)
            return known, _weights(at), _weights(moving)
        each, at, moving = eqx.filter_vmap(from_run, in_axes=(0, 0, None))(run, normals, time)
        place, velocity = (_weights(jax.tree.map(lambda x: x[0], some)) for some in (at, moving))
        return _pooled(each, eqx.filter_vmap(_fed, in_axes=(None, 0, None))(alone, run, time)), place, velocity

    return jax.vmap(one)(times)


def _places(alone: Transfer, at: Overlaps) -> dict[str, Array]:
    """Strength, alignment and distance of the weights."""
    covariance = covariances(alone.lora, at)
    squares, lengths = diagonal(covariance.Q), diagonal(covariance.P)
    cosines = covariance.M / jnp.sqrt(jnp.outer(squares, lengths))
    nearest = jnp.argmax(jnp.abs(cosines), axis=1)
    apart = jnp.maximum(squares[:, None] - 2 * covariance.M + lengths[None], 0)
    return {
        "strength": jnp.sqrt(jnp.mean(squares)),
        "alignment": jnp.mean(cosines[jnp.arange(len(squares)), nearest]),
        "distance": jnp.sqrt(jnp.mean(jnp.min(apart, axis=0))),
    }


def _fed(alone: Transfer, run: Solution, time: Array) -> Array:
    """The variance that SGD noise adds to every component of the weights until a time, in units of that at the start."""
    looks = jax.vmap(lambda t: jnp.max(diagonal(noise_at(alone.pretraining, run.evaluate(t)))))
    times = time * jnp.linspace(0, 1, _LOOKS)
    return alone.pretraining_sgd.noise_scale * jnp.trapezoid(looks(times), times) / alone.length**2


def _pooled(each: Checkpoints, fed: Float[Array, " runs"]) -> Checkpoints:
    """The mean over several pretrainings of one checkpoint; a doubt about one of them is one about all."""
    tuning = each.tuning
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0) if eqx.is_inexact_array(x) else jnp.max(x, axis=0), each)
    variance, little = jnp.var(tuning.time, ddof=1), _KNOWN * mean.tuning.time
    error = safe_sqrt((variance + jnp.mean(tuning.error**2)) / len(fed))
    unsettled = ~(error <= little) | ((safe_sqrt(variance) > little) & (jnp.max(fed) > _LARGEST_FED))
    doubt = jnp.max(jnp.where(tuning.validity == Validity.split, int(Validity.holds), tuning.validity))
    valid = jnp.where((doubt == Validity.holds) & unsettled, int(Validity.unsettled), doubt)
    return eqx.tree_at(lambda c: (c.tuning.error, c.tuning.validity), mean, (error, valid))


def pretraining_times(
    transfer: Transfer, n: int, *, end: float | None = None, fraction: float = 1e-3
) -> Float[np.ndarray, " n"]:
    r"""n pretraining times: 0, and evenly in the logarithm up to `end`.

    Unless it is given that is when the source loss has fallen to `fraction` of its start ([`pretrained_until`][]), in the slowest of
    several pretrainings.
    """
    last = float(jnp.max(pretrained_until(transfer, fraction=fraction).t_final)) if end is None else end
    return np.concatenate([np.zeros(1), np.geomspace(last / 200, last, n - 1)])
