r"""Where more pretraining helps fine-tuning and where it hurts, over the plane of pretrained strength and alignment."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from odes import SGD, Escape, Problem
from theory import KINDS, REGIONS, Boundaries, Regimes, boundaries, regimes
from validation.figures.base import Figure, Work
from validation.figures.style import TEXT
from validation.simulation.result import even_steps, mean_and_error

COLOURS = {
    "helps": "#B5DDF2",
    "hurts": "#F7CFA0",
    "plateau": "#D9D9D9",
    "unreached": "#9A9A9A",
    "met": "#FFFFFF",
    "coarse": "#E8DDEB",
}
"""The regions' colours, pale: lines and marks are drawn over them."""

ALIGNMENT_LABEL = r"alignment $c = \cos(w_0, \omega^*)$"

_NAMES = {
    "helps": "pretraining helps",
    "hurts": "pretraining hurts",
    "plateau": "plateau first",
    "unreached": "goal not reached",
    "met": "goal met by $w_0$",
    "coarse": "learning rate too large",
}
_STYLES = {
    "minimum": {"color": "black", "label": "best strength"},
    "maximum": {"color": "black", "linestyle": (0, (4, 2)), "label": "worst strength"},
    "border": {"color": "0.35", "linewidth": 0.7},
}
_TIMED = [list(REGIONS).index(name) for name in ("helps", "hurts", "plateau")]
"""The regions in which fine-tuning takes a time of which the search is a part."""

_FINE = 500
"""Regions are filled on so many strengths and alignments, between the boundaries found at neighbouring alignments."""

_LINKS = ("erf", "relu")
_STRENGTHS = 0.07, 1.5
_NEAR_FULL = np.linspace(0.92, 1, 9)
"""Near full alignment the boundaries bend, towards the strength at which the search never ends."""

_GOAL = 0.01
"""Fine-tuning ends when the loss has fallen to this fraction."""

_LEARNING_RATE, _NOISE_SCALE = 0.2, 0.4
_RECORDS = 200
_PAIRS = {
    "erf": (
        (0.8, 0.55, 0.95),
        (0.8, 1.12, 1.42),
        (0.45, 0.3, 0.75),
        (0.45, 0.9, 1.35),
        (0.65, 0.14, 0.38),
        (0.92, 0.14, 0.5),
    ),
    "relu": (
        (0.5, 0.32, 0.64),
        (0.5, 0.78, 1.35),
        (0.85, 0.3, 0.8),
        (0.85, 0.97, 1.35),
        (0.15, 0.36, 0.55),
        (0.15, 0.7, 1.2),
    ),
}
"""Alignment and two strengths of simulated students, each pair on one side of a boundary."""


def to_dataset(found: Regimes, edges: Boundaries) -> Any:
    """A phase diagram and its boundaries as an `xarray.Dataset`; regions and kinds by name."""
    import xarray

    regions, kinds = np.array(list(REGIONS)), np.array(list(KINDS))
    grid, edge = ("alignment", "strength"), ("boundary",)
    variables = {
        name: (grid, np.asarray(getattr(found, name)))
        for name in ("time", "slope", "share", "tau", "D", "trusted", "searching")
    }
    variables["region"] = (grid, regions[np.asarray(found.region)])
    variables |= {
        f"boundary_{name}": (edge, np.asarray(getattr(edges, name)))
        for name in ("alignment", "strength", "time", "line")
    }
    variables["boundary_kind"] = (edge, kinds[np.asarray(edges.kind)])
    variables |= {f"boundary_{name}": (edge, regions[np.asarray(getattr(edges, name))]) for name in ("before", "after")}
    coords = {"strength": np.asarray(found.strength), "alignment": np.asarray(found.alignment)}
    return xarray.Dataset(variables, coords=coords)


def intervals(data: Any, row: int) -> Iterator[tuple[str, float, float]]:
    """The regions along a row of a diagram with their lower and upper ends, which reach a cell beyond the first and last strength."""
    strengths, cosine = data["strength"].values, data["alignment"].values[row]
    ending = np.isfinite(data["tau"].values[row])
    here = np.flatnonzero(data["boundary_alignment"].values == cosine)
    here = here[np.argsort(data["boundary_strength"].values[here])]
    first = data["region"].values[row, np.argmax(ending)]
    names = [str(first), *(str(name) for name in data["boundary_after"].values[here])]
    beyond = 2 * strengths[0] - strengths[1], 2 * strengths[-1] - strengths[-2]
    ends = [beyond[0], *data["boundary_strength"].values[here], beyond[1]]
    yield from zip(names, ends[:-1], ends[1:], strict=True)


def filled(data: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A fine grid of strengths and alignments, the number of the region there, and the search's share.

    Takes at least two alignments. Regions end at straight lines between the boundaries found at neighbouring alignments: each
    has a depth, the distance to its nearest end along the row, negative outside, and just outside the diagram in a row
    without it; depths are interpolated between rows, and the deepest region is taken.
    """
    strengths, alignments = data["strength"].values, data["alignment"].values
    fine, across = (np.linspace(x[0], x[-1], _FINE) for x in (strengths, alignments))
    beyond = 2 * strengths[0] - strengths[1], 2 * strengths[-1] - strengths[-2]
    names = list(REGIONS)
    depths = np.full((len(names), alignments.size, _FINE), -np.inf)
    for row in range(alignments.size):
        for name, low, high in intervals(data, row):
            depth = depths[names.index(name), row]
            depth[:] = np.maximum(depth, np.minimum(fine - low, high - fine))
    upper = np.searchsorted(alignments, across).clip(1, alignments.size - 1)
    part = (across - alignments[upper - 1]) / (alignments[upper] - alignments[upper - 1])
    below, above = depths[:, upper - 1], depths[:, upper]
    outside = -np.minimum(fine - beyond[0], beyond[1] - fine)
    below, above = (np.where(np.isinf(a) & np.isfinite(b), outside, a) for a, b in ((below, above), (above, below)))
    with np.errstate(invalid="ignore"):
        between = below * (1 - part[:, None]) + above * part[:, None]
    number = np.where(np.isnan(between), -np.inf, between).argmax(axis=0)
    share = np.full((alignments.size, _FINE), np.nan)
    for row, values in enumerate(data["share"].values):
        if (known := np.isfinite(values)).any():
            share[row] = np.interp(fine, strengths[known], values[known])
    shares = share[upper - 1] * (1 - part[:, None]) + share[upper] * part[:, None]
    return fine, across, number, np.where(np.isin(number, _TIMED), shares, np.nan)


def draw_diagram(ax: Any, data: Any) -> list[Any]:
    """The regions filled, their boundaries as lines, dots where the search takes less than half; returns the legend's handles.

    Takes a diagram ([`to_dataset`][]) of at least two alignments.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    fine, across, number, share = filled(data)
    palette = ListedColormap(list(COLOURS.values()))
    ax.pcolormesh(fine, across, number, cmap=palette, vmin=-0.5, vmax=len(COLOURS) - 0.5, rasterized=True)
    handles: list[Any] = [
        Patch(facecolor=COLOURS[name], edgecolor="0.6", linewidth=0.4, label=_NAMES[name])
        for i, name in enumerate(COLOURS)
        if (number == i).any()
    ]
    if (share < 0.5).any():
        dots = {"edgecolor": "0.55", "linewidth": 0.0}
        ax.contourf(fine, across, share, [0, 0.5], colors="none", hatches=["..."]).set(**dots)
        ax.contour(fine, across, share, [0.5], colors="0.4", linewidths=0.7, linestyles=":")
        handles.append(Patch(facecolor="white", hatch="....", label="search under half the time", **dots))
    line, kind = data["boundary_line"].values, data["boundary_kind"].values
    place = data["boundary_strength"].values, data["boundary_alignment"].values
    shown = set()
    for one in np.unique(line):
        on = line == one
        style = _STYLES[{"divergence": "maximum"}.get(str(kind[on][0]), str(kind[on][0]))]
        shown.add(style.get("label"))
        ax.plot(place[0][on], place[1][on], **{**style, "label": None}, marker="." if on.sum() == 1 else "")
    handles += [Line2D([], [], **style) for style in _STYLES.values() if style.get("label") in shown - {None}]
    ends = kind == "divergence"
    if ends.any():
        star = {"marker": "*", "color": "black", "linestyle": "none", "markersize": 6}
        ax.plot(place[0][ends], place[1][ends], **star, clip_on=False, zorder=4)
        handles.append(Line2D([], [], **star, label="never ends"))
    ax.set(xlabel=r"pretrained strength $\rho = |w_0|$", xlim=fine[[0, -1]], ylim=across[[0, -1]])
    return handles


def _simulated(work: Work, link: str, sgd: SGD, goal: Escape) -> np.ndarray:
    """Mean simulated time, its standard error and T (pair, end, 3); no simulation that needs more steps than the settings allow."""
    rows = []
    for cosine, *ends in _PAIRS[link][: work.settings.marks]:
        predicted = regimes(link, strengths=ends, alignments=[cosine], sgd=sgd, goal=goal)
        for strength, time, tau in zip(ends, predicted.time[0].tolist(), predicted.tau[0].tolist(), strict=True):
            problem = Problem.single_index(link, strength=strength, alignment=cosine, sgd=sgd)
            steps = even_steps(time + 12 * tau, float(sgd.learning_rate), _RECORDS)
            moments = (np.nan, np.nan)
            if steps[-1] <= work.settings.most_steps:
                run = work.chain(problem, steps, until=goal, seeds=2 * work.settings.seeds)
                moments = mean_and_error(run.escape_times(goal))
            rows.append((*moments, time))
    return np.reshape(np.asarray(rows, float), (-1, 2, 3))


def _compute(work: Work):
    """The phase diagram of each link, whose variables carry its name, and simulated times at pairs of strengths."""
    import xarray

    settings = work.settings
    strengths = np.linspace(*_STRENGTHS, settings.points // 2)
    alignments = np.concatenate([np.linspace(0, 0.9, settings.points // 6 + 1), _NEAR_FULL])
    batch = round(_LEARNING_RATE * settings.dimension / _NOISE_SCALE)
    goal, sgd = Escape("loss", _GOAL), SGD(learning_rate=_LEARNING_RATE, batch_size=batch, dimension=settings.dimension)
    parts = []
    for link in _LINKS:
        found = regimes(link, strengths=strengths, alignments=alignments, sgd=sgd, goal=goal)
        diagram = to_dataset(found, boundaries(found))
        pairs = np.asarray(_PAIRS[link][: settings.marks])
        diagram["pair"] = (("pair_number", "coordinate"), pairs)
        diagram["simulated"] = (("pair_number", "end", "moment"), _simulated(work, link, sgd, goal))
        diagram = diagram.assign_coords(moment=["mean", "error", "theory"])
        parts.append(
            diagram.rename({"boundary": f"{link}_boundary"} | {name: f"{link}_{name}" for name in diagram.data_vars})
        )
    return xarray.merge(parts)


def _draw(dataset):
    """A diagram for each link; arrows join simulated students and point to the faster one, with simulated over predicted times."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=1.5, foreground="white")]
    figure, axes = plt.subplots(1, len(_LINKS), figsize=(TEXT, 3.3), sharey=True)
    handles: dict[str, Any] = {}
    for ax, link in zip(axes, _LINKS, strict=True):
        prefix = f"{link}_"
        own = dataset[[name for name in dataset.data_vars if str(name).startswith(prefix)]]
        data = own.rename({name: str(name).removeprefix(prefix) for name in own.data_vars})
        handles |= {handle.get_label(): handle for handle in draw_diagram(ax, data)}
        for (cosine, *ends), moments in zip(data["pair"].values, data["simulated"].values, strict=True):
            mean, error, theory = moments.T
            ax.plot(ends, [cosine, cosine], "o", color="#0B3D91", markersize=3.5, zorder=3)
            if not np.isfinite(mean).all():
                continue
            slow, fast = np.argmax(mean), np.argmin(mean)
            arrow = {"arrowstyle": "-|>", "color": "#0B3D91", "linewidth": 1.0, "shrinkA": 0, "shrinkB": 2}
            ax.annotate("", (ends[fast], cosine), (ends[slow], cosine), arrowprops=arrow, zorder=3)
            for strength, ratio, spread in zip(ends, mean / theory, error / theory, strict=True):
                text = f"{ratio:.2f}\n±{spread:.2f}"
                style = {"ha": "center", "fontsize": 5.5, "linespacing": 0.9, "path_effects": halo}
                ax.annotate(text, (strength, cosine), (0, 4), textcoords="offset points", **style)
        ax.set(title=link)
    axes[0].set_ylabel(ALIGNMENT_LABEL)
    pointing = Line2D([], [], marker="o", color="#0B3D91", label="chain / theory, arrow to the faster")
    figure.legend(handles=[*handles.values(), pointing], loc="outside upper center", ncols=4)
    return figure


FIGURES = (
    Figure(
        "phase-diagram",
        "Where more pretraining makes fine-tuning faster and where slower, over strength and alignment, with the lines between.",
        _compute,
        _draw,
    ),
)
