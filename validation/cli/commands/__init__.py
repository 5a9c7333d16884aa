"""The commands of `searchphase`, each a dataclass of flags with a `run` method that returns the exit code."""

import importlib

COMMANDS = (
    "escape",
    "phase-diagram",
    "solve",
    "equations",
    "simulate",
    "merge",
    "validate",
    "checkpoints",
    "remedies",
    "figures",
    "demo",
    "explore",
    "cache",
)
"""The names of the commands. The class of `phase-diagram` is `PhaseDiagram` in the module `phase_diagram`."""


def command(name: str) -> type:
    """The class of a command, whose module is imported only now."""
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return getattr(module, name.title().replace("-", ""))
