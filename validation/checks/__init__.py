"""Theory against simulation: trajectory by trajectory, and check by check."""

from validation.checks.comparison import Comparison, compare, observables
from validation.checks.kinds import (
    CHECKS,
    FULL,
    LAW_ACCURACY,
    QUICK,
    Case,
    Check,
    Effort,
    Note,
    Result,
    z_limit,
)

__all__ = [
    "CHECKS",
    "FULL",
    "LAW_ACCURACY",
    "QUICK",
    "Case",
    "Check",
    "Comparison",
    "Effort",
    "Note",
    "Result",
    "compare",
    "observables",
    "z_limit",
]
