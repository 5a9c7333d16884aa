r"""Settings drawn at random over the whole input space: what theory claims there against the chain, and how often it claims nothing.

The prior. Links: linear, He2, He3, He4, the sum He2 + He3/2, relu and erf; every fourth polynomial has another one as its
teacher (averages of other links are sums over thousands of nodes, minutes a setting: they are left to settings that are given).
Strength: log-uniform from 0.01 to 5. Alignment: 1 (a quarter), -1, 0, within 0.1 of 0 (a tenth each), else uniform. Rank: 1, 2, 3,
4, 8, 16 or 32; κ log-uniform from 1/4 to 4 and lr ratio from 1/4 to 16, each in half of the settings and else 1; a quarter
with free rows. Dimension: log-uniform from 50 to a million. Learning rate: log-uniform from 0.01 to 1.5 of the time of the
fastest process at w0, so that it also passes what is stable. Noise scale: 0 in a tenth, else log-uniform from 0.01 to 30 of that
at which SGD noise feeds the search as much as the start does ([`theory.noise_unit`][]), beyond its limit, as far as batches of one
sample allow. Label noise: none in three fifths, else log-uniform from 0.01 to 10 of the loss at w0. Criterion: loss (seven
tenths), overlap, absolute; any threshold.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from odes import Problem, self_moments
from theory import Validity, escape_law, fine_tuning, noise_unit, search_phase
from validation.checks.base import LAW_ACCURACY, Case, Check, Effort
from validation.checks.law import horizon, law_against
from validation.checks.settings import Setting
from validation.simulation.result import mean_and_error

_POLYNOMIALS = ("linear", "He2", "He3", "He4", "He2+0.5*He3")
_LINKS = (*_POLYNOMIALS, "relu", "relu", "erf", "erf")
_RANKS = (1, 1, 2, 3, 4, 8, 16, 32)
_MOST_STEPS = 20_000
_MOST_SAMPLES = 3e8
"""Settings in which the chain would need more steps, or more samples for all seeds, are not simulated."""

_AVERAGES = 30.0
"""So many samples cost as much as Gaussian averages instead of them."""

_ESCAPING = 0.95
_BETWEEN_CLEARINGS = 8
"""Compiled programs are forgotten after so many settings, before memory for them runs out."""


def drawn(seed: int, number: int) -> Setting:
    """The setting of that number."""
    rng = np.random.default_rng([seed, number])

    def spread(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    teacher = student = str(rng.choice(_LINKS))
    if student in _POLYNOMIALS and rng.uniform() < 0.25:
        teacher = str(rng.choice(_POLYNOMIALS))
    strength, kind, sign = spread(0.01, 5.0), rng.uniform(), float(rng.choice([-1, 1]))
    edges = np.array([0.25, 0.35, 0.45, 0.55])
    alignment = [1.0, -1.0, 0.0, sign * spread(1e-3, 0.1), float(rng.uniform(-1, 1))][int(np.sum(kind >= edges))]
    rank = int(rng.choice(_RANKS))
    kappa = spread(0.25, 4.0) if rng.uniform() < 0.5 else 1.0
    lr_ratio = spread(0.25, 16.0) if rng.uniform() < 0.5 else 1.0
    free_rows, dim = bool(rng.uniform() < 0.25), float(round(spread(50.0, 1e6)))
    speed, noise = spread(0.01, 1.5), spread(0.01, 30.0) * bool(rng.uniform() < 0.9)
    label_noise = spread(0.01, 10.0) * bool(rng.uniform() < 0.4)
    criterion = str(rng.choice(["loss", "overlap", "absolute"], p=[0.7, 0.18, 0.12]))
    low, high = {"loss": (0.02, 0.95), "overlap": (0.1, 0.9), "absolute": (0.05, 1.3)}[criterion]
    threshold = float(rng.uniform(low, high))
    problem = Problem.single_index(student, strength=strength, alignment=alignment, teacher=teacher)
    problem = problem.replace(kappa=kappa, lr_ratio=lr_ratio)
    phase = search_phase(problem)
    if criterion == "absolute":
        threshold = max(threshold * float(phase.loss), 1e-12)
    curvature = max(float(self_moments(problem.student, 1.0).cross), abs(float(phase.D)))
    eta = speed / max(curvature * kappa**2 * max(1.0, lr_ratio), float(phase.rate))
    problem = problem.replace(label_noise=label_noise * float(phase.loss), learning_rate=eta)
    unit = float(noise_unit(problem))
    theta = min(noise * unit, eta * dim) if math.isfinite(unit) else 0.0
    return Setting(
        name=f"setting {number}",
        activation=student,
        teacher=None if teacher == student else teacher,
        strength=strength,
        alignment=alignment,
        rank=rank,
        scale=None if kappa == 1 else kappa * rank,
        lr_ratio=lr_ratio,
        free_rows=free_rows,
        learning_rate=eta,
        noise_scale=theta,
        label_noise=float(problem.sgd.label_noise),
        criterion=criterion,
        threshold=threshold,
        dim=dim,
        checks=("law",),
    )


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What came out in a setting.

    `doubt` is why the law is refused (a name of [`theory.Validity`][]), empty where it is given; `escaped` the fraction of the chain's
    runs that escape within the horizon, NaN where the chain would take too long; `results` the checks of what is claimed.
    """

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
    """One setting to be tried, the drawn one of that number unless given; plain data, so that another process can do it."""

    effort: Effort
    seed: int
    number: int
    setting: Setting | None = None

    def run(self) -> Attempt:
        """What the theory says of the setting, and what the chain does."""
        if self.number % _BETWEEN_CLEARINGS == 0:
            jax.clear_caches()
        setting = drawn(self.seed, self.number) if self.setting is None else self.setting
        effort = dataclasses.replace(self.effort, samples=_MOST_SAMPLES / self.effort.law_seeds)
        case = setting.case(effort, jax.random.fold_in(jax.random.key(self.seed), self.number))
        case = case.at(dimension=case.effort.law_dimension)
        law, tuning = escape_law(case.theory, case.escape), fine_tuning(case.theory, case.escape)
        doubt = Validity(int(law.validity)).name if law.doubt else ""
        seeds, end = case.effort.law_seeds, horizon(case, law)
        if not _affordable(case, end, seeds):
            return Attempt(setting, doubt, math.nan, ())
        times = case.escape_times(seeds, end)
        checks = [] if doubt else list(law_against(case, law, times, seeds))
        if bool(tuning.trusted) and times.size == seeds and times.std() > 0:
            mean, error = mean_and_error(times)
            name = "fine-tuning time, mean"
            checks.append(case.check(name, tuning.time, mean, error, accuracy=LAW_ACCURACY, runs=seeds))
        return Attempt(setting, doubt, times.size / seeds, tuple(checks))


def _affordable(case: Case, end: float, seeds: int) -> bool:
    """Whether the chain of so many seeds can be run to the time `end`."""
    batch, steps = float(case.problem.sgd.batch_size), end / float(case.problem.sgd.learning_rate)
    if case.effort.samples < batch * steps:
        batch = _AVERAGES
    return bool(1 <= steps <= _MOST_STEPS and steps * batch * seeds <= _MOST_SAMPLES)


_SIMPLER: tuple[dict[str, Any], ...] = (
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
