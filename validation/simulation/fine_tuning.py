"""Pretraining and fine-tuning simulated from random starts: what theory says of checkpoints, measured."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, PRNGKeyArray

from odes import Escape, Transfer
from validation.simulation.chain import affordable_chain
from validation.simulation.ensemble import Block, simulate_stages
from validation.simulation.result import even_steps

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
    progress: bool = False,
    kept: Callable[[int, Callable[[], Block]], Block] | None = None,
) -> Float[np.ndarray, " seeds"]:
    """How long the exact chain of every seed takes to the goal after pretraining from random weights for `time`.

    NaN for seeds that have not reached it after `longest`. Pretraining goes on for the whole number of steps next to `time`.
    """
    first, second = transfer.pretraining, transfer.lora
    before = round(time / float(first.sgd.learning_rate))
    after = even_steps(longest, float(second.sgd.learning_rate), _RECORDS)
    stages = (first, np.unique([0, before])), (second, after)
    start = {"up": transfer.up, "length": transfer.lengths, "samples": _SAMPLES_PER_SEED}
    runs = simulate_stages(
        [affordable_chain(problem, steps, **start) for problem, steps in stages],
        key=key,
        seeds=seeds,
        steps=[steps for _, steps in stages],
        until=goal,
        progress=progress,
        kept=kept,
    )
    return np.asarray(runs[1].escape_times(goal, runs[1].start))
