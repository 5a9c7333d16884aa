"""LoRA fine-tuning in high dimension: `odes` (the closed equations), `theory` (what they say), `validation` (finite-d SGD)."""

import importlib.metadata

import odes
import theory
import validation.simulation

__all__ = ["odes", "theory", "validation"]
__version__ = importlib.metadata.version("searchphase")
