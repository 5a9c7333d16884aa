"""Simulations of several problems in one call, which go on where they were interrupted."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from odes import Escape, Problem
from odes.arguments import ArgumentError
from odes.storage import open_dataset, provenance
from validation.jobs.engine import Failure, give_up
from validation.jobs.parts import Parts, differing, refuse_other
from validation.simulation.ensemble import Plan, computed, one_stage, planned, require_room
from validation.simulation.result import Simulation, joined
from validation.simulation.simulator import Simulator
from validation.simulation.sweeps import Place, Simulations, Sweep, places_of, stored


def simulate_points(
    problems: Sequence[Problem],
    simulator: Callable[[Problem], Simulator],
    *,
    places: Sequence[Place],
    key: PRNGKeyArray,
    seeds: int,
    first_seed: int = 0,
    steps: Sequence[np.ndarray],
    escape: Escape | None = None,
    until_escape: bool = False,
    block: int | None = None,
    parts: Parts | None = None,
    **work: Any,
) -> Sweep:
    """The simulation of every problem; computed, or read where `parts` have it, and then stored.

    Seeds have the same random numbers at every point, so that a point's result does not depend on the others; what differs
    between points has a smaller error than two independent runs would give it. Of a finished file of fewer seeds the others are
    computed and added. `places` say where the points are. `work` are `executor`, `retries` and `progress`; for all else see
    [`validation.simulation.simulate_stages`][].

    Blocks are kept on disk as they come, without `parts` in a temporary folder for as long as the result is used, and the simulations are
    read from there: memory is that of the blocks at work and of one point, however many points there are.

    A block that fails costs its own seeds alone; then the final file is not written, and `parts` keep the others.

    **Raises** ArgumentError for a final file that other settings made, unless parts show that it is to be replaced, and for records that
    there is no room for, in memory or on disk; what the first block raised if all failed.
    """
    there, before = 0, None
    if parts is not None and (finished := _finished(parts)) is not None:
        numbers = finished["seed"].values.tolist()
        if places_of(finished) != list(places) or numbers != [first_seed + i for i in range(len(numbers))]:
            raise ArgumentError(None, f"{parts.path} holds other points or seeds: name another --output")
        before, there = stored(finished.isel(seed=slice(seeds)), problems, escape), min(seeds, len(numbers))
        if there == seeds:
            parts.remove()
            return Sweep(before, places, escape)
        block = json.loads(finished.attrs["seeds_per_block"])
    kept = Parts.temporary() if parts is None else parts
    simulators = [simulator(problem) for problem in problems]
    block = kept.fixed("seeds_per_block", simulators[0].seeds_at_once if block is None else block)
    options = {"key": key, "seeds": seeds - there, "first_seed": first_seed + there, "block": block}
    options |= {"escape": escape, "until_escape": until_escape}
    plans = [
        planned(*one_stage(some, steps[number]), name=f"point-{number}", **options)
        for number, some in enumerate(simulators)
    ]
    require_room(plans)
    jobs = [job for plan in plans for job in plan.jobs]
    to_come = sum(job.memory for job in jobs if job.name not in kept)
    file = 0.0 if parts is None else sum(plan.memory for plan in plans) * seeds / (seeds - there)
    kept.require_space(to_come + file)
    failures: dict[str, Failure] = {}
    for number, result in computed(jobs, what=_words(plans), parts=kept, **work):
        if isinstance(result, Failure):
            failures[jobs[number].name] = result
    failed = [failures[job.name] for job in jobs if job.name in failures]
    if len(failed) == len(jobs):
        give_up(failed, len(jobs))

    def made(number: int) -> Simulation:
        (new,) = plans[number].gathered(
            [
                job.course.missing(job.count) if job.name in failures else kept.read(job.name)
                for job in plans[number].jobs
            ]
        )
        return new if before is None else joined([before[number], new])

    sweep = Sweep(Simulations(problems, max(map(len, steps)), made), places, escape, failed)
    if parts is None or failed:
        return sweep
    sweep.save(parts.path, kind="simulations", command=parts.flags, seeds_per_block=block)
    parts.remove()
    return Sweep(stored(open_dataset(parts.path), problems, escape), places, escape)


def _words(plans: Sequence[Plan]) -> str:
    return plans[0].words if len(plans) == 1 else f"{len(plans)} points, {plans[0].seeds.size} seeds"


def _finished(parts: Parts) -> Any | None:
    """The final file's dataset, if the run that `parts` go on with has been finished before."""
    if not parts.resume or not Path(parts.path).exists():
        return None
    try:
        return _own(parts)
    except ArgumentError:
        if not parts.begun:
            raise
        return None


def _own(parts: Parts) -> Any:
    """The final file's dataset; ArgumentError naming what differs if it is not that of this run, but for the number of seeds."""
    file = Path(parts.path)
    try:
        dataset = open_dataset(file)
        foreign = json.loads(dataset.attrs["kind"]) != "simulations"
        different = differing(dataset.attrs, provenance(command=parts.flags), ("seeds",), against="now")
    except (ValueError, KeyError, OSError):
        foreign, dataset, different = True, None, []
    if foreign or dataset is None:
        raise ArgumentError(None, f"{file} is not a result of this command: remove it, or name another --output")
    refuse_other(file, different)
    if "escape_times" not in dataset or "seed" not in dataset.coords:
        raise ArgumentError(None, f"{file} was made by another version: remove it, or name another --output")
    return dataset
