"""Settings drawn at random: what they cover, what is made of them, and that a wrong theory is found out."""

import dataclasses

import jax
import pytest

from odes import Escape
from tests.problems import single
from theory import remedies
from validation.checks import QUICK, Check
from validation.checks.attack import Attempt, Tally, Trial, affordable, shrunk
from validation.checks.confirm import confirmed_remedy
from validation.checks.drawn import drawn
from validation.checks.settings import SHIPPED, Setting, plan, read_settings

HARD = SHIPPED.with_name("hard.toml")


def test_settings_drawn_with_a_seed_are_the_same_and_cover_the_input_space():
    settings = [drawn(5, 7 * number) for number in range(60)]
    assert settings[7] == drawn(5, 49) != drawn(6, 49) and drawn(-1, 0) == drawn(-1, 0)
    first, second = settings[0], drawn(5, 1)
    assert (first.activation, first.rank, first.criterion) == (second.activation, second.rank, second.criterion)
    assert first.strength != second.strength and {"law", "noise-limit"} == set(second.checks)
    assert {1, 32} <= {setting.rank for setting in settings}
    assert {-1.0, 0.0, 1.0} <= {setting.alignment for setting in settings}
    assert {"loss", "overlap", "absolute"} == {setting.criterion for setting in settings}
    assert any(setting.teacher for setting in settings) and any(setting.free_rows for setting in settings)
    for setting in settings:
        problem = setting.case(QUICK, jax.random.key(0)).problem
        assert problem.sgd.batch_size >= 1 and 50 <= problem.sgd.dimension <= 1e6


EASY = Setting(name="easy", mixture=0.5, rank=2, label_noise=0.01, learning_rate=0.2, dim=2e4, checks=("law",))
FEW = dataclasses.replace(QUICK, law_seeds=100)


def test_an_attempt_checks_what_is_claimed_and_counts_what_is_not():
    attempt = Trial(FEW, 0, 1, EASY).run()
    names = {check.name for check in attempt.results}
    assert attempt.doubt == "" and attempt.escaped == 1 and not attempt.missed
    assert {"escape time, mean", "escape time, std", "fine-tuning time, mean"} <= names
    small = Trial(FEW, 0, 1, dataclasses.replace(EASY, dim=60.0)).run()
    assert small.doubt == "fluctuations" and small.missed and not small.results
    tally = Tally([attempt, small])
    assert all(check.agrees(4.5) for check in attempt.results)
    assert tally.escaping == 2 and tally.refused == 0.5
    assert [(row["law"], row["settings"]) for row in tally.reasons] == [("given", 1), ("fluctuations", 1)]


def test_a_disagreement_is_shrunk_to_the_simplest_setting(monkeypatch):
    """A trial that disagrees as long as there is label noise keeps that and loses everything else."""

    def run(trial: Trial) -> Attempt:
        setting = trial.setting
        assert setting is not None
        z = 10.0 if setting.label_noise else 0.0
        return Attempt(trial.number, setting, "", 1.0, (Check(setting.name, "mean", 1.0, 2.0, 0.1, z, 0.0, 1e4),))

    monkeypatch.setattr(Trial, "run", run)
    trial = Trial(FEW, 0, 0, dataclasses.replace(EASY, mixture=None, criterion="overlap", free_rows=True))
    assert trial.setting is not None
    (check,) = trial.run().results
    simplest = shrunk(trial, trial.setting, check, 4.0)
    assert (simplest.label_noise, simplest.rank, simplest.noise_scale, simplest.criterion) == (0.01, 1, 0.0, "loss")
    assert simplest.command.startswith("searchphase validate ") and simplest.command.endswith("--checks law")
    assert "--label-noise 0.01" in simplest.command
    assert "--rank" not in simplest.command and "--free-rows" not in simplest.command


def test_a_wrong_law_is_found_out(monkeypatch):
    """The law without SGD noise, compared with a chain that has it."""
    from validation.checks import attack as module

    right = module.escape_law
    monkeypatch.setattr(module, "escape_law", lambda problem, *rest: right(problem.replace(noise_scale=0.0), *rest))
    attempt = Trial(FEW, 0, 2, dataclasses.replace(EASY, noise_scale=12.0)).run()
    assert not all(check.agrees(4.0) for check in attempt.results)


REFUSED = {
    "relu, rank 4, theta 6.7",
    "relu, shaken",
    "He2, free rows",
    "He2 with loud labels, D < 0",
    "He4, growth in few steps",
    "He4 learns a line, eta times the rate is 1",
}
"""Settings of the file whose law is not given."""


@pytest.mark.slow
def test_the_law_where_it_was_once_wrong():
    """Every setting of the file against the exact chain, where it is not refused."""
    settings = read_settings(HARD)
    results = [result for job in plan(settings, QUICK, 0, full=False) for result in job.run(lambda _: None)]
    checks = [result for result in results if isinstance(result, Check)]
    laws = {setting.name for setting in settings if setting.checks == ("law",)}
    assert {result.setting for result in results if not isinstance(result, Check)} & laws == REFUSED
    assert len([check for check in checks if check.setting in laws]) >= 4 * len(laws - REFUSED)
    assert [check for check in checks if not check.agrees(4.5)] == []


def test_averages_over_nodes_are_no_bargain():
    """Steps of large batches cost little where averages are formulas, and too much where they are sums over nodes."""
    for link, simulated in (("erf", True), ("erf^2", False)):
        setting = dataclasses.replace(EASY, activation=link, noise_scale=0.01, mixture=None, strength=0.5)
        case = setting.case(dataclasses.replace(QUICK, samples=1e6), jax.random.key(0))
        assert affordable(case, 1000.0, 200) is simulated


def test_an_error_of_the_program_is_a_check_that_disagrees(monkeypatch):
    monkeypatch.setattr(Setting, "case", lambda *_: 1 / 0)
    attempt = Trial(FEW, 0, 1, EASY).run()
    (crash,) = attempt.results
    assert attempt.doubt == "error" and crash.name == "no ZeroDivisionError: division by zero"
    assert not crash.agrees(1e9)


def test_a_remedy_of_weights_that_meet_the_goal_takes_no_samples():
    problem, goal = single(strength=0.5, batch=500), Escape("absolute", 1.0)
    remedy = next(iter(remedies(problem, goal, ways=())))
    assert remedy.samples == 0
    found = confirmed_remedy(remedy, goal, seeds=3, key=jax.random.key(0))
    assert found["chain_samples"] == 0 and found["reached"] == 3


def test_numbers_without_error_agree_if_they_are_equal():
    case = EASY.case(FEW, jax.random.key(0))
    assert case.check("same", 0.0, 0.0, 0.0).agrees(1.0)
    assert not case.check("other", 0.0, 1e-9, 0.0).agrees(1e9)
