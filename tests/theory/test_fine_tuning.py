"""The time of fine-tuning: the mean of the law, goals, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odes import Escape, Problem, gradient_at, pretrained
from tests.helpers import central_slopes
from tests.problems import PARAMETERS, of_parameters, single
from theory import Validity, escape_law, fine_tuning


@pytest.mark.parametrize("rank", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_time_of_fine_tuning_is_the_mean_of_the_law(rank):
    """Within 2 %, aligned and mixture at d = 1e5, at noise scales 1 and 4."""
    for batch in (2e4, 5e3):
        aligned = single(d=1e5, batch=batch, rank=rank)
        mixture = Problem.mixture("erf", mu=0.5, adapter=aligned.adapter, sgd=aligned.sgd)
        for problem in (aligned, mixture):
            law, tuning = escape_law(problem), fine_tuning(problem)
            assert law.doubt == "" and bool(tuning.trusted)
            np.testing.assert_allclose(tuning.time, law.mean, rtol=0.02)


def test_goals_that_are_met_and_goals_that_are_not():
    """An absolute goal met by w0 takes no time, even where nothing moves; half the loss of w0 is the escape itself."""
    aligned = {mu: single(d=1e5, strength=mu) for mu in (0.5, 0.9, 1.0)}
    loss = {mu: float(gradient_at(problem, pretrained(problem)).loss) for mu, problem in aligned.items()}
    absolute = Escape("absolute", loss[0.5] / 2)
    assert loss[1.0] < 1e-15 and loss[0.9] < loss[0.5] / 2
    assert float(fine_tuning(aligned[1.0], absolute).time) == float(fine_tuning(aligned[0.9], absolute).time) == 0
    escape = fine_tuning(aligned[0.5]).time
    np.testing.assert_allclose(fine_tuning(aligned[0.5], absolute).time, escape, rtol=1e-6)
    earlier = fine_tuning(aligned[0.5], Escape("absolute", 0.95 * loss[0.5])).time
    assert 0 < float(earlier) < float(escape)
    assert np.isnan(fine_tuning(aligned[1.0]).time) and not bool(fine_tuning(aligned[1.0]).trusted)


@pytest.mark.slow
def test_gradient_of_the_time_of_fine_tuning():
    """Against central differences with a relative step of 1e-3, whose own error is 2e-5."""
    point = jnp.array(list(PARAMETERS.values()))
    time = jax.jit(lambda values: fine_tuning(of_parameters(values)).time)
    exact = jax.grad(time)(point)
    np.testing.assert_allclose(exact, central_slopes(time, point), rtol=1e-4, err_msg=str(list(PARAMETERS)))
    assert float(np.abs(exact * point).min()) > 0.1


def test_time_of_fine_tuning_is_not_trusted_where_no_start_is_typical():
    """Where the split among the rows decides, a plateau comes first, the learning rate is too large, or the start."""
    split = single(strength=0.7, alignment=0.4, rank=4, d=4e3, eta=0.1, theta=4.0)
    for problem, reason in (
        (split, Validity.split),
        (single("He2", strength=0.3, alignment=-0.7, eta=0.01, theta=0.0), Validity.plateau),
        (single(strength=0.5, eta=4.0, rank=4, d=1e5), Validity.coarse),
        (single("relu", strength=0.05, rank=4, d=1e4), Validity.large_noise),
        (single("relu", strength=0.05, rank=4, d=1e4, theta=0.0), Validity.large_start),
    ):
        tuning = fine_tuning(problem, Escape("loss", 0.1))
        assert not bool(tuning.trusted) and int(tuning.validity) == reason


def test_rows_that_grow_with_the_noise_and_few_heavy_tailed_samples_are_refused():
    """Settings drawn at random in which half of the chains diverge where free rows are six times as long, or kurtosis decides."""
    grown = single("linear", strength=0.02155, alignment=-1.0, rank=3, normalized=False, d=795608, eta=0.3, theta=8.5)
    tuning = fine_tuning(grown, Escape("loss", 0.202))
    assert int(tuning.validity) == Validity.coarse
    assert bool(fine_tuning(grown.replace(noise_scale=0.5), Escape("loss", 0.202)).trusted)
    few = single("He4", strength=0.6406, alignment=-1.0, rank=8, scale=2.009, d=60, eta=0.00746, batch=1024)
    few, goal = few.replace(normalized=False), Escape("loss", 0.1286)
    assert int(escape_law(few, goal).validity) == Validity.heavy_tails
    assert int(escape_law(few.replace(batch_size=2**16), goal).validity) == Validity.holds


def test_time_0_is_trusted_only_where_w0_itself_meets_the_goal():
    """A goal a hair's breadth from w0, which the typical start has reached and many others have not."""
    problem = single(strength=0.3, alignment=0.5, d=400.0, theta=0.0, rank=4)
    tuning = fine_tuning(problem, Escape("loss", 0.9999))
    assert float(tuning.time) == 0 and int(tuning.validity) == Validity.large_start
    tuning = fine_tuning(problem, Escape("absolute", 10.0))
    assert float(tuning.time) == 0 and bool(tuning.trusted)


def test_more_rows_than_a_hundredth_of_the_dimension_have_no_typical_start():
    """The chain takes 1250 +- 8 at rank 32 in d = 1197, the typical start 1333: rows of random starts are not orthogonal."""
    problem = single(strength=1.31, rank=32, eta=0.1756, theta=0.0, d=1197)
    goal = Escape("loss", 0.64)
    assert Validity(int(fine_tuning(problem, goal).validity)) == Validity.large_start
    assert Validity(int(fine_tuning(problem.replace(dimension=1e5), goal).validity)) == Validity.holds


def test_an_escape_that_noise_delays_is_not_trusted():
    """The loss falls slowly where the rows have grown: the chain is 4.3 % late here, 1.0 % at four times the dimension."""
    adapter = dict(rank=16, normalized=False, scale=40.65, lr_ratio=1.4826)
    problem = single("linear", strength=0.18246, eta=0.03134, theta=8.816, d=44379, **adapter)
    goal = Escape("loss", 0.16521)
    assert Validity(int(fine_tuning(problem, goal).validity)) == Validity.fluctuations
    larger = problem.replace(dimension=4 * 44379, noise_scale=8.816)
    assert Validity(int(fine_tuning(larger, goal).validity)) == Validity.holds
