"""Problems in TOML files."""

import jax
import numpy as np
import pytest

from odes import (
    SGD,
    Activation,
    Adapter,
    Problem,
    covariances,
    random_overlaps,
    read_problem,
    read_transfer,
    write_problem,
)
from tests.helpers import close
from tests.problems import dependent_rows, single, three_on_one, two_by_three

GOOD = """
student = "erf(x/sqrt(2))"
targets = [[1, 0, 0], [0, 1, 0]]
pretrained = [[0.5, 0, 0], [0, 0.3, 0.2]]
readout = [1, 0.5]

[adapter]
rank = 2
normalized = false

[sgd]
dimension = 1e4
noise_scale = 2.0
"""


def test_a_file_says_what_the_problem_is(tmp_path):
    path = tmp_path / "problem.toml"
    path.write_text(GOOD)
    problem = read_problem(path)
    assert problem.units == (2, 2) and problem.student.name == "erf(x/sqrt(2))" == problem.teacher.name
    assert problem.directions == ("target 1", "target 2", "pretrained 1", "pretrained 2")
    assert problem.adapter.rank == 2 and not problem.adapter.normalized
    assert float(problem.sgd.noise_scale) == 2 and problem.readout.tolist() == [1, 0.5]
    at = covariances(problem, random_overlaps(problem, jax.random.key(0)))
    np.testing.assert_allclose(at.Q, [[0.25, 0], [0, 0.13]])
    np.testing.assert_allclose(at.M, [[0.5, 0], [0, 0.3]])


@pytest.mark.parametrize(
    "problem",
    [two_by_three("He2+0.5*erf"), three_on_one(), dependent_rows(30), single("relu", alignment=0.3, rank=3, theta=0)],
)
def test_what_is_written_is_read_again(problem, tmp_path):
    path = tmp_path / "problem.toml"
    write_problem(problem, path)
    again = read_problem(path)
    for name in ("adapter", "sgd", "readout", "teacher_readout"):
        close(getattr(problem, name), getattr(again, name))
    assert (again.student.name, again.teacher.name) == (problem.student.name, problem.teacher.name)
    assert again.is_single_index == problem.is_single_index
    starts = [random_overlaps(some, jax.random.key(0)) for some in (problem, again)]
    one, two = (covariances(some, start) for some, start in zip((problem, again), starts, strict=True))
    close(one, two, atol=1e-14)


def test_links_of_the_users_own_are_not_written(tmp_path):
    mine = Activation.from_function(lambda x: x / (1 + x**2), name="mine")
    with pytest.raises(ValueError, match="'mine' is a function of your own"):
        write_problem(Problem.committee(mine, pretrained=[0.5]), tmp_path / "problem.toml")


BAD = {
    "is no TOML file": "student = ",
    "`pretrained` is missing": 'student = "erf"\ntargets = [[1]]',
    "`learning_rate` is not known": GOOD.replace("[adapter]", "learning_rate = 0.1\n[adapter]"),
    "`target` is not known; did you mean 'targets'?": GOOD.replace("targets", "target"),
    "`sgd.dimensions` is not known; did you mean 'dimension'?": GOOD.replace("dimension", "dimensions"),
    "`adapter.kappa` is not known": GOOD.replace("rank", "kappa"),
    "must have rows of one length, but they have 3, 2": GOOD.replace("[0, 1, 0]", "[0, 1]"),
    "must have as many columns as `targets`": GOOD.replace("[[1, 0, 0], [0, 1, 0]]", "[[1, 0], [0, 1]]"),
    "must be a list of numbers, but is": GOOD.replace("[0, 1, 0]", '[0, "1", 0]'),
    "must be a matrix": GOOD.replace("[[1, 0, 0], [0, 1, 0]]", "[]"),
    "`readout` must have shape": GOOD.replace("readout = [1, 0.5]", "readout = [1]"),
    "`rank` must be a whole number of at least 1": GOOD.replace("rank = 2", "rank = 0"),
    "`sgd.noise_scale` sets the batch size": GOOD.replace("[sgd]", "[sgd]\nbatch_size = 10"),
    "`sgd` must be a table": GOOD.replace("[adapter]", "sgd = 3\n[adapter]").split("[sgd]")[0],
    "`student` must be a name": GOOD.replace("erf(x/sqrt(2))", "exec(1)"),
    "a scale must be finite and not 0": GOOD.replace("erf(x/sqrt(2))", "erf(x/0)"),
    "the argument of a link function is x times": GOOD.replace("erf(x/sqrt(2))", "erf(y)"),
    "`student` must be the name of a link function": GOOD.replace('"erf(x/sqrt(2))"', "3"),
    "`pretrained[1]` must be finite": GOOD.replace("0.3, 0.2", "0.3, nan"),
    "`targets[1]` must be finite": GOOD.replace("[0, 1, 0]", "[0, 1" + 400 * "0" + ", 0]"),
    "`adapter.rank` must be a number": GOOD.replace("rank = 2", "rank = true"),
    "`adapter.scale` must be a number": GOOD.replace("rank = 2", 'rank = 2\nscale = "1"'),
    "`adapter.trained` must be a list of numbers": GOOD.replace("rank = 2", "rank = 2\ntrained = {a = 1}"),
    "`adapter.normalized` must be true or false": GOOD.replace("= false", "= 0"),
    "`adapter.rank` must be at most 4096": GOOD.replace("rank = 2", "rank = 1000000"),
    "is no TOML file:": "targets = " + 5000 * "[",
}


@pytest.mark.parametrize("message", BAD)
def test_bad_files_are_refused_in_words(message, tmp_path):
    path = tmp_path / "problem.toml"
    path.write_text(BAD[message])
    with pytest.raises(ValueError) as caught:
        read_problem(path)
    assert message in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_defaults_of_a_file_are_those_of_the_classes(tmp_path):
    path = tmp_path / "problem.toml"
    path.write_text('student = "erf"\ntargets = [[1, 0]]\npretrained = [[0.3, 0.4]]\n')
    problem = read_problem(path)
    close((problem.adapter, problem.sgd), (Adapter(), SGD()))
    assert problem.is_single_index
    np.testing.assert_allclose([problem.strength, problem.alignment], [0.5, 0.6], rtol=1e-15)


STAGES = """
student = "erf(x/sqrt(2))"
source = "tanh"
units = 3
cosines = [1, 0.3]
teacher_readout = [1, 0.5]

[adapter]
rank = 2

[sgd]
dimension = 1e4
batch_size = 500

[pretraining]
noise_scale = 0.01
length = 0.5
"""


def test_a_file_says_what_is_pretrained(tmp_path):
    path = tmp_path / "stages.toml"
    path.write_text(STAGES)
    transfer = read_transfer(path)
    assert (transfer.units, transfer.teachers) == (3, 2) and transfer.cosine.tolist() == [1, 0.3]
    assert transfer.source.name == "tanh" and transfer.target.name == "erf(x/sqrt(2))"
    assert float(transfer.pretraining_sgd.noise_scale) == pytest.approx(0.01) and float(transfer.sgd.batch_size) == 500
    assert float(transfer.length) == 0.5 and transfer.lora.teacher_readout.tolist() == [1, 0.5]
    np.testing.assert_allclose(
        transfer.lora.frame_gram,
        np.kron([[1, 0], [0, 1]], np.eye(2)) + np.eye(4, k=2) * [0, 0, 1, 0.3] + np.eye(4, k=-2) * [1, 0.3, 0, 0],
    )


@pytest.mark.parametrize(
    "complaint, text",
    [
        ("`cosines` is missing", STAGES.replace("cosines", "# cosines")),
        ("`units` must be a whole number", STAGES.replace("units = 3", "units = 1.5")),
        ("`cosines` must be between -1 and 1", STAGES.replace("0.3", "3")),
        ("`pretraining.noise_scale` sets the batch size", STAGES.replace("length = 0.5", "batch_size = 5")),
        ("`pretraining.width` is not known", STAGES.replace("length", "width")),
        ("`pretraining.spherical` must be true or false", STAGES.replace("length = 0.5", "spherical = 1")),
        ("`length` must be 1 for spherical", STAGES + "spherical = true"),
    ],
)
def test_what_is_wrong_with_a_pretraining_is_said(tmp_path, complaint, text):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        read_transfer(path)
