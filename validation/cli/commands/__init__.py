"""The commands of `searchphase`, each a dataclass of flags with a `run` method that returns the exit code."""

from validation.cli.commands.checkpoints import Checkpoints
from validation.cli.commands.demo import Demo
from validation.cli.commands.escape import Escape
from validation.cli.commands.figures import Figures
from validation.cli.commands.phase_diagram import PhaseDiagram
from validation.cli.commands.remedies import Remedies
from validation.cli.commands.simulate import Simulate
from validation.cli.commands.solve import Solve
from validation.cli.commands.validate import Validate

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
