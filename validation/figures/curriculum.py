r"""A curriculum near a critical strength: squared labels first, then the labels themselves.

At $\mu = 0.325$, close to the critical strength 0.3207 of He3, the gradient at w0 almost vanishes and the search lasts
thousands of time units. Squared labels are even and the student is odd, so that $C = 0$: they say nothing of $\omega^*$, but
their gradient $Dw_0$ is large, and the adapter's direction aligns with the pretrained weights (which are aligned with
the target) in no time. It does so to cancel them: $w \to 0$, a local minimum of the loss on He3 labels. Stage two gets
there if stage one lasts too long. If that stops in time, or if V is kept and U restarted at 0, there is little left to
search. Every simulated seed of stage two starts where the flow of stage one ends.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from odes import SGD, Overlaps, Problem, log_times, losses, restarted, solve, target_overlap
from theory import search_phase
from validation.figures.base import Figure, Work, typical_start
from validation.figures.style import TEXT
from validation.simulation.result import even_steps

_STRENGTH = 0.325
_UNIT = 18.0
"""Times are drawn in units of 1/(k k!), k = 3."""


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
    rate = 0.2 / _UNIT
    phase = search_phase(_problem("He3^2", SGD(batch_size=np.inf)))
    batch = rate * dimension * float(phase.noise / phase.rate) / 0.2
    return SGD(learning_rate=rate, batch_size=round(batch), dimension=dimension)


@eqx.filter_jit
def _seen(problem: Problem, overlaps: Overlaps) -> dict[str, Any]:
    """What the panels show, at many overlaps; the sign that the symmetry (U, V) -> -(U, V) leaves open makes m > 0."""
    up, m = overlaps.up[..., 0, 0], overlaps.cross[..., 0, 0]
    loss = losses(problem, overlaps)
    sign = jnp.sign(m)
    return {"loss": loss, "m": sign * m, "student": target_overlap(problem, overlaps), "up": sign * up, "step": up * m}


def _flow(problem: Problem, start: Overlaps, times: Any) -> Overlaps:
    return solve(problem, start, t1=times[-1], times=times, finite_steps=True).overlaps


def _first_stage(problem: Problem, points: int) -> tuple[np.ndarray, Overlaps]:
    """Times and overlaps of the flow of squared labels, until it has cancelled w0."""
    times = np.linspace(
        0, float(search_phase(problem).tau) * (np.log(float(problem.sgd.dimension)) / 2 + 4), 4 * points
    )
    return times, _flow(problem, typical_start(problem), times)


def _join(early: tuple[Any, Any], late: tuple[Any, Any]) -> tuple[np.ndarray, Any]:
    """Two stages, each a time and what the panels show, as one run; time is the last axis."""
    time = np.concatenate([early[0], early[0][-1] + late[0]])
    return time, jax.tree.map(lambda a, b: np.concatenate([a, b], axis=-1), early[1], late[1])


def _chain(work: Work, problem: Problem, seen: Problem, start: Overlaps, time: float) -> tuple[np.ndarray, Any]:
    """Times and panels (seeds, T) of a simulated stage, at steps that are evenly spaced in their logarithm."""
    last = int(even_steps(time, float(problem.sgd.learning_rate), 1)[-1])
    steps = np.unique(np.geomspace(min(20, last / 10), last, 3 * work.settings.marks).round().astype(int))
    simulation = work.chain(problem, np.concatenate([[0], steps]), start=start)
    return np.asarray(simulation.t), _seen(seen, simulation.overlaps)


def _moments(values: Any) -> np.ndarray:
    """Mean over seeds and its standard error, (2, T)."""
    values = np.asarray(values)
    return np.stack([values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(values.shape[0])])


def _variables(kind: str, name: str, time: np.ndarray, panels: dict[str, Any]) -> dict[str, Any]:
    """A variable for every panel of one run, on the run's own time axis."""
    axis = f"{kind}_time_{name}"
    moment = ("moment",) if kind == "chain" else ()
    return {axis: (axis, _UNIT * time)} | {
        f"{kind}_{name}_{panel}": ((*moment, axis), np.asarray(values)) for panel, values in panels.items()
    }


def _compute(work: Work):
    """Loss and overlaps of every run, by flow and by chain."""
    import xarray

    points, sgd = work.settings.points, _sgd(work.settings.dimension)
    first, second = _problem("He3^2", sgd), _problem("He3", sgd)
    times, aligning = _first_stage(first, points)
    variables, borders = {}, {}
    for name, run in _RUNS.items():
        end = int(np.argmax(np.abs(aligning.cross[:, 0, 0]) >= run.aligned))
        early = times[: end + 1], _seen(second, jax.tree.map(lambda x, n=end + 1: x[:n], aligning))
        reached = jax.tree.map(lambda x, n=end: x[n], aligning)
        start = restarted(second, reached) if run.restart else reached
        late = np.asarray(log_times(run.second, 4 * points, first=1e-2))
        variables |= _variables("flow", name, *_join(early, (late, _seen(second, _flow(second, start, late)))))
        simulated = _join(
            _chain(work, first, second, typical_start(first), times[end]),
            _chain(work, second, second, start, run.second),
        )
        variables |= _variables("chain", name, simulated[0], jax.tree.map(_moments, simulated[1]))
        borders[f"border_{name}"] = _UNIT * times[end]
    whole = log_times(float(search_phase(second).tau) * np.log(float(sgd.dimension)) / 2, 4 * points, first=1 / _UNIT)
    variables |= _variables(
        "flow", "plain", np.asarray(whole), _seen(second, _flow(second, typical_start(second), whole))
    )
    time, seen = _chain(work, second, second, typical_start(second), _RUNS["stopped"].second)
    variables |= _variables("chain", "plain", time, jax.tree.map(_moments, seen))
    return xarray.Dataset(variables, attrs={**borders, "dimension": work.settings.dimension})


def _draw(dataset):
    """Lines: flow; markers: chain; dotted: where stage one ends."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplot_mosaic([["loss", "loss", "m"], ["student", "up", "step"]], figsize=(TEXT, 3.9))
    styles = {"plain": _PLAIN} | {name: (run.words, run.colour, run.marker) for name, run in _RUNS.items()}
    for panel, label in _PANELS.items():
        ax = axes[panel]
        for name, (words, colour, marker) in styles.items():
            ax.plot(dataset[f"flow_time_{name}"], dataset[f"flow_{name}_{panel}"], color=colour, label=words)
            time, (mean, error) = dataset[f"chain_time_{name}"], dataset[f"chain_{name}_{panel}"].values
            ax.errorbar(time, mean, error, fmt=marker, color=colour, markersize=2.5)
        for name in ("stopped", "kept"):
            ax.axvline(dataset.attrs[f"border_{name}"], color=_RUNS[name].colour, linestyle=":", linewidth=0.8)
        ax.set(xscale="log", xlim=(5, None), xlabel=r"time $18\,\eta\cdot$step", ylabel=label)
    figure.legend(*axes["loss"].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


FIGURES = (
    Figure(
        "curriculum",
        "Near the critical strength of He3, squared labels first: the search is over in no time, or never, as U is treated.",
        _compute,
        _draw,
    ),
)
