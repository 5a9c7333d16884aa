"""The high-dimensional limit of LoRA fine-tuning: closed equations for the overlaps, and their integration."""

from odes.activations import Activation, activation
from odes.devices import spread, spread_batched
from odes.equations import (
    diffusion,
    flow,
    gradient_at,
    kurtosis_at,
    losses,
    mean_change,
    modified_flow,
    noise_at,
)
from odes.erfs import nearest_erfs
from odes.escape import Escape
from odes.files import read_either, read_problem, read_transfer, write_problem
from odes.gaussian import PairMoments, pair_moments, self_moments
from odes.integration import Solution, log_times, solve
from odes.noise import in_closed_form, kurtosis_of, noise_error, noise_of
from odes.overlaps import (
    Covariances,
    Overlaps,
    covariances,
    frame_overlaps,
    gram_root,
    pretrained,
    random_overlaps,
    target_overlap,
    with_own_readout,
    with_readout,
)
from odes.population import PopulationGradient, gradient_of
from odes.problem import Family, Problem
from odes.quadrature import gaussian_average
from odes.stages import Stage, StagedSolution, restarted, solve_stages
from odes.storage import load, read_dataset
from odes.training import SGD, Adapter
from odes.trajectory import Trajectory
from odes.transfer import Transfer

__all__ = [
    "Activation",
    "Adapter",
    "Covariances",
    "Escape",
    "Family",
    "Overlaps",
    "PairMoments",
    "PopulationGradient",
    "Problem",
    "SGD",
    "Solution",
    "Stage",
    "StagedSolution",
    "Trajectory",
    "Transfer",
    "activation",
    "covariances",
    "diffusion",
    "flow",
    "frame_overlaps",
    "gaussian_average",
    "gradient_at",
    "gradient_of",
    "gram_root",
    "in_closed_form",
    "kurtosis_at",
    "kurtosis_of",
    "load",
    "log_times",
    "losses",
    "mean_change",
    "modified_flow",
    "nearest_erfs",
    "noise_at",
    "noise_error",
    "noise_of",
    "pair_moments",
    "pretrained",
    "random_overlaps",
    "read_dataset",
    "read_either",
    "read_problem",
    "read_transfer",
    "restarted",
    "self_moments",
    "solve",
    "solve_stages",
    "spread",
    "spread_batched",
    "target_overlap",
    "with_own_readout",
    "with_readout",
    "write_problem",
]
