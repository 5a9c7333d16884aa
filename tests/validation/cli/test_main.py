"""The command as a whole: tables, help, the module, the demo."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import xarray

import searchphase
from odes import read_dataset
from tests.command_line import assert_refused, on_its_own, run
from validation.cli.commands import COMMANDS


@pytest.mark.parametrize("words", ["escape", "solve --t1 5", "simulate --t1 2 --dim 30 --batch-size 10 --seeds 2"])
def test_tables_for_people(words, capsys):
    code, out, err = run(capsys, *words.split())
    assert code == 0 and err == "" and "loss" in out.splitlines()[0]


@pytest.mark.parametrize("words", ["--help", "escape --help", "solve --help", "simulate --help", "demo --help"])
def test_help_is_not_an_error(capsys, words):
    code, out, _ = run(capsys, *words.split())
    assert code == 0 and "usage: searchphase" in out


def test_every_flag_says_what_it_is_unless_given(capsys):
    """A default, or in words what is done."""
    for name in COMMANDS:
        out = run(capsys, name, "--help")[1]
        for flag in re.split(r"\n│ (?=-)", out)[1:]:
            words = " ".join(re.sub("[│╰╯╭╮─]", " ", flag).split())
            assert re.search(r"default|unless given|-h, --help|Also |With --random|at most", words), (name, words)


def test_version_and_the_three_packages(capsys):
    code, out, _ = run(capsys, "--version")
    assert code == 0 and out == f"searchphase {searchphase.__version__}\n"
    assert searchphase.odes.Problem and searchphase.theory.escape_law and searchphase.validation


def test_the_device_acts_before_jax_starts():
    """The flag wins over the environment; where there is no such device one line says so."""
    words = [sys.executable, "-m", "validation", "escape", "--activation", "linear", "--json", "--device"]
    there = jax.default_backend() == "gpu"
    for device, platforms, code in (("cpu", "nonsense", 0), ("gpu", "cpu", 0 if there else 2)):
        environment = on_its_own() | {"JAX_PLATFORMS": platforms}
        done = subprocess.run([*words, device], capture_output=True, text=True, env=environment)
        assert done.returncode == code, done.stderr
        if code:
            assert done.stdout == "" and done.stderr.count("\n") == 1
            assert "searchphase escape: --device gpu: JAX finds no GPU here" in done.stderr


@pytest.mark.parametrize("device", ["tpu", "None"])
def test_an_unknown_device_is_refused_with_those_that_there_are(capsys, device):
    assert_refused(capsys, ["escape", "--device", device], f"--device takes one of 'cpu', 'gpu', not '{device}' (see")


def test_every_command_that_computes_takes_a_device(capsys):
    for name in set(COMMANDS) - {"equations", "cache"}:
        assert "--device cpu|gpu" in run(capsys, name, "--help")[1], name


def test_a_closed_pipe_is_silent():
    words = f"{sys.executable} -m validation escape --activation linear --strength 0.1:0.9:400 | head -1"
    done = subprocess.run(words, shell=True, capture_output=True, text=True, env=on_its_own())
    assert done.stderr == "" and done.stdout.count("\n") == 1


def test_an_interrupted_run_says_what_is_kept(tmp_path):
    words = (
        "simulate --method chain --dim 1e3 --batch-size 64 --seeds 400 --block 1 --t1 400 --workers 2 --output run.nc"
    )
    heeding = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell's background jobs ignore it
    )
    script = f"{heeding}; from validation.cli.main import main; raise SystemExit(main())"
    command = [sys.executable, "-c", script, *words.split()]
    paths = os.environ.get("PYTHONPATH", "")
    environment = on_its_own() | {"PYTHONPATH": f"{os.getcwd()}:{paths}"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "run.nc.parts").glob("point-0-seeds-0-to-0.*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    kept = "run.nc.parts keeps what is finished: the same command with --resume goes on"
    assert err.splitlines()[-1] == f"searchphase simulate: interrupted; {kept}"


def test_runs_as_a_module():
    words = [sys.executable, "-m", "validation", "escape", "--activation", "linear", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, env=on_its_own())
    assert done.returncode == 0 and abs(json.loads(done.stdout)["points"][0]["tau"] - 4.828427125) < 1e-8


@pytest.mark.slow
def test_demo(capsys, tmp_path):
    code, out, err = run(capsys, "demo", "--output", str(tmp_path / "out"), "--seeds", "2")
    assert code == 0 and "4.828" in out and "Escape (loss halved)" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["demo.nc", "demo.pdf", "demo.png"]
    assert {"tau_erf", "loss", "ode_loss"} <= set(read_dataset(tmp_path / "out" / "demo.nc").data_vars)


@pytest.mark.parametrize(
    ("words", "rows", "name"),
    [
        ("escape --activation He2 --strength 0.2 0.8", 2, "tau"),
        ("solve --t1 5 --records 7", 7, "loss"),
        ("solve --problem examples/committee.toml --t1 5 --records 7", 7, "loss"),
    ],
)
def test_a_table_is_written_as_csv_in_all_digits(capsys, tmp_path, words, rows, name):
    text, netcdf = tmp_path / "run.csv", tmp_path / "run.nc"
    assert run(capsys, *words.split(), "--output", str(text))[0] == 0
    assert run(capsys, *words.split(), "--output", str(netcdf))[0] == 0
    read = list(csv.DictReader(text.read_text().splitlines()))
    assert len(read) == rows
    np.testing.assert_array_equal([float(row[name]) for row in read], read_dataset(netcdf)[name].values)


def test_a_csv_file_is_replaced_by_force_alone(capsys, tmp_path):
    words = ["escape", "--activation", "linear", "--output", str(tmp_path / "run.csv")]
    assert run(capsys, *words)[0] == 0
    assert_refused(capsys, words, "holds something else")
    assert run(capsys, *words, "--force")[0] == 0


def test_results_open_with_xarray_alone(capsys, tmp_path):
    file = tmp_path / "run.nc"
    for words in ("escape --strength 0.3 0.5", "solve --t1 5", "simulate --method chain --t1 2 --seeds 2 --dim 100"):
        assert run(capsys, *words.split(), "--output", str(file), "--force")[0] == 0
        with xarray.open_dataset(file) as dataset:
            assert dataset.attrs["version_searchphase"] == searchphase.__version__ and len(dataset.data_vars) > 3


def test_the_shell_is_told_how_to_complete(capsys):
    code, out, _ = run(capsys, "--tyro-print-completion", "bash")
    assert code == 0 and "phase-diagram" in out and "--strength" in out
