"""Commands on a Dask cluster of two worker processes: the bits of one process, whatever dies on the way."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from odes import read_dataset
from tests.command_line import on_its_own
from tests.validation.jobs_to_do import Squared, Troubled
from validation.jobs.engine import carry_out, in_order
from validation.jobs.executors import cluster

pytestmark = pytest.mark.slow

SWEEP = "simulate --method chain --dim 1e3 --batch-size 100 --strength 0.1:0.8:8 --seeds 64 --block 16".split()
FEW_FAILURES = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """The address of a scheduler with two workers, each of one thread and at most 1.5 GiB of memory."""
    folder = tmp_path_factory.mktemp("cluster")
    environment = on_its_own() | FEW_FAILURES | {"PYTHONPATH": os.getcwd()}

    def start(*words):
        name, words = (
            words[0],
            [sys.executable, "-m", "dask", *words, "--scheduler-file", str(folder / "scheduler.json")],
        )
        with open(folder / f"{name}.log", "a") as log:
            return subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=log)

    processes = [start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")]
    limits = ("--nthreads", "1", "--memory-limit", "1536MiB", "--no-dashboard")
    processes += [start("worker", *limits) for _ in range(2)]
    while not (folder / "scheduler.json").exists():
        assert processes[0].poll() is None
        time.sleep(0.1)
    time.sleep(1)
    yield json.loads((folder / "scheduler.json").read_text())["address"], processes[1:]
    for process in processes[::-1]:
        process.terminate()
    for process in processes:
        process.wait()


def searchphase(folder, *words, code=0):
    command = [sys.executable, "-m", "validation", *words]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


def content(file):
    """What a file holds, but for the command that made it."""
    dataset = read_dataset(file)
    return {name: dataset[name].values.tobytes() for name in dataset.variables}


def test_three_kinds_of_trouble(scheduler):
    """First of all: a worker that has served commands does these jobs in processes of their own, whose memory nobody limits."""
    address, _ = scheduler
    jobs = [Squared(2.0), Troubled(3.0), Troubled(4.0, trouble="nan"), Troubled(5.0, trouble="memory"), Squared(6.0)]
    with cluster(address) as executor:
        good, raises, nan, memory, last = in_order(carry_out(jobs, executor=executor))
    assert (good, last) == (4.0, 36.0) and nan != nan
    assert raises.reason == "ZeroDivisionError: by nothing"
    assert memory.name == "square-5" and "KilledWorker" in memory.reason


def test_every_engine_gives_the_same_bits(scheduler, tmp_path):
    address, _ = scheduler
    engines = {"one": ("--workers", "1"), "two": ("--workers", "2"), "dask": ("--scheduler", address)}
    check = "validate --strength 0.6 --noise-scale 0.5 --dim 500 --checks law mean-step --quick --json".split()
    printed = set()
    for name, words in engines.items():
        searchphase(tmp_path, *SWEEP, "--t1", "30", "--output", f"{name}.nc", *words)
        printed.add(searchphase(tmp_path, *check, *words).stdout)
        searchphase(tmp_path, "figures", "potential", "hermite-loss", "--quick", "--folder", name, *words)
    assert len(printed) == 1 and json.loads(printed.pop())["agrees"]
    for other in ("two", "dask"):
        assert content(tmp_path / "one.nc") == content(tmp_path / f"{other}.nc")
        assert set(os.listdir(tmp_path / "one")) == set(os.listdir(tmp_path / other))
        for figure in ("potential", "hermite-loss"):
            assert content(tmp_path / "one" / f"{figure}.nc") == content(tmp_path / other / f"{figure}.nc")


def test_nothing_is_lost_when_a_worker_and_then_the_client_are_killed(scheduler, tmp_path):
    address, workers = scheduler
    words = [*SWEEP, "--t1", "60"]
    command = [sys.executable, "-m", "validation", *words, "--scheduler", address, "--output", "run.nc"]
    environment = on_its_own() | {"PYTHONPATH": os.getcwd()}
    client = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    folder = tmp_path / "run.nc.parts"

    def wait_for(count):
        while len(list(folder.glob("point-*"))) < count:
            assert client.poll() is None
            time.sleep(0.05)

    wait_for(2)
    for child in psutil.Process(workers[0].pid).children(recursive=True):
        child.send_signal(signal.SIGKILL)
    wait_for(8)
    client.send_signal(signal.SIGKILL)
    client.wait()
    kept = {file.name: file.stat().st_mtime_ns for file in folder.glob("point-*")}
    refused = searchphase(tmp_path, *words, "--output", "run.nc", code=2)
    assert "holds an unfinished run: go on with --resume" in refused.stderr
    searchphase(tmp_path, *words, "--output", "other.nc", "--workers", "1")
    half = [file for file in kept if file.startswith("point-0")]
    assert half and not (tmp_path / "run.nc").exists()
    searchphase(tmp_path, *words, "--output", "run.nc", "--resume", "--workers", "2")
    assert content(tmp_path / "run.nc") == content(tmp_path / "other.nc") and not folder.exists()


def test_a_scheduler_that_does_not_answer(tmp_path):
    began = time.monotonic()
    done = searchphase(tmp_path, "simulate", "--scheduler", "tcp://127.0.0.1:9", code=2)
    assert done.stderr.count("\n") == 1 and "--scheduler tcp://127.0.0.1:9 does not answer" in done.stderr
    assert time.monotonic() - began < 20
