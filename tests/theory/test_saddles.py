"""Saddles: Saad and Solla's symmetric plateau, the search phase, and plateaus that a trajectory only passes by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odes import SGD, Adapter, Problem, flow, frame_overlaps, pretrained, random_overlaps, solve
from odes.arguments import ArgumentError
from theory import escape_modes, escape_spectrum, fixed_point, plateau, saddles


def soft_committee(units: int, dimension: float = 1e6) -> Problem:
    sgd = SGD(batch_size=np.inf, dimension=dimension)
    return Problem.committee("erf(x/sqrt(2))", pretrained=np.zeros(units), trains="weights", sgd=sgd)


def specialising(units: int, asymmetry: float):
    """A run from nearly equal units that is symmetric but for the part that tells the teachers apart."""
    problem, t1 = soft_committee(units), 60 * units + 400.0
    rows = np.full((units, units), 0.01) + asymmetry * (np.eye(units) - 1 / units)
    start = frame_overlaps(problem, up=np.eye(units), rows=rows)
    return solve(problem, start, t1=t1, times=np.linspace(0, t1, 801), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("units", [2, 3, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 5))])
def test_the_symmetric_plateau_of_saad_and_solla(units):
    """Loss, overlaps and the escape rate with its multiplicity, for K = M (Saad & Solla 1995)."""
    (saddle,) = saddles(specialising(units, 1e-9))
    K = units
    np.testing.assert_allclose(saddle.rates, [2 * K / (np.pi * np.sqrt(2 * K - 1) * (2 * K + 1) ** 1.5)], rtol=1e-8)
    assert saddle.multiplicities == ((K - 1) ** 2,)
    np.testing.assert_allclose(saddle.loss, K / np.pi * (np.pi / 6 - K * np.arcsin(1 / (2 * K))), rtol=1e-10)
    np.testing.assert_allclose(saddle.covariances.Q, 1 / (2 * K - 1), rtol=1e-7)
    np.testing.assert_allclose(saddle.covariances.M, 1 / np.sqrt(K * (2 * K - 1)), rtol=1e-7)


def test_the_residence_time_is_that_of_the_linear_flow_and_grows_with_the_logarithm():
    runs = [saddles(specialising(2, asymmetry), radius=0.05)[0] for asymmetry in (1e-4, 1e-7, 1e-10)]
    for saddle in runs:
        assert saddle.residence == pytest.approx(saddle.predicted, rel=0.1)
        assert saddle.share == pytest.approx(saddle.residence / 520)
        assert saddle.entered < saddle.closest < saddle.left
    grown = np.diff([saddle.left for saddle in runs]) * runs[0].rates[0] / np.log(1e3)
    np.testing.assert_allclose(grown, 1, rtol=2e-3)
    assert runs[2].log_slope == pytest.approx(1 / (2 * 0.06574980736655998), rel=1e-7)


def test_the_search_phase_is_the_first_saddle_of_an_adapter():
    problem = Problem.committee(
        "erf", pretrained=[[0.5, 0.05], [0.03, 0.45]], adapter=Adapter(1), sgd=SGD(batch_size=np.inf, dimension=1e6)
    )
    solution = solve(problem, random_overlaps(problem, jax.random.key(1)), t1=400.0, times=np.linspace(0, 400.0, 801))
    first = saddles(solution)[0]
    rates = np.asarray(escape_modes(problem).rates)
    assert first.entered == 0
    np.testing.assert_allclose(first.rates, rates[rates > 0], rtol=1e-4)
    np.testing.assert_allclose(first.loss, escape_modes(problem).loss, rtol=1e-8)


def test_a_plateau_of_negative_curvature_is_a_saddle():
    """He2 without alignment: U settles before any overlap grows; the saddle is the plateau of `theory.plateau`."""
    problem = Problem.single_index("He2", strength=0.3, alignment=0.0, sgd=SGD(batch_size=np.inf, dimension=1e8))
    known = plateau(problem)
    guess = pretrained(problem)
    guess = type(guess)(jnp.full((1, 1), known.up), guess.cross, guess.down_gram)
    found = fixed_point(problem, guess)
    assert found is not None
    assert float(found.up[0, 0]) == pytest.approx(float(known.up), rel=1e-6)
    values, _ = escape_spectrum(problem, found)
    assert float(np.real(values[0])) == pytest.approx(float(known.rate), rel=1e-6)


def test_fixed_points_keep_what_rests():
    problem = soft_committee(2)
    guess = frame_overlaps(problem, up=np.eye(2), rows=[[0.5, 0.4], [0.4, 0.5]])
    found = fixed_point(problem, guess)
    assert found is not None
    np.testing.assert_array_equal(found.up, np.eye(2))
    rate = flow(problem, found)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(rate)) < 1e-9


def test_bad_input():
    problem = soft_committee(2)
    start = frame_overlaps(problem, up=np.eye(2), rows=0.1 * np.eye(2))
    solution = solve(problem, start, t1=1.0, times=[0.0, 1.0])
    with pytest.raises(ArgumentError, match="three times"):
        saddles(solution)
    with pytest.raises(ArgumentError, match="radius"):
        saddles(solution, radius=0.0)
