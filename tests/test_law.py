"""The flow of finite steps and the law of the escape time: against iterated steps, brute force and the exact chain."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special

from odes import SGD, Adapter, Escape, Problem, flow, mean_change, modified_flow, random_overlaps, solve
from theory import escape_from, escape_law, largest_noise_scale, mode_start, search_phase, unstable_mode, up_noise
from validation.simulation import even_steps, simulate_chain


def single(activation="erf", *, theta=1.0, eta=0.2, d=1e4, strength=0.5, alignment=1.0, noise=0.0, rank=1, **adapter):
    batch = np.inf if theta == 0 else eta * d / theta
    sgd = SGD(dimension=d, batch_size=batch, learning_rate=eta, label_noise=noise)
    return Problem.single_index(
        activation, strength=strength, alignment=alignment, adapter=Adapter(rank, **adapter), sgd=sgd
    )


def iterate(problem, start, steps):
    eta = problem.sgd.learning_rate

    def step(_, y):
        return jax.tree.map(lambda a, b: a + eta * b, y, mean_change(problem, y))

    return jax.jit(lambda y: jax.lax.fori_loop(0, steps, step, y))(start)


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
    end, errors = 5 * eta * 8, {True: [], False: []}
    for rate, steps in ((eta, 40), (eta / 2, 80), (eta / 4, 160)):
        problem = single(activation, theta=theta, eta=rate, alignment=0.7, noise=0.1, **adapter)
        start = random_overlaps(problem, key, up=0.3)
        exact = jax.tree.leaves(iterate(problem, start, steps))
        for finite, found in errors.items():
            final = solve(problem, start, t1=end, times=[end], finite_steps=finite, rtol=1e-11, atol=1e-13).final
            found.append(max(float(np.abs(a - b).max()) for a, b in zip(jax.tree.leaves(final), exact, strict=True)))
    ratios = {finite: np.array(found[:-1]) / found[1:] for finite, found in errors.items()}
    assert np.all((ratios[True] > 3.2) & (ratios[True] < 5))
    assert np.all((ratios[False] > 1.7) & (ratios[False] < 2.4))
    assert errors[True][-1] < 0.1 * errors[False][-1]


def test_flows_agree_at_vanishing_learning_rate_and_lengths_are_kept(key):
    problem = single("tanh", eta=1e-7, d=1e9, alignment=0.6, rank=2)
    start = random_overlaps(problem, key, up=0.4)
    limit, modified = flow(problem, start), modified_flow(problem, start)
    for a, b in zip(jax.tree.leaves(limit), jax.tree.leaves(modified), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(jnp.diagonal(modified_flow(single(rank=2), start).down_gram), 0, atol=1e-14)


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
    mean = integrate.quad(lambda p: float(law.quantile(p)), 0, 1, limit=200)[0]
    square = integrate.quad(lambda p: float(law.quantile(p) - mean) ** 2, 0, 1, limit=200)[0]
    np.testing.assert_allclose([law.mean, law.std], [mean, np.sqrt(square)], rtol=2e-3)


def test_law_at_very_large_dimension_is_the_leading_order():
    """tau/2 for every unit of log d, std tau sqrt(trigamma(r/2))/2, rank by the digamma function."""
    laws = {(d, r): escape_law(single(d=d, rank=r)) for d in (1e12, 1e14) for r in (1, 4)}
    one, four = laws[1e14, 1], laws[1e14, 4]
    tau = float(one.tau)
    np.testing.assert_allclose(one.mean - laws[1e12, 1].mean, tau / 2 * np.log(100), rtol=1e-6)
    np.testing.assert_allclose([one.std, four.std], tau / 2 * np.sqrt(special.polygamma(1, [0.5, 2])), rtol=1e-4)
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
        (single("He3", strength=0.6, theta=0.4), "does not escape"),
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


@pytest.mark.slow
def test_slow_crossing_gives_single_runs_a_head_start(key):
    """Runs cross before the flow by about the head start, as long as that is small."""
    escape = Escape("overlap", 0.4)
    for d, refused in ((2e4, True), (2e5, False)):
        problem = single(d=d, **FREE_AND_NOISY)
        law, phase = escape_law(problem, escape), search_phase(problem)
        mode = unstable_mode(problem, phase)
        start = mode_start(problem, phase, mode, law.amplitude[None])
        flow_run = escape_from(problem, start, escape, phase)
        ahead = float(up_noise(problem, escape, phase, flow_run.final).head_start)
        run = simulate_chain(problem, key=key, seeds=200, steps=np.arange(0, 501), start=start, until=escape)
        times = np.asarray(run.escape_times(escape))
        error = times.std() / np.sqrt(times.size)
        assert abs(float(flow_run.escape_time) - times.mean() - ahead) < 0.35 * ahead + 3 * error
        assert ("noise on U" in law.doubt) == refused


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
        assert law.doubt != "SGD at this noise scale does not escape" if escapes else "does not escape" in law.doubt


@pytest.mark.slow
def test_free_rows_bear_more_noise_and_plateaus_have_no_limit():
    assert largest_noise_scale(single(normalized=False)) > 10 * largest_noise_scale(single())
    assert np.isnan(largest_noise_scale(single("He2", strength=0.3)))


CHAIN_CASES = {
    "rank 8": single(rank=8, d=2e3),
    "mixture": Problem.mixture("erf", mu=0.5, sgd=SGD(dimension=2e3, batch_size=400)),
    "mixture, rank 8": Problem.mixture("erf", mu=0.5, adapter=Adapter(8), sgd=SGD(dimension=2e3, batch_size=400)),
    "LoRA+, label noise": single(
        "relu", strength=0.4, alignment=0.7, theta=4.0, noise=0.3, lr_ratio=4.0, scale=0.7, d=6e3
    ),
    "free rows, large noise": single(theta=5.0, normalized=False, d=2e4, noise=0.1, alignment=0.7),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CHAIN_CASES)
def test_law_against_the_exact_chain(case, key):
    """600 seeds: the mean within 3 standard errors or 3 %, the standard deviation within 4."""
    problem, escape = CHAIN_CASES[case], Escape("overlap", 0.4)
    law = escape_law(problem, escape)
    steps = even_steps(1.5 * float(law.quantile(1 - 1e-6)), 0.2, 300)
    times = np.asarray(simulate_chain(problem, key=key, seeds=600, steps=steps, until=escape).escape_times(escape))
    assert np.isfinite(times).all()
    error = times.std() / np.sqrt(times.size)
    assert abs(times.mean() - float(law.mean)) < max(3 * error, 0.03 * float(law.mean))
    r = problem.adapter.rank
    excess = special.polygamma(3, r / 2) / special.polygamma(1, r / 2) ** 2
    assert abs(times.std() / float(law.std) - 1) < 4 * np.sqrt((excess + 2) / (4 * times.size))
