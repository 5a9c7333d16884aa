"""Analytic statements against independent computations."""

import math

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special

from odes import SGD, Adapter, Overlaps, Problem, flow, pretrained, solve
from tests.reference import FUNCTIONS
from theory import (
    critical_points,
    escape_law,
    escape_rate,
    hermite_coefficients,
    information_exponent,
    plateau,
    search_phase,
    sweep,
)


@pytest.mark.parametrize("name", ["relu", "erf", "sigmoid", "tanh^2", "He5"])
@pytest.mark.parametrize("variance", [1.0, 0.3])
def test_hermite_coefficients_match_scipy(name, variance):
    f = FUNCTIONS[name][0]
    ours = hermite_coefficients(name, 8, variance=variance)
    for k in range(9):

        def integrand(z, k=k):
            return f(np.sqrt(variance) * np.array(z)) * special.eval_hermitenorm(k, z) * np.exp(-(z**2) / 2)

        halves = [integrate.quad(integrand, a, b, epsabs=1e-11 * math.factorial(k))[0] for a, b in ((-14, 0), (0, 14))]
        expected = sum(halves) / math.sqrt(2 * math.pi) / math.factorial(k)
        assert abs(float(ours[k]) - expected) < 1e-10


@pytest.mark.parametrize(
    "name, exponent", [("erf", 1), ("He7", 7), ("He2+0.5*He4", 2), ("relu^2", 1), ("He3^2", 2), ("He0", None)]
)
def test_information_exponent(name, exponent):
    assert information_exponent(name) == exponent


@pytest.mark.parametrize(
    "name, rho, c",
    [("erf", 0.5, 1.0), ("relu", 0.7, 0.3), ("He2", 0.4, 0.8), ("He3", 0.9, -0.5), ("sigmoid", 2.0, 0.9)],
)
@pytest.mark.parametrize("chi, scale, rank", [(1.0, 1.0, 1), (5.0, 0.3, 1), (0.2, 8.0, 3)])
def test_rate_is_the_top_eigenvalue_of_the_flow(name, rho, c, chi, scale, rank):
    adapter = Adapter(rank, scale=scale, lr_ratio=chi)
    problem = Problem.single_index(name, strength=rho, alignment=c, adapter=adapter)
    flat, unravel = jax.flatten_util.ravel_pytree(pretrained(problem))
    jacobian = jax.jacfwd(lambda y: jax.flatten_util.ravel_pytree(flow(problem, unravel(y)))[0])(flat)
    top = np.linalg.eigvals(np.asarray(jacobian)).real.max()
    np.testing.assert_allclose(search_phase(problem).rate, top, rtol=1e-7)


def test_escape_rate_limits():
    np.testing.assert_allclose(escape_rate(2.0, 3.0, lr_ratio=1e12), 1.5, rtol=1e-6)
    assert float(escape_rate(1.0, 0.0)) == 0.0
    np.testing.assert_allclose(escape_rate(1.0, 1e-30), 1e-30, rtol=1e-12)
    np.testing.assert_allclose(escape_rate(-2.0, 3.0, kappa=0.5), escape_rate(-2.0, 3.0, lr_ratio=0.25), rtol=1e-14)


@pytest.mark.parametrize("name", ["relu", "erf", "sigmoid", "tanh", "He4"])
def test_tau_is_infinite_where_nothing_is_left_to_learn(name):
    assert np.isinf(search_phase(Problem.single_index(name, strength=1.0)).tau)
    assert np.isnan(escape_law(Problem.single_index(name, strength=1.0)).mean)


def test_gradient_with_respect_to_alignment_at_full_alignment():
    def tau(c):
        return search_phase(Problem.single_index("erf", strength=0.5, alignment=c)).tau

    step = 1e-5
    one_sided = (3 * tau(1.0) - 4 * tau(1 - step) + tau(1 - 2 * step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(tau)(1.0), one_sided, rtol=1e-5)


def test_single_precision_gives_the_same_answers():
    with jax.enable_x64(False):
        found = np.asarray(critical_points("He3", low=0.1, high=1.0).strength)
        np.testing.assert_allclose(found[:2], [0.3207243, 1.0], atol=1e-3)
        assert information_exponent("erf^2") == 2 and information_exponent("He3") == 3


def test_rate_is_differentiable_everywhere_it_is_used():
    gradient = jax.grad(
        lambda rho, c: search_phase(Problem.single_index("tanh", strength=rho, alignment=c)).rate, (0, 1)
    )
    for rho, c in [(0.5, 1.0), (1.0, 0.5), (0.7, -1.0)]:
        assert np.all(np.isfinite(gradient(rho, c)))


def test_sweep_equals_single_points():
    strengths = np.array([0.2, 0.9])
    swept = sweep("tanh", strength=strengths, alignment=0.4)
    for i, rho in enumerate(strengths):
        np.testing.assert_allclose(
            swept.tau[i], search_phase(Problem.single_index("tanh", strength=rho, alignment=0.4)).tau, rtol=1e-12
        )


def aligned_gradient_polynomial(k):
    """A(mu) = C - D mu of aligned He_k from NumPy's exact Hermite algebra, as a polynomial in mu."""
    # E[He_i(mu x) He_j(x)] = mu^i... through He_n(mu x) = sum_i mu^(n-2i) (mu^2-1)^i n! / (2^i i! (n-2i)!) He_(n-2i)(x)
    P = np.polynomial.Polynomial

    def expansion(n):
        terms = {}
        for i in range(n // 2 + 1):
            coefficient = math.factorial(n) / (2**i * math.factorial(i) * math.factorial(n - 2 * i))
            terms[n - 2 * i] = coefficient * P([0, 1]) ** (n - 2 * i) * P([-1, 0, 1]) ** i
        return terms

    def inner(a, b):
        return sum((math.factorial(j) * a[j] * b[j] for j in a.keys() & b.keys()), P([0.0]))

    own, slope, bend = expansion(k), expansion(k - 1), expansion(k - 2)
    target, target_slope = {k: P([1.0])}, {k - 1: P([1.0])}
    C = k**2 * inner(slope, target_slope)
    D = k**2 * inner(slope, slope) + k * (k - 1) * (inner(bend, own) - inner(bend, target))
    return C - D * P([0, 1])


@pytest.mark.parametrize("k", [2, 3, 4, 5, 7, 10])
def test_critical_strengths_are_all_real_roots(k):
    polynomial = aligned_gradient_polynomial(k)
    roots = polynomial.roots()
    real = np.sort(roots.real[(abs(roots.imag) < 1e-9) & (roots.real > 0.02) & (roots.real < 1.5)])
    for _ in range(3):
        real = real - polynomial(real) / polynomial.deriv()(real)
    found = critical_points(f"He{k}", low=0.02, high=1.5).strength
    found = np.asarray(found)[np.isfinite(found)]
    np.testing.assert_allclose(found, real, atol=1e-10)
    phases = sweep(f"He{k}", strength=np.array([0.3, 0.8]))
    np.testing.assert_allclose(phases.G, polynomial(np.array([0.3, 0.8])) ** 2, rtol=1e-9)


def test_he3_critical_strength():
    found = np.asarray(critical_points("He3", low=0.01, high=1.0).strength)
    np.testing.assert_allclose(found[:2], [0.320724347323, 1.0], atol=1e-12)
    mu = found[0]
    assert abs(4 * mu**2 + 2 * mu - 1 - 5 * mu**4) < 1e-14


@pytest.mark.parametrize(
    "name, alignment", [("relu", 1.0), ("erf", 1.0), ("He3", 1.0), ("erf", None), ("sigmoid", 1.0)]
)
def test_divergence_has_the_stated_prefactor(name, alignment):
    zeros = critical_points(name, low=0.05, high=1.0, alignment=alignment)
    for strength, prefactor in zip(zeros.strength, zeros.prefactor, strict=True):
        if np.isfinite(strength):
            distance = 1e-4
            make = Problem.mixture if alignment is None else Problem.single_index
            at = dict(mu=strength - distance) if alignment is None else dict(strength=strength - distance)
            np.testing.assert_allclose(search_phase(make(name, **at)).tau * distance**2, prefactor, rtol=5e-3)


def test_no_critical_strength_off_the_target_direction():
    """With c < 1 the gradient has a component -D rho sqrt(1 - c^2) that the first does not cancel."""
    assert np.isnan(critical_points("erf", low=0.05, high=2.0, alignment=0.8).strength).all()


def test_plateau_is_where_u_settles_without_alignment():
    """He2 with a short w0 orthogonal to the target: C = 0, so the plateau is a true fixed point of the flow."""
    problem = Problem.single_index("He2", strength=1e-3, alignment=0.0, sgd=SGD(batch_size=np.inf))
    settled = plateau(problem)
    start = Overlaps(jnp.array([[1e-3]]), jnp.zeros((1, 2)), jnp.ones((1, 1)))
    final = solve(problem, start, t1=60.0).final
    np.testing.assert_allclose(abs(final.up[0, 0]), settled.up, rtol=1e-5)
    np.testing.assert_allclose(1e-3**2 + settled.up**2, 1 / 3, rtol=1e-10)  # D = 6 Q - 2 at M = 0
    assert abs(float(settled.drift)) < 1e-14
    # and the overlap leaves it at the stated rate
    nudged = Overlaps(jnp.reshape(settled.up, (1, 1)), jnp.array([[1e-6, 0.0]]), jnp.ones((1, 1)))
    t = jnp.array([3.0, 6.0])
    m = solve(problem, nudged, t1=6.0, times=t, rtol=1e-11, atol=1e-14).m[:, 0]
    np.testing.assert_allclose(jnp.log(m[1] / m[0]) / 3.0, settled.rate, rtol=1e-3)


def test_plateau_drift_is_the_speed_of_the_overlap():
    problem = Problem.single_index(
        "He2", strength=0.2, adapter=Adapter(1, scale=1.5, lr_ratio=3.0), sgd=SGD(batch_size=np.inf)
    )
    settled = plateau(problem)
    state = Overlaps(jnp.reshape(settled.up, (1, 1)), jnp.zeros((1, 2)), jnp.ones((1, 1)))
    change = flow(problem, state)
    np.testing.assert_allclose(change.up, 0, atol=1e-10)
    np.testing.assert_allclose(change.cross[0, 0], settled.drift, rtol=1e-10)


def test_no_plateau_where_d_is_positive():
    assert np.isnan(plateau(Problem.single_index("erf", strength=0.5)).up)
