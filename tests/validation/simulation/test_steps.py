"""One step: of SGD against autodiff of the batch loss, of gradient descent and in the mean against the flow."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odes
from odes import SGD, Adapter, Overlaps, Problem, random_overlaps
from tests.helpers import close, difference, same_bits
from tests.problems import SMALL, STAGES, frame_vectors, single, steady
from validation.simulation import chain_simulator, simulate
from validation.simulation.direct import Weights, sgd_step

flow, mean_change = map(eqx.filter_jit, (odes.flow, odes.mean_change))


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(
    "activation, trained, weight_decay",
    [
        ("erf", [1, 1], 0.0),
        ("relu", [1, 1], 0.0),
        ("He3", [1, 1], 0.0),
        ("erf", [1, 0, 1], 0.4),
        ("erf", [0, 1, 0], 0.4),
    ],
)
def test_one_step_is_sgd_on_the_batch_loss(activation, trained, weight_decay, normalized, key):
    """Against autodiff of the batch loss plus the decay of the trained rows; what is at rest keeps every bit."""
    rank, mask = len(trained), jnp.asarray(trained, float)
    adapter = Adapter(
        rank, scale=1.5 * rank, lr_ratio=1.7, normalized=normalized, weight_decay=weight_decay, trained=trained
    )
    problem = Problem.single_index(activation, strength=0.6, alignment=0.4, teacher="tanh", adapter=adapter)
    keys = jax.random.split(key, 5)
    F, inputs = frame_vectors(problem, 9, keys[4]), jax.random.normal(keys[0], (20, 9))
    noise = jax.random.normal(keys[1], (20,))
    U, V = jax.random.normal(keys[2], (1, rank)), jax.random.normal(keys[3], (rank, 9))

    def objective(U, V):
        student = problem.student(inputs @ (F[1] + 1.5 * U[0] @ V))
        loss = jnp.mean((student - (jnp.tanh(inputs @ F[0]) + noise)) ** 2) / 2
        return loss + weight_decay / 2 * jnp.sum((mask[:, None] * V) ** 2)

    dU, dV = jax.grad(objective, (0, 1))(U, V)
    new_V = V - 0.2 * dV
    if normalized:
        new_V /= jnp.linalg.norm(new_V, axis=1, keepdims=True)
    ours, moving = sgd_step(problem, F, Weights(U, V), inputs, noise), np.array(trained) == 1
    np.testing.assert_allclose(ours.up[:, moving], (U - 0.2 * 1.7 * dU)[:, moving], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(ours.down[moving], new_V[moving], rtol=1e-11, atol=1e-13)
    same_bits((ours.up[:, ~moving], ours.down[~moving]), (U[:, ~moving], V[~moving]))


@pytest.mark.parametrize("normalized", [True, False])
def test_mean_step_is_the_flow_with_its_noise_term(normalized):
    """One SGD step from fixed overlaps: mean changes of U, X, R over 4000 batches are eta times the flow, within 4.5 errors.

    theta = 8 makes the noise term of R (and of normalised X) several standard errors large; the step is small enough
    (eta = 0.01, d = 800) for the O(eta) and O(1/d) corrections to stay below one.
    """
    d, eta, draws = 800, 0.01, 4000
    problem = single(
        d=d, batch=1, eta=eta, strength=0.7, alignment=0.6, noise=0.2, rank=2, lr_ratio=1.5, normalized=normalized
    )
    F = frame_vectors(problem, d, jax.random.key(0))
    V = jax.random.normal(jax.random.key(1), (2, d)) / np.sqrt(d)
    V = V + 0.4 * F[:1]
    V /= jnp.linalg.norm(V, axis=1, keepdims=True)
    U = jnp.array([[0.6, -0.3]])
    before = Overlaps(U, V @ F.T, V @ V.T)

    @jax.jit
    @jax.vmap
    def change(key):
        input_key, noise_key = jax.random.split(key)
        noise = jnp.sqrt(0.2) * jax.random.normal(noise_key, (1,))
        after = sgd_step(problem, F, Weights(U, V), jax.random.normal(input_key, (1, d)), noise)
        overlaps = Overlaps(after.up, after.down @ F.T, after.down @ after.down.T)
        return jax.tree.map(lambda a, b: (a - b) / eta, overlaps, before)

    changes = change(jax.random.split(jax.random.key(2), draws))
    expected, without_noise = flow(problem, before), flow(problem, before, noise=False)
    worst = 0.0
    for sampled, mean, drift in zip(*map(jax.tree.leaves, (changes, expected, without_noise)), strict=True):
        error = np.maximum(sampled.std(axis=0) / np.sqrt(draws), 1e-9)
        z = np.asarray((sampled.mean(axis=0) - mean) / error)
        assert np.abs(z).max() < 4.5
        worst = max(worst, float(np.abs((mean - drift) / error).max()))
    assert worst > 10  # the noise term is seen


def one_step(problem, start):
    """The change of the overlaps in one step of the chain with an infinite batch, over the learning rate."""
    run = simulate(chain_simulator(problem, start=start), key=jax.random.key(0), seeds=1, steps=[0, 1])
    return jax.tree.map(lambda x: (x[0, 1] - x[0, 0]) / problem.sgd.learning_rate, run.overlaps)


def assert_first_order(case, bound):
    """`case` maps a learning rate to a problem and a start: the error of the noiseless flow halves with the step."""

    def error(eta):
        problem, start = case(eta)
        return difference(one_step(problem, start), flow(problem, start, noise=False))

    errors = error(1e-4), error(5e-5)
    assert errors[0] < bound
    np.testing.assert_allclose(errors[0] / errors[1], 2, rtol=1e-2)


@pytest.mark.parametrize("case", ["aligned", "not aligned, label noise", "rank 3, free rows", "two units"])
def test_infinite_batch_is_gradient_descent(case, key):
    def small(eta):
        sgd = SGD(dimension=20, batch_size=np.inf, learning_rate=eta)
        return eqx.tree_at(lambda p: p.sgd, SMALL[case], sgd, is_leaf=lambda x: isinstance(x, SGD)), start

    start = random_overlaps(SMALL[case], key, up=0.3)
    assert_first_order(small, 1e-2)


@pytest.mark.parametrize("stage", STAGES)
def test_infinite_batch_is_gradient_descent_in_every_stage(stage):
    assert_first_order(lambda eta: steady(stage, eta), 1e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_mean_change_is_one_step_of_gradient_descent(stage):
    """At a large learning rate, against the chain with an infinite batch, which the flow of rate 0 is far from."""
    problem, start = steady(stage, 0.3)
    step = one_step(problem, start)
    close(mean_change(problem, start, noise=False), step, rtol=1e-10, atol=1e-12)
    assert difference(flow(problem, start, noise=False), step) > 1e-3
