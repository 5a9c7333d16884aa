r"""A curriculum near a critical strength: squared labels first, then the labels themselves.

At $\mu = 0.325$, close to the critical strength 0.3207 of He3, the gradient at w0 almost vanishes and the search lasts
thousands of time units. Squared labels are even and the student is odd, so that $C = 0$: they say nothing of $\omega^*$, but
their gradient $Dw_0$ is large, and the adapter's direction aligns with the pretrained weights (which are aligned with
the target) at once. It does so to cancel them: $w \to 0$, a local minimum of the loss on He3 labels. Stage two gets
there if stage one lasts too long. If that stops in time, or if V is kept and U restarted at 0, there is little left to
search. Every simulated seed of stage two starts where the flow of stage one ends.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from odes import SGD, Overlaps, Problem, Stage, log_times, losses, solve_stages, target_overlap
from odes.programs import program
from theory import noise_unit, resting_start, search_phase
from validation.figures.figure import Figure, as_dataset
from validation.figures.measured import followed, hermite_rate, log_steps
from validation.figures.style import TEXT, draw_simulated
from validation.figures.work import Work, sgd_at
from validation.simulation import even_steps, mean_and_error

_STRENGTH = 0.325
_UNIT = float(hermite_rate(3))
"""Times are drawn in units of 1/(k k!)."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A curriculum: stage one ends when its flow has |m| = `aligned`, stage two lasts for `second` in t.

    `restart` puts U back to 0 between the stages.
    """

    words: str
    colour: str
    marker: str
    aligned: float
    second: float
    restart: bool = False


_RUNS = {
    "restarted": Run("squares to $m = 0.99$, $U$ restarted", "#D55E00", "o", aligned=0.99, second=2.0, restart=True),
    "kept": Run("squares to $m = 0.99$", "#0072B2", "s", aligned=0.99, second=100.0),
    "stopped": Run("squares to $m = 0.4$", "#009E73", "D", aligned=0.4, second=100.0),
}
_PLAIN = ("He3 labels only", "0.35", "^")
_PANELS = {
    "loss": r"loss on He3 labels $\ell$",
    "m": r"adapter overlap $m$",
    "student": r"student overlap $\mu + um$",
    "up": "step along the adapter $u$",
    "step": r"step along the target $um$",
}


def _problem(teacher: str, sgd: SGD) -> Problem:
    return Problem.single_index("He3", strength=_STRENGTH, teacher=teacher, sgd=sgd)


def _sgd(dimension: float) -> SGD:
    r"""A learning rate small against k k! = 18, and noise a fifth of $\lambda_+/N$ of the first stage."""
    return sgd_at(0.2 / _UNIT, 0.2 * noise_unit(_problem("He3^2", SGD())), dimension)


@program
def _seen(problem: Problem, overlaps: Overlaps) -> dict[str, Any]:
    """What the panels show, at many overlaps; the sign that the symmetry (U, V) -> -(U, V) leaves open makes m > 0."""
    up, m = overlaps.up[..., 0, 0], overlaps.cross[..., 0, 0]
    loss = losses(problem, overlaps)
    sign = jnp.sign(m)
    return {"loss": loss, "m": sign * m, "student": target_overlap(problem, overlaps), "up": sign * up, "step": up * m}


def _aligning(problem: Problem, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Times of the flow of squared labels until it has cancelled w0, and |m| there."""
    searches = np.log(float(problem.sgd.dimension)) / 2 + 4
    times = np.linspace(0, float(search_phase(problem).tau) * searches, 4 * points)
    return times, np.abs(followed(problem, resting_start(problem), times).m[:, 0])


def _chain(work: Work, problem: Problem, seen: Problem, start: Overlaps, time: float) -> tuple[np.ndarray, Any]:
    """Times and panels (seeds, T) of a simulated stage, at steps that are evenly spaced in their logarithm."""
    last = int(even_steps(time, float(problem.sgd.learning_rate), 1)[-1])
    simulation = work.chain(problem, log_steps(min(20, last / 10), last, 3 * work.effort.marks), start=start)
    return np.asarray(simulation.t), _seen(seen, simulation.overlaps)


def _variables(kind: str, name: str, time: Any, shown: dict[str, Any]) -> dict[str, Any]:
    """A variable for every panel of one run, on the run's own time axis; of simulated runs the means and standard errors."""
    axis = f"{kind}_time_{name}"
    if kind == "chain":
        shown = {panel: mean_and_error(values) for panel, values in shown.items()}
    dimensions = ("moment", axis) if kind == "chain" else (axis,)
    return {axis: (axis, _UNIT * time)} | {
        f"{kind}_{name}_{panel}": (dimensions, values) for panel, values in shown.items()
    }


def compute(work: Work) -> Any:
    """Loss and overlaps of every run, by flow and by chain."""
    points, sgd = work.effort.points, _sgd(work.effort.dimension)
    first, second = _problem("He3^2", sgd), _problem("He3", sgd)
    times, alignments = _aligning(first, points)
    variables, borders = {}, {}
    for name, run in _RUNS.items():
        end = int(np.argmax(alignments >= run.aligned))
        stages = Stage("squares", first, times[end]), Stage("labels", second, run.second, restart=run.restart)
        records = times[: end + 1], log_times(run.second, 4 * points, first=1e-2)
        flow = solve_stages(stages, resting_start(first), records=records, finite_steps=True)
        variables |= _variables("flow", name, flow.t, _seen(second, flow.overlaps))
        border = jax.tree.map(lambda x, begin=end + 1: x[begin], flow.overlaps)
        early, seen_early = _chain(work, first, second, resting_start(first), times[end])
        late, seen_late = _chain(work, second, second, border, run.second)
        seen = jax.tree.map(lambda *x: np.concatenate(x, axis=-1), seen_early, seen_late)
        variables |= _variables("chain", name, np.concatenate([early, early[-1] + late]), seen)
        borders[f"border_{name}"] = _UNIT * times[end]
    whole = log_times(float(search_phase(second).tau) * np.log(float(sgd.dimension)) / 2, 4 * points, first=1 / _UNIT)
    start = resting_start(second)
    variables |= _variables("flow", "plain", whole, _seen(second, followed(second, start, whole).overlaps))
    variables |= _variables("chain", "plain", *_chain(work, second, second, start, _RUNS["stopped"].second))
    return as_dataset(variables, attrs=borders | {"dimension": work.effort.dimension})


def draw(dataset: Any) -> Any:
    """Lines show the flow, markers the chain, dotted lines where stage one ends."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplot_mosaic([["loss", "loss", "m"], ["student", "up", "step"]], figsize=(TEXT, 3.9))
    styles = {"plain": _PLAIN} | {name: (run.words, run.colour, run.marker) for name, run in _RUNS.items()}
    for panel, label in _PANELS.items():
        ax = axes[panel]
        for name, (words, colour, marker) in styles.items():
            ax.plot(dataset[f"flow_time_{name}"], dataset[f"flow_{name}_{panel}"], color=colour, label=words)
            time, (mean, error) = dataset[f"chain_time_{name}"], dataset[f"chain_{name}_{panel}"].values
            draw_simulated(ax, time, mean, error, fmt=marker, color=colour, markersize=2.5)
        for name in ("stopped", "kept"):
            ax.axvline(dataset.attrs[f"border_{name}"], color=_RUNS[name].colour, linestyle=":", linewidth=0.8)
        ax.set(xscale="log", xlim=(5, None), xlabel=r"time $18\,\eta\cdot$step", ylabel=label)
    figure.legend(*axes["loss"].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


FIGURES = (
    Figure(
        "curriculum",
        "Near the critical strength of He3, squared labels first: the search is over in no time, or never, as U is treated.",
        compute,
        draw,
    ),
)
