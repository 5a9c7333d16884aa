"""The computation of a figure: simulations that are stored as they are finished, and the SGD that they are run with."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from odes import SGD, Escape, Overlaps, Problem, Transfer
from validation.figures.effort import Effort
from validation.jobs.parts import Parts
from validation.simulation import (
    Simulation,
    Simulator,
    affordable_chain,
    direct_simulator,
    even_steps,
    mean_and_error,
    simulate,
    simulated_fine_tuning,
)


class Work:
    """The computation of one figure: its effort, and simulations whose blocks are stored as they are finished.

    The simulations of a figure are numbered in the order in which they are asked for, which must not depend on anything
    but the effort: then an interrupted computation goes on where it was.
    """

    def __init__(self, effort: Effort, parts: Parts | None = None):
        self.effort = effort
        self._parts = parts
        self._number = 0

    def key(self) -> jax.Array:
        """A key for the next simulation."""
        self._number += 1
        return jax.random.fold_in(jax.random.key(self.effort.seed), self._number)

    @property
    def _name(self) -> str:
        return f"simulation-{self._number}"

    def chain(
        self,
        problem: Problem,
        steps: Any,
        *,
        start: Overlaps | None = None,
        until: Escape | None = None,
        seeds: int | None = None,
    ) -> Simulation:
        """The exact chain of `seeds` (those of the effort unless given) from random starts, or all from `start`.

        Batch means are drawn from their normal limit where a seed would need more than 1e8 samples.
        """
        simulator = affordable_chain(problem, steps, start=start)
        return self._run(simulator, steps, until, self.effort.seeds if seeds is None else seeds)

    def direct(
        self,
        problem: Problem,
        steps: Any,
        *,
        start: Overlaps | None = None,
        until: Escape | None = None,
        dimension: float | None = None,
    ) -> Simulation:
        """The direct simulator of the problem at a `dimension`, the effort's `direct_dimension` unless given, with its noise scale."""
        there = self.effort.direct_dimension if dimension is None else dimension
        simulator = direct_simulator(at_dimension(problem, there), start=start)
        return self._run(simulator, steps, until, self.effort.direct_seeds)

    def escape_times(
        self,
        problem: Problem,
        longest: float,
        goal: Escape,
        *,
        records: int = 200,
        direct: bool = False,
        seeds: int | None = None,
    ) -> Float[np.ndarray, " seeds"]:
        """The escape times of seeds from random starts that are trained until `longest`; NaN for those that have not escaped."""
        steps = even_steps(longest, float(problem.sgd.learning_rate), records)
        run = self.direct(problem, steps, until=goal) if direct else self.chain(problem, steps, until=goal, seeds=seeds)
        return np.asarray(run.escape_times)

    def fine_tuning(self, transfer: Transfer, time: float, goal: Escape, longest: float) -> tuple[float, float]:
        """The mean fine-tuning time of the chain after pretraining for `time`, and its standard error.

        Both are NaN unless every seed reaches the goal before `longest`.
        """
        key, seeds = self.key(), self.effort.seeds
        options = {"seeds": seeds, "key": key, "parts": self._parts, "name": self._name}
        times = simulated_fine_tuning(transfer, time, goal, longest=longest, **options)
        mean, error = mean_and_error(times)
        return float(mean), float(error)

    def _run(self, simulator: Simulator, steps: Any, until: Escape | None, seeds: int) -> Simulation:
        key, stops = self.key(), {"escape": until, "until_escape": until is not None}
        return simulate(simulator, key=key, seeds=seeds, steps=steps, parts=self._parts, name=self._name, **stops)


def sgd_at(learning_rate: Any, noise_scale: Any, dimension: Any) -> SGD:
    """SGD whose batch is the whole number of samples with which the noise scale is nearest to the given one."""
    sgd = SGD(learning_rate=learning_rate, dimension=dimension).replace(noise_scale=noise_scale)
    return sgd.replace(batch_size=np.maximum(1.0, np.round(sgd.batch_size)))


def at_dimension(problem: Problem, dimension: float) -> Problem:
    """The same problem at another dimension: learning rate and noise scale are kept, up to the rounding of the batch."""
    batch = problem.sgd.batch_size * dimension / problem.sgd.dimension
    return problem.replace(dimension=dimension, batch_size=np.maximum(1.0, np.round(batch)))
