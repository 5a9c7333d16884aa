"""What a finite-d simulation gives, whichever simulator ran it: overlaps of every seed at recorded steps."""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from odes import Activation, Escape, Overlaps, Problem, Solution, Trajectory, losses
from odes.arguments import ArgumentError, require
from odes.overlaps import target_overlaps
from odes.programs import program
from odes.storage import described, loads, write_dataset

_BLOWN_UP = 1e4


class Simulation(Trajectory):
    """Overlaps of independently trained seeds.

    - `t` (T,): the recorded times, η * step; `overlaps`: an [`odes.Overlaps`][] with (seeds, T) in front of every shape;
    - `loss` (seeds, T): the population loss of the realised overlaps, NaN in records that an early stop left out;
    - `seed` (seeds,): the seeds' numbers; `recorded` (seeds,): how many of the records were taken;
    - `escape_times` (seeds,): when each seed met the criterion `escape`, found to the step; NaN where it did not or there is none;
    - `problem`; `method`: the simulator's name; `dtype`: the floating point type of its arithmetic.
    """

    t: Float[Array, " T"]
    overlaps: Overlaps
    loss: Float[Array, "seeds T"]
    seed: Int[Array, " seeds"]
    recorded: Int[Array, " seeds"]
    escape_times: Float[Array, " seeds"]
    escape: Escape | None
    problem: Problem
    method: str = eqx.field(static=True)
    dtype: str = eqx.field(static=True)

    @property
    def start(self) -> Overlaps:
        """The overlaps of every seed at the first record, (seeds,) in front of every shape."""
        return jax.tree.map(lambda x: x[:, 0], self.overlaps)

    @property
    def diverged(self) -> Bool[np.ndarray, " seeds"]:
        """Which seeds have a loss that is not a number, or 10^4 times 1 or their first one: the learning rate was too large for them."""
        loss = np.asarray(self.loss)
        taken = np.arange(self.t.size)[None] < np.asarray(self.recorded)[:, None]
        return np.asarray((taken & ~(loss <= _BLOWN_UP * np.maximum(loss[:, :1], 1))).any(axis=1))

    def to_dataset(self):
        """Overlaps and loss of every seed as an `xarray.Dataset`."""
        import xarray

        return described(
            xarray.Dataset(
                records_to_variables(self.overlaps, self.loss, self.recorded, self.escape_times),
                coords={
                    "time": np.asarray(self.t),
                    "seed": np.asarray(self.seed),
                    "frame": list(self.problem.directions),
                },
                attrs={"method": self.method, "simulation_dtype": self.dtype},
            )
        )

    @classmethod
    def from_dataset(cls, dataset, problem: Problem, escape: Escape | None = None) -> "Simulation":
        """The simulation of `problem`, watched for an `escape`, whose `to_dataset()` is `dataset`."""
        overlaps, loss, recorded, escape_times = records_from_variables(dataset)
        return cls(
            t=jax.device_put(dataset["time"].values),
            overlaps=overlaps,
            loss=loss,
            seed=jax.device_put(dataset["seed"].values),
            recorded=recorded,
            escape_times=escape_times,
            escape=escape,
            problem=problem,
            method=dataset.attrs["method"],
            dtype=dataset.attrs["simulation_dtype"],
        )

    def save(self, path: str | os.PathLike, **what: Any) -> None:
        """Writes `to_dataset()` to a netCDF file, whole or not at all; [`odes.load`][] reads it.

        The problem, package versions, device and floating point type go with it, and `what` else the caller wants
        recorded.
        """
        escape = None if self.escape is None else self.escape.to_dict()
        write_dataset(self.to_dataset(), path, kind="simulation", problem=self.problem.to_dict(), escape=escape, **what)

    def plot(self, ax=None):
        """Draws the mean loss over the seeds that did not diverge on `ax` (a new one if None), nothing if all did.

        The band reaches from the seeds' 16th to their 84th percentile.
        """
        import matplotlib.pyplot as plt

        ax = plt.subplots()[1] if ax is None else ax
        loss = np.asarray(self.loss)
        kept = loss[~self.diverged] if not self.diverged.all() else np.full_like(loss, np.nan)
        low, high = np.percentile(kept, [16, 84], axis=0)
        (line,) = ax.plot(self.t, kept.mean(axis=0), marker="o", linestyle="none", markersize=3)
        ax.fill_between(self.t, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        ax.set(xlabel=r"time $t = \eta\cdot$step", ylabel=r"population loss $\ell$")
        return ax

    def __str__(self) -> str:
        seeds, records = self.loss.shape
        d = float(self.problem.sgd.dimension)
        return f"Simulation ({self.method}) of {seeds} seeds at d = {d:g} to t = {float(np.asarray(self.t)[-1]):g}, {records} records"


@loads("simulation")
def _loaded(dataset: Any, **links: Activation) -> Simulation:
    """The simulation in a stored dataset."""
    problem = Problem.from_dict(json.loads(dataset.attrs["problem"]), **links)
    return Simulation.from_dataset(dataset, problem, Escape.from_dict(json.loads(dataset.attrs["escape"])))


def joined(parts: Sequence[Simulation]) -> Simulation:
    """One simulation of all seeds of several that are alike but for their seeds, in the order of their numbers.

    **Raises** ArgumentError for seeds that are in two of them, and for other recorded times.
    """
    if any(part.t.shape != parts[0].t.shape or np.any(part.t != parts[0].t) for part in parts):
        raise ArgumentError(None, "seeds of one point must have been recorded at the same times (--t1, --records)")
    first, names = parts[0], ("overlaps", "loss", "seed", "recorded", "escape_times")
    whole = jax.tree.map(lambda *x: np.concatenate(x), *([getattr(part, name) for name in names] for part in parts))
    numbers, places = np.unique(whole[2], return_index=True)
    if numbers.size < len(whole[2]):
        raise ArgumentError(None, "no seed may be in two parts")
    chosen = jax.tree.map(lambda x: jax.device_put(x[places]), whole)
    return dataclasses.replace(first, **dict(zip(names, chosen, strict=True)))


@program
def references(escape: Escape, problem: Problem, origin: Overlaps) -> Float[Array, "..."]:
    """The criterion's value at every seed's origin: (seeds,), for overlaps (seeds, K)."""
    return escape.value(problem, origin, losses(problem, origin))


OBSERVABLES = ("loss", "target_overlap", "m", "u", "s")
"""What trajectories of one unit are compared by; m, u and s enter as lengths over the adapter's rows, blind to the symmetry
(u, X) -> (-u, -X)."""


def observables(trajectory: Simulation | Solution) -> dict[str, Array]:
    """The compared quantities of a simulation (seeds, T) or of a solution (T,).

    The loss; the overlap of every unit's row with every teacher's direction; the lengths, over the adapter's rows, of every unit's row of U
    and of the overlaps with every direction of the frame. Of one unit and one teacher they have the names of `OBSERVABLES`.
    """
    problem = trajectory.problem
    units, teachers = problem.units
    if problem.units == (1, 1):
        named = {"target": "m", "pretrained": "s", "source": "s"}
        names = ["loss", "target_overlap", "u", *(named.get(name, name) for name in problem.directions)]
    else:
        overlaps = [f"w{k + 1}.t{j + 1}" for k in range(units) for j in range(teachers)]
        ups, downs = (f"u{k + 1}" for k in range(units)), (f"v.{name}" for name in problem.directions)
        names = ["loss", *overlaps, *ups, *downs]
    return dict(zip(names, _observables(trajectory), strict=True))


@program
def _observables(trajectory: Simulation | Solution) -> list[Array]:
    overlaps = trajectory.overlaps
    rows = target_overlaps(trajectory.problem, overlaps)
    together = [
        trajectory.loss[..., None],
        rows.reshape(*rows.shape[:-2], -1),
        jnp.linalg.norm(overlaps.up, axis=-1),
        jnp.linalg.norm(overlaps.cross, axis=-2),
    ]
    return list(jnp.moveaxis(jnp.concatenate(together, axis=-1), -1, 0))


def mean_and_error(values: Any) -> tuple[Any, Any]:
    """The mean over the first axis, that of the seeds, and its standard error; NaN if a seed has no value."""
    values = np.asarray(values)
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(values.shape[0])


_OF_SEEDS = ("recorded", "escape_times")


def records_to_variables(
    overlaps: Overlaps, loss: Any, *of_seeds: Any
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """The records of some seeds as variables of an `xarray.Dataset`, with dimensions (seed, time, ...).

    `of_seeds` are how many records each has, and its escape time.
    """
    numbers = {name: (("seed",), np.asarray(values)) for name, values in zip(_OF_SEEDS, of_seeds, strict=True)}
    return overlaps.variables("seed", "time") | {"loss": (("seed", "time"), np.asarray(loss))} | numbers


def records_from_variables(variables: Any) -> tuple[Overlaps, Array, Array, Array]:
    """Overlaps, loss, number of records and escape times of the seeds that [`records_to_variables`][] wrote."""
    others = (jax.device_put(variables[name].values) for name in ("loss", *_OF_SEEDS))
    return Overlaps.from_variables(variables), *others


def even_steps(t1: float, learning_rate: float, records: int) -> np.ndarray:
    """`records` + 1 step numbers, evenly spaced from 0 to the first step at or after time t1, without repetition."""
    return even_records(last_step(t1, learning_rate), records)


def last_step(t1: float, learning_rate: float) -> int:
    """The first step at or after time t1."""
    steps = np.ceil(t1 / learning_rate - 1e-9)
    require("t1", t1, "at most a trillion steps of the learning rate", lambda _: steps <= 1e12)
    return int(steps)


def even_records(last: int, records: int) -> np.ndarray:
    """`records` + 1 step numbers, evenly spaced from 0 to `last`, without repetition."""
    return np.unique(np.linspace(0, last, records + 1).round().astype(int))
