"""Statements about the closed equations: stability, critical strengths, plateaus, the law of the escape time."""

from theory.critical import CriticalPoints, critical_points
from theory.hermite import hermite_coefficients, information_exponent
from theory.law import EscapeLaw, amplitude_variance, escape_law
from theory.plateau import Plateau, plateau
from theory.stability import SearchPhase, escape_rate, search_phase, sweep

__all__ = [
    "CriticalPoints",
    "EscapeLaw",
    "Plateau",
    "SearchPhase",
    "amplitude_variance",
    "critical_points",
    "escape_law",
    "escape_rate",
    "hermite_coefficients",
    "information_exponent",
    "plateau",
    "search_phase",
    "sweep",
]
