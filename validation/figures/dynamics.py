r"""From the search to the end: loss and overlaps against time for several strengths of pretraining, ODE over simulation."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from odes import SGD, Problem, Solution, activation, log_times, self_moments, solve
from theory import search_phase
from validation.checks.comparison import observables
from validation.figures.base import Figure, Work, at_dimension, typical_start
from validation.figures.style import LOSS_LABEL, OVERLAP_LABEL, TEXT, TIME_LABEL, link_label, strength_colour
from validation.simulation.result import Simulation, mean_and_error

_STRENGTHS = tuple(float(x) for x in np.arange(1, 10) / 10)
_SIMULATED = 0.1, 0.3, 0.5, 0.7
_DIRECT = 0.3
_RECORDS = 12
_SEEDS = 32
_OBSERVABLES = {"loss": LOSS_LABEL, "m": r"adapter overlap $|m| = |v\cdot\omega^*|$", "target_overlap": OVERLAP_LABEL}

Family = Callable[..., Problem]
"""`Problem.single_index` with `strength`, or `Problem.mixture` with `mu`."""


def _aligned(link: str, mu: jax.Array | float, sgd: SGD) -> Problem:
    """w0 = μ ω*."""
    return Problem.single_index(link, strength=mu, sgd=sgd)


def _mixture(link: str, mu: jax.Array | float, sgd: SGD) -> Problem:
    """w0 = μ ω* + (1 - μ) ξ."""
    return Problem.mixture(link, mu=mu, sgd=sgd)


def _sgd(link: str, family: Family, dimension: float) -> SGD:
    r"""One learning rate for all strengths, 0.2 over the largest curvature $E[\sigma'^2]$.

    The noise scale is θ = 4η, and η/2 for mixtures, whose larger loss would else keep weakly pretrained students from the end.
    """
    eta = 0.2 / float(self_moments(activation(link), 1.0).cross)
    batch = dimension / 4 if family is _aligned else 2 * dimension
    return SGD(learning_rate=eta, batch_size=batch, dimension=dimension)


@eqx.filter_jit
def _solutions(link: str, family: Family, mus: jax.Array, sgd: SGD, times: jax.Array) -> dict[str, jax.Array]:
    """The observables (strengths, T) of the flow of finite steps from the typical start, for every μ."""

    def at(mu: jax.Array) -> dict[str, jax.Array]:
        problem = family(link, mu, sgd)
        start = typical_start(problem)
        return _drawn(solve(problem, start, t1=times[-1], times=times, finite_steps=True, rtol=1e-6))

    return eqx.filter_vmap(at)(mus)


def _moments(simulation: Simulation) -> dict[str, np.ndarray]:
    """Means of the observables over the seeds and their standard errors, (2, records) each."""
    return {name: np.stack(mean_and_error(x)) for name, x in _drawn(simulation).items()}


def _drawn(trajectory: Simulation | Solution) -> dict[str, jax.Array]:
    """Those of the compared observables that are drawn."""
    values = observables(trajectory)
    return {name: values[name] for name in _OBSERVABLES}


def compute(work: Work, link: str, family: Family) -> Any:
    """Trajectories for all strengths, simulated ones for some, and one by the direct simulator."""
    import xarray

    settings = work.settings
    sgd = _sgd(link, family, settings.dimension)
    eta = float(sgd.learning_rate)
    slowest = float(search_phase(family(link, max(_STRENGTHS), sgd)).tau)
    times = log_times(12 * slowest, settings.points, first=eta)
    lines = _solutions(link, family, jnp.asarray(_STRENGTHS), sgd, times)
    variables: dict[str, Any] = {name: (("strength", "time"), np.asarray(line)) for name, line in lines.items()}
    simulated: dict[str, list] = {name: [] for name in _OBSERVABLES}
    record_times = []
    for mu in _SIMULATED:
        problem = family(link, mu, sgd)
        steps = _steps(12 * float(search_phase(problem).tau), eta, settings.most_steps)
        run = work.chain(problem, steps, start=typical_start(problem), seeds=min(settings.seeds, _SEEDS))
        record_times.append(np.asarray(run.t))
        for name, pair in _moments(run).items():
            simulated[name].append(pair)
    for name, pairs in simulated.items():
        variables[f"simulated_{name}"] = (("simulated", "moment", "record"), np.array(pairs))
    variables["record_time"] = (("simulated", "record"), np.stack(record_times))
    return xarray.Dataset(
        variables | _direct(work, family(link, _DIRECT, sgd), eta),
        coords={"time": np.asarray(times), "strength": list(_STRENGTHS), "simulated": list(_SIMULATED)},
        attrs={"direct_strength": _DIRECT, "dimension": settings.dimension, "learning_rate": eta},
    )


def _steps(end: float, eta: float, most: int) -> np.ndarray:
    """The start and 12 steps that are even in log t, up to time `end` or `most` steps."""
    last = min(most, max(300, int(end / eta)))
    steps = np.unique(np.geomspace(max(1, last // 300), last, _RECORDS).round().astype(int))
    return np.concatenate([[0], steps])


def _direct(work: Work, problem: Problem, eta: float) -> dict[str, Any]:
    """One strength by the direct simulator, from the start of the settings' `dimension` at its own."""
    here = at_dimension(problem, float(work.settings.direct_dimension))
    steps = _steps(12 * float(search_phase(problem).tau), eta, work.settings.most_steps)
    run = work.direct(problem, steps, start=typical_start(here))
    theory = solve(here, typical_start(here), t1=run.t[-1], times=run.t, finite_steps=True, rtol=1e-6)
    predicted = _drawn(theory)
    variables: dict[str, Any] = {"direct_time": ("direct_record", np.asarray(run.t))}
    for name, pair in _moments(run).items():
        variables[f"direct_{name}"] = (("moment", "direct_record"), pair)
        variables[f"direct_theory_{name}"] = ("direct_record", np.asarray(predicted[name]))
    return variables


def draw(dataset: Any, link: str) -> Any:
    """Three panels: loss, overlap of the adapter and of the student, against time on a logarithmic axis."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(TEXT, 2.3))
    for ax, (name, label) in zip(axes, _OBSERVABLES.items(), strict=True):
        for i, mu in enumerate(dataset["strength"].values):
            ax.plot(dataset["time"], dataset[name][i], color=strength_colour(mu), label=f"{mu:g}")
        for i, mu in enumerate(dataset["simulated"].values):
            mean, error = dataset[f"simulated_{name}"].values[i]
            ax.errorbar(
                dataset["record_time"][i],
                mean,
                error,
                fmt="o",
                color=strength_colour(mu),
                markersize=2.5,
                elinewidth=0.7,
            )
        mean, error = dataset[f"direct_{name}"].values
        colour = strength_colour(dataset.attrs["direct_strength"])
        ax.plot(dataset["direct_time"], dataset[f"direct_theory_{name}"], color=colour, linestyle="--", linewidth=0.8)
        ax.errorbar(
            dataset["direct_time"],
            mean,
            error,
            fmt="s",
            color=colour,
            markerfacecolor="white",
            markersize=3,
            elinewidth=0.7,
        )
        ax.set(
            xscale="log", xlabel=TIME_LABEL, ylabel=label, xlim=(float(dataset["record_time"].values[:, 1].min()), None)
        )
    axes[0].set(yscale="log", ylim=(1e-5 * float(dataset["loss"].max()), None), title=link_label(link))
    figure.legend(*axes[0].get_legend_handles_labels(), title=r"$\mu$", loc="outside right center", handlelength=1)
    return figure


def _figure(link: str, family: Family, name: str, where: str) -> Figure:
    return Figure(
        name,
        f"Loss and overlaps against time for {link} from {where}, strengths 0.1 to 0.9.",
        functools.partial(compute, link=link, family=family),
        functools.partial(draw, link=link),
    )


FIGURES = (
    *(_figure(link, _aligned, f"dynamics-{link}", "w0 = mu * target") for link in ("linear", "relu", "erf", "sigmoid")),
    *(
        _figure(link, _mixture, f"dynamics-mixture-{link}", "w0 = mu * target + (1 - mu) * noise")
        for link in ("linear", "relu", "erf")
    ),
)
