"""What an accelerator does in a second, beside the CPU of its machine: the table of `run.py --device gpu`.

Compilation is timed apart. Every figure is the median of three repeats of a compiled function that has run once before, each waited for
(`block_until_ready`). Where the whole would take a CPU too long it does fewer at a time, which the table says; a figure is per
second and comparable all the same.
"""

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from odes import SGD, Overlaps, Problem, solve
from validation.simulation import chain_simulator, direct_simulator

REPEATS = 3
END = 100.0
"""Trajectories are integrated to this time."""


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """JAX's floating point type is `dtype`."""
    with jax.enable_x64(dtype == "float64"):
        yield


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, float]:
    """Seconds of the first call less those of a later one, which are the compilation, and the median of later ones."""

    def once() -> float:
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        return time.perf_counter() - began

    first = once()
    warm = statistics.median(once() for _ in range(REPEATS))
    return max(first - warm, 0.0), warm


def trajectories(count: int, dtype: str) -> tuple[float, float, str]:
    """Trajectories per second: erf, aligned 1/2, gradient flow, to t = 100 from d = 1000."""
    with precision(dtype):
        rtol, atol = (1e-8, 1e-10) if dtype == "float64" else (1e-5, 1e-7)
        problem = Problem.single_index("erf", strength=0.5, sgd=SGD(batch_size=np.inf))

        def one(first: jax.Array) -> jax.Array:
            start = Overlaps(jnp.zeros((1, 1)), first * jnp.array([[1.0, 0.5]]), jnp.ones((1, 1)))
            options: dict[str, Any] = {"adjoint": diffrax.ForwardMode(), "rtol": rtol, "atol": atol}
            return solve(problem, start, t1=END, times=np.zeros(0), **options).final.cross[0, 0]

        first = jnp.asarray(np.random.default_rng(0).normal(size=count) / np.sqrt(1000), dtype)
        compilation, seconds = timed(jax.jit(jax.vmap(one)), first)
    return count / seconds, compilation, f"{count} at a time, rtol {rtol:g}"


def steps(simulator: Any, seeds: int, count: int) -> tuple[float, float, str]:
    """Steps of all seeds together per second: `count` steps of each, as many seeds at a time as the simulator says."""
    together = min(seeds, simulator.seeds_at_once)
    keys = jax.random.split(jax.random.key(0), together)
    states = eqx.filter_jit(eqx.filter_vmap(simulator.start))(keys)

    @eqx.filter_jit
    def advance(simulator: Any, states: Any, keys: jax.Array) -> Any:
        def step(i: jax.Array, states: Any) -> Any:
            return jax.vmap(lambda state, key: simulator.step(state, jax.random.fold_in(key, i)))(states, keys)

        return jax.lax.fori_loop(0, count, step, states)

    compilation, seconds = timed(advance, simulator, states, keys)
    return together * count / seconds, compilation, f"{together} seeds at a time, {count} steps"


def chain(seeds: int, count: int) -> tuple[float, float, str]:
    problem = Problem.single_index("erf", strength=0.5, sgd=SGD(dimension=1000, batch_size=500))
    return steps(chain_simulator(problem), seeds, count)


def direct(seeds: int, count: int) -> tuple[float, float, str]:
    problem = Problem.single_index("erf", strength=0.5, sgd=SGD(dimension=1e5, batch_size=500))
    return steps(direct_simulator(problem), seeds, count)


def measured(share: float = 1.0) -> list[dict[str, Any]]:
    """The rows of the table: every figure on JAX's device, and on the CPU; standard error shows each as it comes.

    `share` makes every job smaller, to try the program out.
    """
    cpu = jax.devices("cpu")[0]

    def few(count: int) -> int:
        return max(1, round(count * share))

    jobs: list[tuple[str, Callable[..., Any], tuple[Any, ...], tuple[Any, ...]]] = []
    for count, dtype in [(n, kind) for n in (10**3, 10**5, 10**6) for kind in ("float64", "float32")]:
        name = f"trajectories / s, {count:.0e} vmapped, {dtype}".replace("e+0", "e")
        jobs.append((name, trajectories, (few(count), dtype), (few(min(count, 10**4)), dtype)))
    jobs.append(("chain: steps / s, 1e5 seeds, B = 500", chain, (few(10**5), 200), (few(128), 200)))
    jobs.append(("direct SGD: steps / s, d = 1e5, B = 500", direct, (few(8), 20), (1, 2)))
    rows, known = [], {}
    for name, job, large, small in jobs:
        rate, compilation, note = job(*large)
        if (job, small) not in known:
            with jax.default_device(cpu):
                known[job, small] = job(*small)
        cpu_rate, cpu_compilation, cpu_note = known[job, small]
        print(f"{name}: {rate:.4g}, on the CPU {cpu_rate:.4g}", file=sys.stderr, flush=True)
        rows.append(
            {
                "what": name,
                "device": rate,
                "cpu": cpu_rate,
                "device / cpu": rate / cpu_rate,
                "compile, s": compilation,
                "compile cpu, s": cpu_compilation,
                "note": note,
                "note cpu": cpu_note,
            }
        )
    return rows
