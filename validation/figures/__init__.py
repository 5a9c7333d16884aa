"""The figures, one file each: how their data are computed and how they are drawn."""

from validation.figures import dynamics, escape_time
from validation.figures.base import FULL, QUICK, Figure, Settings, Work

FIGURES: dict[str, Figure] = {figure.name: figure for module in (escape_time, dynamics) for figure in module.FIGURES}
"""Every figure by name, in the order of the gallery."""

__all__ = ["FIGURES", "FULL", "QUICK", "Figure", "Settings", "Work"]
