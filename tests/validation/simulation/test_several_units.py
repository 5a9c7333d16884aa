"""Simulators of several units against the flow, from the same starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odes import SGD, Adapter, Overlaps, Problem, Stage, Transfer, losses, solve, solve_stages
from tests.helpers import TOO_SMALL, features, smallest_p
from tests.problems import three_on_one, two_by_two
from validation.figures.work import at_dimension
from validation.simulation import chain_simulator, direct_simulator, mean_and_error, simulate, simulate_stages

CASES = {
    link: Problem.committee(
        link,
        pretrained=[[0.5, 0.1], [0.0, 0.6]],
        readout="1/sqrt(n)",
        teacher_readout="1/sqrt(n)",
        adapter=Adapter(2),
        sgd=SGD(dimension=2e4, batch_size=2000, learning_rate=0.1 if link != "He2" else 0.02, label_noise=0.05),
    )
    for link in ("erf", "tanh", "relu", "He2")
} | {"three units on one, readouts": three_on_one(d=2e4, batch=2000, rank=2, label_noise=0.05)}


def deviation(make, problem, seeds, key):
    """The loss of the simulator less that of the flow at ten times: the mean over seeds and its standard error.

    From overlaps that do not vanish with the dimension: from random ones SGD noise is as large as the start, at any d.
    """
    steps = np.arange(0, 201, 20)
    rank, frame = problem.adapter.rank, problem.frame_size
    cross = 0.3 * np.array([[1.0, 0.5], [-0.4, 1.0]])[:, :frame]
    start = Overlaps(jnp.full((problem.units[0], rank), 0.3), jnp.asarray(cross), jnp.eye(rank))
    run = simulate(make(problem, start=start, dtype="float64"), key=key, seeds=seeds, steps=steps)
    times = np.asarray(run.t)

    @jax.jit
    @jax.vmap
    def followed(start):
        return solve(problem, start, t1=times[-1], times=times, finite_steps=True, rtol=1e-7).overlaps

    simulated, predicted = (np.asarray(losses(problem, overlaps)) for overlaps in (run.overlaps, followed(run.start)))
    assert np.abs(predicted[:, -1] - predicted[:, 0]).mean() > 0.02 * predicted[:, 0].mean()
    mean, error = mean_and_error(simulated - predicted)
    return mean[1:], error[1:]


@pytest.mark.slow
@pytest.mark.parametrize("make, dimension", [(chain_simulator, 2e4), (direct_simulator, 2e3)])
@pytest.mark.parametrize("case", CASES)
def test_simulators_follow_the_flow_but_for_an_excess_that_vanishes_with_the_dimension(case, make, dimension, key):
    """Fluctuations of order 1/d lift the loss: a quarter of that at a quarter of the dimension is taken off."""
    seeds = 24 if case == "tanh" else 64
    (mean, error), (small, small_error) = (
        deviation(make, at_dimension(CASES[case], d), seeds, k)
        for d, k in zip((dimension, dimension / 4), jax.random.split(key), strict=True)
    )
    z = (mean - small / 4) / np.hypot(error, small_error / 4)
    assert np.sqrt(np.mean(z**2)) < 2.5 and np.abs(z).max() < 4.5


@pytest.mark.slow
@pytest.mark.parametrize("problem", [two_by_two(500), three_on_one(d=500, batch=8)], ids=["two", "three, readouts"])
def test_chain_and_direct_simulator_have_the_same_law_at_500_dimensions(problem, key):
    keys = jax.random.split(key)
    runs = [
        simulate(some(problem, up=0.8, dtype="float64"), key=k, seeds=1500, steps=[0, 1, 60])
        for some, k in zip((direct_simulator, chain_simulator), keys, strict=True)
    ]
    for record in (1, 2):
        assert smallest_p(*(features(run, record) for run in runs)) > TOO_SMALL


def test_readouts_that_rest_first_and_are_trained_later(key):
    """Stages of several units, escape relative to each seed's start of the last; the mean follows the flow."""
    still = SGD(dimension=500, batch_size=500, learning_rate=0.1)
    transfer = Transfer(
        "erf", cosine=0.6, units=2, teachers=2, sgd=still.replace(readout_lr_ratio=0.5), pretraining_sgd=still
    )
    start = transfer.random_start(key)
    stages = [Stage("weights", transfer.pretraining, 4.0), Stage("adapter", transfer.lora, 4.0)]
    theory = solve_stages(stages, start, records=2, finite_steps=True)
    for simulator in (chain_simulator, direct_simulator):
        first, last = simulate_stages(
            stages, lambda problem, _, make=simulator: make(problem, start=start), key=key, seeds=32, records=[1, 1]
        )
        np.testing.assert_array_equal(first.readout, 1)
        mean, error = mean_and_error(last.readout[:, -1])
        assert np.all(np.abs(mean - theory.final.readout) < 4 * error + 2e-3)
        assert np.abs(mean - 1).max() > 0.01
