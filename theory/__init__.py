"""Statements about the closed equations: stability, critical strengths, plateaus, the law of the escape time."""

from theory.critical import CriticalPoints, critical_points
from theory.diagram import KINDS, REGIONS, Boundaries, Regimes, boundaries, regimes
from theory.hermite import hermite_coefficients, information_exponent
from theory.law import (
    REGIMES,
    EscapeLaw,
    UnstableMode,
    UpNoise,
    escape_from,
    escape_law,
    largest_noise_scale,
    mode_start,
    unstable_mode,
    up_noise,
)
from theory.plateaus import Plateau, plateau
from theory.pretraining import (
    VERDICTS,
    Checkpoints,
    FineTuning,
    Turn,
    Verdict,
    checkpoints,
    fine_tuning,
    judge,
    pretraining_times,
)
from theory.remedy import WAYS, Outcome, Remedy, noise_unit, remedies
from theory.search import SearchPhase, escape_rate, search_phase, sweep

__all__ = [
    "KINDS",
    "REGIMES",
    "REGIONS",
    "VERDICTS",
    "WAYS",
    "Boundaries",
    "Checkpoints",
    "CriticalPoints",
    "EscapeLaw",
    "FineTuning",
    "Outcome",
    "Plateau",
    "Regimes",
    "Remedy",
    "SearchPhase",
    "Turn",
    "UnstableMode",
    "UpNoise",
    "Verdict",
    "boundaries",
    "checkpoints",
    "critical_points",
    "escape_from",
    "escape_law",
    "escape_rate",
    "fine_tuning",
    "hermite_coefficients",
    "information_exponent",
    "judge",
    "largest_noise_scale",
    "mode_start",
    "noise_unit",
    "plateau",
    "pretraining_times",
    "regimes",
    "remedies",
    "search_phase",
    "sweep",
    "unstable_mode",
    "up_noise",
]
