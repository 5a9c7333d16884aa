"""`simulate`: what it prints, several strengths, and runs that go on where they stopped."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from odes import Escape, load, read_dataset
from tests.command_line import assert_refused, on_its_own, run
from tests.helpers import same_bits
from tests.problems import single
from validation.jobs.parts import Parts
from validation.simulation import chain_simulator, simulate

CHAIN = "simulate --method chain --dim 1e3 --batch-size 64 --strength 0.2".split()


def same_file(one, other):
    one, other = read_dataset(one), read_dataset(other)
    assert set(one.data_vars) == set(other.data_vars) and {"up", "cross", "down_gram", "loss"} <= set(one.data_vars)
    for name in one.variables:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_simulate_prints_the_contract_and_draws(capsys, tmp_path):
    words = "simulate --dim 60 --batch-size 30 --seeds 3 --t1 20 --records 5 --strength 0.2 --json".split()
    code, out, err = run(capsys, *words, "--plot", str(tmp_path / "p.png"), "--output", str(tmp_path / "p.nc"))
    (result,) = json.loads(out)["points"]
    assert code == 0 and {"t", "m_mean", "m_std", "loss_mean", "escape_times"} <= set(result)
    assert len(result["t"]) == 6 and len(result["escape_times"]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.nc", "p.png"]
    assert run(capsys, *words)[1] == out  # the same seed gives the same numbers


@pytest.mark.parametrize("method, batch", [("direct", "20"), ("chain", "inf"), ("gaussian", "1e9")])
def test_every_method_runs(capsys, method, batch):
    words = f"simulate --method {method} --batch-size {batch} --dim 50 --strength 0.2 --seeds 2 --t1 2".split()
    code, out, err = run(capsys, *words)
    assert code == 0 and err == "" and f"Simulation ({method}) of 2 seeds at d = 50" in out


def test_several_strengths_in_one_call(capsys, tmp_path):
    """Every point has the seeds of a run of its own, its own end time, and its part of the file."""
    output = str(tmp_path / "sweep.nc")
    words = "simulate --method chain --dim 200 --batch-size 64 --mixture 0.1 0.3 --seeds 4 --block 2".split()
    words += "--records 10 --threshold 0.9 --until-escape --output".split() + [output]
    code, out, err = run(capsys, *words, "--json", "--plot", str(tmp_path / "sweep.png"))
    points = json.loads(out)["points"]
    assert code == 0 and err == "" and sorted(os.listdir(tmp_path)) == ["sweep.nc", "sweep.png"]
    assert list(points[0])[:5] == ["strength", "alignment", "rank", "dimension", "t"] and points[0]["diverged"] == 0
    np.testing.assert_allclose([point["strength"] * point["alignment"] for point in points], [0.1, 0.3])
    assert points[0]["t"][-1] < points[1]["t"][-1] and points[0]["loss_mean"][-1] is None
    place = {name: points[1][name] for name in ("strength", "alignment")}
    alone = simulate(
        chain_simulator(single(d=200, batch=64, **place)),
        key=jax.random.key(0),
        seeds=4,
        steps=(np.asarray(points[1]["t"]) / 0.2).round().astype(int),
        escape=Escape("loss", 0.9),
        until_escape=True,
        block=2,
    )
    same_bits(alone.escape_times, np.asarray(points[1]["escape_times"], float))
    same_bits(load(output)[1], alone)
    stored = read_dataset(output)
    for name, variable in stored.variables.items():
        assert variable.attrs["long_name"] and variable.attrs.get("units", "1") == "1", name
    assert stored["cross"].dims == ("point", "seed", "record", "rank", "frame") and stored["time"].shape == (2, 11)
    same_bits(stored["loss"][1].values, alone.loss)
    code, out, _ = run(capsys, *words, "--resume")  # finished: read, not computed
    header, *rows, note = out.splitlines()
    assert header.split() == (
        "strength alignment escaped escape_time_mean standard_error escape_time_std diverged".split()
    )
    assert len(rows) == 2 and [row.split()[2] for row in rows] == ["4", "4"] and "4 seeds at every point" in note


def test_points_with_fewer_records_are_padded(capsys, tmp_path):
    """tau, hence the number of steps, grows with strength; the short run has fewer steps than records."""
    output = tmp_path / "short.nc"
    words = "simulate --method chain --strength 0.1 0.9 --learning-rate 40 --batch-size 64 --seeds 2 --json".split()
    words += ["--output", str(output)]
    points = json.loads(run(capsys, *words)[1])["points"]
    lengths = [len(point["t"]) for point in points]
    assert lengths[0] < lengths[1] == 101
    assert np.isfinite(read_dataset(output)["time"].values).sum(axis=1).tolist() == lengths
    assert json.loads(run(capsys, *words, "--resume")[1])["points"] == points


def test_a_killed_run_goes_on_to_the_same_bits(capsys, tmp_path):
    words = [*CHAIN, "0.3", "--seeds", "40", "--block", "2", "--t1", "200", "--until-escape", "--workers", "1"]
    killed, whole, parts = tmp_path / "killed.nc", tmp_path / "whole.nc", tmp_path / "killed.nc.parts"
    process = subprocess.Popen(
        [sys.executable, "-m", "validation", *words, "--output", str(killed)],
        env=on_its_own(),
        stdout=subprocess.DEVNULL,
    )
    while len(list(parts.glob("point-*"))) < 2:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stored = sorted(file.name for file in parts.glob("point*"))
    assert 2 <= len(stored) < 40 and not killed.exists()
    (parts / ".point-0-seeds-38-to-39-abc").write_bytes(b"half a file")
    code, _, err = run(capsys, *words, "--output", str(killed))
    assert code == 2 and err.count("\n") == 1 and "holds an unfinished run: go on with --resume" in err
    before = {name: (parts / name).stat().st_mtime_ns for name in stored}
    seeds = [word if word != "40" else "38" for word in words]
    code, _, err = run(capsys, *seeds, "--output", str(killed), "--resume")
    assert code == 2 and err.count("\n") == 1 and "was made with --seeds 40 (now 38)" in err
    assert before == {name: (parts / name).stat().st_mtime_ns for name in stored}
    assert run(capsys, *words, "--output", str(killed), "--resume")[0] == 0
    assert sorted(os.listdir(tmp_path)) == ["killed.nc"]
    assert run(capsys, *words, "--output", str(whole), "--resume")[0] == 0  # nothing there: it starts
    same_file(killed, whole)
    assert {name: value for name, value in read_dataset(killed).attrs.items() if name != "command"} == {
        name: value for name, value in read_dataset(whole).attrs.items() if name != "command"
    }


def test_a_finished_run_is_printed_again_or_refused(capsys, tmp_path):
    words = [*CHAIN, "--seeds", "2", "--t1", "4", "--output", str(tmp_path / "run.nc")]
    _, out, _ = run(capsys, *words)
    (tmp_path / "run.nc.parts").mkdir()  # as if killed before the folder was removed
    stamp = (tmp_path / "run.nc").stat().st_mtime_ns
    assert run(capsys, *words, "--resume") == (0, out, "")
    assert (tmp_path / "run.nc").stat().st_mtime_ns == stamp and os.listdir(tmp_path) == ["run.nc"]
    code, _, err = run(capsys, *words, "--resume", "--dtype", "float64", "--block", "1")
    assert code == 2 and "made with --dtype float32 (now float64), --block not given (now 1)" in err
    read_dataset(tmp_path / "run.nc").drop_vars("escape_times").to_netcdf(tmp_path / "run.nc", engine="h5netcdf")
    code, _, err = run(capsys, *words, "--resume")
    assert code == 2 and err.count("\n") == 1 and "run.nc was made by another version" in err
    code, _, err = run(capsys, "escape", "--output", str(tmp_path / "run.nc"))
    assert (
        code == 2
        and err.count("\n") == 1
        and "holds something else: name another file, or replace it by --force" in err
    )
    assert run(capsys, "escape", "--output", str(tmp_path / "run.nc"), "--force")[0] == 0
    code, _, err = run(capsys, *words, "--resume")
    assert code == 2 and err.count("\n") == 1 and "run.nc is not a result of this command" in err
    (tmp_path / "run.nc").write_text("no netCDF")
    code, _, err = run(capsys, *words, "--resume")
    assert code == 2 and err.count("\n") == 1 and "is not a result of this command" in err


def test_more_seeds_are_added_to_a_finished_run(capsys, tmp_path):
    words = [*CHAIN, "0.3", "--t1", "100", "--until-escape", "--block", "4", "--json"]
    more, whole = str(tmp_path / "more.nc"), str(tmp_path / "whole.nc")
    few = run(capsys, *words, "--seeds", "4", "--output", more)[1]
    before = read_dataset(more)["loss"].values
    again = run(capsys, *words, "--seeds", "8", "--output", more, "--resume")[1]
    assert again == run(capsys, *words, "--seeds", "8", "--output", whole)[1] != few
    same_file(more, whole)
    same_bits(read_dataset(more)["loss"].values[:, :4], before)
    stamp = os.stat(more).st_mtime_ns
    assert run(capsys, *words, "--seeds", "4", "--output", more, "--resume")[1] == few  # the first of what is there
    assert os.stat(more).st_mtime_ns == stamp and os.listdir(tmp_path) == ["more.nc", "whole.nc"]


def test_parts_of_added_seeds_are_those_of_no_others(capsys, tmp_path):
    """Seeds 4 to 7 are added to a finished run, interrupted after a block; without the finished file all are computed."""
    words = [*CHAIN, "--block", "2", "--t1", "2", "--workers", "1", "--output", str(tmp_path / "run.nc")]
    assert run(capsys, *words, "--seeds", "4")[0] == 0
    flags, more = {}, [*words, "--seeds", "8", "--resume"]
    assert run(capsys, *more)[0] == 0
    whole = read_dataset(tmp_path / "run.nc")
    (tmp_path / "run.nc").unlink()
    assert run(capsys, *words, "--seeds", "4")[0] == 0
    write = Parts.write

    def once(self, name, result):
        flags[name] = True
        write(self, name, result)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parts, "write", once)
        assert run(capsys, *more)[0] == 130
    assert list(flags) == ["point-0-seeds-4-to-5"]
    (tmp_path / "run.nc").unlink()
    assert run(capsys, *more)[0] == 0
    again = read_dataset(tmp_path / "run.nc")
    for name in whole.variables:
        np.testing.assert_array_equal(whole[name], again[name])


def test_a_problem_that_was_edited_is_another(capsys, tmp_path):
    file, output = tmp_path / "problem.toml", tmp_path / "run.nc"
    text = pathlib.Path("examples/committee.toml").read_text()
    file.write_text(text)
    words = [
        "simulate",
        "--problem",
        str(file),
        "--method",
        "chain",
        "--seeds",
        "1",
        "--t1",
        "1",
        "--output",
        str(output),
    ]
    assert run(capsys, *words)[0] == 0 and run(capsys, *words)[0] == 0
    file.write_text(text.replace("0.5", "0.6"))
    code, _, err = run(capsys, *words)
    assert code == 2 and "holds something else" in err
    code, _, err = run(capsys, *words, "--resume")
    assert code == 2 and "was made with --problem" in err


def test_parts_that_were_computed_apart_are_put_together(capsys, tmp_path):
    words = "simulate --method chain --dim 1e3 --batch-size 64 --t1 100 --block 2 --json".split()
    first, later, other, seeds, whole, points = (str(tmp_path / f"{name}.nc") for name in "abcdef")
    run(capsys, *words, "--strength", "0.2", "--seeds", "2", "--output", first)
    run(capsys, *words, "--strength", "0.2", "--seeds", "4", "--seed-offset", "2", "--output", later)
    run(capsys, *words, "--strength", "0.4", "--seeds", "2", "--rank", "3", "--output", other)
    code, out, _ = run(capsys, "merge", later, first, "--output", seeds, "--json")
    assert code == 0 and out == run(capsys, *words, "--strength", "0.2", "--seeds", "6", "--output", whole)[1]
    same_file(seeds, whole)
    code, out, _ = run(capsys, "merge", first, other, "--output", points, "--plot", str(tmp_path / "g.png"), "--json")
    assert [(place["strength"], place["rank"]) for place in json.loads(out)["points"]] == [(0.2, 1), (0.4, 3)]
    same_bits(load(points)[1], load(other)[0])
    assert_refused(
        capsys, [*words, "--strength", "0.2", "--seeds", "6", "--output", seeds, "--resume"], "is not a result"
    )
    assert_refused(capsys, [*words, "--strength", "0.2", "--seeds", "6", "--output", seeds], "holds something else")
    longer = str(tmp_path / "longer.nc")
    run(capsys, *words, "--strength", "0.2", "--seeds", "2", "--seed-offset", "9", "--t1", "200", "--output", longer)
    assert_refused(capsys, ["merge", first, longer], "recorded at the same times")
    for files, message in (
        ((first, first), "no seed twice"),
        ((later, other), "the same points"),
        ((first,), "two files or more"),
        ((first, str(tmp_path / "g.png")), "cannot be read as a netCDF file"),
        ((first, str(tmp_path / "none.nc")), "there is no file"),
    ):
        assert_refused(capsys, ["merge", *files], message)
    run(capsys, *words, "--strength", "0.2", "--seeds", "2", "--seed", "1", "--output", other, "--force")
    assert_refused(capsys, ["merge", first, other], "was made with --seed 1 (there 0)")


def test_what_noise_forbids_and_what_diverges_is_said(capsys):
    words = "simulate --method chain --dim 1e4 --batch-size 50 --seeds 2 --t1".split()
    code, out, _ = run(capsys, *words, "500")
    assert code == 0 and "SGD noise forbids the escape: theta = eta * d / B = 40" in out
    assert "forbids" not in run(capsys, *words, "4")[1]
    words = (
        "simulate --method chain --activation linear --free-rows --learning-rate 50 --seeds 2 --t1 400 --batch-size inf"
    )
    code, out, _ = run(capsys, *words.split())
    assert code == 1 and "2 seeds diverged and are left out of the means" in out
