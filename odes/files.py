r"""Problems as TOML files that people write: plain matrices in an orthonormal basis, link functions by name.

    student = "erf(x/sqrt(2))"
    targets = [[1, 0, 0], [0, 1, 0]]          # P x n: the teacher units
    pretrained = [[0.5, 0, 0], [0, 0.3, 0.2]] # K x n: the pretrained rows W0

    [adapter]
    rank = 2

    [sgd]
    dimension = 1e4

`teacher` (the student's link function unless given), `readout` and `teacher_readout` (ones unless given) and the arguments of
[`odes.Adapter`][] and [`odes.SGD`][] are optional; `noise_scale` may stand instead of `batch_size`.

A pretraining and the fine-tuning after it are written with `units` and `cosines` instead of the two matrices ([`read_transfer`][]):

    student = "erf(x/sqrt(2))"
    units = 2                                 # K, pretrained from random weights
    cosines = [1, 0.3]                        # of the P target directions with those of the source task

    [pretraining]
    batch_size = 1e5

`source` is the link function of the source's labels; the table [pretraining] takes the arguments of [`odes.SGD`][] in which pretraining
differs, `length`, `spherical` and `weight_decay`.
"""

import dataclasses
import json
import os
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from odes.activations import Activation, activation
from odes.arguments import ArgumentError, nearest, require, require_integer, within_one
from odes.overlaps import gram_root
from odes.problem import Problem
from odes.quadrature import cholesky_root
from odes.storage import write_whole
from odes.training import SGD, Adapter
from odes.transfer import Transfer

Made = TypeVar("Made")

_LARGEST, _LARGEST_RANK = 1e100, 4096
_LINKS = ("student", "teacher")
_MATRICES = ("targets", "pretrained")
_READOUTS = ("readout", "teacher_readout")
_PRETRAINING = ("length", "spherical", "weight_decay")


def read_problem(path: str | os.PathLike) -> Problem:
    """The problem in a TOML file.

    The frame's directions are the targets and the pretrained rows, "target 1", "pretrained 1" and so on, without numbers where
    there is one of each: the problem is then single-index.

    **Raises** ArgumentError naming the file and what is wrong in it; OSError if it cannot be read.
    """
    return _read(path, _problem)


def read_transfer(path: str | os.PathLike) -> Transfer:
    """The pretraining and fine-tuning in a TOML file.

    **Raises** ArgumentError naming the file and what is wrong in it; OSError if it cannot be read.
    """
    return _read(path, _transfer)


def read_tables(path: str | os.PathLike) -> dict[str, Any]:
    """The tables of a TOML file. **Raises** ArgumentError if it is none; OSError if it cannot be read."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is a folder" if Path(path).is_dir() else f"there is no file {path}")
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArgumentError(None, f"{path} is no TOML file: {error}") from None


def _read(path: str | os.PathLike, make: Callable[[dict[str, Any]], Made]) -> Made:
    """What `make` makes of the tables in a TOML file."""
    values = read_tables(path)
    try:
        return make(values)
    except ArgumentError as error:
        raise ArgumentError(None, f"{path}: {_entry(error)}") from None


def _entry(error: ArgumentError) -> str:
    return error.complaint if error.name is None else f"`{error.name}` {error.complaint}"


def _problem(values: dict[str, Any]) -> Problem:
    _require_keys("", values, (*_LINKS, *_MATRICES, *_READOUTS, "adapter", "sgd"), needed=("student", *_MATRICES))
    links = {name: _link(name, values[name]) for name in _LINKS if name in values}
    matrices = [_matrix(name, values[name]) for name in _MATRICES]
    if matrices[0].shape[1] != matrices[1].shape[1]:
        columns = " and ".join(
            f"{matrix.shape[1]} of `{name}`" for name, matrix in zip(_MATRICES, matrices, strict=True)
        )
        raise ArgumentError(
            "pretrained", f"must have as many columns as `targets`, the size of the basis, but there are {columns}"
        )
    rows = np.concatenate(matrices)
    teachers, units = (len(matrix) for matrix in matrices)
    numbered = [f"target {j + 1}" for j in range(teachers)] + [f"pretrained {k + 1}" for k in range(units)]
    coordinates = np.eye(len(rows))
    return Problem(
        links["student"],
        teacher=links.get("teacher"),
        frame_gram=rows @ rows.T,
        directions=["target", "pretrained"] if (teachers, units) == (1, 1) else numbered,
        target=coordinates[:teachers],
        frozen=coordinates[teachers:],
        **{name: _numbers(name, values[name]) for name in _READOUTS if name in values},
        **_parts(values),
    )


def _transfer(values: dict[str, Any]) -> Transfer:
    known = (*_LINKS, "source", "units", "cosines", *_READOUTS, "adapter", "sgd", "pretraining")
    _require_keys("", values, known, needed=("student", "units", "cosines"))
    links = {name: _link(name, values[name]) for name in (*_LINKS, "source") if name in values}
    require_integer("units", values["units"], "a whole number of at least 1")
    cosines, parts = _numbers("cosines", values["cosines"]), _parts(values)
    require("cosines", cosines, "between -1 and 1", within_one)
    table = _table("pretraining", values, (*_fields(SGD), "noise_scale", *_PRETRAINING))
    own = {name: table.pop(name) for name in _PRETRAINING if name in table}
    return Transfer(
        links["student"],
        target=links.get("teacher"),
        source=links.get("source"),
        units=values["units"],
        teachers=cosines.size,
        cosine=cosines[0] if cosines.size == 1 else cosines,
        pretraining_sgd=parts["sgd"].replace(**table),
        **{name: _numbers(name, values[name]) for name in _READOUTS if name in values},
        **parts,
        **own,
    )


def _parts(values: dict[str, Any]) -> dict[str, Any]:
    """The adapter and SGD in the tables of these names."""
    parts: dict[str, Any] = {"adapter": Adapter(**_table("adapter", values, _fields(Adapter)))}
    given = _table("sgd", values, (*_fields(SGD), "noise_scale"))
    theta = {key: given.pop(key) for key in ("noise_scale",) if key in given}
    parts["sgd"] = SGD(**given).replace(**theta)
    rank = parts["adapter"].rank
    if rank > min(_LARGEST_RANK, float(parts["sgd"].dimension)):
        raise ArgumentError("adapter.rank", f"must be at most {_LARGEST_RANK} and sgd.dimension, but is {rank}")
    return parts


def _fields(part: type) -> list[str]:
    """What an adapter or SGD takes."""
    return [field.name for field in dataclasses.fields(part) if field.name != "trains_readouts"]


def _table(name: str, values: dict[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """The entries of a table, none if it is not there; ArgumentError for one that is not allowed."""
    given = values.get(name, {})
    if not isinstance(given, dict):
        raise ArgumentError(name, f"must be a table, [{name}], but is {given!r}")
    _require_keys(f"{name}.", given, known)
    for key, value in given.items():
        _require_entry(f"{name}.{key}", value)
    if "noise_scale" in given and "batch_size" in given:
        raise ArgumentError(f"{name}.noise_scale", "sets the batch size: give one of them")
    return dict(given)


def _require_keys(table: str, values: dict[str, Any], known: Any, needed: Any = ()) -> None:
    """Raises ArgumentError for a key that is not known, and for one that is needed and missing."""
    for key in values:
        if key not in known:
            raise ArgumentError(
                f"{table}{key}", f"is not known{nearest(key, known) or '; there are ' + ', '.join(known)}"
            )
    for key in needed:
        if key not in values:
            raise ArgumentError(f"{table}{key}", "is missing")


def _link(name: str, value: Any) -> Activation:
    """A link function by name."""
    if not isinstance(value, str):
        raise ArgumentError(name, f"must be the name of a link function, but is {value!r:.60}")
    try:
        return activation(value)
    except ArgumentError as error:
        raise ArgumentError(name, error.complaint) from None


def _require_entry(name: str, value: Any) -> None:
    """Raises ArgumentError unless an entry of a table is of its kind, and of a size that is a floating point number."""
    if name in ("adapter.normalized", "pretraining.spherical"):
        if not isinstance(value, bool):
            raise ArgumentError(name, f"must be true or false, but is {value!r:.60}")
    elif name == "adapter.trained":
        _numbers(name, value)
    elif not _is_number(value) or (isinstance(value, int) and abs(value) > _LARGEST):
        raise ArgumentError(name, f"must be a number, but is {value!r:.60}")


def _numbers(name: str, values: Any) -> np.ndarray:
    """A list of numbers that are not too large."""
    listed = isinstance(values, list) and values and all(_is_number(value) for value in values)
    if not listed:
        raise ArgumentError(name, f"must be a list of numbers, but is {values!r:.60}")
    if not all(-_LARGEST < value < _LARGEST for value in values):
        raise ArgumentError(name, f"must be finite, below {_LARGEST:g}, but is {values!r:.60}")
    return np.array(values, float)


def _matrix(name: str, values: Any) -> np.ndarray:
    """A list of rows of the same length."""
    if not isinstance(values, list) or not values:
        raise ArgumentError(name, f"must be a matrix, [[...], ...], but is {values!r:.60}")
    rows = [_numbers(f"{name}[{number}]", row) for number, row in enumerate(values)]
    if len({row.size for row in rows}) > 1:
        raise ArgumentError(
            name, f"must have rows of one length, but they have {', '.join(str(row.size) for row in rows)}"
        )
    return np.stack(rows)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def write_problem(problem: Problem, path: str | os.PathLike) -> None:
    """Writes a problem as a file that [`read_problem`][] reads, whole or not at all.

    Rows are given in an orthonormal basis whose first directions span the teachers; directions that are neither target nor pretrained are
    left out, and names of directions are not kept.

    **Raises** ArgumentError for a link function of the user's own, which no file can hold.
    """
    for name in _LINKS:
        if not getattr(problem, name).known:
            raise ArgumentError(
                name, f"must be one that has a name, but {getattr(problem, name).name!r} is a function of your own"
            )
    rows = jnp.concatenate([problem.target, problem.frozen]) @ gram_root(problem.frame_gram)[0]
    root = np.asarray(cholesky_root(rows @ rows.T))
    root = np.where(np.abs(root) < 1e-14 * max(np.abs(root).max(), 1), 0, root)[:, np.abs(root).max(axis=0) > 0]
    teachers = len(problem.target)
    values = {name: getattr(problem, name).name for name in _LINKS}
    lists = dict(zip(_MATRICES, (root[:teachers], root[teachers:]), strict=True))
    lists |= {name: np.asarray(getattr(problem, name)) for name in _READOUTS}
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    lines += [f"{name} = {array.tolist()}" for name, array in lists.items()]
    for name in ("adapter", "sgd"):
        part = getattr(problem, name)
        lines += ["", f"[{name}]"]
        for field in dataclasses.fields(part):
            if field.name != "trains_readouts":
                lines.append(f"{field.name} = {_toml(np.asarray(getattr(part, field.name)).tolist())}")
    write_whole(path, lambda temporary: temporary.write_text("\n".join(lines) + "\n", encoding="utf-8"))


def _toml(value: Any) -> str:
    """A truth value, number or list of numbers; Python's `inf` is TOML's too."""
    return str(value).lower() if isinstance(value, bool) else repr(value)
