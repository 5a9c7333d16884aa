"""The options of commands that consist of independent jobs: who does them, and how a run goes on that was interrupted."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import jax

from odes.arguments import ArgumentError
from validation.cli.output import OutputOptions
from validation.cli.values import DeviceOptions, OptionalInt, OptionalText, check
from validation.jobs.engine import Failure, said
from validation.jobs.executors import cluster, processes, usable_cores
from validation.jobs.parts import Parts

_WORTH_PROCESSES = 4
"""Fewer jobs than this are done in this process unless --workers is given: each process imports and compiles anew."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkOptions(DeviceOptions):
    """Who does the jobs."""

    workers: OptionalInt = None
    """Processes of this machine that share the work (1: this process alone; one for every core, if there are four jobs, unless
    given; 1 on a GPU)."""
    scheduler: OptionalText = None
    """Address of a Dask scheduler, such as tcp://host:8786, whose workers do the work instead."""
    retries: int = 1
    """How often a job that fails is tried again."""

    def check_work(self) -> None:
        """Raises ArgumentError for workers and retries that cannot be."""
        if self.workers is not None:
            check("workers", self.workers, "at least 1", self.workers >= 1)
            if self.scheduler is not None:
                raise ArgumentError("scheduler", "has workers of its own: leave out --workers")
        check("retries", self.retries, "at least 0", self.retries >= 0)

    @contextlib.contextmanager
    def work(self) -> Iterator[dict[str, Any]]:
        """The options `executor`, `retries` and `progress` of [`validation.jobs.engine.carry_out`][]."""
        self.check_work()
        with self._executor() as executor:
            yield {"executor": executor, "retries": self.retries, "progress": True}

    def alone(self, jobs: int) -> bool:
        """Whether this process does so many jobs itself."""
        return self.scheduler is None and (self._count == 1 or jobs < self._least)

    @property
    def _count(self) -> int:
        """How many processes of this machine do the work."""
        if self.workers is not None:
            return self.workers
        return usable_cores() if jax.default_backend() == "cpu" else 1

    @property
    def _least(self) -> int:
        """For how many jobs they are started."""
        return 2 if self.workers else _WORTH_PROCESSES

    def _executor(self) -> contextlib.AbstractContextManager[Executor | None]:
        if self.scheduler is not None:
            return cluster(self.scheduler)
        return contextlib.nullcontext() if self._count == 1 else processes(self._count, least=self._least)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumeOptions(WorkOptions, OutputOptions):
    """A command whose jobs are kept on disk as they are finished."""

    resume: bool = False
    """Go on with the run that stored to --output, same flags; start it if there is none."""

    def may_replace(self, file: Path) -> bool:
        return self.resume or super().may_replace(file)

    def parts(self, *, may_be_finished: bool = False) -> Parts | None:
        """Where finished jobs are kept, None without --output.

        **Raises** ArgumentError for --resume without --output, or with one that is finished, unless it `may_be_finished`.
        """
        if self.resume and self.output is None:
            raise ArgumentError("resume", "goes on with what --output stored: give both")
        if self.output is None:
            return None
        parts = Parts(self.output, self.flags, self.resume)
        if self.resume and Path(self.output).exists() and not parts.begun and not may_be_finished:
            raise ArgumentError("resume", f"has nothing to do: {self.output} is finished")
        return parts

    def interrupted(self) -> str:
        if self.output is None:
            return "nothing is kept: give --output to keep what is finished"
        if not Path(f"{self.output}.parts").exists():
            return "nothing was finished"
        return f"{self.output}.parts keeps what is finished: the same command with --resume goes on"

    def store(self, result: Any, path: str) -> None:
        """Writes the result, and removes what was kept to make it."""
        super().store(result, path)
        shutil.rmtree(f"{path}.parts", ignore_errors=True)

    def unfinished(self, failures: Sequence[Failure]) -> str:
        """What is to be said of jobs that failed."""
        kept = "" if self.output is None else f" ({self.output}.parts keeps the others: --resume tries these again)"
        return said(failures) + kept
