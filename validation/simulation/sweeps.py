"""The simulations of several points: stored in one file, read from it, put together from several."""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from odes import Activation, Escape, Problem
from odes.arguments import ArgumentError
from odes.storage import described, loads, write_rows
from validation.jobs.engine import Failure
from validation.simulation.result import Simulation, joined


class Place(NamedTuple):
    """Where a point of a sweep is; strength and alignment of several units are `math.nan`, which is equal to itself alone."""

    strength: float
    alignment: float
    rank: int
    dimension: float


@dataclasses.dataclass(frozen=True)
class Simulations:
    """A sequence of the simulations of several points, each of which is put together when it is looked at, and not kept.

    Memory is that of one of them, however many there are. `problems` are theirs, `records` is how many times the longest of them has,
    `made` gives the simulation of the point with a number.
    """

    problems: Sequence[Problem]
    records: int
    made: Callable[[int], Simulation]

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, number: int) -> Simulation:
        return self.made(range(len(self))[number])

    def __iter__(self) -> Iterator[Simulation]:
        return map(self.made, range(len(self)))


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The simulations of several points and their places, the criterion that was watched, and what could not be computed.

    Seeds that could not be computed have no records, and never escape.
    """

    simulations: Simulations
    places: Sequence[Place]
    escape: Escape | None
    failures: Sequence[Failure] = ()

    def save(self, path: str | os.PathLike, *, kind: str, **what: Any) -> None:
        """Writes all simulations, with as many seeds each, to one netCDF file, whole or not at all; [`odes.load`][] reads it.

        The variables are those of `Simulation.to_dataset` with dimensions (point, seed, record, ...); `time` (point, record) are the
        recorded times. Points with fewer records or a smaller rank than others are NaN in the rest. The numbers of the `places` are
        variables (point,). All problems, and `what` else the caller wants recorded, go with them.
        """
        every = self.simulations
        rank = max(problem.adapter.rank for problem in every.problems)
        rows = (_row(some, place, every.records, rank) for some, place in zip(every, self.places, strict=True))
        what |= {"problems": [problem.to_dict() for problem in every.problems]}
        what |= {"escape": None if self.escape is None else self.escape.to_dict()}
        write_rows(rows, path, along="point", number=len(every), kind=kind, **what)


_COLUMNS = {"rank": "rank_of_adapter"}
"""The dataset's names for what is a dimension of it."""


def _row(simulation: Simulation, place: Place, records: int, rank: int) -> Any:
    """The dataset of one point, with NaN up to so many records and rows of the adapter."""
    dataset = simulation.to_dataset().drop_vars("time").rename_dims(time="record")
    dataset["time"] = ("record", np.asarray(simulation.t))
    missing = rank - simulation.problem.adapter.rank
    short = {"record": records - simulation.t.size, "rank": missing, "rank_": missing}
    dataset = dataset.pad({name: (0, number) for name, number in short.items() if number})
    for name, value in place._asdict().items():
        dataset[_COLUMNS.get(name, name)] = ((), value)
    return described(dataset)


def stored(dataset: Any, problems: Sequence[Problem], escape: Escape | None) -> Simulations:
    """The simulations of `problems`, watched for an escape, in the dataset of a file that [`Sweep.save`][] wrote."""

    def made(number: int) -> Simulation:
        problem = problems[number]
        within = slice(problem.adapter.rank)
        point = dataset.isel(point=number, rank=within, rank_=within)
        point = point.isel(record=np.isfinite(point["time"].values)).swap_dims(record="time")
        return Simulation.from_dataset(point, problem, escape)

    return Simulations(problems, dataset.sizes["record"], made)


def _known(dataset: Any, **links: Activation) -> tuple[list[Problem], Escape | None]:
    problems = [Problem.from_dict(values, **links) for values in json.loads(dataset.attrs["problems"])]
    return problems, Escape.from_dict(json.loads(dataset.attrs["escape"]))


@loads("merged")
@loads("simulations")
def _loaded(dataset: Any, **links: Activation) -> list[Simulation]:
    """The simulations in a stored dataset."""
    return list(stored(dataset, *_known(dataset, **links)))


def places_of(dataset: Any) -> list[Place]:
    """The places of the points in a stored dataset."""
    columns = [dataset[_COLUMNS.get(name, name)].values.tolist() for name in Place._fields]
    rows = zip(*([math.nan if math.isnan(value) else value for value in column] for column in columns), strict=True)
    return [Place(*values) for values in rows]


def merged(datasets: Sequence[Any]) -> Sweep:
    """One sweep of several in stored datasets, of the same points with different seeds or of different points with the same seeds.

    **Raises** ArgumentError for datasets that have seeds and points in common, or differ in both; looking at the simulations does where
    they cannot be joined.
    """
    seeds = [frozenset(some["seed"].values.tolist()) for some in datasets]
    places = [places_of(some) for some in datasets]
    known = [_known(some) for some in datasets]
    parts = [stored(some, *those) for some, those in zip(datasets, known, strict=True)]
    every = _chained(places)
    records = max(some.records for some in parts)
    if all(some == places[0] for some in places) and len(frozenset.union(*seeds)) == sum(map(len, seeds)):
        whole = Simulations(parts[0].problems, records, lambda number: joined([some[number] for some in parts]))
        return Sweep(whole, places[0], known[0][1])
    if all(some == seeds[0] for some in seeds) and len(set(every)) == len(every):
        sources = [(some, number) for some in parts for number in range(len(some))]

        def made(number: int) -> Simulation:
            some, own = sources[number]
            return some[own]

        return Sweep(Simulations(_chained(some.problems for some in parts), records, made), every, known[0][1])
    needed = "the same points and no seed twice (--seed-offset), or the same seeds and no point twice"
    raise ArgumentError(None, f"the files must have {needed}")


def _chained(lists: Iterable[Sequence[Any]]) -> list[Any]:
    return [some for part in lists for some in part]
