"""`validate`: its report, its settings."""

import json

import jax
import pytest

from tests.command_line import assert_refused, run
from validation.checks import CHECKS, QUICK, Check
from validation.checks.attack import Attempt
from validation.checks.drawn import ALIKE, drawn
from validation.checks.settings import SHIPPED, read_settings


def test_shipped_settings_cover_the_links_and_are_sound():
    settings = read_settings(SHIPPED)
    cases = [setting.case(QUICK, jax.random.key(0)) for setting in settings]
    names = {case.problem.student.name for case in cases}
    assert names >= {"linear", "relu", "erf", "sigmoid", "tanh", "He2", "He3"}
    assert len({setting.name for setting in settings}) == len(settings)
    assert {kind for setting in settings for kind in setting.checks} == set(CHECKS)
    slow = {"noise-limit", "checkpoints", "remedies"}
    assert {kind for setting in settings for kind in setting.quick} == set(CHECKS) - slow


def test_command_reports_and_draws(capsys, tmp_path):
    words = "validate --activation linear --mixture 0.5 --checks law --json --seed 1".split()
    code, out, _ = run(capsys, *words, "--plot", str(tmp_path / "v.png"), "--output", str(tmp_path / "v.nc"))
    result = json.loads(out)
    assert (
        code == 0
        and result["agrees"]
        and {"name", "theory", "simulation", "standard_error", "z"} <= set(result["checks"][0])
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.nc", "v.png"]


def test_disagreement_is_exit_code_one(capsys, tmp_path):
    """A learning rate far too large for a theory of first order in it."""
    settings = tmp_path / "own.toml"
    settings.write_text(
        '[[setting]]\nactivation = "He3"\nmixture = 0.5\nlearning_rate = 0.1\nnoise_scale = 0.005\nquick = ["trajectory"]'
    )
    code, out, _ = run(capsys, "validate", "--settings", str(settings))
    assert code == 1 and "NO AGREEMENT" in out


@pytest.mark.parametrize(
    "text, message",
    [
        ("[[setting]]\nactivaton = 'erf'", "unknown key 'activaton'; did you mean 'activation'?"),
        ("[[setting]]\nstrength = -1", "--strength must be positive"),
        ("[[setting]]\nrank = 'two'", "rank"),
        ("[[setting", "is no TOML file"),
        ("x = 1", "has no [[setting]]"),
        ("[[setting]]\nstrength = 0.5\nchecks = ['law']", "a list `quick`, which says what --quick checks"),
    ],
)
def test_bad_settings_are_refused(text, message, capsys, tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(text)
    assert_refused(capsys, ["validate", "--settings", str(path)], message)


def test_no_result_waits_for_a_slow_one_before_it_when_time_is_over(capsys, monkeypatch):
    from validation.cli.commands import validate

    def second_first(jobs, **_):
        check = Check("some setting", "mean", 1.0, 1.0, 0.1, 0.0, 0.0, 1e4)
        yield 1, [Attempt(ALIKE, drawn(0, ALIKE), "", 1.0, (check,))]
        raise AssertionError("more was asked for though time was over")

    monkeypatch.setattr(validate, "carry_out", second_first)
    code, out, _ = run(capsys, *f"validate --random {2 * ALIKE} --minutes 1e-9 --json".split())
    result = json.loads(out)
    assert code == 0 and result["settings"] == 1 and [check["name"] for check in result["checks"]] == ["mean"]
