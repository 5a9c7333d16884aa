"""The commands of `searchphase`, each a dataclass of flags with a `run` method that returns the exit code."""

from validation.commands.demo import Demo
from validation.commands.escape import Escape
from validation.commands.figures import Figures
from validation.commands.simulate import Simulate
from validation.commands.solve import Solve
from validation.commands.validate import Validate

COMMANDS = {
    "escape": Escape,
    "solve": Solve,
    "simulate": Simulate,
    "validate": Validate,
    "figures": Figures,
    "demo": Demo,
}
"""The commands by name."""
