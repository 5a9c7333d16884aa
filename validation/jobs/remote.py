"""What a process does that works for another one; JAX and Equinox are imported only once they have been set up as they are there."""

import dataclasses
import os
import pickle
import sys
import traceback
from typing import Any

_ENVIRONMENT = ("EQX_ON_ERROR", "JAX_PLATFORMS", "XLA_FLAGS")
_CONFIG = (
    "jax_enable_x64",
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What of a process decides which numbers its programs give, and where they are kept once they are compiled."""

    environment: dict[str, str]
    config: dict[str, Any]

    @classmethod
    def here(cls) -> "Surroundings":
        """Those of this process."""
        import jax

        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        return cls(environment, {name: getattr(jax.config, name) for name in _CONFIG})

    def adopt(self) -> None:
        """Makes them those of this process; variables of the environment hold only where JAX has not been imported yet."""
        if "jax" not in sys.modules:
            os.environ.update(self.environment)
        import jax

        for name, value in self.config.items():
            if getattr(jax.config, name) != value:
                jax.config.update(name, value)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What has become of a job: its result, or why there is none, and with which versions and on which device it was done."""

    made_with: dict[str, str]
    result: Any = None
    error: str | None = None
    trace: str = ""


def work(job: bytes, surroundings: Surroundings) -> bytes:
    """Does a pickled job; gives its pickled [`Answer`][]. An error of the job is an answer; it does not end the process."""
    surroundings.adopt()
    from odes.storage import made_with

    try:
        answer = Answer(made_with(), pickle.loads(job).run(lambda _: None))
    except Exception as error:
        answer = Answer(made_with(), error=told(error), trace=traceback.format_exc())
    return pickle.dumps(answer)


def told(error: BaseException) -> str:
    """An error in one line."""
    complaint = getattr(error, "complaint", None)
    if complaint is not None:  # an ArgumentError
        name = getattr(error, "name", None)
        return complaint if name is None else f"{name} {complaint}"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
