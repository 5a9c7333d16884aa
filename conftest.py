"""Everything is tested in double precision, with JAX refusing silent type and rank promotion; compiled programs are kept."""

import os

import jax
import pytest

from validation.cli.compilation import cache_folder, set_up

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder().with_name("tests")))
set_up(hurry=True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def key():
    return jax.random.key(20261122)


@pytest.fixture(scope="module", autouse=True)
def _room_for_programs():
    """Programs of a file's tests are forgotten after it: every one takes places in memory, of which a process has 65530."""
    yield
    jax.clear_caches()
