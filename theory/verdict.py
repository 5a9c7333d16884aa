r"""The verdict on a pretraining run: which checkpoint is fine-tuned fastest, and from where on more pretraining hurts."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from odes import Escape, Transfer
from odes.arguments import ArrayLike, require
from theory.meanings import Meaning
from theory.pretraining import Checkpoints, begin, one_of_each, pretrained_until, random_pretrainings, tuned_from

_MATTERS = 0.01
"""Changes of the cost below 1 % do not count."""

_WIDTH, _ROUGH = 1e-6, 1e-2
"""Places between two checkpoints are located to this part of the pretraining time; those of means over random pretrainings, which are
known to a few parts in a hundred, to the second."""


class Effect(Meaning):
    """What more pretraining does to fine-tuning; changes of the cost below 1 % do not count."""

    helps = "more pretraining shortens fine-tuning"
    hurts = "more pretraining lengthens fine-tuning"
    optimum = "fine-tuning is fastest from a checkpoint in between"
    barrier = "fine-tuning is slowest from a checkpoint in between"
    both = "fine-tuning has a fastest and a slowest checkpoint in between"
    mixed = "more pretraining now shortens, now lengthens fine-tuning; first or last is fastest"
    indifferent = "fine-tuning takes as long from every checkpoint"
    never = "the goal is reached from no checkpoint"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A checkpoint with its cost: the pretraining time `at` which it is, and whether it is "swept", the "best" or "worst" nearby, or in a
    "gap" from which the goal is not reached."""

    at: float
    kind: str
    cost: float


@dataclasses.dataclass(frozen=True)
class Verdict:
    r"""Whether, and from where on, pretraining helps.

    - `swept`: the checkpoints at the times of the sweep; `turns`: the checkpoints between them where the cost stops falling
        or rising;
    - `best`, `worst`: the checkpoints of least and largest cost among all these; `last`: the latest from which the goal is reached;
    - `reached`: the intervals of pretraining times from which the goal is reached, in order;
    - `kind`: what is concluded; a gap between two intervals is a barrier;
    - `critical`: the pretraining time beyond which more pretraining raises the cost until the end of the sweep; None if it
        does not.
    """

    swept: Checkpoints
    turns: tuple[Candidate, ...]
    best: Candidate | None
    worst: Candidate | None
    last: Candidate | None
    reached: tuple[tuple[float, float], ...]
    kind: Effect
    critical: float | None


def judge(
    transfer: Transfer,
    times: ArrayLike,
    goal: Escape | None = None,
    *,
    price: float = 0.0,
    swept: Checkpoints | None = None,
) -> Verdict:
    r"""Sweeps the pretraining `times`, finds where the cost turns and from where the goal is reached, and concludes.

    The cost of pretraining time T is the fine-tuning time plus `price` times T: with the price $\theta/\theta_s$, fine-tuning's
    noise scale over pretraining's, all samples spent over d, in units of 1/θ. Between two times of the sweep at which the
    cost's slope has different signs the turn is found as the slope's zero, and between a time from which the goal is reached and
    one from which it is not the border, by Chandrupatla's method, to 1e-6 of the time (1e-2 for several units). A slope that changes
    its sign because the goal is not reached in between is no turn. `swept` are the checkpoints at these times if they are known already.

    **Raises** ArgumentError for no times or times that do not increase from 0 or later.
    """
    from scipy.optimize import elementwise

    grid = np.asarray(times, float)
    require("times", grid, "at least one number", lambda x: x.ndim == 1 and x.size >= 1)
    require("times", grid, "increasing, from 0 or later", lambda x: x[0] >= 0 and bool(np.all(np.diff(x) > 0)))
    begin(transfer, goal, end=float(grid[-1]))
    run = pretrained_until(transfer, float(grid[-1]))
    others = random_pretrainings(transfer, run)

    def costs(at: np.ndarray, known: Checkpoints | None = None) -> tuple[Checkpoints, np.ndarray, np.ndarray]:
        found = tuned_from(transfer, run, at, goal, others=others) if known is None else known
        return found, np.asarray(found.tuning.time) + price * at, np.asarray(found.slope) + price

    width = _WIDTH if one_of_each(transfer) else _ROUGH

    def located(function, first: np.ndarray):
        """The zeros of a function of the time between grid times and the next ones."""
        return elementwise.find_root(
            function, (grid[first], grid[first + 1]), tolerances={"xatol": 0, "xrtol": width, "fatol": 0, "frtol": 0}
        )

    swept, cost, slope = costs(grid, swept)
    reached = np.isfinite(cost)
    if not reached.any():
        return Verdict(swept, (), None, None, None, (), Effect.never, None)
    turns: list[Candidate] = []
    signs = np.flatnonzero(reached[1:] & reached[:-1] & (slope[1:] * slope[:-1] < 0))
    if signs.size:
        zeros = located(lambda at: np.nan_to_num(costs(at)[2], nan=-1.0), signs)  # what is not known does not rise
        values = costs(zeros.x)[1]
        for i, at, value in zip(signs, zeros.x.tolist(), values.tolist(), strict=True):
            if np.isfinite(value):
                turns.append(Candidate(at, "best" if slope[i] < 0 else "worst", value))
    known = [Candidate(float(t), "swept", float(c)) for t, c in zip(grid[reached], cost[reached], strict=True)]
    edges = [known[0].at] if reached[0] else []
    borders = np.flatnonzero(reached[1:] != reached[:-1])
    if borders.size:
        ends = located(lambda at: np.where(np.isfinite(costs(at)[1]), 1.0, -1.0), borders).bracket
        edges += [float(high if reached[i + 1] else low) for i, low, high in zip(borders, *ends, strict=True)]
    if reached[-1]:
        edges.append(known[-1].at)
    intervals = tuple(zip(edges[::2], edges[1::2], strict=True))
    known = sorted([*known, *turns], key=lambda candidate: candidate.at)
    best, worst = (some(known, key=lambda candidate: candidate.cost) for some in (min, max))
    gaps = [Candidate((low + high) / 2, "gap", np.inf) for (_, low), (high, _) in itertools.pairwise(intervals)]
    every = sorted([*known, *gaps], key=lambda candidate: candidate.at)
    return Verdict(swept, tuple(turns), best, worst, known[-1], intervals, _kind(every), _critical(every))


def _kind(known: Sequence[Candidate]) -> Effect:
    """The kind of verdict on the costs of checkpoints."""
    costs = np.array([candidate.cost for candidate in known])
    first, last, least, most = costs[0], costs[-1], costs.min(), costs.max()
    rises = bool(np.any(costs > (1 + _MATTERS) * np.minimum.accumulate(costs)))
    falls = bool(np.any(costs < (1 - _MATTERS) * np.maximum.accumulate(costs)))
    if not rises or not falls:
        return Effect.hurts if rises else Effect.helps if falls else Effect.indifferent
    dips, peaks = least < (1 - _MATTERS) * min(first, last), most > (1 + _MATTERS) * max(first, last)
    if dips and peaks:
        return Effect.both
    return Effect.optimum if dips else Effect.barrier if peaks else Effect.mixed


def _critical(known: Sequence[Candidate]) -> float | None:
    """From where on the cost rises, by more than what matters, to the last checkpoint; None if it does not."""
    least = known[-1]
    for candidate in reversed(known[:-1]):
        if candidate.cost > (1 + _MATTERS) * least.cost:
            break
        least = min(least, candidate, key=lambda some: some.cost)
    return least.at if known[-1].cost > (1 + _MATTERS) * least.cost else None
