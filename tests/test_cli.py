"""The command line, called as a user calls it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from odes import load
from tests.reference import REFERENCE_POINTS
from validation.cli.main import main


def run(capsys, *words):
    """Exit code, standard output and standard error of `searchphase words...`."""
    try:
        code = main(list(words))
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("name, teacher, family, mu, C, D, noise, loss, tau", REFERENCE_POINTS)
def test_escape_prints_the_reference_values(capsys, name, teacher, family, mu, C, D, noise, loss, tau):
    flag = "--mixture" if family == "mixture" else "--strength"
    words = ["escape", "--activation", name, flag, str(mu), "--json"] + (["--teacher", teacher] if teacher else [])
    code, out, err = run(capsys, *words)
    point = json.loads(out)["points"][0]
    assert code == 0 and err == ""
    for key, known in dict(C=C, D=D, noise=noise, loss=loss, tau=tau).items():
        assert abs(point[key] - known) <= 1e-8 * abs(known) + 1e-14, key


def test_escape_finds_the_critical_strength_and_prints_every_contract_key(capsys):
    code, out, _ = run(
        capsys, "escape", "--activation", "He3", "--strength", "0.1:0.9:9", "--alignment", "1", "0.5", "--json"
    )
    result = json.loads(out)
    assert min(abs(zero - 0.320724347323) for zero in result["critical_strengths"]) < 1e-12
    assert len(result["points"]) == 18
    keys = "strength alignment C D G noise loss rate tau plateau escape_time_mean escape_time_std".split()
    assert list(result["points"][0])[: len(keys)] == keys


def test_escape_with_dimension_gives_the_law_and_plateaus_are_reported(capsys, tmp_path):
    words = "escape --strength 0.5 1 --dim 1e4 --batch-size 2000 --noise-limit --output".split()
    code, out, err = run(capsys, *words, str(tmp_path / "e.nc"), "--json")
    escapes, trapped = json.loads(out)["points"]
    assert code == 0 and 200 < escapes["escape_time_mean"] < 260 and escapes["escape_time_doubt"] is None
    quantiles = list(escapes["escape_time_quantiles"].values())
    assert quantiles == sorted(quantiles) and 20 < escapes["largest_noise_scale"] < 30
    assert trapped["escape_time_mean"] is None and "gradient vanishes" in trapped["escape_time_doubt"]
    assert "escape_time_quantile_0.5" in load(tmp_path / "e.nc")
    code, out, _ = run(capsys, "escape", "--activation", "He2", "--strength", "0.1", "--json")
    assert abs(json.loads(out)["points"][0]["plateau"]["up"] - 0.56862407) < 1e-7


def test_infinite_tau_is_null(capsys):
    assert json.loads(run(capsys, "escape", "--strength", "1", "--json")[1])["points"][0]["tau"] is None


def test_solve_prints_the_contract(capsys, tmp_path):
    output = tmp_path / "run.nc"
    words = [
        "solve",
        "--mixture",
        "0.5",
        "--rank",
        "2",
        "--t1",
        "60",
        "--records",
        "7",
        "--json",
        "--output",
        str(output),
    ]
    code, out, err = run(capsys, *words)
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


def test_simulate_prints_the_contract_and_draws(capsys, tmp_path):
    words = "simulate --dim 60 --batch-size 30 --seeds 3 --t1 20 --records 5 --strength 0.2 --json".split()
    code, out, err = run(capsys, *words, "--plot", str(tmp_path / "p.png"), "--output", str(tmp_path / "p.nc"))
    result = json.loads(out)
    assert code == 0 and {"t", "m_mean", "m_std", "loss_mean", "escape_times"} <= set(result)
    assert len(result["t"]) == 6 and len(result["escape_times"]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.nc", "p.png"]
    assert run(capsys, *words)[1] == out  # the same seed gives the same numbers


@pytest.mark.parametrize("command", ["escape", "solve", "simulate"])
def test_tables_for_people(capsys, command):
    extra = {"escape": [], "solve": ["--t1", "5"], "simulate": "--t1 2 --dim 30 --batch-size 10 --seeds 2".split()}[
        command
    ]
    code, out, err = run(capsys, command, *extra)
    assert code == 0 and err == "" and "loss" in out.splitlines()[0]


BAD = [
    ("escape --strength 0", "--strength must be positive and finite, but is 0"),
    ("escape --strength -1", "--strength must be positive and finite, but is -1"),
    ("escape --strength nan", "--strength must be positive and finite, but is nan"),
    ("escape --strength abc", "--strength takes numbers or ranges LOW:HIGH:N such as 0.1:0.9:9, not 'abc'"),
    ("escape --strength 0.1:0.9", "--strength takes numbers or ranges"),
    ("escape --alignment 1.5", "--alignment must be between -1 and 1, but is 1.5"),
    ("escape --mixture 0.5 --strength 1", "--mixture sets strength and alignment"),
    ("escape --activation elu2", "there is no 'elu2'; did you mean 'relu'"),
    ("escape --rank 0", "--rank must be an integer of at least 1, but is 0"),
    ("escape --rank x", "--rank"),
    ("escape --rank 10000000", "--rank must be at most"),
    ("escape --teacher foo", "--teacher must be a name"),
    ("escape --activation 1e999*He1", "a coefficient must be finite"),
    ("escape --activation ((He20)^2)^2", "grows faster"),
    ("escape --output /proc/x.nc", "--output cannot be written: '/proc/x.nc'"),
    ("solve --up nan --t1 1", "--up must be finite"),
    ("solve --seed 99999999999999999999999 --t1 1", "--seed must be a 64-bit integer"),
    ("solve --dim 2 --alignment 0.5 --t1 1", "--dim must be at least 3, the number of directions, but is 2"),
    ("simulate --learning-rate 1e-300", "--t1 must be at most a trillion steps"),
    ("simulate --activation tanh --strength 1", "--t1 must be given"),
    ("simulate --dim 20 --batch-size 1e13 --t1 1", "too large for this machine"),
    ("escape --threshold 2", "--threshold must be between 0 and 1"),
    ("escape --criterion losss", "did you mean 'loss'"),
    ("escape --dim 1", "--dim must be at least 2"),
    ("escape --plot x.gif", "--plot must end in .png or .pdf or .svg"),
    ("escape --output /nowhere/x.nc", "--output names a file in '/nowhere', which is not a folder"),
    ("escape --bogus 1", "--bogus"),
    ("solve --t1 0", "--t1 must be positive and finite, but is 0"),
    ("solve --t1 -3", "--t1 must be positive and finite, but is -3"),
    ("solve --strength 0.1 0.2", "take one value here"),
    ("solve --strength 1", "--t1 must be given"),
    ("solve --batch-size 0", "--batch-size must be at least 1"),
    ("solve --rtol 1e-20 --t1 1", "--rtol must be at least"),
    ("solve --records 1 --t1 1", "--records must be at least 2"),
    ("simulate --batch-size inf --t1 1", "--batch-size must be a whole number"),
    ("simulate --seeds 0 --t1 1", "--seeds must be at least 1"),
    ("simulate --method exact", "--method"),
    ("simulate --dim 2 --t1 1", "--dim must be at least 3"),
    ("simulate --block 0 --t1 1 --output x.nc", "--block must be at least 1, but is 0"),
    ("simulate --block 1.5 --t1 1", "--block takes a whole number, not '1.5'"),
    ("simulate --seeds 0 --t1 1 --output x.nc", "--seeds must be at least 1, but is 0"),
    ("simulate --resume --t1 1", "--resume goes on with what --output stored: give both"),
    ("simulate --method chain --batch-size 1e9 --t1 1", "method gaussian takes larger ones"),
    ("simulate --strength 0.5 1", "--t1 must be given, because the search phase never ends at strength 1"),
    ("solve --t1 zz", "--t1 takes a number, not 'zz'"),
    ("solve --dim zz", "--dim takes a number, not 'zz'"),
    ("escape --rank 1.5", "--rank takes a whole number, not '1.5'"),
    ("demo --output /proc/x", "--output '/proc/x' cannot be written"),
    ("escap", "escap"),
    ("", "Expected"),
]


@pytest.mark.parametrize("words, message", BAD)
def test_bad_input_is_one_line_and_exit_code_two(capsys, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *words.split())
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and message in err and err.startswith("searchphase"), err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", ["--help", "escape --help", "solve --help", "simulate --help", "demo --help"])
def test_help_is_not_an_error(capsys, words):
    code, out, _ = run(capsys, *words.split())
    assert code == 0 and "usage: searchphase" in out


def test_runs_as_a_module():
    words = [sys.executable, "-m", "validation", "escape", "--activation", "linear", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0 and abs(json.loads(done.stdout)["points"][0]["tau"] - 4.828427125) < 1e-8


@pytest.mark.slow
def test_demo(capsys, tmp_path):
    code, out, err = run(capsys, "demo", "--output", str(tmp_path / "out"), "--seeds", "2")
    assert code == 0 and "4.828" in out and "Escape (loss halved)" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["demo.nc", "demo.pdf", "demo.png"]
    assert {"tau_erf", "loss", "ode_loss"} <= set(load(tmp_path / "out" / "demo.nc").data_vars)
