"""Executors: processes of this machine, of which one may die without the others, and clusters."""

import asyncio
import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any

from odes.arguments import ArgumentError
from validation.jobs.remote import told

_ANSWERS_WITHIN = 5
"""A scheduler that does not answer within so many seconds is not there."""


def usable_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Processes(Executor):
    """`count` processes of this machine, started with the first piece of work.

    A process that dies takes its own piece of work with it alone, and is replaced; all end with this process, whatever it dies of.
    `least`: it is not worth starting them for fewer pieces.
    """

    def __init__(self, count: int, *, least: int = 1):
        self.least = least
        self._count, self._pool = count, None

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future:
        """Gives a call to a free process; the processes are started with the first one."""
        if self._pool is None:
            from pebble import ProcessPool

            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPool(self._count, context=spawn, initializer=_end_with_parent)
        return self._pool.schedule(function, args=arguments, kwargs=options)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the processes; at once with `cancel_futures`, else when all work is done."""
        if self._pool is None:
            return
        if cancel_futures:
            self._pool.stop()
        else:
            self._pool.close()
        if wait:
            self._pool.join()
        self._pool = None  # with it go its semaphores


def _end_with_parent() -> None:
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def processes(count: int, *, least: int = 1) -> Iterator[Processes]:
    """Processes that end with the block; at once if that is left by an error."""
    pool = Processes(count, least=least)
    try:
        yield pool
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


@contextlib.contextmanager
def cluster(address: str) -> Iterator[Executor]:
    """The workers of the Dask scheduler at an address, such as "tcp://10.0.0.1:8786".

    **Raises** ArgumentError without the package `distributed`, and if nothing answers there.
    """
    try:
        from distributed import Client
        from distributed.core import rpc
    except ImportError:
        raise ArgumentError("scheduler", "needs the package distributed: pip install 'searchphase[cluster]'") from None

    async def ask() -> None:
        async with rpc(address, timeout=_ANSWERS_WITHIN) as there:
            await there.identity()

    try:
        asyncio.run(asyncio.wait_for(ask(), _ANSWERS_WITHIN))
        client = Client(address, timeout=_ANSWERS_WITHIN, set_as_default=False)
    except (OSError, TimeoutError, ValueError, ImportError) as error:
        raise ArgumentError("scheduler", f"{address} does not answer as a Dask scheduler ({told(error)})") from None
    with client:
        yield client.get_executor(pure=False)
