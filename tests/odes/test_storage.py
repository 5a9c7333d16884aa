"""Files are written whole or not at all, with everything that made them."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

from odes import Activation, Escape, Problem, load, read_dataset, solve
from odes.arguments import ArgumentError
from odes.storage import write_rows, write_whole
from tests.helpers import pairs, same_bits


def test_save_and_load(problem, start, tmp_path):
    solution = solve(problem, start, t1=300.0, escape=Escape())
    solution.save(tmp_path / "run.nc")
    stored = load(tmp_path / "run.nc")
    for ours, known in pairs(stored, solution):
        same_bits(ours, known)
    assert str(stored) == str(solution) and stored.problem.to_dict() == problem.to_dict()
    for name, variable in read_dataset(tmp_path / "run.nc").variables.items():
        assert variable.attrs["long_name"] and variable.attrs.get("units", "1") == "1", name
    attributes = read_dataset(tmp_path / "run.nc").attrs
    assert attributes["version_jax"] == jax.__version__ and json.loads(attributes["kind"]) == "solution"
    assert [path.name for path in tmp_path.iterdir()] == ["run.nc"]
    with pytest.raises(OSError):
        solution.save(tmp_path / "missing" / "run.nc")


def test_interrupted_write_leaves_nothing(tmp_path):
    (tmp_path / "kept.txt").write_text("old")

    def fail(path):
        path.write_text("half")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        write_whole(tmp_path / "kept.txt", fail)
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"] and (tmp_path / "kept.txt").read_text() == "old"


def test_a_function_of_the_users_own_is_stored_as_such():
    own = Activation.from_function(lambda x: jnp.tanh(2 * x), name="erf")
    values = json.loads(json.dumps(Problem.single_index(own, strength=0.5, teacher="erf").to_dict()))
    with pytest.raises(ArgumentError, match="`student` must be given: 'erf' is a function of the user's own"):
        Problem.from_dict(values)
    assert Problem.from_dict(values, student=own).student is own


def rows(number, size):
    """Datasets that differ in every number."""
    for place in range(number):
        values = np.arange(3.0 * size).reshape(3, size) + 100 * place
        values[0, 0] = np.nan
        yield xarray.Dataset(
            {"x": (("seed", "n"), values), "count": ((), place), "m": ("seed", values[:, 1])},
            coords={"seed": [5, 6, 7]},
            attrs={"made": "here"},
        )


def test_rows_are_written_as_one_dataset(tmp_path):
    write_rows(rows(4, 2), tmp_path / "rows.nc", along="point", number=4, kind="rows", more=[1])
    stored = read_dataset(tmp_path / "rows.nc")
    together = xarray.concat(list(rows(4, 2)), dim="point", data_vars="all")
    assert stored.drop_attrs().identical(together.drop_attrs()) and stored["x"].dtype == float
    assert stored.attrs["made"] == "here" and json.loads(stored.attrs["more"]) == [1]
    write_rows(rows(1, 2), tmp_path / "rows.nc", along="point", number=1, kind="rows")
    assert read_dataset(tmp_path / "rows.nc").sizes["point"] == 1


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path):
    """HDF5 would end the process by a signal."""
    code = f"""
import resource
from odes.storage import write_rows
from tests.odes.test_storage import rows
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
try:
    write_rows(rows(40, 10_000), {str(tmp_path / "rows.nc")!r}, along="point", number=40, kind="rows")
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "cannot write" in done.stdout and "File too large" in done.stdout
    assert list(tmp_path.iterdir()) == []
