"""Checks of user input that say which argument is wrong, its value and what is allowed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.typing
import numpy as np
import numpy.typing

ArrayLike = jax.typing.ArrayLike | numpy.typing.ArrayLike
"""Whatever `jnp.asarray` accepts: numbers, nested lists, NumPy and JAX arrays."""


def concrete(value: Any) -> bool:
    """Whether `value` can be looked at now (it is not being traced by jit, vmap or grad)."""
    return not isinstance(value, jax.core.Tracer)


def require(name: str, value: Any, allowed: str, condition: Callable[[np.ndarray], Any]) -> None:
    """Raises ValueError unless `condition` holds for every entry; traced values pass unchecked.

    >>> require("strength", -1.0, "positive and finite", lambda x: x > 0)
    Traceback (most recent call last):
    ...
    ValueError: Argument `strength` must be positive and finite, but is -1.0
    """
    if concrete(value) and not np.all(condition(np.asarray(value))):
        with np.printoptions(threshold=6, edgeitems=2):
            shown = str(np.asarray(value)).replace("\n", "")
        raise ValueError(f"Argument `{name}` must be {allowed}, but is {shown}")


def require_shape(name: str, value: Any, symbols: str, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless `value` has `shape`; `symbols` names the sizes for the reader.

    >>> require_shape("target", np.zeros((2, 3)), "(P, f)", (2, 2))
    Traceback (most recent call last):
    ...
    ValueError: Argument `target` must have shape (P, f) = (2, 2), but has shape (2, 3)
    """
    if np.shape(value) != shape:
        raise ValueError(f"Argument `{name}` must have shape {symbols} = {shape}, but has shape {np.shape(value)}")


def positive(value: np.ndarray) -> Any:
    """Positive and finite."""
    return np.isfinite(value) & (value > 0)


def non_negative(value: np.ndarray) -> Any:
    """Non-negative and finite."""
    return np.isfinite(value) & (value >= 0)
