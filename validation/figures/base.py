"""What every figure is made of: how much is computed, simulations that are kept as they come, data on disk, two files."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from odes import Escape, Overlaps, Problem, Transfer, load, pretrained
from odes.arguments import ArgumentError
from odes.storage import provenance, write_dataset, write_whole
from theory import search_phase
from validation.figures.style import figure_style
from validation.simulation.chain import affordable_chain
from validation.simulation.direct import direct_simulator
from validation.simulation.ensemble import Simulator, simulate
from validation.simulation.fine_tuning import simulated_fine_tuning
from validation.simulation.result import Simulation, mean_and_error
from validation.simulation.store import Parts


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is computed for a figure.

    - `points`: of a theory curve; `marks`: simulated points along it;
    - `seeds`, `dimension`: of the chain; `direct_seeds`, `direct_dimension`: of the direct simulator;
    - `most_steps`: simulations that would need more steps are left out, or end there;
    - `simulated_links`: of how many link functions of one figure τ is simulated;
    - `seed`: of the random numbers.
    """

    points: int
    marks: int
    seeds: int
    dimension: float
    direct_seeds: int
    direct_dimension: float
    most_steps: int
    simulated_links: int
    seed: int = 0


QUICK = Settings(
    points=60,
    marks=4,
    seeds=60,
    dimension=2000.0,
    direct_seeds=4,
    direct_dimension=200.0,
    most_steps=15_000,
    simulated_links=1,
)
FULL = Settings(
    points=120,
    marks=6,
    seeds=200,
    dimension=2000.0,
    direct_seeds=12,
    direct_dimension=400.0,
    most_steps=25_000,
    simulated_links=10,
)


class Work:
    """The computation of one figure: its settings, and simulations whose blocks are stored as they are finished.

    The simulations of a figure are numbered in the order in which they are asked for, which must not depend on anything
    but the settings: then an interrupted computation goes on where it was.
    """

    def __init__(self, settings: Settings, parts: Parts | None = None):
        self.settings = settings
        self._parts = parts
        self._number = 0

    def key(self) -> jax.Array:
        """A key for the next simulation."""
        self._number += 1
        return jax.random.fold_in(jax.random.key(self.settings.seed), self._number)

    def chain(
        self,
        problem: Problem,
        steps: Any,
        *,
        start: Overlaps | None = None,
        until: Escape | None = None,
        seeds: int | None = None,
    ) -> Simulation:
        """The exact chain of `seeds` (those of the settings unless given) from random starts, or all from `start`.

        Batch means are drawn from their normal limit where a seed would need more than 1e8 samples.
        """
        simulator = affordable_chain(problem, steps, start=start)
        return self._run(simulator, steps, until, self.settings.seeds if seeds is None else seeds)

    def direct(
        self, problem: Problem, steps: Any, *, start: Overlaps | None = None, until: Escape | None = None
    ) -> Simulation:
        """The direct simulator of the problem at the settings' `direct_dimension`, with its noise scale."""
        d = self.settings.direct_dimension
        simulator = direct_simulator(at_dimension(problem, d), start=start)
        return self._run(simulator, steps, until, self.settings.direct_seeds)

    def fine_tuning(self, transfer: Transfer, time: float, goal: Escape, longest: float) -> tuple[float, float]:
        """The mean fine-tuning time of the chain after pretraining for `time`, and its standard error, both NaN if seeds are left."""
        key, seeds = self.key(), self.settings.seeds
        kept = None if self._parts is None else self._parts.kept(self._number, seeds)
        times = simulated_fine_tuning(transfer, time, goal, longest=longest, seeds=seeds, key=key, kept=kept)
        mean, error = mean_and_error(times)
        return float(mean), float(error)

    def _run(self, simulator: Simulator, steps: Any, until: Escape | None, seeds: int) -> Simulation:
        key = self.key()
        block = simulator.seeds_at_once
        kept = None if self._parts is None else self._parts.kept(self._number, block)
        return simulate(simulator, key=key, seeds=seeds, steps=steps, until=until, block=block, kept=kept)


@eqx.filter_jit
def typical_start(problem: Problem) -> Overlaps:
    r"""U = 0 and orthonormal rows of V whose overlap with the gradient's direction at w0 is the typical $d^{-1/2}$, p > 0."""
    phase, rank = search_phase(problem), problem.adapter.rank
    direction = (phase.C * problem.target - phase.D * problem.frozen) @ problem.frame_gram / jnp.sqrt(phase.G)
    rest = pretrained(problem)
    return Overlaps(rest.up, jnp.tile(direction, (rank, 1)) / jnp.sqrt(problem.sgd.dimension), rest.down_gram)


def at_dimension(problem: Problem, dimension: float) -> Problem:
    """The same problem at another dimension: learning rate and noise scale are kept, up to the rounding of the batch."""
    sgd = problem.sgd
    batch = sgd.batch_size * dimension / sgd.dimension
    if np.isfinite(batch):
        batch = jnp.maximum(1.0, jnp.round(batch))
    return eqx.tree_at(
        lambda p: (p.sgd.dimension, p.sgd.batch_size), problem, (jnp.asarray(dimension, batch.dtype), batch)
    )


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure: its name, a sentence on what it shows, how its data are computed and how they are drawn.

    `compute` gives an `xarray.Dataset` that holds everything that `draw` needs to make a Matplotlib figure.
    """

    name: str
    sentence: str
    compute: Callable[[Work], Any]
    draw: Callable[[Any], Any]

    def data_file(self, folder: Path) -> Path:
        """Where the figure's data are stored."""
        return folder / f"{self.name}.nc"

    def stored(self, folder: Path) -> Any:
        """The stored dataset.

        **Raises** ArgumentError if there is none, if it is not this figure's, or if another version of searchphase made it.
        """
        file = self.data_file(folder)
        if not file.exists():
            raise ArgumentError(None, f"{file} does not exist: draw {self.name} without --redraw to compute it")
        foreign = ArgumentError(
            None, f"{file} does not hold the data of {self.name}: remove it, or name another --folder"
        )
        try:
            dataset = load(file)
        except (ValueError, OSError):
            raise foreign from None
        if dataset.attrs.get("figure") != json.dumps(self.name):
            raise foreign
        made, now = dataset.attrs["version_searchphase"], provenance()["version_searchphase"]
        if made != now:
            raise ArgumentError(
                None, f"{file} was made by searchphase {made}, this is {now}: draw {self.name} again without --redraw"
            )
        return dataset

    def up_to_date(self, folder: Path, settings: Settings) -> Any | None:
        """The stored dataset if the same settings, versions, device and floating point type made it; None otherwise."""
        try:
            dataset = self.stored(folder)
        except ArgumentError:
            return None
        now = provenance(settings=dataclasses.asdict(settings))
        return dataset if all(dataset.attrs.get(name) == value for name, value in now.items()) else None

    def computed(self, folder: Path, settings: Settings) -> Any:
        """The dataset, computed and stored; simulations that an interrupted computation has kept are read."""
        file, flags = self.data_file(folder), dataclasses.asdict(settings)
        try:
            parts = Parts(str(file), flags, resume=True)
        except ArgumentError:
            shutil.rmtree(f"{file}.parts")
            parts = Parts(str(file), flags, resume=True)
        dataset = self.compute(Work(settings, parts))
        write_dataset(dataset, file, kind="figure", figure=self.name, settings=flags)
        parts.remove()
        return load(file)

    def files(self, folder: Path, dataset: Any) -> list[Path]:
        """Draws the dataset to a PDF and a PNG file."""
        written = []
        with figure_style():
            drawn = self.draw(dataset)
            for suffix in (".pdf", ".png"):
                written.append(folder / f"{self.name}{suffix}")
                write_whole(written[-1], drawn.savefig)
        return written
