"""Results on disk: netCDF files that carry what made them and are written whole or not at all."""

import importlib.metadata
import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from odes.arguments import ArgumentError

_INDEX = 2**10
"""So many bytes, at most, a file's index has for a row of a variable."""

_PACKAGES = ("searchphase", "jax", "jaxlib", "diffrax", "equinox", "numpy")


def made_with() -> dict[str, str]:
    """What of this process determines the numbers of a result: package versions, the kind of device, the floating point type."""
    versions = {f"version_{name}": importlib.metadata.version(name) for name in _PACKAGES}
    return versions | {"device": jax.devices()[0].device_kind, "dtype": str(jnp.result_type(float))}


def provenance(**what: Any) -> dict[str, str]:
    """What a result was [`made_with`][], and `what` as JSON: the attributes of every stored file."""
    attributes = made_with() | {"python": platform.python_version()}
    return attributes | {key: json.dumps(value) for key, value in what.items()}


def write_whole(path: str | os.PathLike, write: Callable[[Path], Any]) -> None:
    """Calls `write` on a temporary path in the same folder and moves the result to `path` once it is complete.

    **Raises** OSError, with nothing left behind, if the folder is missing or cannot be written.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {target}: it is a folder")
    handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    try:
        write(Path(name))
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except OSError as error:
        raise type(error)(error.errno, f"cannot write {target}: {error.strerror or error}") from None
    finally:
        Path(name).unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_dataset(dataset: Any, path: str | os.PathLike, *, kind: str, **what: Any) -> None:
    """Writes an `xarray.Dataset` to netCDF with `provenance(kind=kind, **what)` added to its attributes.

    The file is made in memory: HDF5 crashes the process where a disk is full.

    **Raises** OSError, with nothing left behind, if it cannot be written.
    """
    content = dataset.assign_attrs(provenance(kind=kind, **what)).to_netcdf(engine="h5netcdf")
    write_whole(path, lambda temporary: temporary.write_bytes(content))


def write_rows(
    rows: Iterable[Any], path: str | os.PathLike, *, along: str, number: int, kind: str, **what: Any
) -> None:
    """Writes datasets that are alike to one netCDF file, whose data have the axis `along` in front; in memory is one of them.

    `number` is how many there are. Their coordinates and attributes are those of the first. The rest is that of [`write_dataset`][].

    **Raises** OSError, with nothing left behind, if it cannot be written.
    """
    import h5netcdf
    import xarray

    def write(temporary: Path) -> None:
        every = iter(rows)
        row = next(every)
        none = {name: variable.expand_dims({along: 0}) for name, variable in row.data_vars.items()}
        empty = xarray.Dataset(none, row.coords, row.attrs | provenance(kind=kind, **what))
        chunks = {name: {"chunksizes": (1, *_chunks(some))} for name, some in row.data_vars.items()}
        empty.to_netcdf(temporary, engine="h5netcdf", unlimited_dims=[along], encoding=chunks)
        _reserve(temporary, temporary.stat().st_size + number * (row.nbytes + _INDEX * len(chunks)))
        with h5netcdf.File(temporary, "r+") as file:
            file.resize_dimension(along, number)
            for place in range(number):
                for name, variable in row.data_vars.items():
                    file.variables[str(name)][place] = variable.values
                row = next(every, row)

    write_whole(path, write)


def _chunks(variable: Any) -> list[int]:
    """The shape of the pieces of a variable that are stored together, a mebibyte each at most."""
    shape = list(variable.shape)
    while math.prod(shape) * variable.dtype.itemsize > 2**20:
        longest = shape.index(max(shape))
        shape[longest] = -(-shape[longest] // 2)
    return shape


def _reserve(file: Path, size: int) -> None:
    """Makes a file so many bytes long, where the system knows how, since HDF5 crashes the process where a disk is full."""
    if sys.platform == "linux":
        with file.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, size)


def open_dataset(path: str | os.PathLike) -> Any:
    """Opens a stored file as an `xarray.Dataset`, whose attributes hold what made it: `kind` and more, as JSON.

    Its arrays are read when they are looked at.

    **Raises** ArgumentError if this project did not write the file, OSError naming it if it cannot be read.
    """
    import xarray

    if not isinstance(path, str | os.PathLike):
        raise ArgumentError("path", f"must be the path of a file, but is {path!r:.60}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is a folder" if Path(path).is_dir() else f"there is no file {path}")
    dataset = _readable(path, lambda: xarray.open_dataset(path, engine="h5netcdf"))
    if not {"version_searchphase", "kind"} <= set(dataset.attrs):
        raise ArgumentError(None, f"{path} has no record of what made it: it is no result of searchphase")
    return dataset


def read_dataset(path: str | os.PathLike) -> Any:
    """Reads a stored file whole, as the `xarray.Dataset` of [`open_dataset`][], with the same errors."""
    with open_dataset(path) as dataset:
        return _readable(path, dataset.load)


def _readable(path: str | os.PathLike, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, ValueError, KeyError) as error:
        raise ArgumentError(None, f"{path} cannot be read as a netCDF file: {error}") from None


_OBJECTS: dict[str, Callable[..., Any]] = {}
_ELSEWHERE = dict.fromkeys(("simulation", "simulations", "merged"), "validation.simulation")
"""Kinds of objects that modules above this package make."""


def loads(kind: str) -> Callable[[Callable], Callable]:
    """Says that the decorated function makes the object of stored files of this kind from their dataset and link functions."""

    def register(make: Callable) -> Callable:
        _OBJECTS[kind] = make
        return make

    return register


def load(path: str | os.PathLike, **links: Any) -> Any:
    """Reads a stored result back: the object that was saved, or an `xarray.Dataset` for tables of commands and figures.

    `student` and `teacher` among the `links` are the functions of the user's own that the problem had, which are not stored.

    **Raises** ArgumentError if this project did not write the file, and where such a function is missing.
    """
    dataset = read_dataset(path)
    kind = json.loads(dataset.attrs["kind"])
    if kind in _ELSEWHERE and kind not in _OBJECTS:
        raise ArgumentError(None, f"{path} holds simulations: import {_ELSEWHERE[kind]} before it is loaded")
    return _OBJECTS[kind](dataset, **links) if kind in _OBJECTS else dataset


DESCRIPTIONS = {
    "time": "time t = learning rate * step",
    "loss": "population loss, without that of the label noise",
    "losses": "population loss on the labels of every stage",
    "up": "LoRA's up-matrix U (units x rank)",
    "cross": "overlaps X = V F^T of the rows of V with the fixed directions",
    "down_gram": "Gram matrix R = V V^T of the rows of V",
    "readout": "readouts a of the student units",
    "final_readout": "readouts at the end",
    "final_up": "U at the end",
    "final_cross": "X at the end",
    "final_down_gram": "R at the end",
    "final_time": "time at which the integration ended",
    "escape_time": "time at which the escape criterion is met, NaN if it is not",
    "escape_times": "time at which every seed meets the escape criterion, NaN if it does not",
    "recorded": "number of records that were taken",
    "seed": "number of the seed, which sets its random numbers",
    "stage": "number of the stage",
    "borders": "times at which stages begin and end",
    "strength": "length of the pretrained weights w0",
    "alignment": "cosine of w0 with the target",
    "rank_of_adapter": "rank r of the adapter",
    "dimension": "dimension d of the inputs",
    "frame": "name of the fixed direction",
    "labels": "stage whose labels these are",
    "unit": "number of the student unit",
    "rank": "number of the row of V",
}
"""What the variables of stored files are. All are numbers without a unit."""


def described(dataset: Any) -> Any:
    """The dataset with `long_name` and `units`, as the CF conventions have it, of every variable that has a description."""
    for name in dataset.variables:
        if name in DESCRIPTIONS:
            units = {} if dataset[name].dtype.kind in "OSU" else {"units": "1"}
            dataset[name].attrs = {"long_name": DESCRIPTIONS[name]} | units
    return dataset.assign_attrs(Conventions="CF-1.11")
