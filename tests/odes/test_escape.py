"""Escape: where its criterion says, not at all, and how its time depends on what is given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from odes import Escape, Overlaps, random_overlaps, solve
from tests.problems import single
from tests.reference import erf_trajectory


@pytest.mark.parametrize("criterion", ["loss", "overlap"])
def test_escape_is_where_the_criterion_says(problem, start, criterion):
    escape = Escape(criterion, 0.3)
    solution = solve(problem, start, t1=300.0, escape=escape, until_escape=True)
    assert abs(float(escape.margin(problem, solution.final, escape.reference(problem)))) < 1e-7
    assert float(solution.t_final) == float(solution.escape_time)
    after = solution.t > solution.escape_time
    assert after.any() and jnp.isnan(solution.loss[after]).all() and jnp.isnan(solution.overlaps.up[after]).all()
    assert jnp.isfinite(solution.loss[~after]).all()
    assert solution.message == "stopped at the escape"


def test_small_goals_are_located_where_scipy_finds_them(problem, start):
    """At an absolute loss of 1e-7 rounding of the loss is 1e-9 of the goal: more than the bracket's tolerance."""
    _, loss = erf_trajectory(0.5, 0.9, [float(x) for x in (start.up[0, 0], *start.cross[0])], 300.0)
    expected = optimize.brentq(lambda t: loss(t) - 1e-7, 1, 300, xtol=1e-10)
    tight = dict(rtol=1e-10, atol=1e-12)
    found = solve(problem, start, t1=300.0, escape=Escape("absolute", 1e-7), until_escape=True, **tight)
    np.testing.assert_allclose(found.escape_time, expected, rtol=1e-5)
    assert found.message == "stopped at the escape"


def test_overlaps_of_many_seeds_are_compared_with_that_of_w0():
    escape = Escape("overlap", 0.25)
    apart = escape.distance(jnp.array([[0.5], [0.6], [0.75]]), jnp.array([0.5]))
    np.testing.assert_allclose(apart, [0.25, 0.05, -0.25], atol=1e-15)


def test_no_escape_is_nan_and_an_escaped_start_is_zero(problem, start):
    assert jnp.isnan(solve(problem, start, t1=1.0, escape=Escape()).escape_time)
    arrived = Overlaps(jnp.array([[0.5]]), jnp.array([[1.0, 0.45]]), jnp.ones((1, 1)))
    assert float(solve(problem, arrived, t1=1.0, escape=Escape()).escape_time) == 0.0


@pytest.mark.parametrize(
    "activation, strength, kwargs",
    [
        ("erf", 0.4, {}),
        pytest.param("relu", 0.4, {}, marks=pytest.mark.slow),
        pytest.param("tanh", 0.4, dict(alignment=0.7), marks=pytest.mark.slow),
        pytest.param("He3", 0.6, {}, marks=pytest.mark.slow),
    ],
)
def test_gradient_of_the_escape_time_matches_finite_differences(activation, strength, kwargs, key):
    start = random_overlaps(single(activation, d=1000, strength=0.6, **kwargs), key)

    @jax.jit
    def escape_time(strength, chi, noise):
        problem = single(
            activation, d=1000, batch=500, eta=0.01, strength=strength, lr_ratio=chi, noise=noise, **kwargs
        )
        options = dict(t1=2000.0, times=jnp.ones(1), escape=Escape(), until_escape=True, rtol=1e-11, atol=1e-13)
        return solve(problem, start, **options).escape_time

    point = np.array([strength, 1.3, 0.02])
    exact = jax.grad(escape_time, (0, 1, 2))(*point)
    for i, step in enumerate((1e-4, 1e-3, 1e-3)):
        later, earlier = (escape_time(*(point + sign * step * np.eye(3)[i])) for sign in (1, -1))
        numeric = (later - earlier) / (2 * step)
        np.testing.assert_allclose(exact[i], numeric, rtol=2e-4, atol=1e-6 * float(escape_time(*point)))


def test_bad_criteria_and_thresholds_are_named():
    with pytest.raises(ValueError, match="`criterion` must be one of .* did you mean 'overlap'"):
        Escape("overlaps")
    with pytest.raises(ValueError, match="`threshold` must be between 0 and 1"):
        Escape("loss", 1.0)
    with pytest.raises(ValueError, match="`threshold` must be positive and finite"):
        Escape("absolute", 0.0)
