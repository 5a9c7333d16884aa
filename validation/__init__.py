"""Evidence: finite-d simulation, its comparison with theory, pictures, and the command line."""

from validation.compare import Comparison, compare
from validation.sgd import simulate_direct
from validation.trajectories import Simulation, even_steps

__all__ = ["Comparison", "Simulation", "compare", "even_steps", "simulate_direct"]
