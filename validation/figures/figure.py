"""A figure: how its data are computed, stored and drawn to two files."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from odes import read_dataset
from odes.arguments import ArgumentError
from odes.storage import provenance, write_dataset, write_whole
from validation.figures.effort import Effort
from validation.figures.style import figure_style
from validation.figures.work import Work
from validation.jobs.parts import Parts


def as_dataset(
    variables: Mapping[str, tuple[Any, Any]], coords: Mapping[str, Any] | None = None, attrs: Any = None
) -> Any:
    """An `xarray.Dataset`. Every variable is given by its dimensions and an array, or nested lists of arrays."""
    import xarray

    arrays = {name: (dimensions, np.asarray(values)) for name, (dimensions, values) in variables.items()}
    along = {name: np.asarray(values) for name, values in (coords or {}).items()}
    return xarray.Dataset(arrays, coords=along, attrs=attrs)


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
            dataset = read_dataset(file)
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

    def up_to_date(self, folder: Path, effort: Effort) -> Any | None:
        """The stored dataset if the same effort, versions, device and floating point type made it; None otherwise."""
        try:
            dataset = self.stored(folder)
        except ArgumentError:
            return None
        now = provenance(settings=dataclasses.asdict(effort))
        return dataset if all(dataset.attrs.get(name) == value for name, value in now.items()) else None

    def computed(self, folder: Path, effort: Effort) -> Any:
        """The dataset, computed and stored; simulations that an interrupted computation has kept are read."""
        file, settings = self.data_file(folder), dataclasses.asdict(effort)
        try:
            parts = Parts(str(file), settings, resume=True)
        except ArgumentError:
            shutil.rmtree(f"{file}.parts")
            parts = Parts(str(file), settings, resume=True)
        dataset = self.compute(Work(effort, parts))
        write_dataset(dataset, file, kind="figure", figure=self.name, settings=settings)
        parts.remove()
        return read_dataset(file)

    def files(self, folder: Path, dataset: Any) -> list[Path]:
        """Draws the dataset to a PDF and a PNG file."""
        written = []
        with figure_style():
            drawn = self.draw(dataset)
            for suffix in (".pdf", ".png"):
                written.append(folder / f"{self.name}{suffix}")
                write_whole(written[-1], drawn.savefig)
        return written
