"""Every figure by name."""

import functools
import importlib

from validation.figures.figure import Figure

_MODULES = (
    "escape_time",
    "dynamics",
    "potential",
    "bias",
    "gradient_transfer",
    "two_frequencies",
    "hermite_loss",
    "curriculum",
    "scratch_against_lora",
    "law",
    "rank",
    "alignment_strength",
    "checkpoints",
    "phase_diagram",
    "truncation",
    "two_layer",
    "continual",
    "committee",
)


@functools.cache
def all_figures() -> dict[str, Figure]:
    """Every figure by name, in the order of the gallery; their modules are imported now."""
    modules = (importlib.import_module(f"validation.figures.{name}") for name in _MODULES)
    return {figure.name: figure for module in modules for figure in module.FIGURES}
