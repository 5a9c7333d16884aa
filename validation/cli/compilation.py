"""Where compiled programs are kept, so that a command starts fast; double precision. To be set up before equinox is imported."""

import contextlib
import gc
import importlib.metadata
import os
import time
from pathlib import Path

_BOUND = "jax_compilation_cache_max_size"
_SETTINGS = {
    _BOUND: 2**30,
    "jax_persistent_cache_min_compile_time_secs": 0.05,
}
"""At most 1 GiB is kept, what has not been used for longest goes first; programs compiled in less time are not worth reading."""

_SWITCH = "xla_cpu_use_fusion_emitters"
_SWITCH_UNTIL = (0, 11)
"""XLA's newer generators of code for fused operations on CPUs: faster loops, from a compilation that takes twice as long. From this
version of jaxlib on they are the only ones, and XLA ends a process that names the switch."""

_LEVEL = "xla_backend_optimization_level"
"""At level 2 of LLVM's optimisations a program of loops over seeds compiles in half the time that level 3 takes, and runs about as fast."""

DEVICES = {"cpu": "cpu", "gpu": ""}
"""What JAX is told of its platforms; with nothing it takes an accelerator if there is one, and keeps the CPU beside it."""

_BEING_WRITTEN = 1.0
"""A program that was written within so many seconds may still get its time of last use."""

_OBJECTS_BETWEEN_COLLECTIONS = 1_000_000
"""Tracing makes many objects that live long: looking for cycles among them after every 700 takes a tenth of a short command,
after every 100 000 a twentieth."""


def cache_folder() -> Path:
    """Where compiled programs are kept: $JAX_COMPILATION_CACHE_DIR, or [`own_folder`][]."""
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return Path(chosen) if chosen else own_folder()


def own_folder() -> Path:
    """The folder searchphase/jax in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "searchphase", "jax")


def _mend(folder: Path) -> None:
    """Removes programs whose time of last use is missing, as a process that was killed leaves them: JAX would keep nothing any more.

    Only folders that always were bounded have these times.
    """
    names = {entry.name for entry in os.scandir(folder)}
    for name in names:
        if name.endswith("-cache") and f"{name.removesuffix('-cache')}-atime" not in names:
            file = folder / name
            with contextlib.suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > _BEING_WRITTEN:
                    file.unlink()


def _has_switch() -> bool:
    version = importlib.metadata.version("jaxlib").split(".")
    return tuple(map(int, version[:2])) < _SWITCH_UNTIL


def hurried(flags: str) -> str:
    """XLA's flags with those by which programs compile in half the time, to run half as long again; what they say already holds.

    >>> hurried("--xla_cpu_use_fusion_emitters=true")
    '--xla_cpu_use_fusion_emitters=true --xla_backend_optimization_level=2'
    """
    quick = {_SWITCH: "false"} if _has_switch() else {}
    quick[_LEVEL] = "2"
    return " ".join([flags, *(f"--{name}={value}" for name, value in quick.items() if name not in flags)]).strip()


def unhurried(flags: str) -> str:
    """What undoes [`hurried`][] for some programs.

    >>> unhurried("--xla_cpu_use_fusion_emitters=true")
    '--xla_backend_optimization_level=3'
    """
    usual = {_SWITCH: "true"} if _has_switch() else {}
    usual[_LEVEL] = "3"
    return " ".join(f"--{name}={value}" for name, value in usual.items() if name not in flags)


def compile_barely(flags: str) -> None:
    """From now on programs that do not run long are compiled without LLVM's optimisations, in two thirds of the time, to run three times as
    long (here and in the processes that this one starts). What the environment says, with these `flags` of XLA for all, holds."""
    from odes.programs import SHORT

    if _LEVEL not in flags:
        os.environ.setdefault(SHORT, f"--{_LEVEL}=0")


def set_up(*, loops: bool = False, device: str | None = None, alone: bool = False) -> None:
    """Switches on double precision and keeps compiled programs in [`cache_folder`][], if that can be written.

    `device` "cpu" keeps JAX to the CPU, "gpu" lets it take the best device that it finds whatever $JAX_PLATFORMS says (for this process and
    those that it starts); unless given, JAX chooses. [`require_device`][] says whether that is what was asked for.

    `alone`: XLA computes on one thread of the CPU, here and in the processes that work for this one, unless $PJRT_NPROC says how many.
    A step of the chain takes as long with two, and more of the processor's time; and sums over 1e5 dimensions of direct SGD, which
    the threads would share, have the same last bits however many cores there are.

    XLA compiles in a hurry, in half the time, programs that run half as long again (here and in the processes that this one starts);
    where the time is in `loops` these alone are compiled with care ([`odes.programs.program`][]). What the environment says holds.
    JAX can keep a program only if it does not call back into Python, which Equinox's checks of values do unless they
    answer with NaN: Equinox reads this from the environment when it is imported. What the environment says of JAX's cache holds.
    """
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = hurried(flags)
    if alone:
        os.environ.setdefault("PJRT_NPROC", "1")
    os.environ.setdefault("EQX_ON_ERROR", "nan")
    if device is not None:
        os.environ["JAX_PLATFORMS"] = DEVICES[device]
    import jax

    from odes.programs import LONG

    if loops:
        os.environ.setdefault(LONG, unhurried(flags))
    if device is not None:  # where JAX was imported before
        jax.config.update("jax_platforms", DEVICES[device])
    jax.config.update("jax_enable_x64", True)
    kept, own = None, False
    try:
        folder = cache_folder()
        own = folder == own_folder()
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            if own:
                _mend(folder)
            kept = str(folder)
    except (OSError, RuntimeError):  # a user without a home folder is a RuntimeError
        pass
    jax.config.update("jax_compilation_cache_dir", kept)
    for name, value in _SETTINGS.items():
        if name.upper() not in os.environ and (
            own or name != _BOUND
        ):  # JAX bounds only folders that always were bounded
            jax.config.update(name, value)


def require_device(device: str | None) -> None:
    """Raises ArgumentError if JAX does not compute on the `device`, "cpu" or "gpu"; None is any."""
    import jax

    from odes.arguments import ArgumentError

    if device is not None and jax.default_backend() != device:
        hint = " (JAX needs its CUDA plugin: pip install 'searchphase[cuda13]' or [cuda12])" if device == "gpu" else ""
        raise ArgumentError("device", f"{device}: JAX finds no {device.upper()} here{hint}")
