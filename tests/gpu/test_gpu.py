"""An accelerator against the CPU of its machine and, for the simulators, against the flow."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odes import Escape, Overlaps, Problem, random_overlaps, solve
from tests.problems import single
from theory import escape_law, search_phase
from validation.simulation import chain_simulator, direct_simulator, simulate

T1 = 200.0
LARGEST_Z = 4.5
"""Some 300 numbers, most of them correlated, are compared: one of them is larger by chance in 1 of 500 runs."""


def on_cpu(function):
    """What `function()` gives on the CPU, as NumPy arrays."""
    with jax.default_device(jax.devices("cpu")[0]):
        return jax.tree.map(np.asarray, eqx.filter(function(), eqx.is_array))


def on_both(function):
    """What `function()` gives on the accelerator, where it must have been computed, and on the CPU."""
    there = eqx.filter(function(), eqx.is_array)
    places = {device.platform for x in jax.tree.leaves(there) for device in x.devices()}
    assert places == {jax.default_backend()}
    return jax.tree.map(np.asarray, there), on_cpu(function)


def escapes(**options):
    """Escape times, losses, numbers of steps and the largest first overlaps of 64 random starts of rank 2, the same ones everywhere."""
    starts = np.random.default_rng(0).normal(size=(64, 2, 2)) / np.sqrt(1000)

    def one(cross):
        problem = single(d=1000, theta=0.0, alignment=0.9, rank=2)
        start = Overlaps(jnp.zeros((1, 2), cross.dtype), cross, jnp.eye(2, dtype=cross.dtype))
        run = solve(problem, start, t1=T1, times=[10.0, T1], escape=Escape(), adjoint=diffrax.ForwardMode(), **options)
        return run.escape_time, run.loss, run.steps_taken, jnp.abs(cross[:, 0]).max()

    return jax.jit(jax.vmap(one))(jnp.asarray(starts))


def test_solve_in_double_precision():
    """Within what the integrator's tolerance of 1e-8 leaves; the steps are the same up to rounding."""
    (time, loss, *_), (cpu_time, cpu_loss, *_) = on_both(escapes)
    assert np.isfinite(cpu_time).all()
    np.testing.assert_allclose(time, cpu_time, rtol=1e-7)
    np.testing.assert_allclose(loss, cpu_loss, rtol=1e-6, atol=1e-9)


def test_solve_in_single_precision():
    """The escape moves by τ times the relative error of the amplitude a: n steps, each wrong by rtol + atol / a with rtol = 84 roundings.

    Products rounded to 10 bits, which GPUs take by default, would be wrong by 5e-4 in every step.
    """
    rtol, atol = 1e-5, 1e-6
    with jax.enable_x64(False):
        time, _, steps, amplitude = (np.asarray(x) for x in escapes(rtol=rtol, atol=atol))
        assert time.dtype == np.float32
    exact = on_cpu(escapes)[0]
    tau = float(search_phase(single(d=1000, theta=0.0, alignment=0.9, rank=2)).tau)
    assert (np.abs(time - exact) <= tau * steps * (rtol + atol / amplitude)).all()
    assert np.abs(time / exact - 1).max() < 5e-3


def test_the_gradient_of_an_escape_time():
    """Against the CPU's, and against central differences."""

    def both():
        start = random_overlaps(single(d=1000, theta=0.0, alignment=0.9), jax.random.key(3))

        def time(strength):
            problem = Problem.single_index("erf", strength=strength, alignment=0.9)
            run = solve(problem, start, t1=T1, times=[], escape=Escape(), until_escape=True, rtol=1e-10, atol=1e-12)
            return run.escape_time

        values = jax.jit(jax.vmap(jax.value_and_grad(time)))(jnp.array([0.5, 0.5005, 0.4995]))
        return values

    (time, slope), (cpu_time, cpu_slope) = on_both(both)
    np.testing.assert_allclose(time, cpu_time, rtol=1e-8)
    np.testing.assert_allclose(slope, cpu_slope, rtol=1e-6)
    np.testing.assert_allclose(slope[0], (time[1] - time[2]) / 1e-3, rtol=1e-4)


def test_the_law_of_the_escape_time():
    def law():
        found = escape_law(single(d=1e4, theta=0.5, eta=0.1, rank=2))
        return found.mean, found.std

    (mean, std), (cpu_mean, cpu_std) = on_both(law)
    np.testing.assert_allclose(mean, cpu_mean, rtol=1e-6)
    np.testing.assert_allclose(std, cpu_std, rtol=1e-5)


def largest_z(simulator, start, seeds):
    """The largest deviation, in standard errors, of the seeds' mean overlaps and loss from the flow of finite steps, at five times.

    The flow's own error is of order 1/d; the seeds scatter by d^(-1/2).
    """
    problem, steps = simulator.problem, np.arange(0, 501, 100)
    run = simulate(simulator, key=jax.random.key(1), seeds=seeds, steps=steps)
    times = np.asarray(run.t)[1:]

    def exact():
        flow = solve(problem, start, t1=float(times[-1]), times=times, finite_steps=True)
        return flow.overlaps.up, flow.overlaps.cross, flow.loss

    scores = []
    for found, right in zip((run.overlaps.up, run.overlaps.cross, run.loss), on_cpu(exact), strict=True):
        found = np.asarray(found, float)[:, 1:]
        error = found.std(axis=0, ddof=1) / np.sqrt(seeds)
        scores.append(np.abs(found.mean(axis=0) - right) / np.maximum(error, 1e-7))
    return max(float(score.max()) for score in scores)


SETTINGS = {
    "erf": dict(link="erf", alignment=0.9),
    "relu, label noise": dict(link="relu", alignment=0.5, noise=0.3),
    "erf, rank 3, free rows": dict(link="erf", alignment=0.4, rank=3, scale=2.0, lr_ratio=2.0, normalized=False),
}


def started(name, d):
    """A setting at dimension d, and overlaps of order one to start from."""
    problem = single(**SETTINGS[name], d=d, eta=0.02, theta=0.5)
    batch = round(float(problem.sgd.batch_size))
    return problem.replace(batch_size=batch), random_overlaps(problem.replace(dimension=20), jax.random.key(2), up=0.4)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_chain_follows_the_flow(name):
    problem, start = started(name, 1e5)
    assert largest_z(chain_simulator(problem, start=start), start, 512) < LARGEST_Z


@pytest.mark.parametrize("name", ["erf", "relu, label noise"])
def test_the_direct_simulator_follows_the_flow(name):
    problem, start = started(name, 2000)
    assert largest_z(direct_simulator(problem, start=start), start, 64) < LARGEST_Z


def test_another_flow_is_noticed():
    """The score sees a learning rate that is wrong by a hundredth."""
    problem, start = started("erf", 1e5)
    wrong = problem.replace(lr_ratio=1.01 * float(problem.adapter.lr_ratio))
    simulator = chain_simulator(problem, start=start)
    simulator = eqx.tree_at(lambda s: s.problem, simulator, wrong)
    run = simulate(simulator, key=jax.random.key(1), seeds=512, steps=[0, 500])
    flow = on_cpu(lambda: solve(problem, start, t1=10.0, times=[10.0], finite_steps=True).overlaps.up)
    found = np.asarray(run.overlaps.up)[:, -1]
    score = np.abs(found.mean(axis=0) - flow[-1]) / (found.std(axis=0, ddof=1) / np.sqrt(512))
    assert score.max() > LARGEST_Z
