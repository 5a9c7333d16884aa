"""Checks of several units: right theory agrees, wrong theory is caught."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odes.equations
import theory.law
from odes import SGD, Adapter, Escape, Problem, Transfer, noise_of
from theory import escape_law, random_start
from validation.checks import CHECKS, QUICK, Case, Check, z_limit
from validation.checks.law import horizon, law_against

EFFORT = dataclasses.replace(QUICK, trajectory_seeds=12, law_seeds=100, law_dimension=2e4)
TURNED = ((0.5, 0.3), (-0.3, 0.4))
"""Rows whose second search is a fifth as fast as the first."""


def committee(link, rows=((0.5, 0.05), (0.03, 0.45))):
    """Two units near two teachers, at the noise scale 4. What a wrong theory compiles must be used by no other: every test has its link."""
    sgd = SGD(dimension=2e4, batch_size=250, learning_rate=0.05)
    return Problem.committee(link, pretrained=np.array(rows), adapter=Adapter(2), sgd=sgd)


def agrees(kind, problem):
    results = list(CHECKS[kind](Case("test", problem, problem, EFFORT, jax.random.key(1))))
    return all(isinstance(x, Check) and x.agrees(z_limit(len(results))) for x in results)


def diagonal(*args, **options):
    """N without the covariances between units."""
    return jnp.diag(jnp.diagonal(noise_of(*args, **options)))


def without(mode):
    """Random starts from which the part along a mode is taken, and all that SGD noise adds."""

    def start_without(problem, modes, normals):
        start, amplitude = random_start(problem, modes, normals)
        along = modes.cross[mode] / jnp.linalg.norm(modes.cross[mode])
        rows = start.cross @ jnp.linalg.pinv(problem.frame_gram) @ modes.span.T @ along
        cross = start.cross - jnp.outer(rows, along @ modes.span)
        return eqx.tree_at(lambda o: (o.cross, o.up), start, (cross, jnp.zeros_like(start.up))), amplitude

    return start_without


def test_noise_without_its_covariance_between_units_is_caught(monkeypatch):
    """N replaced by its diagonal in the flow; samples know nothing of it."""
    assert agrees("trajectory", committee("erf(1.01*x)"))
    monkeypatch.setattr(odes.equations, "noise_of", diagonal)
    assert not agrees("trajectory", committee("erf(1.02*x)"))


@pytest.mark.parametrize("link, dropped", [("erf(1.03*x)", False), ("erf(1.04*x)", True)])
def test_a_law_without_one_of_its_modes_is_caught(monkeypatch, link, dropped):
    """Starts from which the part along the fastest mode is taken."""
    if dropped:
        monkeypatch.setattr(theory.law, "random_start", without(0))
    assert agrees("law", committee(link, TURNED)) == (not dropped)


@pytest.mark.slow
def test_wrong_laws_of_two_searches_are_caught(monkeypatch):
    """Two modes of comparable rates, both of which the goal needs, and noise of one unit that is correlated with that of the other.

    The law with N replaced by its diagonal, and that of starts without the second mode, against the seeds with which the right law agrees.
    """
    turn = np.deg2rad(20)
    problem = committee("erf", ((np.cos(turn), np.sin(turn)), (-np.sin(turn), np.cos(turn))))
    case = Case("test", problem, problem, EFFORT, jax.random.key(1), Escape("loss", 0.2))
    right = escape_law(problem, case.escape)
    times = case.escape_times(EFFORT.law_seeds, horizon(case, right))

    def agreed(law):
        assert not law.doubt
        checks = list(law_against(case, law, times, EFFORT.law_seeds))
        return all(check.agrees(z_limit(len(checks))) for check in checks)

    assert agreed(right)
    for module, name, wrong in ((odes.equations, "noise_of", diagonal), (theory.law, "random_start", without(1))):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, wrong)
            jax.clear_caches()
            assert not agreed(escape_law(problem, case.escape))
        jax.clear_caches()


def in_stages(kind, simulated, theory):
    """Whether all checks of a pretraining and the fine-tuning after it agree, and how many there are."""
    effort = dataclasses.replace(EFFORT, trajectory_dimension=2e4)
    case = Case("test", simulated.lora, theory.lora, effort, jax.random.key(1), transfers=(simulated, theory))
    results = [some for some in CHECKS[kind](case) if isinstance(some, Check)]
    return all(some.agrees(z_limit(len(results))) for some in results), len(results)


def pretraining(cosines):
    sgd = SGD(dimension=2e4, batch_size=2000, learning_rate=0.05)
    return Transfer("erf", units=2, teachers=2, cosine=np.array(cosines), adapter=Adapter(2), sgd=sgd)


@pytest.mark.slow
def test_stages_agree_and_a_wrong_cosine_is_caught():
    right = pretraining([1.0, 0.3])
    assert in_stages("stages", right, right) == (True, 64)
    assert not in_stages("stages", right, pretraining([1.0, 0.32]))[0]


@pytest.mark.slow
def test_checkpoints_agree_and_a_wrong_cosine_is_caught():
    right = pretraining([1.0, 0.3])
    agrees, checks = in_stages("checkpoints", right, right)
    assert agrees and checks >= 2
    assert not in_stages("checkpoints", right, pretraining([1.0, 0.6]))[0]
