"""Prints the table of benchmarks: theory against SciPy, trajectories against SciPy, the simulators against their random numbers.

All numbers of one table come from one run on one machine; compare ratios, not seconds. `--device gpu` prints another table instead
(device.py). `--slow` adds the comparison of
64 simulated seeds with the ODE (several minutes).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from device import measured
from scipy_reference import aligned_tau, committee_trajectory, erf_trajectory

from odes import SGD, Adapter, Overlaps, Problem, flow, random_overlaps, solve
from theory import critical_points, search_phase, sweep
from validation.checks import compare
from validation.cli.compilation import DEVICES
from validation.cli.report import table
from validation.simulation import chain_simulator, even_steps, simulate_chain, simulate_direct

ACTIVATIONS = ["linear", "relu", "erf", "sigmoid"] + [f"He{k}" for k in range(2, 8)]
STRENGTHS = np.linspace(0.05, 0.95, 200)


def seconds(function: Callable[[], Any], repeat: int = 3) -> float:
    """The shortest of a few timed calls."""
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - began)
    return min(times)


def taus() -> list[dict[str, Any]]:
    """(a) tau of 10 link functions at 200 strengths."""

    def ours() -> list:
        return [sweep(name, strength=STRENGTHS).tau for name in ACTIVATIONS]

    cold, warm = seconds(ours, 1), seconds(ours)
    few = STRENGTHS[::20]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # quad's own doubts about 1e-10 near a zero of C
        began = time.perf_counter()
        theirs = [[aligned_tau(name, float(mu)) for mu in few] for name in ACTIVATIONS]
        scipy_seconds = (time.perf_counter() - began) * STRENGTHS.size / few.size
    mine = np.array([np.asarray(sweep(name, strength=few).tau) for name in ACTIVATIONS])
    difference = float(np.max(np.abs(mine / np.array(theirs) - 1)))
    return [
        {"what": "2000 tau, cold (compiles)", "seconds": cold, "note": ""},
        {"what": "2000 tau, warm", "seconds": warm, "note": "limit 0.3"},
        {
            "what": "2000 tau, SciPy quad",
            "seconds": scipy_seconds,
            "note": f"from 100; largest difference {difference:.1e}",
        },
        {"what": "  SciPy / warm", "seconds": scipy_seconds / warm, "note": "ratio"},
    ]


def he3() -> list[dict[str, Any]]:
    """The command of 81 strengths of He3 from a cold process, and its calculation when warm."""
    words = "escape --activation He3 --strength 0.1:0.9:81 --json".split()
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "validation", *words], capture_output=True, text=True, check=True)
    cold = time.perf_counter() - began
    assert len(json.loads(done.stdout)["points"]) == 81
    strengths = np.linspace(0.1, 0.9, 81)

    def calculation() -> Any:
        return sweep("He3", strength=strengths), critical_points("He3", low=0.01, high=1.0)

    calculation()
    return [
        {"what": "escape He3 0.1:0.9:81, cold process", "seconds": cold, "note": "limit 5"},
        {"what": "escape He3 0.1:0.9:81, warm", "seconds": seconds(calculation), "note": "limit 0.05"},
    ]


def trajectories() -> list[dict[str, Any]]:
    """(b) erf, aligned 1/2, gradient flow, to t = 300, at equal error against a tight reference."""
    count, times = 1024, np.linspace(0, 300, 51)
    problem = Problem.single_index("erf", strength=0.5, sgd=SGD(batch_size=np.inf))
    starts = np.random.default_rng(0).normal(size=count) / np.sqrt(1000)

    def run(m0: jax.Array, rtol: float) -> jax.Array:
        start = Overlaps(jnp.zeros((1, 1)), m0 * jnp.array([[1.0, 0.5]]), jnp.ones((1, 1)))
        return solve(problem, start, t1=300.0, times=times, rtol=rtol, atol=1e-2 * rtol).m[:, 0]

    rtol = 1e-8
    one = jax.jit(lambda m0: run(m0, rtol))
    many = jax.jit(jax.vmap(lambda m0: run(m0, rtol)))
    few = starts[:20]
    exact = np.array([erf_trajectory(0.5, m0, times, 1e-12) for m0 in few])
    our_error = float(np.abs(np.asarray(many(starts))[: few.size] - exact).max())
    for scipy_rtol in (
        1e-6,
        1e-7,
        1e-8,
        1e-9,
        1e-10,
        1e-11,
    ):  # the loosest tolerance at which SciPy is as accurate as we are
        began = time.perf_counter()
        theirs = np.array([erf_trajectory(0.5, m0, times, scipy_rtol) for m0 in few])
        scipy_seconds = (time.perf_counter() - began) / few.size
        scipy_error = float(np.abs(theirs - exact).max())
        if scipy_error <= our_error:
            break
    one(starts[0])
    single, batched = seconds(lambda: one(starts[0])), seconds(lambda: many(starts)) / count
    return [
        {"what": "one trajectory, warm", "seconds": single, "note": f"error {our_error:.1e}"},
        {"what": "one of 1024 vmapped trajectories", "seconds": batched, "note": f"error {our_error:.1e}"},
        {
            "what": "one trajectory, SciPy DOP853",
            "seconds": scipy_seconds,
            "note": f"error {scipy_error:.1e}, rtol {scipy_rtol:g}",
        },
        {"what": "  SciPy / vmapped", "seconds": scipy_seconds / batched, "note": "ratio, at least 50"},
    ]


def simulator(dtype: str) -> list[dict[str, Any]]:
    """(c) The direct simulator against drawing its inputs and nothing else."""
    seeds, steps, batch, dimension = 4, 100, 500, 1000
    problem = Problem.single_index("erf", strength=0.5, sgd=SGD(dimension=dimension, batch_size=batch))
    keys = jax.random.split(jax.random.key(0), seeds)

    @jax.jit
    def draw_inputs(keys: jax.Array) -> jax.Array:
        def one_seed(key: jax.Array) -> jax.Array:
            def step(i, _):
                inputs = jax.random.normal(jax.random.fold_in(key, i), (batch, dimension), dtype)
                return jax.lax.optimization_barrier(inputs)

            return jax.lax.fori_loop(0, steps, step, jnp.zeros((batch, dimension), dtype))[0, 0]

        return jax.lax.map(one_seed, keys)

    def simulate() -> jax.Array:
        return simulate_direct(problem, key=jax.random.key(0), seeds=seeds, steps=[0, steps], dtype=dtype).loss

    jax.block_until_ready((draw_inputs(keys), simulate()))
    pairs = [(seconds(lambda: draw_inputs(keys), 1), seconds(simulate, 1)) for _ in range(5)]
    floor, step = (min(column) / (seeds * steps) for column in zip(*pairs, strict=True))
    return [
        {"what": f"random numbers of one step, {dtype}", "seconds": floor, "note": "d = 1000, B = 500"},
        {"what": f"one SGD step, {dtype}", "seconds": step, "note": ""},
        {"what": "  step / random numbers", "seconds": step / floor, "note": "ratio, at most 1.6"},
    ]


def chain() -> list[dict[str, Any]]:
    """(d) The exact chain against drawing its random numbers, and against the direct simulator on one job."""
    seeds, steps, batch = 64, 2000, 500
    problem = Problem.single_index("erf", strength=0.5, sgd=SGD(dimension=1000, batch_size=batch, learning_rate=0.2))
    keys = jax.random.split(jax.random.key(0), seeds)

    @jax.jit
    def draw(keys: jax.Array) -> jax.Array:
        def step(i, _):
            inputs = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), (2, batch), "float32"))(keys)
            return jax.lax.optimization_barrier(inputs)

        return jax.lax.fori_loop(0, steps, step, jnp.zeros((seeds, 2, batch), "float32"))

    def chained() -> jax.Array:
        return simulate_chain(problem, key=jax.random.key(0), seeds=seeds, steps=[0, steps]).loss

    def direct(length: int) -> jax.Array:
        return simulate_direct(problem, key=jax.random.key(0), seeds=seeds, steps=[0, length]).loss

    few = steps // 20
    jax.block_until_ready((draw(keys), chained(), direct(1)))
    floor, whole = seconds(lambda: draw(keys)), seconds(chained)
    trained = seconds(lambda: direct(few), 1) * steps / few
    microseconds = 1e6 / (seeds * steps)
    return [
        {"what": "chain: random numbers of one step, us", "seconds": floor * microseconds, "note": "B = 500"},
        {"what": "chain: one step, us", "seconds": whole * microseconds, "note": "any d"},
        {"what": "  step / random numbers", "seconds": whole / floor, "note": "ratio, at most 3"},
        {"what": "chain: 64 seeds, 2000 steps, B = 500", "seconds": whole, "note": ""},
        {"what": "direct simulator, the same, d = 1000", "seconds": trained, "note": f"from {few} steps"},
        {"what": "  direct / chain", "seconds": trained / whole, "note": "ratio, at least 100"},
    ]


def committees() -> list[dict[str, Any]]:
    """(e) Several units of erf: trajectories with noise against SciPy, the cost of the noise, the chain against its random numbers."""
    count, end, pretrained = 1000, 200.0, np.diag([0.5, 0.3])
    sgd = SGD(dimension=1e4, learning_rate=0.2).replace(noise_scale=1.0)
    problem = Problem.committee("erf", pretrained=pretrained, adapter=Adapter(2), sgd=sgd)
    starts = jax.vmap(lambda key: random_overlaps(problem, key))(jax.random.split(jax.random.key(0), count))

    def run(start: Overlaps) -> jax.Array:
        options = {"adjoint": diffrax.ForwardMode(), "rtol": 1e-5, "atol": 1e-7}
        final = solve(problem, start, t1=end, times=np.zeros(0), **options).final
        return jnp.concatenate([final.up.ravel(), final.cross.ravel(), final.down_gram.ravel()])

    one, many = jax.jit(run), jax.jit(jax.vmap(run))
    first = jax.tree.map(lambda x: x[0], starts)
    plain = tuple(np.asarray(part) for part in (first.up, first.cross, first.down_gram))
    exact = committee_trajectory(pretrained, plain, 1.0, end, 1e-12)
    error = float(np.abs(np.asarray(one(first)) - exact).max())
    theirs, rtol, scipy_seconds = np.inf, 1e-3, np.nan
    while theirs > max(error, 1e-6) and rtol > 1e-12:
        rtol /= 10
        began = time.perf_counter()
        theirs = float(np.abs(committee_trajectory(pretrained, plain, 1.0, end, rtol) - exact).max())
        scipy_seconds = time.perf_counter() - began
    single, batched = seconds(lambda: one(first), 5), (many(starts), seconds(lambda: many(starts)) / count)[1]
    rows = [
        {
            "what": "K = P = 2 with noise, one trajectory, warm",
            "seconds": single,
            "note": f"error {error:.1e}; limit 0.01",
        },
        {"what": "one of 1000 vmapped", "seconds": batched, "note": "limit 0.001"},
        {"what": "one, SciPy DOP853", "seconds": scipy_seconds, "note": f"error {theirs:.1e}, rtol {rtol:.0e}"},
    ]
    for units in (1, 2, 8):
        several = Problem.committee("erf", pretrained=np.linspace(0.2, 0.8, units), adapter=Adapter(2), sgd=sgd)
        at = random_overlaps(several, jax.random.key(0), up=0.3)

        def looped(noise: bool, several: Problem = several, at: Overlaps = at) -> float:
            def move(_, y: Overlaps) -> Overlaps:
                return jax.tree.map(lambda a, b: a + 1e-9 * b, y, flow(several, y, noise=noise))

            loop = eqx.filter_jit(lambda y: jax.lax.fori_loop(0, 300, move, y))
            loop(at)
            return seconds(lambda: loop(at)) / 300

        with_noise, without = looped(True), looped(False)
        what = f"K = P = {units}: one evaluation of the flow with noise, us"
        rows.append(
            {"what": what, "seconds": 1e6 * with_noise, "note": f"{with_noise / without:.2g} times that without"}
        )
    batch, steps = 500, 1000
    small = problem.replace(batch_size=batch)
    simulator, key = chain_simulator(small), jax.random.key(1)
    begin = simulator.start(key)

    @jax.jit
    def chained(state: Any) -> Any:
        return jax.lax.fori_loop(0, steps, lambda i, s: simulator.step(s, jax.random.fold_in(key, i)), state)

    @jax.jit
    def drawn(total: jax.Array) -> jax.Array:
        def step(i: jax.Array, _: jax.Array) -> jax.Array:
            return jax.lax.optimization_barrier(jax.random.normal(jax.random.fold_in(key, i), (4, batch), "float32"))

        return jax.lax.fori_loop(0, steps, step, total)

    blank = jnp.zeros((4, batch), "float32")
    jax.block_until_ready((chained(begin), drawn(blank)))
    whole, floor = seconds(lambda: chained(begin)) / steps, seconds(lambda: drawn(blank)) / steps
    note = f"{whole / floor:.2g} times its random numbers, at most 4"
    return [*rows, {"what": "K = P = 2: one step of the chain, us", "seconds": 1e6 * whole, "note": note}]


def agreement() -> None:
    """64 seeds of the direct simulator against the ODE from the same starts."""
    sgd = SGD(dimension=1000, batch_size=500, learning_rate=0.2)
    problem = Problem.single_index("erf", strength=0.5, sgd=sgd)
    run = simulate_direct(problem, key=jax.random.key(0), seeds=64, steps=even_steps(400.0, 0.2, 40), progress=True)
    comparison = compare(run)
    print("\nSimulation minus ODE, 64 seeds, erf, mu = 0.5, d = 1000, B = 500, eta = 0.2, 40 times to t = 400:")
    print(table(comparison.summary()))
    excess, error = (float(x["loss"][3]) for x in (comparison.deviation, comparison.standard_error))
    predicted = float(problem.sgd.noise_scale * search_phase(problem).noise / (4 * sgd.dimension))
    print(
        f"\nLoss above the ODE at t = {float(run.t[3]):g}: {excess:.2e} +- {error:.1e}; theta N / (4 d) = {predicted:.2e}"
    )
    print("\nz at some times:")
    chosen = [2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40]
    print(table([{"t": float(run.t[i])} | {name: float(z[i]) for name, z in comparison.z.items()} for i in chosen]))


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description="Prints the table of benchmarks.")
    parser.add_argument("--slow", action="store_true", help="also compare 64 simulated seeds with the ODE")
    parser.add_argument("--device", choices=DEVICES, help="instead: what this device does in a second, beside the CPU")
    parser.add_argument("--share", type=float, default=1.0, help="of --device: this part of the work alone")
    parser.add_argument("--json", help="of --device: also write the table to this file")
    options = parser.parse_args()
    slow = options.slow
    if options.device is not None:
        jax.config.update("jax_platforms", DEVICES[options.device])
        if jax.default_backend() != options.device:
            parser.error(f"--device {options.device}: JAX finds none here")
    device = jax.devices()[0]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores; {device.platform} {device.device_kind}; jax {jax.__version__}\n"
    )
    if options.device is not None:
        rows = measured(options.share)
        if options.json:
            about = {"device": device.device_kind, "cores": os.cpu_count(), "jax": jax.__version__}
            Path(options.json).write_text(json.dumps(about | {"share": options.share, "rows": rows}, indent=1))
        print(table(rows))
        return
    print(
        table([*taus(), *he3(), *trajectories(), *simulator("float32"), *simulator("float64"), *chain(), *committees()])
    )
    if slow:
        agreement()


if __name__ == "__main__":
    main()
