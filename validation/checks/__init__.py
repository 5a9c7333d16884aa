"""Theory against simulation: trajectory by trajectory, and check by check."""

from collections.abc import Callable, Iterator

from validation.checks.base import FULL, LAW_ACCURACY, QUICK, Case, Check, Effort, Note, Result, z_limit
from validation.checks.comparison import Comparison, compare
from validation.checks.confirm import checkpoint_checks, remedy_checks
from validation.checks.law import law, log_dimension, rank_law
from validation.checks.limits import approach, learning_rate, noise_limit
from validation.checks.saddles import saddle_times
from validation.checks.stages import stages
from validation.checks.trajectory import mean_step, trajectory

CHECKS: dict[str, Callable[[Case], Iterator[Result]]] = {
    "trajectory": trajectory,
    "law": law,
    "approach": approach,
    "log-dimension": log_dimension,
    "rank": rank_law,
    "learning-rate": learning_rate,
    "stages": stages,
    "saddles": saddle_times,
    "noise-limit": noise_limit,
    "mean-step": mean_step,
    "checkpoints": checkpoint_checks,
    "remedies": remedy_checks,
}
"""The kinds of checks by name."""

__all__ = [
    "Callable",
    "Case",
    "Check",
    "Comparison",
    "Effort",
    "FULL",
    "Iterator",
    "LAW_ACCURACY",
    "Note",
    "QUICK",
    "Result",
    "approach",
    "checkpoint_checks",
    "compare",
    "law",
    "learning_rate",
    "log_dimension",
    "mean_step",
    "noise_limit",
    "rank_law",
    "remedy_checks",
    "stages",
    "trajectory",
    "z_limit",
]
