"""Simulations of several problems in one call and in one file, which go on where they were interrupted."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PRNGKeyArray

from odes import Activation, Escape, Problem
from odes.arguments import ArgumentError
from odes.storage import described, loads, provenance, read_dataset, write_dataset
from validation.jobs.engine import Failure, give_up, in_order
from validation.jobs.parts import Parts, differing, refuse_other
from validation.simulation.ensemble import Plan, computed, one_stage, planned, require_room
from validation.simulation.result import Simulation, joined
from validation.simulation.simulator import Simulator


class Place(NamedTuple):
    """Where a point of a sweep is; strength and alignment of several units are `math.nan`, which is equal to itself alone."""

    strength: float
    alignment: float
    rank: int
    dimension: float


class Sweep(NamedTuple):
    """The simulations of several points, and what could not be computed: such seeds have no records, and never escape."""

    simulations: list[Simulation]
    failures: list[Failure]


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

    A block that fails costs its own seeds alone; then the final file is not written, and `parts` keep the others.

    **Raises** ArgumentError for a final file that other settings made, unless parts show that it is to be replaced; what the
    first block raised if all failed.
    """
    stored: list[Simulation] = []
    if parts is not None and (finished := _finished(parts)) is not None:
        there = finished["seed"].values.tolist()
        if places_of(finished) != list(places) or there != [first_seed + i for i in range(len(there))]:
            raise ArgumentError(None, f"{parts.path} holds other points or seeds: name another --output")
        stored = from_dataset(finished.isel(seed=slice(seeds)), problems, escape)
        if stored[0].seed.size == seeds:
            parts.remove()
            return Sweep(stored, [])
        block = json.loads(finished.attrs["seeds_per_block"])
    there = stored[0].seed.size if stored else 0
    simulators = [simulator(problem) for problem in problems]
    block = simulators[0].seeds_at_once if block is None else block
    block = block if parts is None else parts.fixed("seeds_per_block", block)
    options = {"key": key, "seeds": seeds - there, "first_seed": first_seed + there, "block": block}
    options |= {"escape": escape, "until_escape": until_escape}
    plans = [
        planned(*one_stage(some, steps[number]), name=f"point-{number}", **options)
        for number, some in enumerate(simulators)
    ]
    require_room(plans)
    jobs = [job for plan in plans for job in plan.jobs]
    results = iter(list(in_order(computed(jobs, what=_words(plans), parts=parts, **work))))
    simulations, failures = [], []
    for plan in plans:
        blocks = [next(results) for _ in plan.jobs]
        failures += [some for some in blocks if isinstance(some, Failure)]
        (whole,) = plan.gathered(
            [
                job.course.missing(job.count) if isinstance(some, Failure) else some
                for job, some in zip(plan.jobs, blocks, strict=True)
            ]
        )
        simulations.append(whole)
    if len(failures) == len(jobs):
        give_up(failures, len(jobs))
    if stored:
        simulations = [joined(pair) for pair in zip(stored, simulations, strict=True)]
    if parts is not None and not failures:
        what = {"command": parts.flags, "seeds_per_block": block, "problems": [p.to_dict() for p in problems]}
        what["escape"] = None if escape is None else escape.to_dict()
        write_dataset(to_dataset(simulations, places), parts.path, kind="simulations", **what)
        parts.remove()
    return Sweep(simulations, failures)


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
        dataset = read_dataset(file)
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


def to_dataset(simulations: Sequence[Simulation], places: Sequence[Place]) -> Any:
    """Simulations of one or several problems, with as many seeds, as one `xarray.Dataset`.

    The variables are those of `Simulation.to_dataset` with dimensions (point, seed, record, ...); `time` (point, record) are the
    recorded times. Points with fewer records or a smaller rank than others are NaN in the rest. The numbers of the `places` are
    variables (point,).
    """
    import xarray

    most = max(simulation.t.size for simulation in simulations)
    ranks = [simulation.problem.adapter.rank for simulation in simulations]
    points = []
    for simulation, rank in zip(simulations, ranks, strict=True):
        dataset = simulation.to_dataset().drop_vars("time").rename_dims(time="record")
        dataset["time"] = ("record", np.asarray(simulation.t))
        missing = (0, max(ranks) - rank)
        points.append(dataset.pad(record=(0, most - simulation.t.size), rank=missing, rank_=missing))
    joint = xarray.concat(points, dim="point", data_vars="all", join="exact", combine_attrs="override")
    for name in places[0]._fields:
        column = _COLUMNS.get(name, name)
        joint[column] = ("point", np.array([getattr(place, name) for place in places]))
    return described(joint)


_COLUMNS = {"rank": "rank_of_adapter"}
"""The dataset's names for what is a dimension of it."""


def from_dataset(dataset: Any, problems: Sequence[Problem], escape: Escape | None) -> list[Simulation]:
    """The simulations of `problems`, watched for an escape, in a dataset that [`to_dataset`][] made."""
    simulations = []
    for i, problem in enumerate(problems):
        within = slice(problem.adapter.rank)
        point = dataset.isel(point=i, rank=within, rank_=within)
        point = point.isel(record=np.isfinite(point["time"].values)).swap_dims(record="time")
        simulations.append(Simulation.from_dataset(point, problem, escape))
    return simulations


@loads("merged")
@loads("simulations")
def loaded(dataset: Any, **links: Activation) -> list[Simulation]:
    """The simulations in a stored dataset."""
    problems = [Problem.from_dict(values, **links) for values in json.loads(dataset.attrs["problems"])]
    return from_dataset(dataset, problems, Escape.from_dict(json.loads(dataset.attrs["escape"])))


def places_of(dataset: Any) -> list[Place]:
    """The places of the points in a stored dataset."""
    columns = [dataset[_COLUMNS.get(name, name)].values.tolist() for name in Place._fields]
    rows = zip(*([math.nan if math.isnan(value) else value for value in column] for column in columns), strict=True)
    return [Place(*values) for values in rows]


def merged(datasets: Sequence[Any]) -> Any:
    """One dataset of several, of the same points with different seeds or of different points with the same seeds.

    **Raises** ArgumentError for datasets that have seeds and points in common, or differ in both.
    """
    seeds = [frozenset(some["seed"].values.tolist()) for some in datasets]
    places = [places_of(some) for some in datasets]
    every, simulations = [place for some in places for place in some], [loaded(some) for some in datasets]
    if all(some == places[0] for some in places) and len(frozenset.union(*seeds)) == sum(map(len, seeds)):
        whole, where = [joined(parts) for parts in zip(*simulations, strict=True)], places[0]
    elif all(some == seeds[0] for some in seeds) and len(set(every)) == len(every):
        whole, where = [simulation for some in simulations for simulation in some], every
    else:
        needed = "the same points and no seed twice (--seed-offset), or the same seeds and no point twice"
        raise ArgumentError(None, f"the files must have {needed}")
    attributes = {"escape": datasets[0].attrs["escape"]}
    attributes["problems"] = json.dumps([some.problem.to_dict() for some in whole])
    return to_dataset(whole, where).assign_attrs(attributes)
