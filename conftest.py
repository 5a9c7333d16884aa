"""Everything is tested in double precision, with JAX refusing silent type and rank promotion; compiled programs are kept.

Compilation takes most of the time of most tests: XLA leaves out its costly optimisations but for those of `validation`, which simulate
long, and compare runs to the last bit, of which unoptimised loops over seeds are no longer independent. As many tests run side by side
as there are cores, so that a program compiles on one.
"""

import os

import jax
import pytest

from validation.cli.compilation import cache_folder, set_up

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder().with_name("tests")))
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_parallel_codegen_split_count=1".strip()
set_up(hurry=True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def key():
    return jax.random.key(20261122)


@pytest.fixture(scope="module", autouse=True)
def _programs(request):
    """Programs of a file's tests are forgotten after it: every one takes places in memory, of which a process has 65530."""
    quickly = "validation" not in request.path.relative_to(request.config.rootpath).parts
    jax.config.update("jax_disable_most_optimizations", quickly)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(quickly))  # for processes that the tests start
    yield
    jax.clear_caches()
