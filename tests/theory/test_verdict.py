"""Verdicts on checkpoints: kinds of curves, and the search for the best."""

import numpy as np
import pytest
from scipy import optimize

from odes import SGD, Escape, Transfer
from theory import Candidate, checkpoints, judge
from theory.verdict import _critical, _kind


@pytest.mark.parametrize(
    "costs, kind, critical",
    [
        ([3, 2, 1], "helps", None),
        ([1, 2, 3], "hurts", 0),
        ([3, 1, 2], "optimum", 1),
        ([1, 3, 2], "barrier", None),
        ([2, 1, 3, 2.5], "both", None),
        ([3, 2, 2.5, 1], "mixed", None),
        ([1, 2, 1.5, 3], "mixed", 2),
        ([1, 1.005, 1], "indifferent", None),
        ([1, 2, 1.99], "hurts", 0),
        ([3, 1, 0], "helps", None),
        ([2, np.inf, 2, 3], "barrier", 2),
        ([2, 1, np.inf, 1.5], "both", None),
    ],
)
def test_kind_and_critical_time(costs, kind, critical):
    known = [Candidate(float(i), "swept", float(cost)) for i, cost in enumerate(costs)]
    assert _kind(known).name == kind
    assert _critical(known) == critical


def test_the_best_checkpoint_is_the_minimum():
    """The slope's zero against a bounded minimisation of the fine-tuning time itself."""
    transfer = Transfer("erf", cosine=0.8, sgd=SGD(learning_rate=0.05, batch_size=500, dimension=1e4))
    times, goal = np.concatenate([np.zeros(1), np.geomspace(0.1, 5, 7)]), Escape("absolute", 0.0232)
    verdict = judge(transfer, times, goal)
    assert verdict.kind.name == "optimum" and verdict.best is not None

    def cost(at):
        grid = at * np.arange(1, times.size + 1) / times.size
        return float(checkpoints(transfer, grid, goal).tuning.time[-1])

    found = optimize.minimize_scalar(cost, bounds=(0.1, 0.6), method="bounded", options={"xatol": 1e-4})
    np.testing.assert_allclose(verdict.best.cost, found.fun, rtol=1e-5)
    np.testing.assert_allclose(verdict.best.at, found.x, rtol=2e-2)
    assert verdict.critical == verdict.best.at
