"""Remedies: the search for the least samples."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from odes import SGD, Escape, Problem
from theory import Validity, fine_tuning, remedies
from theory.remedy import cheapest, with_noise_scale


def test_cheapest_finds_the_least_samples():
    """A quadratic in the logarithms whose minimum, (2, 30), is off every grid; not reached beyond 50."""

    def way(numbers):
        x, y = jnp.log(numbers)
        samples = 1 + (x - jnp.log(2.0)) ** 2 + 0.3 * (y - jnp.log(30.0)) ** 2
        return jnp.where(numbers[1] < 50, samples, jnp.nan), samples

    chosen, least = cheapest(way, ([0.1, 0.1], [100.0, 1000.0]), 8)
    np.testing.assert_allclose(chosen, [2, 30], rtol=2e-2)
    np.testing.assert_allclose(least, 1, rtol=1e-3)


@pytest.mark.slow
def test_best_noise_scale():
    """t/θ by the remedies' search against SciPy's minimisation; the other ways are no worse than their start."""
    sgd = SGD(learning_rate=0.05, batch_size=500, dimension=1e4)
    problem = Problem.single_index("erf", strength=0.7, sgd=sgd)
    found = {remedy.name: remedy for remedy in remedies(problem, ways=["noise", "lr-ratio", "full"])}

    @jax.jit
    def samples(log_theta):
        changed = with_noise_scale(problem, jnp.exp(log_theta))
        return fine_tuning(changed).time / jnp.exp(log_theta)

    best = optimize.minimize_scalar(lambda x: float(samples(jnp.asarray(x))), bounds=(3, 4.5), method="bounded")
    np.testing.assert_allclose(found["noise scale"].samples, best.fun, rtol=1e-3)
    assert found["lr ratio"].samples <= (1 + 1e-6) * found["noise scale"].samples
    assert found["full weights"].samples < found["noise scale"].samples < found["as given"].samples
    assert found["noise scale"].edge == ()


@pytest.mark.slow
def test_no_noise_scale_is_at_an_edge_where_the_goal_is_met():
    """Where nothing takes any time the first place that is looked at is as good as the best."""
    problem = Problem.single_index("erf", strength=0.9, sgd=SGD(dimension=1e3))
    (_, best) = remedies(problem, Escape("absolute", 1.0), ways=["noise"])
    assert best.samples == 0 and best.edge == ()


@pytest.mark.slow
def test_what_takes_no_mean_time_has_no_settings_but_a_reason():
    """A plateau comes first at every noise scale; weights that are trained themselves have none."""
    problem = Problem.single_index("He2", strength=0.5, alignment=0.3, sgd=SGD(dimension=200, learning_rate=0.05))
    given, *found, whole = remedies(problem, ways=["noise", "lr-ratio", "full"])
    assert [remedy.settings for remedy in found] == [{}, {}] and np.isnan([remedy.samples for remedy in found]).all()
    assert {remedy.doubt for remedy in (given, *found)} == {Validity.plateau.meaning}
    assert whole.settings and not whole.doubt and whole.samples > 0
