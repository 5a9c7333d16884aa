r"""What shortens fine-tuning from given weights: noise scale, rank, lr ratio, scale, curriculum, full fine-tuning, by samples."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odes import Activation, Escape, Overlaps, Problem, activation, restarted, self_moments, solve
from odes.arguments import require, require_known
from theory.pretraining import fine_tuning, stable_step, typical_search
from theory.search import search_phase

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

_HORIZON = 500.0
"""Full fine-tuning is given this many units of 1/E[σ'^2]."""


Box = tuple[Sequence[float], Sequence[float]]
"""The least and the largest value of every number."""


class Outcome(eqx.Module):
    """What a way of training takes to a goal, all stages together: `time` and `samples` per dimension, NaN if it does not get there."""

    time: Float[Array, ""]
    samples: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Remedy:
    """A way of training, with the settings of least samples.

    `words` say what it is and `settings` which values were chosen; `problems` are those of its stages, `first_time` is how long the
    first of two takes and `restart` whether U restarts after it; `start` are the overlaps at the start where these are given (weights
    that are trained themselves start at w0). `outcome` is what theory says of it.
    """

    name: str
    words: str
    settings: dict[str, float]
    problems: tuple[Problem, ...]
    first_time: float
    restart: bool
    outcome: Outcome
    start: Overlaps | None = None

    @property
    def samples(self) -> float:
        """Samples per dimension; NaN if the goal is not reached."""
        return float(self.outcome.samples)


def with_noise_scale(problem: Problem, noise_scale: Array, largest: Array | None = None) -> Problem:
    """The problem at another noise scale θ = ηd/B, with its learning rate, or the `largest` (that is stable for LoRA unless given)."""
    sgd = problem.sgd
    rate = jnp.minimum(sgd.learning_rate, _STABLE * stable_step(problem) if largest is None else largest)
    batch = rate * sgd.dimension / noise_scale
    return eqx.tree_at(lambda p: (p.sgd.learning_rate, p.sgd.batch_size), problem, (rate, batch))


def _outcome(*stages: tuple[Problem, Array]) -> Outcome:
    """What stages of the given problems and lengths take."""
    samples = [problem.sgd.samples_per_dimension(time) for problem, time in stages]
    return Outcome(jnp.sum(jnp.stack([time for _, time in stages])), jnp.sum(jnp.stack(samples)))


def noise_unit(problem: Problem) -> Float[Array, ""]:
    r"""The noise scale $\lambda_+/N$ at w0, at which SGD noise feeds the unstable mode about as much as the random start does."""
    phase = search_phase(problem)
    return phase.rate / phase.noise


def cheapest(
    way: Callable[[Array], Outcome], box: Box, points: int, first: Sequence[float] | None = None
) -> tuple[np.ndarray, Outcome]:
    """The numbers in a box at which a way of training takes the fewest samples, and what it takes there.

    `way` maps (n,) numbers to an outcome. One number after the other, `points` values evenly spaced in the logarithm are
    evaluated at once, the others fixed at the best known (`first`, or the middle of the box), four rounds in which the range
    shrinks around the best by the spacing of the values: safe where the goal is not always reached.
    """
    compiled = eqx.filter_jit(jax.vmap(way))
    bottom, top = (np.log(np.asarray(corner, float)) for corner in box)
    place, half = (bottom + top) / 2 if first is None else np.log(np.asarray(first, float)), top - bottom
    outcome = None
    for _ in range(_ROUNDS):
        for axis in range(place.size):
            places = np.tile(place, (points, 1))
            low, high = max(place[axis] - half[axis], bottom[axis]), min(place[axis] + half[axis], top[axis])
            places[:, axis] = np.linspace(low, high, points)
            outcomes = compiled(jnp.exp(jnp.asarray(places)))
            samples = np.where(np.isfinite(outcomes.samples), outcomes.samples, np.inf)
            best = int(samples.argmin())
            if np.isfinite(samples[best]):
                place, half[axis] = places[best], (high - low) / (points - 1)
            if outcome is None or np.isfinite(samples[best]):
                outcome = jax.tree.map(lambda x, best=best: x[best], outcomes)
    assert outcome is not None
    return np.exp(place), outcome


WAYS = ("noise", "rank", "lr-ratio", "scale", "full", "curriculum")
"""The ways of training that are looked into."""


def remedies(problem: Problem, goal: Escape | None = None, *, ways: Sequence[str] = WAYS) -> Iterator[Remedy]:
    r"""Ways of training from the weights w0 of a single-index problem, each with its settings of least samples, as they are found.

    The samples per dimension are n/d = t/θ: small θ wastes samples, large θ ends in noise, so that every way has a best θ, which is
    computed. The ways: as given; "noise", the best θ; "rank", four and sixteen times as large at the same κ; "lr-ratio", a larger
    learning rate of U (LoRA+); "scale", a larger α; "full", training the weights themselves; "curriculum", squared labels
    first, with U kept or restarted, at the best length of that stage, each at its best θ.

    **Raises** ArgumentError unless the problem is single-index with a finite batch, and for an unknown way.
    """
    problem.require_single_index()
    require("batch_size", problem.sgd.batch_size, "finite to count samples", np.isfinite)
    for way in ways:
        require_known("ways", way, WAYS)
    goal = Escape() if goal is None else goal
    yield _as_given(problem, goal)
    unit = float(noise_unit(problem))
    low, high = 1e-1 * unit, 1e2 * unit

    def searched(
        name: str,
        words: str,
        change: Callable[[Array], Problem],
        symbol: str = "",
        box: Box = ([], []),
        first: Sequence[float] | None = None,
    ) -> Remedy:
        """The best of some adapters, whose noise scale is the last number, after the one named by `symbol`."""

        def way(numbers: Array) -> Outcome:
            changed = with_noise_scale(change(numbers), numbers[-1])
            return _outcome((changed, fine_tuning(changed, goal, max_steps=_MOST_STEPS).time))

        chosen, outcome = cheapest(way, ([*box[0], low], [*box[1], high]), 24 - 12 * bool(symbol), first)
        best = with_noise_scale(change(jnp.asarray(chosen)), jnp.asarray(chosen[-1]))
        settings = {symbol: float(chosen[0])} if symbol else {}
        return Remedy(name, words, settings | {"noise_scale": float(chosen[-1])}, (best,), 0.0, False, outcome)

    plain = searched("noise scale", "best batch size", lambda _: problem)
    theta = plain.settings["noise_scale"]
    if "noise" in ways:
        yield plain
    if "rank" in ways:
        for rank in (factor * problem.adapter.rank for factor in _RANKS):
            yield searched(
                f"rank {rank}", "more rank at the same kappa", lambda _, rank=rank: problem.with_adapter(rank=rank)
            )
    chi, kappa = float(problem.adapter.lr_ratio), float(problem.adapter.kappa)
    if "lr-ratio" in ways and chi > 0:
        words, box = "larger learning rate of U (LoRA+)", ([chi], [_LARGEST_FACTOR * chi])
        yield searched("lr ratio", words, lambda x: problem.with_adapter(lr_ratio=x[0]), "lr_ratio", box, [chi, theta])
    if "scale" in ways:
        words, box = "larger scale alpha", ([kappa], [_LARGEST_FACTOR * kappa])
        yield searched("scale", words, lambda x: problem.with_adapter(kappa=x[0]), "kappa", box, [kappa, theta])
    if "full" in ways:
        yield _full(problem, goal)
    squares = _squared(problem.teacher)
    if "curriculum" in ways and squares is not None:
        for restart in (False, True):
            yield _curriculum(problem, squares, goal, float(plain.outcome.time), restart)


def _as_given(problem: Problem, goal: Escape) -> Remedy:
    outcome = eqx.filter_jit(lambda p: _outcome((p, fine_tuning(p, goal, max_steps=_PATIENT).time)))(problem)
    settings = {"noise_scale": float(problem.sgd.noise_scale)}
    return Remedy("as given", "nothing changed", settings, (problem,), 0.0, False, outcome)


def _full(problem: Problem, goal: Escape) -> Remedy:
    """Training of the weights themselves from w0."""
    overlap, square = problem.frame_gram[0, 1], problem.frame_gram[1, 1]
    whole = Problem.full_weights(
        problem.student, teacher=problem.teacher, cosine=problem.alignment, normalized=False, sgd=problem.sgd
    )
    steepness = self_moments(problem.student, 1.0).cross
    start = Overlaps(jnp.ones((1, 1)), jnp.stack([overlap, jnp.sqrt(square)])[None], square[None, None])

    def at(noise_scale: Array) -> Problem:
        spread = noise_scale * search_phase(problem).noise
        return with_noise_scale(whole, noise_scale, jnp.minimum(_STABLE / steepness, _LITTLE * square / spread))

    def way(numbers: Array) -> Outcome:
        changed = at(numbers[0])
        end = _HORIZON / steepness
        run = solve(
            changed,
            start,
            t1=end,
            times=end[None],
            escape=goal,
            origin=start,
            until_escape=True,
            finite_steps=True,
            rtol=1e-7,
            max_steps=_MOST_STEPS,
        )
        return _outcome((changed, run.escape_time))

    unit = float(steepness / search_phase(problem).noise)
    chosen, outcome = cheapest(way, ([1e-3 * unit], [1e2 * unit]), 24)
    settings = {"noise_scale": float(chosen[0])}
    best = at(jnp.asarray(chosen[0]))
    return Remedy(
        "full weights", "train the weights themselves, no adapter", settings, (best,), 0.0, False, outcome, start
    )


def _squared(teacher: Activation) -> Activation | None:
    """The link function of squared labels, None for one that has no name."""
    try:
        return activation(f"{teacher.name}^2")
    except ValueError:
        return None


def _curriculum(problem: Problem, squares: Activation, goal: Escape, slowest: float, restart: bool) -> Remedy:
    """Squared labels first, for part of the time that aligning the adapter takes, then the labels themselves."""
    easy = eqx.tree_at(lambda p: p.teacher, problem, squares, is_leaf=lambda x: isinstance(x, Activation))
    search = typical_search(easy)
    length = float(-jnp.log(search.amplitude) * search.phase.tau)
    end = 2 * (slowest if np.isfinite(slowest) else 50 * length)

    def stages(numbers: Array) -> tuple[Problem, Problem]:
        return with_noise_scale(easy, numbers[1]), with_noise_scale(problem, numbers[2])

    def way(numbers: Array) -> Outcome:
        first, second = stages(numbers)
        options = {"finite_steps": True, "rtol": 1e-6, "atol": 1e-9, "max_steps": _MOST_STEPS // 4}
        reached = solve(first, typical_search(first).start, t1=numbers[0], times=numbers[:1], **options).final
        if restart:
            reached = restarted(second, reached)
        run = solve(second, reached, t1=end, times=jnp.array([end]), escape=goal, until_escape=True, **options)
        return _outcome((first, numbers[0]), (second, run.escape_time))

    aligned = float(self_moments(problem.student, 1.0).cross / search_phase(problem).noise)
    units = [length, float(noise_unit(easy)), float(noise_unit(problem))]
    if np.all(np.isfinite(units)) and units[0] > 0:
        box = [0.3 * units[0], 3e-2 * units[1], 1e-1 * units[2]], [2 * units[0], 1e3 * units[1], 10 * aligned]
        first = [0.85 * units[0], 0.2 * units[1], max(1e-1 * units[2], 1e-3 * aligned)]
        chosen, outcome = cheapest(way, box, 8, first)
    else:
        chosen, outcome = np.full(3, np.nan), Outcome(jnp.asarray(jnp.nan), jnp.asarray(jnp.nan))
    settings = {"first_time": chosen[0], "first_noise_scale": chosen[1], "noise_scale": chosen[2]}
    words = "squared labels first, then " + ("U restarted" if restart else "go on")
    name = "curriculum, U restarted" if restart else "curriculum"
    return Remedy(
        name, words, jax.tree.map(float, settings), stages(jnp.asarray(chosen)), float(chosen[0]), restart, outcome
    )
