r"""A block of seeds on its way: what a run of some seeds through all stages is, and when each of them escapes."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from odes import Escape, Overlaps, Problem, losses
from odes.devices import spread_batched
from odes.gaussian import has_closed_form
from odes.programs import ahead, program
from validation.simulation.result import references
from validation.simulation.simulator import Simulator


class Block(eqx.Module):
    """The records of some seeds (see [`validation.simulation.Simulation`][]) as NumPy arrays: what is computed, and kept, as a whole."""

    overlaps: Overlaps
    loss: Float[np.ndarray, "seeds T"]
    recorded: Int[np.ndarray, " seeds"]
    escape_times: Float[np.ndarray, " seeds"]


class Criterion(eqx.Module):
    """When a run escapes, and after how many steps each it is looked at."""

    escape: Escape
    every: Int[Array, ""]

    def resolved(self, problem: Problem, reference: Array | None) -> "Watched":
        """With the criterion's value at every seed's w0 (seeds,), for overlaps (seeds, K); None for the problem's frozen w0."""
        return Watched(self.escape, self.every, self.escape.reference(problem) if reference is None else reference)


class Watched(Criterion):
    """A criterion whose value at w0 is known, one for all seeds or one for each."""

    reference: Array

    def margin(self, problem: Problem, overlaps: Overlaps, loss: Array | None = None) -> Array:
        """How far every seed is from escape; its loss, where that is what is looked at, is computed unless given."""
        if self.escape.observable == "loss" and loss is None:
            loss = losses(problem, overlaps)
        return self.escape.distance(self.escape.value(problem, overlaps, loss), self.reference)


class Watch(eqx.Module):
    """What is known of the escape of every seed: its state, step and margin at the last look before it, and when it `met` the criterion.

    A look at a seed that has diverged does not count. `met` is a number of steps, NaN as long as the criterion has not been met;
    the margin is infinite before the first look.
    """

    state: Any
    step: Int[Array, " seeds"]
    margin: Float[Array, " seeds"]
    met: Float[Array, " seeds"]

    def looked(self, at: Array, states: Any, margin: Array) -> "Watch":
        """After a look at the step `at`; between two looks the margin is linear."""
        first = jnp.isinf(self.margin)
        fraction = jnp.where(first, 1, self.margin / (self.margin - margin))
        now = self.step.astype(margin.dtype) + fraction * (at - self.step).astype(margin.dtype)
        met = jnp.where(jnp.isnan(self.met) & (margin <= 0), now, self.met)
        going = jnp.isnan(met) & jnp.isfinite(margin)
        state = jax.tree.map(
            lambda new, old: jnp.where(going.reshape(-1, *[1] * (new.ndim - 1)), new, old), states, self.state
        )
        return Watch(state, jnp.where(going, at, self.step), jnp.where(going, margin, self.margin), met)


_LOOKS, _RARE_LOOKS = 1, 64
"""After so many steps each run is looked at; more rarely where the loss is a sum over thousands of nodes.

At learning rates beyond what is stable an escape may last for a step, and then the run diverges.
"""


def _between_looks(problem: Problem, escape: Escape) -> int:
    cheap = escape.observable == "overlap" or has_closed_form(problem.student, problem.teacher)
    return _LOOKS if cheap else _RARE_LOOKS


@program
def seed_keys(key: PRNGKeyArray, seeds: Int[Array, " n"], shared_start: bool = False) -> tuple[Array, Array]:
    """The keys for the starts and for the steps of the seeds with given numbers; they do not depend on which others there are."""
    pairs = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(seeds)
    first = jax.random.split(jax.random.fold_in(key, 0))[0]
    return jnp.broadcast_to(first, seeds.shape) if shared_start else pairs[:, 0], pairs[:, 1]


@program
def _starts(simulator: Simulator, keys: Array) -> Any:
    return jax.vmap(simulator.start)(keys)


@program
def _overlaps(simulator: Simulator, states: Any) -> Overlaps:
    real = jnp.result_type(float)
    return jax.vmap(lambda state: jax.tree.map(lambda x: x.astype(real), simulator.overlaps(state)))(states)


@program
def _taken_over(simulator: Simulator, before: Simulator, states: Any, restart: bool) -> Any:
    """The states of another simulator as those of this one; with U = 0 in the trained columns if it is to restart."""
    states = jax.vmap(lambda state: simulator.taken_over(state, before))(states)
    if not restart:
        return states
    kept = (1 - simulator.problem.adapter.trained).astype(states.up.dtype)
    return eqx.tree_at(lambda s: s.up, states, states.up * kept[None, None])


def _looked(simulator: Simulator, criterion: Watched, at: Array, watch: Watch, states: Any) -> Watch:
    margin = criterion.margin(simulator.problem, _overlaps(simulator, states))
    return watch.looked(at.astype(watch.step.dtype), states, margin)


def _advanced(
    simulator: Simulator,
    criterion: Criterion | None,
    reference: Array | None,
    states: Any,
    watch: Watch | None,
    keys: Array,
    passed: Array,
    first: Array,
    last: Array,
) -> tuple[Any, Watch | None, Overlaps, Array, Array]:
    """Every seed from step `first` to step `last`: states, the watch, overlaps, losses and whether the seed has escaped or diverged.

    Draws depend on the seed's key and on the step alone, counted from `passed` (seeds,) on. While they are watched
    for a `criterion`, they are looked at before every step whose number is a multiple of its `every`.
    """
    problem = simulator.problem
    watched = None if criterion is None else criterion.resolved(problem, reference)

    def advanced(i: Array, now: tuple[Any, Watch | None]) -> tuple[Any, Watch | None]:
        states, watch = now
        if watch is not None and watched is not None:
            look = functools.partial(_looked, simulator, watched, i)
            watch = jax.lax.cond(i % watched.every == 0, look, lambda watch, _: watch, watch, states)
        step = jax.vmap(lambda state, key, n: simulator.step(state, jax.random.fold_in(key, n + i)))
        return step(states, keys, passed), watch

    states, watch = jax.lax.fori_loop(first, last, advanced, (states, watch))
    overlaps = _overlaps(simulator, states)
    loss = losses(problem, overlaps)
    if watch is None or watched is None:
        return states, watch, overlaps, loss, jnp.zeros(loss.shape, bool)
    margin = watched.margin(problem, overlaps, loss)
    return states, watch, overlaps, loss, jnp.isfinite(watch.met) | (margin <= 0) | ~jnp.isfinite(margin)


def _on_devices(blocks: int) -> Callable[..., Any]:
    """[`_advanced`][] with the seeds of so many blocks split over as many devices, at most those that there are."""
    there = jax.local_devices()
    devices = None if len(there) == 1 else there[:blocks]
    return spread_batched(_advanced, in_axes=(None, None, 0, 0, 0, 0, 0, None, None), devices=devices)


def _unseen(states: Any) -> Watch:
    """The watch of states that have not been looked at."""
    seeds = jax.tree.leaves(states)[0].shape[0]
    real = jnp.result_type(float)
    nothing = np.zeros(seeds, jnp.result_type(int)), np.full(seeds, np.inf, real), np.full(seeds, np.nan, real)
    return Watch(states, *jax.device_put(nothing))


def _located(
    advance: Callable[..., Any],
    simulator: Simulator,
    criterion: Criterion,
    reference: Array | None,
    watch: Watch,
    keys: Array,
    passed: Array,
    done: Int[np.ndarray, " seeds"],
) -> Float[np.ndarray, " seeds"]:
    """The numbers of steps, up to `done`, at which the seeds escape: all steps after the last look before are taken again."""
    before = np.asarray(watch.step)
    again = eqx.tree_at(
        lambda w: (w.step, w.met), watch, jax.device_put((np.zeros_like(before), np.full(before.shape, np.nan)))
    )
    first, last, once = jax.device_put((np.asarray(0), np.asarray(int(criterion.every) + 1), np.asarray(1)))
    closely = Criterion(criterion.escape, once)
    _, found, *_ = advance(simulator, closely, reference, watch.state, again, keys, passed + watch.step, first, last)
    assert found is not None
    met = before + np.asarray(found.met)
    return np.where(met <= done, met, np.nan)


def _where(rows: Bool[np.ndarray, " seeds"], new: Any, old: Any) -> Any:
    """The rows of a tree of arrays that are new, and the others as they were."""
    return jax.tree.map(lambda x, y: jnp.where(rows.reshape(-1, *[1] * (x.ndim - 1)), x, y), new, old)


@dataclasses.dataclass(frozen=True)
class Course:
    """What the seeds of a simulation go through, stage after stage; plain data.

    `steps`: which are recorded in every stage. `key`: of all random numbers, with `shared_start` if all seeds start alike. `size`: of
    a block. `escape`: the criterion that is watched in the last stage, None without any; `ends`: whether it ends the run of a block;
    `since`: the stage whose start it is relative to, None for the frozen w0.
    """

    simulators: Sequence[Simulator]
    steps: Sequence[np.ndarray]
    restarts: Sequence[bool]
    key: PRNGKeyArray
    shared_start: bool
    size: int
    escape: Escape | None
    ends: bool
    since: int | None

    @property
    def length(self) -> int:
        """The number of steps."""
        return sum(int(chosen[-1]) for chosen in self.steps)

    @property
    def seed_memory(self) -> float:
        """The bytes of the records of a seed."""
        problem, records = self.simulators[-1].problem, sum(chosen.size for chosen in self.steps)
        units, rank = problem.units[0], problem.adapter.rank
        return 8.0 * records * (units * rank + rank * problem.frame_size + rank**2 + units + 1)

    def run(self, seeds: Int[np.ndarray, " n"], advanced: Callable[[int], Any]) -> list[Block]:
        """The blocks of the seeds with these numbers, which are advanced together; their number is a multiple of the block's size.

        `advanced` is called with every number of steps that has been taken. What a block's seeds do does not depend on
        which other blocks there are: each device has the seeds of as many.
        """
        ahead(lambda: self.run(seeds, advanced))
        starts, keys = seed_keys(self.key, jax.device_put(seeds), self.shared_start)
        last = len(self.simulators) - 1
        blocks = seeds.size // self.size
        advance = _on_devices(blocks)
        passed, reference, watch, criterion = 0, None, None, None
        states = _starts(self.simulators[0], starts)
        records: list[tuple[Overlaps, np.ndarray]] = []
        finished, times = np.zeros((blocks, self.size), bool), np.full(seeds.size, np.nan)
        taken, done_by = np.zeros(blocks, int), np.zeros(blocks, int)
        for number, (simulator, chosen, restart) in enumerate(
            zip(self.simulators, self.steps, self.restarts, strict=True)
        ):
            if number or restart:
                states = _taken_over(simulator, self.simulators[max(number - 1, 0)], states, restart)
            done = 0
            if self.escape is not None and number == self.since:
                reference = references(self.escape, self.simulators[-1].problem, _overlaps(simulator, states))
            if self.escape is not None and number == last:
                every = jax.device_put(np.asarray(_between_looks(simulator.problem, self.escape)))
                criterion, watch = Criterion(self.escape, every), _unseen(states)
            offsets = jax.device_put(np.full(seeds.size, passed))
            done_by[:] = 0
            for step in chosen:
                going = ~finished.all(axis=1) if self.ends else np.ones(blocks, bool)
                if not going.any():
                    break
                begin, end = jax.device_put((np.asarray(done), np.asarray(step)))
                states, seen, *record, now = advance(
                    simulator, criterion, reference, states, watch, keys, offsets, begin, end
                )
                watch = seen if going.all() else _where(np.repeat(going, self.size), seen, watch)
                records.append(jax.tree.map(np.asarray, tuple(record)))
                finished |= np.asarray(now).reshape(finished.shape) & np.expand_dims(going, 1)
                taken[going], done_by[going] = len(records), int(step)
                advanced(int(step) - done)
                done = int(step)
            passed += done
            if watch is not None and criterion is not None:
                at = np.repeat(done_by, self.size)
                times = _located(advance, simulator, criterion, reference, watch, keys, offsets, at)
        return self._blocks(records, taken, times)

    def _blocks(self, records: list[Any], taken: np.ndarray, times: np.ndarray) -> list[Block]:
        """The records block by block; after a block's early stop NaN."""
        nothing = jax.tree.map(lambda x: np.full_like(x, np.nan), records[-1])
        whole = records + [nothing] * (sum(chosen.size for chosen in self.steps) - len(records))
        overlaps, loss = jax.tree.map(lambda *x: np.stack(x, axis=1), *whole)
        blocks = []
        for number, count in enumerate(taken.tolist()):
            part = slice(number * self.size, (number + 1) * self.size)
            own, own_loss = jax.tree.map(lambda x, part=part: x[part], (overlaps, loss))
            for some in jax.tree.leaves((own, own_loss)):
                some[:, count:] = np.nan
            blocks.append(Block(own, own_loss, np.full(self.size, count), times[part]))
        return blocks

    def missing(self, count: int) -> Block:
        """The block of `count` seeds of which nothing is known."""
        keys = jax.eval_shape(lambda: seed_keys(self.key, jnp.arange(count)))[0]
        overlaps = jax.eval_shape(lambda k: _overlaps(self.simulators[0], _starts(self.simulators[0], k)), keys)
        records = sum(chosen.size for chosen in self.steps)
        unknown = jax.tree.map(lambda x: np.full((count, records, *x.shape[1:]), np.nan), overlaps)
        loss = np.full((count, records), np.nan)
        return Block(unknown, loss, np.zeros(count, int), np.full(count, np.nan))
