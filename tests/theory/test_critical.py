"""Critical strengths: all real roots of exact polynomials, and how tau diverges at them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odes import Problem
from tests.reference import HE3_CRITICAL, aligned_gradient
from theory import critical_points, information_exponent, search_phase, sweep


@pytest.mark.parametrize("k", [2, 3, 4, 5, 7, 10])
def test_critical_strengths_are_all_real_roots(k):
    polynomial = aligned_gradient(k)
    roots = polynomial.roots()
    real = np.sort(roots.real[(abs(roots.imag) < 1e-9) & (roots.real > 0.02) & (roots.real < 1.5)])
    for _ in range(3):
        real = real - polynomial(real) / polynomial.deriv()(real)
    found = critical_points(f"He{k}", low=0.02, high=1.5).strength
    found = np.asarray(found)[np.isfinite(found)]
    np.testing.assert_allclose(found, real, atol=1e-10)
    phases = sweep(f"He{k}", strength=np.array([0.3, 0.8]))
    np.testing.assert_allclose(phases.G, polynomial(np.array([0.3, 0.8])) ** 2, rtol=1e-9)


def test_zeros_where_all_terms_of_the_gradient_vanish():
    """At alignment 0 an even link has C = 0, and the gradient vanishes with D: He2 at 1/sqrt(3), He4 where bracketing says."""
    found = np.asarray(critical_points("He2", low=0.1, high=2.0, alignment=0.0).strength)
    np.testing.assert_allclose(found[np.isfinite(found)], [3**-0.5], rtol=1e-9)
    grid = np.linspace(0.1, 2, 400)
    D = np.asarray(sweep("He4", strength=grid, alignment=0.0).D)
    turns = np.flatnonzero(D[1:] * D[:-1] < 0)
    found = np.asarray(critical_points("He4", low=0.1, high=2.0, alignment=0.0).strength)
    found = found[np.isfinite(found)]
    assert turns.size == found.size and np.all((grid[turns] < found) & (found < grid[turns + 1]))


def test_he3_critical_strength():
    found = np.asarray(critical_points("He3", low=0.01, high=1.0).strength)
    np.testing.assert_allclose(found[:2], [HE3_CRITICAL, 1.0], atol=1e-12)
    mu = found[0]
    assert abs(4 * mu**2 + 2 * mu - 1 - 5 * mu**4) < 1e-14


@pytest.mark.parametrize(
    "name, alignment", [("relu", 1.0), ("erf", 1.0), ("He3", 1.0), ("erf", None), ("sigmoid", 1.0)]
)
def test_divergence_has_the_stated_prefactor(name, alignment):
    zeros = critical_points(name, low=0.05, high=1.0, alignment=alignment)
    distance, found = 1e-4, np.isfinite(zeros.strength)
    assert found.any()
    for strength, prefactor in zip(zeros.strength[found], zeros.prefactor[found], strict=True):
        if alignment is None:
            problem = Problem.mixture(name, mu=strength - distance)
        else:
            problem = Problem.single_index(name, strength=strength - distance)
        np.testing.assert_allclose(search_phase(problem).tau * distance**2, prefactor, rtol=5e-3)


def test_no_critical_strength_off_the_target_direction():
    """With c < 1 the gradient has a component -D rho sqrt(1 - c^2) that the first does not cancel."""
    assert np.isnan(critical_points("erf", low=0.05, high=2.0, alignment=0.8).strength).all()


def test_single_precision_gives_the_same_answers():
    with jax.enable_x64(False):
        found = np.asarray(critical_points("He3", low=0.1, high=1.0).strength)
        np.testing.assert_allclose(found[:2], [0.3207243, 1.0], atol=1e-3)
        assert information_exponent("erf^2") == 2 and information_exponent("He3") == 3


def he3_beside(other):
    """One He3 unit of strength mu on the first of two teachers, and one of another strength on the second."""
    return lambda mu: Problem.committee("He3", pretrained=jnp.stack([mu, jnp.full_like(mu, other)]))


def test_critical_points_of_a_committee():
    """Beside a unit that is perfect, for which E[He3'] = 0 uncouples the two, the zeros and divergences are those of one unit."""
    found = critical_points(he3_beside(1.0), low=0.01, high=1.2)
    alone = critical_points("He3", low=0.01, high=1.2)
    np.testing.assert_allclose(found.strength[:2], alone.strength[:2], rtol=1e-10)
    np.testing.assert_allclose(found.prefactor[0], alone.prefactor[0], rtol=1e-6)
    tau = search_phase(he3_beside(1.0)(found.strength[0] - 1e-4)).tau
    np.testing.assert_allclose(tau * 1e-8, found.prefactor[0], rtol=5e-3)
    erf = critical_points(lambda mu: Problem.committee("erf", pretrained=mu * jnp.ones(2)), low=0.1, high=1.2)
    np.testing.assert_allclose(erf.strength[:2], [1, np.nan], rtol=1e-10)
    tau = search_phase(Problem.committee("erf", pretrained=(1 - 1e-4) * jnp.ones(2))).tau
    np.testing.assert_allclose(tau * 1e-8, erf.prefactor[0], rtol=5e-3)


def test_units_that_are_not_critical_together_go_on():
    """Where the second unit is not perfect it is moved, and the first with it: some mode grows at every strength."""
    assert np.isnan(critical_points(he3_beside(0.9), low=0.05, high=0.9).strength).all()
    assert float(search_phase(he3_beside(0.9)(jnp.asarray(HE3_CRITICAL))).rate) > 1e-3
