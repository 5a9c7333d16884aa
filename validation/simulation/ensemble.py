r"""Many seeds of a simulator, in blocks that fit into memory: stages, escape times, progress, blocks that are kept as they come."""

import dataclasses
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from odes import Escape, Problem, Stage
from odes.arguments import ArgumentError, ArrayLike, require, require_integer, require_key, require_kind
from odes.devices import machine_memory
from odes.programs import program
from odes.stages import require_alike, require_stage
from validation.jobs.engine import Advanced, Failure, all_results, carry_out
from validation.jobs.parts import Parts
from validation.simulation.blocks import Block, Course
from validation.simulation.result import Simulation, even_records
from validation.simulation.simulator import Simulator, require_memory

_COPIES = 3
"""The records of a simulation are in memory so many times: as blocks, joined, and as JAX's arrays."""


@program
def _strength(problem: Problem) -> jax.Array:
    return problem.strength


def block_slices(seeds: int, at_once: int) -> list[slice]:
    """Blocks of equal size (the last may be shorter) that hold at most `at_once` seeds.

    >>> block_slices(10, 4)
    [slice(0, 4, None), slice(4, 8, None), slice(8, 10, None)]
    """
    count = -(-seeds // at_once)
    size = -(-seeds // count)
    return [slice(first, min(first + size, seeds)) for first in range(0, seeds, size)]


@dataclasses.dataclass(frozen=True)
class BlockJob:
    """A block of the seeds of a simulation, to be computed; the last ones of its `seeds` may only fill it up to the `count`."""

    name: str
    course: Course
    seeds: np.ndarray
    count: int

    @property
    def size(self) -> int:
        """The number of steps."""
        return self.course.length

    @property
    def memory(self) -> float:
        """The bytes of its records."""
        return self.count * self.course.seed_memory

    def run(self, advanced: Advanced) -> Block:
        """The block."""
        return together([self], advanced)[0]


def together(jobs: Sequence[BlockJob], advanced: Advanced) -> list[Block]:
    """The blocks of some jobs of one simulation, advanced together, each on a device of its own as far as there are devices."""
    blocks = jobs[0].course.run(np.concatenate([job.seeds for job in jobs]), lambda n: advanced(n * len(jobs)))
    return [jax.tree.map(lambda x, n=job.count: x[:n], block) for job, block in zip(jobs, blocks, strict=True)]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A simulation before it is run: its `jobs`, one for each block, and what their results are put together to."""

    name: str
    course: Course
    seeds: np.ndarray

    @property
    def jobs(self) -> list[BlockJob]:
        """The blocks to be computed."""
        jobs = []
        for part in block_slices(self.seeds.size, self.course.size):
            places = np.minimum(np.arange(part.start, part.start + self.course.size), self.seeds.size - 1)
            name = f"{self.name}-seeds-{self.seeds[part.start]}-to-{self.seeds[part.stop - 1]}"
            jobs.append(BlockJob(name, self.course, self.seeds[places], part.stop - part.start))
        return jobs

    @property
    def memory(self) -> float:
        """The bytes of all records."""
        return self.seeds.size * self.course.seed_memory

    @property
    def words(self) -> str:
        """What is simulated."""
        problem = self.course.simulators[-1].problem
        where = f"strength {float(_strength(problem)):.4g}, " if problem.is_single_index else ""
        return f"{where}{self.seeds.size} seeds, d = {float(problem.sgd.dimension):g}"

    def gathered(self, blocks: Sequence[Block]) -> list[Simulation]:
        """The [`validation.simulation.Simulation`][] of every stage that the blocks make up; the escape is in the last."""
        whole = jax.tree.map(lambda *x: np.concatenate(x), *blocks)
        simulations, first = [], 0
        for number, (simulator, chosen) in enumerate(zip(self.course.simulators, self.course.steps, strict=True), 1):
            part, last = slice(first, first + chosen.size), number == len(self.course.simulators)
            rate = np.asarray(simulator.problem.sgd.learning_rate)
            simulations.append(
                Simulation(
                    t=jax.device_put(rate * chosen.astype(whole.loss.dtype)),
                    overlaps=jax.tree.map(lambda x, part=part: jax.device_put(x[:, part]), whole.overlaps),
                    loss=jax.device_put(whole.loss[:, part]),
                    seed=jax.device_put(self.seeds),
                    recorded=jax.device_put(np.clip(whole.recorded - first, 0, chosen.size)),
                    escape_times=jax.device_put(rate * (whole.escape_times if last else np.nan * whole.escape_times)),
                    escape=self.course.escape if last else None,
                    problem=simulator.problem,
                    method=simulator.method,
                    dtype=simulator.dtype,
                )
            )
            first += chosen.size
        return simulations


def simulate(simulator: Simulator, *, steps: ArrayLike, **options: Any) -> Simulation:
    """Independent seeds of a simulator, the overlaps recorded at chosen `steps`: [`simulate_stages`][] with one stage.

    `steps` (T,) are increasing step numbers, 0 for the start (see [`validation.simulation.even_steps`][]). For the `options` see
    [`simulate_stages`][].

    **Raises** ArgumentError for steps that do not increase.
    """
    return simulate_stages(*one_stage(simulator, steps), **options)[0]


def one_stage(simulator: Simulator, steps: ArrayLike) -> tuple[list[Stage], Any, list[np.ndarray]]:
    """The arguments of [`planned`][] for one stage of a simulator, recorded at some steps."""
    chosen, problem = checked_steps("steps", steps), simulator.problem
    stage = Stage("simulation", problem, float(problem.sgd.learning_rate) * int(chosen[-1]))
    return [stage], lambda *_: simulator, [chosen]


def simulate_stages(
    stages: Sequence[Stage],
    simulator: Callable[[Problem, np.ndarray], Simulator],
    records: Sequence[int | ArrayLike],
    *,
    progress: bool = False,
    executor: Executor | None = None,
    retries: int = 0,
    parts: Parts | None = None,
    **options: Any,
) -> list[Simulation]:
    """Independent seeds that are trained in stages, each from where the one before has left off; a simulation of each stage.

    A stage takes the whole number of steps next to its duration over its learning rate; its times are its own, from 0. Memory
    is that of one block of seeds on each device, and of the records. A run to more steps or of more seeds continues the same random
    numbers, and recording more often does not change them.

    - `simulator`: of a stage's problem, with its recorded steps; all of the same kind;
    - `records`: for every stage the recorded steps (increasing, to the last one), or how many there are, evenly, after the start;
    - `progress`: show on standard error how far it is (`validation.progress.progress`);
    - `executor`: any `concurrent.futures.Executor`, which computes blocks side by side; this process unless given, with as many
        blocks at a time as JAX has devices. The numbers are the same bit for bit;
    - `retries`: so often a block that fails is tried again;
    - `parts`: where finished blocks are kept, from which a run goes on ([`validation.jobs.parts.Parts`][]);
    - all other `options` are those of [`planned`][].

    **Raises** ArgumentError as [`planned`][] does, and what a block raises that cannot be computed.
    """
    plan = planned(stages, simulator, records, **options)
    require_room([plan])
    work = {"executor": executor, "retries": retries, "parts": parts, "progress": progress}
    return plan.gathered(all_results(computed(plan.jobs, what=plan.words, **work)))


def require_room(plans: Sequence[Plan]) -> None:
    """Raises ArgumentError, before anything is computed, if the records of one of the plans would not fit into this machine's memory."""
    needed = _COPIES * max(plan.memory for plan in plans)
    require_memory(
        needed, "keeping all records of all seeds (fewer --records, or parts with --seed-offset)", machine_memory()
    )


def computed(jobs: Sequence[BlockJob], **options: Any) -> Generator[tuple[int, Block | Failure]]:
    """The blocks of some jobs as they come ([`validation.jobs.engine.carry_out`][] with its `options`)."""
    devices = jax.local_device_count()
    return carry_out(jobs, unit="step", at_once=devices, together=together, alike=lambda job: id(job.course), **options)


def planned(
    stages: Sequence[Stage],
    simulator: Callable[[Problem, np.ndarray], Simulator],
    records: Sequence[int | ArrayLike],
    *,
    key: PRNGKeyArray,
    seeds: int,
    first_seed: int = 0,
    escape: Escape | None = None,
    until_escape: bool = False,
    since: int | None = None,
    shared_start: bool = False,
    block: int | None = None,
    name: str = "simulation",
) -> Plan:
    """The simulation of [`simulate_stages`][], to be run.

    - `seeds`, `first_seed`: how many, and the number of the first. A seed's random numbers depend on the key and on its number alone;
    - `escape`: find when every seed first meets this criterion in the last stage. It is looked at every step, and is linear
        between two; where the loss is a sum over thousands of nodes only every 64 steps, and at every step between the
        looks before and after. It is relative to the frozen w0 or, where nothing is frozen, to the whole student of every seed
        at the start of stage `since` (the last unless given);
    - `until_escape`: a block of seeds stops in the last stage once all its seeds have met the criterion or diverged to
        infinity; its later records are NaN;
    - `shared_start`: whether all seeds start alike, so that they differ by their data alone;
    - `block`: how many seeds may advance together; the simulators' `seeds_at_once` unless given. The same block gives the
        same numbers bit for bit, another one the same up to rounding;
    - `name`: what its blocks are called.

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
    course = Course(
        simulators=simulators,
        steps=steps,
        restarts=[stage.restart for stage in stages],
        key=key,
        shared_start=shared_start,
        size=block_slices(seeds, at_once)[0].stop,
        escape=escape,
        ends=until_escape,
        since=since if from_start else None,
    )
    return Plan(name, course, first_seed + np.arange(seeds))


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
