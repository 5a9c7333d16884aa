"""The direct simulator: its start, reproducibility, what is recorded, bad arguments."""

import jax.numpy as jnp
import numpy as np
import pytest

from odes import SGD, Problem, gradient_at, random_overlaps
from tests.helpers import at, close
from tests.problems import single
from validation.simulation import direct_simulator, simulate_direct

PROBLEM = single(d=100, batch=40, strength=0.4)


def test_start_has_the_given_overlaps(key):
    problem = single(d=9, batch=5, strength=0.6, alignment=0.4, rank=2)
    start = random_overlaps(problem, key, up=0.3)
    simulator = direct_simulator(problem, start=start, dtype="float64")
    F = simulator.directions
    np.testing.assert_allclose(F @ F.T, problem.frame_gram, atol=1e-14)
    close(simulator.overlaps(simulator.start(key)), start, rtol=1e-7, atol=1e-14)


def test_records_and_length_do_not_change_the_run(key):
    once = simulate_direct(PROBLEM, key=key, seeds=3, steps=[0, 40], dtype="float64")
    often = simulate_direct(PROBLEM, key=key, seeds=3, steps=[0, 7, 20, 40, 60], dtype="float64")
    np.testing.assert_array_equal(once.overlaps.cross[:, -1], often.overlaps.cross[:, 3])
    more = simulate_direct(PROBLEM, key=key, seeds=5, steps=[0, 40], dtype="float64")
    assert not np.allclose(more.m[0], more.m[1])
    rounded = simulate_direct(PROBLEM, key=key, seeds=3, steps=[0, 40], dtype="float32")
    np.testing.assert_allclose(once.t, [0, 8])
    assert rounded.dtype == "float32" and rounded.m.dtype == jnp.float64


def test_shared_start_differs_by_data_alone(key):
    run = simulate_direct(PROBLEM, key=key, seeds=3, steps=[0, 30], shared_start=True, dtype="float64")
    np.testing.assert_array_equal(run.m[0, 0], run.m[2, 0])
    assert not np.allclose(run.m[0, 1], run.m[2, 1])


def test_loss_is_that_of_the_realised_overlaps(key):
    problem = single(d=100, batch=40, strength=0.4, rank=2)
    run = simulate_direct(problem, key=key, seeds=2, steps=[0, 50], dtype="float64")
    state = at(run.overlaps, 1, 1)
    np.testing.assert_allclose(run.loss[1, 1], gradient_at(problem, state).loss, rtol=1e-12)
    np.testing.assert_allclose(jnp.diagonal(state.down_gram), 1, rtol=1e-12)


@pytest.mark.parametrize(
    "sgd, steps, message",
    [
        (dict(batch_size=np.inf), [0, 1], "`batch_size` must be a whole number"),
        (dict(dimension=10.5), [0, 1], "`dimension` must be a whole number"),
        (dict(dimension=2), [0, 1], "`dimension` must be at least 3"),
        ({}, [5, 5], "`steps` must be a list of increasing whole numbers"),
        ({}, [-1, 5], "`steps` must be a list of increasing whole numbers"),
    ],
)
def test_bad_arguments_are_named(sgd, steps, message, key):
    problem = Problem.single_index("erf", strength=0.5, sgd=SGD(**sgd))
    with pytest.raises(ValueError, match=message):
        simulate_direct(problem, key=key, seeds=2, steps=steps)
