"""The law of the escape time: brute force, leading order, where it holds, the largest noise scale."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from tests.problems import single
from theory import escape_law, largest_noise_scale, search_phase, unstable_mode


@pytest.mark.parametrize(
    "theta, lr_ratio, scale, noise", [(0.0, 1.0, 1.0, 0.0), (3.0, 4.0, 0.5, 0.5), (20.0, 0.3, 2.0, 1.0)]
)
def test_amplitude_variance_by_brute_force(theta, lr_ratio, scale, noise):
    """40000 runs of the linear recursion of (u, p): the variance of u / e_u, grown back, within 4.5 standard errors."""
    problem = single(theta=theta, alignment=0.8, noise=noise, lr_ratio=lr_ratio, scale=scale)
    phase, d, eta = search_phase(problem), 1e4, 0.2
    mode, C, D, G, N, rate = unstable_mode(problem, phase), phase.C, phase.D, float(phase.G), phase.noise, phase.rate
    rng, runs = np.random.default_rng(0), 40000
    u, p = np.zeros(runs), rng.normal(size=runs) * np.sqrt(G / d)
    steps = int(25 / (eta * float(rate)))
    for _ in range(steps):
        drift = lr_ratio * scale * (p - scale * float(D) * u)
        kick = lr_ratio * scale * np.sqrt(theta / (eta * d) * float(N)) * rng.normal(size=runs)
        u, p = u + eta * (drift + kick), p + eta * scale * G * u
    amplitudes = u / float(mode.up) / (1 + eta * float(rate)) ** steps
    assert C > 0
    variance, error = amplitudes.var(), amplitudes.var() * np.sqrt(2 / runs)
    assert abs(variance - float(mode.variance)) < 4.5 * error


@pytest.mark.parametrize("rank", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_quantiles_distribution_and_moments_belong_together(rank):
    law = escape_law(single(d=1e6, rank=rank))
    levels = np.array([1e-4, 0.05, 0.5, 0.95, 0.9999])
    np.testing.assert_allclose(law.cdf(law.quantile(levels)), levels, rtol=2e-3, atol=1e-5)
    x = np.linspace(-30, 30, 6001)  # evenly spaced points in the logit of p
    times, weights = np.asarray(law.quantile(special.expit(x))), 0.01 * special.expit(x) * special.expit(-x)
    mean = weights @ times
    np.testing.assert_allclose([law.mean, law.std], [mean, np.sqrt(weights @ (times - mean) ** 2)], rtol=2e-3)


def test_law_at_very_large_dimension_is_the_leading_order():
    """tau/2 for every unit of log d, std tau sqrt(trigamma(r/2))/2, rank by the digamma function."""
    laws = {(d, r): escape_law(single(d=d, rank=r)) for d in (1e12, 1e14) for r in (1, 4)}
    one, four = laws[1e14, 1], laws[1e14, 4]
    tau = float(one.tau)
    np.testing.assert_allclose(one.mean - laws[1e12, 1].mean, tau / 2 * np.log(100), rtol=1e-6)
    leading = tau / 2 * np.sqrt(special.polygamma(1, [0.5, 2]))
    np.testing.assert_allclose(one.std, leading[0], rtol=1e-4)
    assert abs(four.std - leading[1]) < 3 * four.std_error < 0.01 * leading[1]
    shift = tau / 2 * (special.digamma(2) - special.digamma(0.5))
    np.testing.assert_allclose(one.mean - four.mean, shift, rtol=2e-2)  # spread over rows shifts the constant a little
    phase = search_phase(single())
    np.testing.assert_allclose(tau, 0.2 / np.log1p(0.2 * float(phase.rate)), rtol=1e-12)


FREE_AND_NOISY = dict(theta=20.0, normalized=False, noise=0.1, alignment=0.7)


@pytest.mark.parametrize(
    "problem, doubt",
    [
        (single("He2", strength=0.3, theta=0.0), "plateau"),
        (single(strength=1.0), "gradient vanishes"),
        (single(lr_ratio=0.0), "not trained"),
        (single("He3", strength=0.6, theta=0.4, eta=0.01), "does not escape"),
        (single(d=60.0, rank=8), "dimension is too small"),
        (single("relu", strength=0.1, d=2e3), "dimension is too small"),
        (single("linear", strength=0.1, eta=1.5), "learning rate is too large"),
        (single(d=2e3, **FREE_AND_NOISY), "noise on U"),
        (single("He3", strength=0.6, theta=0.1, eta=0.0025, d=2e4), "heavy tails"),
        (single(d=1e5), ""),
    ],
)
def test_law_says_where_it_does_not_hold(problem, doubt):
    law = escape_law(problem)
    assert doubt in law.doubt and (law.doubt == "") == (doubt == "")
    numbers = [law.mean, law.std, law.quantile(0.5)]
    assert np.isfinite(numbers).all() == (doubt == "")


def test_law_works_under_vmap():
    laws = jax.vmap(lambda d: escape_law(eqx.tree_at(lambda p: p.sgd.dimension, single(theta=0), d)).mean)(
        jnp.array([1e4, 1e6])
    )
    assert float(laws[1] - laws[0]) > 100


@pytest.mark.parametrize(
    "problem",
    [single("He3", strength=0.6, eta=0.01), pytest.param(single(noise=0.2, rank=2), marks=pytest.mark.slow)],
)
def test_largest_noise_scale_is_where_escape_ends(problem):
    theta = float(largest_noise_scale(problem))
    sgd = problem.sgd
    for factor, escapes in ((0.97, True), (1.03, False)):
        batch = sgd.learning_rate * sgd.dimension / (factor * theta)
        law = escape_law(eqx.tree_at(lambda p: p.sgd.batch_size, problem, batch))
        assert ("does not escape" in law.doubt) != escapes


@pytest.mark.slow
def test_free_rows_bear_more_noise_and_plateaus_have_no_limit():
    assert largest_noise_scale(single(normalized=False)) > 10 * largest_noise_scale(single())
    assert np.isnan(largest_noise_scale(single("He2", strength=0.3)))
