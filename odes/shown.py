"""How objects show themselves: by their numbers, not by the types of their arrays."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import numpy as np

from odes.arguments import concrete

_MOST = 16
"""Arrays of more numbers are shown by their shape."""


def shown(value: Any) -> str:
    """A value as it is shown inside an object.

    >>> shown(np.array([0.5, 2.0])), shown(np.zeros((3, 40))), shown(0.1 + 0.2)
    ('[0.5, 2]', 'array of shape (3, 40)', '0.3')
    """
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        if not concrete(value):
            return f"traced of shape {value.shape}"
        if value.size > _MOST or not (np.issubdtype(value.dtype, np.number) or value.dtype == bool):
            return f"array of shape {value.shape}"
        return str(jax.tree.map(_Number, np.asarray(value).tolist()))
    return str(_Number(value)) if isinstance(value, float) else repr(value)


class _Number:
    """A number that is written in six digits."""

    def __init__(self, value: Any):
        self.value = value

    def __repr__(self) -> str:
        return f"{self.value:.6g}" if isinstance(self.value, float) else str(self.value)


class Shown(eqx.Module):
    """A module whose representation shows its numbers."""

    def shown(self) -> dict[str, Any]:
        """What is shown, by name: all fields but private ones."""
        names = (field.name for field in dataclasses.fields(self))
        return {name: getattr(self, name) for name in names if not name.startswith("_")}

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={shown(value)}" for name, value in self.shown().items())
        return f"{type(self).__name__}({inside})"
