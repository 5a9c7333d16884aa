"""Files are written whole or not at all, with everything that made them."""

import json

import jax
import jax.numpy as jnp
import pytest

from odes import Activation, Escape, Problem, load, read_dataset, solve
from odes.arguments import ArgumentError
from odes.storage import write_whole
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
