r"""When fine-tuning from a checkpoint is fast: its time as a function of the time at which pretraining was stopped."""

import dataclasses
from collections.abc import Callable, Sequence

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax.scipy.special import digamma
from jaxtyping import Array, Bool, Float

from odes import (
    Escape,
    Overlaps,
    Problem,
    Transfer,
    gradient_at,
    modified_flow,
    pretrained,
    self_moments,
    solve,
)
from odes.arguments import ArrayLike, require
from theory.law import UnstableMode, escape_from, mode_start, unstable_mode
from theory.search import SearchPhase, search_phase

_TRUSTED = 0.1
"""The largest amplitude of the unstable mode at the start for which the search is in the linear regime."""

_STEP = 1.5
"""The integrator's largest step in units of the fastest time scale, within the stability of the explicit solver."""

_PATIENCE = 10.0
"""Where U grows to a plateau first, fine-tuning is given this much longer than where the search comes first."""


class FineTuning(eqx.Module):
    r"""Fine-tuning from given weights w0.

    - `time`: how long it takes from a typical random start, NaN where the goal is not reached (within 50 τ);
    - `tau`: the time scale of the search phase, `D` its damping;
    - `amplitude`: of the unstable mode at the start; `trusted`: whether it is small and D > 0, so that `time` is the mean over
        random starts and SGD noise to leading order.
    """

    time: Float[Array, ""]
    tau: Float[Array, ""]
    D: Float[Array, ""]
    amplitude: Float[Array, ""]
    trusted: Bool[Array, ""]


class Search(eqx.Module):
    """A typical search: its linear theory, the unstable mode, the amplitude and the overlaps at its start."""

    phase: SearchPhase
    mode: UnstableMode
    amplitude: Float[Array, ""]
    start: Overlaps
    moving: Bool[Array, ""]


def typical_search(problem: Problem) -> Search:
    r"""The start from which the flow takes the mean time, to leading order, from random starts with SGD noise.

    The rows of the adapter are on the unstable mode ([`theory.unstable_mode`][]), with the total amplitude a whose logarithm is the
    mean one: $\log a = \log\sqrt{\mathrm{Var}} + \tfrac12(\psi(r/2) + \log 2)$, shared by the rows like quantiles of a
    half-normal law. Where D <= 0 the start is instead U = 0 and the typical overlap $d^{-1/2}$ with the gradient's direction.

    **Raises** ArgumentError unless the problem is single-index.
    """
    phase = search_phase(problem)
    mode = unstable_mode(problem, phase)
    adapter = problem.adapter
    half = jnp.asarray(adapter.rank / 2, mode.variance.dtype)
    amplitude = jnp.exp((jnp.log(mode.variance) + digamma(half) + jnp.log(2.0)) / 2)
    shares = scipy.stats.halfnorm.ppf((np.arange(adapter.rank) + 0.5) / adapter.rank)
    rows = jnp.asarray(shares / np.linalg.norm(shares), mode.variance.dtype)
    moving, damped = jnp.isfinite(phase.rate) & (phase.G > 0) & (adapter.lr_ratio > 0), phase.D > 0
    safe = jax.tree.map(lambda x: jnp.where(moving, x, 1.0), phase)
    searching = mode_start(problem, safe, mode, amplitude * rows)
    untrained = eqx.tree_at(lambda m: (m.up, m.cross), mode, (jnp.zeros_like(half), jnp.ones_like(half)))
    aligned = mode_start(problem, safe, untrained, jnp.sqrt(adapter.rank / problem.sgd.dimension) * rows)
    start = jax.tree.map(
        lambda a, b, c: jnp.where(moving, jnp.where(damped, a, b), c), searching, aligned, pretrained(problem)
    )
    return Search(phase, mode, amplitude, start, moving)


def stable_step(problem: Problem) -> Float[Array, ""]:
    r"""The largest step for an explicit integrator whose derivatives matter: 1.5 over $\chi\kappa^2\max(D, E[\sigma'^2])$."""
    steepest = jnp.maximum(search_phase(problem).D, self_moments(problem.student, 1.0).cross)
    return _STEP / (problem.adapter.lr_ratio * problem.adapter.kappa**2 * steepest)


def fine_tuning(
    problem: Problem,
    goal: Escape | None = None,
    *,
    adjoint: diffrax.AbstractAdjoint | None = None,
    max_steps: int = 2**13,
) -> FineTuning:
    r"""How long fine-tuning takes to a goal (escape unless given), from a typical start of the search ([`typical_search`][]).

    Since the time from amplitude a of the unstable mode is $T_0 - \tau\log a$ for small a, the flow of finite steps from the
    amplitude whose logarithm is the mean one takes the mean time. Differentiable in everything that defines the problem, by
    `jax.grad`; by `jax.jvp` with `adjoint=diffrax.ForwardMode()`. After `max_steps` of the integrator it is given up.

    **Raises** ArgumentError unless the problem is single-index.
    """
    goal = Escape() if goal is None else goal
    search = typical_search(problem)
    phase, damped = search.phase, search.phase.D > 0
    patience = jnp.where(search.moving, jnp.where(damped, 1.0, _PATIENCE) * phase.tau, jnp.inf)
    run = escape_from(
        problem,
        search.start,
        goal,
        eqx.tree_at(lambda p: p.tau, phase, patience),
        rtol=1e-7,
        atol=1e-12,
        adjoint=adjoint,
        largest_step=stable_step(problem),
        max_steps=max_steps,
    )
    time = jnp.where(search.moving | (run.escape_time == 0), run.escape_time, jnp.nan)
    trusted = search.moving & damped & (search.amplitude <= _TRUSTED)
    return FineTuning(time, phase.tau, phase.D, search.amplitude, trusted)


class Checkpoints(eqx.Module):
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


@eqx.filter_jit
def checkpoints(
    transfer: Transfer, times: ArrayLike, goal: Escape | None = None, start: Overlaps | None = None
) -> Checkpoints:
    r"""Fine-tuning from the weights at n increasing pretraining `times`, with its derivative in the pretraining time.

    Pretraining starts from [`odes.Transfer.typical_start`][] unless `start` is given. The flow of finite steps is solved once to the
    last time; each checkpoint's w0 makes a single-index problem ([`odes.Transfer.fine_tuning`][]) whose time is a function of
    $w\cdot\omega^*$ and $|w|^2$, and the chain rule with their velocities gives the slope. Time 0 is a random w0.
    """
    times = jnp.asarray(times, jnp.result_type(float))
    start = transfer.typical_start() if start is None else start
    end = jnp.where(times[-1] > 0, times[-1], 1.0)
    run = solve(transfer.pretraining, start, t1=end, times=times, finite_steps=True, max_steps=2**14)

    def tuned(overlaps: Overlaps) -> tuple[Array, tuple[FineTuning, Array]]:
        problem = transfer.fine_tuning(overlaps)
        tuning = fine_tuning(problem, goal, adjoint=diffrax.ForwardMode())
        return tuning.time, (tuning, problem.frame_gram)

    def one(time: Array, overlaps: Overlaps) -> Checkpoints:
        velocity = modified_flow(transfer.pretraining, overlaps)
        finite = jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((overlaps, velocity))]).all()
        sound = finite & (overlaps.down_gram[0, 0] > 0)
        at = jax.tree.map(lambda x, safe: jnp.where(sound, x, safe), overlaps, start)
        moves = jax.tree.map(lambda x: jnp.where(sound, x, 0.0), velocity)
        _, slope, (tuning, gram) = jax.jvp(tuned, (at,), (moves,), has_aux=True)
        overlap, square = gram[0, 1], gram[1, 1]
        found = Checkpoints(
            time=time,
            strength=jnp.sqrt(square),
            alignment=overlap / jnp.sqrt(square),
            distance=jnp.sqrt(jnp.maximum(square - 2 * overlap + 1, 0)),
            source_loss=gradient_at(transfer.pretraining, at).loss,
            target_loss=gradient_at(transfer.lora, at).loss,
            tuning=tuning,
            slope=jnp.where(jnp.isfinite(tuning.time), slope, jnp.nan),
        )
        unknown = jax.tree.map(lambda x: x & sound if x.dtype == bool else jnp.where(sound, x, jnp.nan), found)
        return eqx.tree_at(lambda c: c.time, unknown, time)

    return jax.vmap(one)(times, run.overlaps)


@dataclasses.dataclass(frozen=True)
class Turn:
    """A checkpoint: its pretraining time, its kind, "best" (a minimum of the cost), "worst" or "swept", and the cost."""

    at: float
    kind: str
    cost: float


@dataclasses.dataclass(frozen=True)
class Verdict:
    r"""Whether, and from where on, pretraining helps.

    - `swept`: the checkpoints at the times of the sweep; `turns`: where the cost turns between them;
    - `best`, `worst`: the checkpoints of least and largest cost among turns and swept ones; `last`: the last one that gets there;
    - `reached`: the pretraining times between which the goal is reached at all, None if it never is;
    - `kind`: a key of `VERDICTS`;
    - `critical`: the pretraining time beyond which more pretraining raises the cost until the end of the sweep; None if it
        does not.
    """

    swept: Checkpoints
    turns: tuple[Turn, ...]
    best: Turn | None
    worst: Turn | None
    last: Turn | None
    reached: tuple[float, float] | None
    kind: str
    critical: float | None


VERDICTS = {
    "helps": "more pretraining shortens fine-tuning",
    "hurts": "more pretraining lengthens fine-tuning",
    "optimum": "fine-tuning is fastest from a checkpoint in between",
    "barrier": "fine-tuning is slowest from a checkpoint in between",
    "both": "fine-tuning has a fastest and a slowest checkpoint in between",
    "mixed": "more pretraining now shortens, now lengthens fine-tuning; first or last is fastest",
    "indifferent": "fine-tuning takes as long from every checkpoint",
    "never": "the goal is reached from no checkpoint",
}
"""What the kinds of a verdict mean; changes below 1 % make none."""

_MATTERS = 0.01


def pretraining_times(
    transfer: Transfer, n: int, *, end: float | None = None, fraction: float = 1e-3
) -> Float[np.ndarray, " n"]:
    r"""n pretraining times: 0, and evenly in the logarithm up to `end`.

    Unless it is given that is when the source loss has fallen to `fraction` of its start. The flow is given 500 units of
    $1/E[\sigma'^2]$ for that; where it does not get there (searching, or kept from it by noise) this is the last time.
    """
    if end is None:
        end = _learnt(transfer, fraction)
    return np.concatenate([np.zeros(1), np.geomspace(end / 200, end, n - 1)])


def _learnt(transfer: Transfer, fraction: float) -> float:
    """When the source loss has fallen to `fraction` of its start, or when the flow is given up."""
    unit = 1 / float(self_moments(transfer.student, 1.0).cross)
    start = transfer.typical_start()
    run = solve(
        transfer.pretraining,
        start,
        t1=500 * unit,
        times=jnp.array([500 * unit]),
        escape=Escape("loss", fraction),
        origin=start,
        until_escape=True,
        finite_steps=True,
        max_steps=2**14,
    )
    return float(run.t_final)


def judge(transfer: Transfer, times: ArrayLike, goal: Escape | None = None, *, price: float = 0.0) -> Verdict:
    r"""Sweeps the pretraining `times`, finds where the cost turns and from where the goal is reached, and concludes.

    The cost of pretraining time T is the fine-tuning time plus `price` times T: with the price $\theta/\theta_s$, fine-tuning's
    noise scale over pretraining's, all samples spent over d, in units of 1/θ. Between two times of the sweep at which the
    cost's slope has different signs the turn is found as the slope's zero, and between a time from which the goal is reached and
    one from which it is not the border, by sections: the bracket is divided by as many new times as the sweep has,
    until it is shorter than 1e-6 of itself. A slope that changes its sign because the goal is not reached in between is no turn.

    **Raises** ArgumentError for no times or times that do not increase from 0 or later.
    """
    grid = np.asarray(times, float)
    require("times", grid, "at least one number", lambda x: x.ndim == 1 and x.size >= 1)
    require("times", grid, "increasing, from 0 or later", lambda x: x[0] >= 0 and bool(np.all(np.diff(x) > 0)))

    def costs(at: np.ndarray) -> tuple[Checkpoints, np.ndarray, np.ndarray]:
        swept = checkpoints(transfer, at, goal)
        return swept, np.asarray(swept.tuning.time) + price * at, np.asarray(swept.slope) + price

    def section(first: int, mark: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> tuple[float, float, float]:
        """The bracket in which a mark of cost and slope changes, refined, and the cost there."""
        low, high, cost = grid[first], grid[first + 1], np.nan
        while high - low > 1e-6 * high:
            inner = np.linspace(low, high, grid.size)
            _, values, slopes = costs(inner)
            marks = mark(values, slopes)
            place = int(np.argmax(marks != marks[0]))
            if place == 0:
                break
            low, high, cost = inner[place - 1], inner[place], values[place]
        return float(low), float(high), float(cost)

    swept, cost, slope = costs(grid)
    reached = np.isfinite(cost)
    if not reached.any():
        return Verdict(swept, (), None, None, None, None, "never", None)
    turns = []
    for i in np.flatnonzero(reached[1:] & reached[:-1] & (slope[1:] * slope[:-1] < 0)):
        low, high, value = section(int(i), lambda _, slopes: slopes > 0)
        if np.isfinite(value):
            turns.append(Turn((low + high) / 2, "best" if slope[i] < 0 else "worst", value))
    known = [Turn(float(t), "swept", float(c)) for t, c in zip(grid[reached], cost[reached], strict=True)]
    borders = [known[0].at, known[-1].at]
    for i in np.flatnonzero(reached[1:] != reached[:-1]):
        low, high, _ = section(int(i), lambda values, _: np.isfinite(values))
        if grid[i + 1] == borders[0]:
            borders[0] = high
        if grid[i] == borders[1]:
            borders[1] = low
    known = sorted([*known, *turns], key=lambda turn: turn.at)
    best, worst = (some(known, key=lambda turn: turn.cost) for some in (min, max))
    edges = borders[0], borders[1]
    return Verdict(swept, tuple(turns), best, worst, known[-1], edges, _kind(known), _critical(known))


def _kind(known: Sequence[Turn]) -> str:
    """The kind of verdict on the costs of checkpoints."""
    costs = np.array([turn.cost for turn in known])
    first, last, least, most = costs[0], costs[-1], costs.min(), costs.max()
    rises = bool(np.any(costs > (1 + _MATTERS) * np.minimum.accumulate(costs)))
    falls = bool(np.any(costs < (1 - _MATTERS) * np.maximum.accumulate(costs)))
    if not rises or not falls:
        return "hurts" if rises else "helps" if falls else "indifferent"
    dips, peaks = least < (1 - _MATTERS) * min(first, last), most > (1 + _MATTERS) * max(first, last)
    if dips and peaks:
        return "both"
    return "optimum" if dips else "barrier" if peaks else "mixed"


def _critical(known: Sequence[Turn]) -> float | None:
    """From where on the cost rises, by more than what matters, to the last checkpoint; None if it does not."""
    least = known[-1]
    for turn in reversed(known[:-1]):
        if turn.cost > (1 + _MATTERS) * least.cost:
            break
        least = min(least, turn, key=lambda some: some.cost)
    return least.at if known[-1].cost > (1 + _MATTERS) * least.cost else None
