r"""Many seeds of a simulator, in blocks that fit into memory: early stop, progress, blocks that are kept as they come."""

import abc
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from tqdm import tqdm

from odes import Escape, Overlaps, Problem, gradient_at
from odes.arguments import ArrayLike, require
from validation.trajectories import Simulation

_AVERAGES_AT_ONCE = 64
"""Losses are evaluated for this many seeds together (one may need 15000 quadrature nodes)."""


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


class Block(eqx.Module):
    """The records of some seeds (see [`validation.Simulation`][]) as NumPy arrays: what is computed, and kept, as a whole."""

    overlaps: Overlaps
    loss: Float[np.ndarray, "seeds T"]
    recorded: Int[np.ndarray, " seeds"]


@eqx.filter_jit
def _starts(simulator: Simulator, keys: Array) -> Any:
    return jax.vmap(simulator.start)(keys)


@eqx.filter_jit
def _advance(
    simulator: Simulator, states: Any, keys: Array, first: Array, last: Array, until: Escape | None
) -> tuple[Any, Overlaps, Array, Array]:
    """Every seed from step `first` to step `last`: states, overlaps, losses and whether the seed needs no more steps.

    Draws depend on the seed's key and the step alone.
    """

    def one_seed(state: Any, key: PRNGKeyArray) -> Any:
        return jax.lax.fori_loop(first, last, lambda i, now: simulator.step(now, jax.random.fold_in(key, i)), state)

    states = jax.vmap(one_seed)(states, keys)
    real = jnp.result_type(float)
    overlaps = jax.vmap(lambda state: jax.tree.map(lambda x: x.astype(real), simulator.overlaps(state)))(states)

    problem = simulator.problem
    loss = jax.lax.map(lambda at: gradient_at(problem, at).loss, overlaps, batch_size=_AVERAGES_AT_ONCE)
    if until is None:
        return states, overlaps, loss, jnp.zeros(loss.shape, bool)
    margin = until.distance(until.value(problem, overlaps, loss), until.reference(problem))
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


def _run_block(
    simulator: Simulator,
    starts: Array,
    keys: Array,
    steps: np.ndarray,
    until: Escape | None,
    advanced: Callable[[int], Any],
) -> Block:
    """The records of the seeds with the given keys; after the early stop they are NaN."""
    states, done = _starts(simulator, starts), 0
    records: list[tuple[Overlaps, np.ndarray]] = []
    finished = np.zeros(keys.shape[0], bool)
    for step in steps:
        if until is not None and finished.all():
            break
        states, *record, now = _advance(simulator, states, keys, jnp.asarray(done), jnp.asarray(step), until)
        records.append(jax.tree.map(np.asarray, tuple(record)))
        finished |= np.asarray(now)
        advanced(int(step) - done)
        done = int(step)
    taken = np.full(keys.shape[0], len(records))
    nothing = jax.tree.map(lambda x: np.full_like(x, np.nan), records[-1])
    records.extend([nothing] * (steps.size - len(records)))
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

    **Raises** ValueError for fewer than one seed, a block of fewer than one and steps that do not increase.
    """
    require("seeds", seeds, "at least 1", lambda x: x >= 1)
    at_once = simulator.seeds_at_once if block is None else block
    require("block", at_once, "at least 1", lambda x: x >= 1)
    steps = checked_steps(steps)
    starts, keys = seed_keys(key, seeds, shared_start=shared_start)
    slices = block_slices(seeds, at_once)
    size = slices[0].stop
    blocks = []
    problem = simulator.problem
    where = f"strength {float(problem.strength):.4g}, " if problem.is_single_index else ""
    label = f"{where}{seeds} seeds, d = {float(problem.sgd.dimension):g}"
    hide = None if progress else True
    with tqdm(total=len(slices) * int(steps[-1]), unit="step", disable=hide, desc=label) as bar:
        for number, part in enumerate(slices):
            chosen = np.minimum(np.arange(part.start, part.start + size), seeds - 1)

            def compute(chosen=chosen, count=part.stop - part.start) -> Block:
                block = _run_block(simulator, starts[chosen], keys[chosen], steps, until, bar.update)
                return jax.tree.map(lambda x: x[:count], block)

            blocks.append(compute() if kept is None else kept(number, compute))
            bar.update((number + 1) * int(steps[-1]) - bar.n)
    return gather(simulator, blocks, steps)


def gather(simulator: Simulator, blocks: Iterable[Block], steps: np.ndarray) -> Simulation:
    """The [`Simulation`][] that the blocks of its seeds make up."""
    whole = jax.tree.map(lambda *x: jnp.asarray(np.concatenate(x)), *blocks)
    times = simulator.problem.sgd.learning_rate * jnp.asarray(steps, whole.loss.dtype)
    return Simulation(
        t=times,
        overlaps=whole.overlaps,
        loss=whole.loss,
        recorded=whole.recorded,
        problem=simulator.problem,
        method=simulator.method,
        dtype=simulator.dtype,
    )


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
