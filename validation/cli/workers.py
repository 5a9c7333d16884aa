"""Independent pieces of work, shared between processes: most of their time is compilation, which one process does one by one."""

import concurrent.futures
import functools
import multiprocessing
import os
import threading
from collections.abc import Generator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import jax

from validation.cli.compilation import set_up
from validation.progress import progress

_WORTH_PROCESSES = 4

Result = TypeVar("Result", covariant=True)


@runtime_checkable
class Job(Protocol[Result]):
    """A piece of work as plain data, so that another process can do it."""

    def run(self) -> Result:
        """Does the work."""
        ...


def carry_out(jobs: Sequence[Job[Result]], *, unit: str, together: int = 1) -> Generator[Result]:
    """The results of each job, in order, as they come; standard error shows how many there are.

    On a CPU four jobs or more are shared between two processes; one process does `together` jobs in a row.
    """
    bar = functools.partial(progress, total=len(jobs), unit=unit)
    if len(jobs) < _WORTH_PROCESSES or jax.default_backend() != "cpu":
        yield from (job.run() for job in bar(jobs))
        return
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=spawn, initializer=_prepare) as pool:
        try:
            yield from bar(pool.map(_run, jobs, chunksize=together))
        finally:
            pool.shutdown(cancel_futures=True)


def _run(job: Job[Result]) -> Result:
    return job.run()


def _prepare() -> None:
    """A worker is set up like the command itself, and ends with its parent, whatever that dies of."""
    set_up()
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
