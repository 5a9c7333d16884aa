"""Compiled functions whose programs can be kept on disk, so that another process neither traces nor compiles them.

JAX's own cache keeps what XLA compiles, but finds it by the program itself, which has to be traced and translated first: for the
functions of this library that takes longer than all else that a short command does. Here a program is found by what decides about it
([`odes.kept`][]). Those that are not there yet can be compiled side by side, while others are traced ([`ahead`][]).
"""

import contextlib
import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

import equinox as eqx
import jax

from odes.kept import Store, configured
from odes.pickles import named

try:
    from jax.extend.core import get_opaque_trace_state as trace_state
except ImportError:  # JAX before 0.10
    from jax.core import get_opaque_trace_state as trace_state  # pyright: ignore[reportAttributeAccessIssue]

__all__ = ["LONG", "SHORT", "ahead", "configured", "folder", "forget", "keep", "program"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

LONG, SHORT = "SEARCHPHASE_LONG_PROGRAMS", "SEARCHPHASE_SHORT_PROGRAMS"
"""The environment variables with XLA's flags for programs that run long, and for all others."""


class program(Generic[_P, _T]):
    """Decorator: a compiled function, as `equinox.filter_jit` makes it. Arrays among its arguments are traced, all else is static.

    Once [`keep`][] has named a folder its programs are read from there, and written where they are missing. Arguments that are being
    traced, arrays that are not where JAX puts them by itself, and functions that no package knows by a name, such as a link function
    of the user's own, are compiled as always.

    `long`: it runs for longer than its compilation takes, as loops over many steps do. The environment variables
    SEARCHPHASE_LONG_PROGRAMS and SEARCHPHASE_SHORT_PROGRAMS may hold flags of XLA for such programs and for all others, written as in
    XLA_FLAGS, switches as true or false.
    """

    def __init__(self, function: Callable[_P, _T], *, long: bool = False):
        functools.update_wrapper(self, function)
        self.function, self.long = function, long
        self.compiled = eqx.filter_jit(function)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        if _store is not None:
            look = _looking.now
            if look is not None and look.state == trace_state():
                kept = _store.begun(self, args, kwargs, look.traced)
            else:
                kept = _store.program(self, args, kwargs)
            if kept is not None:
                return kept()
        options = self.options
        if options and trace_state() == _NO_TRACE:  # a part of another program is compiled as that is
            return _with_options(self.function, options)(*args, **kwargs)
        return self.compiled(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A pickle of it is its name, if its module knows it by that."""
        return self.function.__qualname__ if named(self) else super().__reduce_ex__(protocol)

    @property
    def options(self) -> tuple[tuple[str, Any], ...]:
        """XLA's options for its programs, beside those of all."""
        return _flags(os.environ.get(LONG if self.long else SHORT, ""))


class _Look:
    """A look at the programs to come: how JAX traces it, and what was traced so far."""

    def __init__(self) -> None:
        self.state, self.traced = trace_state(), {}


class _Looking(threading.local):
    now: _Look | None = None


_store: Store | None = None
_looking = _Looking()
_NO_TRACE = trace_state()


def keep(folder: str | os.PathLike | None) -> None:
    """From now on the library's compiled functions are kept in a folder, which is there; if it is None, as JAX keeps them.

    A process that finds a program there neither traces nor compiles it: its first result comes as fast as the second. It has to be a
    folder that nobody else writes to, since programs are Python pickles and machine code, and are trusted. A program is made of the
    code on disk: what a process itself has replaced in the packages, as tests do, is not seen. Once a file of theirs has been written
    since they were imported, nothing more is kept.
    """
    global _store
    if folder is None:
        _store = None
    elif _store is None or _store.folder != Path(folder).absolute():
        _store = Store(Path(folder).absolute())


def folder() -> str | None:
    """Where programs are kept; None if they are not."""
    return None if _store is None else str(_store.folder)


def forget() -> None:
    """Removes the programs from memory, as `jax.clear_caches` does those of JAX, which leave it to be filled by others."""
    if _store is not None:
        _store.loaded.clear()


def ahead(work: Callable[[], Any]) -> None:
    """Begins to compile the programs that `work` calls, each in a thread of its own; a call then waits for its own alone.

    The work is traced, not computed: one after the other its programs are traced while those before them are being compiled. That
    ends at the first one that is there already, as all are if the same has been done before, and where the work looks at a number that
    a program has computed. Nothing happens unless programs are kept ([`keep`][]), nor within anything else that is being traced.
    """
    if _store is None or trace_state() != _NO_TRACE:
        return

    def looked() -> None:
        _looking.now = _Look()
        work()

    with contextlib.suppress(Exception):  # what is wrong is said where the work is done
        try:
            jax.eval_shape(looked)
        finally:
            _looking.now = None


@functools.cache
def _flags(words: str) -> tuple[tuple[str, bool | int | str], ...]:
    """Flags of XLA as options of a compilation.

    >>> _flags("--xla_cpu_use_fusion_emitters=true --xla_backend_optimization_level=3")
    (('xla_cpu_use_fusion_emitters', True), ('xla_backend_optimization_level', 3))
    """
    values: dict[str, bool] = {"true": True, "false": False, "": True}
    pairs = (word.removeprefix("--").partition("=")[::2] for word in words.split())
    return tuple((name, int(value) if value.isdecimal() else values.get(value, value)) for name, value in pairs)


@functools.cache
def _with_options(function: Callable[..., Any], options: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    """The compiled function, with options of XLA."""
    jitted: Any = eqx.filter_jit  # hands what it does not know to jax.jit
    return jitted(function, compiler_options=dict(options))
