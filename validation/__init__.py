"""Evidence: finite-d simulation, its comparison with theory, pictures, and the command line."""

from validation.chain import ChainSimulator, chain_simulator, simulate_chain
from validation.compare import Comparison, compare
from validation.ensemble import Simulator, simulate, simulate_stages
from validation.sgd import DirectSimulator, direct_simulator, simulate_direct
from validation.trajectories import Simulation, even_steps

__all__ = [
    "ChainSimulator",
    "Comparison",
    "DirectSimulator",
    "Simulation",
    "Simulator",
    "chain_simulator",
    "compare",
    "direct_simulator",
    "even_steps",
    "simulate",
    "simulate_chain",
    "simulate_direct",
    "simulate_stages",
]
