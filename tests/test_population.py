"""The population loss, its gradient and the flow, against reference values, autodiff and brute-force sampling."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odes import (
    SGD,
    Adapter,
    Overlaps,
    Problem,
    activation,
    covariances,
    flow,
    gradient_at,
    kurtosis_at,
    noise_at,
    population_gradient,
    pretrained,
    random_overlaps,
)
from tests.reference import REFERENCE_POINTS
from theory import search_phase


def single_index(name, teacher, family, mu, **kwargs):
    if family == "mixture":
        return Problem.mixture(name, mu=mu, teacher=teacher, **kwargs)
    return Problem.single_index(name, strength=mu, teacher=teacher, **kwargs)


@pytest.mark.parametrize("name, teacher, family, mu, C, D, noise, loss, tau", REFERENCE_POINTS)
def test_reference_values(name, teacher, family, mu, C, D, noise, loss, tau):
    phase = search_phase(single_index(name, teacher, family, mu))
    for mine, known in zip(
        (phase.C, phase.D, phase.noise, phase.loss, phase.tau), (C, D, noise, loss, tau), strict=True
    ):
        np.testing.assert_allclose(mine, known, rtol=5e-10, atol=1e-14)


TWO_BY_THREE = dict(
    frame_gram=[
        [1, 0.1, 0.2, 0.3, 0.1],
        [0.1, 1, 0, 0.2, 0.4],
        [0.2, 0, 0.8, 0.1, 0],
        [0.3, 0.2, 0.1, 0.5, 0.1],
        [0.1, 0.4, 0, 0.1, 0.6],
    ],
    target=np.eye(5)[:3],
    frozen=np.eye(5)[3:],
    readout=[1.0, -0.7],
    teacher_readout=[0.8, 0.5, -0.3],
)
"""A problem with K = 2 student and P = 3 teacher units."""


@pytest.mark.parametrize("name", ["erf", "relu", pytest.param("tanh", marks=pytest.mark.slow), "He3"])
def test_gradient_coefficients_are_derivatives_of_the_loss(name):
    """C = -dl/dM and D = dl/dQ + (dl/dQ)^T with the entries of Q independent, for K = 2 and P = 3 units."""
    problem = Problem(name, **TWO_BY_THREE)
    at = covariances(problem, pretrained(problem))
    f = activation(name)

    def loss(Q, M):
        readouts = dict(readout=problem.readout, teacher_readout=problem.teacher_readout)
        return population_gradient(f, f, Q, M, at.P, **readouts).loss

    gradient = gradient_at(problem, pretrained(problem))
    # entries (k, l) and (l, k) enter the pair (k, l) symmetrically, so autodiff's dl/dQ is already symmetrised for k != l
    by_Q, by_M = jax.grad(loss, (0, 1))(at.Q, at.M)
    np.testing.assert_allclose(gradient.C, -by_M, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradient.D, by_Q + by_Q.T, rtol=1e-9, atol=1e-12)


def vectors(problem, d, key):
    """Frame vectors in R^d with the problem's Gram matrix."""
    values, basis = np.linalg.eigh(np.asarray(problem.frame_gram))
    root = basis * np.sqrt(np.maximum(values, 0))
    orthonormal = np.linalg.qr(np.asarray(jax.random.normal(key, (d, root.shape[1]))))[0].T
    return jnp.asarray(root @ orthonormal)


@pytest.mark.parametrize("name", ["erf", "relu", "sigmoid", "He3"])
@pytest.mark.parametrize("rank", [1, 3])
def test_flow_is_gradient_flow_of_the_loss_in_weight_space(name, rank, key):
    """Autodiff of the loss with respect to U and V in d dimensions, projected on the overlaps (theta = 0)."""
    d, problem = (
        12,
        Problem(
            name,
            adapter=Adapter(rank, scale=1.7, lr_ratio=2.3, normalized=False),
            sgd=SGD(batch_size=np.inf),
            **TWO_BY_THREE,
        ),
    )
    kappa, chi = problem.adapter.kappa, problem.adapter.lr_ratio
    keys = jax.random.split(key, 3)
    F = vectors(problem, d, keys[0])
    U, V = 0.3 * jax.random.normal(keys[1], (2, rank)), 0.4 * jax.random.normal(keys[2], (rank, d))
    f = activation(name)

    def loss(U, V):
        W, T = problem.frozen @ F + kappa * U @ V, problem.target @ F
        readouts = dict(readout=problem.readout, teacher_readout=problem.teacher_readout)
        return population_gradient(f, f, W @ W.T, W @ T.T, T @ T.T, **readouts).loss

    dU, dV = jax.grad(loss, (0, 1))(U, V)
    ours = flow(problem, Overlaps(U, V @ F.T, V @ V.T), noise=False)
    np.testing.assert_allclose(ours.up, -chi * dU, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(ours.cross, -dV @ F.T, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(ours.down_gram, -(dV @ V.T + V @ dV.T), rtol=1e-8, atol=1e-11)

    normalized = eqx.tree_at(
        lambda p: p.adapter, problem, Adapter(rank, scale=1.7, lr_ratio=2.3), is_leaf=lambda x: isinstance(x, Adapter)
    )
    V = V / jnp.linalg.norm(V, axis=1, keepdims=True)
    dU, dV = jax.grad(loss, (0, 1))(U, V)
    dV -= jnp.sum(dV * V, axis=1, keepdims=True) * V
    ours = flow(normalized, Overlaps(U, V @ F.T, V @ V.T), noise=False)
    np.testing.assert_allclose(ours.up, -chi * dU, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(ours.cross, -dV @ F.T, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(ours.down_gram, -(dV @ V.T + V @ dV.T), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("mu", [0.1, 0.5, 0.9])
def test_linear_flow_in_closed_form(mu):
    """u' = (1 - mu) m - u and m' = (1 - mu) u (1 - m^2), exactly."""
    problem = Problem.single_index("linear", strength=mu, sgd=SGD(batch_size=np.inf))
    for u, m in [(0.1, 0.2), (-0.4, 0.9), (1.0, -0.3)]:
        state = Overlaps(jnp.array([[u]]), jnp.array([[m, mu * m]]), jnp.ones((1, 1)))
        change = flow(problem, state)
        np.testing.assert_allclose(change.up[0, 0], (1 - mu) * m - u, rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(
            change.cross[0], (1 - mu) * u * (1 - m**2) * np.array([1, mu]), rtol=1e-13, atol=1e-15
        )
        assert float(change.down_gram[0, 0]) == 0


def test_flow_symmetry_and_unit_rows(key):
    problem = Problem.single_index("tanh", strength=0.6, alignment=0.3, adapter=Adapter(3))
    state = random_overlaps(problem, key, up=0.2)
    change = flow(problem, state)
    mirrored = flow(problem, Overlaps(-state.up, -state.cross, state.down_gram))
    np.testing.assert_allclose(mirrored.up, -change.up, rtol=1e-13)
    np.testing.assert_allclose(mirrored.cross, -change.cross, rtol=1e-13)
    np.testing.assert_allclose(jnp.diagonal(change.down_gram), 0, atol=1e-15)


def test_noise_matches_sampling(key):
    """n = E[(e^2 + Delta) sigma'^2] from two million samples, within four standard errors."""
    problem = Problem.single_index("relu", strength=0.8, alignment=-0.4, teacher="erf", sgd=SGD(label_noise=0.3))
    F = vectors(problem, 2, jax.random.key(1))
    x = jax.random.normal(key, (2_000_000, 2))
    own, target = x @ F[1], x @ F[0]
    f, h = activation("relu"), activation("erf")
    samples = ((f(own) - h(target)) ** 2 + 0.3) * f.derivative(own) ** 2
    error = samples.std() / np.sqrt(samples.size)
    assert abs(float(samples.mean() - noise_at(problem, pretrained(problem))[0, 0])) < 4 * float(error)


@pytest.mark.parametrize("name, nodes", [("He3", 24), ("tanh", 200)])
def test_kurtosis_by_gauss_hermite(name, nodes):
    """Against Gauss-Hermite quadrature in the plane, with the label noise as a third variable."""
    problem = Problem.single_index(name, strength=0.6, alignment=0.5, sgd=SGD(label_noise=0.2))
    nodes, weights = np.polynomial.hermite_e.hermegauss(nodes)
    few, few_weights = np.polynomial.hermite_e.hermegauss(6)
    a, b, z = np.meshgrid(nodes, nodes, few, indexing="ij")
    weight = np.einsum("i,j,k->ijk", weights, weights, few_weights) / (2 * np.pi) ** 1.5
    f = activation(name)
    own = 0.6 * (0.5 * a + np.sqrt(0.75) * b)
    g = np.asarray((f(jnp.asarray(own)) - f(jnp.asarray(a)) - np.sqrt(0.2) * z) * f.derivative(jnp.asarray(own)))
    expected = np.sum(weight * g**4) / np.sum(weight * g**2) ** 2
    np.testing.assert_allclose(kurtosis_at(problem, pretrained(problem)), expected, rtol=1e-8)


def test_random_overlaps_follow_the_exact_law(key):
    """Against normalised Gaussian vectors in d = 6 dimensions: means and covariances within four standard errors."""
    problem = Problem.single_index("erf", strength=0.7, alignment=0.5, adapter=Adapter(2), sgd=SGD(dimension=6))
    draws = 40_000
    ours = jax.vmap(lambda k: random_overlaps(problem, k))(jax.random.split(key, draws))
    F = vectors(problem, 6, jax.random.key(2))
    rows = jax.random.normal(jax.random.key(3), (draws, 2, 6))
    rows /= jnp.linalg.norm(rows, axis=2, keepdims=True)

    def features(cross, gram):
        flat = jnp.concatenate([cross.reshape(draws, -1), gram[:, 0, 1:]], axis=1)
        return jnp.concatenate(
            [flat, flat[:, :, None].repeat(5, 2).reshape(draws, -1) * jnp.tile(flat, 5), flat**4], axis=1
        )

    mine = features(ours.cross, ours.down_gram)
    theirs = features(rows @ F.T, rows @ rows.transpose(0, 2, 1))
    error = jnp.sqrt(mine.var(axis=0) / draws + theirs.var(axis=0) / draws)
    z = (mine.mean(axis=0) - theirs.mean(axis=0)) / error
    assert float(jnp.abs(z).max()) < 4.5
    np.testing.assert_allclose(jax.vmap(jnp.diagonal)(ours.down_gram), 1, rtol=1e-12)


def test_random_overlaps_of_aligned_weights_are_proportional(key):
    """The frame (w*, w0 = mu w*) has rank one."""
    problem = Problem.single_index("erf", strength=0.3, sgd=SGD(dimension=50))
    state = random_overlaps(problem, key)
    np.testing.assert_allclose(state.cross[0, 1], 0.3 * state.cross[0, 0], rtol=1e-12)


BAD_PROBLEMS = [
    (dict(strength=0.0), "`strength` must be positive and finite, but is 0.0"),
    (dict(strength=-1.0), "`strength` must be positive and finite, but is -1.0"),
    (dict(strength=float("nan")), "`strength` must be positive"),
    (dict(strength=0.5, alignment=1.5), "`alignment` must be between -1 and 1, but is 1.5"),
]


@pytest.mark.parametrize("arguments, message", BAD_PROBLEMS)
def test_bad_values_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Problem.single_index("erf", **arguments)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Adapter(0), "`rank` must be an integer of at least 1, but is 0"),
        (lambda: Adapter(1, scale=-1.0), "`scale` must be positive"),
        (lambda: Adapter(1, lr_ratio=-1.0), "`lr_ratio` must be non-negative"),
        (lambda: SGD(learning_rate=0.0), "`learning_rate` must be positive"),
        (lambda: SGD(batch_size=0), "`batch_size` must be at least 1, but is 0.0"),
        (lambda: SGD(dimension=1), "`dimension` must be at least 2"),
        (lambda: SGD(label_noise=-0.1), "`label_noise` must be non-negative"),
        (
            lambda: Problem("erf", frame_gram=[[1, 2], [2, 1]], frozen=[[0, 1]], target=[[1, 0]]),
            "`frame_gram` must be symmetric and positive",
        ),
        (
            lambda: Problem("erf", frame_gram=np.eye(2), frozen=[[0, 1]], target=[[1, 0, 0]]),
            r"`target` must have shape \(P, f\) = \(1, 2\), but has shape \(1, 3\)",
        ),
        (
            lambda: Problem("erf", frame_gram=np.eye(3), frozen=[[0, 1]], target=[[1, 0]]),
            r"`frame_gram` must have shape \(f, f\) = \(2, 2\)",
        ),
        (
            lambda: Problem("erf", frame_gram=np.eye(2), frozen=[[0, 1]], target=[[1, 0]], readout=[1, 2]),
            r"`readout` must have shape \(K,\) = \(1,\)",
        ),
    ],
)
def test_bad_shapes_and_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_noise_of_several_units_is_refused_not_wrong():
    problem = Problem("erf", **TWO_BY_THREE)
    with pytest.raises(ValueError, match=r"must have shape \(1, 1\) for the SGD noise"):
        flow(problem, pretrained(problem))


def test_too_small_a_dimension_is_refused(key):
    problem = Problem.single_index("erf", strength=0.5, alignment=0.5, adapter=Adapter(2), sgd=SGD(dimension=3))
    with pytest.raises(ValueError, match="`dimension` must be"):
        random_overlaps(problem, key)
