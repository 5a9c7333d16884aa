"""The search phase: reference values, eigenvalues of the flow, derivatives, limits."""

import equinox as eqx
import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from odes import Problem, flow, pretrained
from tests.problems import single
from tests.reference import REFERENCE_POINTS
from theory import escape_law, escape_rate, search_phase, sweep


@pytest.mark.parametrize("name, teacher, family, mu, C, D, noise, loss, tau", REFERENCE_POINTS)
def test_reference_values(name, teacher, family, mu, C, D, noise, loss, tau):
    if family == "mixture":
        problem = Problem.mixture(name, mu=mu, teacher=teacher)
    else:
        problem = Problem.single_index(name, strength=mu, teacher=teacher)
    phase = search_phase(problem)
    mine = [phase.C, phase.D, phase.noise, phase.loss, phase.tau]
    np.testing.assert_allclose(mine, [C, D, noise, loss, tau], rtol=5e-10, atol=1e-14)


@eqx.filter_jit
def jacobian(problem):
    """Of the flow at w0, as a matrix."""
    flat, unravel = ravel_pytree(pretrained(problem))
    return jax.jacfwd(lambda y: ravel_pytree(flow(problem, unravel(y)))[0])(flat)


@pytest.mark.parametrize(
    "name, rho, c",
    [("erf", 0.5, 1.0), ("relu", 0.7, 0.3), ("He2", 0.4, 0.8), ("He3", 0.9, -0.5), ("sigmoid", 2.0, 0.9)],
)
@pytest.mark.parametrize("chi, scale, rank", [(1.0, 1.0, 1), (5.0, 0.3, 1), (0.2, 8.0, 3)])
def test_rate_is_the_top_eigenvalue_of_the_flow(name, rho, c, chi, scale, rank):
    problem = single(name, strength=rho, alignment=c, rank=rank, scale=scale, lr_ratio=chi)
    top = np.linalg.eigvals(np.asarray(jacobian(problem))).real.max()
    np.testing.assert_allclose(search_phase(problem).rate, top, rtol=1e-7)


def test_escape_rate_limits():
    np.testing.assert_allclose(escape_rate(2.0, 3.0, lr_ratio=1e12), 1.5, rtol=1e-6)
    assert float(escape_rate(1.0, 0.0)) == 0.0
    np.testing.assert_allclose(escape_rate(1.0, 1e-30), 1e-30, rtol=1e-12)
    np.testing.assert_allclose(escape_rate(-2.0, 3.0, kappa=0.5), escape_rate(-2.0, 3.0, lr_ratio=0.25), rtol=1e-14)


@pytest.mark.parametrize("name", ["relu", "erf", "sigmoid", "tanh", "He4"])
def test_tau_is_infinite_where_nothing_is_left_to_learn(name):
    assert np.isinf(search_phase(Problem.single_index(name, strength=1.0)).tau)


@pytest.mark.parametrize(
    "name", ["erf", *(pytest.param(name, marks=pytest.mark.slow) for name in ("relu", "tanh", "He4"))]
)
def test_the_law_is_not_given_where_nothing_is_left_to_learn(name):
    assert np.isnan(escape_law(Problem.single_index(name, strength=1.0)).mean)


def test_gradient_with_respect_to_alignment_at_full_alignment():
    def tau(c):
        return search_phase(Problem.single_index("erf", strength=0.5, alignment=c)).tau

    step = 1e-5
    one_sided = (3 * tau(1.0) - 4 * tau(1 - step) + tau(1 - 2 * step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(tau)(1.0), one_sided, rtol=1e-5)


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
