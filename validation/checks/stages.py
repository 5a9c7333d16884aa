"""Pretraining, freezing and fine-tuning in one run: the ODE against both simulators."""

from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from odes import (
    Escape,
    Overlaps,
    Problem,
    Stage,
    Transfer,
    losses,
    self_moments,
    solve,
    solve_stages,
    target_overlap,
)
from theory import passage, patience, search_phase, staged_start
from validation.checks.base import AMPLITUDE, Case, Note, Result
from validation.simulation.chain import chain_simulator
from validation.simulation.direct import direct_simulator
from validation.simulation.ensemble import simulate_stages
from validation.simulation.result import mean_and_error

_DIRECT_DIMENSION, _DIRECT_SEEDS = 1000, 64
"""Of the direct simulator."""

_PATIENCE = 100
"""Pretraining is given so many units of 1/E[σ'^2]."""


def transfer_of(problem: Problem) -> Transfer:
    """Pretraining on the direction of a setting's w0, by the same SGD, and fine-tuning as the setting says."""
    target, adapter, sgd = problem.teacher, problem.adapter, problem.sgd
    return Transfer(problem.student, cosine=problem.alignment, target=target, adapter=adapter, sgd=sgd)


def _stages(transfer: Transfer, before: float, after: float) -> list[Stage]:
    """Pretraining and fine-tuning, each for a time."""
    return [Stage("pretraining", transfer.pretraining, before), Stage("LoRA", transfer.lora, after)]


@eqx.filter_jit
def _stage_observables(transfer: Transfer, overlaps: Overlaps) -> dict[str, jax.Array]:
    """What is compared of a run in stages, at many overlaps."""

    step = transfer.adapter.kappa * overlaps.up
    return {
        "target_overlap": target_overlap(transfer.lora, overlaps),
        "square": jnp.einsum("...kr,...rs,...ks->...", step, overlaps.down_gram, step),
        "target loss": losses(transfer.lora, overlaps),
        "source loss": losses(transfer.pretraining, overlaps),
    }


def stages(case: Case) -> Iterator[Result]:
    """w·ω*, |w|² and both losses through pretraining on w0's direction, freezing and LoRA: the ODE, chain and direct simulator.

    Pretraining ends when its loss has fallen tenfold; compared are the border and three times about the escape.
    """
    here = case.at(dimension=case.effort.trajectory_dimension)
    theory, eta = transfer_of(here.theory), float(here.problem.sgd.learning_rate)
    begin = staged_start(theory, theory.typical_start(), AMPLITUDE)
    longest = _PATIENCE / float(self_moments(theory.student, 1.0).cross)
    first = passage(theory.pretraining, begin, Escape("loss", 0.1), longest, origin=begin)
    if not np.isfinite(first.escape_time):
        yield Note(case.name, f"stages: the source loss does not fall tenfold by t = {longest:.3g}")
        return
    start = staged_start(theory, first.final, AMPLITUDE)
    before = round(float(first.escape_time) / eta)
    border = solve(theory.pretraining, start, t1=before * eta, finite_steps=True).final
    longest = float(patience(search_phase(theory.fine_tuning(border))))
    second = passage(theory.lora, border, case.escape, longest, origin=border)
    if not np.isfinite(second.escape_time):
        yield Note(case.name, f"stages: fine-tuning does not escape by t = {longest:.3g}")
        return
    after = np.unique(np.round(np.array([0, 0.5, 1, 1.3]) * float(second.escape_time) / eta).astype(int))
    durations = before * eta, after[-1] * eta
    path = solve_stages(_stages(theory, *durations), start, records=[[before * eta], after * eta], finite_steps=True)
    predicted = _stage_observables(theory, jax.tree.map(lambda x: x[path.stage == 1], path.overlaps))
    direct = case.at(dimension=_DIRECT_DIMENSION)
    for simulator, there, seeds in (
        (chain_simulator, here, case.effort.trajectory_seeds),
        (direct_simulator, direct, _DIRECT_SEEDS),
    ):
        transfer = transfer_of(there.problem)
        _, run = simulate_stages(
            _stages(transfer, *durations),
            lambda problem, _, simulator=simulator: simulator(problem, start=start),
            key=there.key,
            seeds=seeds,
            records=[1, after],
        )
        for name, values in _stage_observables(transfer, run.overlaps).items():
            for i, step in enumerate(after):
                when = "the border" if step == 0 else f"t = {step * eta:.4g} after it"
                mean, error = mean_and_error(values[:, i])
                yield there.check(f"{name} at {when}, {run.method}", predicted[name][i], mean, error, runs=seeds)
