"""`searchphase validate`: theory against simulation, check by check."""

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from odes.arguments import ArgumentError
from validation.checks import FULL, QUICK, Check, Effort, Result
from validation.checks.attack import Tally, Trial, shrunk, trials
from validation.checks.report import Report
from validation.checks.settings import SHIPPED, Setting, plan, read_settings
from validation.cli.options import EscapeOptions, ModelOptions
from validation.cli.output import content
from validation.cli.report import table
from validation.cli.values import OptionalFloat, OptionalPath, check, check_seed, positive
from validation.cli.work import ResumeOptions
from validation.jobs.engine import Failure, carry_out, in_order

_MOST_SHRUNK = 5
"""So many settings that disagree are made simpler; the others are printed as they are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validate(ResumeOptions, EscapeOptions, ModelOptions):
    """Theory against the exact simulation: one setting if flags describe one, else a file of settings (exit code 1 if they disagree).

    Compared are trajectories, the law of the escape time, the approach to the limit, and whatever else --checks names. With --random
    the law and the time of fine-tuning are attacked in settings drawn from the whole input space.
    """

    problem: OptionalPath = None
    """TOML file with the problem of a single setting, of any numbers of units, instead of the flags for it; or with a pretraining and the
    fine-tuning after it, for --checks stages checkpoints."""
    settings: OptionalPath = None
    """A TOML file with one [[setting]] table per setting, its keys named like the flags (the shipped file unless given)."""
    quick: bool = False
    """Two to three minutes: fewer settings, dimensions and seeds (the default for a single setting)."""
    full: bool = False
    """Under an hour: every setting, high dimension, many seeds."""
    checks: tuple[str, ...] = ()
    """For a single setting: which of trajectory, law, approach, log-dimension, rank, learning-rate, stages, noise-limit,
    mean-step, checkpoints, remedies, saddles (the first two unless given)."""
    learning_rate: float = Setting.learning_rate
    """Learning rate eta of a single setting; should be small against the inverse of its fastest rate."""
    noise_scale: float = Setting.noise_scale
    """theta = eta * d / B of a single setting, kept at every dimension that is simulated."""
    label_noise: float = Setting.label_noise
    """Variance of the noise on the labels of a single setting."""
    dim: OptionalFloat = None
    """Dimension d at which trajectories and the law of a single setting are simulated (that of --quick or --full unless given)."""
    random: int = 0
    """Instead of settings that are given: draw so many from the whole input space, and count where nothing is claimed."""
    minutes: OptionalFloat = None
    """With --random: draw no more settings after so many minutes."""
    seed: int = 0
    """Seed of the random numbers."""

    def compute(self) -> Report:
        if self.quick and self.full:
            raise ArgumentError(None, "--quick and --full exclude each other")
        check_seed(self.seed)
        effort = FULL if self.full else QUICK
        check("random", self.random, "at least 0", self.random >= 0)
        if self.minutes is not None:
            check("minutes", self.minutes, "positive and finite", positive)
            check("minutes", self.minutes, "given with --random", self.random > 0)
        if self.random:
            if self.settings is not None or self._describes_a_setting:
                raise ArgumentError("random", "draws the settings: give no --settings and no flags that describe one")
            return self._at_random(effort)
        if self.settings is not None or not self._describes_a_setting:
            settings = read_settings(Path(self.settings) if self.settings else SHIPPED)
        else:
            settings = [self._own_setting()]
        results: list[Result] = []
        failures: list[Failure] = []
        jobs, parts = plan(settings, effort, self.seed, full=self.full), self.parts()
        with self.work() as work:
            for some in in_order(carry_out(jobs, unit="check", parts=parts, **work)):
                if isinstance(some, Failure):
                    failures.append(some)
                    continue
                results.extend(some)
                if not self.json:
                    print_checks([result for result in some if isinstance(result, Check)])
        return Report.of(results, failures)

    @property
    def flags(self) -> dict[str, Any]:
        flags = super().flags
        if self.settings is not None:
            files = [some.problem for some in read_settings(Path(self.settings)) if some.problem is not None]
            flags["settings"] += "".join(content(Path(file).read_bytes()) for file in files)
        return flags

    def _at_random(self, effort: Effort) -> Report:
        """The claims in settings drawn at random; the worst disagreement of each setting is made simpler."""
        end, attempts, failures = time.monotonic() + 60 * (np.inf if self.minutes is None else self.minutes), [], []
        jobs, parts = trials(effort, self.seed, self.random), self.parts()
        with (
            self.work() as work,
            contextlib.closing(carry_out(jobs, unit="setting", parts=parts, **work)) as results,
        ):
            for _, some in results:  # as they come: none waits for a slow one before it when time is over
                if isinstance(some, Failure):
                    failures.append(some)
                    continue
                attempts += some
                if not self.json:
                    print_checks([claim for attempt in some for claim in attempt.results])
                if time.monotonic() > end:
                    break
        attempts.sort(key=lambda attempt: attempt.number)
        report = Report(
            [claim for attempt in attempts for claim in attempt.results], [], Tally(attempts), failures=failures
        )
        simplest = []
        for attempt in attempts:
            if wrong := [claim for claim in attempt.results if not claim.agrees(report.limit)]:
                worst, setting = max(wrong, key=lambda claim: abs(claim.z)), attempt.setting
                if len(simplest) < _MOST_SHRUNK:
                    trial = Trial(effort, self.seed, attempt.number)
                    setting = shrunk(trial, setting, worst, report.limit)
                simplest.append(setting.command)
        return dataclasses.replace(report, simplest=simplest)

    @property
    def _describes_a_setting(self) -> bool:
        """Whether any flag says something about a setting."""
        return any(getattr(self, field.name) != field.default for field in _about(self))

    def _own_setting(self) -> Setting:
        """The flags as a setting."""
        own = {field.name: getattr(self, field.name) for field in _about(self)}
        strength, alignment = self.place()
        checks = self.checks or ("trajectory", "law")
        place = {"strength": strength, "alignment": alignment, "mixture": None}
        return Setting(**own | place | {"name": "flags", "checks": checks, "quick": checks})

    def document(self, result: Report) -> dict[str, Any]:
        verdict: dict[str, Any] = {"agrees": result.agrees, "z_limit": result.limit}
        if result.tally is not None:
            verdict |= {"settings": len(result.tally.attempts), "refused": result.tally.refused}
            verdict |= {"reasons": result.tally.reasons, "disagreements": result.simplest}
        return verdict | {"checks": result.rows, "not_checked": result.skipped}

    def report(self, result: Report) -> None:
        for note in result.notes:
            print(f"not checked: {note.setting}: {note.reason}")
        if result.wrong:
            print("\nNO AGREEMENT:")
            print_checks(result.wrong)
        for command in result.simplest:
            print(f"the simplest setting found that disagrees: {command}")
        if result.tally is not None:
            print(table(result.tally.reasons))
            if escaping := result.tally.escaping:
                print(
                    f"refused in {result.tally.refused:.0%} of the {escaping} settings in which 95 % of the runs escape"
                )
        count = len(result.checks)
        print(
            f"{count - len(result.wrong)} of {count} checks agree: |z| <= {result.limit:.2f} (one false alarm in 1000 reports), "
            "or within the 3 % that the escape-time law claims"
        )

    def dataset(self, result: Report) -> Any:
        return result.to_dataset()

    def draw(self, result: Report) -> Any:
        return result.draw()

    def failures(self, result: Report) -> Sequence[Failure]:
        return result.failures

    def exit_code(self, result: Report) -> int:
        return 0 if result.agrees else 1


def _about(flags: Validate) -> list[dataclasses.Field]:
    """The flags that say something about a setting."""
    names = {field.name for field in dataclasses.fields(Setting)} - {"quick"}
    return [field for field in dataclasses.fields(flags) if field.name in names]


def print_checks(checks: list[Check]) -> None:
    """A table for each setting, and an empty line after it."""
    for setting in dict.fromkeys(claim.setting for claim in checks):
        names = ("name", "theory", "simulation", "standard_error", "z")
        rows = [{name: getattr(claim, name) for name in names} for claim in checks if claim.setting == setting]
        print(f"{setting}:\n{table(rows)}\n", flush=True)
