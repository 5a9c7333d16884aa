r"""The law of the escape time: its density at one dimension, and its mean over seven decades of dimension."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odes import SGD, Escape, Problem
from theory import EscapeLaw, escape_law, search_phase
from validation.figures.base import Figure, Settings, Work, at_dimension
from validation.figures.measured import tuned
from validation.figures.style import ESCAPE_LABEL, TEXT, strength_colour
from validation.simulation.result import even_steps, mean_and_error

_LARGEST_DIMENSION = 1e9
_RECORDS = 80
_STRENGTHS = (0.5, 0.7)
"""Of the mixtures w0 = μ ω* + (1 - μ) ξ."""


def _steps(problem: Problem, law: EscapeLaw, records: int = _RECORDS) -> np.ndarray:
    """Recorded steps by whose last practically every seed has escaped."""
    end = float(law.mean + 8 * law.std) if not law.doubt else 20 * float(law.tau)
    return even_steps(end, float(problem.sgd.learning_rate), records)


def _problems(dimension: float) -> list[Problem]:
    """The erf students of this figure, in the order of `_STRENGTHS`."""
    return tuned([Problem.mixture("erf", mu=mu) for mu in _STRENGTHS], dimension)


@eqx.filter_jit
def _laws(problem: Problem, dimensions: Float[Array, " n"]) -> EscapeLaw:
    """The law at many dimensions, at one learning rate and noise scale."""
    theta, eta = problem.sgd.noise_scale, problem.sgd.learning_rate

    def at(dimension: Array) -> EscapeLaw:
        sgd = SGD(learning_rate=eta, batch_size=eta * dimension / theta, dimension=dimension)
        return escape_law(eqx.tree_at(lambda p: p.sgd, problem, sgd))

    return jax.vmap(at)(dimensions)


def _simulated_dimensions(settings: Settings) -> np.ndarray:
    """Dimensions where a batch is small enough to be sampled, then those where its normal limit is drawn."""
    below = settings.marks // 4
    above = np.geomspace(1e7, _LARGEST_DIMENSION, settings.marks - below)
    return np.concatenate([np.geomspace(settings.dimension, 300.0, below), above])


def _compute(work: Work):
    """Escape times at one dimension, and their mean at many, by law and simulation."""
    import xarray

    settings = work.settings
    line, marks = np.geomspace(1e2, _LARGEST_DIMENSION, 15), _simulated_dimensions(settings)
    dimensions = np.concatenate([marks, [settings.direct_dimension], line])
    means, taus, simulated, direct, variables = [], [], [], [], {}
    for problem in _problems(settings.dimension):
        laws = _laws(problem, jnp.asarray(dimensions))
        law_at = [jax.tree.map(lambda x, i=i: x[i], laws) for i in range(marks.size + 1)]
        means.append(np.asarray(laws.mean)[marks.size + 1 :])
        taus.append(float(search_phase(problem).tau))
        times = []
        for law, dimension in zip(law_at, marks, strict=False):
            seeds = settings.seeds * (1 if times or variables else 7)
            there = at_dimension(problem, dimension)
            times.append(work.chain(there, _steps(there, law), until=Escape(), seeds=seeds).escape_times())
        simulated.append([mean_and_error(x) for x in times])
        if not variables:
            variables = _density(law_at[0], settings.points) | {"escape_time": ("seed", np.asarray(times[0]))}
            steps = _steps(at_dimension(problem, settings.direct_dimension), law_at[-1])
            direct = mean_and_error(work.direct(problem, steps, until=Escape()).escape_times())
    variables |= {
        "tau": ("strength", np.array(taus)),
        "law": (("strength", "dimension"), np.array(means)),
        "chain": (("strength", "mark", "moment"), np.array(simulated)),
        "direct": ("moment", np.array(direct)),
    }
    coords = {"strength": list(_STRENGTHS), "dimension": line, "mark": marks, "moment": ["mean", "error"]}
    attrs = {"dimension": settings.dimension, "direct_dimension": settings.direct_dimension}
    return xarray.Dataset(variables, coords=coords, attrs=attrs)


def _density(law: EscapeLaw, points: int) -> dict[str, Any]:
    """The predicted density of the escape time, the derivative of its distribution function."""
    grid = np.linspace(float(law.quantile(1e-4)), float(law.quantile(0.9995)), 4 * points)
    return {"time": ("grid", grid), "density": ("grid", np.gradient(np.asarray(law.cdf(grid)), grid))}


def _draw(dataset):
    """Left: density against simulated frequencies; right: mean escape time against the dimension."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(TEXT, 2.5))
    colours = [strength_colour(mu) for mu in _STRENGTHS]
    times = dataset["escape_time"].values
    counts, edges = np.histogram(times, bins=min(40, round(np.sqrt(times.size))))
    width = edges[1] - edges[0]
    scale, seen = 1 / (times.size * width), counts > 0
    left.bar(edges[:-1], counts * scale, width, align="edge", color=colours[0], alpha=0.2, linewidth=0)
    left.errorbar(
        (edges[:-1] + width / 2)[seen],
        (counts * scale)[seen],
        (np.sqrt(counts) * scale)[seen],
        fmt="o",
        color=colours[0],
        label=f"chain, {times.size} seeds",
    )
    left.plot(dataset["time"], dataset["density"], color="black", label="law")
    left.set(xlabel=f"{ESCAPE_LABEL} ($t = \\eta\\cdot$step)", ylabel="probability density", ylim=(0, None))
    left.set_title(f"erf, mixture $\\mu = {_STRENGTHS[0]}$, $d = {dataset.attrs['dimension']:g}$")
    left.legend()
    for mu, colour in zip(_STRENGTHS, colours, strict=True):
        data = dataset.sel(strength=mu)
        label = f"mixture $\\mu = {mu}$, $\\tau = {float(data['tau']):.3g}$"
        right.plot(data["dimension"], data["law"], color=colour, label=label)
        mean, error = data["chain"].values.T
        right.errorbar(data["mark"], mean, error, fmt="o", color=colour)
    mean, error = dataset["direct"].values
    place = dataset.attrs["direct_dimension"]
    right.errorbar(place, mean, error, fmt="s", markerfacecolor="none", color=colours[0], label="direct simulator")
    right.set(
        xscale="log", xlabel="dimension $d$", ylabel=f"mean {ESCAPE_LABEL} ($t = \\eta\\cdot$step)", ylim=(0, None)
    )
    right.set_title("erf; dots: chain")
    right.legend()
    return figure


FIGURES = (
    Figure(
        "escape-law",
        "The law of the escape time against simulation: its density, and its mean for dimensions up to a billion.",
        _compute,
        _draw,
    ),
)
