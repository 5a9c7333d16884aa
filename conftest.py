"""Everything is tested in double precision, with JAX refusing silent type and rank promotion; compiled programs are kept.

Compilation takes most of the time of most tests: XLA leaves out its costly optimisations but for the long programs of `validation`,
which simulate (without them up to seven times as long), and compare runs to the last bit, of which unoptimised loops over seeds are no
longer independent, and for tests that are marked to be compiled with care. As many tests run side by side as there are cores, so that a
program compiles on one.
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
set_up()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def key():
    return jax.random.key(20261122)


_CAREFULLY = "--xla_backend_optimization_level=2 --xla_llvm_disable_expensive_passes=false"
"""How long programs of `validation` are compiled."""

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
def _programs():
    """Small programs that many files need are kept between files, as long as there is room."""
    if _places() > _MOST_PLACES:
        jax.clear_caches()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """How programs are compiled, here and in the processes that the test starts."""
    quickly = str(int(item.get_closest_marker("carefully") is None))
    if quickly != os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS"):
        jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", quickly == "1")
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = quickly
    parts = item.path.relative_to(item.config.rootpath).parts
    os.environ["SEARCHPHASE_LONG_PROGRAMS"] = _CAREFULLY if "validation" in parts else ""
