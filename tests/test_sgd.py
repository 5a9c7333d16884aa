"""The direct simulator: one step by hand, reproducibility, and its agreement with the flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odes import SGD, Adapter, Escape, Overlaps, Problem, flow, gradient_at, load, random_overlaps
from validation.checks import compare
from validation.simulation import even_steps, simulate_direct
from validation.simulation.basis import frame_basis
from validation.simulation.direct import Weights, direct_simulator, sgd_step


def frame_of(problem, d):
    """Vectors with the frame's Gram matrix in R^d."""
    rows = frame_basis(problem).rows
    return jnp.pad(rows, ((0, 0), (0, d - rows.shape[1])))


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("activation", ["erf", "relu", "He3"])
def test_one_step_is_sgd_on_the_batch_loss(activation, normalized, key):
    """Against autodiff of the batch loss with respect to U and V."""
    adapter = Adapter(2, scale=3.0, lr_ratio=1.7, normalized=normalized)
    problem = Problem.single_index(activation, strength=0.6, alignment=0.4, teacher="tanh", adapter=adapter)
    keys = jax.random.split(key, 4)
    F, inputs = frame_of(problem, 9), jax.random.normal(keys[0], (20, 9))
    noise = jax.random.normal(keys[1], (20,))
    U, V = jax.random.normal(keys[2], (1, 2)), jax.random.normal(keys[3], (2, 9))

    def batch_loss(U, V):
        student = problem.student(inputs @ (F[1] + 1.5 * U[0] @ V))
        return jnp.mean((student - (jnp.tanh(inputs @ F[0]) + noise)) ** 2) / 2

    dU, dV = jax.grad(batch_loss, (0, 1))(U, V)
    new_V = V - 0.2 * dV
    if normalized:
        new_V /= jnp.linalg.norm(new_V, axis=1, keepdims=True)
    ours = sgd_step(problem, F, Weights(U, V), inputs, noise)
    np.testing.assert_allclose(ours.up, U - 0.2 * 1.7 * dU, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(ours.down, new_V, rtol=1e-11, atol=1e-13)


def test_start_has_the_given_overlaps(key):
    problem = Problem.single_index(
        "erf", strength=0.6, alignment=0.4, adapter=Adapter(2), sgd=SGD(dimension=9, batch_size=5)
    )
    start = random_overlaps(problem, key, up=0.3)
    simulator = direct_simulator(problem, start=start, dtype="float64")
    F = simulator.directions
    np.testing.assert_allclose(F @ F.T, problem.frame_gram, atol=1e-14)
    for ours, given in zip(
        jax.tree.leaves(simulator.overlaps(simulator.start(key))), jax.tree.leaves(start), strict=True
    ):
        np.testing.assert_allclose(ours, given, atol=1e-14)


@pytest.mark.parametrize("normalized", [True, False])
def test_mean_step_is_the_flow_with_its_noise_term(normalized):
    """One SGD step from fixed overlaps: mean changes of U, X, R over 4000 batches are eta times the flow, within 4.5 errors.

    theta = 8 makes the noise term of R (and of normalised X) several standard errors large; the step is small enough
    (eta = 0.01, d = 800) for the O(eta) and O(1/d) corrections to stay below one.
    """
    d, batch, eta, draws = 800, 1, 0.01, 4000
    adapter, sgd = (
        Adapter(2, lr_ratio=1.5, normalized=normalized),
        SGD(dimension=d, batch_size=batch, learning_rate=eta, label_noise=0.2),
    )
    problem = Problem.single_index("erf", strength=0.7, alignment=0.6, adapter=adapter, sgd=sgd)
    F = frame_of(problem, d)
    V = jax.random.normal(jax.random.key(1), (2, d)) / np.sqrt(d)
    V = V + 0.4 * F[:1]
    V /= jnp.linalg.norm(V, axis=1, keepdims=True)
    U = jnp.array([[0.6, -0.3]])
    before = Overlaps(U, V @ F.T, V @ V.T)

    @jax.jit
    @jax.vmap
    def change(key):
        input_key, noise_key = jax.random.split(key)
        noise = jnp.sqrt(0.2) * jax.random.normal(noise_key, (batch,))
        after = sgd_step(problem, F, Weights(U, V), jax.random.normal(input_key, (batch, d)), noise)
        return jax.tree.map(
            lambda a, b: (a - b) / eta, Overlaps(after.up, after.down @ F.T, after.down @ after.down.T), before
        )

    changes = change(jax.random.split(jax.random.key(2), draws))
    expected, without_noise = flow(problem, before), flow(problem, before, noise=False)
    worst = 0.0
    for sampled, mean, drift in zip(*map(jax.tree.leaves, (changes, expected, without_noise)), strict=True):
        error = np.maximum(sampled.std(axis=0) / np.sqrt(draws), 1e-9)
        z = np.asarray((sampled.mean(axis=0) - mean) / error)
        assert np.abs(z).max() < 4.5
        worst = max(worst, float(np.abs((mean - drift) / error).max()))
    assert worst > 10  # the noise term is seen


def make(**kwargs):
    sgd = SGD(dimension=100, batch_size=40, learning_rate=0.2)
    return Problem.single_index("erf", strength=0.4, sgd=sgd, **kwargs)


def test_records_and_length_do_not_change_the_run(key):
    once = simulate_direct(make(), key=key, seeds=3, steps=[0, 40], dtype="float64")
    often = simulate_direct(make(), key=key, seeds=3, steps=[0, 7, 20, 40, 60], dtype="float64")
    np.testing.assert_array_equal(once.overlaps.cross[:, -1], often.overlaps.cross[:, 3])
    more = simulate_direct(make(), key=key, seeds=5, steps=[0, 40], dtype="float64")
    assert not np.allclose(more.m[0], more.m[1])
    single = simulate_direct(make(), key=key, seeds=3, steps=[0, 40], dtype="float32")
    np.testing.assert_allclose(once.t, [0, 8])
    assert single.dtype == "float32" and single.m.dtype == jnp.float64


def test_shared_start_differs_by_data_alone(key):
    run = simulate_direct(make(), key=key, seeds=3, steps=[0, 30], shared_start=True, dtype="float64")
    np.testing.assert_array_equal(run.m[0, 0], run.m[2, 0])
    assert not np.allclose(run.m[0, 1], run.m[2, 1])


def test_loss_is_that_of_the_realised_overlaps(key):
    run = simulate_direct(make(adapter=Adapter(2)), key=key, seeds=2, steps=[0, 50], dtype="float64")
    state = jax.tree.map(lambda x: x[1, 1], run.overlaps)
    np.testing.assert_allclose(run.loss[1, 1], gradient_at(make(adapter=Adapter(2)), state).loss, rtol=1e-12)
    np.testing.assert_allclose(jnp.diagonal(state.down_gram), 1, rtol=1e-12)


def test_simulation_agrees_with_the_ode(key):
    """erf, aligned 1/2, d = 400, 24 seeds: overlaps within 4 standard errors of the ODE from the same starts at all times."""
    problem = Problem.single_index("erf", strength=0.5, sgd=SGD(dimension=400, batch_size=200, learning_rate=0.2))
    run = simulate_direct(problem, key=key, seeds=24, steps=even_steps(250.0, 0.2, 10))
    comparison = compare(run)
    for name in ("target_overlap", "m", "u"):
        assert float(jnp.abs(comparison.z[name]).max()) < 4
    times = run.escape_times()
    assert 0.5 < float(jnp.isfinite(times).mean()) <= 1 and float(jnp.nanmin(times)) > 20
    wrong = Problem.single_index("erf", strength=0.55, sgd=problem.sgd)
    import equinox as eqx

    assert float(jnp.abs(compare(eqx.tree_at(lambda s: s.problem, run, wrong)).z["target_overlap"]).max()) > 6


def test_escape_times_are_located_between_records():
    problem = make()
    u = jnp.array([[0.0, 0.2, 0.6], [0.0, 0.0, 0.0]])[..., None, None]
    cross = jnp.broadcast_to(jnp.array([1.0, 0.4]), (2, 3, 1, 2))
    from validation.simulation import Simulation

    overlaps = Overlaps(u, cross, jnp.ones((2, 3, 1, 1)))
    run = Simulation(
        t=jnp.array([0.0, 1.0, 2.0]),
        overlaps=overlaps,
        loss=jnp.ones((2, 3)),
        recorded=jnp.array([3, 3]),
        problem=problem,
        method="direct",
        dtype="float64",
    )
    times = run.escape_times(Escape("overlap", 0.5))  # |u| = 0.3, a quarter of the way from 0.2 to 0.6
    np.testing.assert_allclose(times[0], 1.25, rtol=1e-12)
    assert np.isnan(times[1])


def test_save_and_load(key, tmp_path):
    run = simulate_direct(make(), key=key, seeds=2, steps=[0, 5])
    run.save(tmp_path / "run.nc")
    np.testing.assert_array_equal(load(tmp_path / "run.nc").loss, run.loss)


@pytest.mark.parametrize(
    "sgd, steps, message",
    [
        (dict(batch_size=np.inf), [0, 1], "`batch_size` must be a whole number"),
        (dict(dimension=10.5), [0, 1], "`dimension` must be a whole number"),
        (dict(dimension=2), [0, 1], "`dimension` must be at least 3"),
        ({}, [5, 5], "`steps` must be a list of increasing whole numbers"),
        ({}, [-1, 5], "`steps` must be a list of increasing whole numbers"),
    ],
)
def test_bad_arguments_are_named(sgd, steps, message, key):
    problem = Problem.single_index("erf", strength=0.5, sgd=SGD(**sgd))
    with pytest.raises(ValueError, match=message):
        simulate_direct(problem, key=key, seeds=2, steps=steps)


def test_even_steps():
    assert even_steps(1.0, 0.1, 5).tolist() == [0, 2, 4, 6, 8, 10]
    assert even_steps(0.25, 0.1, 10).tolist() == [0, 1, 2, 3]
