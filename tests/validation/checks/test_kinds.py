"""The checks: right theory agrees, wrong theory is caught, and how often they cry wolf."""

import dataclasses

import equinox as eqx
import jax
import numpy as np
import pytest
from scipy import stats

import odes.equations
from odes import Activation, Escape
from tests.problems import single
from validation.checks import CHECKS, QUICK, Case, Check, Note, z_limit

EFFORT = dataclasses.replace(QUICK, trajectory_seeds=12, law_seeds=150, sweep_seeds=60, approach=(1e3, 1e4), ranks=(4,))


def problem(link="erf", *, theta=4.0, alignment=0.6, rank=1):
    return single(link, d=2e3, eta=0.05, theta=theta, alignment=alignment, rank=rank)


def verdict(kind, simulated, theory):
    results = list(CHECKS[kind](Case("test", simulated, theory, EFFORT, jax.random.key(1))))
    return all(isinstance(x, Check) and x.agrees(z_limit(len(results))) for x in results)


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("approach", "noise-limit", "remedies")]


@pytest.mark.parametrize("kind", ["trajectory", "law", "mean-step", *SLOW])
def test_right_theory_agrees(kind):
    assert verdict(kind, problem(), problem())


@pytest.mark.parametrize(
    "kind, wrong",
    [
        ("trajectory", problem(theta=0.0)),  # noise term off
        ("trajectory", problem(alignment=-0.6)),  # a sign flipped
        ("trajectory", problem(alignment=0.63)),
        ("law", problem(alignment=-0.6)),
        ("law", problem(rank=2)),  # degrees of freedom of the amplitude's chi law off by one
        ("mean-step", problem(theta=2.0)),
        pytest.param("approach", problem(alignment=0.7), marks=pytest.mark.slow),
        pytest.param("noise-limit", problem(alignment=0.9), marks=pytest.mark.slow),
    ],
)
def test_wrong_theory_is_caught(kind, wrong):
    assert not verdict(kind, problem(), wrong)


def test_a_chaotic_mean_step_is_compared_until_seeds_scatter():
    """Steps beyond what is stable: the mean of the seeds follows no equation once noise has grown."""
    wild = single("He2+0.5*He3", strength=0.0188, alignment=1.0, rank=4, d=4158, eta=0.0157, theta=0.008, lr_ratio=8.28)
    case = Case("test", wild, wild, EFFORT, jax.random.key(1), Escape("loss", 0.08))
    results = list(CHECKS["mean-step"](case))
    checks = [check for check in results if isinstance(check, Check)]
    assert checks and all(check.agrees(z_limit(len(checks))) for check in checks)
    assert any(isinstance(note, Note) and "scatter" in note.reason for note in results)


@pytest.mark.slow
def test_checkpoints_agree_and_a_wrong_cosine_is_caught():
    right, wrong = (single(d=2e4, eta=0.05, alignment=alignment) for alignment in (0.6, 0.5))
    assert verdict("checkpoints", right, right) and not verdict("checkpoints", right, wrong)


@pytest.mark.slow
def test_noise_off_is_caught_in_the_law():
    """Noise feeds the unstable mode as much as the start does; an early threshold sees that before the flow is slowed by it."""
    noisy, quiet = (problem(theta=theta, alignment=0.7) for theta in (6.0, 0.0))
    effort = dataclasses.replace(EFFORT, law_dimension=6e3)
    case = Case("test", noisy, quiet, effort, jax.random.key(1), Escape("loss", 0.9))
    checks = list(CHECKS["law"](case))
    assert not all(check.agrees(z_limit(len(checks))) for check in checks)
    right = list(CHECKS["law"](dataclasses.replace(case, theory=noisy)))
    assert all(check.agrees(z_limit(len(right))) for check in right)


def test_flipped_sign_in_the_flow_is_caught(monkeypatch):
    """The curvature D enters the flow with the wrong sign, for a link function that no other compiled program has."""
    right = odes.equations.gradient_of

    def wrong(*args):
        gradient = right(*args)
        return eqx.tree_at(lambda g: g.D, gradient, -gradient.D)

    own = problem(Activation.from_function(jax.scipy.special.erf, name="erf under a wrong sign"))
    monkeypatch.setattr(odes.equations, "gradient_of", wrong)
    assert not verdict("trajectory", own, own)


def test_a_law_that_is_refused_is_noted_not_checked():
    unstable = single("linear", d=2e3, eta=3.0, theta=0.0, strength=0.3)
    (note,) = CHECKS["law"](Case("test", unstable, unstable, EFFORT, jax.random.key(0)))
    assert isinstance(note, Note) and "does not escape" in note.reason


def test_false_alarm_rate():
    """4000 reports of 50 right checks each at 20 times the false alarm rate that is claimed for one."""
    rng = np.random.default_rng(0)
    limit = stats.norm.isf(0.02 / 100)
    alarms = np.mean(np.abs(rng.normal(size=(4000, 50))).max(axis=1) > limit)
    assert abs(alarms - 0.02) < 4 * np.sqrt(0.02 / 4000)
    np.testing.assert_allclose(2 * 50 * stats.norm.sf(z_limit(50)), 1e-3)
