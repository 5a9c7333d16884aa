"""Files are written whole or not at all, with everything that made them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odes import Activation, Escape, Problem, load, solve
from odes.arguments import ArgumentError
from odes.storage import write_whole


def test_save_and_load(problem, start, tmp_path):
    solution = solve(problem, start, t1=300.0, escape=Escape())
    solution.save(tmp_path / "run.nc")
    stored = load(tmp_path / "run.nc")
    np.testing.assert_array_equal(stored.loss, solution.loss)
    np.testing.assert_array_equal(stored.cross[..., 0], solution.m)
    again = Problem.from_dict(json.loads(stored.attrs["problem"]))
    assert again.to_dict() == problem.to_dict()
    assert stored.attrs["version_jax"] == jax.__version__ and json.loads(stored.attrs["kind"]) == "solution"
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
