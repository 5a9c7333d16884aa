"""The figures, one file each: how their data are computed and how they are drawn."""

from validation.figures import (
    alignment_strength,
    bias,
    checkpoints,
    curriculum,
    dynamics,
    escape_time,
    gradient_transfer,
    hermite_loss,
    law,
    phase_diagram,
    potential,
    rank,
    scratch_against_lora,
    truncation,
    two_frequencies,
)
from validation.figures.base import FULL, QUICK, Figure, Settings, Work

_MODULES = (
    escape_time,
    dynamics,
    potential,
    bias,
    gradient_transfer,
    two_frequencies,
    hermite_loss,
    curriculum,
    scratch_against_lora,
    law,
    rank,
    alignment_strength,
    checkpoints,
    phase_diagram,
    truncation,
)

FIGURES: dict[str, Figure] = {figure.name: figure for module in _MODULES for figure in module.FIGURES}
"""Every figure by name, in the order of the gallery."""

__all__ = ["FIGURES", "FULL", "QUICK", "Figure", "Settings", "Work"]
