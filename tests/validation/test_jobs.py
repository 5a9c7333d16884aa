"""Jobs: any executor gives what this process gives, failures cost their own job alone, and what is finished is not done again."""

import concurrent.futures
import dataclasses
import gc
import math
import multiprocessing
import os
import pickle
import weakref

import jax
import numpy as np
import pytest

from odes import SGD, Activation, Escape, Problem, activation
from odes.arguments import ArgumentError
from odes.pickles import packed, unpacked
from odes.storage import made_with
from tests.helpers import same_bits
from tests.validation.jobs_to_do import Devices, Squared, Troubled
from validation.jobs.engine import Failure, JobsFailed, all_results, carry_out, in_order
from validation.jobs.executors import Processes, processes
from validation.jobs.parts import Parts
from validation.jobs.remote import Answer, Surroundings, work
from validation.simulation import chain_simulator, simulate

SQUARES = [Squared(float(n)) for n in range(6)]


class Recorded(concurrent.futures.Executor):
    """An executor that ends jobs in the reverse order, and counts how many it is given."""

    def __init__(self):
        self.count = 0

    def submit(self, function, /, *arguments):
        self.count += 1
        future = concurrent.futures.Future()
        future.set_result(function(*arguments))
        return future


@pytest.mark.parametrize("executor", [None, Recorded()])
def test_results_come_with_their_numbers(executor):
    found = dict(carry_out(SQUARES, executor=executor))
    assert found == {n: float(n) ** 2 for n in range(6)}
    assert all_results(carry_out(SQUARES, executor=executor)) == [float(n) ** 2 for n in range(6)]
    assert list(in_order([(2, "c"), (0, "a"), (1, "b")])) == ["a", "b", "c"]


def test_a_thread_pool_and_too_few_jobs():
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert all_results(carry_out(SQUARES, executor=pool)) == [float(n) ** 2 for n in range(6)]
    few = Recorded()
    few.least = 7
    assert all_results(carry_out(SQUARES, executor=few)) == [float(n) ** 2 for n in range(6)] and few.count == 0


@pytest.mark.parametrize("executor", [None, Recorded()])
def test_a_job_that_raises_costs_itself_alone(executor, tmp_path):
    jobs = [Squared(2.0), Troubled(3.0), Troubled(4.0, trouble="nan"), Squared(5.0)]
    good, bad, nan, last = in_order(carry_out(jobs, executor=executor))
    assert (good, last) == (4.0, 25.0) and math.isnan(nan)
    assert isinstance(bad, Failure) and bad.name == "square-3"
    assert bad.reason == "ZeroDivisionError: by nothing"
    if executor is not None:
        assert "jobs_to_do.py" in bad.error.trace
    with pytest.raises(JobsFailed, match="1 failed: square-3: ZeroDivisionError: by nothing"):
        all_results(carry_out(jobs, executor=executor))
    with pytest.raises(JobsFailed if executor else ZeroDivisionError, match="by nothing"):
        all_results(carry_out(jobs[1:2], executor=executor))
    once = Troubled(3.0, file=str(tmp_path / "mark"), once=True)
    assert all_results(carry_out([once], executor=executor, retries=1)) == [9.0]


@pytest.mark.parametrize("trouble, tries", [("raises", 4), ("refused", 1)])
def test_what_would_fail_again_is_not_tried_again(trouble, tries):
    executor = Recorded()
    (failure,) = in_order(carry_out([Troubled(3.0, trouble=trouble)], executor=executor, retries=3))
    assert executor.count == tries and failure.final == (tries == 1)
    (here,) = in_order(carry_out([Troubled(3.0, trouble=trouble)], retries=3))
    assert here.reason == failure.reason and here.final == failure.final


def test_processes_lose_a_job_that_dies_alone(tmp_path):
    once = Troubled(7.0, file=str(tmp_path / "mark"), once=True, trouble="dies")
    jobs = [Squared(1.0), Troubled(2.0, trouble="dies"), Troubled(3.0), *SQUARES[4:], once]
    with processes(2) as pool:
        found = list(in_order(carry_out(jobs, executor=pool, retries=1)))
    assert [found[0], *found[3:]] == [1.0, 16.0, 25.0, 49.0]
    assert found[1].reason == "its process was ended by signal 9, perhaps for want of memory"
    assert found[2].reason == "ZeroDivisionError: by nothing"


def test_a_broken_executor_fails_what_is_left():
    """A pool of the standard library is lost with the first of its processes: what was finished before is given all the same."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        found = list(in_order(carry_out([Troubled(2.0, trouble="dies"), *SQUARES[3:]], executor=pool)))
    assert all(isinstance(some, Failure) and "BrokenProcessPool" in some.reason for some in found)


def test_results_of_other_versions_are_refused():
    class Foreign(Recorded):
        def submit(self, function, /, *arguments):
            future = super().submit(function, *arguments)
            answer = pickle.loads(future.result())
            changed = concurrent.futures.Future()
            changed.set_result(pickle.dumps(Answer(answer.made_with | {"version_jax": "0.1"}, answer.result)))
            return changed

    (failure,) = in_order(carry_out(SQUARES[:1], executor=Foreign()))
    assert failure.reason == f"was done with version_jax 0.1 (here {jax.__version__})"


def test_what_cannot_be_imported_cannot_be_sent():
    own = Activation.from_function(lambda x: jax.nn.gelu(x), name="own")
    simulator = chain_simulator(Problem.single_index(own, strength=0.5, sgd=SGD(dimension=50, batch_size=2)))
    with pytest.raises(ArgumentError, match="functions must be importable by their names"):
        simulate(simulator, steps=[0, 1], key=jax.random.key(0), seeds=2, executor=Recorded())


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "relu", "He2+0.5*He4", "erf(x/sqrt(2))", "erf^2"])
def test_link_functions_are_sent_by_name(name):
    there = pickle.loads(pickle.dumps(activation(name)))
    assert there == activation(name) and jax.tree.structure(there) == jax.tree.structure(activation(name))
    gelu = Activation.from_function(jax.nn.gelu)
    assert pickle.loads(pickle.dumps(gelu)) == gelu


def test_what_was_packed_is_not_kept_for_ever(key):
    """Python's own pickle makes modules that Equinox holds on to, and keys whose algorithm JAX does not know for its own."""
    problem = Problem.single_index("erf", strength=0.5, sgd=SGD(dimension=50, batch_size=2))
    there, key_there = unpacked(packed((problem, key)))
    same_bits(there, problem)
    assert there.student == problem.student and key_there.dtype._impl is key.dtype._impl
    same_bits(jax.random.key_data(key_there), jax.random.key_data(key))
    parts = [weakref.ref(there), weakref.ref(there.adapter)]
    del there
    gc.collect()
    assert [part() for part in parts] == [None, None]


def test_a_worker_is_set_up_like_its_client():
    here = Surroundings.here()
    assert here.config["jax_enable_x64"] and pickle.loads(work(pickle.dumps(SQUARES[3]), here)).result == 9.0
    assert pickle.loads(work(pickle.dumps(SQUARES[3]), here)).made_with == made_with()


def test_a_worker_with_other_flags_does_the_job_in_a_process_of_its_own():
    """What XLA is told cannot change in a process that has begun: a worker that has served another command stays as it is."""
    here = Surroundings.here()
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=3"
    there = dataclasses.replace(here, environment=here.environment | {"XLA_FLAGS": flags})
    assert pickle.loads(work(pickle.dumps(Devices()), here)).result == jax.device_count()
    assert pickle.loads(work(pickle.dumps(Devices()), there)).result == 3


def test_jobs_have_names_of_their_own():
    with pytest.raises(ArgumentError, match="different names"):
        list(carry_out([Squared(2.0), Squared(2.0)]))


def test_what_is_finished_is_not_done_again(tmp_path, monkeypatch):
    log, path = tmp_path / "log", str(tmp_path / "run.nc")
    jobs = [Squared(float(n), file=str(log)) for n in range(4)]
    parts = Parts(path, {"steps": 3}, resume=False)
    assert parts.fixed("block", 8) == 8
    results = carry_out(jobs, parts=parts)
    assert [next(results), next(results)] == [(0, 0.0), (1, 1.0)]
    results.close()
    with pytest.raises(ArgumentError, match="holds an unfinished run: go on with --resume"):
        Parts(path, {"steps": 3}, resume=False)
    with pytest.raises(ArgumentError, match=r"was made with --steps 3 \(now 4\)"):
        Parts(path, {"steps": 4}, resume=True)
    with monkeypatch.context() as threads, pytest.raises(ArgumentError, match=r"with PJRT_NPROC .* \(now 12\)"):
        threads.setenv("PJRT_NPROC", "12")
        Parts(path, {"steps": 3}, resume=True)
    again = Parts(path, {"steps": 3, "workers": 7}, resume=True)
    assert again.begun and again.fixed("block", 5) == 8  # what was chosen when the run started holds
    (again.folder / f".{next(again.folder.glob('square-1.*')).name}-x").write_bytes(b"half a file")
    with processes(2) as pool:
        assert all_results(carry_out(jobs, parts=again, executor=pool)) == [0.0, 1.0, 4.0, 9.0]
    assert sorted(log.read_text().split()) == ["square-0", "square-1", "square-2", "square-3"]
    part = next(again.folder.glob("square-2.*"))
    for damaged in (b"", part.read_bytes()[:-1], b"\x80\x05K\x01."):
        part.write_bytes(damaged)
        with pytest.raises(ArgumentError, match=r"square-2\.\w+ is damaged: remove it"):
            all_results(carry_out(jobs, parts=again))
    (again.folder / "settings.json").write_text("{}")
    with pytest.raises(ArgumentError, match="is not that of a run"):
        Parts(path, {"steps": 3}, resume=True)
    again.remove()
    assert not again.folder.exists()
    again.folder.write_text("a file")
    with pytest.raises(ArgumentError, match="but is no folder"):
        Parts(path, {"steps": 3}, resume=True)


def test_failures_are_not_kept(tmp_path):
    parts = Parts(str(tmp_path / "run.nc"), {}, resume=False)
    mark = str(tmp_path / "mark")
    (failure,) = in_order(carry_out([Troubled(3.0, file=mark, once=True)], parts=parts))
    assert isinstance(failure, Failure) and not parts.folder.exists()
    assert all_results(carry_out([Troubled(3.0, file=mark, once=True)], parts=parts)) == [9.0] and parts.folder.exists()


def test_jobs_that_are_alike_are_done_together():
    groups = []

    def together(jobs, advanced):
        groups.append([job.number for job in jobs])
        return [job.run(advanced) for job in jobs]

    options = {"at_once": 2, "together": together, "alike": lambda job: job.number < 3}
    assert all_results(carry_out(SQUARES, **options)) == [float(n) ** 2 for n in range(6)]
    assert groups == [[0, 1], [2], [3, 4], [5]]


def test_a_job_that_fails_among_others_costs_itself_alone():
    jobs = [Squared(2.0), Troubled(3.0), Squared(4.0), Squared(5.0)]
    found = list(in_order(carry_out(jobs, at_once=3, retries=1)))
    assert isinstance(found[1], Failure) and found[0::2] == [4.0, 16.0] and found[3] == 25.0


def test_blocks_by_another_process_are_the_same_bits(key):
    problem = Problem.single_index("tanh", strength=0.4, sgd=SGD(dimension=500, batch_size=16, learning_rate=0.1))
    options = {"steps": [0, 7, 20], "key": key, "seeds": 5, "block": 2, "escape": Escape("loss", 0.9)}
    here = simulate(chain_simulator(problem), **options)
    with Processes(1) as pool:
        there = simulate(chain_simulator(problem), **options, executor=pool)
    same_bits(here, there)
    assert np.isfinite(here.loss).all()
