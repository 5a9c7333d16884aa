"""Checks of user input that say which argument is wrong, its value and what is allowed."""

import difflib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import jax.typing
import numpy as np
import numpy.typing

ArrayLike = jax.typing.ArrayLike | numpy.typing.ArrayLike
"""Whatever `jnp.asarray` accepts: numbers, nested lists, NumPy and JAX arrays."""


class ArgumentError(ValueError):
    """What the user gave cannot be used: which argument (None if it is no single one), and why, as the end of a sentence.

    >>> str(ArgumentError("strength", "must be positive, but is -1"))
    'Argument `strength` must be positive, but is -1'
    """

    def __init__(self, name: str | None, complaint: str):
        super().__init__(complaint if name is None else f"Argument `{name}` {complaint}")
        self.name, self.complaint = name, complaint

    def __reduce__(self):
        return type(self), (self.name, self.complaint)


def real_array(value: Any) -> jax.Array:
    """The value as an array of JAX's floating point type."""
    return jnp.asarray(value, jnp.result_type(float))


def numbers(name: str, value: Any, words: str) -> jax.Array:
    """A list or matrix of numbers as an array; ArgumentError, saying in `words` what it must be, for anything else."""
    try:
        return real_array(value if isinstance(value, jax.Array) else np.asarray(value, float))
    except (TypeError, ValueError, OverflowError):
        raise ArgumentError(name, f"must be {words}, but is {value!r:.60}") from None


def concrete(value: Any) -> bool:
    """Whether `value` can be looked at now (it is not being traced by jit, vmap or grad)."""
    return not isinstance(value, jax.core.Tracer)


def together(*values: Any) -> tuple[Any, ...]:
    """The values as floating point arrays: NumPy's if all are known now, so that arithmetic compiles nothing, else JAX's."""
    if all(map(concrete, values)):
        return tuple(np.asarray(value, float) for value in values)
    return tuple(real_array(value) for value in values)


def require(name: str, value: Any, allowed: str, condition: Callable[[np.ndarray], Any]) -> None:
    """Raises ArgumentError unless `condition` holds for every entry; traced values pass unchecked.

    >>> require("strength", -1.0, "positive and finite", lambda x: x > 0)
    Traceback (most recent call last):
    ...
    odes.arguments.ArgumentError: Argument `strength` must be positive and finite, but is -1.0
    """
    if concrete(value) and not np.all(condition(np.asarray(value))):
        with np.printoptions(threshold=6, edgeitems=2):
            shown = str(np.asarray(value)).replace("\n", "")
        raise ArgumentError(name, f"must be {allowed}, but is {shown}")


def scalar(name: str, value: Any, allowed: str, condition: Callable[[Any], Any]) -> Any:
    """One real number that satisfies `condition`, in floating point: NumPy's if it is known now; a traced one that does not is NaN.

    `condition` may use operators alone, so that it can be traced.

    >>> scalar("strength", 1, "positive and finite", positive).item()
    1.0
    >>> jax.jit(lambda x: scalar("strength", x, "positive and finite", positive))(-1.0).item()
    nan

    **Raises** ArgumentError for what is no single number, and for a known one that does not satisfy the condition.
    """
    if not concrete(value):
        value = real_array(value)
        _require_single(name, np.shape(value))
        return jnp.where(condition(value), value, jnp.nan)
    try:
        array = np.asarray(value, float)
    except (TypeError, ValueError):
        raise ArgumentError(name, f"must be a number, but is {value!r}") from None
    _require_single(name, array.shape)
    require(name, array, allowed, condition)
    return array


def _require_single(name: str, shape: tuple[int, ...]) -> None:
    if shape:
        raise ArgumentError(name, f"must be one number, but has shape {shape} (jax.vmap takes many)")


def require_kind(name: str, value: Any, kind: Any, words: str) -> None:
    """Raises ArgumentError unless `value` is of a kind.

    >>> require_kind("adapter", 4, str, "an Adapter")
    Traceback (most recent call last):
    ...
    odes.arguments.ArgumentError: Argument `adapter` must be an Adapter, but is 4 (int)
    """
    if not isinstance(value, kind):
        raise ArgumentError(name, f"must be {words}, but is {value!r:.60} ({type(value).__name__})")


def require_integer(name: str, value: Any, words: str) -> None:
    """Raises ArgumentError unless `value` is a whole number, which True and False are not."""
    require_kind(name, value, int | np.integer, words)
    if isinstance(value, bool):
        raise ArgumentError(name, f"must be {words}, but is {value}")


def require_key(key: Any) -> None:
    """Raises ArgumentError unless `key` is one random key of JAX."""
    words = "a random key such as jax.random.key(0)"
    require_kind("key", key, jax.Array, words)
    old = key.dtype == jnp.uint32 and key.shape == (2,)
    if not (old or (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ())):
        raise ArgumentError("key", f"must be {words}, but has shape {key.shape} and type {key.dtype}")


def require_shape(name: str, value: Any, symbols: str, shape: tuple[int, ...]) -> None:
    """Raises ArgumentError unless `value` has `shape`; `symbols` names the sizes for the reader.

    >>> require_shape("target", np.zeros((2, 3)), "(P, f)", (2, 2))
    Traceback (most recent call last):
    ...
    odes.arguments.ArgumentError: Argument `target` must have shape (P, f) = (2, 2), but has shape (2, 3)
    """
    if np.shape(value) != shape:
        raise ArgumentError(name, f"must have shape {symbols} = {shape}, but has shape {np.shape(value)}")


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint at the known words that look like `word`, to end an error message with; empty if none does.

    >>> nearest("Relu", ["linear", "relu"])
    "; did you mean 'relu'?"
    """
    lower = {name.lower(): name for name in known}
    near = [repr(lower[match]) for match in difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.4)]
    return f"; did you mean {near[0]}?" if near else ""


def require_known(name: str, word: str, known: Iterable[str]) -> None:
    """Raises ArgumentError, with the nearest that is known, unless `word` is one of `known`."""
    if word not in known:
        raise ArgumentError(name, f"must be one of {', '.join(known)}, but is {word!r}{nearest(word, known)}")


def positive(value: Any) -> Any:
    """Positive and finite."""
    return (value > 0) & (value < np.inf)


def non_negative(value: Any) -> Any:
    """Non-negative and finite."""
    return (value >= 0) & (value < np.inf)


def finite(value: Any) -> Any:
    """Finite."""
    return abs(value) < np.inf


def within_one(value: Any) -> Any:
    """From -1 to 1."""
    return abs(value) <= 1
