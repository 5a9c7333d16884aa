"""Simulated trajectories against the equations from the same starts."""

import equinox as eqx
import jax.numpy as jnp

from odes import Escape
from tests.problems import single
from validation.checks import compare
from validation.simulation import even_steps, simulate_direct


def test_simulation_agrees_with_the_ode(key):
    """erf, aligned 1/2, d = 400, 24 seeds: overlaps within 4 standard errors of the ODE from the same starts at all times."""
    run = simulate_direct(
        single(d=400, batch=200), key=key, seeds=24, steps=even_steps(250.0, 0.2, 10), escape=Escape()
    )
    comparison = compare(run)
    for name in ("target_overlap", "m", "u"):
        assert float(jnp.abs(comparison.z[name]).max()) < 4
    times = run.escape_times
    assert 0.5 < float(jnp.isfinite(times).mean()) <= 1 and float(jnp.nanmin(times)) > 20
    wrong = compare(eqx.tree_at(lambda s: s.problem, run, single(d=400, batch=200, strength=0.55)))
    assert float(jnp.abs(wrong.z["target_overlap"]).max()) > 6
