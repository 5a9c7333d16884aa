r"""Theory against simulation, check by check: a number from theory, the same from the exact chain, its standard error, z."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from scipy import special, stats

from odes import (
    SGD,
    Escape,
    Overlaps,
    Problem,
    Transfer,
    losses,
    self_moments,
    solve,
    target_overlap,
)
from theory import escape_from, escape_law, mode_start, search_phase, unstable_mode
from validation.checks.comparison import observables
from validation.simulation.chain import affordable_chain, chain_simulator
from validation.simulation.direct import direct_simulator
from validation.simulation.ensemble import simulate, simulate_stages
from validation.simulation.result import Simulation, even_steps, mean_and_error

FALSE_ALARM = 1e-3
"""The probability that a whole report calls a right theory wrong."""

LAW_ACCURACY = 0.03
"""The accuracy that the law of the escape time claims for means and standard deviations where it is given."""

_DIRECT_DIMENSION, _DIRECT_SEEDS = 1000, 64
"""Of the direct simulator, where it is compared with the ODE."""

_PATIENCE = 50
"""A fine-tuning that has not escaped after this many time scales of its search does not escape."""

_AMPLITUDE = 0.3
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


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is simulated: numbers of seeds, and dimensions."""

    trajectory_seeds: int
    trajectory_dimension: float
    law_seeds: int
    law_dimension: float
    sweep_seeds: int
    approach: tuple[float, ...]
    log_dimension: tuple[float, ...]
    ranks: tuple[int, ...]


QUICK = Effort(
    trajectory_seeds=16,
    trajectory_dimension=2e4,
    law_seeds=200,
    law_dimension=2e3,
    sweep_seeds=100,
    approach=(1e2, 1e3, 1e4, 1e5),
    log_dimension=(1e2, 1e3, 1e5, 1e7, 1e9),
    ranks=(1, 8),
)
FULL = Effort(
    trajectory_seeds=64,
    trajectory_dimension=2e5,
    law_seeds=1000,
    law_dimension=2e3,
    sweep_seeds=300,
    approach=(1e2, 1e3, 1e4, 1e5, 1e6),
    log_dimension=(1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9),
    ranks=(1, 2, 4, 8, 16),
)


def z_limit(checks: int) -> float:
    """The largest |z| that one of so many checks may have before the report calls a disagreement (Bonferroni)."""
    return float(stats.norm.isf(FALSE_ALARM / (2 * max(checks, 1))))


@dataclasses.dataclass(frozen=True)
class Case:
    """One setting under test.

    `problem` is simulated and `theory` is predicted from: the same, unless a wrong theory is to be caught.
    """

    name: str
    problem: Problem
    theory: Problem
    effort: Effort
    key: PRNGKeyArray
    escape: Escape = dataclasses.field(default_factory=Escape)

    def at(self, **changes: Any) -> "Case":
        """The same setting at another dimension, learning rate or rank, with the batch that keeps the noise scale."""
        return dataclasses.replace(self, problem=_at(self.problem, **changes), theory=_at(self.theory, **changes))

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
        theory, simulation, error = float(theory), float(simulation), float(error)
        deviation = (simulation - theory) / error
        if runs is not None:
            deviation = float(np.sign(deviation) * stats.norm.isf(stats.t.sf(abs(deviation), runs - 1)))
        d = float(self.problem.sgd.dimension)
        return Check(self.name, name, theory, simulation, error, deviation if z is None else z, accuracy, d)


def _at(
    problem: Problem, *, dimension: float | None = None, learning_rate: float | None = None, rank: int | None = None
) -> Problem:
    """The problem with other numbers: κ is kept, and θ up to the rounding of the batch to whole samples."""
    sgd = problem.sgd
    theta, d = float(sgd.noise_scale), float(sgd.dimension if dimension is None else dimension)
    eta, batch = float(sgd.learning_rate if learning_rate is None else learning_rate), np.inf
    if theta > 0:
        batch = max(1.0, float(np.round(eta * d / theta)))
        eta = theta * batch / d
    sgd = SGD(learning_rate=eta, batch_size=batch, dimension=d, label_noise=sgd.label_noise)
    problem = problem.with_adapter(rank=rank)
    return eqx.tree_at(lambda p: p.sgd, problem, sgd, is_leaf=lambda x: isinstance(x, SGD))


def _mode_start(problem: Problem, amplitude: float) -> Overlaps:
    """Overlaps on the unstable mode, its amplitude shared equally by the adapter's rows."""
    rank = problem.adapter.rank
    phase = search_phase(problem)
    return mode_start(problem, phase, unstable_mode(problem, phase), jnp.full(rank, amplitude / np.sqrt(rank)))


def _predicted_escape(case: Case, start: Overlaps, *, finite_steps: bool = True) -> float:
    """When the flow escapes from `start`, according to theory."""
    phase = search_phase(case.theory)
    return float(escape_from(case.theory, start, case.escape, phase, finite_steps=finite_steps).escape_time)


def _time_scale(case: Case, start: Overlaps) -> float:
    """About when the flow escapes from `start`, a start on the unstable mode."""
    law = escape_law(case.theory, case.escape)
    if law.doubt:
        return _predicted_escape(case, start)
    return float(law.time(np.log(_AMPLITUDE)))


def _run(case: Case, steps: np.ndarray, seeds: int, *, start: Overlaps | None = None, stop: bool = True) -> Simulation:
    """The exact chain, or the chain of normal batches where a seed would need more than 1e8 samples."""
    simulator = affordable_chain(case.problem, steps, start=start)
    return simulate(simulator, key=case.key, seeds=seeds, steps=steps, until=case.escape if stop else None)


def _escape_times(case: Case, seeds: int, end: float, *, start: Overlaps | None = None) -> np.ndarray:
    """Escape times of the seeds that escaped by `end`."""
    steps = even_steps(end, float(case.problem.sgd.learning_rate), 300)
    times = np.asarray(_run(case, steps, seeds, start=start).escape_times(case.escape))
    return times[np.isfinite(times)]


def _from_the_mode(case: Case) -> tuple[Overlaps, float]:
    """A start on the unstable mode and about when the flow escapes from it."""
    start = _mode_start(case.problem, _AMPLITUDE)
    return start, _time_scale(case, start)


def _no_escape(case: Case, check: str) -> Note:
    return Note(case.name, f"{check}: the flow does not escape, even from a start on the unstable mode")


def trajectory(case: Case) -> Iterator[Result]:
    """|m|, |u|, |s|, w·ω* and the loss at three times around the escape, from a start on the unstable mode."""
    case = case.at(dimension=case.effort.trajectory_dimension)
    start, end = _from_the_mode(case)
    if not np.isfinite(end):
        yield _no_escape(case, "trajectory")
        return
    steps = np.unique(np.round(np.array([0, 0.5, 1, 1.3]) * end / float(case.problem.sgd.learning_rate)).astype(int))
    run = _run(case, steps, case.effort.trajectory_seeds, start=start, stop=False)
    theory = solve(case.theory, start, t1=run.t[-1], times=run.t, finite_steps=True)
    simulated, predicted = observables(run), observables(theory)
    for name, values in simulated.items():
        if name == "s" and float(case.problem.alignment) > 1 - 1e-9:
            continue
        for i in range(1, run.t.size):
            mean, error = mean_and_error(values[:, i])
            name_at = f"{name} at t = {float(run.t[i]):.4g}"
            yield case.check(name_at, predicted[name][i], mean, error, runs=values.shape[0])


def _law_checks(case: Case, seeds: int, label: str = "") -> Iterator[Result]:
    law = escape_law(case.theory, case.escape)
    if law.doubt:
        yield Note(case.name, f"law{label}: {law.doubt}")
        return
    times = _escape_times(case, seeds, 1.5 * float(law.quantile(1 - 1e-6)))
    (mean, mean_error), n = mean_and_error(times), times.size
    surprise = stats.norm.isf(stats.binom.sf(seeds - n - 1, seeds, 1e-6))
    yield case.check(f"fraction escaped{label}", 1, n / seeds, np.nan, z=max(float(surprise), 0.0))
    yield case.check(f"escape time, mean{label}", law.mean, mean, mean_error, accuracy=LAW_ACCURACY, runs=n)
    excess = special.polygamma(3, law.rank / 2) / special.polygamma(1, law.rank / 2) ** 2
    error = law.std * np.sqrt((excess + 2) / (4 * n))
    yield case.check(f"escape time, std{label}", law.std, times.std(ddof=1), error, accuracy=LAW_ACCURACY)
    centred = times - mean + float(law.mean)
    test = stats.kstest(centred, lambda t: np.asarray(law.cdf(t)))
    expected, spread = stats.kstwo.mean(n), stats.kstwo.std(n)
    z = float(stats.norm.isf(test.pvalue))
    yield case.check(f"escape time, KS distance about the mean{label}", expected, test.statistic, spread, z=z)


def law(case: Case) -> Iterator[Result]:
    """Mean, standard deviation and distribution of the escape time from random starts."""
    yield from _law_checks(case.at(dimension=case.effort.law_dimension), case.effort.law_seeds)


def rank_law(case: Case) -> Iterator[Result]:
    """The law at several ranks."""
    for rank in case.effort.ranks:
        chosen = case.at(dimension=case.effort.law_dimension, rank=rank)
        yield from _law_checks(chosen.stream(rank), case.effort.sweep_seeds, f", rank {rank}")


def _slope(x: np.ndarray, y: np.ndarray, errors: np.ndarray) -> tuple[float, float, float]:
    """Weighted straight line y = a + b x: b, its standard error, and a."""
    weights = 1 / errors**2
    centre = np.sum(weights * x) / weights.sum()
    spread = np.sum(weights * (x - centre) ** 2)
    slope = np.sum(weights * (x - centre) * y) / spread
    return float(slope), float(1 / np.sqrt(spread)), float(np.sum(weights * y) / weights.sum() - slope * centre)


def approach(case: Case) -> Iterator[Result]:
    r"""The deviation of w·ω* from the limit falls like $d^{-1/2}$: the fitted exponent of its root mean square."""
    start, middle = _from_the_mode(case)
    if not np.isfinite(middle):
        yield _no_escape(case, "approach")
        return
    seeds, logs, values = case.effort.sweep_seeds, [], []
    for i, d in enumerate(case.effort.approach):
        there = case.at(dimension=d).stream(i)
        steps = np.array([0, max(1, round(middle / float(there.problem.sgd.learning_rate)))])
        run = _run(there, steps, seeds, start=start, stop=False)
        theory = solve(there.theory, start, t1=run.t[-1], times=run.t, finite_steps=True)
        deviation = np.asarray(run.target_overlap[:, 1] - theory.target_overlap[1])
        logs.append(np.log(d))
        values.append(np.log(np.mean(deviation**2)) / 2)
    errors = np.full(len(logs), 1 / np.sqrt(2 * seeds))
    slope, error, _ = _slope(np.array(logs), np.array(values), errors)
    yield case.check("exponent of the deviation in d", -0.5, slope, error)


def log_dimension(case: Case) -> Iterator[Result]:
    """The mean escape time grows by tau/2 for every unit of log d."""
    logs, means, errors, slopes = [], [], [], []
    for i, d in enumerate(case.effort.log_dimension):
        there = case.at(dimension=d).stream(i)
        expected = escape_law(there.theory, case.escape)
        if expected.doubt:
            yield Note(case.name, f"log-dimension, d = {d:.0e}: {expected.doubt}")
            continue
        times = _escape_times(there, case.effort.sweep_seeds, 1.5 * float(expected.quantile(1 - 1e-6)))
        mean, error = mean_and_error(times)
        logs.append(np.log(d))
        means.append(mean)
        errors.append(error)
        slopes.append(float(expected.tau) / 2)
        name = f"escape time, mean, d = {d:.0e}"
        yield there.check(name, expected.mean, mean, error, accuracy=LAW_ACCURACY)
    if len(logs) < 2:
        return
    slope, error, _ = _slope(*map(np.array, (logs, means, errors)))
    yield case.check("slope of the escape time in log d", np.mean(slopes), slope, error, accuracy=LAW_ACCURACY)


def learning_rate(case: Case) -> Iterator[Result]:
    """Escape times from a start on the unstable mode as the learning rate falls to 0 at fixed noise scale."""
    case = case.at(dimension=case.effort.trajectory_dimension)
    start = _mode_start(case.problem, _AMPLITUDE)
    limit = _predicted_escape(case, start, finite_steps=False)
    if not np.isfinite(limit):
        yield _no_escape(case, "learning-rate")
        return
    first = float(case.problem.sgd.learning_rate)
    etas, means, errors = [], [], []
    for factor in (1, 2, 4):
        there = case.at(learning_rate=first * factor).stream(factor)
        eta = float(there.problem.sgd.learning_rate)
        predicted = _predicted_escape(there, start)
        times = _escape_times(there, case.effort.sweep_seeds, 3 * limit, start=start)
        mean, error = mean_and_error(times)
        etas.append(eta)
        means.append(mean)
        errors.append(error)
        yield case.check(f"escape time from a given start, eta = {eta:g}", predicted, mean, error)
    slope, error, constant = _slope(*map(np.array, (etas, means, errors)))
    centre = np.average(etas, weights=1 / np.array(errors) ** 2)
    at_zero = float(np.hypot(1 / np.sqrt(np.sum(1 / np.array(errors) ** 2)), error * centre))
    yield case.check("escape time from a given start, eta -> 0", limit, constant, at_zero)


def _transfer(problem: Problem) -> Transfer:
    """Pretraining on the direction of a setting's w0, by the same SGD, and fine-tuning as the setting says."""
    target, adapter, sgd = problem.teacher, problem.adapter, problem.sgd
    return Transfer(problem.student, cosine=problem.alignment, target=target, adapter=adapter, sgd=sgd)


def _joint_start(transfer: Transfer, border: Overlaps) -> Overlaps:
    """Weights that know a little of the source, and adapter rows that lie a little along the gradient at the border, U = 0."""
    there, rank = transfer.fine_tuning(border), transfer.adapter.rank
    phase = search_phase(there)
    gram, cross = transfer.lora.frame_gram, border.cross[0]
    inside = phase.C * transfer.lora.target[0] - phase.D * jnp.linalg.pinv(gram) @ cross
    row = _AMPLITUDE / np.sqrt(rank) * inside / jnp.sqrt(inside @ gram @ inside)
    rows = jnp.concatenate([jnp.array([[0.0, _AMPLITUDE]]), jnp.tile(row, (rank, 1))])
    overlaps = rows @ gram @ rows.T
    lengths = jnp.diag(1 - jnp.diagonal(overlaps))
    return Overlaps(transfer.up[None], rows @ gram, overlaps + lengths)


@eqx.filter_jit
def _stage_observables(transfer: Transfer, overlaps: Overlaps) -> dict[str, jax.Array]:
    """What is compared of a run in stages, at many overlaps."""

    step = transfer.adapter.kappa * overlaps.up
    return {
        "target_overlap": target_overlap(transfer.lora, overlaps),
        "square": jnp.einsum("...kr,...rs,...ks->...", step, overlaps.down_gram, step),
        "target loss": losses(transfer.lora, overlaps),
        "source loss": losses(transfer.pretraining, overlaps),
    }


def stages(case: Case) -> Iterator[Result]:
    """w·ω*, |w|² and both losses through pretraining on w0's direction, freezing and LoRA: the ODE, chain and direct simulator.

    Pretraining ends when its loss has fallen tenfold; compared are the border and three times about the escape.
    """
    here = case.at(dimension=case.effort.trajectory_dimension)
    theory = _transfer(here.theory)
    begin = _joint_start(
        theory, Overlaps(theory.up[None], theory.typical_start().cross, theory.typical_start().down_gram)
    )
    goal = Escape("loss", 0.1)
    unit = 1 / float(self_moments(theory.student, 1.0).cross)
    first = solve(
        theory.pretraining, begin, t1=100 * unit, escape=goal, origin=begin, until_escape=True, finite_steps=True
    )
    if not np.isfinite(first.escape_time):
        yield Note(case.name, f"stages: the source loss does not fall tenfold by t = {100 * unit:.3g}")
        return
    start = _joint_start(theory, first.final)
    eta = float(here.problem.sgd.learning_rate)
    before = round(float(first.escape_time) / eta)
    border = solve(theory.pretraining, start, t1=before * eta, finite_steps=True).final
    phase = search_phase(theory.fine_tuning(border))
    end = _PATIENCE * float(phase.tau)
    second = solve(theory.lora, border, t1=end, escape=case.escape, origin=border, until_escape=True, finite_steps=True)
    if not np.isfinite(second.escape_time):
        yield Note(case.name, f"stages: fine-tuning does not escape by t = {end:.3g}")
        return
    after = np.unique(np.round(np.array([0, 0.5, 1, 1.3]) * float(second.escape_time) / eta).astype(int))
    times = jnp.asarray(after * eta)
    path = solve(theory.lora, border, t1=times[-1], times=times, finite_steps=True)
    predicted = _stage_observables(theory, path.overlaps)
    direct = case.at(dimension=_DIRECT_DIMENSION)
    for method, there, seeds in (("chain", here, case.effort.trajectory_seeds), ("direct", direct, _DIRECT_SEEDS)):
        transfer = _transfer(there.problem)
        build = chain_simulator if method == "chain" else direct_simulator
        simulators = [build(problem, start=start) for problem in (transfer.pretraining, transfer.lora)]
        runs = simulate_stages(simulators, key=there.key, seeds=seeds, steps=[[0, before], after])
        simulated = _stage_observables(transfer, runs[1].overlaps)
        for name, values in simulated.items():
            for i, step in enumerate(after):
                when = "the border" if step == 0 else f"t = {step * eta:.4g} after it"
                mean, error = mean_and_error(values[:, i])
                yield there.check(f"{name} at {when}, {method}", predicted[name][i], mean, error, runs=seeds)


CHECKS: dict[str, Callable[[Case], Iterator[Result]]] = {
    "trajectory": trajectory,
    "law": law,
    "approach": approach,
    "log-dimension": log_dimension,
    "rank": rank_law,
    "learning-rate": learning_rate,
    "stages": stages,
}
"""The kinds of checks by name."""
