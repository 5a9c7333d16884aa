"""`solve`."""

import json

import numpy as np

from odes import load
from tests.command_line import run


def test_solve_prints_the_contract(capsys, tmp_path):
    output = tmp_path / "run.nc"
    words = "solve --mixture 0.5 --rank 2 --t1 60 --records 7 --json --output".split()
    code, out, err = run(capsys, *words, str(output))
    result = json.loads(out)
    assert code == 0 and list(result) == "t loss m u s target_overlap escape_time steps_taken result".split()
    assert len(result["t"]) == 7 and np.shape(result["m"]) == (2, 7) and 0 < result["escape_time"] < 60
    assert abs(result["s"][0][0] - 0.5 * result["m"][0][0]) > 0  # s is not m
    np.testing.assert_allclose(load(output).loss, result["loss"])


def test_solve_starts_from_a_given_up_matrix_that_may_stay_as_it_is(capsys):
    """With lr ratio 0 the up-matrix is frozen and V alone is trained."""
    result = json.loads(run(capsys, "solve", "--t1", "50", "--up", "0.3", "--lr-ratio", "0", "--json")[1])
    assert set(result["u"][0]) == {0.3} and abs(result["m"][0][-1]) > 0.99


def test_solve_without_escape_prints_null(capsys):
    result = json.loads(run(capsys, "solve", "--t1", "1", "--json", "--log-times")[1])
    assert result["escape_time"] is None and result["result"] == "reached t1"
