"""The commands of `searchphase`, each a dataclass of flags with a `run` method that returns the exit code."""

from validation.commands.checkpoints import Checkpoints
from validation.commands.demo import Demo
from validation.commands.escape import Escape
from validation.commands.figures import Figures
from validation.commands.phase_diagram import PhaseDiagram
from validation.commands.remedies import Remedies
from validation.commands.simulate import Simulate
from validation.commands.solve import Solve
from validation.commands.validate import Validate

COMMANDS = {
    "escape": Escape,
    "phase-diagram": PhaseDiagram,
    "solve": Solve,
    "simulate": Simulate,
    "validate": Validate,
    "checkpoints": Checkpoints,
    "remedies": Remedies,
    "figures": Figures,
    "demo": Demo,
}
"""The commands by name."""
