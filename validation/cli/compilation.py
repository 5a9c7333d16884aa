"""Compiled programs are kept on disk, so that a command starts fast; double precision. To be set up before equinox is imported."""

import os
from pathlib import Path

_LARGEST = 2**30
"""The folder holds at most so many bytes; what has not been used for longest goes first."""

_WORTH_KEEPING = 0.1
"""Programs whose compilation took at least so many seconds are kept."""


def cache_folder() -> Path:
    """Where compiled programs are kept: $JAX_COMPILATION_CACHE_DIR, or searchphase/jax in the user's cache folder."""
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return Path(chosen or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "searchphase", "jax"))


def set_up() -> None:
    """Switches on double precision and keeps compiled programs in [`cache_folder`][], if that can be written.

    JAX can keep a program only if it does not call back into Python, which Equinox's checks of values do unless they
    answer with NaN: Equinox reads this from the environment when it is imported.
    """
    os.environ.setdefault("EQX_ON_ERROR", "nan")
    import jax

    jax.config.update("jax_enable_x64", True)
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)
    if "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
        jax.config.update("jax_compilation_cache_max_size", _LARGEST)
