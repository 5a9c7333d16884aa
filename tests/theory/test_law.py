"""The law of the escape time: brute force, leading order, where it holds, the largest noise scale."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from odes import Adapter, Escape, Overlaps, Problem, programs, random_overlaps
from odes.arguments import ArgumentError
from tests.helpers import central_slopes, largest_z
from tests.problems import PARAMETERS, of_parameters, single
from theory import (
    Validity,
    escape_law,
    escape_modes,
    largest_noise_scale,
    plateau,
    random_start,
    search_phase,
    unstable_mode,
)


@pytest.mark.parametrize(
    "theta, lr_ratio, scale, noise", [(0.0, 1.0, 1.0, 0.0), (3.0, 4.0, 0.5, 0.5), (20.0, 0.3, 2.0, 1.0)]
)
def test_amplitude_variance_by_brute_force(theta, lr_ratio, scale, noise):
    """40000 runs of the linear recursion of (u, p): the variance of u / e_u, grown back, within 4.5 standard errors."""
    problem = single(theta=theta, alignment=0.8, noise=noise, lr_ratio=lr_ratio, scale=scale)
    phase, d, eta = search_phase(problem), 1e4, 0.2
    mode, C, D, G, N, rate = unstable_mode(problem), phase.C, phase.D, float(phase.G), phase.noise, phase.rate
    rng, runs = np.random.default_rng(0), 40000
    u, p = np.zeros(runs), rng.normal(size=runs) * np.sqrt(G / d)
    steps = int(25 / (eta * float(rate)))
    for _ in range(steps):
        drift = lr_ratio * scale * (p - scale * float(D) * u)
        kick = lr_ratio * scale * np.sqrt(theta / (eta * d) * float(N)) * rng.normal(size=runs)
        u, p = u + eta * (drift + kick), p + eta * scale * G * u
    amplitudes = u / mode.up.item() / (1 + eta * float(rate)) ** steps
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


SETTLING = dict(strength=0.57, alignment=-0.0153, scale=9.31, eta=0.0056, theta=0.273, d=8e5, rank=4, noise=9.22)
FREE_AND_NOISY = dict(theta=20.0, normalized=False, noise=0.1, alignment=0.7)


@pytest.mark.parametrize(
    "problem, doubt",
    [
        (single("relu", strength=0.001, d=1e3, theta=0.4, eta=5e-4), "SGD noise feeds the start"),
        (single(strength=1.0), "gradient vanishes"),
        (single(lr_ratio=0.0), "not trained"),
        (single("He3", strength=0.6, theta=0.4, eta=0.01), "does not escape"),
        (single(d=60.0, rank=4), "SGD noise at the escape"),
        (single("relu", strength=0.1, d=2e3), "SGD noise feeds the start"),
        (single("He2", **SETTLING, normalized=False), "SGD noise feeds the start"),
        (single("linear", strength=0.1, eta=1.5), ""),
        (single("linear", strength=0.3, eta=3.0, d=2e3, theta=0), "does not escape"),
        (single("He2", strength=0.3, alignment=-0.7, eta=0.01, theta=0.0), ""),
        (single(d=2e3, **FREE_AND_NOISY), "SGD noise at the escape"),
        (single("He3", strength=0.6, theta=0.1, eta=0.0025, d=2e4), "heavy tails"),
        (single(d=1e5), ""),
    ],
)
def test_law_says_where_it_does_not_hold(problem, doubt):
    law = escape_law(problem)
    assert doubt in law.doubt and (law.doubt == "") == (doubt == "")
    numbers = [law.mean, law.std, law.quantile(0.5)]
    assert np.isfinite(numbers).all() == (doubt == "")
    assert np.isnan(law.probability) == (doubt != "")
    assert np.isnan(law.escaping) == (doubt not in ("", "does not escape")) and bool(law.escaping >= 0.95) == (
        doubt == ""
    )


def test_a_drift_that_noise_overtakes_is_no_law():
    """The flow takes 368 along a plateau on which noise on V carries runs over the threshold at 237 +- 2."""
    problem = single(strength=1.7512, alignment=-1.0, eta=0.33335, theta=1.82305, d=44802.0, scale=1.33641)
    law = escape_law(problem, Escape("overlap", 0.69172))
    times = np.asarray(law.offsets) - float(law.tau) * np.asarray(law.log_radii)
    assert abs(times.mean() - 368) < 10 and "SGD noise at the escape" in law.doubt


def test_a_traced_law_does_not_iterate_large_steps():
    """It is refused there, as its docstring says."""
    problem = single("linear", strength=0.1, eta=1.5)
    traced = eqx.filter_jit(lambda some: escape_law(some).validity)(problem)
    assert Validity(int(traced)) == Validity.coarse and escape_law(problem).doubt == ""


def test_only_what_is_needed_is_compiled(tmp_path):
    """Where programs are kept they are begun ahead, once it is known whether the mean step is iterated."""
    programs.keep(tmp_path)
    try:
        for eta, kept in ((0.2, 1), (1.5, 2)):
            assert np.isfinite(escape_law(single("linear", strength=0.1, eta=eta), starts=2).mean)
            for name in ("runs", "law_of"):
                assert len(list(tmp_path.glob(f"program-{name}-*-cache"))) == kept
    finally:
        programs.keep(None)


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


@pytest.mark.parametrize("known", [largest_noise_scale, plateau])
def test_what_is_known_of_one_unit_alone_is_refused_for_several(known):
    with pytest.raises(ArgumentError, match=r"must be single-index with pretrained weights .* but has K, P = \(2, 2\)"):
        known(Problem.committee("erf", pretrained=[0.3, 0.6]))


@pytest.mark.slow
def test_free_rows_bear_more_noise_and_plateaus_have_no_limit():
    assert largest_noise_scale(single(normalized=False)) > 10 * largest_noise_scale(single())
    assert np.isnan(largest_noise_scale(single("He2", strength=0.3)))


def test_a_goal_that_w0_meets_takes_no_time():
    problem = single(strength=0.7, alignment=0.6)
    for goal in (Escape("absolute", 1.0), Escape("absolute", 0.3)):
        law = escape_law(problem, goal)
        numbers = [law.mean, law.std, *law.quantile(np.array([0.001, 0.5, 0.999])), law.cdf(-1e-9)]
        assert law.doubt == "" and float(law.probability) == 1 and not np.any(numbers)
        assert float(law.cdf(0.0)) == float(law.cdf(1.0)) == 1


def test_the_law_does_not_depend_on_how_the_frame_is_written():
    """Rows exchanged, and a target direction of length 2 with half its coefficient; the goal is read off both."""
    problem = single(strength=0.6, alignment=0.5, rank=4)
    gram, double = np.asarray(problem.frame_gram), np.diag([2.0, 1.0])
    parts = {"adapter": problem.adapter, "sgd": problem.sgd}
    exchanged = Problem(
        "erf",
        frame_gram=gram[::-1, ::-1],
        directions=("pretrained", "target"),
        frozen=[[1.0, 0.0]],
        target=[[0.0, 1.0]],
        **parts,
    )
    stretched = Problem(
        "erf",
        frame_gram=double @ gram @ double,
        directions=problem.directions,
        frozen=[[0.0, 1.0]],
        target=[[0.5, 0.0]],
        **parts,
    )
    laws = [escape_law(some, Escape("overlap", 0.3)) for some in (problem, exchanged, stretched)]
    for law in laws[1:]:
        np.testing.assert_allclose([law.mean, law.std], [laws[0].mean, laws[0].std], rtol=1e-6)


def test_overlap_is_measured_in_units_of_the_target():
    """A target of length 2 is learnt when w is the target, whose overlap is 4."""
    gram = [[4.0, 0.6], [0.6, 0.25]]
    parts = {"directions": ("target", "pretrained"), "frozen": [[0.0, 1.0]], "target": [[1.0, 0.0]]}
    problem, goal = Problem("erf", frame_gram=gram, **parts), Escape("overlap", 0.5)
    learnt = Overlaps(jnp.ones((1, 1)), jnp.array([[3.4, 0.35]]), jnp.eye(1))  # w = target: w.target = 0.6 + 3.4
    np.testing.assert_allclose(goal.margin(problem, learnt, goal.reference(problem)), -0.5, rtol=1e-12)


def test_adapters_that_the_theory_does_not_know_are_refused_by_name():
    for name, adapter in (
        ("trained", Adapter(2, trained=[1.0, 0.0])),
        ("weight_decay", Adapter(2, weight_decay=0.1, normalized=False)),
    ):
        with pytest.raises(ArgumentError) as error:
            escape_law(single().replace(adapter=adapter))
        assert error.value.name == name


def test_random_starts_are_exact_at_any_dimension():
    """Their first and second moments against those of `random_overlaps`, at d = 12, and of the mode's amplitude."""
    problem = single(d=12.0, alignment=0.3, rank=3, theta=0.0)
    modes = escape_modes(problem)
    mode = unstable_mode(problem, modes)
    normals = jnp.asarray(np.random.default_rng(1).normal(size=(20000, 3, 3 + 2 + 3)))
    ours, amplitudes = jax.jit(jax.vmap(lambda z: random_start(problem, modes, z)))(normals)
    exactly = jax.jit(jax.vmap(lambda key: random_overlaps(problem, key)))
    theirs = exactly(jax.random.split(jax.random.key(0), 20000))
    below = np.tril_indices(3, -1)
    ours, theirs = (np.column_stack([x.cross.reshape(-1, 6), x.down_gram[:, *below]]) for x in (ours, theirs))
    for power in (1, 2, 4):
        assert largest_z(ours**power, theirs**power) < 4.5
    square = np.asarray(amplitudes) ** 2
    assert abs(square.mean() - 3 * float(mode.variance)) < 4.5 * square.std() / np.sqrt(20000)


@pytest.mark.slow
def test_gradient_of_the_law():
    """Mean and spread at rank 2, against central differences with a relative step of 1e-3."""
    point = jnp.array(list(PARAMETERS.values()))

    @jax.jit
    def moments(values):
        law = escape_law(of_parameters(values), adjoint=diffrax.ForwardMode())
        return jnp.stack([law.mean, law.std])

    exact = jax.jacfwd(moments)(point)
    np.testing.assert_allclose(
        exact, central_slopes(moments, point), rtol=2e-3, atol=1e-8, err_msg=str(list(PARAMETERS))
    )
