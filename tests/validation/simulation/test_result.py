"""The result of a simulation: escape times between records, its file, even steps."""

import jax.numpy as jnp
import numpy as np

from odes import Escape, Overlaps, load
from tests.problems import single
from validation.simulation import Simulation, even_steps, simulate_direct

PROBLEM = single(d=100, batch=40, strength=0.4)


def test_escape_times_are_located_between_records():
    u = jnp.array([[0.0, 0.2, 0.6], [0.0, 0.0, 0.0]])[..., None, None]
    cross = jnp.broadcast_to(jnp.array([1.0, 0.4]), (2, 3, 1, 2))
    run = Simulation(
        t=jnp.array([0.0, 1.0, 2.0]),
        overlaps=Overlaps(u, cross, jnp.ones((2, 3, 1, 1))),
        loss=jnp.ones((2, 3)),
        recorded=jnp.array([3, 3]),
        problem=PROBLEM,
        method="direct",
        dtype="float64",
    )
    times = run.escape_times(Escape("overlap", 0.5))  # |u| = 0.3, a quarter of the way from 0.2 to 0.6
    np.testing.assert_allclose(times[0], 1.25, rtol=1e-12)
    assert np.isnan(times[1])


def test_save_and_load(key, tmp_path):
    run = simulate_direct(PROBLEM, key=key, seeds=2, steps=[0, 5])
    run.save(tmp_path / "run.nc")
    np.testing.assert_array_equal(load(tmp_path / "run.nc").loss, run.loss)


def test_even_steps():
    assert even_steps(1.0, 0.1, 5).tolist() == [0, 2, 4, 6, 8, 10]
    assert even_steps(0.25, 0.1, 10).tolist() == [0, 1, 2, 3]
