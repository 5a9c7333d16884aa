"""What a simulator of one-pass SGD at finite dimension is."""

import abc
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from odes import Overlaps, Problem
from odes.arguments import ArgumentError, require
from odes.devices import available_memory


class Simulator(eqx.Module):
    """One seed of one-pass SGD at finite dimension: how it starts, what a step does, which overlaps it has."""

    problem: eqx.AbstractVar[Problem]
    method: eqx.AbstractVar[str]
    dtype: eqx.AbstractVar[str]

    @property
    @abc.abstractmethod
    def seeds_at_once(self) -> int:
        """How many seeds may advance together, for the sake of memory and cache."""

    @abc.abstractmethod
    def start(self, key: PRNGKeyArray) -> Any:
        """A random start."""

    @abc.abstractmethod
    def step(self, state: Any, key: PRNGKeyArray) -> Any:
        """One SGD step."""

    @abc.abstractmethod
    def overlaps(self, state: Any) -> Overlaps:
        """The overlaps of a state."""

    @abc.abstractmethod
    def taken_over(self, state: Any, before: "Simulator") -> Any:
        """The state in which another simulator of the same kind and frame, `before`, has left off, as one of this simulator."""


def require_memory(needed: float, what: str, there: float | None = None) -> None:
    """Raises ArgumentError, before the operating system ends the process, if `what` needs more bytes than there are, on JAX's device unless
    given."""
    there = available_memory() if there is None else there
    if needed > there:
        raise ArgumentError(
            None, f"{what} needs about {needed / 2**30:.3g} GiB of memory, but there are {there / 2**30:.3g} GiB"
        )


def whole_number(name: str, value: Array) -> int:
    """A problem's field that a simulator needs to be a finite integer."""
    require(name, value, "a whole number to simulate", lambda x: np.isfinite(x) & (x == np.round(x)))
    return int(value)
