r"""The law of the escape time: its density at one dimension, and its mean over seven decades of dimension."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odes import Escape, Family, Problem
from odes.programs import program
from theory import EscapeLaw, escape_law, search_phase
from validation.figures.effort import Effort
from validation.figures.figure import Figure, as_dataset
from validation.figures.measured import tuned
from validation.figures.style import ESCAPE_LABEL, draw_simulated, panels, strength_colour
from validation.figures.work import Work, at_dimension
from validation.simulation import mean_and_error

_LARGEST_DIMENSION = 1e9
_RECORDS = 80
_STRENGTHS = (0.5, 0.7)
"""Of the mixtures w0 = μ ω* + (1 - μ) ξ."""


def _longest(law: EscapeLaw) -> float:
    """The time by which practically every seed has escaped."""
    return 20 * float(law.tau) if law.doubt else float(law.mean + 8 * law.std)


def _problems(dimension: float) -> list[Problem]:
    """The erf students of this figure, in the order of `_STRENGTHS`."""
    return tuned([Family("erf").mixture(mu) for mu in _STRENGTHS], dimension)


@program
def _laws(problem: Problem, dimensions: Float[Array, " n"]) -> EscapeLaw:
    """The law at many dimensions, at one learning rate and noise scale."""
    theta = problem.sgd.noise_scale

    def at(dimension: Array) -> EscapeLaw:
        return escape_law(problem.replace(dimension=dimension, noise_scale=theta))

    return jax.vmap(at)(dimensions)


def _simulated_dimensions(effort: Effort) -> np.ndarray:
    """Dimensions where a batch is small enough to be sampled, then those where its normal limit is drawn."""
    below = effort.marks // 4
    above = np.geomspace(1e7, _LARGEST_DIMENSION, effort.marks - below)
    return np.concatenate([np.geomspace(effort.dimension, 300.0, below), above])


def compute(work: Work) -> Any:
    """Escape times at one dimension, and their mean at many, by law and simulation."""
    effort = work.effort
    line, marks = np.geomspace(1e2, _LARGEST_DIMENSION, 15), _simulated_dimensions(effort)
    dimensions = np.concatenate([marks, [effort.direct_dimension], line])
    means, taus, simulated, direct, variables = [], [], [], [], {}
    for problem in _problems(effort.dimension):
        laws = _laws(problem, jnp.asarray(dimensions))
        law_at = [jax.tree.map(lambda x, i=i: x[i], laws) for i in range(marks.size + 1)]
        means.append(np.asarray(laws.mean)[marks.size + 1 :])
        taus.append(float(search_phase(problem).tau))
        times = []
        for law, dimension in zip(law_at, marks, strict=False):
            seeds = effort.seeds * (1 if times or variables else 7)
            there = at_dimension(problem, dimension)
            times.append(work.escape_times(there, _longest(law), Escape(), records=_RECORDS, seeds=seeds))
        simulated.append([mean_and_error(x) for x in times])
        if not variables:
            variables = _density(law_at[0], effort.points) | {"escape_time": ("seed", times[0])}
            longest = _longest(law_at[-1])
            direct = mean_and_error(work.escape_times(problem, longest, Escape(), records=_RECORDS, direct=True))
    variables |= {
        "tau": ("strength", taus),
        "law": (("strength", "dimension"), means),
        "chain": (("strength", "mark", "moment"), simulated),
        "direct": ("moment", direct),
    }
    coords = {"strength": _STRENGTHS, "dimension": line, "mark": marks, "moment": ["mean", "error"]}
    attrs = {"dimension": effort.dimension, "direct_dimension": effort.direct_dimension}
    return as_dataset(variables, coords, attrs)


def _density(law: EscapeLaw, points: int) -> dict[str, Any]:
    """The predicted density of the escape time, the derivative of its distribution function."""
    grid = np.linspace(float(law.quantile(1e-4)), float(law.quantile(0.9995)), 4 * points)
    return {"time": ("grid", grid), "density": ("grid", np.gradient(np.asarray(law.cdf(grid)), grid))}


def draw(dataset: Any) -> Any:
    """Left is the density against simulated frequencies, right the mean escape time against the dimension."""
    figure, (left, right) = panels(1, 2, 2.5)
    colours = [strength_colour(mu) for mu in _STRENGTHS]
    times = dataset["escape_time"].values
    counts, edges = np.histogram(times, bins=min(40, round(np.sqrt(times.size))))
    width = edges[1] - edges[0]
    scale, seen = 1 / (times.size * width), counts > 0
    left.bar(edges[:-1], counts * scale, width, align="edge", color=colours[0], alpha=0.2, linewidth=0)
    bars = ((edges[:-1] + width / 2)[seen], (counts * scale)[seen], (np.sqrt(counts) * scale)[seen])
    draw_simulated(left, *bars, color=colours[0], label=f"chain, {times.size} seeds")
    left.plot(dataset["time"], dataset["density"], color="black", label="law")
    left.set(xlabel=f"{ESCAPE_LABEL} ($t = \\eta\\cdot$step)", ylabel="probability density", ylim=(0, None))
    left.set_title(f"erf, mixture $\\mu = {_STRENGTHS[0]}$, $d = {dataset.attrs['dimension']:g}$")
    left.legend()
    for mu, colour in zip(_STRENGTHS, colours, strict=True):
        data = dataset.sel(strength=mu)
        label = f"mixture $\\mu = {mu}$, $\\tau = {float(data['tau']):.3g}$"
        right.plot(data["dimension"], data["law"], color=colour, label=label)
        draw_simulated(right, data["mark"], *data["chain"].values.T, color=colour)
    style = {"color": colours[0], "label": "direct simulator"}
    draw_simulated(right, dataset.attrs["direct_dimension"], *dataset["direct"].values, direct=True, **style)
    right.set(xscale="log", xlabel="dimension $d$", ylim=(0, None))
    right.set_ylabel(f"mean {ESCAPE_LABEL} ($t = \\eta\\cdot$step)")
    right.set_title("erf; dots: chain")
    right.legend()
    return figure


FIGURES = (
    Figure(
        "escape-law",
        "The law of the escape time against simulation: its density, and its mean for dimensions up to a billion.",
        compute,
        draw,
    ),
)
