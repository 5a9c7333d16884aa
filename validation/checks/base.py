r"""What a check is: a number from theory, the same from a simulation, its standard error, z; and the setting it belongs to."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from odes import Escape, Overlaps, Problem, Transfer
from theory import escape_modes, leading_phase, passage, patience, spread_start
from validation.simulation.chain import affordable_chain
from validation.simulation.ensemble import simulate
from validation.simulation.result import Simulation, even_steps

FALSE_ALARM = 1e-3
"""The probability that a whole report calls a right theory wrong."""

LAW_ACCURACY = 0.03
"""The accuracy that the law of the escape time claims for means and standard deviations where it is given."""

MOST_STEPS = 20_000
"""Chains that would take more steps than this are not run in high dimension or at random settings."""

_WITHIN_A_STEP = 0.125
"""By so many steps escape times differ by what is taken to be linear between two steps: theory takes overlaps, simulators the margin."""

AMPLITUDE = 0.3
"""Amplitude of the unstable mode at which trajectories start: the search is over, learning has begun."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One number, predicted and simulated at a dimension.

    `z` is the deviation in standard errors, or the normal deviate that is as improbable; `accuracy` is the relative accuracy
    that the theory claims for this number, 0 for an exact statement about the limit.
    """

    setting: str
    name: str
    theory: float
    simulation: float
    standard_error: float
    z: float
    accuracy: float
    dimension: float

    def agrees(self, limit: float) -> bool:
        """Whether the deviation is at most `limit` standard errors, or within the accuracy that the theory claims."""
        close = abs(self.simulation - self.theory) <= self.accuracy * abs(self.theory)
        return bool(abs(self.z) <= limit or close)


@dataclasses.dataclass(frozen=True)
class Note:
    """A check that a setting does not allow, and why."""

    setting: str
    reason: str


Result = Check | Note


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is simulated: numbers of seeds, dimensions, and how many samples each seed may take one by one."""

    trajectory_seeds: int
    trajectory_dimension: float
    law_seeds: int
    law_dimension: float = 2e3
    sweep_seeds: int
    approach: tuple[float, ...]
    log_dimension: tuple[float, ...]
    ranks: tuple[int, ...]
    samples: float = 1e8


_POWERS = tuple(10.0**k for k in range(2, 10))
QUICK = Effort(
    trajectory_seeds=16,
    trajectory_dimension=2e4,
    law_seeds=200,
    sweep_seeds=100,
    ranks=(1, 8),
    approach=_POWERS[:4],
    log_dimension=(1e2, 1e3, 1e5, 1e7, 1e9),
)
FULL = Effort(
    trajectory_seeds=64,
    trajectory_dimension=2e5,
    law_seeds=1000,
    sweep_seeds=300,
    ranks=(1, 2, 4, 8, 16),
    approach=_POWERS[:5],
    log_dimension=_POWERS,
)


def z_limit(checks: int) -> float:
    """The largest |z| that one of so many checks may have before the report calls a disagreement (Bonferroni)."""
    from scipy import special

    return float(-special.ndtri(FALSE_ALARM / (2 * max(checks, 1))))


def transfer_of(problem: Problem) -> Transfer:
    """Pretraining on the direction of a single-index problem's w0, by the same SGD, and fine-tuning as the problem says."""
    target, adapter, sgd = problem.teacher, problem.adapter, problem.sgd
    return Transfer(problem.student, cosine=problem.alignment, target=target, adapter=adapter, sgd=sgd)


@dataclasses.dataclass(frozen=True)
class Case:
    """One setting under test.

    `problem` is simulated and `theory` is predicted from: the same, unless a wrong theory is to be caught. Where a setting is a
    pretraining and the fine-tuning after it, `transfers` are what is simulated and what is predicted from, and the problems are theirs
    of fine-tuning.
    """

    name: str
    problem: Problem
    theory: Problem
    effort: Effort
    key: PRNGKeyArray
    escape: Escape = dataclasses.field(default_factory=Escape)
    transfers: tuple[Transfer, Transfer] | None = None

    def at(self, **changes: Any) -> "Case":
        """The same setting at another dimension, learning rate or rank, in whole batches at the same noise scale."""

        def changed(problem: Problem) -> Problem:
            there = problem.replace(**changes)
            return there.replace(sgd=there.sgd.whole_batches(problem.sgd.noise_scale))

        def moved(transfer: Transfer) -> Transfer:
            before, after = (changed(problem).sgd for problem in (transfer.pretraining, transfer.lora))
            return dataclasses.replace(transfer, pretraining_sgd=before, sgd=after)

        there = None if self.transfers is None else (moved(self.transfers[0]), moved(self.transfers[1]))
        return dataclasses.replace(self, problem=changed(self.problem), theory=changed(self.theory), transfers=there)

    @property
    def staged(self) -> tuple[Transfer, Transfer]:
        """Pretraining and fine-tuning that are simulated, and that are predicted from: those of the setting, or, of one unit, a
        pretraining on the direction of w0 by the same SGD."""
        return self.transfers or (transfer_of(self.problem), transfer_of(self.theory))

    def stream(self, number: int) -> "Case":
        """The same setting with other random numbers."""
        return dataclasses.replace(self, key=jax.random.fold_in(self.key, number))

    def check(
        self,
        name: str,
        theory: Any,
        simulation: Any,
        error: Any,
        *,
        z: float | None = None,
        runs: int | None = None,
        accuracy: float = 0.0,
    ) -> Check:
        """A check of this setting; if the error was estimated from `runs` runs, deviations follow Student's t."""
        from scipy import special

        theory, simulation, error = float(theory), float(simulation), float(error)
        gap = simulation - theory
        deviation = gap / error if error else math.copysign(math.inf, gap) if gap else 0.0
        if runs is not None:
            deviation = float(-np.sign(deviation) * special.ndtri(special.stdtr(runs - 1, -abs(deviation))))
        d = float(self.problem.sgd.dimension)
        return Check(self.name, name, theory, simulation, error, deviation if z is None else z, accuracy, d)

    def known(self, error: Any, step: float | None = None) -> Any:
        """The error of an escape time whose standard error is `error`: within a step it is a matter of definition.

        A `step` takes a learning rate unless told otherwise.
        """
        return np.hypot(error, _WITHIN_A_STEP * (float(self.problem.sgd.learning_rate) if step is None else step))

    def arrivals(self, name: str, arrived: int, seeds: int, *, missing: float = 1e-6) -> Check:
        """That all seeds arrive but a fraction `missing`: z is the deviate that is as improbable as how many do not."""
        from scipy import stats

        z = max(float(stats.norm.isf(stats.binom.sf(seeds - arrived - 1, seeds, missing))), 0.0)
        return self.check(name, 1, arrived / seeds, np.nan, z=z)

    def run(
        self, steps: np.ndarray, seeds: int, *, start: Overlaps | None = None, until_escape: bool = False
    ) -> Simulation:
        """The exact chain, or the chain of normal batches where a seed would need more samples than the effort allows."""
        simulator = affordable_chain(self.problem, steps, samples=self.effort.samples, start=start)
        escape = self.escape if until_escape else None
        return simulate(simulator, key=self.key, seeds=seeds, steps=steps, escape=escape, until_escape=until_escape)

    def escape_times(self, seeds: int, end: float, *, start: Overlaps | None = None) -> np.ndarray:
        """Escape times of the seeds that escaped by `end`."""
        steps = even_steps(end, float(self.problem.sgd.learning_rate), 300)
        times = np.asarray(self.run(steps, seeds, start=start, until_escape=True).escape_times)
        return times[np.isfinite(times)]

    def mode_start(self) -> Overlaps:
        """Overlaps on the growing modes, the amplitude of the fastest shared equally by the adapter's rows."""
        return spread_start(self.problem, AMPLITUDE)

    def predicted_escape(self, start: Overlaps, *, finite_steps: bool = True) -> float:
        """When the flow escapes from `start`, according to theory; NaN if it does not."""
        modes = escape_modes(self.theory)
        horizon = patience(leading_phase(modes), modes)
        return float(passage(self.theory, start, self.escape, horizon, finite_steps=finite_steps).escape_time)

    def no_escape(self, check: str) -> Note:
        """That a check is left out because nothing escapes."""
        return Note(self.name, f"{check}: the flow does not escape, even from a start on the unstable mode")
