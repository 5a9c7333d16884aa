"""Link functions as sums of error functions."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from odes import Problem, activation, gradient_at, in_closed_form, nearest_erfs, noise_at, pair_moments, pretrained
from odes.erfs import erf_series


@pytest.mark.parametrize("link", ["tanh", "sigmoid", "tanh(x/2)"])
def test_sigmoid_links_are_close_to_sums_of_erf(link):
    """Their derivatives differ by less than 5e-4 in the root mean square, by sampling at quantiles of a normal law."""
    exact, near = activation(link), nearest_erfs(activation(link))
    for deviation in (0.4, 1.0, 2.0):
        x = jnp.asarray(deviation * stats.norm.ppf((np.arange(4000) + 0.5) / 4000))
        error, size = near.derivative(x) - exact.derivative(x), exact.derivative(x)
        assert float(jnp.sqrt(jnp.mean(error**2) / jnp.mean(size**2))) < 5e-4
        np.testing.assert_allclose(near(x), exact(x), atol=5e-4)


@pytest.mark.parametrize("link", ["linear", "He3", "relu", "tanh^2", "relu+tanh"])
def test_other_links_are_not(link):
    assert nearest_erfs(activation(link)) is None


def test_sums_of_erf_have_exact_averages():
    """A sum of two scaled erf with a constant, by bilinearity in pairs of erf."""
    link, other = activation("0.5*He0+erf(2*x)-0.3*erf"), activation("erf(x/2)")
    assert erf_series(link).offset == 0.5 and nearest_erfs(link) is link
    p, q, c = 0.8, 1.1, 0.3
    found = pair_moments(link, other, p, q, c)
    parts = [pair_moments(activation(name), other, p, q, c) for name in ("erf(2*x)", "erf")]
    for name in ("value", "cross", "curvature"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(parts[0], name) - 0.3 * getattr(parts[1], name), rtol=1e-14
        )
    x = np.polynomial.hermite_e.hermegauss(120)
    mean = np.sum(x[1] / x[1].sum() * np.asarray(link(jnp.sqrt(p) * x[0])) ** 2)
    np.testing.assert_allclose(pair_moments(link, link, p, p, p).value, mean, rtol=1e-6)


@pytest.mark.parametrize("rows", [[[0.5, 0.05], [0.03, 0.45]], [[0.95, 0.01], [0.0, 0.97]]])
def test_what_a_search_needs_of_tanh_committees_is_that_of_the_sums(rows):
    """Far from the teachers and near them, where all is the small difference of two terms: gradient, loss and noise to a part of 1e-3."""
    exact = Problem.committee("tanh", pretrained=rows)
    near = in_closed_form(exact)
    found, expected = (gradient_at(some, pretrained(some)) for some in (near, exact))
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-3)
    pull, push = (some.C - some.D @ exact.frozen[:, :2] for some in (found, expected))
    np.testing.assert_allclose(pull, push, atol=1e-3 * float(jnp.abs(push).max()))
    np.testing.assert_allclose(noise_at(near, pretrained(near)), noise_at(exact, pretrained(exact)), rtol=1e-14)
