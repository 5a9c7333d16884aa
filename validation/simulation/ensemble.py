r"""Many seeds of a simulator, in blocks that fit into memory: early stop, progress, blocks that are kept as they come."""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from tqdm import tqdm

from odes import Escape, Overlaps, Problem, losses
from odes.arguments import ArrayLike, require
from validation.simulation.result import Simulation, references


class Simulator(eqx.Module):
    """One seed of one-pass SGD at finite dimension: how it starts, what a step does, which overlaps it has."""

    problem: eqx.AbstractVar[Problem]
    method: eqx.AbstractVar[str]
    dtype: eqx.AbstractVar[str]

    @property
    @abc.abstractmethod
    def seeds_at_once(self) -> int:
        """How many seeds may advance together, for the sake of memory and cache."""

    @abc.abstractmethod
    def start(self, key: PRNGKeyArray) -> Any:
        """A random start."""

    @abc.abstractmethod
    def step(self, state: Any, key: PRNGKeyArray) -> Any:
        """One SGD step."""

    @abc.abstractmethod
    def overlaps(self, state: Any) -> Overlaps:
        """The overlaps of a state."""

    @abc.abstractmethod
    def taken_over(self, state: Any, before: "Simulator") -> Any:
        """The state in which another simulator of the same kind and frame, `before`, has left off, as one of this simulator."""


class Block(eqx.Module):
    """The records of some seeds (see [`validation.Simulation`][]) as NumPy arrays: what is computed, and kept, as a whole."""

    overlaps: Overlaps
    loss: Float[np.ndarray, "seeds T"]
    recorded: Int[np.ndarray, " seeds"]


@eqx.filter_jit
def _starts(simulator: Simulator, keys: Array) -> Any:
    return jax.vmap(simulator.start)(keys)


@eqx.filter_jit
def _overlaps(simulator: Simulator, states: Any) -> Overlaps:
    real = jnp.result_type(float)
    return jax.vmap(lambda state: jax.tree.map(lambda x: x.astype(real), simulator.overlaps(state)))(states)


@eqx.filter_jit
def _taken_over(simulator: Simulator, before: Simulator, states: Any, restart: bool) -> Any:
    """The states of another simulator as those of this one; with U = 0 in the trained columns if it is to restart."""
    states = jax.vmap(lambda state: simulator.taken_over(state, before))(states)
    if not restart:
        return states
    kept = (1 - simulator.problem.adapter.trained).astype(states.up.dtype)
    return eqx.tree_at(lambda s: s.up, states, states.up * kept[None, None])


@eqx.filter_jit
def _advance(
    simulator: Simulator,
    states: Any,
    keys: Array,
    first: Array,
    last: Array,
    until: Escape | None,
    reference: Array | None,
) -> tuple[Any, Overlaps, Array, Array]:
    """Every seed from step `first` to step `last`: states, overlaps, losses and whether the seed needs no more steps.

    Draws depend on the seed's key and the step alone. `reference` (seeds,) is the criterion's value at every seed's w0,
    None for the frozen w0 of the problem.
    """

    def one_seed(state: Any, key: PRNGKeyArray) -> Any:
        return jax.lax.fori_loop(first, last, lambda i, now: simulator.step(now, jax.random.fold_in(key, i)), state)

    states = jax.vmap(one_seed)(states, keys)
    overlaps, problem = _overlaps(simulator, states), simulator.problem
    loss = losses(problem, overlaps)
    if until is None:
        return states, overlaps, loss, jnp.zeros(loss.shape, bool)
    at_w0 = until.reference(problem) if reference is None else reference
    margin = until.distance(until.value(problem, overlaps, loss), at_w0)
    return states, overlaps, loss, (margin <= 0) | ~jnp.isfinite(margin)


def seed_keys(key: PRNGKeyArray, seeds: int, *, shared_start: bool = False) -> tuple[Array, Array]:
    """Every seed's keys for its start and for its steps; the first seeds' keys do not depend on how many follow."""
    pairs = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(jnp.arange(seeds))
    starts = jnp.broadcast_to(pairs[0, 0], (seeds,)) if shared_start else pairs[:, 0]
    return starts, pairs[:, 1]


def block_slices(seeds: int, at_once: int) -> list[slice]:
    """Blocks of equal size (the last may be shorter) that hold at most `at_once` seeds.

    >>> block_slices(10, 4)
    [slice(0, 4, None), slice(4, 8, None), slice(8, 10, None)]
    """
    count = -(-seeds // at_once)
    size = -(-seeds // count)
    return [slice(first, min(first + size, seeds)) for first in range(0, seeds, size)]


@dataclasses.dataclass(frozen=True)
class Leg:
    """A stage of a simulation: its simulator, the recorded steps of the stage (increasing, from 0), and whether U restarts."""

    simulator: Simulator
    steps: np.ndarray
    restart: bool = False


def _run_block(
    legs: Sequence[Leg],
    starts: Array,
    keys: Array,
    until: Escape | None,
    since: int | None,
    advanced: Callable[[int], Any],
) -> Block:
    """The records of the seeds with the given keys, stage after stage; after the early stop they are NaN."""
    simulator, passed, reference = legs[0].simulator, 0, None
    states = _starts(simulator, starts)
    records: list[tuple[Overlaps, np.ndarray]] = []
    finished = np.zeros(keys.shape[0], bool)
    for number, leg in enumerate(legs):
        if number:
            states = _taken_over(leg.simulator, simulator, states, leg.restart)
        simulator, stop, done = leg.simulator, until if number == len(legs) - 1 else None, 0
        if until is not None and number == since:
            reference = references(until, legs[-1].simulator.problem, _overlaps(simulator, states))
        for step in leg.steps:
            if finished.all():
                break
            ends = jnp.asarray(passed + done), jnp.asarray(passed + step)
            states, *record, now = _advance(simulator, states, keys, *ends, stop, None if stop is None else reference)
            records.append(jax.tree.map(np.asarray, tuple(record)))
            finished |= np.asarray(now)
            advanced(int(step) - done)
            done = int(step)
        passed += done
    taken = np.full(keys.shape[0], len(records))
    nothing = jax.tree.map(lambda x: np.full_like(x, np.nan), records[-1])
    records.extend([nothing] * (sum(leg.steps.size for leg in legs) - len(records)))
    overlaps, loss = jax.tree.map(lambda *x: np.stack(x, axis=1), *records)
    return Block(overlaps=overlaps, loss=loss, recorded=taken)


def simulate(
    simulator: Simulator,
    *,
    key: PRNGKeyArray,
    seeds: int,
    steps: ArrayLike,
    until: Escape | None = None,
    shared_start: bool = False,
    block: int | None = None,
    progress: bool = False,
    kept: Callable[[int, Callable[[], Block]], Block] | None = None,
) -> Simulation:
    """Independent `seeds` of a simulator, the overlaps recorded at chosen `steps`.

    Time is t = η * step. Memory is that of one block of seeds and of the records. A run to more steps or of more seeds
    continues the same random numbers, and recording more often does not change them.

    - `steps` (T,): increasing step numbers, 0 for the start (see [`validation.even_steps`][]);
    - `until`: a block of seeds stops once all its seeds have met this criterion, or left the range of floating point
        numbers; its later records are NaN;
    - `shared_start`: whether all seeds start alike, so that they differ by their data alone;
    - `block`: how many seeds may advance together; the simulator's `seeds_at_once` unless given. The same block gives the
        same numbers bit for bit, another one the same up to rounding;
    - `progress`: show a progress bar on standard error if that is a terminal;
    - `kept`: called with every block's number and a function that computes it; returns the block, computed or stored.

    **Raises** ArgumentError for fewer than one seed, a block of fewer than one and steps that do not increase.
    """
    require("seeds", seeds, "at least 1", lambda x: x >= 1)
    at_once = simulator.seeds_at_once if block is None else block
    require("block", at_once, "at least 1", lambda x: x >= 1)
    legs = [Leg(simulator, checked_steps(steps))]
    keys = seed_keys(key, seeds, shared_start=shared_start)
    return _simulate(legs, keys, at_once, until, None, progress, kept)[0]


def simulate_stages(
    simulators: Sequence[Simulator],
    *,
    key: PRNGKeyArray,
    seeds: int,
    steps: Sequence[ArrayLike],
    until: Escape | None = None,
    since: int | None = None,
    restarts: Sequence[int] = (),
    progress: bool = False,
    kept: Callable[[int, Callable[[], Block]], Block] | None = None,
) -> list[Simulation]:
    """Independent `seeds` that are trained in stages, each a simulator of the same kind, frame and rank with its own `steps`.

    Every stage begins where the one before has left off; its times are its own, from 0. The simulation of each stage is
    returned. `until` stops a block in the last stage; it is measured from the w0 that every seed has at the beginning of
    stage `since` (the last unless given). At the `restarts`, numbers of stages, the trained columns of U become 0. For all
    else see [`validation.simulate`][].

    **Raises** ArgumentError if there are not as many lists of steps as simulators, for numbers of stages that there are not, and
    if frames, ranks or dimensions differ.
    """
    require("seeds", seeds, "at least 1", lambda x: x >= 1)
    require("simulators", len(simulators), "at least one", lambda n: n >= 1)
    require("steps", len(steps), f"one list for each of {len(simulators)} stages", lambda n: n == len(simulators))
    legs = [
        Leg(simulator, checked_steps(some), number in restarts)
        for number, (simulator, some) in enumerate(zip(simulators, steps, strict=True))
    ]
    first = simulators[0].problem
    for simulator in simulators:
        same = simulator.problem.adapter.rank == first.adapter.rank and np.array_equal(
            simulator.problem.frame_gram, first.frame_gram
        )
        require("simulators", same, "of the same frame and rank", bool)
        require(
            "dimension",
            simulator.problem.sgd.dimension,
            f"{float(first.sgd.dimension):g} in every stage",
            lambda d: d == float(first.sgd.dimension),
        )
    since = len(legs) - 1 if since is None else since
    require("since", since, "the number of a stage", lambda n: (n >= 0) & (n < len(legs)))
    require("restarts", np.asarray(restarts), "numbers of stages after the first", lambda n: (n > 0) & (n < len(legs)))
    at_once = min(simulator.seeds_at_once for simulator in simulators)
    return _simulate(legs, seed_keys(key, seeds), at_once, until, since, progress, kept)


def _simulate(
    legs: Sequence[Leg],
    seeds_keys: tuple[Array, Array],
    at_once: int,
    until: Escape | None,
    since: int | None,
    progress: bool,
    kept: Callable[[int, Callable[[], Block]], Block] | None,
) -> list[Simulation]:
    starts, keys = seeds_keys
    seeds = keys.shape[0]
    slices = block_slices(seeds, at_once)
    size, total = slices[0].stop, sum(int(leg.steps[-1]) for leg in legs)
    problem = legs[-1].simulator.problem
    where = f"strength {float(problem.strength):.4g}, " if problem.is_single_index else ""
    label = f"{where}{seeds} seeds, d = {float(problem.sgd.dimension):g}"
    blocks = []
    with tqdm(total=len(slices) * total, unit="step", disable=None if progress else True, desc=label) as bar:
        for number, part in enumerate(slices):
            chosen = np.minimum(np.arange(part.start, part.start + size), seeds - 1)

            def compute(chosen=chosen, count=part.stop - part.start) -> Block:
                block = _run_block(legs, starts[chosen], keys[chosen], until, since, bar.update)
                return jax.tree.map(lambda x: x[:count], block)

            blocks.append(compute() if kept is None else kept(number, compute))
            bar.update((number + 1) * total - bar.n)
    return gather(legs, blocks)


def gather(legs: Sequence[Leg], blocks: Iterable[Block]) -> list[Simulation]:
    """The [`Simulation`][] of every stage that the blocks of its seeds make up."""
    whole = jax.tree.map(lambda *x: np.concatenate(x), *blocks)
    simulations, first = [], 0
    for leg in legs:
        part = slice(first, first + leg.steps.size)
        simulations.append(
            Simulation(
                t=leg.simulator.problem.sgd.learning_rate * jnp.asarray(leg.steps, whole.loss.dtype),
                overlaps=jax.tree.map(lambda x, part=part: jnp.asarray(x[:, part]), whole.overlaps),
                loss=jnp.asarray(whole.loss[:, part]),
                recorded=jnp.asarray(np.clip(whole.recorded - first, 0, leg.steps.size)),
                problem=leg.simulator.problem,
                method=leg.simulator.method,
                dtype=leg.simulator.dtype,
            )
        )
        first += leg.steps.size
    return simulations


def checked_steps(steps: ArrayLike) -> np.ndarray:
    """The recorded steps as increasing, non-negative integers."""
    array = np.asarray(steps)
    allowed = "a list of increasing whole numbers from 0"
    require("steps", array, allowed, lambda x: x.ndim == 1 and x.size > 0 and np.all(x >= 0))
    require("steps", array, allowed, lambda x: np.all(np.diff(x) > 0))
    return array.astype(int)


def whole_number(name: str, value: Array) -> int:
    """A problem's field that a simulator needs to be a finite integer."""
    require(name, value, "a whole number to simulate", lambda x: np.isfinite(x) & (x == np.round(x)))
    return int(value)
