"""One-pass SGD at finite dimension: with d-dimensional weights, or exactly in law on the overlaps."""

from validation.simulation.blocks import Block
from validation.simulation.chain import ChainSimulator, affordable_chain, chain_simulator, simulate_chain
from validation.simulation.direct import DirectSimulator, direct_simulator, simulate_direct
from validation.simulation.ensemble import simulate, simulate_stages
from validation.simulation.fine_tuning import simulated_fine_tuning
from validation.simulation.points import simulate_points
from validation.simulation.result import Simulation, even_steps, mean_and_error, observables
from validation.simulation.simulator import Simulator
from validation.simulation.sweeps import Place, Simulations, Sweep

__all__ = [
    "Block",
    "ChainSimulator",
    "DirectSimulator",
    "Place",
    "Simulation",
    "Simulations",
    "Simulator",
    "Sweep",
    "affordable_chain",
    "chain_simulator",
    "direct_simulator",
    "even_steps",
    "mean_and_error",
    "observables",
    "simulate",
    "simulate_chain",
    "simulate_direct",
    "simulate_points",
    "simulate_stages",
    "simulated_fine_tuning",
]
