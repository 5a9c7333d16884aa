"""Jobs: independent pieces of work as plain data, which any executor can do."""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import pickle
import queue
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NoReturn, Protocol, TypeVar, runtime_checkable

from odes.arguments import ArgumentError, require
from odes.pickles import packed, unpacked
from odes.storage import made_with
from validation.jobs.parts import Parts
from validation.jobs.remote import Answer, Surroundings, told, work
from validation.progress import progress as progress_of

_AHEAD = 256
"""So many jobs, at most, are with an executor at a time: the memory of a sweep does not grow with the number of its jobs."""

Result = TypeVar("Result")
Advanced = Callable[[int], Any]
"""Called by a job with the units of its work that it has done since the last call."""


@runtime_checkable
class Job(Protocol):
    """A piece of work: plain data that can be pickled, so that another process can do it.

    `name` is unlike that of every other job of a run, and part of the name of a file; `size` is how much work it is, in any unit.
    """

    @property
    def name(self) -> str:
        """What the job is called where it is spoken of."""
        ...

    @property
    def size(self) -> int:
        """How much of the progress the job is."""
        ...

    def run(self, advanced: Advanced) -> Any:
        """Does the work; the result can be pickled."""
        ...


class JobError(Exception):
    """A job that another process did not finish; `trace` is what Python said there, and `final` that it would say so again."""

    def __init__(self, reason: str, trace: str = "", *, final: bool = False):
        super().__init__(reason)
        self.trace, self.final = trace, final


@dataclasses.dataclass(frozen=True)
class Failure:
    """A job that gave no result, and the error that is why."""

    name: str
    error: Exception

    @property
    def reason(self) -> str:
        """Why, in one line."""
        return str(self.error) if isinstance(self.error, JobError) else told(self.error)

    @property
    def final(self) -> bool:
        """Whether it would fail again: what a job was given cannot be."""
        return self.error.final if isinstance(self.error, JobError) else isinstance(self.error, ArgumentError)


class JobsFailed(Exception):
    """Jobs without whose results there is nothing to give; `failures` says which, and why."""

    def __init__(self, failures: Sequence[Failure]):
        self.failures = failures
        super().__init__(said(failures))


def said(failures: Sequence[Failure]) -> str:
    """Jobs that failed, by name, each with its reason."""
    return f"{len(failures)} failed: " + "; ".join(f"{failure.name}: {failure.reason}" for failure in failures)


def give_up(failures: Sequence[Failure], jobs: int) -> NoReturn:
    """Raises [`JobsFailed`][], or the error itself where there was but one job, and this process did it."""
    (first, *_) = failures
    if jobs == 1 and not isinstance(first.error, JobError):
        raise first.error
    raise JobsFailed(failures) from first.error


def carry_out(
    jobs: Sequence[Job],
    *,
    executor: concurrent.futures.Executor | None = None,
    retries: int = 0,
    parts: Parts | None = None,
    unit: str = "job",
    what: str = "",
    progress: bool = False,
    at_once: int = 1,
    together: Callable[[Sequence[Any], Advanced], Sequence[Any]] | None = None,
    alike: Callable[[Any], Any] = lambda job: None,
) -> Generator[tuple[int, Any]]:
    """The number of every job with its result, or with the [`Failure`][] that it ended in, as they come.

    - `executor`: any `concurrent.futures.Executor`; this process, one job after the other, unless given. What it runs is
        set up like this process: precision, XLA's flags, the folder of compiled programs. An executor with an attribute `least`
        is not used for fewer jobs;
    - `retries`: so many times a job that fails is tried again;
    - `parts`: what is kept on disk: jobs that are there are not done again, and every result is kept before it is given;
    - `progress`: show how far it is on standard error, in `unit`s, after the words `what`;
    - `together`: in this process up to `at_once` jobs that follow each other, and for which `alike` is the same, are done by one
        call of this function; where that fails, one by one.

    **Raises** ArgumentError for jobs with the same name, and for one that cannot be pickled where an executor is to do it.
    """
    require("jobs", len({job.name for job in jobs}), "of different names", lambda names: names == len(jobs))
    kept = [] if parts is None else [number for number, job in enumerate(jobs) if job.name in parts]
    todo = sorted(set(range(len(jobs))) - set(kept))
    total, initial = (sum(jobs[number].size for number in numbers) for numbers in (range(len(jobs)), kept))
    with contextlib.closing(progress_of(total=total, initial=initial, unit=unit, what=what, shown=progress)) as bar:
        if parts is not None:
            yield from ((number, parts.read(jobs[number].name)) for number in kept)
        if executor is None or len(todo) < getattr(executor, "least", 1):
            results = _here(jobs, _groups(jobs, todo, at_once, alike), retries, bar.update, together or _one_by_one)
        else:
            results = _elsewhere(jobs, todo, retries, executor, bar.update)
        with contextlib.closing(results):
            for number, result in results:
                if parts is not None and not isinstance(result, Failure):
                    parts.write(jobs[number].name, result)
                yield number, result


def in_order(results: Iterable[tuple[int, Result]]) -> Generator[Result]:
    """The results that come with their numbers, from 0, in the order of these.

    >>> list(in_order([(1, "b"), (0, "a"), (2, "c")]))
    ['a', 'b', 'c']
    """
    early, following = {}, 0
    for number, result in results:
        early[number] = result
        while following in early:
            yield early.pop(following)
            following += 1


def all_results(results: Iterable[tuple[int, Any]]) -> list[Any]:
    """All results in the order of their numbers. **Raises** as [`give_up`][] does, once all have come, if some are failures."""
    found = list(in_order(results))
    if failures := [result for result in found if isinstance(result, Failure)]:
        give_up(failures, len(found))
    return found


def _one_by_one(jobs: Sequence[Job], advanced: Advanced) -> list[Any]:
    return [job.run(advanced) for job in jobs]


def _groups(jobs: Sequence[Job], todo: Sequence[int], at_once: int, alike: Callable[[Any], Any]) -> Iterator[list[int]]:
    for _, row in itertools.groupby(todo, lambda number: alike(jobs[number])):
        while group := list(itertools.islice(row, at_once)):
            yield group


def _here(
    jobs: Sequence[Job],
    groups: Iterable[list[int]],
    retries: int,
    advanced: Advanced,
    together: Callable[[Sequence[Any], Advanced], Sequence[Any]],
) -> Generator[tuple[int, Any]]:
    for numbers in groups:
        some = [jobs[number] for number in numbers]
        for left in range(retries, -1, -1):
            done = 0

            def advance(count: int) -> None:
                nonlocal done
                done += count
                advanced(count)

            try:
                results = together(some, advance)
            except Exception as error:
                advanced(-done)
                done = 0
                if len(numbers) > 1:
                    yield from _here(jobs, [[number] for number in numbers], retries, advanced, together)
                    break
                results = [Failure(job.name, error) for job in some]
                if left and not results[0].final:
                    continue
            advanced(sum(job.size for job in some) - done)
            yield from zip(numbers, results, strict=True)
            break


def _elsewhere(
    jobs: Sequence[Job],
    todo: Sequence[int],
    retries: int,
    executor: concurrent.futures.Executor,
    advanced: Advanced,
) -> Generator[tuple[int, Any]]:
    surroundings, own = Surroundings.here(), made_with()
    waiting, running = deque((number, retries) for number in todo), {}
    # not concurrent.futures.wait: an interrupt while it takes the locks of all futures leaves them taken
    done: queue.SimpleQueue[concurrent.futures.Future] = queue.SimpleQueue()
    try:
        while waiting or running:
            while waiting and len(running) < _AHEAD:
                number, left = waiting.popleft()
                try:
                    future = executor.submit(work, _sent(jobs[number]), surroundings)
                except concurrent.futures.BrokenExecutor as error:
                    future = concurrent.futures.Future()
                    future.set_exception(error)
                running[future] = number, left
                future.add_done_callback(done.put)
            future = done.get()
            number, left = running.pop(future)
            result = _outcome(jobs[number].name, future, own)
            if isinstance(result, Failure) and left and not result.final:
                waiting.append((number, left - 1))
            else:
                advanced(jobs[number].size)
                yield number, result
    finally:
        for future in running:
            future.cancel()


def _sent(job: Job) -> bytes:
    try:
        return packed(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ArgumentError(
            None, f"{job.name} cannot be sent to another process ({error}): functions must be importable by their names"
        ) from None


def _outcome(name: str, future: concurrent.futures.Future, own: dict[str, str]) -> Any:
    """The result of a job, or its failure; a result that other versions or another kind of device made is none."""
    try:
        answer: Answer = unpacked(future.result())
    except (Exception, concurrent.futures.CancelledError) as error:
        return Failure(name, JobError(_died(error)))
    if different := [
        f"{key} {value} (here {own.get(key)})" for key, value in answer.made_with.items() if own.get(key) != value
    ]:
        return Failure(name, JobError(f"was done with {', '.join(different)}"))
    if answer.error is not None:
        return Failure(name, JobError(answer.error, answer.trace, final=answer.final))
    return answer.result


def _died(error: BaseException) -> str:
    if isinstance(error, concurrent.futures.CancelledError):
        return "was called off: the executor is gone"
    code = getattr(error, "exitcode", None)
    if code is not None and code < 0:
        return f"its process was ended by signal {-code}{', perhaps for want of memory' if code == -9 else ''}"
    return told(error)
