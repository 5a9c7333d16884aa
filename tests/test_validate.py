"""`validate`: its statistics, its settings, that it agrees with itself, and that a wrong theory is caught."""

import dataclasses
import importlib
import json

import equinox as eqx
import jax
import numpy as np
import pytest
from scipy import stats

from odes import SGD, Adapter, Escape, Problem
from validation.checks.kinds import CHECKS, QUICK, Case, Check, Note, _slope, z_limit
from validation.cli.commands.validate import SHIPPED, case_of, read_settings
from validation.cli.main import main

EFFORT = dataclasses.replace(QUICK, trajectory_seeds=12, law_seeds=150, sweep_seeds=60, approach=(1e3, 1e4), ranks=(4,))


def problem(theta=4.0, rank=1, d=2e3, alignment=0.6):
    sgd = SGD(dimension=d, batch_size=np.inf if theta == 0 else 0.05 * d / theta, learning_rate=0.05)
    return Problem.single_index("erf", strength=0.5, alignment=alignment, adapter=Adapter(rank), sgd=sgd)


def verdict(kind, simulated, theory):
    results = list(CHECKS[kind](Case("test", simulated, theory, EFFORT, jax.random.key(1))))
    return all(isinstance(x, Check) and x.agrees(z_limit(len(results))) for x in results)


@pytest.mark.parametrize("kind", ["trajectory", "law", pytest.param("approach", marks=pytest.mark.slow)])
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
        pytest.param("approach", problem(alignment=0.7), marks=pytest.mark.slow),
    ],
)
def test_wrong_theory_is_caught(kind, wrong):
    assert not verdict(kind, problem(), wrong)


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
    """The curvature D enters the flow with the wrong sign."""
    module = importlib.import_module("odes.equations")
    right = module.gradient_of

    def wrong(*args):
        gradient = right(*args)
        return eqx.tree_at(lambda g: g.D, gradient, -gradient.D)

    monkeypatch.setattr(module, "gradient_of", wrong)
    jax.clear_caches()
    try:
        assert not verdict("trajectory", problem(), problem())
    finally:
        jax.clear_caches()


def test_plateau_is_noted_not_checked():
    plateau = Problem.single_index("He2", strength=0.3, sgd=SGD(dimension=2e3, batch_size=np.inf, learning_rate=0.01))
    (note,) = CHECKS["law"](Case("test", plateau, plateau, EFFORT, jax.random.key(0)))
    assert isinstance(note, Note) and "plateau" in note.reason


def test_false_alarm_rate():
    """4000 reports of 50 right checks each at 20 times the false alarm rate that is claimed for one."""
    rng = np.random.default_rng(0)
    limit = stats.norm.isf(0.02 / 100)
    alarms = np.mean(np.abs(rng.normal(size=(4000, 50))).max(axis=1) > limit)
    assert abs(alarms - 0.02) < 4 * np.sqrt(0.02 / 4000)
    np.testing.assert_allclose(2 * 50 * stats.norm.sf(z_limit(50)), 1e-3)


def test_slope_is_weighted_least_squares():
    x, y, errors = np.array([0.0, 1, 2, 5]), np.array([1.0, 2.9, 5.2, 11.1]), np.array([0.1, 0.2, 0.1, 0.3])
    (slope, constant), covariance = np.polyfit(x, y, 1, w=1 / errors, cov="unscaled")
    np.testing.assert_allclose(_slope(x, y, errors), [slope, np.sqrt(covariance[0, 0]), constant], rtol=1e-10)


def test_shipped_settings_cover_the_links_and_are_sound():
    settings = read_settings(SHIPPED)
    cases = [case_of(setting, QUICK, jax.random.key(0)) for setting in settings]
    names = {case.problem.student.name for case in cases}
    assert names >= {"linear", "relu", "erf", "sigmoid", "tanh", "He2", "He3"}
    assert len({setting["name"] for setting in settings}) == len(settings)
    assert {kind for setting in settings for kind in setting["checks"]} == set(CHECKS)
    assert {kind for setting in settings for kind in setting.get("quick", ())} == set(CHECKS)


def test_command_reports_and_draws(capsys, tmp_path):
    words = "validate --activation linear --mixture 0.5 --checks law --json --seed 1".split()
    assert main([*words, "--plot", str(tmp_path / "v.png"), "--output", str(tmp_path / "v.nc")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["agrees"] and {"name", "theory", "simulation", "standard_error", "z"} <= set(result["checks"][0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.nc", "v.png"]


def test_disagreement_is_exit_code_one(capsys, tmp_path):
    """A learning rate far too large for a theory of first order in it."""
    settings = tmp_path / "own.toml"
    settings.write_text(
        '[[setting]]\nactivation = "He3"\nmixture = 0.5\nlearning_rate = 0.03\nnoise_scale = 0.005\nquick = ["trajectory"]'
    )
    assert main(["validate", "--settings", str(settings)]) == 1
    assert "NO AGREEMENT" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, text, message",
    [
        ("--quick --full", None, "--quick and --full exclude each other"),
        ("--checks lw", None, "--checks takes trajectory, law"),
        ("--noise-scale -1", None, "--noise-scale must be non-negative"),
        ("--settings none.toml", None, "none.toml"),
        ("--settings {}", "[[setting]]\nactivaton = 'erf'", "unknown key 'activaton'; did you mean 'activation'?"),
        ("--settings {}", "[[setting]]\nstrength = -1", "--strength must be positive"),
        ("--settings {}", "[[setting]]\nrank = 'two'", "rank"),
        ("--settings {}", "[[setting", "cannot be read"),
        ("--settings {}", "x = 1", "has no [[setting]]"),
    ],
)
def test_bad_input_is_one_line(capsys, tmp_path, words, text, message):
    path = tmp_path / "own.toml"
    if text is not None:
        path.write_text(text)
    code = main(["validate", *words.format(path).split()])
    error = capsys.readouterr().err
    assert code == 2 and message in error and error.count("\n") == 1
