r"""Many seeds of a simulator, in blocks that fit into memory: stages, escape times, progress, blocks that are kept as they come."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from odes import Escape, Overlaps, Problem, Stage, losses
from odes.arguments import ArgumentError, ArrayLike, require, require_integer, require_key, require_kind
from odes.gaussian import has_closed_form
from odes.stages import require_alike, require_stage
from validation.progress import progress as progress_of
from validation.simulation.result import Simulation, even_records, references
from validation.simulation.simulator import Simulator


class Block(eqx.Module):
    """The records of some seeds (see [`validation.simulation.Simulation`][]) as NumPy arrays: what is computed, and kept, as a whole."""

    overlaps: Overlaps
    loss: Float[np.ndarray, "seeds T"]
    recorded: Int[np.ndarray, " seeds"]
    escape_times: Float[np.ndarray, " seeds"]


class Criterion(eqx.Module):
    """When a run escapes, and after how many steps each it is looked at.

    `reference` (seeds,), for overlaps (seeds, K), is the criterion's value at every seed's w0, None for the frozen w0 of the problem.
    """

    escape: Escape
    reference: Array | None
    every: Int[Array, ""]

    def resolved(self, problem: Problem) -> "Criterion":
        """The same with a reference in any case."""
        reference = self.escape.reference(problem) if self.reference is None else self.reference
        return Criterion(self.escape, reference, self.every)

    def margin(self, problem: Problem, overlaps: Overlaps, loss: Array | None = None) -> Array:
        """How far every seed is from escape; its loss, where that is what is looked at, is computed unless given."""
        assert self.reference is not None
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


Kept = Callable[[int, Callable[[], Block]], Block]
"""Called with a block's number and a function that computes it; returns the block, computed or stored."""


@eqx.filter_jit
def seed_keys(key: PRNGKeyArray, seeds: Int[Array, " n"], shared_start: bool = False) -> tuple[Array, Array]:
    """The keys for the starts and for the steps of the seeds with given numbers; they do not depend on which others there are."""
    pairs = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(seeds)
    first = jax.random.split(jax.random.fold_in(key, 0))[0]
    return jnp.broadcast_to(first, seeds.shape) if shared_start else pairs[:, 0], pairs[:, 1]


_strength = eqx.filter_jit(lambda problem: problem.strength)


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


def _looked(simulator: Simulator, criterion: Criterion, at: Array, watch: Watch, states: Any) -> Watch:
    margin = criterion.margin(simulator.problem, _overlaps(simulator, states))
    return watch.looked(at.astype(watch.step.dtype), states, margin)


@eqx.filter_jit
def _advance(
    simulator: Simulator,
    states: Any,
    watch: Watch | None,
    keys: Array,
    passed: Array,
    first: Array,
    last: Array,
    criterion: Criterion | None,
) -> tuple[Any, Watch | None, Overlaps, Array, Array]:
    """Every seed from step `first` to step `last`: states, the watch, overlaps, losses and whether the seed has escaped or diverged.

    Draws depend on the seed's key and on the step alone, counted from `passed` (seeds,) on. While they are watched
    for a `criterion`, they are looked at before every step whose number is a multiple of its `every`.
    """
    problem = simulator.problem
    watched = None if criterion is None else criterion.resolved(problem)

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


def _unseen(states: Any) -> Watch:
    """The watch of states that have not been looked at."""
    seeds = jax.tree.leaves(states)[0].shape[0]
    real = jnp.result_type(float)
    nothing = np.zeros(seeds, jnp.result_type(int)), np.full(seeds, np.inf, real), np.full(seeds, np.nan, real)
    return Watch(states, *jax.device_put(nothing))


def _located(
    simulator: Simulator, watch: Watch, keys: Array, passed: Array, done: int, criterion: Criterion
) -> Float[np.ndarray, " seeds"]:
    """The numbers of steps, up to `done`, at which the seeds escape: all steps after the last look before are taken again."""
    before = np.asarray(watch.step)
    again = eqx.tree_at(
        lambda w: (w.step, w.met), watch, jax.device_put((np.zeros_like(before), np.full(before.shape, np.nan)))
    )
    first, last, once = jax.device_put((np.asarray(0), np.asarray(int(criterion.every) + 1), np.asarray(1)))
    closely = Criterion(criterion.escape, criterion.reference, once)
    _, found, *_ = _advance(simulator, watch.state, again, keys, passed + watch.step, first, last, closely)
    assert found is not None
    met = before + np.asarray(found.met)
    return np.where(met <= done, met, np.nan)


def block_slices(seeds: int, at_once: int) -> list[slice]:
    """Blocks of equal size (the last may be shorter) that hold at most `at_once` seeds.

    >>> block_slices(10, 4)
    [slice(0, 4, None), slice(4, 8, None), slice(8, 10, None)]
    """
    count = -(-seeds // at_once)
    size = -(-seeds // count)
    return [slice(first, min(first + size, seeds)) for first in range(0, seeds, size)]


def simulate(simulator: Simulator, *, steps: ArrayLike, **options: Any) -> Simulation:
    """Independent seeds of a simulator, the overlaps recorded at chosen `steps`: [`simulate_stages`][] with one stage.

    `steps` (T,) are increasing step numbers, 0 for the start (see [`validation.simulation.even_steps`][]). For the `options` see
    [`simulate_stages`][].

    **Raises** ArgumentError for steps that do not increase.
    """
    chosen, problem = checked_steps("steps", steps), simulator.problem
    stage = Stage("simulation", problem, float(problem.sgd.learning_rate) * int(chosen[-1]))
    return simulate_stages([stage], lambda *_: simulator, records=[chosen], **options)[0]


def simulate_stages(
    stages: Sequence[Stage],
    simulator: Callable[[Problem, np.ndarray], Simulator],
    *,
    key: PRNGKeyArray,
    seeds: int,
    first_seed: int = 0,
    records: Sequence[int | ArrayLike],
    escape: Escape | None = None,
    until_escape: bool = False,
    since: int | None = None,
    shared_start: bool = False,
    block: int | None = None,
    progress: bool = False,
    kept: Kept | None = None,
) -> list[Simulation]:
    """Independent `seeds` that are trained in stages, each from where the one before has left off; a simulation of each stage.

    A stage takes the whole number of steps next to its duration over its learning rate; its times are its own, from 0. Memory
    is that of one block of seeds and of the records. A run to more steps or of more seeds continues the same random numbers, and
    recording more often does not change them.

    - `seeds`, `first_seed`: how many, and the number of the first. A seed's random numbers depend on the key and on its number alone;
    - `simulator`: of a stage's problem, with its recorded steps; all of the same kind;
    - `records`: for every stage the recorded steps (increasing, to the last one), or how many there are, evenly, after the start;
    - `escape`: find when every seed first meets this criterion in the last stage. It is looked at every step, and is linear
        between two; where the loss is a sum over thousands of nodes only every 64 steps, and at every step between the
        looks before and after. It is relative to the frozen w0 or, where nothing is frozen, to the whole student of every seed
        at the start of stage `since` (the last unless given);
    - `until_escape`: a block of seeds stops in the last stage once all its seeds have met the criterion or diverged to
        infinity; its later records are NaN;
    - `shared_start`: whether all seeds start alike, so that they differ by their data alone;
    - `block`: how many seeds may advance together; the simulators' `seeds_at_once` unless given. The same block gives the
        same numbers bit for bit, another one the same up to rounding;
    - `progress`: show on standard error how far it is ([`validation.progress.progress`][]);
    - `kept`: called with every block's number and a function that computes it; returns the block, computed or stored.

    **Raises** ArgumentError for fewer than one seed or stage, a block of fewer than one, records that do not fit the stages, numbers of
    stages that there are not, and if units, ranks, frames or dimensions differ.
    """
    require_key(key)
    require_integer("seeds", seeds, "a whole number of at least 1")
    require("seeds", seeds, "at least 1", lambda x: x >= 1)
    require_integer("first_seed", first_seed, "a whole number of at least 0")
    require("first_seed", first_seed, "at least 0, with all seeds below 2^32", lambda x: 0 <= x <= 2**32 - seeds)
    if escape is not None:
        require_kind("escape", escape, Escape, "an Escape, such as Escape('loss', 0.5)")
    steps = _checked(stages, records)
    since = len(stages) - 1 if since is None else since
    require_stage("since", since, stages)
    if until_escape and escape is None:
        raise ArgumentError("escape", "must be given where the run is to stop at it")
    if any(stage.problem.sgd.trains_readouts for stage in stages):  # they are part of the state from the start on
        stages = [dataclasses.replace(s, problem=s.problem.replace(trains_readouts=True)) for s in stages]
    from_start = escape is not None and not stages[-1].problem.has_frozen_weights
    simulators = [simulator(stage.problem, some) for stage, some in zip(stages, steps, strict=True)]
    at_once = min(some.seeds_at_once for some in simulators) if block is None else block
    require("block", at_once, "at least 1", lambda x: x >= 1)
    slices = block_slices(seeds, at_once)
    size, total = slices[0].stop, sum(int(some[-1]) for some in steps)
    problem = stages[-1].problem
    where = f"strength {float(_strength(problem)):.4g}, " if problem.is_single_index else ""
    label = f"{where}{seeds} seeds, d = {float(problem.sgd.dimension):g}"
    blocks = []
    with progress_of(total=len(slices) * total, unit="step", what=label, shown=progress) as bar:
        for number, part in enumerate(slices):
            chosen = first_seed + np.minimum(np.arange(part.start, part.start + size), seeds - 1)

            def compute(chosen=chosen, count=part.stop - part.start) -> Block:
                keys = seed_keys(key, jax.device_put(chosen), shared_start)
                restarts = [stage.restart for stage in stages]
                goal = _Goal(escape, until_escape, since if from_start else None)
                whole = _run_block(simulators, steps, restarts, *keys, goal, bar.update)
                return jax.tree.map(lambda x: x[:count], whole)

            blocks.append(compute() if kept is None else kept(number, compute))
            bar.update((number + 1) * total - bar.n)
    return _gathered(simulators, steps, blocks, first_seed + np.arange(seeds), escape)


@dataclasses.dataclass(frozen=True)
class _Goal:
    """Which criterion is watched, whether it ends the run, and the stage whose start it is relative to, None for the frozen w0."""

    escape: Escape | None
    ends: bool
    since: int | None


def _run_block(
    simulators: Sequence[Simulator],
    steps: Sequence[np.ndarray],
    restarts: Sequence[bool],
    starts: Array,
    keys: Array,
    goal: _Goal,
    advanced: Callable[[int], Any],
) -> Block:
    """The records of the seeds with the given keys, stage after stage, and when they escape in the last; after the early stop NaN."""
    passed, reference, watch, criterion = 0, None, None, None
    states = _starts(simulators[0], starts)
    records: list[tuple[Overlaps, np.ndarray]] = []
    finished, times = np.zeros(keys.shape[0], bool), np.full(keys.shape[0], np.nan)
    for number, (simulator, chosen, restart) in enumerate(zip(simulators, steps, restarts, strict=True)):
        if number or restart:
            states = _taken_over(simulator, simulators[max(number - 1, 0)], states, restart)
        done = 0
        if goal.escape is not None and number == goal.since:
            reference = references(goal.escape, simulators[-1].problem, _overlaps(simulator, states))
        if goal.escape is not None and number == len(simulators) - 1:
            every = jax.device_put(np.asarray(_between_looks(simulator.problem, goal.escape)))
            criterion, watch = Criterion(goal.escape, reference, every), _unseen(states)
        offsets = jax.device_put(np.full(finished.shape, passed))
        for step in chosen:
            if goal.ends and finished.all():
                break
            begin, end = jax.device_put((np.asarray(done), np.asarray(step)))
            states, watch, *record, now = _advance(simulator, states, watch, keys, offsets, begin, end, criterion)
            records.append(jax.tree.map(np.asarray, tuple(record)))
            finished |= np.asarray(now)
            advanced(int(step) - done)
            done = int(step)
        passed += done
        if watch is not None and criterion is not None:
            times = _located(simulator, watch, keys, offsets, done, criterion)
    taken = np.full(keys.shape[0], len(records))
    nothing = jax.tree.map(lambda x: np.full_like(x, np.nan), records[-1])
    records.extend([nothing] * (sum(chosen.size for chosen in steps) - len(records)))
    overlaps, loss = jax.tree.map(lambda *x: np.stack(x, axis=1), *records)
    return Block(overlaps=overlaps, loss=loss, recorded=taken, escape_times=times)


def _gathered(
    simulators: Sequence[Simulator],
    steps: Sequence[np.ndarray],
    blocks: Sequence[Block],
    seed: np.ndarray,
    escape: Escape | None,
) -> list[Simulation]:
    """The [`validation.simulation.Simulation`][] of every stage that the blocks of its seeds make up; the escape is in the last."""
    whole = jax.tree.map(lambda *x: np.concatenate(x), *blocks)
    simulations, first = [], 0
    for number, (simulator, chosen) in enumerate(zip(simulators, steps, strict=True), 1):
        part, last = slice(first, first + chosen.size), number == len(simulators)
        rate = np.asarray(simulator.problem.sgd.learning_rate)
        simulations.append(
            Simulation(
                t=jax.device_put(rate * chosen.astype(whole.loss.dtype)),
                overlaps=jax.tree.map(lambda x, part=part: jax.device_put(x[:, part]), whole.overlaps),
                loss=jax.device_put(whole.loss[:, part]),
                seed=jax.device_put(seed),
                recorded=jax.device_put(np.clip(whole.recorded - first, 0, chosen.size)),
                escape_times=jax.device_put(rate * (whole.escape_times if last else np.nan * whole.escape_times)),
                escape=escape if last else None,
                problem=simulator.problem,
                method=simulator.method,
                dtype=simulator.dtype,
            )
        )
        first += chosen.size
    return simulations


def checked_steps(name: str, steps: ArrayLike) -> np.ndarray:
    """The recorded steps as increasing, non-negative integers; ArgumentError with this name if they are not."""
    array = np.asarray(steps)
    allowed = "a list of increasing whole numbers from 0"
    require(name, array, allowed, lambda x: x.ndim == 1 and x.size > 0 and x.dtype.kind in "iuf")
    require(name, array, allowed, lambda x: np.all((x >= 0) & (x == np.round(x))))
    require(name, array, allowed, lambda x: np.all(np.diff(x) > 0))
    return array.astype(int)


def _checked(stages: Sequence[Stage], records: Sequence[int | ArrayLike]) -> list[np.ndarray]:
    """The recorded steps of every stage."""
    require_alike(stages)
    require("records", len(records), f"one for each of {len(stages)} stages", lambda n: n == len(stages))
    steps = []
    for stage, some in zip(stages, records, strict=True):
        last = round(float(stage.duration) / float(stage.problem.sgd.learning_rate))
        if np.ndim(some) == 0:
            require("records", some, "a whole number of at least 1", lambda n: (n >= 1) & (n == np.round(n)))
            steps.append(even_records(last, int(np.asarray(some))))
        else:
            steps.append(checked_steps("records", some))
            at_last = f"{last}, the steps of stage {stage.name!r}, at last"
            require("records", steps[-1][-1], at_last, lambda n, last=last: n == last)
    return steps
