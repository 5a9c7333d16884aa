"""Plateaus: fixed points of the flow, how it leaves them, and where there is none."""

import jax.numpy as jnp
import numpy as np

from odes import Overlaps, flow, solve
from tests.problems import single
from theory import plateau, search_phase, unstable_mode
from theory.trust import settling


def test_plateau_is_where_u_settles_without_alignment():
    """He2 with a short w0 orthogonal to the target: C = 0, so the plateau is a true fixed point of the flow."""
    problem = single("He2", theta=0.0, strength=1e-3, alignment=0.0)
    settled = plateau(problem)
    start = Overlaps(jnp.array([[1e-3]]), jnp.zeros((1, 2)), jnp.ones((1, 1)))
    final = solve(problem, start, t1=60.0).final
    np.testing.assert_allclose(abs(final.up[0, 0]), settled.up, rtol=1e-5)
    np.testing.assert_allclose(1e-3**2 + settled.up**2, 1 / 3, rtol=1e-10)  # D = 6 Q - 2 at M = 0
    assert abs(float(settled.drift)) < 1e-14
    # and the overlap leaves it at the stated rate
    nudged = Overlaps(jnp.reshape(settled.up, (1, 1)), jnp.array([[1e-6, 0.0]]), jnp.ones((1, 1)))
    t = jnp.array([3.0, 6.0])
    m = solve(problem, nudged, t1=6.0, times=t, rtol=1e-11, atol=1e-14).m[:, 0]
    np.testing.assert_allclose(jnp.log(m[1] / m[0]) / 3.0, settled.rate, rtol=1e-3)


def test_plateau_drift_is_the_speed_of_the_overlap():
    problem = single("He2", theta=0.0, strength=0.2, scale=1.5, lr_ratio=3.0)
    settled = plateau(problem)
    state = Overlaps(jnp.reshape(settled.up, (1, 1)), jnp.zeros((1, 2)), jnp.ones((1, 1)))
    change = flow(problem, state)
    np.testing.assert_allclose(change.up, 0, atol=1e-10)
    np.testing.assert_allclose(change.cross[0, 0], settled.drift, rtol=1e-10)


def test_no_plateau_where_d_is_positive():
    assert np.isnan(plateau(single("erf")).up)


def test_u_settles_where_the_first_steps_of_d_say():
    """D of He2 is linear in |w|^2 at fixed overlap with the target, so that its value at a short U tells where it vanishes."""
    problem = single("He2", strength=0.2, alignment=0.3, scale=1.5, lr_ratio=3.0)
    settled = settling(problem, search_phase(problem), unstable_mode(problem))
    np.testing.assert_allclose(settled, plateau(problem).up, rtol=1e-10)
    problem = single("erf")
    assert np.isinf(settling(problem, search_phase(problem), unstable_mode(problem)))
