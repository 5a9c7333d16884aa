r"""A second task after the first: what an adapter learns and what it forgets, against time and against the tasks' cosine.

Four units with trained readouts learn a committee of two teachers; then their weights and readouts rest and an adapter learns another one,
whose teachers have the cosine c with those of the first. The setting is close to that of Marchetta et al. 2026 (arXiv:2609.39367).
"""

from typing import Any

import jax
import numpy as np

from odes import SGD, Adapter, Overlaps, Stage, StagedSolution, Transfer, losses, solve_stages
from odes.programs import program
from validation.figures.figure import Figure, as_dataset
from validation.figures.measured import log_steps
from validation.figures.style import LOSS_LABEL, TIME_LABEL, draw_simulated, panels
from validation.figures.work import Work
from validation.simulation import chain_simulator, mean_and_error, simulate_stages

_RANKS = 1, 2, 4
_SHOWN = 0.5
_PRETRAINING, _TUNING = 600.0, 3000.0
_RATE = 0.2
_DIMENSION, _BATCH = 1000, 2000
_SEEDS = 4


_losses = program(losses)


def _transfer(cosine: float, rank: int) -> Transfer:
    sgd = SGD(dimension=_DIMENSION, batch_size=_BATCH, learning_rate=_RATE)
    return Transfer(
        "erf(x/sqrt(2))",
        cosine=cosine,
        units=4,
        teachers=2,
        readout=[0.5] * 4,
        adapter=Adapter(rank),
        sgd=sgd,
        pretraining_sgd=sgd.replace(readout_lr_ratio=1.0),
    )


def _stages(transfer: Transfer) -> list[Stage]:
    return [Stage("first task", transfer.pretraining, _PRETRAINING), Stage("second task", transfer.lora, _TUNING)]


def _start(transfer: Transfer) -> Overlaps:
    """One random start of each rank and cosine."""
    return transfer.random_start(jax.random.key(3))


def _followed(transfer: Transfer, times: np.ndarray) -> StagedSolution:
    """Both stages by the flow of finite steps, recorded at some times of the second."""
    records = [[_PRETRAINING], times]
    return solve_stages(_stages(transfer), _start(transfer), records=records, finite_steps=True, rtol=1e-7)


def _simulated(work: Work, transfer: Transfer, steps: np.ndarray) -> np.ndarray:
    """Mean losses on both tasks and their standard errors, (2, 2, records), of seeds that start like the flow."""
    start = _start(transfer)
    *_, run = simulate_stages(
        _stages(transfer),
        lambda problem, _: chain_simulator(problem, start=start),
        key=work.key(),
        seeds=min(_SEEDS, work.effort.seeds),
        records=[1, steps],
    )
    losses = [run.loss, _losses(transfer.pretraining, run.overlaps)]
    return np.stack([mean_and_error(loss) for loss in losses])


def compute(work: Work) -> Any:
    """Losses along the second task at one cosine, with the chain's, and at its end for all cosines."""
    last = round(_TUNING / _RATE)
    times = np.concatenate([[0.0], np.geomspace(1.0, _TUNING, work.effort.points)])
    steps = log_steps(5, last, 12)
    cosines = np.round(np.linspace(0, 1, 2 * (work.effort.points // 12) + 1), 12)
    along, marks, ends, halved = [], [], [], []
    for rank in _RANKS:
        run = _followed(_transfer(_SHOWN, rank), times)
        along.append(np.asarray(run.losses)[::-1, 1:])
        marks.append(_simulated(work, _transfer(_SHOWN, rank), steps))
        runs = [_followed(_transfer(cosine, rank), times) for cosine in cosines.tolist()]
        losses = np.stack([np.asarray(run.losses)[::-1, 1:] for run in runs])
        ends.append(losses[..., -1])
        halved.append([_halved(times, loss) for loss in losses[:, 0]])
    return as_dataset(
        {
            "loss": (("rank", "task", "time"), along),
            "simulated_loss": (("rank", "task", "moment", "record"), marks),
            "final_loss": (("rank", "cosine", "task"), ends),
            "halving_time": (("rank", "cosine"), halved),
        },
        coords={
            "time": times,
            "record": _RATE * steps,
            "rank": list(_RANKS),
            "cosine": cosines,
            "task": ["second", "first"],
        },
        attrs={"dimension": _DIMENSION, "batch_size": _BATCH, "learning_rate": _RATE, "shown_cosine": _SHOWN},
    )


def _halved(times: np.ndarray, loss: np.ndarray) -> float:
    """When the loss has fallen to half of its start, linear between two times; NaN if it does not, or is next to nothing."""
    below = np.flatnonzero(loss <= loss[0] / 2)
    if not below.size or loss[0] < 1e-3:
        return np.nan
    n = below[0]
    return float(np.interp(loss[0] / 2, loss[[n, n - 1]], times[[n, n - 1]]))


def draw(dataset: Any) -> Any:
    """Losses against time, losses at the end against the cosine, and the time until the loss on the second task is halved."""
    figure, axes = panels(1, 3, 2.4)
    cosines = dataset["cosine"].values
    for i, rank in enumerate(dataset["rank"].values.tolist()):
        colour = f"C{i}"
        for task, line in enumerate(("-", "--")):
            axes[0].plot(dataset["time"], dataset["loss"][i, task], line, color=colour)
            mean, error = dataset["simulated_loss"].values[i, task]
            draw_simulated(axes[0], dataset["record"], mean, error, color=colour, markersize=2.5)
            axes[1].plot(cosines, dataset["final_loss"][i, :, task], line, color=colour)
        axes[2].plot(cosines, dataset["halving_time"][i], color=colour, label=f"rank {rank}")
    axes[1].plot([], [], "k-", label="second task")
    axes[1].plot([], [], "k--", label="first task")
    axes[0].set(xscale="log", yscale="log", xlim=(1, None), ylim=(1e-5, 2), xlabel=TIME_LABEL, ylabel=LOSS_LABEL)
    axes[0].set_title(f"$c$ = {dataset.attrs['shown_cosine']:g}")
    axes[1].legend(loc="lower left", bbox_to_anchor=(0, 0.17))
    axes[1].set(yscale="log", ylim=(1e-5, 2), xlabel="cosine of the tasks $c$", ylabel=r"loss at the end")
    axes[2].set(yscale="log", xlabel="cosine of the tasks $c$", ylabel="time until the loss is halved")
    axes[2].legend()
    return figure


FIGURES = (
    Figure(
        "continual",
        "A committee of four units learns two teachers, then an adapter of rank 1, 2 or 4 learns two others: what is learnt and forgotten.",
        compute,
        draw,
    ),
)
