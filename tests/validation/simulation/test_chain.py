"""The chain has the law of d-dimensional SGD: two-sample tests against the direct simulator, and what they would notice."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from odes import Escape, Overlaps, random_overlaps
from tests.helpers import TOO_SMALL, close, features, largest_z, smallest_p
from tests.problems import SMALL, single
from validation.simulation import chain_simulator, direct_simulator, simulate
from validation.simulation.chain import frame_basis, normal_means, sampled_means, to_coordinates, to_overlaps

CASES = SMALL | {"d = 1000": single("relu", d=1000, batch=8, eta=0.5, strength=0.6, alignment=0.7, rank=2, noise=0.1)}


START = Overlaps(jnp.array([[0.8]]), jnp.array([[0.3, 0.3]]), jnp.ones((1, 1)))
"""Where runs begin that show how long the remainder is: from random starts they scatter more than it makes them differ."""


def pair(problem, seeds, steps, key, start=None, **kwargs):
    """Runs of both simulators from entries of U far from zero, so that every term of a step is seen, or from one start."""
    simulators = (
        simulator(problem, start=start, up=0.8, dtype="float64") for simulator in (direct_simulator, chain_simulator)
    )
    keys = jax.random.split(key)
    return [simulate(s, key=k, seeds=seeds, steps=steps, **kwargs) for s, k in zip(simulators, keys, strict=True)]


def wrong_chains(problem, **kwargs):
    """Runs of the chain whose remainder has 3 dimensions too many, and 3 too few, from START."""
    for extra in (3, -3):
        other = problem.replace(dimension=float(problem.sgd.dimension) + extra)
        yield simulate(chain_simulator(other, start=START, dtype="float64"), **kwargs)


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow if "1000" in c else ()) for c in CASES])
def test_law_after_one_and_after_many_steps(case, key):
    """KS tests of every overlap, the loss and random combinations: 6000 seeds at d = 20, 1500 at d = 1000."""
    problem = CASES[case]
    seeds = 6000 if problem.sgd.dimension < 100 else 1500
    direct, chain = pair(problem, seeds, [0, 1, 100], key)
    for record in range(3):
        assert smallest_p(features(direct, record), features(chain, record)) > TOO_SMALL


@pytest.mark.parametrize(
    "normalized, eta, steps, seeds", [(False, 2.0, 1, 6000), (True, 2.0, 1, 6000), (True, 0.3, 100, 3000)]
)
def test_wrong_degrees_of_freedom_are_noticed(normalized, eta, steps, seeds, key):
    """Noisy labels and a fixed U make the remainder's length matter; the right chain passes the same test."""
    problem = single(
        d=20, batch=20, eta=eta, strength=0.6, alignment=0.5, noise=1.0, lr_ratio=0.0, normalized=normalized
    )
    direct, chain = pair(problem, seeds, [0, steps], key, START)
    assert smallest_p(features(direct), features(chain)) > TOO_SMALL
    for wrong in wrong_chains(problem, key=key, seeds=seeds, steps=[0, steps]):
        assert smallest_p(features(direct), features(wrong)) < 1e-6


@pytest.mark.parametrize(
    "d, batch, eta, seeds", [(20, 10, 0.3, 5000), pytest.param(1000, 100, 0.1, 200, marks=pytest.mark.slow)]
)
def test_escape_times_have_the_same_law(d, batch, eta, seeds, key):
    """At d = 20 a remainder wrong by 3 dimensions is noticed."""
    problem = single("relu", d=d, batch=batch, eta=eta, strength=0.3, alignment=0.6, noise=0.5, lr_ratio=0.0)
    steps = np.arange(0, 60 / eta, 2).astype(int)
    watched = {"steps": steps, "escape": Escape(), "until_escape": True}

    def times(run):
        found = np.asarray(run.escape_times)
        assert np.isfinite(found).mean() > 0.9
        return np.nan_to_num(found, nan=1e3)

    direct, chain = map(times, pair(problem, seeds, key=key, start=START, **watched))
    assert stats.ks_2samp(direct, chain).pvalue > TOO_SMALL
    for wrong in wrong_chains(problem, key=key, seeds=seeds, **watched) if d == 20 else ():
        assert stats.ks_2samp(direct, times(wrong)).pvalue < 1e-6


@pytest.mark.parametrize("case", ["aligned", "not aligned, label noise", "rank 3", "two units"])
def test_coordinates_have_the_overlaps(case, key):
    problem = CASES[case]
    basis, overlaps = frame_basis(problem), random_overlaps(problem, key, up=0.3)
    again = to_overlaps(basis.rows, to_coordinates(basis.rows, overlaps))
    close(overlaps, again, rtol=1e-7, atol=1e-13)
    np.testing.assert_allclose(basis.rows @ basis.rows.T, problem.frame_gram, atol=1e-14)
    target = jnp.pad(basis.teacher, ((0, 0), (0, basis.rows.shape[1] - basis.teacher.shape[1])))
    np.testing.assert_allclose(problem.target @ basis.rows, target, atol=1e-14)


@pytest.mark.parametrize("case", ["aligned", "not aligned, label noise", "rank 3", "two units"])
def test_normal_batches_have_the_samples_mean_and_covariance(case, key):
    """2e6 samples' products with the preactivations against Price's theorem, within 4.5 standard errors."""
    problem, size, draws = CASES[case], 1000, 2000
    basis = frame_basis(problem)
    state = to_coordinates(basis.rows, random_overlaps(problem, key, up=0.5))
    down = jnp.concatenate([state.inside, state.outside], axis=1)
    rank = problem.adapter.rank
    student = jnp.pad(problem.frozen @ basis.rows, ((0, 0), (0, rank))) + problem.adapter.kappa * state.up @ down
    lengths = jnp.linalg.qr(student[:, basis.teacher.shape[1] :].T, mode="r").T
    noisy = bool(problem.sgd.label_noise > 0)
    keys = jax.random.split(key, draws)
    sampled = jax.jit(
        jax.vmap(
            lambda k: sampled_means(
                problem, basis, student, lengths, k, batch=size, noisy=noisy, dtype=jnp.dtype("float64")
            )
        )
    )(keys)
    large = eqx.tree_at(lambda p: p.sgd.batch_size, problem, jnp.asarray(float(size)))
    normal = jax.jit(
        jax.vmap(lambda k: normal_means(large, basis, to_overlaps(basis.rows, state), student, lengths, k))
    )(keys)
    one, two = (np.concatenate([x.teacher, x.student], axis=2).reshape(draws, -1) for x in (sampled, normal))
    assert largest_z(one, two) < 4.5
    assert largest_z(*(np.einsum("ni,nj->nij", x, x) for x in (one - one.mean(axis=0), two - two.mean(axis=0)))) < 4.5
    squares, expected = (np.einsum("nij,nkj->nik", x.root, x.root) for x in (sampled, normal))
    assert np.all(np.abs(squares.mean(axis=0) - expected[0]) < 4.5 * squares.std(axis=0) / np.sqrt(draws))


def test_given_start_is_kept_and_dimension_costs_nothing(key):
    start = Overlaps(jnp.array([[0.2]]), jnp.array([[0.3, 0.1]]), jnp.ones((1, 1)))
    problem = single(d=1e9, batch=1000, eta=1e-6, alignment=0.5, strength=0.7)
    run = simulate(chain_simulator(problem, start=start), key=key, seeds=3, steps=[0, 5])
    np.testing.assert_allclose(run.overlaps.cross[1, 0], start.cross, atol=1e-14)
    np.testing.assert_allclose(run.overlaps.down_gram[:, 1], 1, rtol=1e-12)
    assert not np.allclose(run.m[0, 1], run.m[1, 1], rtol=1e-9)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(d=2), "`dimension` must be at least 3"),
        (dict(batch=10.5), "`batch_size` must be a whole number"),
        (dict(batch=1e9), "`batch_size` must be at most 67108864"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        chain_simulator(single(**(dict(d=20, batch=4, eta=0.1, strength=0.6) | change)))
    with pytest.raises(ValueError, match="`readout_lr_ratio` must be 0 for normal batches"):
        chain_simulator(SMALL["three units on one, readouts"], normal_batches=True)
