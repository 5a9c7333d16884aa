"""`figures`: what is stored is drawn again or refused."""

import json
import subprocess
import sys

import numpy as np
import pytest

from odes import read_dataset
from tests.command_line import on_its_own, run
from validation.figures.effort import QUICK
from validation.figures.figure import Figure
from validation.figures.registry import all_figures

CHEAP = "bias"

pytestmark = pytest.mark.carefully


@pytest.fixture
def draw(capsys, tmp_path):
    """Draws the cheap figure in `tmp_path`, from the data that a run before it left there unless told otherwise."""
    return lambda *flags: run(capsys, "figures", CHEAP, "--quick", "--folder", str(tmp_path), *flags)


def test_files_and_json(draw, tmp_path):
    code, out, _ = draw("--json")
    written = json.loads(out)["written"]
    assert code == 0 and sorted(written) == sorted(
        str(tmp_path / f"{CHEAP}.{suffix}") for suffix in ("nc", "pdf", "png")
    )
    stored = read_dataset(tmp_path / f"{CHEAP}.nc").attrs
    assert json.loads(stored["settings"])["seeds"] == QUICK.seeds
    assert {"version_searchphase", "version_jax", "device", "dtype", "figure"} <= set(stored)


def test_stored_data_are_drawn_without_computing(draw, tmp_path, monkeypatch):
    assert draw()[0] == 0
    monkeypatch.setattr(Figure, "computed", lambda *_: pytest.fail("computed again"))
    for flags in ((), ("--redraw",)):
        (tmp_path / f"{CHEAP}.png").unlink()
        code, out, _ = draw(*flags)
        assert code == 0 and (tmp_path / f"{CHEAP}.png").exists() and f"{CHEAP}.nc" not in out


def test_other_settings_and_again_compute(draw, tmp_path):
    assert draw()[0] == 0
    first = read_dataset(tmp_path / f"{CHEAP}.nc")
    assert draw("--seed", "1")[0] == 0
    second = read_dataset(tmp_path / f"{CHEAP}.nc")
    assert json.loads(second.attrs["settings"])["seed"] == 1
    assert any(not np.array_equal(first[name], second[name], equal_nan=True) for name in first)
    assert draw("--seed", "1", "--again")[0] == 0
    assert read_dataset(tmp_path / f"{CHEAP}.nc").identical(second)


def test_data_of_another_version_or_kind_are_refused(draw, tmp_path):
    assert draw()[0] == 0
    file = tmp_path / f"{CHEAP}.nc"
    read_dataset(file).assign_attrs(version_searchphase="0.0.1").to_netcdf(file, engine="h5netcdf")
    code, _, err = draw("--redraw")
    assert code == 2 and "was made by searchphase 0.0.1, this is" in err
    file.write_bytes(b"no netCDF")
    code, _, err = draw("--redraw")
    assert code == 2 and "does not hold the data of" in err


def test_full_disk_leaves_nothing_half_written(tmp_path):
    """Files may not grow beyond a block: writing fails as it does on a full disk."""
    code = "import resource, sys, validation.cli.main as cli; resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)); sys.exit(cli.main())"
    arguments = ["figures", CHEAP, "--quick", "--folder", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=on_its_own())
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.splitlines()[-1].startswith("searchphase figures: ") and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_list_names_every_figure(capsys):
    code, out, _ = run(capsys, "figures", "--list")
    lines = out.splitlines()
    assert code == 0 and [line.split()[0] for line in lines] == list(all_figures())
    assert all(len(line.split()) > 5 for line in lines)
