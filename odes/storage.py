"""Results on disk: netCDF files that carry what made them and are written whole or not at all."""

import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from odes.arguments import ArgumentError

_PACKAGES = ("searchphase", "jax", "jaxlib", "diffrax", "equinox", "numpy")


def provenance(**what: Any) -> dict[str, str]:
    """Package versions, device, floating point type, and `what` as JSON: the attributes of every stored file."""
    attributes = {f"version_{name}": importlib.metadata.version(name) for name in _PACKAGES}
    attributes |= {
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "dtype": str(jnp.result_type(float)),
    }
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


def load(path: str | os.PathLike):
    """Reads a stored result back as an `xarray.Dataset`.

    Its attributes hold what made it, as JSON: `kind` and, for most kinds, `problem`, which
    [`odes.Problem.from_dict`][] turns into a problem again.

    **Raises** ArgumentError if this project did not write the file.
    """
    import xarray

    dataset = xarray.load_dataset(path, engine="h5netcdf")
    if "version_searchphase" not in dataset.attrs:
        raise ArgumentError("path", f"must name a file that `save` wrote, but {path} has no record of what made it")
    return dataset
