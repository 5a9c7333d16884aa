"""How a run is resumed: blocks of seeds on disk as they are finished.

While a run whose result will be the file `run.nc` goes on, the folder `run.nc.parts` holds a file `point-I-block-J.nc` for
every finished block J of the seeds at point I, written whole or not at all. Once the result is written the folder
goes.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from odes import read_dataset
from odes.arguments import ArgumentError
from odes.storage import provenance, write_dataset
from validation.simulation.ensemble import Block, Kept
from validation.simulation.result import records_from_variables, records_to_variables

_INCIDENTAL = ("output", "plot", "json", "resume", "force")
"""Flags that do not determine a result's numbers."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a run of the command `flags` has stored so far, with `path` as its final file.

    A run either starts, and then there must be no folder of parts, or goes on with `resume`. A stored file is used only
    if the same flags, package versions, device and floating point type made it: then, in blocks of the stored size, a
    run that was interrupted ends in the numbers of an uninterrupted one, bit for bit.

    **Raises** ArgumentError if there are parts without `resume`, or with it something that other settings made.
    """

    path: str
    flags: dict[str, Any]
    resume: bool

    def __post_init__(self):
        if self.folder.exists() and not self.resume:
            raise ArgumentError(
                None, f"{self.folder} holds an unfinished run: go on with --resume, or remove that folder"
            )
        if self.resume:
            self.block_size()  # refuses parts that other settings made

    @property
    def folder(self) -> Path:
        """Where the finished blocks are."""
        return Path(f"{self.path}.parts")

    def block_size(self) -> int | None:
        """The block size of the stored parts, None without any."""
        for file in sorted(self.folder.glob("point-*-block-*.nc")):
            return json.loads(self.load(file).attrs["seeds_per_block"])
        return None

    def kept(self, point: int, block_size: int) -> Kept:
        """For [`validation.simulation.simulate`][]: reads a block of the seeds at `point` if it is stored, else computes and stores it."""

        def stored_or_computed(number: int, compute: Callable[[], Block]) -> Block:
            import xarray

            file = self.folder / f"point-{point}-block-{number}.nc"
            if file.exists():
                return Block(*jax.tree.map(np.asarray, records_from_variables(self.load(file))))
            block = compute()
            records = xarray.Dataset(
                records_to_variables(block.overlaps, block.loss, block.recorded, block.escape_times)
            )
            self.folder.mkdir(exist_ok=True)
            write_dataset(records, file, kind="block", command=self.flags, seeds_per_block=block_size)
            return block

        return stored_or_computed

    def remove(self) -> None:
        """Removes the folder of parts."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def load(self, file: Path) -> Any:
        """A stored dataset; ArgumentError naming what differs if other settings made it."""
        try:
            dataset = read_dataset(file)
            _settings(dataset.attrs)
            if json.loads(dataset.attrs["kind"]) not in ("simulations", "block"):
                raise ValueError
        except (ValueError, KeyError, OSError):
            raise ArgumentError(
                None, f"{file} is not a result of this command: remove it, or name another --output"
            ) from None
        now = provenance(command=self.flags)
        if found := differing(dataset.attrs, now, ("seeds",) if file == Path(self.path) else (), against="now"):
            what = ", ".join(found)
            raise ArgumentError(
                None, f"{file} was made with {what}: --resume takes the same again, or name another --output"
            )
        if "escape_times" not in dataset or (file == Path(self.path) and "seed" not in dataset.coords):
            raise ArgumentError(None, f"{file} was made by another version: remove it, or name another --output")
        return dataset


def _settings(attributes: dict[str, str]) -> dict[str, Any]:
    """What determines the numbers of a stored result, by name."""
    flags = json.loads(attributes["command"])
    settings = {_flag(key): value for key, value in flags.items() if key not in _INCIDENTAL}
    settings |= {key.removeprefix("version_"): attributes[key] for key in attributes if key.startswith("version_")}
    return settings | {"device": attributes["device"], "floating point type": attributes["dtype"]}


def made_by(dataset: Any, flags: dict[str, Any]) -> bool:
    """Whether a command with the same `flags`, but for incidental ones, made a stored dataset."""
    return not any(word.startswith("--") for word in differing(dataset.attrs, provenance(command=flags)))


def differing(
    attributes: dict[str, str], others: dict[str, str], free: Sequence[str] = (), *, against: str = "there"
) -> list[str]:
    """Which of the settings that determine a stored result are not those of another, in words; `free` flags may differ."""
    ours, theirs = _settings(attributes), _settings(others)
    fixed = [name for name in dict.fromkeys([*theirs, *ours]) if name not in {_flag(key) for key in free}]
    return [
        f"{name} {_shown(ours.get(name))} ({against} {_shown(theirs.get(name))})"
        for name in fixed
        if ours.get(name) != theirs.get(name)
    ]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _shown(value: Any) -> str:
    if value is None or value == []:
        return "not given"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
