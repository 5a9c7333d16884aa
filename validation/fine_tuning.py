"""Pretraining and fine-tuning simulated from random starts: what theory says of checkpoints, measured."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from odes import Escape, Overlaps, Transfer
from validation.chain import ChainSimulator, chain_simulator
from validation.ensemble import Block, simulate_stages
from validation.trajectories import even_steps

_RECORDS = 300
_SAMPLES_PER_SEED = 5e6
"""A seed that would need more samples in one stage draws its batches' means from their normal limit."""


def stage_simulators(transfer: Transfer, stages: Sequence[Any], samples: Sequence[float]) -> list[ChainSimulator]:
    """The chains of some stages' problems, from random weights and adapters; `samples` a seed needs in every stage."""
    return [
        chain_simulator(
            problem, up=transfer.up, length=transfer.lengths, normal_batches=bool(_SAMPLES_PER_SEED < some < np.inf)
        )
        for problem, some in zip(stages, samples, strict=True)
    ]


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
    samples = [float(p.sgd.batch_size) * n for p, n in ((first, before), (second, after[-1]))]
    runs = simulate_stages(
        stage_simulators(transfer, (first, second), samples),
        key=key,
        seeds=seeds,
        steps=[np.unique([0, before]), after],
        until=goal,
        progress=progress,
        kept=kept,
    )
    origin: Overlaps = jax.tree.map(lambda x: x[:, 0], runs[1].overlaps)
    return np.asarray(runs[1].escape_times(goal, origin))
