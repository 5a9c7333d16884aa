"""Settings under attack: what theory claims there against the chain, how often it claims nothing, and where it is wrong at its simplest."""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from odes import programs
from odes.gaussian import has_closed_form
from theory import Validity, escape_law, fine_tuning
from validation.checks import CHECKS
from validation.checks.base import LAW_ACCURACY, MOST_STEPS, Case, Check, Effort
from validation.checks.drawn import ALIKE, drawn
from validation.checks.law import horizon, law_against
from validation.checks.settings import Setting
from validation.jobs.engine import Advanced
from validation.simulation.result import mean_and_error

_MOST_SAMPLES = 3e8
"""Settings in which the chain would need more samples for all seeds are not simulated."""

_AVERAGES = 30.0
"""So many samples cost as much as Gaussian averages instead of them, by closed formulas."""

_DEARER = 300.0
"""Sums over nodes cost so many times as much."""

_ESCAPING = 0.95


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What came out in a setting.

    `number` is that of the setting, `doubt` why the law is refused (a name of [`theory.Validity`][]), empty where it is given;
    `escaped` the fraction of the chain's runs that escape within the horizon, NaN where the chain would take too long; `results` the
    checks of what is claimed.
    """

    number: int
    setting: Setting
    doubt: str
    escaped: float
    results: tuple[Check, ...]

    @property
    def missed(self) -> bool:
        """Whether the law is refused although runs escape."""
        return bool(self.doubt) and self.escaped >= _ESCAPING


@dataclasses.dataclass(frozen=True)
class Trial:
    """One setting to be tried, the drawn one of that number unless given."""

    effort: Effort
    seed: int
    number: int
    setting: Setting | None = None

    def run(self) -> Attempt:
        """What the theory says of the setting, and what the chain does; an error of the program is a check that disagrees."""
        if self.number % ALIKE == 0:  # before there is no memory left for compiled programs
            jax.clear_caches()
            programs.forget()
        setting = drawn(self.seed, self.number) if self.setting is None else self.setting
        try:
            return self._attempt(setting)
        except Exception as error:
            crash = Check(
                setting.name, f"no {type(error).__name__}: {error}", 1.0, 0.0, math.nan, math.inf, 0.0, math.nan
            )
            return Attempt(self.number, setting, "error", math.nan, (crash,))

    def _attempt(self, setting: Setting) -> Attempt:
        effort = dataclasses.replace(self.effort, samples=_MOST_SAMPLES / self.effort.law_seeds)
        case = setting.case(effort, jax.random.fold_in(jax.random.key(self.seed), self.number))
        case = case.at(dimension=case.effort.law_dimension)
        law, tuning = escape_law(case.theory, case.escape), fine_tuning(case.theory, case.escape)
        doubt = Validity(int(law.validity)).name if law.doubt else ""
        seeds, end = case.effort.law_seeds, horizon(case, law)
        further = [result for kind in setting.checks if kind != "law" for result in CHECKS[kind](case)]
        checks = [result for result in further if isinstance(result, Check)]
        if not affordable(case, end, seeds):
            return Attempt(self.number, setting, doubt, math.nan, tuple(checks))
        times = case.escape_times(seeds, end)
        checks += [] if doubt else law_against(case, law, times, seeds)
        if bool(tuning.trusted) and doubt:
            checks.append(case.arrivals("fraction escaped, fine-tuning", times.size, seeds))
        if bool(tuning.trusted) and times.size == seeds and times.std() > 0:
            mean, error = mean_and_error(times)
            name = "fine-tuning time, mean"
            checks.append(case.check(name, tuning.time, mean, case.known(error), accuracy=LAW_ACCURACY, runs=seeds))
        return Attempt(self.number, setting, doubt, times.size / seeds, tuple(checks))


def affordable(case: Case, end: float, seeds: int) -> bool:
    """Whether the chain of so many seeds can be run to the time `end`."""
    batch, steps = float(case.problem.sgd.batch_size), end / float(case.problem.sgd.learning_rate)
    if case.effort.samples < batch * steps:
        batch = _AVERAGES * (1 if has_closed_form(case.problem.student, case.problem.teacher) else _DEARER)
    return bool(1 <= steps <= MOST_STEPS and steps * batch * seeds <= _MOST_SAMPLES)


@dataclasses.dataclass(frozen=True)
class Trials:
    """Settings that are tried one after the other, drawn so that what is compiled for one serves the next."""

    effort: Effort
    seed: int
    first: int
    size: int

    @property
    def name(self) -> str:
        """What they are called among the others."""
        return f"settings-{self.first}-to-{self.first + self.size - 1}"

    def run(self, advanced: Advanced) -> list[Attempt]:
        """What came out in each."""
        attempts = []
        for number in range(self.first, self.first + self.size):
            attempts.append(Trial(self.effort, self.seed, number).run())
            advanced(1)
        return attempts


def trials(effort: Effort, seed: int, count: int) -> list[Trials]:
    """The first `count` drawn settings."""
    return [Trials(effort, seed, first, min(ALIKE, count - first)) for first in range(0, count, ALIKE)]


_SIMPLER: tuple[dict[str, Any], ...] = (
    {"checks": ("law",)},
    {"label_noise": 0.0},
    {"teacher": None},
    {"free_rows": False},
    {"lr_ratio": 1.0, "scale": None},
    {"criterion": "loss", "threshold": 0.5},
    {"rank": 1, "scale": None},
    {"alignment": 1.0},
    {"noise_scale": 0.0},
)
"""Steps towards simpler settings."""


def shrunk(trial: Trial, setting: Setting, check: Check, limit: float) -> Setting:
    """The simplest setting found in which a check that disagrees in a trial's `setting` still does."""
    for changes in _SIMPLER:
        simpler = dataclasses.replace(setting, **changes)
        if simpler == setting:
            continue
        again = [some for some in dataclasses.replace(trial, setting=simpler).run().results if some.name == check.name]
        if again and not again[0].agrees(limit):
            setting = simpler
    return setting


@dataclasses.dataclass(frozen=True)
class Tally:
    """What came out in many settings."""

    attempts: Sequence[Attempt]

    @property
    def escaping(self) -> int:
        """In how many settings at least 95 % of the chain's runs escape."""
        return sum(attempt.escaped >= _ESCAPING for attempt in self.attempts)

    @property
    def refused(self) -> float:
        """The part of these in which the law is refused; NaN if there are none."""
        return sum(attempt.missed for attempt in self.attempts) / self.escaping if self.escaping else math.nan

    @property
    def reasons(self) -> list[dict[str, Any]]:
        """How often the law is given and refused for each reason, how often the chain was run, and how often it escapes."""
        rows, counts = [], Counter(attempt.doubt for attempt in self.attempts)
        for doubt, count in counts.most_common():
            ran = [some for some in self.attempts if some.doubt == doubt and np.isfinite(some.escaped)]
            escaping = sum(some.escaped >= _ESCAPING for some in ran)
            rows.append(
                {"law": doubt or "given", "settings": count, "simulated": len(ran), "95 % of runs escape": escaping}
            )
        return rows
