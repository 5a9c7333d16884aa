"""The wheel in an environment of its own: packages, data files, command line, types."""

import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("odes", "theory", "validation", "searchphase")

DEPENDENT = """
import numpy as np
from odes import SGD, Problem, solve, random_overlaps
from theory import EscapeLaw, escape_law, search_phase

def law(strength: float) -> EscapeLaw:
    return escape_law(Problem.single_index("erf", strength=strength, sgd=SGD(dimension=1e4)))

tau: float = float(search_phase(Problem.mixture("erf", mu=0.5)).tau)
"""
WRONG = """
from user import law

reason: int = law(0.5).doubt
law("strong")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the sdist so that this is whole too."""
    folder = tmp_path_factory.mktemp("dist")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = "from hatchling.build import build_sdist; import sys; print(build_sdist(sys.argv[1]))"
    environment = folder / "build"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    subprocess.run([environment / "bin/pip", "install", "--quiet", "hatchling"], check=True)
    done = subprocess.run(
        [environment / "bin/python", "-c", build, folder], cwd=ROOT, check=True, capture_output=True, text=True
    )
    sdist = folder / done.stdout.split()[-1]
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, sdist], check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A fresh environment with the wheel; what it depends on is that of the tests."""
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin/pip", "install", "--quiet", "--no-deps", wheel], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder


@pytest.mark.slow
def test_the_wheel_holds_types_and_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert {"validation/checks/settings.toml", "validation/figures/searchphase.mplstyle"} <= names
    assert not any(name.startswith(("tests", "website", "docs")) for name in names)


@pytest.mark.slow
def test_the_wheel_works_in_another_folder(environment, tmp_path):
    def said(*words):
        return subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    where = said(environment / "bin/python", "-c", "import odes, theory, validation, searchphase; print(odes.__file__)")
    assert where.startswith(str(environment))
    command = environment / "bin/searchphase"
    assert said(command, "--version").startswith("searchphase ")
    assert json.loads(said(command, "escape", "--activation", "linear", "--json"))["points"][0]["tau"] > 4
    said(command, "escape", "--activation", "linear", "--strength", "0.2", "0.4", "--plot", "x.png", "--output", "x.nc")
    assert {path.name for path in tmp_path.iterdir()} == {"x.png", "x.nc"}
    assert "escape-law" in said(command, "figures", "--list")


@pytest.mark.slow
def test_a_type_checker_knows_the_types(environment, tmp_path):
    (tmp_path / "user.py").write_text(DEPENDENT)
    (tmp_path / "wrong.py").write_text(WRONG)
    words = [Path(sys.executable).parent / "pyright", "--pythonpath", environment / "bin/python", "--outputjson"]
    done = subprocess.run([*words, "user.py", "wrong.py"], cwd=tmp_path, capture_output=True, text=True)
    found = [(Path(one["file"]).name, one["rule"]) for one in json.loads(done.stdout)["generalDiagnostics"]]
    assert found == [("wrong.py", "reportAssignmentType"), ("wrong.py", "reportArgumentType")]
