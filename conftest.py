"""Everything is tested in double precision, with JAX refusing silent type and rank promotion; compiled programs are kept.

Compilation takes most of the time of most tests: XLA leaves out its costly optimisations but for those of `validation`, the explorer's
apart, which simulate long (without them up to seven times as long), and compare runs to the last bit, of which unoptimised loops over
seeds are no longer independent. As many tests run side by side as there are cores, so that a program compiles on one.
Even the smallest programs are read from disk sooner than they are compiled, as often as tests need the same.
"""

import gc
import math
import os
from pathlib import Path

import jax
import pytest

from validation.cli.compilation import cache_folder, set_up

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder().with_name("tests")))
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_parallel_codegen_split_count=1".strip()
set_up(hurry=True)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def key():
    return jax.random.key(20261122)


_QUICKLY = "JAX_DISABLE_MOST_OPTIMIZATIONS"
"""Of this process in JAX's configuration, and in the environment of those that the tests start."""

_MOST_PLACES = 6_000
"""Compiled programs are forgotten before a file of tests if the process has more places in memory; 65530 are allowed."""


def _places() -> float:
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else math.inf


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """What importing has made stays: no collection of garbage is to look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _programs(request):
    """Small programs that many files need are kept between files, as long as there is room and they are compiled alike."""
    parts = request.path.relative_to(request.config.rootpath).parts
    quickly = str(int("validation" not in parts or "explore" in parts))
    if quickly != os.environ.get(_QUICKLY) or _places() > _MOST_PLACES:
        jax.clear_caches()
    jax.config.update(_QUICKLY.lower(), quickly == "1")
    os.environ[_QUICKLY] = quickly
