"""The command as a whole: tables, help, the module, the demo."""

import json
import subprocess
import sys

import pytest

from odes import read_dataset
from tests.command_line import ON_ITS_OWN, run


@pytest.mark.parametrize("words", ["escape", "solve --t1 5", "simulate --t1 2 --dim 30 --batch-size 10 --seeds 2"])
def test_tables_for_people(words, capsys):
    code, out, err = run(capsys, *words.split())
    assert code == 0 and err == "" and "loss" in out.splitlines()[0]


@pytest.mark.parametrize("words", ["--help", "escape --help", "solve --help", "simulate --help", "demo --help"])
def test_help_is_not_an_error(capsys, words):
    code, out, _ = run(capsys, *words.split())
    assert code == 0 and "usage: searchphase" in out


def test_runs_as_a_module():
    words = [sys.executable, "-m", "validation", "escape", "--activation", "linear", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, env=ON_ITS_OWN)
    assert done.returncode == 0 and abs(json.loads(done.stdout)["points"][0]["tau"] - 4.828427125) < 1e-8


@pytest.mark.slow
def test_demo(capsys, tmp_path):
    code, out, err = run(capsys, "demo", "--output", str(tmp_path / "out"), "--seeds", "2")
    assert code == 0 and "4.828" in out and "Escape (loss halved)" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["demo.nc", "demo.pdf", "demo.png"]
    assert {"tau_erf", "loss", "ode_loss"} <= set(read_dataset(tmp_path / "out" / "demo.nc").data_vars)
