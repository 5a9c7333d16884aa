"""The law of the escape time from random starts: its mean, spread and shape, over ranks and dimensions."""

from collections.abc import Iterator

import numpy as np

from theory import escape_law
from validation.checks.base import LAW_ACCURACY, Case, Note, Result
from validation.simulation.result import mean_and_error


def _law_checks(case: Case, seeds: int, label: str = "") -> Iterator[Result]:
    """The checks of the law in one case, whose names end in `label`."""
    from scipy import special, stats

    law = escape_law(case.theory, case.escape)
    if law.doubt:
        yield Note(case.name, f"law{label}: {law.doubt}")
        return
    times = case.escape_times(seeds, 1.5 * float(law.quantile(1 - 1e-6)))
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


def log_dimension(case: Case) -> Iterator[Result]:
    """The mean escape time grows by tau/2 for every unit of log d."""
    logs, means, errors, slopes = [], [], [], []
    for i, d in enumerate(case.effort.log_dimension):
        there = case.at(dimension=d).stream(i)
        expected = escape_law(there.theory, case.escape)
        if expected.doubt:
            yield Note(case.name, f"log-dimension, d = {d:.0e}: {expected.doubt}")
            continue
        times = there.escape_times(case.effort.sweep_seeds, 1.5 * float(expected.quantile(1 - 1e-6)))
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
