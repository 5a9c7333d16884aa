"""Statements about the closed equations: the search phase, passages and their law, checkpoints, remedies, phase diagrams."""

from theory.boundary import Boundaries, BoundaryKind, boundaries
from theory.critical import CriticalPoints, critical_points
from theory.diagram import PhaseDiagram, Region, phase_diagram
from theory.hermite import hermite_coefficients, information_exponent
from theory.law import EscapeLaw, escape_law, largest_noise_scale
from theory.modes import EscapeModes, escape_modes, escape_rate
from theory.passages import passage, patience
from theory.plateaus import Plateau, plateau
from theory.pretraining import Checkpoints, checkpoints, pretrained_until, pretraining_times
from theory.remedy import WAYS, Remedy, possible_ways, remedies
from theory.saddles import Saddle, escape_spectrum, fixed_point, saddles, visit
from theory.search import (
    SearchPhase,
    UnstableMode,
    amplitudes,
    leading_phase,
    noise_unit,
    search_phase,
    sweep,
    unstable_mode,
)
from theory.starts import (
    mode_start,
    on_rows,
    random_start,
    resting_start,
    shared_start,
    spread_start,
    staged_start,
    start_normals,
    typical_amplitude,
    typical_start,
    weights_start,
)
from theory.trust import Fluctuations, Validity, fluctuations, stretched, too_fast, validity
from theory.tuning import FineTuning, fine_tuning
from theory.verdict import Candidate, Effect, Verdict, judge

__all__ = [
    "Boundaries",
    "BoundaryKind",
    "Candidate",
    "Checkpoints",
    "CriticalPoints",
    "Effect",
    "EscapeLaw",
    "EscapeModes",
    "FineTuning",
    "Fluctuations",
    "PhaseDiagram",
    "Plateau",
    "Region",
    "Remedy",
    "Saddle",
    "SearchPhase",
    "UnstableMode",
    "Validity",
    "Verdict",
    "WAYS",
    "amplitudes",
    "boundaries",
    "checkpoints",
    "critical_points",
    "escape_law",
    "escape_modes",
    "escape_rate",
    "escape_spectrum",
    "fine_tuning",
    "fixed_point",
    "fluctuations",
    "hermite_coefficients",
    "information_exponent",
    "judge",
    "largest_noise_scale",
    "leading_phase",
    "mode_start",
    "noise_unit",
    "on_rows",
    "passage",
    "patience",
    "phase_diagram",
    "plateau",
    "possible_ways",
    "pretrained_until",
    "pretraining_times",
    "random_start",
    "remedies",
    "resting_start",
    "saddles",
    "search_phase",
    "shared_start",
    "spread_start",
    "staged_start",
    "start_normals",
    "stretched",
    "sweep",
    "too_fast",
    "typical_amplitude",
    "typical_start",
    "unstable_mode",
    "validity",
    "visit",
    "weights_start",
]
