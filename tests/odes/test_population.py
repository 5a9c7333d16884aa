"""The population loss, its gradient and the noise, against autodiff, quadrature and sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odes import (
    SGD,
    Covariances,
    Problem,
    activation,
    covariances,
    gradient_at,
    gradient_of,
    kurtosis_at,
    noise_at,
    pretrained,
)
from tests.problems import frame_vectors, two_by_three


@pytest.mark.parametrize("name", ["erf", "relu", pytest.param("tanh", marks=pytest.mark.slow), "He3"])
def test_gradient_coefficients_are_derivatives_of_the_loss(name):
    """C = -dl/dM and D = dl/dQ + (dl/dQ)^T with the entries of Q independent, for K = 2 and P = 3 units."""
    problem = two_by_three(name)
    at = covariances(problem, pretrained(problem))

    def loss(Q, M):
        return gradient_of(problem, Covariances(Q, M, at.P)).loss

    gradient = gradient_at(problem, pretrained(problem))
    # entries (k, l) and (l, k) enter the pair (k, l) symmetrically, so autodiff's dl/dQ is already symmetrised for k != l
    by_Q, by_M = jax.grad(loss, (0, 1))(at.Q, at.M)
    np.testing.assert_allclose(gradient.C, -by_M, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradient.D, by_Q + by_Q.T, rtol=1e-9, atol=1e-12)


def test_noise_matches_sampling(key):
    """n = E[(e^2 + Delta) sigma'^2] from two million samples, within four standard errors."""
    problem = Problem.single_index("relu", strength=0.8, alignment=-0.4, teacher="erf", sgd=SGD(label_noise=0.3))
    F = frame_vectors(problem, 2, jax.random.key(1))
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
    np.testing.assert_allclose(kurtosis_at(problem, pretrained(problem)), [expected], rtol=1e-8)
