"""Every figure by name."""

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
from validation.figures.figure import Figure

_ALL = (
    *escape_time.FIGURES,
    *dynamics.FIGURES,
    potential.FIGURE,
    *bias.FIGURES,
    gradient_transfer.FIGURE,
    two_frequencies.FIGURE,
    hermite_loss.FIGURE,
    curriculum.FIGURE,
    scratch_against_lora.FIGURE,
    law.FIGURE,
    rank.FIGURE,
    alignment_strength.FIGURE,
    checkpoints.FIGURE,
    phase_diagram.FIGURE,
    truncation.FIGURE,
)

FIGURES: dict[str, Figure] = {figure.name: figure for figure in _ALL}
"""Every figure by name, in the order of the gallery."""
