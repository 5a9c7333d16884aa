"""Escape modes of several units: against eigenvalues of the whole flow's Jacobian, finite differences and the exact chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from odes import SGD, Adapter, Escape, Problem, flow, pretrained, random_overlaps
from odes.arguments import ArgumentError
from tests.helpers import largest_z
from theory import Validity, escape_law, escape_modes, random_start, search_phase, unstable_mode

NEAR = [[0.5, 0.05], [0.03, 0.45]]


def committee(link="erf", pretrained=NEAR, *, rank=2, lr_ratio=1.0, scale=None, sgd=None, **parts) -> Problem:
    adapter = Adapter(rank, lr_ratio=lr_ratio, scale=scale)
    sgd = SGD(learning_rate=0.05, batch_size=1000, dimension=20000) if sgd is None else sgd
    return Problem.committee(link, pretrained=pretrained, adapter=adapter, sgd=sgd, **parts)


def drawn(number: int) -> Problem:
    """A problem with K, P, r up to 4 and everything else random."""
    rng = np.random.default_rng(number)
    units, teachers, rank = rng.integers(1, 5, 3).tolist()
    return committee(
        str(rng.choice(["erf", "He2+0.5*He3", "relu", "He2"])),
        rng.normal(size=(units, teachers)) * 0.4,
        rank=rank,
        lr_ratio=float(rng.uniform(0.3, 4)),
        scale=float(rng.uniform(0.5, 2) * rank),
        sgd=SGD(batch_size=np.inf),
        own=rng.normal(size=units) * 0.3,
        readout=rng.normal(size=units),
        teacher_readout=rng.normal(size=teachers),
    )


@pytest.mark.parametrize("number", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 10))])
def test_modes_are_the_eigenvalues_of_the_flow(number):
    problem = drawn(number)
    modes = escape_modes(problem)
    flat, unravel = ravel_pytree(pretrained(problem))
    jacobian = jax.jit(jax.jacfwd(lambda y: ravel_pytree(flow(problem, unravel(y)))[0]))(flat)
    values = np.linalg.eigvals(np.asarray(jacobian))
    rates = np.repeat(np.asarray(modes.rates), problem.adapter.rank)
    largest = np.abs(rates).max()
    assert np.abs(values.imag).max() < 1e-6 * largest
    moving = np.sort(values.real[np.abs(values.real) > 1e-6 * largest])
    np.testing.assert_allclose(moving, np.sort(rates[np.abs(rates) > 1e-6 * largest]), rtol=1e-8)
    assert np.all(np.asarray(modes.rates)[: problem.units[0]] >= 0)


def test_vectors_obey_the_quadratic_equation_and_rows_learn_along_them():
    problem = drawn(3)
    modes, adapter = jax.tree.map(np.asarray, escape_modes(problem)), problem.adapter
    frame, target, frozen = map(np.asarray, (problem.frame_gram, problem.target, problem.frozen))
    rows = modes.C @ target - modes.D @ frozen
    np.testing.assert_allclose(rows @ frame @ rows.T, modes.gram, atol=1e-12)
    speed = float(adapter.lr_ratio * adapter.kappa**2)
    for rate, up, direction in zip(modes.rates, modes.up, modes.directions, strict=True):
        left = rate**2 * up + rate * speed * modes.D @ up - speed * modes.gram @ up
        np.testing.assert_allclose(left, 0, atol=1e-10)
        along = up @ rows @ frame
        np.testing.assert_allclose(along / np.sqrt(up @ modes.gram @ up), direction, atol=1e-9)
    np.testing.assert_allclose(np.sum(modes.up**2 + modes.cross**2, axis=1), 1, rtol=1e-12)
    spanned = modes.span @ np.linalg.pinv(frame) @ modes.span.T
    np.testing.assert_allclose(spanned, np.eye(len(rows)), atol=1e-8)


def test_rates_have_the_derivatives_of_finite_differences_where_they_cross():
    """Equal units have equal rates, where eigenvectors have no derivative."""

    @jax.jit
    def rates(mu):
        return escape_modes(committee(pretrained=jnp.diag(jnp.stack([mu, jnp.asarray(0.4)])), teachers=2)).rates

    slope_at = jax.jit(jax.jacfwd(rates))
    for mu in (0.3, 0.41):
        numeric = (rates(mu + 1e-5) - rates(mu - 1e-5)) / 2e-5
        np.testing.assert_allclose(slope_at(mu), numeric, rtol=1e-6, atol=1e-8)
    assert np.all(np.isfinite(slope_at(0.4)))


def test_one_unit_is_the_case_of_one():
    problem = Problem.single_index("erf", strength=0.6, alignment=0.3, adapter=Adapter(2, lr_ratio=3.0))
    modes, phase = escape_modes(problem), search_phase(problem)
    assert float(modes.rates[0]) == float(phase.rate)
    np.testing.assert_allclose(modes.rates[1], -3.0 * phase.D * problem.adapter.kappa**2 - phase.rate, rtol=1e-12)
    assert modes.up.shape == (2, 1) and modes.teachers.shape == (2, 1)


def test_negative_curvature_is_named():
    modes = escape_modes(committee("He2", [[0.1, 0.0], [0.0, 0.2]]))
    assert np.all(np.asarray(modes.grows_alone) < 0)
    assert np.all(np.asarray(escape_modes(committee()).grows_alone) > 0)


def test_random_starts_of_several_units_are_exact_at_any_dimension():
    """Moments of X and R against `random_overlaps` at d = 15, and the covariance of the modes' amplitudes with noise."""
    problem = committee(rank=3, own=[0.2, 0.1], sgd=SGD(batch_size=np.inf, dimension=15))
    modes, frame = escape_modes(problem), problem.frame_size
    normals = jnp.asarray(np.random.default_rng(1).normal(size=(20000, 3, 5 + frame + 3)))
    ours, first = jax.jit(jax.vmap(lambda z: random_start(problem, modes, z)))(normals)
    exactly = jax.jit(jax.vmap(lambda key: random_overlaps(problem, key)))
    theirs = exactly(jax.random.split(jax.random.key(0), 20000))
    below = np.tril_indices(3, -1)
    ours, theirs = (np.column_stack([x.cross.reshape(-1, 3 * frame), x.down_gram[:, *below]]) for x in (ours, theirs))
    for power in (1, 2):
        assert largest_z(ours**power, theirs**power) < 4.5
    products = ours[:, 0, None] * ours, theirs[:, 0, None] * theirs
    assert largest_z(*products) < 4.5
    square = np.asarray(first) ** 2
    assert abs(square.mean() - 3 * float(unstable_mode(problem).variance)) < 4.5 * square.std() / np.sqrt(20000)


def test_noise_that_modes_gather_has_the_covariance_of_the_linear_system():
    """The shifts of U and of the rows along the modes against the linear stochastic system, run step by step."""
    problem = committee(rank=1, lr_ratio=2.0, sgd=SGD(learning_rate=0.2, batch_size=20, dimension=1e4))
    modes, runs, eta, d = escape_modes(problem), 20000, 0.2, 1e4
    chi, kappa, theta = 2.0, float(problem.adapter.kappa), float(problem.sgd.noise_scale)
    root = np.linalg.cholesky(np.asarray(modes.gram))
    D, kick = np.asarray(modes.D), np.linalg.cholesky(np.asarray(modes.noise)) * np.sqrt(theta / d * eta) * chi * kappa
    rng, rate = np.random.default_rng(0), float(modes.rate)
    u, x = np.zeros((runs, 2)), rng.normal(size=(runs, 2)) / np.sqrt(d)
    steps = int(np.log(d) / 2 / rate / eta)
    for _ in range(steps):
        u, x = (
            u + eta * chi * kappa * (x @ root.T - kappa * u @ D) + rng.normal(size=(runs, 2)) @ kick.T,
            x + eta * kappa * u @ root,
        )
    left = np.concatenate([np.asarray(modes.up[0]), chi * np.asarray(modes.cross[0])])
    left /= left @ np.concatenate([np.asarray(modes.up[0]), np.asarray(modes.cross[0])])
    amplitude = np.concatenate([u, x], axis=1) @ left / (1 + eta * rate) ** steps
    variance, error = amplitude.var(), amplitude.var() * np.sqrt(2 / runs)
    late = (1 + eta * rate) ** (-2 * steps)  # what would have come later
    expected = float(unstable_mode(problem).variance)
    assert abs(variance - expected) < 4.5 * error + late * expected


def test_the_law_of_several_units_against_a_known_run():
    """erf, K = P = 2, rank 2: 200 seeds of the exact chain take 118.5 +- 1.1 and scatter by 14.9 +- 0.75."""
    law = escape_law(committee())
    assert law.doubt == ""
    assert abs(float(law.mean) - 118.5) < 4 * 1.1 and abs(float(law.std) - 14.9) < 4 * 0.75
    assert float(law.mean_error) < 0.5


def test_goals_of_several_units():
    problem = committee()
    times = [float(escape_law(problem, Escape("overlap", 0.3, unit), starts=16).mean) for unit in (1, 2)]
    assert all(np.isfinite(times))
    swapped = committee(pretrained=[[0.05, 0.5], [0.45, 0.03]])
    assert float(escape_law(swapped, Escape("overlap", 0.3, 2), starts=16).mean) == pytest.approx(times[0], rel=1e-6)
    met = escape_law(problem, Escape("absolute", 10.0))
    assert Validity(int(met.validity)) == Validity.holds and float(met.mean) == 0


@pytest.mark.parametrize(
    "problem, message",
    [
        (Problem.committee("erf", pretrained=[0.0, 0.0], trains="weights"), "pretrained weights"),
        (Problem.full_weights("erf"), "pretrained"),
        (committee(sgd=SGD(readout_lr_ratio=1.0)), "readouts at rest"),
    ],
)
def test_problems_without_a_search_are_refused(problem, message):
    with pytest.raises(ArgumentError, match=message):
        escape_modes(problem)
