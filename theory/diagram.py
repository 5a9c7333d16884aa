r"""The phase diagram of pretraining: where more of it makes fine-tuning faster, where slower, and the lines between."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from odes import SGD, Activation, Adapter, Escape, Problem, activation, pretrained
from odes.arguments import ArrayLike, require
from theory.critical import critical_points
from theory.law import too_fast
from theory.pretraining import fine_tuning
from theory.search import search_phase

REGIONS = {
    "helps": "more pretraining makes fine-tuning faster: its time falls with the strength",
    "hurts": "more pretraining makes fine-tuning slower: its time rises with the strength",
    "plateau": "D <= 0 at w0: U grows to a plateau before the search; the goal is reached",
    "unreached": "fine-tuning does not reach the goal",
    "met": "w0 itself meets the goal",
    "coarse": "the learning rate is too large at w0 (eta * rate above 0.4 or eta * lr_ratio * kappa^2 * D above 1)",
}
"""The regions of a phase diagram, and what they mean; [`Regimes`][] holds the number of each name."""

KINDS = {
    "minimum": "the best strength: pretraining helps below it and hurts above",
    "maximum": "the worst strength: pretraining hurts below it and helps above",
    "divergence": "the gradient vanishes: the search never ends there",
    "border": "another change of region, or a jump of the time",
}
"""The kinds of boundaries between regions along a line of constant alignment."""

_HELPS, _HURTS, _PLATEAU, _UNREACHED, _MET, _COARSE = range(len(REGIONS))
_MINIMUM, _MAXIMUM, _DIVERGENCE, _BORDER = range(len(KINDS))

_LANES = 8
"""So many places are integrated together; one compiled function serves grids and boundaries of any size."""

_SLOWEST = 1000.0
"""A search of more damping times than this is not integrated; what pretraining does there is read off τ."""

_SEARCHED = 0.9
"""The search lasts until the loss is this fraction of its value at w0."""

_SMOOTH = 0.01
"""At an extremum that was located, the slope is smaller than at the ends of its bracket by at least this factor."""

_FAR = 0.5
"""Boundaries at neighbouring alignments are further apart than this fraction of the strengths' range only by chance."""


class Family(eqx.Module):
    """The single-index students of a phase diagram: all that defines a problem but strength and alignment."""

    student: Activation
    teacher: Activation
    adapter: Adapter
    sgd: SGD

    def problem(self, strength: Float[Array, ""], alignment: Float[Array, ""]) -> Problem:
        """The problem at one place of the diagram."""
        return Problem.single_index(
            self.student,
            strength=strength,
            alignment=alignment,
            teacher=self.teacher,
            adapter=self.adapter,
            sgd=self.sgd,
        )


class Regimes(eqx.Module):
    r"""Fine-tuning from weights of n strengths ρ and m alignments c; fields without another shape are (m, n).

    - `strength` (n,), `alignment` (m,), both increasing;
    - `time` T(ρ, c): how long fine-tuning takes to the `goal` ([`theory.fine_tuning`][]), 0 where w0 meets it. NaN where it is
        not reached, where the learning rate is too large, and where the search takes more than 1000 damping times
        1/(χκ²D): too long to be integrated;
    - `slope` ∂T/∂ρ at fixed c, NaN where `time` is;
    - `share`: of the search in it, that is the time after which the loss is a tenth below its value at w0, over T; 1 where it is
        not yet so at the goal. NaN where T is NaN or 0;
    - `tau`, `D`: of the search phase ([`theory.search_phase`][]);
    - `trusted`: whether T is the mean over random starts and SGD noise ([`theory.FineTuning`][]);
    - `region`: the number of the region in [`theory.REGIONS`][]. Where the search is too long to be integrated, whether
        pretraining helps or hurts is read off ∂τ/∂ρ, since T is then in proportion to τ up to a logarithm;
    - `family`, `goal`: what was asked.
    """

    strength: Float[Array, " n"]
    alignment: Float[Array, " m"]
    time: Float[Array, "m n"]
    slope: Float[Array, "m n"]
    share: Float[Array, "m n"]
    tau: Float[Array, "m n"]
    D: Float[Array, "m n"]
    trusted: Bool[Array, "m n"]
    region: Int[Array, "m n"]
    family: Family
    goal: Escape

    @property
    def searching(self) -> Bool[Array, "m n"]:
        """Where the search takes more than half of the time."""
        return self.share > 0.5


class Boundaries(eqx.Module):
    """The places at which the region changes along lines of constant alignment, by alignment and then strength; all (n,).

    - `alignment`, `strength`: where;
    - `time`: T there; NaN at a divergence and where it is not known, at a border that below it;
    - `kind`: its number in [`theory.KINDS`][];
    - `before`, `after`: the regions below and above it, by their number in [`theory.REGIONS`][];
    - `line`: boundaries with the same number follow each other from one alignment to the next and may be drawn as a line.
    """

    alignment: Float[Array, " n"]
    strength: Float[Array, " n"]
    time: Float[Array, " n"]
    kind: Int[Array, " n"]
    before: Int[Array, " n"]
    after: Int[Array, " n"]
    line: Int[Array, " n"]


class _Place(eqx.Module):
    """What is known of some places without integration."""

    tau: Any
    tau_slope: Any
    D: Any
    damping_times: Any
    coarse: Any
    met: Any


class _Tuned(eqx.Module):
    """Fine-tuning from some places."""

    time: Any
    slope: Any
    trusted: Any


@eqx.filter_jit
def _places(family: Family, goal: Escape, strengths: Array, alignments: Array) -> _Place:
    def one(strength: Array, alignment: Array) -> _Place:
        problem = family.problem(strength, alignment)
        tau, slope, phase = jax.jvp(
            lambda rho: (lambda phase: (phase.tau, phase))(search_phase(family.problem(rho, alignment))),
            (strength,),
            (jnp.ones_like(strength),),
            has_aux=True,
        )
        damping = family.adapter.lr_ratio * family.adapter.kappa**2 * phase.D
        met = goal.margin(problem, pretrained(problem), goal.reference(problem)) <= 0
        return _Place(tau, slope, phase.D, tau * damping, too_fast(problem, phase), met)

    return jax.vmap(one)(strengths, alignments)


@eqx.filter_jit
def _tuned(family: Family, goal: Escape, strengths: Array, alignments: Array) -> _Tuned:
    def one(strength: Array, alignment: Array) -> _Tuned:
        def time(rho: Array) -> tuple[Array, Array]:
            tuning = fine_tuning(family.problem(rho, alignment), goal, adjoint=diffrax.ForwardMode())
            return tuning.time, tuning.trusted

        return _Tuned(*jax.jvp(time, (strength,), (jnp.ones_like(strength),), has_aux=True))

    return jax.vmap(one)(strengths, alignments)


def _by_lanes(function: Callable[[Array, Array], Any], strengths: np.ndarray, alignments: np.ndarray) -> Any:
    """A compiled function of `_LANES` places at a time, at any number of places, in their order."""
    parts = []
    for first in range(0, strengths.size, _LANES):
        lanes = np.minimum(np.arange(first, first + _LANES), strengths.size - 1)
        part = function(jnp.asarray(strengths[lanes]), jnp.asarray(alignments[lanes]))
        parts.append(jax.tree.map(lambda x, n=strengths.size - first: np.asarray(x)[:n], part))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _integrated(
    family: Family, goal: Escape, strengths: np.ndarray, alignments: np.ndarray, place: _Place, chosen: np.ndarray
) -> _Tuned:
    """Fine-tuning from the chosen places, NaN at the others; those that take equally long are integrated together."""
    real = strengths.dtype
    tuned = _Tuned(np.full(chosen.size, np.nan, real), np.full(chosen.size, np.nan, real), np.zeros(chosen.size, bool))
    order = np.lexsort((place.tau, place.D <= 0))
    order = order[chosen[order]]
    if order.size:
        part = _by_lanes(lambda *x: _tuned(family, goal, *x), strengths[order], alignments[order])
        tuned.time[order], tuned.slope[order], tuned.trusted[order] = part.time, part.slope, part.trusted
    return tuned


def _classified(
    family: Family, goal: Escape, strengths: np.ndarray, alignments: np.ndarray, integrate: Any = True
) -> tuple[_Place, _Tuned, np.ndarray]:
    """Everything but the search's share at some places, each a strength and an alignment: with the regions.

    Without `integrate` a region that w0 itself does not decide is "unreached".
    """
    place = _by_lanes(lambda *x: _places(family, goal, *x), strengths, alignments)
    slow = place.damping_times > _SLOWEST
    tuned = _integrated(family, goal, strengths, alignments, place, integrate & ~(place.coarse | slow | place.met))
    time = np.where(place.met, 0, tuned.time)
    reached = np.isfinite(time)
    slope = np.where(reached, tuned.slope, np.nan)
    rising = np.where(slow, place.tau_slope, slope)
    known = reached | (slow & np.isfinite(rising))
    region = np.select(
        [time == 0, place.coarse, ~known, place.D <= 0, rising < 0],
        [_MET, _COARSE, _UNREACHED, _PLATEAU, _HELPS],
        _HURTS,
    )
    return place, _Tuned(time, np.where(time == 0, 0, slope), tuned.trusted), region


def regimes(
    student: str | Activation,
    *,
    strengths: ArrayLike,
    alignments: ArrayLike,
    teacher: str | Activation | None = None,
    adapter: Adapter | None = None,
    sgd: SGD | None = None,
    goal: Escape | None = None,
) -> Regimes:
    r"""The phase diagram of pretraining on a grid of strengths ρ = |w0| (n,) and alignments c = cos(w0, ω*) (m,).

    The time T of fine-tuning to the `goal` (escape unless given) is that of [`theory.fine_tuning`][], from the typical start of the
    search at the dimension, batch size and learning rate of `sgd`. Its slope is the derivative of the flow itself,

    $$\frac{\partial T}{\partial\rho}\bigg|_c = -\frac{\partial_\rho z}{\dot z}\bigg|_{t = T},$$

    z the goal's margin ([`odes.Escape.margin`][]) along the flow, carried forward with it (`jax.jvp`). Pretraining helps where it is
    negative, and hurts where it is positive. Where other criteria say what the goal is, the search still ends when the loss has
    fallen by a tenth.

    Compiled once for each pair of link functions, rank and criterion (ten to twenty seconds), and then fast for links with closed
    forms, milliseconds for each place unless its search is long; sigmoid and tanh take about a second. Looks at its numbers, and
    so does not work under jit or vmap.

    **Raises** ArgumentError unless strengths are positive and finite, at least two, alignments between -1 and 1, at least one,
    and both increasing.
    """
    strengths, alignments = (np.asarray(x, jnp.result_type(float)) for x in (strengths, alignments))
    require("strengths", strengths, "a list of at least two numbers", lambda x: x.ndim == 1 and x.size > 1)
    require("alignments", alignments, "a list of at least one number", lambda x: x.ndim == 1 and x.size > 0)
    good = "positive, finite and increasing"
    require("strengths", strengths, good, lambda x: (x > 0) & np.isfinite(x) & np.all(np.diff(x) > 0))
    require(
        "alignments", alignments, "increasing, between -1 and 1", lambda x: (np.abs(x) <= 1) & np.all(np.diff(x) > 0)
    )
    own = activation(student)
    family = Family(
        own,
        own if teacher is None else activation(teacher),
        Adapter() if adapter is None else adapter,
        SGD() if sgd is None else sgd,
    )
    goal = Escape() if goal is None else goal
    rho, cosine = (x.ravel() for x in np.meshgrid(strengths, alignments))
    place, tuned, region = _classified(family, goal, rho, cosine)
    reached = np.isfinite(tuned.time) & (tuned.time > 0)
    search = _integrated(family, Escape("loss", _SEARCHED), rho, cosine, place, reached).time
    share = np.minimum(np.where(np.isfinite(search), search, np.inf) / np.where(reached, tuned.time, np.nan), 1)

    def grid(values: np.ndarray) -> Array:
        return jnp.asarray(values.reshape(alignments.size, strengths.size))

    return Regimes(
        strength=jnp.asarray(strengths),
        alignment=jnp.asarray(alignments),
        time=grid(tuned.time),
        slope=grid(tuned.slope),
        share=grid(share),
        tau=grid(place.tau),
        D=grid(place.D),
        trusted=grid(tuned.trusted),
        region=grid(region),
        family=family,
        goal=goal,
    )


class _Ends(eqx.Module):
    """A place in each of some brackets, all (n,); `value` is negative below the boundary, and the slope where that is sought."""

    strength: np.ndarray
    value: np.ndarray
    time: np.ndarray
    region: np.ndarray


class _Brackets(eqx.Module):
    """Neighbours on the grid in different regions, `before` and `after`, at an alignment; all (n,).

    `critical` is the strength between them at which the gradient vanishes, or NaN.
    """

    alignment: np.ndarray
    before: np.ndarray
    after: np.ndarray
    critical: np.ndarray
    low: _Ends
    high: _Ends

    @property
    def smooth(self) -> np.ndarray:
        """Where the slope is known at both ends and changes its sign."""
        return np.maximum(self.before, self.after) <= _HURTS

    @property
    def decided(self) -> np.ndarray:
        """Where w0 alone, without integration, says on which side of the boundary it is."""
        return _decided(self.before) | _decided(self.after)


def _decided(region: np.ndarray) -> np.ndarray:
    return (region == _MET) | (region == _COARSE)


def _ends(before: np.ndarray, after: np.ndarray, strength: Any, time: Any, slope: Any, region: Any) -> _Ends:
    """Places in brackets between two regions; their value is the slope up to its sign where that is known, else -1 or 1."""
    below = np.where(_decided(after) & ~_decided(before), region != after, region == before)
    known = (np.maximum(before, after) <= _HURTS) & (region <= _HURTS) & np.isfinite(slope)
    value = np.where(below, -1.0, 1.0) * np.where(known, np.abs(slope), 1.0)
    return _Ends(np.asarray(strength), value, np.asarray(time), np.asarray(region))


def _brackets(found: Regimes) -> _Brackets:
    """The brackets of a diagram, between neighbours at which the search ends."""
    strengths, regions = np.asarray(found.strength), np.asarray(found.region)
    rows, lows, highs, zeros = [], [], [], []
    for row, cosine in enumerate(np.asarray(found.alignment)):
        ending = np.flatnonzero(np.isfinite(np.asarray(found.tau[row])))
        changes = np.flatnonzero(np.diff(regions[row, ending]))
        critical = _critical(found, cosine) if changes.size and abs(cosine) == 1 else np.empty(0)
        for low, high in zip(ending[changes], ending[changes + 1], strict=True):
            inside = critical[(critical > strengths[low]) & (critical < strengths[high])]
            rows.append(row)
            lows.append(low)
            highs.append(high)
            zeros.append(inside[0] if inside.size else np.nan)
    row, low, high = (np.asarray(x, int) for x in (rows, lows, highs))
    before, after = regions[row, low], regions[row, high]
    grids = [np.asarray(x) for x in (found.time, found.slope, found.region)]
    ends = (_ends(before, after, strengths[at], *(grid[row, at] for grid in grids)) for at in (low, high))
    return _Brackets(np.asarray(found.alignment)[row], before, after, np.asarray(zeros, strengths.dtype), *ends)


def _critical(found: Regimes, cosine: float) -> np.ndarray:
    """The strengths in the diagram's range at which the search never ends, at full alignment."""
    points = critical_points(
        found.family.student,
        low=found.strength[0],
        high=found.strength[-1],
        teacher=found.family.teacher,
        alignment=jnp.asarray(cosine),
    )
    return np.asarray(points.strength)[np.isfinite(np.asarray(points.prefactor))]


def _look(found: Regimes, at: _Brackets, strength: np.ndarray, integrate: Any = True) -> _Ends:
    """What is at a strength in each bracket."""
    _, tuned, region = _classified(found.family, found.goal, strength, at.alignment, integrate)
    return _ends(at.before, at.after, strength, tuned.time, tuned.slope, region)


def _narrowed(found: Regimes, brackets: _Brackets, width: float) -> _Brackets:
    """The brackets with ends within a relative `width` of each other, by Chandrupatla's method."""
    new, far = brackets.low, brackets.high
    old, step = far, np.full(brackets.alignment.shape, 0.5)
    while (at := np.flatnonzero(np.abs(far.strength - new.strength) > width * new.strength)).size:
        some = jax.tree.map(lambda x, at=at: x[at], brackets)
        tried = _look(found, some, (new.strength + step * (far.strength - new.strength))[at], ~some.decided)
        crossed = np.zeros(step.shape, bool)
        crossed[at] = np.sign(tried.value) != np.sign(new.value[at])
        searched = np.isin(np.arange(step.size), at)
        old = _either(searched, _either(crossed, far, new), old)
        far = _either(crossed, new, far)
        new = _replaced(new, at, tried)
        step = _step(new, far, old, width)
    swapped = new.strength > far.strength
    low, high = _either(swapped, far, new), _either(swapped, new, far)
    if (at := np.flatnonzero(brackets.decided)).size:
        some = jax.tree.map(lambda x: x[at], brackets)
        low, high = (_replaced(end, at, _look(found, some, end.strength[at])) for end in (low, high))
    return eqx.tree_at(lambda b: (b.low, b.high), brackets, (low, high))


def _either(mask: np.ndarray, yes: _Ends, no: _Ends) -> _Ends:
    return jax.tree.map(lambda a, b: np.where(mask, a, b), yes, no)


def _replaced(ends: _Ends, at: np.ndarray, by: _Ends) -> _Ends:
    """The ends with those at some indices replaced."""

    def put(whole: np.ndarray, part: np.ndarray) -> np.ndarray:
        whole = whole.copy()
        whole[at] = part
        return whole

    return jax.tree.map(put, ends, by)


def _step(new: _Ends, far: _Ends, old: _Ends, width: float) -> np.ndarray:
    """Where to look next, from `new` (0) to `far` (1): by inverse quadratic interpolation if it can be trusted, else halfway."""
    gap = far.strength - new.strength
    with np.errstate(divide="ignore", invalid="ignore"):
        xi = gap / (far.strength - old.strength)
        phi = (new.value - far.value) / (old.value - far.value)
        step = new.value / (far.value - new.value) * old.value / (far.value - old.value)
        third = new.value / (old.value - new.value) * far.value / (old.value - far.value)
        step = step + (old.strength - new.strength) / gap * third
    trusted = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi) & np.isfinite(step)
    least = np.minimum(0.5 * width * new.strength / np.abs(gap), 0.5)
    return np.clip(np.where(trusted, step, 0.5), least, 1 - least)


def _lines(found: Regimes, cosine: np.ndarray, strength: np.ndarray, sort: np.ndarray) -> np.ndarray:
    """The number of the line of every boundary: at neighbouring alignments, nearest to each other among those of one sort."""
    strengths, alignments = np.asarray(found.strength), np.asarray(found.alignment)
    line = np.arange(cosine.size)
    for first, second in zip(alignments[:-1], alignments[1:], strict=True):
        here, there = np.flatnonzero(cosine == first), np.flatnonzero(cosine == second)
        if not (here.size and there.size):
            continue
        apart = np.abs(strength[here, None] - strength[None, there])
        apart = np.where((sort[here, None] == sort[None, there]).all(axis=-1), apart, np.inf)
        for i, j in enumerate(apart.argmin(axis=1)):
            if apart[:, j].argmin() == i and apart[i, j] <= _FAR * (strengths[-1] - strengths[0]):
                line[there[j]] = line[here[i]]
    return np.unique(line, return_inverse=True)[1]


def boundaries(found: Regimes, *, tolerance: float = 1e-8) -> Boundaries:
    r"""Where the region changes with the strength, at every alignment of a phase diagram, to the relative `tolerance`.

    Between neighbouring strengths of the grid in different regions lies a boundary (two of them closer than the grid are not
    seen). Where the slope changes its sign, ∂T/∂ρ = 0 is solved by Chandrupatla's method, which keeps the bracket and
    falls back on bisection; other borders are bisected. All brackets advance together, by the compiled function that made
    the grid. At alignment 1 and -1 the gradient can vanish, and the boundary is then the critical strength itself
    ([`theory.critical_points`][]), where T is infinite. Where T is too long to be integrated, its maximum is that of τ.

    The integrator's relative tolerance, 1e-7, leaves errors of about 1e-6: for a linear link every boundary is at ρ = c, since
    all depends on |w0 - ω*| alone, and is found there to 1e-8; for erf and relu extrema agree with those of T itself to a few 1e-6.

    **Raises** ArgumentError for a tolerance that is not positive.
    """
    require("tolerance", tolerance, "positive and finite", lambda x: (x > 0) & np.isfinite(x))
    brackets = _brackets(found)
    width = max(tolerance, float(4 * np.finfo(brackets.critical.dtype).eps))
    diverging = np.isfinite(brackets.critical)
    sought = jax.tree.map(lambda x: x[~diverging], brackets)
    narrowed = _narrowed(found, sought, width)
    low, high = narrowed.low, narrowed.high
    sharpest = np.maximum(np.abs(sought.low.value), np.abs(sought.high.value))
    flattest = np.minimum(np.abs(low.value), np.abs(high.value))
    extremum = (np.maximum(low.region, high.region) <= _HURTS) & ((flattest <= _SMOOTH * sharpest) | np.isnan(low.time))
    nearest = _either(extremum & (np.abs(high.value) < np.abs(low.value)), high, low)
    strength, time = brackets.critical.copy(), np.full_like(brackets.critical, np.nan)
    before, after = brackets.before.copy(), brackets.after.copy()
    kind = np.full(diverging.shape, _DIVERGENCE)
    strength[~diverging], time[~diverging] = nearest.strength, nearest.time
    before[~diverging] = np.where(low.region == high.region, sought.before, low.region)
    after[~diverging] = high.region
    kind[~diverging] = np.where(extremum, np.where(low.region == _HELPS, _MINIMUM, _MAXIMUM), _BORDER)
    line = _lines(found, brackets.alignment, strength, np.stack([before, after, kind == _BORDER], axis=-1))
    return Boundaries(*(jnp.asarray(x) for x in (brackets.alignment, strength, time, kind, before, after, line)))
