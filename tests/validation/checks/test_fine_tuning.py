"""The time of fine-tuning from a checkpoint against the chain, pretraining included."""

import numpy as np

from odes import SGD, Escape, Transfer
from theory import checkpoints
from validation.simulation import simulated_fine_tuning


def test_simulated_fine_tuning_takes_the_time_that_theory_says(key):
    """From the checkpoint at pretraining time 1: the mean of 60 seeds within four standard errors."""
    transfer = Transfer("erf", cosine=0.8, sgd=SGD(learning_rate=0.05, batch_size=500, dimension=1e4))
    goal = Escape("absolute", 0.0232)
    time = float(checkpoints(transfer, np.arange(1, 9) / 8, goal).tuning.time[-1])
    simulated = simulated_fine_tuning(transfer, 1.0, goal, longest=120.0, seeds=60, key=key)
    error = simulated.std(ddof=1) / np.sqrt(simulated.size)
    assert abs(simulated.mean() - time) < 4 * error
