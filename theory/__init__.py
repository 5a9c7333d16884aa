"""Statements about the closed equations: stability, critical strengths, plateaus, the law of the escape time."""

from theory.checkpoints import (
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
from theory.critical import CriticalPoints, critical_points
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
from theory.plateau import Plateau, plateau
from theory.stability import SearchPhase, escape_rate, search_phase, sweep

__all__ = [
    "REGIMES",
    "VERDICTS",
    "Checkpoints",
    "CriticalPoints",
    "EscapeLaw",
    "FineTuning",
    "Plateau",
    "SearchPhase",
    "Turn",
    "UnstableMode",
    "UpNoise",
    "Verdict",
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
    "plateau",
    "pretraining_times",
    "search_phase",
    "sweep",
    "unstable_mode",
    "up_noise",
]
