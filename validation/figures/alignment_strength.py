r"""The search-phase time over the plane of pretrained strength and alignment, with simulated points on the map."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from odes import Family
from theory import sweep
from validation.figures.figure import Figure, as_dataset
from validation.figures.measured import simulated_tau, tuned
from validation.figures.style import ALIGNMENT_LABEL, LENGTH_LABEL, TAU_LABEL, panels
from validation.figures.work import Work

_LINKS = ("erf", "relu")
_STRENGTHS, _ALIGNMENTS = (0.05, 1.5), (-0.5, 0.99)
_PLACES = ((0.55, 0.35), (1.0, 0.6), (0.85, 0.9), (0.85, -0.3), (1.1, 0.1), (1.2, 0.8), (0.3, 0.75), (1.2, -0.3))
"""Strength and alignment of the simulated students."""

_FLOOR, _CEILING = 2.0, 100.0
"""τ outside this range has the colour at an end of the scale, since τ diverges at strength 1 and alignment 1."""

_LEVELS = (3.0, 5.0, 10.0, 20.0, 50.0)


def ridge(strengths: np.ndarray, taus: np.ndarray) -> np.ndarray:
    """The strength of the largest local maximum of τ (alignments x strengths) at every alignment; NaN where there is none."""
    inner = taus[:, 1:-1]
    peaks = np.where((inner > taus[:, :-2]) & (inner > taus[:, 2:]), inner, -np.inf)
    return np.where(np.isfinite(peaks).any(axis=1), strengths[1:-1][peaks.argmax(axis=1)], np.nan)


def _simulated(work: Work, link: str) -> list[tuple[float, float]]:
    """τ from simulated escape times, and its standard error, at the figure's places."""
    problems = [Family(link).at(*place) for place in _PLACES[: work.effort.marks]]
    return [simulated_tau(work, problem) for problem in tuned(problems, work.effort.dimension)]


def search_times(link: str, strengths: np.ndarray, alignments: np.ndarray) -> np.ndarray:
    """τ (alignments, strengths); NaN where D <= 0, where a plateau comes before the search."""
    rho, cosine = (jnp.asarray(x.ravel()) for x in np.meshgrid(strengths, alignments))
    phase = sweep(link, strength=rho, alignment=cosine)
    return np.where(phase.D > 0, phase.tau, np.nan).reshape(alignments.size, strengths.size)


def compute(work: Work) -> Any:
    """τ on a grid, its ridge, and simulated τ with the theory's value at the same places."""
    points = 2 * work.effort.points
    strengths, alignments = np.linspace(*_STRENGTHS, points), np.linspace(*_ALIGNMENTS, points)
    fine = np.linspace(*_STRENGTHS, 1001)
    places = np.array(_PLACES[: work.effort.marks])
    ridges = [ridge(fine, search_times(link, fine, alignments)) for link in _LINKS]
    return as_dataset(
        {
            "tau": (("link", "alignment", "strength"), [search_times(link, strengths, alignments) for link in _LINKS]),
            "ridge": (("link", "alignment"), ridges),
            "expected": (("link", "number"), [np.diag(search_times(link, *places.T)) for link in _LINKS]),
            "chain": (("link", "number", "moment"), [_simulated(work, link) for link in _LINKS]),
            "place": (("number", "coordinate"), places),
        },
        coords={"link": _LINKS, "alignment": alignments, "strength": strengths, "moment": ["mean", "error"]},
    )


def draw(dataset: Any) -> Any:
    """One map for each link function; simulated points have the colour of their own τ and its ratio to the theory's."""
    from matplotlib.colors import LogNorm

    figure, axes = panels(1, len(_LINKS), 2.9, sharey=True)
    style = {"cmap": "viridis", "norm": LogNorm(_FLOOR, _CEILING)}
    image, (strengths, alignments) = None, dataset["place"].values.T
    for ax, link in zip(axes, _LINKS, strict=True):
        data = dataset.sel(link=link)
        grid = data["strength"], data["alignment"], data["tau"]
        image = ax.pcolormesh(*grid, shading="nearest", rasterized=True, **style)
        ax.contour(*grid, _LEVELS, colors="white", linewidths=0.5)
        ax.plot(data["ridge"], data["alignment"], color="#D55E00", linestyle="--", label="slowest strength")
        mean, error = data["chain"].values.T
        points = {"s": 30, "edgecolors": "black", "linewidths": 0.8, "zorder": 3, "label": "chain"}
        ax.scatter(strengths, alignments, c=mean, **points, **style)
        for x, y, ratio, spread in zip(
            strengths, alignments, mean / data["expected"], error / data["expected"], strict=True
        ):
            text = f"{float(ratio):.2f} ± {float(spread):.2f}"
            ax.annotate(text, (x, y), (0, -9), textcoords="offset points", ha="center", color="white", fontsize=6)
        ax.set(xlabel=LENGTH_LABEL, title=link, facecolor="0.85")
    if dataset["tau"].sel(link="relu").isnull().any():
        axes[1].text(0.06, 0.4, "plateau first", rotation=90, va="center", fontsize=6)
    axes[0].set_ylabel(ALIGNMENT_LABEL)
    assert image is not None
    bar = figure.colorbar(image, ax=axes, label=f"{TAU_LABEL}; lines at ticks", extend="both")
    bar.set_ticks(_LEVELS, labels=[f"{level:g}" for level in _LEVELS])
    bar.ax.minorticks_off()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


FIGURES = (
    Figure(
        "alignment-strength",
        "The search-phase time over pretrained strength and alignment, and the strength at which pretraining hurts most.",
        compute,
        draw,
    ),
)
