r"""Two-layer networks: the loss of an adapter on four pretrained units against time, ODE over simulation.

The setting is that of Nwemadji, Loureiro & Barbier 2026 (arXiv:2602.02855): d = 100, batches of 5000, four orthonormal teachers,
$W_0 = \mathrm{diag}(\mu, \mu, 1, 1)\,T$, readouts $1/\sqrt K$ for links of mean zero and 1/K else, rows of V normalised.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from odes import SGD, Adapter, Overlaps, Problem, log_times, random_overlaps
from odes.programs import program
from validation.figures.figure import Figure, as_dataset
from validation.figures.measured import followed, log_steps
from validation.figures.style import LOSS_LABEL, TIME_LABEL, draw_simulated, link_label, panels, strength_colour
from validation.figures.work import Work
from validation.simulation import mean_and_error

_LINKS = {"erf": "1/sqrt(n)", "relu": "1/n"}
_STRENGTHS = 0.1, 0.5, 0.9
_RANKS = 1, 2, 4
_DIMENSION, _BATCH, _RATE = 100.0, 5000, 0.5
_END, _FIRST = 5000.0, 2.0
_SEEDS = 8
_RECORDS = 10
_DIRECT = "erf", 2, 0.5


def _problem(link: str, rank: int, mu: float) -> Problem:
    readout = _LINKS[link]
    return Problem.committee(
        link,
        pretrained=[mu, mu, 1, 1],
        readout=readout,
        teacher_readout=readout,
        adapter=Adapter(rank),
        sgd=SGD(dimension=_DIMENSION, batch_size=_BATCH, learning_rate=_RATE),
    )


def _start(problem: Problem) -> Overlaps:
    """One random start, the same for all strengths of a rank, since overlaps with the teachers do not know μ."""
    return random_overlaps(problem, jax.random.key(1))


@program
def _losses(problems: Problem, starts: Overlaps, times: jax.Array) -> jax.Array:
    """The losses (strengths, T) of the flow of finite steps."""
    return eqx.filter_vmap(lambda problem, start: followed(problem, start, times, rtol=1e-7).loss)(problems, starts)


def _stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def compute(work: Work) -> Any:
    """The flow for every link, rank and strength; the chain, and one case by the direct simulator, all from the flow's starts."""
    effort, times = work.effort, log_times(_END, work.effort.points, first=_FIRST)
    steps = log_steps(_FIRST / _RATE, min(_END / _RATE, effort.most_steps / 4), _RECORDS)
    seeds = min(effort.seeds, _SEEDS) if effort.simulated_links > 1 else 2
    lines, marks = [], []
    for link in _LINKS:
        for rank in _RANKS:
            problems = [_problem(link, rank, mu) for mu in _STRENGTHS]
            starts = [_start(problem) for problem in problems]
            lines.append(_losses(_stacked(problems), _stacked(starts), times))
            for problem, start in zip(problems, starts, strict=True):
                run = work.chain(problem, steps, start=start, seeds=seeds)
                marks.append(np.stack(mean_and_error(run.loss)))
    problem = _problem(*_DIRECT)
    run = work.direct(problem, steps, start=_start(problem), dimension=_DIMENSION)
    shape = (len(_LINKS), len(_RANKS), len(_STRENGTHS))
    every = ("link", "rank", "strength")
    return as_dataset(
        {
            "loss": ((*every, "time"), np.stack(lines).reshape(*shape, -1)),
            "simulated_loss": ((*every, "moment", "record"), np.stack(marks).reshape(*shape, 2, -1)),
            "direct_loss": (("moment", "record"), np.stack(mean_and_error(run.loss))),
        },
        coords={
            "time": times,
            "record": np.asarray(run.t),
            "link": list(_LINKS),
            "rank": list(_RANKS),
            "strength": list(_STRENGTHS),
        },
        attrs={"dimension": _DIMENSION, "batch_size": _BATCH, "learning_rate": _RATE},
    )


def draw(dataset: Any) -> Any:
    """A row of panels for each link and a column for each rank; strengths have colours."""
    links, ranks = dataset["link"].values.tolist(), dataset["rank"].values.tolist()
    figure, axes = panels(len(links), len(ranks), 3.6, sharex=True, sharey="row")
    for i, link in enumerate(links):
        for j, rank in enumerate(ranks):
            ax = axes[i, j]
            for k, mu in enumerate(dataset["strength"].values):
                colour = strength_colour(mu)
                ax.plot(dataset["time"], dataset["loss"][i, j, k], color=colour, label=f"{mu:g}")
                mean, error = dataset["simulated_loss"].values[i, j, k]
                draw_simulated(ax, dataset["record"], mean, error, color=colour, markersize=2.5)
                if (link, rank, mu) == _DIRECT:
                    mean, error = dataset["direct_loss"].values
                    draw_simulated(ax, dataset["record"], mean, error, direct=True, color=colour, markersize=4)
            ax.set(xscale="log", yscale="log", xlim=(_FIRST, None), ylim=(1e-6, None))
            ax.set_title(f"{link_label(link)}, rank {rank}")
            if i == len(links) - 1:
                ax.set(xlabel=TIME_LABEL)
        axes[i, 0].set(ylabel=LOSS_LABEL)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), title=r"$\mu$", loc="outside right center", handlelength=1)
    return figure


FIGURES = (
    Figure(
        "two-layer",
        "Loss against time for adapters of rank 1, 2 and 4 on four pretrained units of erf and relu, two of strength 0.1, 0.5 or 0.9.",
        compute,
        draw,
    ),
)
