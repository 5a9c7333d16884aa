"""The flows: against autodiff of the loss in weight space, closed forms and iterated steps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import odes
from odes import (
    SGD,
    Adapter,
    Covariances,
    Overlaps,
    Problem,
    gradient_of,
    random_overlaps,
    solve,
)
from tests.helpers import close, difference
from tests.problems import STAGES, frame_vectors, single, steady, two_by_three

flow, mean_change, modified_flow = map(eqx.filter_jit, (odes.flow, odes.mean_change, odes.modified_flow))


@pytest.mark.parametrize("name", ["erf", "relu", "sigmoid", "He3"])
@pytest.mark.parametrize("rank", [1, 3])
def test_flow_is_gradient_flow_of_the_loss_in_weight_space(name, rank, key):
    """Autodiff of the loss with respect to U and V in d dimensions, projected on the overlaps (theta = 0)."""

    def problem(**normalization):
        adapter = Adapter(rank, scale=1.7, lr_ratio=2.3, **normalization)
        return two_by_three(name, adapter=adapter, sgd=SGD(batch_size=np.inf))

    free, d = problem(normalized=False), 12
    kappa, chi = free.adapter.kappa, free.adapter.lr_ratio
    keys = jax.random.split(key, 3)
    F = frame_vectors(free, d, keys[0])
    U, V = 0.3 * jax.random.normal(keys[1], (2, rank)), 0.4 * jax.random.normal(keys[2], (rank, d))

    @jax.jit
    def gradients(U, V):
        def loss(U, V):
            W, T = free.frozen @ F + kappa * U @ V, free.target @ F
            return gradient_of(free, Covariances(W @ W.T, W @ T.T, T @ T.T)).loss

        return jax.grad(loss, (0, 1))(U, V)

    def check(problem, V, dU, dV):
        start = Overlaps(*map(jnp.asarray, (U, V @ F.T, V @ V.T)))
        theirs = Overlaps(*map(jnp.asarray, (-chi * dU, -dV @ F.T, -(dV @ V.T + V @ dV.T))))
        close(flow(problem, start, noise=False), theirs, rtol=1e-8, atol=1e-11)

    F, U, V, chi = map(np.asarray, (F, U, V, chi))
    check(free, V, *map(np.asarray, gradients(U, V)))
    V = V / np.linalg.norm(V, axis=1, keepdims=True)
    dU, dV = map(np.asarray, gradients(U, V))
    check(problem(), V, dU, dV - np.sum(dV * V, axis=1, keepdims=True) * V)


@pytest.mark.parametrize("normalized", [True, False])
def test_diffusion_is_that_of_noise_on_every_weight(normalized, key):
    """The overlaps after a step of white noise in d dimensions, by autodiff, rows at rest and rescaled ones included."""
    options = dict(rank=3, scale=2.1, lr_ratio=1.7, normalized=normalized, trained=[1, 0, 1])
    problem = single(alignment=0.3, theta=2.0, noise=0.1, d=50.0, **options)
    kappa, trained = problem.adapter.kappa, problem.adapter.trained[None]
    keys = jax.random.split(key, 4)
    F = frame_vectors(problem, 12, keys[0])

    @jax.jit
    def both_ways():
        V = jax.random.normal(keys[1], (3, 12))
        V = V / jnp.linalg.norm(V, axis=1, keepdims=True)
        U = jax.random.normal(keys[2], (1, 3))

        def moved(noise):
            up, down = U - 1.7 * kappa * noise @ V.T * trained, V - kappa * (U * trained).T @ noise
            if normalized:
                down = down / jnp.linalg.norm(down, axis=1, keepdims=True)
            return ravel_pytree(Overlaps(up, down @ F.T, down @ down.T))[0]

        at = Overlaps(U, V @ F.T, V @ V.T)
        flat, shaped = ravel_pytree(at)
        slopes = jnp.linalg.qr(jax.random.normal(keys[3], (flat.size, flat.size)))[0]
        ours = jax.vmap(lambda g: ravel_pytree(odes.diffusion(problem, at, shaped(g)))[0])(slopes)
        jacobian = jax.jacobian(moved)(jnp.zeros((1, 12))).reshape(flat.size, -1)
        return ours, 2.0 / 50 * odes.noise_at(problem, at)[0, 0] * slopes @ jacobian @ jacobian.T

    close(*both_ways(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("mu", [0.1, 0.5, 0.9])
def test_linear_flow_in_closed_form(mu):
    """u' = (1 - mu) m - u and m' = (1 - mu) u (1 - m^2), exactly."""
    problem = Problem.single_index("linear", strength=mu, sgd=SGD(batch_size=np.inf))
    for u, m in [(0.1, 0.2), (-0.4, 0.9), (1.0, -0.3)]:
        state = Overlaps(jnp.array([[u]]), jnp.array([[m, mu * m]]), jnp.ones((1, 1)))
        change = flow(problem, state)
        np.testing.assert_allclose(change.up[0, 0], (1 - mu) * m - u, rtol=1e-13, atol=1e-15)
        cross = (1 - mu) * u * (1 - m**2) * np.array([1, mu])
        np.testing.assert_allclose(change.cross[0], cross, rtol=1e-13, atol=1e-15)
        assert float(change.down_gram[0, 0]) == 0


def test_flow_symmetry_and_unit_rows(key):
    problem = Problem.single_index("tanh", strength=0.6, alignment=0.3, adapter=Adapter(3))
    state = random_overlaps(problem, key, up=0.2)
    change = flow(problem, state)
    mirrored = flow(problem, Overlaps(-state.up, -state.cross, state.down_gram))
    np.testing.assert_allclose(mirrored.up, -change.up, rtol=1e-13)
    np.testing.assert_allclose(mirrored.cross, -change.cross, rtol=1e-13)
    np.testing.assert_allclose(jnp.diagonal(change.down_gram), 0, atol=1e-15)


FREE = dict(rank=2, normalized=False, scale=3.0, lr_ratio=0.5)


@pytest.mark.parametrize(
    "activation, theta, eta, adapter",
    [
        ("erf", 2.0, 0.4, {}),
        pytest.param("erf", 2.0, 0.4, FREE, marks=pytest.mark.slow),
        pytest.param("He2", 0.1, 0.02, {}, marks=pytest.mark.slow),
        ("He2", 0.1, 0.02, FREE),
        pytest.param("relu", 1.0, 0.4, {}, marks=pytest.mark.slow),
    ],
)
def test_modified_flow_follows_finite_steps_to_second_order(activation, theta, eta, adapter, key):
    """At a fixed time its error falls fourfold when the learning rate halves; that of the flow of rate 0 only twofold."""

    @jax.jit
    def iterated(problem, start, steps):
        def step(_, y):
            return jax.tree.map(lambda a, b: a + problem.sgd.learning_rate * b, y, odes.mean_change(problem, y))

        return jax.lax.fori_loop(0, steps, step, start)

    end, errors = 5 * eta * 8, {True: [], False: []}
    for rate, steps in ((eta, 40), (eta / 2, 80), (eta / 4, 160)):
        problem = single(activation, theta=theta, eta=rate, alignment=0.7, noise=0.1, **adapter)
        start = random_overlaps(problem, key, up=0.3)
        exact = iterated(problem, start, steps)
        for finite, found in errors.items():
            final = solve(problem, start, t1=end, times=[end], finite_steps=finite, rtol=1e-11, atol=1e-13).final
            found.append(difference(final, exact))
    ratios = {finite: np.array(found[:-1]) / found[1:] for finite, found in errors.items()}
    assert np.all((ratios[True] > 3.2) & (ratios[True] < 5))
    assert np.all((ratios[False] > 1.7) & (ratios[False] < 2.4))
    assert errors[True][-1] < 0.1 * errors[False][-1]


def test_flows_agree_at_vanishing_learning_rate_and_lengths_are_kept(key):
    problem = single("tanh", eta=1e-7, d=1e9, alignment=0.6, rank=2)
    start = random_overlaps(problem, key, up=0.4)
    close(flow(problem, start), modified_flow(problem, start), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(jnp.diagonal(modified_flow(single(rank=2), start).down_gram), 0, atol=1e-14)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("field", [flow, mean_change])
def test_what_is_at_rest_does_not_move(stage, field):
    """Rows of V at rest, their Gram matrix and columns of U; all of U while weights are trained; unit lengths."""
    problem, start = steady(stage, 0.3)
    change, rest = field(problem, start), np.asarray(problem.adapter.trained) == 0
    assert np.all(change.up[:, rest] == 0) and np.all(change.cross[rest] == 0)
    assert np.all(change.down_gram[np.ix_(rest, rest)] == 0) and np.all(change.cross[~rest] != 0)
    assert np.all(change.up == 0) if rest.sum() == 2 else np.all(change.up[:, ~rest] != 0)
    lengths = np.diagonal(change.down_gram)[~rest]
    assert np.abs(lengths).max() < 1e-14 if problem.adapter.normalized else np.abs(lengths).min() > 1e-3
