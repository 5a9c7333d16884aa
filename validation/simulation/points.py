"""Simulations of several problems in one call and in one file, which go on where they were interrupted."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from odes import Escape, Problem
from odes.arguments import ArgumentError
from odes.storage import write_dataset
from validation.simulation.ensemble import simulate
from validation.simulation.result import Simulation
from validation.simulation.simulator import Simulator
from validation.simulation.store import Parts


def simulate_points(
    problems: Sequence[Problem],
    simulator: Callable[[Problem], Simulator],
    *,
    places: Sequence[tuple[float, float]],
    key: PRNGKeyArray,
    seeds: int,
    steps: Sequence[np.ndarray],
    escape: Escape | None = None,
    until_escape: bool = False,
    block: int | None = None,
    parts: Parts | None = None,
) -> list[Simulation]:
    """The simulation of every problem, with a progress bar; computed, or read where `parts` have it, and then stored.

    A single point has the key itself, several have keys folded with their number. `places` are the strengths and alignments of the
    problems' pretrained weights. For all else see [`validation.simulation.simulate`][].

    **Raises** ArgumentError for a final file that other settings made, unless parts show that it is to be replaced.
    """
    simulators = [simulator(problem) for problem in problems]
    if parts is not None:
        if (finished := _finished(parts)) is not None:
            parts.remove()
            return from_dataset(finished, problems, escape)
        block = parts.block_size() or block
    block = simulators[0].seeds_at_once if block is None else block
    simulations = [
        simulate(
            some,
            key=key if len(problems) == 1 else jax.random.fold_in(key, number),
            seeds=seeds,
            steps=steps[number],
            escape=escape,
            until_escape=until_escape,
            block=block,
            progress=True,
            kept=None if parts is None else parts.kept(number, block),
        )
        for number, some in enumerate(simulators)
    ]
    if parts is not None:
        what = {"command": parts.flags, "seeds_per_block": block, "problems": [p.to_dict() for p in problems]}
        write_dataset(to_dataset(simulations, places), parts.path, kind="simulations", **what)
        parts.remove()
    return simulations


def _finished(parts: Parts) -> Any | None:
    """The final file's dataset, if the run that `parts` go on with has been finished before."""
    if not parts.resume or not Path(parts.path).exists():
        return None
    try:
        return parts.load(Path(parts.path))
    except ArgumentError:
        if parts.block_size() is None:
            raise
        return None


def to_dataset(simulations: Sequence[Simulation], places: Sequence[tuple[float, float]]) -> Any:
    """Simulations of one or several problems, with as many seeds and the same rank, as one `xarray.Dataset`.

    The variables are those of `Simulation.to_dataset` with dimensions (point, seed, record, ...); `time` (point, record) are the
    recorded times. Points with fewer records than others are NaN in the rest. `strength` and `alignment` (point,) are the `places` of
    the problems' pretrained weights.
    """
    import xarray

    most = max(simulation.t.size for simulation in simulations)
    points = []
    for simulation in simulations:
        dataset = simulation.to_dataset().drop_vars("time").rename_dims(time="record")
        dataset["time"] = ("record", np.asarray(simulation.t))
        points.append(dataset.pad(record=(0, most - simulation.t.size)))
    joined = xarray.concat(points, dim="point", data_vars="all", join="exact", combine_attrs="override")
    for name, values in zip(("strength", "alignment"), zip(*places, strict=True), strict=True):
        joined[name] = ("point", np.asarray(values))
    return joined


def from_dataset(dataset: Any, problems: Sequence[Problem], escape: Escape | None) -> list[Simulation]:
    """The simulations of `problems`, watched for an escape, in a dataset that [`to_dataset`][] made."""
    simulations = []
    for i, problem in enumerate(problems):
        point = dataset.isel(point=i)
        point = point.isel(record=np.isfinite(point["time"].values)).swap_dims(record="time")
        simulations.append(Simulation.from_dataset(point, problem, escape))
    return simulations
