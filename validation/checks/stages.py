"""Pretraining, freezing and fine-tuning in one run: the ODE against both simulators."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from odes import (
    Escape,
    Overlaps,
    Stage,
    Transfer,
    losses,
    self_moments,
    solve,
    solve_stages,
)
from odes.overlaps import target_overlaps
from odes.programs import program
from theory import escape_modes, leading_phase, passage, patience, staged_start
from validation.checks.base import AMPLITUDE, Case, Note, Result
from validation.simulation.chain import chain_simulator
from validation.simulation.direct import direct_simulator
from validation.simulation.ensemble import simulate_stages
from validation.simulation.result import mean_and_error

_DIRECT_DIMENSION, _DIRECT_SEEDS = 1000, 64
"""Of the direct simulator."""

_SCATTER = 0.05
"""Where seeds scatter by more, relative to the largest overlap, their mean is not the flow's: it differs by the square of that."""

_PATIENCE = 100
"""Pretraining is given so many units of 1/E[σ'^2]."""


def _stages(transfer: Transfer, before: float, after: float) -> list[Stage]:
    """Pretraining and fine-tuning, each for a time."""
    return [Stage("pretraining", transfer.pretraining, before), Stage("LoRA", transfer.lora, after)]


def _stage_observables(transfer: Transfer, overlaps: Overlaps) -> dict[str, jax.Array]:
    """What is compared of a run in stages, at many overlaps."""
    units, teachers = transfer.units, transfer.teachers
    if (units, teachers) == (1, 1):
        names = ["target_overlap", "square"]
    else:
        names = [f"w{k + 1}.t{j + 1}" for k in range(units) for j in range(teachers)]
        names += [f"|w{k + 1}|^2" for k in range(units)]
    values = jnp.moveaxis(_numbers(transfer, overlaps), -1, 0)
    return dict(zip([*names, "target loss", "source loss"], values, strict=True))


@program
def _numbers(transfer: Transfer, overlaps: Overlaps) -> jax.Array:
    """The overlaps of the units' rows with the target's directions, their squared lengths, and the losses on both tasks, (..., n)."""
    step, along = transfer.adapter.kappa * overlaps.up, target_overlaps(transfer.lora, overlaps)
    squares = jnp.einsum("...kr,...rs,...ks->...k", step, overlaps.down_gram, step)
    both = [losses(problem, overlaps)[..., None] for problem in (transfer.lora, transfer.pretraining)]
    return jnp.concatenate([along.reshape(*along.shape[:-2], -1), squares, *both], axis=-1)


def stages(case: Case) -> Iterator[Result]:
    """Overlaps with the target, lengths and both losses through pretraining, freezing and LoRA: the ODE, chain and direct simulator.

    All runs start with the overlaps of the flow, where the weights have begun to learn the source and the adapter lies along all that
    it is to learn ([`theory.staged_start`][]), so that fluctuations of the order $d^{-1/2}$ are small against everything that grows.
    Pretraining ends when its loss has fallen tenfold; compared are the border and three times about the escape.
    """
    here = case.at(dimension=case.effort.trajectory_dimension)
    transfer, theory = here.staged
    rates = float(transfer.pretraining_sgd.learning_rate), float(transfer.sgd.learning_rate)
    begin = staged_start(theory, None, AMPLITUDE)
    longest = _PATIENCE / float(self_moments(theory.student, 1.0).cross)
    first = passage(theory.pretraining, begin, Escape("loss", 0.1), longest, origin=begin)
    if not np.isfinite(first.escape_time):
        yield Note(case.name, f"stages: the source loss does not fall tenfold by t = {longest:.3g}")
        return
    start = staged_start(theory, first.final, AMPLITUDE)
    before = rates[0] * round(float(first.escape_time) / rates[0])
    border = solve(theory.pretraining, start, t1=before, finite_steps=True).final
    modes = escape_modes(theory.fine_tuning(border))
    longest = float(patience(leading_phase(modes), modes))
    second = passage(theory.lora, border, case.escape, longest, origin=border)
    if not np.isfinite(second.escape_time):
        yield Note(case.name, f"stages: fine-tuning does not escape by t = {longest:.3g}")
        return
    after = np.unique(np.round(np.array([0, 0.5, 1, 1.3]) * float(second.escape_time) / rates[1]).astype(int))
    durations = before, after[-1] * rates[1]
    path = solve_stages(_stages(theory, *durations), start, records=[[before], after * rates[1]], finite_steps=True)
    predicted = _stage_observables(theory, jax.tree.map(lambda x: x[path.stage == 1], path.overlaps))
    direct = case.at(dimension=_DIRECT_DIMENSION)
    for simulator, there, seeds in (
        (chain_simulator, here, case.effort.trajectory_seeds),
        (direct_simulator, direct, _DIRECT_SEEDS),
    ):
        transfer, _ = there.staged
        _, run = simulate_stages(
            _stages(transfer, *durations),
            lambda problem, _, simulator=simulator: simulator(problem, start=start),
            key=there.key,
            seeds=seeds,
            records=[1, after],
        )
        found = _stage_observables(transfer, run.overlaps)
        lengths = np.stack([values for name, values in found.items() if "loss" not in name])
        scatter = lengths.std(axis=1).max(axis=0) / np.abs(lengths.mean(axis=1)).max()
        number = int(np.argmax([*(scatter > _SCATTER), True]))
        if number < after.size:
            time = after[number] * rates[1]
            reason = (
                f"stages, {run.method}, from t = {time:.4g} after the border on: seeds scatter by {scatter[number]:.0%}"
            )
            yield Note(case.name, reason)
        for name, values in found.items():
            for i, step in enumerate(after[:number]):
                when = "the border" if step == 0 else f"t = {step * rates[1]:.4g} after it"
                mean, error = mean_and_error(values[:, i])
                yield there.check(f"{name} at {when}, {run.method}", predicted[name][i], mean, error, runs=seeds)
