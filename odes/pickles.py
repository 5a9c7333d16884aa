"""Objects as bytes, for another process or the disk."""

import io
import pickle
import sys
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        """How modules and random keys are packed, unlike Python's own way.

        That makes modules which Equinox keeps for ever, as some whose initialisation has not come to its end, and keys with an algorithm
        that is equal to JAX's own one but not the same object, of which JAX compiles a step that takes 1.6 times as long.
        Compiled functions are found by their names, as functions are.
        """
        if callable(obj) and named(obj):
            return obj.__qualname__
        if isinstance(obj, eqx.Module) and type(obj).__reduce__ is object.__reduce__:
            return _remade, (type(obj), vars(obj))
        if isinstance(obj, jax.Array) and jnp.issubdtype(obj.dtype, jax.dtypes.prng_key):
            return _key, (np.asarray(jax.random.key_data(obj)), str(jax.random.key_impl(obj)))
        return NotImplemented


class _Naming(_Pickler):
    """Packs functions and classes of known packages alone."""

    def __init__(self, stream: io.BytesIO, packages: Sequence[str]):
        super().__init__(stream)
        self.fast = True  # whether two things are equal or the same makes no difference
        self._packages = {*packages, "builtins"}

    def reducer_override(self, obj: Any) -> Any:
        module = getattr(obj, "__module__", None)
        if isinstance(module, str) and module.partition(".")[0] not in self._packages and named(obj):
            raise pickle.PicklingError(f"{obj} is not of {', '.join(self._packages)}")
        return super().reducer_override(obj)


def named(obj: Any) -> bool:
    """Whether the object is what its module calls by its name."""
    found = sys.modules.get(getattr(obj, "__module__", None) or "")
    for part in getattr(obj, "__qualname__", "").split("."):
        found = getattr(found, part, None)
    return found is obj


def _key(data: np.ndarray, algorithm: str) -> jax.Array:
    return jax.random.wrap_key_data(jax.device_put(data), impl=algorithm)


def _remade(kind: type, fields: dict[str, Any]) -> Any:
    module = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(module, name, value)
    return module


def packed(value: Any, *, of: Sequence[str] | None = None) -> bytes:
    """The value as bytes; functions and classes in it are names, and have to be `of` these packages if any are given.

    **Raises** `pickle.PicklingError`, AttributeError or TypeError for what cannot be found by a name, or is of another package.
    """
    stream = io.BytesIO()
    pickler = _Pickler(stream) if of is None else _Naming(stream, of)
    pickler.dump(value)
    return stream.getvalue()


def unpacked(content: bytes | memoryview) -> Any:
    """What was packed, by whom it may be trusted: reading a pickle can run any code."""
    return pickle.loads(content)
