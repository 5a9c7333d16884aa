"""What a process does that works for another one; JAX and Equinox are imported only once they have been set up as they are there."""

import contextlib
import ctypes
import dataclasses
import os
import pickle
import subprocess
import sys
import traceback
from typing import Any

_ENVIRONMENT = (
    "EQX_ON_ERROR",
    "JAX_DISABLE_MOST_OPTIMIZATIONS",
    "JAX_PLATFORMS",
    "PJRT_NPROC",
    "SEARCHPHASE_LONG_PROGRAMS",
    "SEARCHPHASE_SHORT_PROGRAMS",
    "XLA_FLAGS",
)
_CONFIG = (
    "jax_enable_x64",
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)


_TRIMMED, _MAPPED = -1, -3
_KEPT = 2**25
"""glibc's numbers for two of its thresholds; the largest that it would choose itself, in bytes."""


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What of a process decides which numbers its programs give, and where they are kept once they are compiled."""

    environment: dict[str, str | None]
    config: dict[str, Any]
    programs: str | None

    @classmethod
    def here(cls) -> "Surroundings":
        """Those of this process."""
        import jax

        from odes import programs

        return cls(_environment(), {name: getattr(jax.config, name) for name in _CONFIG}, programs.folder())

    def adopt(self) -> bool:
        """Makes them those of this process; False if JAX has been imported here with another environment, which stays."""
        if self.environment != _environment():
            if "jax" in sys.modules:
                return False
            for name, value in self.environment.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
        import jax

        for name, value in self.config.items():
            if getattr(jax.config, name) != value:
                jax.config.update(name, value)
        from odes import programs

        programs.keep(self.programs)
        return True


def _environment() -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in _ENVIRONMENT}


@dataclasses.dataclass(frozen=True)
class Answer:
    """What has become of a job: its result, or why there is none, and with which versions and on which device it was done.

    An error is `final` if the job would fail again: what it was given cannot be.
    """

    made_with: dict[str, str]
    result: Any = None
    error: str | None = None
    trace: str = ""
    final: bool = False


def work(job: bytes, surroundings: Surroundings) -> bytes:
    """Does a pickled job; gives its pickled [`Answer`][]. An error of the job is an answer; it does not end the process.

    A worker that has served a command with other flags for XLA does the job in a process of its own, which adopts the new ones.
    """
    if not surroundings.adopt():
        command = [sys.executable, "-c", f"from {__name__} import serve; serve()"]
        paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        sent = pickle.dumps((job, surroundings))
        done = subprocess.run(command, input=sent, stdout=subprocess.PIPE, env=os.environ | paths, check=True)
        return done.stdout
    _keep_freed_memory()
    from odes.arguments import ArgumentError
    from odes.pickles import packed, unpacked
    from odes.storage import made_with

    try:
        with _threads_of_dask():
            answer = Answer(made_with(), unpacked(job).run(lambda _: None))
    except Exception as error:
        final = isinstance(error, ArgumentError)
        answer = Answer(made_with(), error=told(error), trace=traceback.format_exc(), final=final)
    return packed(answer)


def _keep_freed_memory() -> None:
    """Dask has its workers' allocator hand back what is freed at once, and get it anew: a step of the chain takes twice as long."""
    if "distributed" in sys.modules and "MALLOC_TRIM_THRESHOLD_" in os.environ and sys.platform == "linux":
        for threshold in (_TRIMMED, _MAPPED):
            with contextlib.suppress(AttributeError):  # not glibc
                ctypes.CDLL(None).mallopt(threshold, _KEPT)


def _threads_of_dask() -> contextlib.AbstractContextManager[Any]:
    """In a Dask worker xarray would lock the cluster for files that are a job's own, with locks that are not there."""
    dask = sys.modules.get("dask")
    return contextlib.nullcontext() if dask is None else dask.config.set(scheduler="threads")


def serve() -> None:
    """Does the job on standard input, with its surroundings, and writes the answer to standard output."""
    sys.stdout.buffer.write(work(*pickle.load(sys.stdin.buffer)))


def told(error: BaseException) -> str:
    """An error in one line."""
    complaint = getattr(error, "complaint", None)
    if complaint is not None:  # an ArgumentError
        name = getattr(error, "name", None)
        return complaint if name is None else f"{name} {complaint}"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
