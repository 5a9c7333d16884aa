"""Jobs for tests, importable by the processes that do them."""

import dataclasses
import math
import os
import signal
from pathlib import Path

from odes.arguments import ArgumentError


@dataclasses.dataclass(frozen=True)
class Squared:
    """The square of a number; its file, if it has one, gets a line each time that this is computed."""

    number: float
    file: str | None = None
    size: int = 1

    @property
    def name(self):
        return f"square-{self.number:g}"

    def run(self, advanced):
        if self.file is not None:
            with open(self.file, "a") as log:
                log.write(f"{self.name}\n")
        advanced(1)
        return self.number**2


@dataclasses.dataclass(frozen=True)
class Troubled(Squared):
    """A job that raises, is refused, gives NaN, takes more memory than there is, or dies.

    `once`: only before the folder of its file has its mark.
    """

    trouble: str = "raises"
    once: bool = False

    def run(self, advanced):
        if self.once and self.file is not None:
            mark = Path(self.file)
            if mark.exists():
                return self.number**2
            mark.touch()
        match self.trouble:
            case "raises":
                raise ZeroDivisionError("by nothing\nat all")
            case "refused":
                raise ArgumentError("number", "is none")
            case "nan":
                return math.nan
            case "memory":
                return sum(bytearray(2**33)[:: 2**12])
            case "dies":
                os.kill(os.getpid(), signal.SIGKILL)


@dataclasses.dataclass(frozen=True)
class Devices:
    """The number of JAX's devices."""

    name: str = "devices"
    size: int = 1

    def run(self, advanced):
        import jax

        return jax.device_count()
