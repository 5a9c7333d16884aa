"""Theory against simulation: trajectory by trajectory, and check by check."""

from collections.abc import Callable, Iterator

from validation.checks.base import FULL, LAW_ACCURACY, QUICK, Case, Check, Effort, Note, Result, z_limit
from validation.checks.comparison import Comparison, compare
from validation.checks.law import law, log_dimension, rank_law
from validation.checks.limits import approach, learning_rate
from validation.checks.stages import stages
from validation.checks.trajectory import trajectory

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
