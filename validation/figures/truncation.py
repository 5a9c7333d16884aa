r"""What a Hermite series that is cut at order K does to the search-phase time of relu, whose coefficients decay slowly."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odes import Family
from odes.programs import program
from theory import escape_rate, hermite_coefficients, sweep
from validation.figures.figure import Figure, as_dataset
from validation.figures.measured import simulated_tau, tuned
from validation.figures.style import COLOURS, STRENGTH_LABEL, TAU_LABEL, draw_simulated, panels
from validation.figures.work import Work

_LINK = "relu"
_ORDERS = (10, 16, 20)
_SHADES = ("#88CCEE", "#44AA99", "#332288")
_LOW, _HIGH = 0.02, 0.98
_MARKED = 0.2, 0.85


def truncated_loss(order: int, square: Array, overlap: Array) -> Array:
    r"""The population loss without its constant, from Hermite coefficients up to K = `order` and $\mathrm{var}\,\lambda^* = 1$:

    $$\ell_K(Q, M) = \sum_{k\le K} k!\left[\tfrac12a_k(Q)^2 - a_k(Q)\,a_k(1)\left(M/\sqrt Q\right)^k\right].$$
    """
    student = hermite_coefficients(_LINK, order, variance=square)
    teacher = hermite_coefficients(_LINK, order)
    factorials = np.cumprod(np.concatenate([[1.0], np.arange(1.0, order + 1)]))
    powers = (overlap / jnp.sqrt(square)) ** jnp.arange(order + 1.0)
    return jnp.sum(factorials * (student**2 / 2 - student * teacher * powers))


@program
def truncated_taus(order: int, strengths: Float[Array, " n"]) -> Float[Array, " n"]:
    r"""τ of aligned students $w_0 = \mu\,\omega^*$ with $C = -\partial_M\ell_K$, $D = 2\,\partial_Q\ell_K$ and $\sqrt G = C - D\mu$."""

    def at(mu: Array) -> Array:
        by_square, by_overlap = jax.grad(functools.partial(truncated_loss, order), argnums=(0, 1))(mu**2, mu)
        C, D = -by_overlap, 2 * by_square
        return 1 / escape_rate(D, (C - D * mu) ** 2)

    return jax.vmap(at)(strengths)


def compute(work: Work) -> Any:
    """τ by series and exactly, and τ from simulated escape times."""
    effort = work.effort
    strengths = jnp.linspace(_LOW, _HIGH, effort.points)
    marks = np.linspace(*_MARKED, effort.marks)
    problems = tuned([Family(_LINK).at(mu) for mu in marks], effort.dimension)
    simulated = [simulated_tau(work, problem) for problem in problems]
    return as_dataset(
        {
            "exact": ("strength", sweep(_LINK, strength=strengths).tau),
            "exact_marked": ("mark", sweep(_LINK, strength=jnp.asarray(marks)).tau),
            "series": (("order", "strength"), [truncated_taus(order, strengths) for order in _ORDERS]),
            "chain": (("mark", "moment"), simulated),
            "direct": ("moment", simulated_tau(work, problems[effort.marks // 2], direct=True)),
        },
        coords={"strength": strengths, "order": _ORDERS, "mark": marks, "moment": ["mean", "error"]},
        attrs={"direct_mark": effort.marks // 2},
    )


def _draw_simulated(ax: Any, dataset: Any, scale: Any) -> None:
    """Draws simulated τ, divided by `scale` at the marks."""
    mean, error = (dataset["chain"] / scale).transpose("moment", "mark").values
    draw_simulated(ax, dataset["mark"], mean, error, color=COLOURS[_LINK], label="chain", zorder=3)
    one = dataset["direct"] / scale[dataset.attrs["direct_mark"]]
    place = dataset["mark"][dataset.attrs["direct_mark"]]
    draw_simulated(ax, place, *one.values, direct=True, color="black", label="direct", zorder=2)


def draw(dataset: Any) -> Any:
    """τ is drawn left, τ over its exact value right."""
    import xarray

    figure, (left, right) = panels(1, 2, 2.5)
    left.plot(dataset["strength"], dataset["exact"], color=COLOURS[_LINK], label="exact")
    right.axhline(1, color=COLOURS[_LINK])
    right.axhline(1 / 1.3, color="grey", linestyle=":", label="too fast by a factor 1.3")
    for order, shade in zip(dataset["order"].values, _SHADES, strict=True):
        series = dataset["series"].sel(order=order)
        left.plot(dataset["strength"], series, "--", color=shade, label=f"series to $K = {order}$")
        right.plot(dataset["strength"], series / dataset["exact"], "--", color=shade)
    _draw_simulated(left, dataset, xarray.ones_like(dataset["exact_marked"]))
    _draw_simulated(right, dataset, dataset["exact_marked"])
    left.set(yscale="log", xlabel=STRENGTH_LABEL, ylabel=TAU_LABEL, ylim=(0.5, 1e4))
    left.legend(ncols=2, loc="upper left")
    right.set(xlabel=STRENGTH_LABEL, ylabel=r"$\tau$ / exact $\tau$", ylim=(0, 1.25))
    right.legend(*([x[:1] for x in right.get_legend_handles_labels()]), loc="lower right")
    return figure


FIGURES = (
    Figure(
        "truncation",
        "How far a Hermite series cut at order 10 to 20 puts the search-phase time of relu from its exact value.",
        compute,
        draw,
    ),
)
