"""Simulations of several points: what is in memory, and on disk, at a time."""

import contextlib
import dataclasses
import gc
import os
import subprocess
import sys
import tempfile
import tracemalloc
import types

import jax.numpy as jnp
import numpy as np
import pytest

from odes import load
from odes.arguments import ArgumentError
from odes.pickles import packed
from tests.command_line import on_its_own
from tests.helpers import same_bits
from tests.problems import single
from validation.jobs.parts import Parts
from validation.simulation import (
    Place,
    Simulations,
    Sweep,
    chain_simulator,
    direct_simulator,
    simulate,
    simulate_points,
)
from validation.simulation.ensemble import one_stage, planned

PROBLEM = single(d=1000, batch=64, strength=0.2)
POINTS = {
    "places": [Place(0.2, 1.0, 1, 1e3), Place(0.3, 1.0, 1, 1e3)],
    "steps": [np.array([0, 5])] * 2,
    "seeds": 5,
    "block": 2,
}


def test_without_a_file_blocks_are_kept_in_a_folder_as_long_as_they_are_used(key, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    problems = [PROBLEM, single(d=1000, batch=64, strength=0.3)]
    found = simulate_points(problems, chain_simulator, key=key, **POINTS)
    assert len(found.simulations) == 2 and [some.problem for some in found.simulations] == problems
    for number, problem in enumerate(problems):
        alone = simulate(chain_simulator(problem), key=key, seeds=5, steps=[0, 5], block=2)
        same_bits(found.simulations[number].overlaps, alone.overlaps)
        same_bits(found.simulations[number - 2].loss, alone.loss)
    with pytest.raises(IndexError):
        found.simulations[2]
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.glob("run.parts/point-*"))) == 6
    del found
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_room_on_disk_is_refused_before_it_starts(key, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=2 * 2 * 5 * 2 * 6 * 8 - 1))
    parts = Parts(str(tmp_path / "run.nc"), {}, resume=False)
    with pytest.raises(ArgumentError, match="keeping all records of all seeds needs about"):
        simulate_points([PROBLEM, PROBLEM], chain_simulator, key=key, parts=parts, **POINTS)
    assert list(tmp_path.iterdir()) == []


def test_what_is_finished_takes_no_more_room_on_disk(key, tmp_path, monkeypatch):
    """A run that was interrupted after a block goes on where there is room for the others and the file alone."""
    write = Parts.write

    def once(self, name, result):
        write(self, name, result)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Parts, "write", once)
        parts = Parts(str(tmp_path / "run.nc"), {}, resume=False)
        simulate_points([PROBLEM, PROBLEM], chain_simulator, key=key, parts=parts, **POINTS)
    seed = 2 * 6 * 8
    for free, fits in (((8 + 10) * seed - 1, False), ((8 + 10) * seed, True)):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: types.SimpleNamespace(free=free))
        again = Parts(str(tmp_path / "run.nc"), {}, resume=True)
        with contextlib.nullcontext() if fits else pytest.raises(ArgumentError, match="needs about"):
            simulate_points([PROBLEM, PROBLEM], chain_simulator, key=key, parts=again, **POINTS)
    assert [file.name for file in tmp_path.iterdir()] == ["run.nc"]


def test_a_file_is_written_with_one_point_in_memory(key, tmp_path):
    some = simulate(chain_simulator(PROBLEM), key=key, seeds=1000, steps=np.arange(101))

    def made(number):
        return dataclasses.replace(some, loss=jnp.asarray(np.asarray(some.loss) + number))

    def peak(points):
        place = Place(0.2, 1.0, 1, 1e3)
        sweep = Sweep(Simulations([PROBLEM] * points, 101, made), [place] * points, None)
        tracemalloc.start()
        sweep.save(tmp_path / f"{points}.nc", kind="simulations")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(2)
    few, many = peak(3), peak(30)
    assert few > some.loss.nbytes and many < 1.2 * few
    for number, run in enumerate(load(tmp_path / "30.nc")):
        same_bits(run.loss, made(number).loss)


def test_a_job_of_the_direct_simulator_is_small(key):
    """However large d is: the fixed directions go with it by their coordinates."""
    simulator = direct_simulator(single(d=10**6, batch=1, strength=0.2))
    (job,) = planned(*one_stage(simulator, [0, 1]), key=key, seeds=1).jobs
    assert len(packed(job)) < 10_000
    assert simulator.directions.shape == (2, 10**6)


@pytest.mark.slow
def test_the_memory_of_a_command_does_not_grow_with_its_points(tmp_path):
    seeds, records, rank = 3000, 60, 4
    point = 8 * seeds * records * (rank + 2 * rank + rank**2 + 1) / 2**20

    def peak(points):
        """The most memory that the command has at a time, in MiB."""
        words = f"simulate --method chain --rank {rank} --seeds {seeds} --records {records} --t1 12 --dim 1e3 --workers 1 --strength"
        words = [
            *words.split(),
            *(str(0.1 + 0.01 * n) for n in range(points)),
            "--output",
            str(tmp_path / f"{points}.nc"),
        ]
        code = "import resource, sys\nfrom validation.cli.main import main\nmain(sys.argv[1:])\n"
        code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=on_its_own())
        assert done.returncode == 0, done.stderr
        return int(done.stderr.splitlines()[-1]) / 2**10

    few, many = peak(4), peak(16)
    assert os.path.getsize(tmp_path / "16.nc") > 16 * point * 2**20
    assert many < few + 2 * point
