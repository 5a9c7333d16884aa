r"""What shortens fine-tuning from given weights: noise scale, rank, lr ratio, scale, curriculum, full fine-tuning, by samples."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odes import (
    Activation,
    Adapter,
    Escape,
    Overlaps,
    Problem,
    Stage,
    activation,
    frame_overlaps,
    self_moments,
    solve_stages,
)
from odes.arguments import ArgumentError, real_array, require, require_known
from theory.law import escape_law
from theory.passages import passage
from theory.search import noise_unit, search_phase, unstable_mode
from theory.starts import start_normals, typical_amplitude, typical_start
from theory.trust import Validity
from theory.tuning import FineTuning, fine_tuning, stable_step

_ROUNDS = 4
_STABLE = 0.2
"""The learning rate is at most this part of the largest stable step."""

_LITTLE = 0.02
"""A step changes the squared length of weights without normalisation by at most this part."""

_RANKS = (4, 16)
_LARGEST_FACTOR = 64.0
_MOST_STEPS = 2**11
"""A run that takes more steps of the integrator is given up: it is far from the best."""

_PATIENT = 2**17
"""Training as given gets so many steps of the integrator."""

_STARTS = 16
"""The search is over the mean of so many random starts for several units."""

_HORIZON = 500.0
"""Full fine-tuning is given this many units of 1/E[σ'^2]."""

Stages = tuple[Stage, ...]
Box = tuple[Sequence[float], Sequence[float]]
"""The least and the largest value of every number."""


def samples(stages: Stages) -> Float[Array, ""]:
    """Fresh samples per dimension that all stages take; NaN if the goal is not reached."""
    return jnp.sum(jnp.stack([stage.problem.sgd.samples_per_dimension(stage.duration) for stage in stages]))


@dataclasses.dataclass(frozen=True)
class Remedy:
    """A way of training, with the settings of least samples.

    `words` say what it is and `settings` which values were chosen; `edge` names those that lie on the edge of what was searched. The
    last of its `stages` ends when the goal is reached according to theory; `start` are the overlaps at the start where these are given
    (weights that are trained themselves start at w0). `doubt` is why the time is not a mean over starts and noise, in words, empty
    where it is. Where no settings will do the duration of the last stage is NaN, there are no `settings`, and `doubt` says why.
    """

    name: str
    words: str
    settings: dict[str, float]
    stages: Stages
    start: Overlaps | None = None
    edge: tuple[str, ...] = ()
    doubt: str = ""

    @property
    def time(self) -> float:
        """The time of all stages."""
        return sum(float(stage.duration) for stage in self.stages)

    @property
    def samples(self) -> float:
        """Samples per dimension; NaN if the goal is not reached."""
        return float(samples(self.stages))


def with_noise_scale(problem: Problem, noise_scale: Array, largest: Array | None = None) -> Problem:
    """The problem at another noise scale θ = ηd/B, with its learning rate, or the `largest` (that is stable for LoRA unless given)."""
    stable = _STABLE * stable_step(problem) if largest is None else largest
    return problem.replace(learning_rate=jnp.minimum(problem.sgd.learning_rate, stable), noise_scale=noise_scale)


def cheapest(
    way: Callable[[Array], tuple[Array, Any]], box: Box, points: int, first: Sequence[float] | None = None
) -> tuple[np.ndarray, Any]:
    """The numbers in a box at which a way of training costs least, and what it is there.

    `way` maps (n,) numbers to a cost, NaN where the goal is not reached, and anything else. One number after the other, `points`
    values evenly spaced in the logarithm are evaluated at once, the others fixed at the best known (`first`, or the middle of
    the box), four rounds in which the range shrinks around the best by the spacing of the values: safe where the goal is not
    always reached.
    """
    compiled = eqx.filter_jit(jax.vmap(way))
    bottom, top = (np.log(np.asarray(corner, float)) for corner in box)
    place, half = (bottom + top) / 2 if first is None else np.log(np.asarray(first, float)), top - bottom
    found = None
    for _ in range(_ROUNDS):
        for axis in range(place.size):
            places = np.tile(place, (points, 1))
            low, high = max(place[axis] - half[axis], bottom[axis]), min(place[axis] + half[axis], top[axis])
            places[:, axis] = np.linspace(low, high, points)
            costs, trained = compiled(jnp.exp(jnp.asarray(places)))
            costs = np.where(np.isfinite(costs), costs, np.inf)
            best = int(costs.argmin())
            if np.isfinite(costs[best]):
                place, half[axis] = places[best], (high - low) / (points - 1)
            if found is None or np.isfinite(costs[best]):
                found = jax.tree.map(lambda x, best=best: x[best], trained)
    return np.exp(place), found


def _searched(stages: Callable[[Array], Stages], *search: Any) -> tuple[np.ndarray, Stages]:
    """The numbers at which stages of training take the fewest samples, and the stages there; `search` is that of `cheapest`."""

    def way(numbers: Array) -> tuple[Array, Stages]:
        trained = stages(numbers)
        return samples(trained), trained

    return cheapest(way, *search)


WAYS = ("noise", "rank", "lr-ratio", "scale", "full", "curriculum")
"""The ways of training that are looked into."""


def possible_ways(problem: Problem, ways: Sequence[str] | None = None) -> tuple[str, ...]:
    """The ways of [`remedies`][] that are asked for, or all that there are for a problem.

    **Raises** ArgumentError for an unknown way, and for a curriculum of several units.
    """
    for way in ways or ():
        require_known("ways", way, WAYS)
    if ways is None:
        return tuple(way for way in WAYS if way != "curriculum" or problem.is_single_index)
    if "curriculum" in ways and not problem.is_single_index:
        raise ArgumentError("ways", "have a curriculum of squared labels for one student and one teacher unit alone")
    return tuple(ways)


def remedies(
    problem: Problem, goal: Escape | None = None, *, ways: Sequence[str] | None = None, plain: Remedy | None = None
) -> Iterator[Remedy]:
    r"""Ways of training from given weights W0, each with its settings of least samples, as they are found.

    The samples per dimension are n/d = t/θ: small θ wastes samples, large θ ends in noise, so that every way has a best θ, which is
    computed. LoRA is searched where the time is the mean over starts and noise ([`theory.validity`][]) and a batch has at least one
    sample; what is found for one unit is looked at from many random starts ([`escape_law`][]), which may doubt it. The ways: as
    given; "noise", the best θ; "rank", four and sixteen times as large at the same κ; "lr-ratio", a larger learning rate of U
    (LoRA+); "scale", a larger α; "full", training the weights themselves; "curriculum", squared labels first, with U kept or
    restarted, at the best length of that stage, each at its best θ, which is for single-index problems: squares of a sum of several
    terms are no sum of terms. All that there are unless `ways` are given. With the remedy of the way "noise" known already, as
    `plain`, neither that nor the weights as given are looked at again.

    **Raises** ArgumentError for a problem without pretrained weights, with trained readouts or an infinite batch, for an unknown way,
    and for a curriculum of several units.
    """
    problem.require_known_search()
    require("batch_size", problem.sgd.batch_size, "finite to count samples", np.isfinite)
    ways = possible_ways(problem, ways)
    goal = Escape() if goal is None else goal
    if plain is None:
        yield _as_given(problem, goal)
    unit = float(noise_unit(problem))
    low, high = 1e-1 * unit, 1e3 * unit

    def searched(
        name: str,
        words: str,
        change: Callable[[Array], Problem],
        symbol: str = "",
        box: Box = ([], []),
        first: Sequence[float] | None = None,
    ) -> Remedy:
        """The best of some adapters, whose noise scale is the last number, after the one named by `symbol`."""

        def stages(numbers: Array) -> Stages:
            return (_tuned(name, with_noise_scale(change(numbers), numbers[-1]), goal),)

        chosen, best = _searched(stages, ([*box[0], low], [*box[1], high]), 24 - 12 * bool(symbol), first)
        if not np.isfinite(float(samples(best))):
            lowest = real_array([*box[0], low])
            return Remedy(name, words, {}, best, doubt=_refusal(with_noise_scale(change(lowest), lowest[-1]), goal))
        settings = {symbol: float(chosen[0])} if symbol else {}
        settings |= {"noise_scale": float(chosen[-1])}
        ends = zip(settings, [*box[0], low], [*box[1], high], strict=True)
        lasts = float(samples(best)) > 0  # no place is best where the goal is met already
        edge = tuple(key for key, *pair in ends if lasts and np.isclose(settings[key], pair, rtol=1e-6).any())
        return Remedy(name, words, settings, best, edge=edge, doubt=_doubt(best[-1], goal))

    if plain is None:
        plain = searched("noise scale", "best batch size", lambda _: problem)
        if "noise" in ways:
            yield plain
    theta = plain.settings.get("noise_scale", unit)
    if "rank" in ways:
        for rank in (factor * problem.adapter.rank for factor in _RANKS):
            yield searched(
                f"rank {rank}", "more rank at the same kappa", lambda _, rank=rank: problem.replace(rank=rank)
            )
    chi, kappa = float(problem.adapter.lr_ratio), float(problem.adapter.kappa)
    if "lr-ratio" in ways and chi > 0:
        words, box = "larger learning rate of U (LoRA+)", ([chi], [_LARGEST_FACTOR * chi])
        yield searched("lr ratio", words, lambda x: problem.replace(lr_ratio=x[0]), "lr_ratio", box, [chi, theta])
    if "scale" in ways:
        words, box = "larger scale alpha", ([kappa], [_LARGEST_FACTOR * kappa])
        yield searched("scale", words, lambda x: problem.replace(kappa=x[0]), "kappa", box, [kappa, theta])
    if "full" in ways:
        yield _full(problem, goal)
    squares = _squared(problem.teacher) if "curriculum" in ways else None
    if squares is not None:
        for restart in (False, True):
            yield _curriculum(problem, squares, goal, plain.time, restart)


def _tuned(name: str, problem: Problem, goal: Escape) -> Stage:
    """Fine-tuning to the goal, as long as theory says that it takes; never where that cannot be trusted or a batch is below one sample."""
    tuning = _looked_at(problem, goal)
    sound = tuning.trusted & (problem.sgd.batch_size >= 1)
    return _lasting(Stage(name, problem, 0.0), jnp.where(sound, tuning.time, jnp.nan))


def _doubt(stage: Stage, goal: Escape) -> str:
    """Why the time of a stage of one unit's fine-tuning is no mean over many random starts, by the law; of several units it is over few."""
    problem, adapter = stage.problem, stage.problem.adapter
    every_row_alike = bool(jnp.all(adapter.trained == 1)) and float(adapter.weight_decay) == 0
    if not (problem.is_single_index and every_row_alike and np.isfinite(float(stage.duration))):
        return ""
    return escape_law(problem, goal).doubt


def _refusal(problem: Problem, goal: Escape) -> str:
    """Why fine-tuning takes no mean time at the smallest noise scale that is searched, hence at none."""
    tuning = _looked_at(problem, goal)
    return Validity(int(tuning.validity)).meaning or "the batches that it takes have less than one sample"


def _looked_at(problem: Problem, goal: Escape) -> FineTuning:
    """Fine-tuning, of several units from few random starts: a search follows all of them at many settings."""
    normals = real_array(start_normals(_STARTS, problem.adapter.rank, problem.frame_size, problem.units[0]))
    return fine_tuning(problem, goal, normals=normals, adjoint=diffrax.ForwardMode(), max_steps=_MOST_STEPS)


def _lasting(stage: Stage, time: Array) -> Stage:
    """The stage with a duration that may be NaN: its goal is never reached."""
    return eqx.tree_at(lambda s: s.duration, stage, time)


def _as_given(problem: Problem, goal: Escape) -> Remedy:
    tuning = fine_tuning(problem, goal, adjoint=diffrax.ForwardMode(), max_steps=_PATIENT)
    stage, settings = (
        _lasting(Stage("as given", problem, 0.0), tuning.time),
        {"noise_scale": problem.sgd.noise_scale.item()},
    )
    doubt = Validity(int(tuning.validity)).meaning
    return Remedy("as given", "nothing changed", settings, (stage,), doubt=doubt)


def _full(problem: Problem, goal: Escape) -> Remedy:
    """Training of the weights themselves from W0, in the frame of the problem."""
    units = problem.units[0]
    whole = problem.replace(
        frozen=jnp.zeros_like(problem.frozen), adapter=Adapter(units, lr_ratio=0.0, normalized=False)
    )
    steepness = jnp.sum(problem.readout**2) * self_moments(problem.student, 1.0).cross
    start = frame_overlaps(whole, up=np.eye(units), rows=problem.frozen)
    noise, square = search_phase(problem).noise, jnp.min(problem.lengths**2)

    def stages(numbers: Array) -> Stages:
        largest = jnp.minimum(_STABLE / steepness, _LITTLE * square / (numbers[0] * noise))
        changed = with_noise_scale(whole, numbers[0], largest)
        horizon = _HORIZON / steepness
        options = {"origin": start, "rtol": 1e-7, "adjoint": diffrax.ForwardMode(), "max_steps": _MOST_STEPS}
        run = passage(changed, start, goal, horizon, **options)
        return (_lasting(Stage("full weights", changed, 0.0), run.escape_time),)

    unit = float(steepness / noise)
    chosen, best = _searched(stages, ([1e-3 * unit], [1e2 * unit]), 24)
    words = "train the weights themselves, no adapter"
    return _reached(Remedy("full weights", words, {"noise_scale": float(chosen[0])}, best, start))


def _reached(remedy: Remedy) -> Remedy:
    """The remedy, without settings where none of those that were searched reaches the goal."""
    if np.isfinite(remedy.samples):
        return remedy
    return dataclasses.replace(remedy, settings={}, doubt="the goal is not reached")


def _squared(teacher: Activation) -> Activation | None:
    """The link function of squared labels, None for one that has no name."""
    try:
        return activation(f"{teacher.name}^2")
    except ArgumentError:
        return None


def _curriculum(problem: Problem, squares: Activation, goal: Escape, slowest: float, restart: bool) -> Remedy:
    """Squared labels first, for part of the time that aligning the adapter takes, then the labels themselves."""
    easy = problem.replace(teacher=squares)
    phase, mode = search_phase(easy), unstable_mode(easy)
    length = float(-jnp.log(typical_amplitude(easy, mode)) * phase.tau)
    end = 2 * (slowest if np.isfinite(slowest) else 50 * length)

    def stages(numbers: Array) -> Stages:
        first = Stage("squared labels", with_noise_scale(easy, numbers[1]), numbers[0])
        second = Stage("labels", with_noise_scale(problem, numbers[2]), end, restart=restart)
        there = search_phase(first.problem)
        run = solve_stages(
            [first, second],
            typical_start(first.problem, there, unstable_mode(first.problem)),
            records=2,
            escape=goal,
            since=0,
            until_escape=True,
            finite_steps=True,
            rtol=1e-6,
            atol=1e-9,
            adjoint=diffrax.ForwardMode(),
            max_steps=_MOST_STEPS // 4,
        )
        return first, _lasting(second, run.escape_time - first.duration)

    aligned = float(self_moments(problem.student, 1.0).cross / search_phase(problem).noise)
    units = [length, float(noise_unit(easy)), float(noise_unit(problem))]
    if np.all(np.isfinite(units)) and units[0] > 0:
        box = [0.3 * units[0], 3e-2 * units[1], 1e-1 * units[2]], [2 * units[0], 1e3 * units[1], 10 * aligned]
        first = [0.85 * units[0], 0.2 * units[1], max(1e-1 * units[2], 1e-3 * aligned)]
        chosen, best = _searched(stages, box, 8, first)
    else:
        chosen, best = np.full(3, np.nan), (_lasting(Stage("labels", problem, 0.0), jnp.asarray(jnp.nan)),)
    settings = {"first_time": chosen[0], "first_noise_scale": chosen[1], "noise_scale": chosen[2]}
    words = "squared labels first, then " + ("U restarted" if restart else "go on")
    name = "curriculum, U restarted" if restart else "curriculum"
    return _reached(Remedy(name, words, jax.tree.map(float, settings), best))
