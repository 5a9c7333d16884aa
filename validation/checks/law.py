"""The law of the escape time from random starts: its mean, spread and shape, over ranks and dimensions."""

from collections.abc import Iterator

import numpy as np

from theory import EscapeLaw, escape_law, patience, search_phase
from validation.checks.base import LAW_ACCURACY, Case, Check, Note, Result
from validation.simulation.result import mean_and_error

_LEVELS = 1000
"""The law's kurtosis is that of so many quantiles."""

_FEWEST = 10
"""Moments of fewer runs are not compared."""


def law_checks(case: Case, seeds: int, label: str = "") -> Iterator[Result]:
    """The checks of the law in one case, whose names end in `label`."""
    law = escape_law(case.theory, case.escape)
    if law.doubt:
        yield Note(case.name, f"law{label}: {law.doubt}")
        return
    yield from law_against(case, law, case.escape_times(seeds, horizon(case, law)), seeds, label)


def horizon(case: Case, law: EscapeLaw) -> float:
    """How long seeds are followed: 1.5 times as long as practically all take by the law, to the end of all patience if some never do."""
    last = 1.5 * float(law.quantile(1 - 1e-6))
    return last if np.isfinite(last) else float(patience(search_phase(case.theory)))


def law_against(case: Case, law: EscapeLaw, times: np.ndarray, seeds: int, label: str = "") -> Iterator[Check]:
    """The law against the escape times of those of so many seeds that have escaped."""
    from scipy import stats

    n = times.size
    yield _probability_check(case, f"fraction escaped{label}", law, n, seeds)
    if n < _FEWEST or law.std == 0:
        return
    mean, error = mean_and_error(times)
    error = np.hypot(case.known(error), law.mean_error)
    yield case.check(f"escape time, mean{label}", law.mean, mean, error, accuracy=LAW_ACCURACY, runs=n)
    levels = np.asarray(law.quantile((np.arange(_LEVELS) + 0.5) / _LEVELS * law.probability))
    error = np.hypot(law.std * np.sqrt((stats.kurtosis(levels, nan_policy="omit") + 2) / (4 * n)), law.std_error)
    yield case.check(f"escape time, std{label}", law.std, times.std(ddof=1), case.known(error), accuracy=LAW_ACCURACY)
    centred = times - mean + float(law.mean)
    distance = stats.ks_1samp(centred, lambda t: np.asarray(law.cdf(t) / law.probability)).statistic  # pyright: ignore[reportAttributeAccessIssue]
    together = round(n / (1 + n * float(law.mean_error / law.std) ** 2))  # the scatter of S counts as a sample's
    z = max(float(stats.norm.isf(stats.kstwo.sf(distance, together))), 0.0)
    expected, spread = stats.kstwo.mean(together), stats.kstwo.std(together)
    yield case.check(f"escape time, KS distance about the mean{label}", expected, distance, spread, z=z)


def _probability_check(case: Case, name: str, law: EscapeLaw, escaped: int, seeds: int) -> Check:
    """The fraction of seeds that escape against that of starts, two binomial numbers; where all starts do, the seeds' alone."""
    probability = float(law.probability)
    if probability == 1:
        return case.arrivals(name, escaped, seeds)
    error = np.sqrt(probability * (1 - probability) * (1 / seeds + 1 / law.log_radii.size))
    return case.check(name, probability, escaped / seeds, error)


def law(case: Case) -> Iterator[Result]:
    """Mean, standard deviation and distribution of the escape time from random starts."""
    yield from law_checks(case.at(dimension=case.effort.law_dimension), case.effort.law_seeds)


def rank_law(case: Case) -> Iterator[Result]:
    """The law at several ranks."""
    for rank in case.effort.ranks:
        chosen = case.at(dimension=case.effort.law_dimension, rank=rank)
        yield from law_checks(chosen.stream(rank), case.effort.sweep_seeds, f", rank {rank}")


def log_dimension(case: Case) -> Iterator[Result]:
    """The mean escape time grows by tau/2 for every unit of log d."""
    logs, means, errors, slopes = [], [], [], []
    for i, d in enumerate(case.effort.log_dimension):
        there = case.at(dimension=d).stream(i)
        expected = escape_law(there.theory, case.escape)
        if expected.doubt:
            yield Note(case.name, f"log-dimension, d = {d:.0e}: {expected.doubt}")
            continue
        times = there.escape_times(case.effort.sweep_seeds, horizon(there, expected))
        mean, error = mean_and_error(times)
        logs.append(np.log(d))
        means.append(mean)
        errors.append(error)
        slopes.append(float(expected.tau) / 2)
        name = f"escape time, mean, d = {d:.0e}"
        yield there.check(name, expected.mean, mean, error, accuracy=LAW_ACCURACY)
    if len(logs) < 2:
        return
    (slope, _), covariance = np.polyfit(logs, means, 1, w=1 / np.array(errors), cov="unscaled")
    error = np.sqrt(covariance[0, 0])
    yield case.check("slope of the escape time in log d", np.mean(slopes), slope, error, accuracy=LAW_ACCURACY)
