r"""From the search to the end: loss and overlaps against time for several strengths of pretraining, ODE over simulation."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from odes import Family, Problem, Solution, activation, log_times, self_moments
from odes.programs import program
from theory import resting_start, search_phase
from validation.figures.figure import Figure, as_dataset
from validation.figures.measured import followed, log_steps
from validation.figures.style import (
    LOSS_LABEL,
    OVERLAP_LABEL,
    TIME_LABEL,
    draw_simulated,
    link_label,
    panels,
    strength_colour,
)
from validation.figures.work import Work, at_dimension, sgd_at
from validation.simulation import Simulation, mean_and_error, observables

_STRENGTHS = tuple(float(x) for x in np.arange(1, 10) / 10)
_SIMULATED = 0.1, 0.3, 0.5, 0.7
_DIRECT = 0.3
_RECORDS = 12
_SEEDS = 32
_OBSERVABLES = {"loss": LOSS_LABEL, "m": r"adapter overlap $|m| = |v\cdot\omega^*|$", "target_overlap": OVERLAP_LABEL}

Problems = Callable[[Any], Problem]
"""A function that makes the problem of every μ: `Family.at` for aligned weights, or `Family.mixture`."""


def _problems(link: str, mixture: bool, dimension: float) -> Problems:
    r"""The problems at one learning rate, 0.2 over the largest curvature $E[\sigma'^2]$.

    The noise scale is θ = 4η, and η/2 for mixtures, whose larger loss would else keep weakly pretrained students from the end.
    """
    eta = 0.2 / float(self_moments(activation(link), 1.0).cross)
    family = Family(link, sgd=sgd_at(eta, eta / 2 if mixture else 4 * eta, dimension))
    return family.mixture if mixture else family.at


@program
def _solutions(problems: Problems, mus: jax.Array, times: jax.Array) -> dict[str, jax.Array]:
    """The observables (strengths, T) of the flow of finite steps from the typical start, for every μ."""

    def at(mu: jax.Array) -> dict[str, jax.Array]:
        problem = problems(mu)
        return _drawn(followed(problem, resting_start(problem), times, rtol=1e-6))

    return eqx.filter_vmap(at)(mus)


def _moments(simulation: Simulation) -> dict[str, np.ndarray]:
    """Means of the observables over the seeds and their standard errors, (2, records) each."""
    return {name: np.stack(mean_and_error(values)) for name, values in _drawn(simulation).items()}


def _drawn(trajectory: Simulation | Solution) -> dict[str, jax.Array]:
    """The observables that are drawn, by name."""
    values = observables(trajectory)
    return {name: values[name] for name in _OBSERVABLES}


def compute(work: Work, link: str, mixture: bool) -> Any:
    """Trajectories for all strengths, simulated ones for some, and one by the direct simulator."""
    effort = work.effort
    problems = _problems(link, mixture, effort.dimension)
    slowest = problems(max(_STRENGTHS))
    eta = float(slowest.sgd.learning_rate)
    times = log_times(12 * float(search_phase(slowest).tau), effort.points, first=eta)
    lines = _solutions(problems, jnp.asarray(_STRENGTHS), times)
    runs = []
    for problem in map(problems, _SIMULATED):
        steps, seeds = _steps(problem, effort.most_steps), min(effort.seeds, _SEEDS)
        runs.append(work.chain(problem, steps, start=resting_start(problem), seeds=seeds))
    moments = [_moments(run) for run in runs]
    variables: dict[str, tuple[Any, Any]] = {"record_time": (("simulated", "record"), [run.t for run in runs])}
    for name in _OBSERVABLES:
        variables[name] = (("strength", "time"), lines[name])
        variables[f"simulated_{name}"] = (("simulated", "moment", "record"), [pairs[name] for pairs in moments])
    return as_dataset(
        variables | _direct(work, problems(_DIRECT)),
        coords={"time": times, "strength": _STRENGTHS, "simulated": _SIMULATED},
        attrs={"direct_strength": _DIRECT, "dimension": effort.dimension, "learning_rate": eta},
    )


def _steps(problem: Problem, most: int) -> np.ndarray:
    """The start and 12 steps that are even in log t, up to 12 τ or `most` steps."""
    last = min(most, max(300, int(12 * float(search_phase(problem).tau) / float(problem.sgd.learning_rate))))
    return log_steps(max(1, last // 300), last, _RECORDS)


def _direct(work: Work, problem: Problem) -> dict[str, tuple[Any, Any]]:
    """One strength by the direct simulator and by the flow at its dimension, from the typical start there."""
    here = at_dimension(problem, work.effort.direct_dimension)
    start = resting_start(here)
    run = work.direct(problem, _steps(problem, work.effort.most_steps), start=start)
    predicted = _drawn(followed(here, start, run.t, rtol=1e-6))
    variables: dict[str, tuple[Any, Any]] = {"direct_time": ("direct_record", run.t)}
    for name, pair in _moments(run).items():
        variables[f"direct_{name}"] = (("moment", "direct_record"), pair)
        variables[f"direct_theory_{name}"] = ("direct_record", predicted[name])
    return variables


def draw(dataset: Any, link: str) -> Any:
    """Three panels show the loss and the overlaps of the adapter and of the student against time on a logarithmic axis."""
    figure, axes = panels(1, 3, 2.3)
    for ax, (name, label) in zip(axes, _OBSERVABLES.items(), strict=True):
        for i, mu in enumerate(dataset["strength"].values):
            ax.plot(dataset["time"], dataset[name][i], color=strength_colour(mu), label=f"{mu:g}")
        for i, mu in enumerate(dataset["simulated"].values):
            moments = dataset[f"simulated_{name}"].values[i]
            draw_simulated(ax, dataset["record_time"][i], *moments, color=strength_colour(mu), markersize=2.5)
        colour = strength_colour(dataset.attrs["direct_strength"])
        ax.plot(dataset["direct_time"], dataset[f"direct_theory_{name}"], color=colour, linestyle="--", linewidth=0.8)
        moments = dataset[f"direct_{name}"].values
        draw_simulated(ax, dataset["direct_time"], *moments, direct=True, color=colour, markersize=3)
        first = float(dataset["record_time"].values[:, 1].min())
        ax.set(xscale="log", xlabel=TIME_LABEL, ylabel=label, xlim=(first, None))
    axes[0].set(yscale="log", ylim=(1e-5 * float(dataset["loss"].max()), None), title=link_label(link))
    figure.legend(*axes[0].get_legend_handles_labels(), title=r"$\mu$", loc="outside right center", handlelength=1)
    return figure


def _figure(link: str, *, mixture: bool) -> Figure:
    weights = "mu * target + (1 - mu) * noise" if mixture else "mu * target"
    return Figure(
        f"dynamics-mixture-{link}" if mixture else f"dynamics-{link}",
        f"Loss and overlaps against time for {link} from w0 = {weights}, strengths 0.1 to 0.9.",
        functools.partial(compute, link=link, mixture=mixture),
        functools.partial(draw, link=link),
    )


FIGURES = (
    *(_figure(link, mixture=False) for link in ("linear", "relu", "erf", "sigmoid")),
    *(_figure(link, mixture=True) for link in ("linear", "relu", "erf")),
)
