"""Compiled functions whose programs can be kept on disk, so that another process neither traces nor compiles them.

JAX's own cache keeps what XLA compiles, but finds it by the program itself, which has to be traced and translated first: for the
functions of this library that takes longer than all else that a short command does. Here a program is found by what decides about it:
the function's name, those of its arguments that are not traced, the shapes and types of the others, JAX's configuration, the processor,
and all code that is traced, ours by its content, that of libraries by their version.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import pickle
import platform
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from odes.pickles import named, packed, unpacked
from odes.storage import write_whole

try:
    from jax.extend.core import get_opaque_trace_state
except ImportError:  # JAX before 0.10
    from jax.core import get_opaque_trace_state  # pyright: ignore[reportAttributeAccessIssue]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_LAYERS = ("odes", "theory", "validation")
_LIBRARIES = ("jax", "jaxlib", "equinox", "diffrax", "optimistix", "lineax", "numpy", "scipy", "opt_einsum")
"""The packages whose code is traced: our own, of which each imports those before it alone, and others."""

_CONFIG = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_disable_most_optimizations",
    "jax_threefry_partitionable",
)
_UNKEPT = ("jax_disable_jit", "jax_debug_nans", "jax_debug_infs", "jax_default_device")
_ENVIRONMENT = ("JAX_", "XLA_", "EQX_", "PJRT_")
"""What of JAX's configuration may decide about a program, what of it JAX alone can heed, and how variables begin that say more of it."""

LONG = "SEARCHPHASE_LONG_PROGRAMS"
"""The environment variable with XLA's flags for programs that run long."""

_WORTH = 0.05
"""Programs that are made in less time, in seconds, are not kept."""


class program(Generic[_P, _T]):
    """Decorator: a compiled function, as `equinox.filter_jit` makes it. Arrays among its arguments are traced, all else is static.

    Once [`keep`][] has named a folder its programs are read from there, and written where they are missing. Arguments that are being
    traced, arrays that are not where JAX puts them by itself, and functions that no package knows by a name, such as a link function
    of the user's own, are compiled as always.

    `long`: it runs for longer than its compilation takes, as loops over many steps do; the environment variable
    SEARCHPHASE_LONG_PROGRAMS may hold flags of XLA for such programs alone, written as in XLA_FLAGS, switches as true or false.
    """

    def __init__(self, function: Callable[_P, _T], *, long: bool = False):
        functools.update_wrapper(self, function)
        self.function, self.long = function, long
        self.compiled = eqx.filter_jit(function)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        kept = None if _store is None else _store.program(self, args, kwargs)
        if kept is not None:
            return kept()
        options = self.options
        if options and get_opaque_trace_state() == _NO_TRACE:  # a part of another program is compiled as that is
            return _with_options(self.function, options)(*args, **kwargs)
        return self.compiled(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A pickle of it is its name, if its module knows it by that."""
        return self.function.__qualname__ if named(self) else super().__reduce_ex__(protocol)

    @property
    def options(self) -> tuple[tuple[str, Any], ...]:
        """XLA's options for its programs, beside those of all."""
        return _flags(os.environ.get(LONG, "")) if self.long else ()


class _Program:
    """A program in memory, of arrays to arrays; the function's result has these, in this order, and what else is `static`."""

    def __init__(self, executable: Callable[..., list[jax.Array]], order: Any, static: Any):
        self._executable, self._static = executable, static
        self._structure = jax.tree.structure(order)

    def __call__(self, arrays: list[Any]) -> Any:
        return eqx.combine(jax.tree.unflatten(self._structure, self._executable(*arrays)), self._static)


class _Store:
    """The programs in a folder, named as JAX's own there are: one bound, and one order of last uses, for both."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.loaded: dict[bytes, _Program] = {}
        self._making = threading.RLock()  # a program may need others while it is traced

    @functools.cached_property
    def surroundings(self) -> bytes:
        """By what programs are compiled, once JAX has been started."""
        return _surroundings()

    def program(self, function: program, args: Any, kwargs: Any) -> Callable[[], Any] | None:
        """A call of the function as a kept program; None if it cannot be kept."""
        dynamic, static = eqx.partition((args, kwargs), eqx.is_array)
        arrays, structure = jax.tree.flatten(dynamic)
        if any(map(configured, _UNKEPT)) or not all(map(_ordinary, arrays)):
            return None
        try:
            key = _key(function, static, dynamic)
        except (pickle.PicklingError, AttributeError, TypeError, ValueError, RecursionError):
            return None
        with self._making:
            made = self.loaded.get(key)
            if made is None:
                if not _as_imported():
                    return None
                digest = hashlib.sha256(self.surroundings + _code(key) + key).hexdigest()
                file = self.folder / f"program-{function.function.__name__.strip('_')}-{digest}-cache"
                made = _read(file) or _made(file, function, static, arrays, structure)
                self.loaded[key] = made
        return functools.partial(made, arrays)


_store: _Store | None = None


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
        _store = _Store(Path(folder).absolute())


def folder() -> str | None:
    """Where programs are kept; None if they are not."""
    return None if _store is None else str(_store.folder)


def configured(name: str) -> Any:
    """What JAX's configuration says, here and now."""
    return getattr(jax.config, name) if hasattr(jax.config, name) else jax.config.values[name]


def forget() -> None:
    """Removes the programs from memory, as `jax.clear_caches` does those of JAX, which leave it to be filled by others."""
    if _store is not None:
        _store.loaded.clear()


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


def _ordinary(array: Any) -> bool:
    """Whether an array has numbers, and is where JAX puts arrays by itself."""
    if isinstance(array, jax.core.Tracer):
        return False
    return not isinstance(array, jax.Array) or array.devices() == {jax.devices()[0]}


def _key(function: program, static: Any, dynamic: Any) -> bytes:
    """What decides about the program of a function and its arguments, in one process."""
    package = function.function.__module__.partition(".")[0]
    if package not in _LAYERS or not (named(function) or named(function.function)):
        raise pickle.PicklingError(f"no module of {', '.join(_LAYERS)} knows {function} by its name")
    shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype), getattr(x, "weak_type", False)), dynamic)
    config = [configured(name) for name in _CONFIG]
    name = (function.function.__module__, function.function.__qualname__)
    return packed((name, static, shapes, config, function.options), of=(*_LAYERS, *_LIBRARIES))


def _read(file: Path) -> _Program | None:
    """The program in a file; None if there is none that can be read."""
    try:
        content = zlib.decompress(file.read_bytes())
        if b"lapack" in content:
            _find_lapack()
        executable, order, static = unpacked(content)
        devices = jax.devices()
        where = {"execution_devices": devices[:1]} if len(devices) > 1 else {}
        made = _Program(serialize_executable.deserialize_and_load(*executable, **where), order, static)
    except Exception:  # reading half of a file, or one of another version, may fail in any way
        return None
    _note_use(file)
    return made


def _made(file: Path, function: program, static: Any, arrays: list[Any], structure: Any) -> _Program:
    """Compiles the program, and writes it to the file unless it is small, calls back into Python or cannot be written."""
    order, rest = None, None

    def flat(*arrays: Any) -> list[Any]:
        nonlocal order, rest
        args, kwargs = eqx.combine(jax.tree.unflatten(structure, arrays), static)
        dynamic, rest = eqx.partition(function.function(*args, **kwargs), eqx.is_array)
        results, to = jax.tree.flatten(dynamic)
        order = jax.tree.unflatten(to, range(len(results)))
        return results

    flat.__name__ = function.function.__name__
    began = time.perf_counter()
    with _compiled_anew():
        executable = jax.jit(flat, compiler_options=dict(function.options)).lower(*arrays).compile()
    if time.perf_counter() - began > _WORTH:
        with contextlib.suppress(Exception):  # as JAX does with programs that it cannot keep
            content = packed((serialize_executable.serialize(executable), order, rest))
            _note_use(file)
            write_whole(file, lambda path: path.write_bytes(zlib.compress(content, 1)))
            _make_room(file.parent)
    return _Program(executable, order, rest)


def _mark(file: Path) -> Path:
    """Where the time of a program's last use is, in nanoseconds."""
    return file.with_name(file.name.removesuffix("-cache") + "-atime")


def _note_use(file: Path) -> None:
    """Writes the time, as JAX does for its own programs in a folder whose size it bounds."""
    if configured("jax_compilation_cache_max_size") != -1:
        with contextlib.suppress(OSError):
            _mark(file).write_bytes(time.time_ns().to_bytes(8, "little"))


def _make_room(folder: Path) -> None:
    """Removes the programs, JAX's own too, that have not been used for longest, until the others are within JAX's bound of the folder."""
    bound = configured("jax_compilation_cache_max_size")
    if bound == -1:
        return
    sizes = {file: file.stat().st_size for file in folder.glob("*-cache")}
    uses = {file: int.from_bytes(_mark(file).read_bytes(), "little") if _mark(file).exists() else 0 for file in sizes}
    size = sum(sizes.values())
    for file in sorted(uses, key=uses.__getitem__):
        if size <= bound:
            return
        size -= sizes[file]
        file.unlink(missing_ok=True)
        _mark(file).unlink(missing_ok=True)


@contextlib.contextmanager
def _compiled_anew() -> Iterator[None]:
    """Without JAX's own cache: a program that was read from there lacks functions when it is written again."""
    before = configured("jax_enable_compilation_cache")
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


@functools.cache
def _find_lapack() -> None:
    """JAX looks for LAPACK when it translates the first program that calls it, without which a program that was read calls nothing."""
    jax.jit(jax.lax.linalg.cholesky).lower(jax.ShapeDtypeStruct((1, 1), jnp.float32))


def _surroundings() -> bytes:
    """By what programs are compiled, for which processor, and what the environment says of that."""
    versions = [importlib.metadata.version(name) for name in _LIBRARIES]
    variables = [(name, os.environ[name]) for name in sorted(os.environ) if name.startswith(_ENVIRONMENT)]
    variables = [(name, value) for name, value in variables if "CACHE" not in name]
    device = jax.devices()[0]
    target = [device.platform, device.device_kind, device.client.platform_version, platform.machine()]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        target += sorted({line for line in lines if line.startswith(("model name", "flags"))})
    return repr((sys.version, versions, variables, target)).encode()


def _code(key: bytes) -> bytes:
    """What is traced for a program: the code of our packages that its key names, and of those that they import."""
    digest, there = hashlib.sha256(), [name.encode() in key for name in _LAYERS]
    for number, name in enumerate(_LAYERS):
        if any(there[number:]):
            digest.update(_content(name))
    return digest.digest()


@functools.cache
def _content(package: str) -> bytes:
    digest = hashlib.sha256()
    for name, file in _files(package):
        digest.update(name.encode() + file.read_bytes())
    return digest.digest()


@functools.cache
def _files(package: str) -> list[tuple[str, Path]]:
    """The files of a package of ours, by their names in it."""
    found = importlib.util.find_spec(package)
    places = [] if found is None else map(Path, found.submodule_search_locations or [])
    return [(str(file.relative_to(place)), file) for place in places for file in sorted(place.rglob("*.py"))]


_IMPORTED = time.time()
_NO_TRACE = get_opaque_trace_state()


def _as_imported() -> bool:
    """Whether the code on disk is that of this process."""
    return all(file.stat().st_mtime < _IMPORTED for name in _LAYERS for _, file in _files(name))
