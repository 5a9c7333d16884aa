"""The figures: every one computes and draws; what is stored is drawn again, resumed or refused; bad input."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from odes import Problem, load
from theory import search_phase
from validation.cli.main import main
from validation.figures import FIGURES, QUICK, Settings, Work, escape_time
from validation.figures.base import Figure
from validation.figures.escape_time import Link

HE3_AT_HALF = 2 / (np.hypot(2.8125, 2 * 3.09375) - 2.8125)
"""tau of He3, aligned at q = mu^2 = 1/4: D = 45 q^2 - 36 q + 9, sqrt(G) = 9 mu (4 mu^2 + 2 mu - 1 - 5 mu^4)."""

TINY = Settings(
    points=8,
    marks=2,
    seeds=4,
    dimension=400.0,
    direct_seeds=3,
    direct_dimension=60.0,
    most_steps=400,
    simulated_links=1,
)
CHEAP = "bias"


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_computes_and_draws(name, tmp_path):
    paths = FIGURES[name].files(tmp_path, FIGURES[name].compute(Work(TINY)))
    assert [path.name for path in paths] == [f"{name}.pdf", f"{name}.png"]
    assert all(path.stat().st_size > 5000 for path in paths)


def cheap_figure(folder, *flags):
    return main(["figures", CHEAP, "--quick", "--folder", str(folder), *flags])


def test_files_and_json(tmp_path, capsys):
    assert cheap_figure(tmp_path, "--json") == 0
    written = json.loads(capsys.readouterr().out)["written"]
    assert sorted(written) == sorted(str(tmp_path / f"{CHEAP}.{suffix}") for suffix in ("nc", "pdf", "png"))
    stored = load(tmp_path / f"{CHEAP}.nc").attrs
    assert json.loads(stored["settings"])["seeds"] == QUICK.seeds
    assert {"version_searchphase", "version_jax", "device", "dtype", "figure"} <= set(stored)


def test_stored_data_are_drawn_without_computing(tmp_path, capsys, monkeypatch):
    assert cheap_figure(tmp_path) == 0
    monkeypatch.setattr(Figure, "computed", lambda *_: pytest.fail("computed again"))
    for flags in ((), ("--redraw",)):
        (tmp_path / f"{CHEAP}.png").unlink()
        capsys.readouterr()
        assert cheap_figure(tmp_path, *flags) == 0
        assert (tmp_path / f"{CHEAP}.png").exists() and f"{CHEAP}.nc" not in capsys.readouterr().out


def test_other_settings_and_again_compute(tmp_path, monkeypatch):
    assert cheap_figure(tmp_path) == 0
    first = load(tmp_path / f"{CHEAP}.nc")
    assert cheap_figure(tmp_path, "--seed", "1") == 0
    second = load(tmp_path / f"{CHEAP}.nc")
    assert json.loads(second.attrs["settings"])["seed"] == 1
    assert any(not np.array_equal(first[name], second[name], equal_nan=True) for name in first)
    assert cheap_figure(tmp_path, "--seed", "1", "--again") == 0
    assert load(tmp_path / f"{CHEAP}.nc").identical(second)


def test_an_interrupted_figure_goes_on_with_what_is_kept(tmp_path):
    """The simulations that were finished are not run again, and the result is that of an uninterrupted run."""
    runs, broken = [], True

    def compute(work):
        import xarray

        values = []
        for number in range(3):
            if broken and number == 2:
                raise KeyboardInterrupt
            run = work.chain(Problem.single_index("linear", strength=0.5), [0, 5], seeds=3)
            runs.append(number)
            values.append(np.asarray(run.loss[:, -1]))
        return xarray.Dataset({"loss": (("run", "seed"), np.stack(values))})

    figure = Figure("test", "A test.", compute, lambda dataset: None)
    with pytest.raises(KeyboardInterrupt):
        figure.computed(tmp_path, TINY)
    assert len(list((tmp_path / "test.nc.parts").iterdir())) == 2
    kept = (tmp_path / "test.nc.parts" / "point-1-block-0.nc").stat().st_mtime_ns
    with pytest.raises(KeyboardInterrupt):
        figure.computed(tmp_path, TINY)
    assert (tmp_path / "test.nc.parts" / "point-1-block-0.nc").stat().st_mtime_ns == kept
    broken = False
    resumed = figure.computed(tmp_path, TINY)
    assert not (tmp_path / "test.nc.parts").exists()
    np.testing.assert_array_equal(resumed["loss"], figure.compute(Work(TINY))["loss"])


@pytest.mark.parametrize(
    "plan, expected",
    [
        (escape_time.Plan([Link("linear")]), [4.828427125]),
        pytest.param(
            escape_time.Plan([Link("linear"), Link("relu")]), [4.828427125, 9.656854249], marks=pytest.mark.slow
        ),
        pytest.param(
            escape_time.Plan([Link("erf"), Link("sigmoid")]), [45.59417214, 178.6088705], marks=pytest.mark.slow
        ),
        pytest.param(escape_time.Plan([Link("erf")], squared=True, noise=0.0), [8.044551184], marks=pytest.mark.slow),
        pytest.param(escape_time.Plan([Link("He3")], noise=0.0), [HE3_AT_HALF], marks=pytest.mark.slow),
    ],
)
def test_tau_of_the_escape_time_figures(plan, expected):
    """The lines against values computed apart; the markers, from simulated escape times alone, within 4.5 standard errors."""
    settings = dataclasses.replace(TINY, seeds=80, dimension=2e4, most_steps=8000, simulated_links=9)
    data = escape_time.compute(Work(settings), plan)
    middle = data["strength"].size // 2
    assert abs(float(data["strength"][middle]) - 0.5) < 1e-12
    np.testing.assert_allclose(data["tau"][:, middle], expected, rtol=1e-8)
    for i, link in enumerate(plan.links):
        at = [
            Problem.single_index(link.name, strength=mu, teacher=plan.teacher(link.name)) for mu in data["mark"].values
        ]
        tau = np.array([1 / float(search_phase(problem).rate) for problem in at])
        z = (data["simulated_tau"][i] - tau) / np.hypot(data["standard_error"][i], 0.01 * tau)
        assert np.isfinite(z).any() and np.nanmax(np.abs(z)) < 4.5


@pytest.mark.parametrize(
    "flags, message",
    [
        ("escape-tme", "there is no figure 'escape-tme'; did you mean 'escape-time'? (--list names them)"),
        (f"{CHEAP} --redraw", "does not exist"),
        (f"{CHEAP} --redraw --again", "exclude each other"),
        (f"{CHEAP} --folder /proc/nowhere", "--folder '/proc/nowhere' cannot be written"),
    ],
)
def test_bad_input_is_one_line(flags, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["figures", *flags.split()]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_data_of_another_version_or_kind_are_refused(tmp_path, capsys):
    assert cheap_figure(tmp_path) == 0
    file = tmp_path / f"{CHEAP}.nc"
    load(file).assign_attrs(version_searchphase="0.0.1").to_netcdf(file, engine="h5netcdf")
    capsys.readouterr()
    assert cheap_figure(tmp_path, "--redraw") == 2
    assert "was made by searchphase 0.0.1, this is" in capsys.readouterr().err
    file.write_bytes(b"no netCDF")
    assert cheap_figure(tmp_path, "--redraw") == 2
    assert "does not hold the data of" in capsys.readouterr().err


def test_full_disk_leaves_nothing_half_written(tmp_path):
    """Files may not grow beyond a block: writing fails as it does on a full disk."""
    code = "import resource, sys, validation.cli.main as cli; resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)); sys.exit(cli.main())"
    arguments = ["figures", CHEAP, "--quick", "--folder", str(tmp_path)]
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert run.returncode == 2 and not run.stdout
    assert run.stderr.splitlines()[-1].startswith("searchphase figures: ") and "Traceback" not in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_list_names_every_figure(capsys):
    assert main(["figures", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(FIGURES)
    assert all(len(line.split()) > 5 for line in lines)
