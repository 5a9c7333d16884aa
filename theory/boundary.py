r"""The boundaries of a phase diagram: the best and worst strengths of pretraining, and where the search never ends."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from odes.arguments import require
from odes.shown import Shown
from theory.critical import critical_points
from theory.diagram import PhaseDiagram, Region, classified
from theory.meanings import Meaning


class BoundaryKind(Meaning):
    """The kinds of boundaries between regions along a line of constant alignment."""

    minimum = "the best strength: pretraining helps below it and hurts above"
    maximum = "the worst strength: pretraining hurts below it and helps above"
    divergence = "the gradient vanishes: the search never ends there"
    border = "another change of region, or a jump of the time"


_SMOOTH = 0.01
"""At an extremum that was located, the slope is smaller than at the ends of its bracket by at least this factor."""

_FAR = 0.5
"""Boundaries at neighbouring alignments are further apart than this fraction of the strengths' range only by chance."""


class Boundaries(Shown):
    """The places at which the region changes along lines of constant alignment, by alignment and then strength; all (n,).

    - `alignment`, `strength`: where;
    - `time`: T there; NaN at a divergence, and at a border where T is known on neither side;
    - `kind`: a number of [`theory.BoundaryKind`][];
    - `before`, `after`: the regions below and above it, numbers of [`theory.Region`][];
    - `line`: boundaries with the same number follow each other from one alignment to the next and may be drawn as a line.
    """

    alignment: Float[Array, " n"]
    strength: Float[Array, " n"]
    time: Float[Array, " n"]
    kind: Int[Array, " n"]
    before: Int[Array, " n"]
    after: Int[Array, " n"]
    line: Int[Array, " n"]

    @classmethod
    def joined(cls, parts: Sequence["Boundaries"], found: PhaseDiagram) -> "Boundaries":
        """Those of a whole diagram, from those of its parts in the order of their alignments."""
        whole = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
        cosine, strength = np.asarray(whole.alignment), np.asarray(whole.strength)
        sort = _sort(*(np.asarray(x) for x in (whole.before, whole.after, whole.kind)))
        return dataclasses.replace(whole, line=jnp.asarray(_lines(found, cosine, strength, sort)))


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
    def decided(self) -> np.ndarray:
        """Where w0 alone, without integration, says on which side of the boundary it is."""
        return _decided(self.before) | _decided(self.after)


def _decided(region: np.ndarray) -> np.ndarray:
    return (region == Region.met) | (region == Region.coarse)


def _ends(before: np.ndarray, after: np.ndarray, strength: Any, time: Any, slope: Any, region: Any) -> _Ends:
    """Places in brackets between two regions; their value is the slope up to its sign where that is known, else -1 or 1."""
    below = np.where(_decided(after) & ~_decided(before), region != after, region == before)
    known = (np.maximum(before, after) <= Region.hurts) & (region <= Region.hurts) & np.isfinite(slope)
    value = np.where(below, -1.0, 1.0) * np.where(known, np.abs(slope), 1.0)
    return _Ends(np.asarray(strength), value, np.asarray(time), np.asarray(region))


def _brackets(found: PhaseDiagram) -> _Brackets:
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


def _critical(found: PhaseDiagram, cosine: float) -> np.ndarray:
    """The strengths in the diagram's range at which the search never ends, at full alignment."""
    points = critical_points(
        found.family, low=found.strength[0], high=found.strength[-1], alignment=jnp.asarray(cosine)
    )
    return np.asarray(points.strength)[np.isfinite(np.asarray(points.prefactor))]


def _look(found: PhaseDiagram, at: _Brackets, strength: np.ndarray, integrate: Any = True) -> _Ends:
    """What is at a strength in each bracket."""
    _, tuned, region = classified(found.family, found.goal, strength, at.alignment, integrate)
    return _ends(at.before, at.after, strength, tuned.time, tuned.slope, region)


def _narrowed(found: PhaseDiagram, brackets: _Brackets, width: float) -> tuple[_Ends, _Ends]:
    """The ends of the brackets once they are within a relative `width` of each other, by Chandrupatla's method."""
    from scipy.optimize import elementwise

    def value(strength: np.ndarray, number: np.ndarray) -> np.ndarray:
        some = jax.tree.map(lambda x: x[number.astype(int)], brackets)
        return _look(found, some, strength, ~some.decided).value

    root = elementwise.find_root(
        value,
        (brackets.low.strength, brackets.high.strength),
        args=(np.arange(brackets.alignment.size),),
        tolerances={"xatol": 0, "xrtol": width, "fatol": 0, "frtol": 0},
    )
    low, high = (_look(found, brackets, end) for end in root.bracket)
    return low, high


def _sort(before: np.ndarray, after: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """What boundaries of one line have in common, (n, 3)."""
    return np.stack([before, after, kind == BoundaryKind.border], axis=-1)


def _lines(found: PhaseDiagram, cosine: np.ndarray, strength: np.ndarray, sort: np.ndarray) -> np.ndarray:
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


def boundaries(found: PhaseDiagram, *, tolerance: float = 1e-8) -> Boundaries:
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
    low, high = _narrowed(found, sought, width) if sought.alignment.size else (sought.low, sought.high)
    sharpest = np.maximum(np.abs(sought.low.value), np.abs(sought.high.value))
    flattest = np.minimum(np.abs(low.value), np.abs(high.value))
    extremum = (np.maximum(low.region, high.region) <= Region.hurts) & (
        (flattest <= _SMOOTH * sharpest) | np.isnan(low.time)
    )
    flatter = extremum & (np.abs(high.value) < np.abs(low.value))
    nearest = jax.tree.map(lambda a, b: np.where(flatter, a, b), high, low)
    strength, time = brackets.critical.copy(), np.full_like(brackets.critical, np.nan)
    before, after = brackets.before.copy(), brackets.after.copy()
    kind = np.full(diverging.shape, BoundaryKind.divergence)
    strength[~diverging], time[~diverging] = nearest.strength, nearest.time
    before[~diverging] = np.where(low.region == high.region, sought.before, low.region)
    after[~diverging] = high.region
    kind[~diverging] = np.where(
        extremum, np.where(low.region == Region.helps, BoundaryKind.minimum, BoundaryKind.maximum), BoundaryKind.border
    )
    line = _lines(found, brackets.alignment, strength, _sort(before, after, kind))
    return Boundaries(*(jnp.asarray(x) for x in (brackets.alignment, strength, time, kind, before, after, line)))
