r"""Saddles: the fixed points of the flow that a trajectory passes, the rates at which it leaves them, and how long it stays."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, Float

from odes import Covariances, Overlaps, Problem, Solution, covariances, flow, gradient_at, mean_change
from odes.arguments import ArgumentError, positive, require
from odes.devices import at_once
from odes.equations import AVERAGES
from odes.programs import program
from odes.shown import Shown

_DIP = 2.0
"""A trajectory passes a saddle where its speed has a minimum that is lower by this factor than the largest speeds on both sides."""

_FIXED = 1e-9
"""Overlaps that change at most this fast are a fixed point."""

_ALIKE = 1e-3
"""Rates, and fixed points, that differ by no more than this part are one."""

_RESTS = 1e-6
"""Rates that are smaller than this part of the fastest do not grow."""


_SMALL, _LINEAR = 1e-4, 0.05
"""Over this distance from a fixed point the flow is linear up to this part."""

_KNOWN = 1e-6
"""Deviations from a fixed point that are smaller are not known well."""

_PATIENCE = 100.0
"""The linear flow is given so many times of growth by e to leave."""


class Saddle(Shown):
    r"""A fixed point of the flow that a trajectory passes.

    - `overlaps`, `loss`, `covariances`: there;
    - `rates` (n,): those at which deviations grow, decreasing, and `multiplicities` (n,), how many directions each has;
    - `direction`: the deviation that grows fastest, as [`odes.Overlaps`][], a unit vector of the coordinates that move;
    - `closest`: the time at which the trajectory is slowest, `distance` how far it is from the fixed point then;
    - `entered`, `left`: when its distance falls below and exceeds the radius of [`saddles`][]; where it begins or ends within it these are
        the beginning and the end;
    - `predicted`: the residence time of the linear flow, from where the trajectory is slowest;
    - `share`: the part of the run that is spent there.
    """

    overlaps: Overlaps
    loss: Float[Array, ""]
    covariances: Covariances
    rates: Float[np.ndarray, " n"]
    multiplicities: tuple[int, ...] = eqx.field(static=True)
    direction: Overlaps
    closest: float
    distance: float
    entered: float
    left: float
    predicted: float
    share: float

    @property
    def residence(self) -> float:
        """How long the trajectory stays within the radius."""
        return self.left - self.entered

    @property
    def log_slope(self) -> float:
        r"""$1/2\lambda_1$: the residence time grows by this with log d where $d^{-1/2}$ fluctuations alone break the symmetry."""
        return 1 / (2 * float(self.rates[0]))

    def shown(self) -> dict[str, Any]:
        names = ("loss", "rates", "multiplicities", "closest", "distance", "entered", "left", "predicted", "share")
        return {name: getattr(self, name) for name in names} | {"residence": self.residence}


class _Coordinates(eqx.Module):
    """The overlaps that move, as one vector: not what rests, not the lengths of normalised rows, and every entry of R once."""

    around: Overlaps
    moving: tuple[int, ...] = eqx.field(static=True)

    @classmethod
    def of(cls, problem: Problem, around: Overlaps) -> "_Coordinates":
        adapter, rank = problem.adapter, problem.adapter.rank
        trained = np.asarray(adapter.trained) != 0
        below = np.tril(np.ones((rank, rank), bool), -1 if adapter.normalized else 0)
        masks = [
            np.broadcast_to(trained & (float(adapter.lr_ratio) > 0), around.up.shape),
            np.broadcast_to(trained[:, None], around.cross.shape),
            below & (trained[:, None] | trained[None]),
            np.ones(0 if around.readout is None else around.readout.size, bool),
        ]
        moves = np.concatenate([np.ravel(mask) for mask in masks])
        return cls(around, tuple(np.flatnonzero(moves).tolist()))

    @property
    def _places(self) -> np.ndarray:
        return np.asarray(self.moving, np.int32)

    @program
    def vector(self, overlaps: Overlaps) -> Array:
        """The coordinates of overlaps."""
        return jax.flatten_util.ravel_pytree(overlaps)[0][self._places]

    @program
    def overlaps(self, vector: Array) -> Overlaps:
        """The overlaps with these coordinates; what does not move is as it is around."""
        flat, unravel = jax.flatten_util.ravel_pytree(self.around)
        known = unravel(flat.at[self._places].set(vector))
        lower = jnp.tril(known.down_gram)
        return dataclasses.replace(known, down_gram=lower + jnp.tril(lower, -1).T)

    def change(self, problem: Problem, vector: Array, finite_steps: bool) -> Array:
        """Their time derivative."""
        at = self.overlaps(vector)
        return self.vector(mean_change(problem, at) if finite_steps else flow(problem, at))


@program
def _rate_at(problem: Problem, coordinates: _Coordinates, place: Array, finite_steps: bool) -> Array:
    return coordinates.change(problem, place, finite_steps)


@program
def _speeds(problem: Problem, coordinates: _Coordinates, places: Array, finite_steps: bool) -> Array:
    together = at_once(64, bytes_each=AVERAGES)
    rate = jax.lax.map(lambda y: coordinates.change(problem, y, finite_steps), places, batch_size=together)
    return jnp.linalg.norm(rate, axis=1)


@program
def _root(problem: Problem, coordinates: _Coordinates, finite_steps: bool) -> tuple[Array, Array]:
    """A root near what the coordinates are around, and the largest change that is left there."""

    def residual(y: Array, _: None) -> Array:
        return coordinates.change(problem, y, finite_steps)

    solver = optx.LevenbergMarquardt(rtol=1e-12, atol=1e-14)
    first = coordinates.vector(coordinates.around)
    found = optx.least_squares(residual, solver, first, max_steps=1024, throw=False).value
    return found, jnp.max(jnp.abs(residual(found, None)))


@program
def _jacobian(problem: Problem, coordinates: _Coordinates, finite_steps: bool) -> Array:
    return jax.jacfwd(lambda y: coordinates.change(problem, y, finite_steps))(coordinates.vector(coordinates.around))


def fixed_point(problem: Problem, guess: Overlaps, *, finite_steps: bool = False) -> Overlaps | None:
    """The fixed point of the flow near a guess, by Levenberg and Marquardt's method; None where there is none.

    What rests keeps its value.
    """
    coordinates = _Coordinates.of(problem, guess)
    found, left = _root(problem, coordinates, finite_steps)
    whole = jnp.where(jnp.abs(found) < _FIXED, 0, found)
    return coordinates.overlaps(whole) if float(left) <= _FIXED else None


def escape_spectrum(problem: Problem, at: Overlaps, *, finite_steps: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues of the flow's Jacobian at given overlaps, by decreasing real part, and its eigenvectors (columns).

    Its coordinates are the overlaps that move, in the order of U, X and R's lower triangle: not what rests, and not the lengths of
    normalised rows.
    """
    values, vectors = np.linalg.eig(np.asarray(_jacobian(problem, _Coordinates.of(problem, at), finite_steps)))
    order = np.argsort(-np.real(values), kind="stable")
    return values[order], vectors[:, order]


def saddles(solution: Solution, *, radius: float = 0.15, finite_steps: bool = False) -> list[Saddle]:
    r"""The saddles that a recorded trajectory of the flow passes, in the order of time.

    Between two drops of the loss a trajectory is slow near a fixed point y* with $f(y^*) = 0$: a root finder is started where its speed
    is least. The eigenvalues of $f'(y^*)$ are the rates out of it. From the slowest point y the deviation is taken apart into
    eigenvectors; the linear flow comes from, and reaches, the distance `radius` (in the overlaps that move, lengths of trained
    directions being 1) after the `predicted` residence time. If deviations of size $d^{-1/2}$ are all that grows, it is
    $\log d/2\lambda_1 + O(1)$.

    It works for any problem: weights trained from scratch (Saad & Solla's symmetric plateau), adapters, whose search phase is the saddle
    U = 0, and second searches. Rates count if they are more than 1e-6 of the fastest; those that agree to a part of 1e-3 are
    one, their mean: three or more units differ on their symmetric plateau in ways that neither grow nor decay to first order,
    and where along these the trajectory is changes the rates a little. `finite_steps` if the trajectory is that of finite
    steps. Records should resolve the plateaus; a saddle between two records is not seen, and one at which links with a kink make the
    flow not differentiable is left out.

    **Raises** ArgumentError for a radius that is not positive or a trajectory of fewer than three records.
    """
    require("radius", radius, "positive and finite", positive)
    problem, reached = solution.problem, np.isfinite(np.asarray(solution.loss))
    times, path = np.asarray(solution.t)[reached], jax.tree.map(lambda x: x[reached], solution.overlaps)
    if times.size < 3:
        raise ArgumentError("solution", "must have been recorded at three times or more")
    coordinates = _Coordinates.of(problem, jax.tree.map(lambda x: x[0], path))
    places = jax.vmap(coordinates.vector)(path)
    speeds, places = np.asarray(_speeds(problem, coordinates, places, finite_steps)), np.asarray(places)
    found: list[Saddle] = []
    for index in slow_points(speeds):
        guess = jax.tree.map(lambda x, index=index: x[index], path)
        fixed = fixed_point(problem, guess, finite_steps=finite_steps)
        if fixed is None:
            continue
        place = np.asarray(coordinates.vector(fixed))
        distances = np.linalg.norm(places - place, axis=1)
        known = [np.asarray(coordinates.vector(saddle.overlaps)) for saddle in found]
        repeated = any(np.linalg.norm(place - other) <= _ALIKE * (1 + np.linalg.norm(place)) for other in known)
        if repeated or not distances[index] < radius:
            continue
        saddle = _saddle(problem, fixed, times, distances, index, places - place, radius, finite_steps)
        found += [] if saddle is None else [saddle]
    return found


def visit(
    problem: Problem, fixed: Overlaps, times: Float[np.ndarray, " T"], path: Overlaps, *, radius: float = 0.15
) -> tuple[float, float]:
    """When a recorded trajectory comes nearer than the radius to a fixed point, before its nearest record, and is farther after it.

    The path has T in front of every shape; distances are those of [`saddles`][]. Where it is never nearer, both are NaN.
    """
    coordinates = _Coordinates.of(problem, fixed)
    place, places = (np.asarray(x) for x in (coordinates.vector(fixed), jax.vmap(coordinates.vector)(path)))
    distances = np.linalg.norm(places - place, axis=1)
    nearest = int(np.argmin(distances))
    return _passed(times, distances, nearest, radius) if distances[nearest] < radius else (math.nan, math.nan)


def slow_points(speeds: Float[np.ndarray, " T"]) -> list[int]:
    """The places of the minima of a speed that are lower by a factor of 2 than what comes before and after; the first and the last place
    may be such a minimum. Speeds below 1e-9 are all the same: the run has arrived.

    >>> slow_points(np.array([0.1, 1.0, 0.2, 0.3, 0.05, 2.0, 0.01]))
    [0, 4, 6]
    """
    from scipy import signal

    heights = -np.log(np.maximum(speeds, _FIXED))
    heights = np.concatenate([[heights.min() - 1], heights, [heights.min() - 1]])
    places, _ = signal.find_peaks(heights, prominence=math.log(_DIP))
    return (places - 1).tolist()


def _saddle(
    problem: Problem,
    fixed: Overlaps,
    times: np.ndarray,
    distances: np.ndarray,
    index: int,
    deviations: np.ndarray,
    radius: float,
    finite_steps: bool,
) -> Saddle | None:
    """What is known of a fixed point that a trajectory passes at a record; None if nothing grows there."""
    values, vectors = escape_spectrum(problem, fixed, finite_steps=finite_steps)
    if not _is_linear(problem, fixed, complex(values[0]), vectors[:, 0], finite_steps):
        return None
    real = np.real(values)
    growing = real[real > _RESTS * np.abs(values).max()]
    if growing.size == 0:
        return None
    rates, multiplicities = _grouped(growing)
    entered, left = _passed(times, distances, index, radius)
    lead = np.real(vectors[:, 0])
    blank = _Coordinates.of(problem, jax.tree.map(jnp.zeros_like, fixed))
    return Saddle(
        overlaps=fixed,
        loss=gradient_at(problem, fixed).loss,
        covariances=covariances(problem, fixed),
        rates=rates,
        multiplicities=multiplicities,
        direction=blank.overlaps(jnp.asarray(lead / np.linalg.norm(lead))),
        closest=float(times[index]),
        distance=float(distances[index]),
        entered=entered,
        left=left,
        predicted=_linear_residence(values, vectors, deviations, times, index, radius),
        share=(left - entered) / float(times[-1] - times[0]),
    )


def _is_linear(problem: Problem, fixed: Overlaps, rate: complex, vector: np.ndarray, finite_steps: bool) -> bool:
    """Whether differences of the flow over a small distance along a vector are what its derivative says; at a kink they are not."""
    coordinates = _Coordinates.of(problem, fixed)
    place, step = coordinates.vector(fixed), jnp.asarray(_SMALL * np.real(vector) / np.linalg.norm(np.real(vector)))
    ends = [np.asarray(_rate_at(problem, coordinates, place + side * step, finite_steps)) for side in (1, -1)]
    expected = np.real(rate * vector) / np.linalg.norm(np.real(vector))
    return bool(np.linalg.norm((ends[0] - ends[1]) / (2 * _SMALL) - expected) <= _LINEAR * abs(rate))


def _grouped(rates: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Rates in decreasing order, those that agree once, and how many agree."""
    groups = np.split(rates, 1 + np.flatnonzero(-np.diff(rates) > _ALIKE * rates[0]))
    return np.array([group.mean() for group in groups]), tuple(group.size for group in groups)


def _passed(times: np.ndarray, distances: np.ndarray, index: int, radius: float) -> tuple[float, float]:
    """When a trajectory comes nearer than the radius before a record and is farther after it; log distances are linear between records."""

    def crossing(places: np.ndarray) -> float:
        beyond = np.flatnonzero(distances[places] >= radius)
        if beyond.size == 0:
            return float(times[places[-1]])
        ends = places[[beyond[0] - 1, beyond[0]]]
        logs = np.log(distances[ends] / radius)
        return float(times[ends[0]] - logs[0] / (logs[1] - logs[0]) * (times[ends[1]] - times[ends[0]]))

    return crossing(np.arange(index, -1, -1)), crossing(np.arange(index, times.size))


def _linear_residence(
    values: np.ndarray, vectors: np.ndarray, deviations: np.ndarray, times: np.ndarray, index: int, radius: float
) -> float:
    """How long the linear flow through the deviation at a record is nearer than the radius, from the first record at the earliest.

    Where that deviation is too small to be known well, it is followed from the last larger one before and the first one after.
    NaN if it never leaves.
    """
    from scipy import optimize

    known = np.flatnonzero(np.linalg.norm(deviations, axis=1) >= _KNOWN)
    if known.size == 0 or known[-1] < index:
        return math.nan
    later, earlier = int(known[known >= index][0]), int(np.append(0, known[known <= index])[-1])
    growth, decay = float(np.real(values).max()), -float(np.real(values).min())

    def distance_from(record: int) -> Callable[[float], float]:
        parts = np.linalg.solve(vectors, deviations[record].astype(complex))
        return lambda time: math.log(np.linalg.norm(vectors @ (parts * np.exp(values * time))) / radius)

    leaving, coming = distance_from(later), distance_from(earlier)
    after, before = 1 / growth, float(times[earlier] - times[0])
    while leaving(after) < 0:
        if (after := 1.5 * after) > _PATIENCE / growth:
            return math.nan
    left = times[later] + optimize.root_scalar(leaving, bracket=(0, after)).root
    since = min(before, 1 / decay) if decay > 0 else before
    while coming(-since) < 0 and since < before:
        since = min(before, 1.5 * since)
    ago = optimize.root_scalar(coming, bracket=(-since, 0)).root if coming(-since) >= 0 else -since
    return float(left - (times[earlier] + ago))
