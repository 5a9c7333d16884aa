"""The files of kept programs: what decides about a program, how it is made, written and read again, and what makes room for others."""

import concurrent.futures
import contextlib
import dataclasses
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
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache
from jaxtyping import Array

from odes.pickles import named, packed, unpacked
from odes.storage import write_whole

if TYPE_CHECKING:
    from odes.programs import program

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

_WORTH = 0.05
"""Programs that are made in less time, in seconds, are not kept."""


class Program:
    """A program in memory, of arrays to arrays; the function's result has these, in this order, and what else is `static`."""

    def __init__(self, executable: Callable[..., list[jax.Array]], order: Any, static: Any):
        self._executable, self._static = executable, static
        self._structure = jax.tree.structure(order)

    def __call__(self, arrays: list[Any]) -> Any:
        return eqx.combine(jax.tree.unflatten(self._structure, self._executable(*arrays)), self._static)


_Future = concurrent.futures.Future[Program]


class IsThere(Exception):
    """A program that was to be begun is there already."""


class Store:
    """The programs in a folder, named as JAX's own there are: one bound, and one order of last uses, for both."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.loaded: dict[bytes, _Future] = {}
        self._entering = threading.Lock()

    @functools.cached_property
    def surroundings(self) -> bytes:
        """By what programs are compiled, once JAX has been started."""
        return _surroundings()

    @functools.cached_property
    def _threads(self) -> concurrent.futures.ThreadPoolExecutor:
        return concurrent.futures.ThreadPoolExecutor(thread_name_prefix="program")

    def program(self, function: "program", args: Any, kwargs: Any) -> Callable[[], Any] | None:
        """A call of the function as a kept program; None if it cannot be kept."""
        asked = _Asked.of(function, args, kwargs)
        key = asked.key() if all(map(_ordinary, asked.arrays)) else None
        if key is None:
            return None
        with self._entered(key) as (found, mine):
            if mine is not None:
                file = self._file(asked, key)
                mine.set_result(_read(file) or _made(file, _Traced(asked)))
        return None if found is None else functools.partial(found.result(), asked.arrays)

    def begun(
        self, function: "program", args: Any, kwargs: Any, before: "dict[bytes, _Traced]"
    ) -> Callable[[], Any] | None:
        """Begins to compile the program in a thread, unless it is one of those `before`, to which it is added.

        Gives its result with zeros for numbers, for work that is being traced itself; None if it cannot be kept. **Raises** IsThere
        if it is in memory or on disk.
        """
        asked = _Asked.of(function, args, kwargs)
        key = asked.key()
        if key is None:
            return None
        if key in before:
            return before[key].blank
        if key in self.loaded or (file := self._file(asked, key)).exists():
            raise IsThere
        with self._entered(key) as (_, mine):
            if mine is None:
                raise IsThere
            before[key] = traced = _Traced(asked)
            self._threads.submit(self._compile, file, traced, key, mine)
        return traced.blank

    def _compile(self, file: Path, traced: "_Traced", key: bytes, found: _Future) -> None:
        with contextlib.suppress(Exception), self._settling(key, found):  # whoever waits for it is told
            found.set_result(_made(file, traced))

    @contextlib.contextmanager
    def _entered(self, key: bytes) -> "Iterator[tuple[_Future | None, _Future | None]]":
        """What will be the program, None if nothing is kept any more; and the same if it is for the caller to see to it, else None."""
        mine: _Future = concurrent.futures.Future()
        with self._settling(key, mine):
            with self._entering:
                found = self.loaded.get(key)
                if found is None and _as_imported():
                    found = self.loaded[key] = mine
            yield found, mine if found is mine else None

    @contextlib.contextmanager
    def _settling(self, key: bytes, found: _Future) -> Iterator[None]:
        """What goes wrong goes wrong for all who wait for the program too; the next one who asks for it tries again."""
        try:
            yield
        except BaseException as error:
            if self.loaded.get(key) is found:
                del self.loaded[key]
            if not found.done():
                found.set_exception(error)
            raise

    def _file(self, asked: "_Asked", key: bytes) -> Path:
        digest = hashlib.sha256(self.surroundings + _code(key) + key).hexdigest()
        return self.folder / f"program-{asked.name.strip('_')}-{digest}-cache"


@dataclasses.dataclass(frozen=True, eq=False)
class _Asked:
    """What is asked for: a function and its arguments, the arrays apart from what is static."""

    function: "program"
    static: Any
    dynamic: Any

    @classmethod
    def of(cls, function: "program", args: Any, kwargs: Any) -> "_Asked":
        dynamic, static = eqx.partition((args, kwargs), eqx.is_array)
        return cls(function, static, dynamic)

    @property
    def name(self) -> str:
        return self.function.function.__name__

    @functools.cached_property
    def arrays(self) -> list[Any]:
        return jax.tree.leaves(self.dynamic)

    def key(self) -> bytes | None:
        """What decides about the program, in one process; None if it cannot be kept."""
        function = self.function.function
        ours = function.__module__.partition(".")[0] in _LAYERS and (named(self.function) or named(function))
        if any(map(configured, _UNKEPT)) or not ours:
            return None
        shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype), getattr(x, "weak_type", False)), self.dynamic)
        config = [configured(name) for name in _CONFIG]
        name = (function.__module__, function.__qualname__)
        try:
            return packed((name, self.static, shapes, config, self.function.options), of=(*_LAYERS, *_LIBRARIES))
        except (pickle.PicklingError, AttributeError, TypeError, ValueError, RecursionError):
            return None


class _Traced:
    """A function that was traced, of arrays to arrays; its result has these, in this order, and what else is `static`."""

    def __init__(self, asked: _Asked):
        self.order, self.static = None, None
        structure = jax.tree.structure(asked.dynamic)

        def flat(*arrays: Any) -> list[Any]:
            args, kwargs = eqx.combine(jax.tree.unflatten(structure, arrays), asked.static)
            dynamic, self.static = eqx.partition(asked.function.function(*args, **kwargs), eqx.is_array)
            results, to = jax.tree.flatten(dynamic)
            self.order = jax.tree.unflatten(to, range(len(results)))
            return results

        flat.__name__ = asked.name
        began = time.perf_counter()
        traced = jax.jit(flat, compiler_options=dict(asked.function.options)).trace(*map(_kind, asked.arrays))
        self.lowered, self._results = traced.lower(), traced.out_info
        self.took = time.perf_counter() - began

    def blank(self) -> Any:
        """The result with zeros for numbers."""
        return Program(lambda: [_zeros(kind) for kind in self._results], self.order, self.static)([])


def configured(name: str) -> Any:
    """What JAX's configuration says, here and now."""
    return getattr(jax.config, name) if hasattr(jax.config, name) else jax.config.values[name]


def _kind(array: Any) -> Any:
    """The shape and type of an array."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype, weak_type=getattr(array, "weak_type", False))


def _zeros(kind: Any) -> Array:
    return jax.lax.full(kind.shape, kind.dtype.type(0).item()) if kind.weak_type else jnp.zeros(kind.shape, kind.dtype)


def _ordinary(array: Any) -> bool:
    """Whether an array has numbers, and is where JAX puts arrays by itself."""
    if isinstance(array, jax.core.Tracer):
        return False
    return not isinstance(array, jax.Array) or array.devices() == {jax.devices()[0]}


def _read(file: Path) -> Program | None:
    """The program in a file; None if there is none that can be read."""
    try:
        content = zlib.decompress(file.read_bytes())
        if b"lapack" in content:
            _find_lapack()
        executable, order, static = unpacked(content)
        devices = jax.devices()
        where = {"execution_devices": devices[:1]} if len(devices) > 1 else {}
        made = Program(serialize_executable.deserialize_and_load(*executable, **where), order, static)
    except Exception:  # reading half of a file, or one of another version, may fail in any way
        return None
    _note_use(file)
    return made


def _made(file: Path, traced: _Traced) -> Program:
    """Compiles the program, and writes it to the file unless it is small, calls back into Python or cannot be written."""
    began = time.perf_counter()
    with _without_jax_cache:
        executable = traced.lowered.compile()
    if traced.took + time.perf_counter() - began > _WORTH:
        with contextlib.suppress(Exception):  # as JAX does with programs that it cannot keep
            content = packed((serialize_executable.serialize(executable), traced.order, traced.static))
            _note_use(file)
            write_whole(file, lambda path: path.write_bytes(zlib.compress(content, 1)))
            _make_room(file.parent)
    return Program(executable, traced.order, traced.static)


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


class _Aside:
    """Without JAX's own cache while any thread is inside: a program that was read from there lacks functions when it is written again."""

    def __init__(self) -> None:
        self._changing, self._inside, self._before = threading.Lock(), 0, True

    def __enter__(self) -> None:
        with self._changing:
            if not self._inside:
                self._before = configured("jax_enable_compilation_cache")
                self._switch(False)
            self._inside += 1

    def __exit__(self, *_: Any) -> None:
        with self._changing:
            self._inside -= 1
            if not self._inside:
                self._switch(self._before)

    @staticmethod
    def _switch(on: bool) -> None:
        jax.config.update("jax_enable_compilation_cache", on)
        compilation_cache.reset_cache()


_without_jax_cache = _Aside()


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


def _as_imported() -> bool:
    """Whether the code on disk is that of this process."""
    return all(file.stat().st_mtime < _IMPORTED for name in _LAYERS for _, file in _files(name))
