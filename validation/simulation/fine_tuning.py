"""Pretraining and fine-tuning simulated from random starts: what theory says of checkpoints, measured."""

import functools
from typing import Any

import numpy as np
from jaxtyping import Float, PRNGKeyArray

from odes import Escape, Stage, Transfer
from validation.simulation.chain import affordable_chain
from validation.simulation.ensemble import simulate_stages
from validation.simulation.result import last_step

_RECORDS = 300
_SAMPLES_PER_SEED = 5e6
"""A seed that would need more samples in one stage draws its batches' means from their normal limit."""


def simulated_fine_tuning(
    transfer: Transfer,
    time: float,
    goal: Escape,
    *,
    longest: float,
    seeds: int,
    key: PRNGKeyArray,
    **options: Any,
) -> Float[np.ndarray, " seeds"]:
    """How long the exact chain of every seed takes to the goal after pretraining from random weights for `time`.

    NaN for seeds that have not reached it after `longest`. Pretraining goes on for the whole number of steps next to `time`. All other
    `options` are those of [`validation.simulation.simulate_stages`][].
    """
    rate = float(transfer.sgd.learning_rate)
    stages = [
        Stage("pretraining", transfer.pretraining, time),
        Stage("fine-tuning", transfer.lora, rate * last_step(longest, rate)),
    ]
    start = {"up": transfer.up, "length": transfer.lengths, "samples": _SAMPLES_PER_SEED}
    _, run = simulate_stages(
        stages,
        functools.partial(affordable_chain, **start),
        [1, _RECORDS],
        key=key,
        seeds=seeds,
        escape=goal,
        until_escape=True,
        **options,
    )
    return np.asarray(run.escape_times)
