r"""Where more pretraining helps fine-tuning and where it hurts, over the plane of pretrained strength and alignment."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from odes import Escape, Family
from theory import Boundaries, BoundaryKind, PhaseDiagram, Region, boundaries, phase_diagram
from validation.figures.figure import Figure, as_dataset
from validation.figures.style import ALIGNMENT_LABEL, LENGTH_LABEL, panels
from validation.figures.work import Work, sgd_at
from validation.simulation import mean_and_error

_LOOKS = {
    Region.helps: ("#B5DDF2", "pretraining helps"),
    Region.hurts: ("#F7CFA0", "pretraining hurts"),
    Region.plateau: ("#D9D9D9", "plateau first"),
    Region.unreached: ("#9A9A9A", "goal not reached"),
    Region.met: ("#FFFFFF", "goal met by $w_0$"),
    Region.coarse: ("#E8DDEB", "learning rate too large"),
}
"""The regions' colours, which are pale since lines and marks are drawn over them, and their names in the legend."""

_STYLES = {
    BoundaryKind.minimum: {"color": "black", "label": "best strength"},
    BoundaryKind.maximum: {"color": "black", "linestyle": (0, (4, 2)), "label": "worst strength"},
    BoundaryKind.border: {"color": "0.35", "linewidth": 0.7},
}
_TIMED = Region.helps, Region.hurts, Region.plateau
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


def to_dataset(found: PhaseDiagram, edges: Boundaries) -> Any:
    """A phase diagram and its boundaries as an `xarray.Dataset`, in which regions and kinds have their names."""
    grid, edge = ("alignment", "strength"), ("boundary",)
    regions, kinds = (np.array([member.name for member in numbered]) for numbered in (Region, BoundaryKind))
    fields = "time", "slope", "share", "tau", "D", "trusted", "searching"
    variables = {name: (grid, getattr(found, name)) for name in fields} | {"region": (grid, regions[found.region])}
    fields = "alignment", "strength", "time", "line"
    variables |= {f"boundary_{name}": (edge, getattr(edges, name)) for name in fields}
    variables |= {f"boundary_{name}": (edge, regions[getattr(edges, name)]) for name in ("before", "after")}
    variables["boundary_kind"] = (edge, kinds[edges.kind])
    return as_dataset(variables, coords={"strength": found.strength, "alignment": found.alignment})


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
    depths = np.full((len(Region), alignments.size, _FINE), -np.inf)
    for row in range(alignments.size):
        for name, low, high in intervals(data, row):
            depth = depths[Region[name], row]
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
    """Fills the regions, draws their boundaries, and dots where the search takes less than half; returns the legend's handles.

    Takes a diagram ([`to_dataset`][]) of at least two alignments.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    fine, across, number, share = filled(data)
    palette = ListedColormap([colour for colour, _ in _LOOKS.values()])
    ax.pcolormesh(fine, across, number, cmap=palette, vmin=-0.5, vmax=len(Region) - 0.5, rasterized=True)
    handles: list[Any] = [
        Patch(facecolor=colour, edgecolor="0.6", linewidth=0.4, label=label)
        for region, (colour, label) in _LOOKS.items()
        if (number == region).any()
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
        sort = BoundaryKind[str(kind[on][0])]
        style = _STYLES[BoundaryKind.maximum if sort == BoundaryKind.divergence else sort]
        shown.add(style.get("label"))
        ax.plot(place[0][on], place[1][on], **{**style, "label": None}, marker="." if on.sum() == 1 else "")
    handles += [Line2D([], [], **style) for style in _STYLES.values() if style.get("label") in shown - {None}]
    ends = kind == BoundaryKind.divergence.name
    if ends.any():
        star = {"marker": "*", "color": "black", "linestyle": "none", "markersize": 6}
        ax.plot(place[0][ends], place[1][ends], **star, clip_on=False, zorder=4)
        handles.append(Line2D([], [], **star, label="never ends"))
    ax.set(xlabel=LENGTH_LABEL, xlim=fine[[0, -1]], ylim=across[[0, -1]])
    return handles


def _simulated(work: Work, family: Family, goal: Escape, pairs: Iterable[tuple[float, ...]]) -> np.ndarray:
    """Mean simulated time, its standard error and T (pair, end, 3); NaN where simulation needs more steps than the effort allows."""
    rows, effort = [], work.effort
    for cosine, *ends in pairs:
        predicted = phase_diagram(family, strengths=ends, alignments=[cosine], goal=goal)
        for strength, time, tau in zip(ends, predicted.time[0].tolist(), predicted.tau[0].tolist(), strict=True):
            longest, moments = time + 12 * tau, (np.nan, np.nan)
            if longest <= effort.most_steps * _LEARNING_RATE:
                problem = family.at(strength, cosine)
                moments = mean_and_error(work.escape_times(problem, longest, goal, seeds=2 * effort.seeds))
            rows.append((*moments, time))
    return np.reshape(np.asarray(rows, float), (-1, 2, 3))


def compute(work: Work) -> Any:
    """The phase diagram of each link, whose variables carry its name, and simulated times at pairs of strengths."""
    import xarray

    effort = work.effort
    strengths = np.linspace(*_STRENGTHS, effort.points // 2)
    alignments = np.concatenate([np.linspace(0, 0.9, effort.points // 6 + 1), _NEAR_FULL])
    goal, sgd = Escape("loss", _GOAL), sgd_at(_LEARNING_RATE, _NOISE_SCALE, effort.dimension)
    parts = []
    for link in _LINKS:
        family, pairs = Family(link, sgd=sgd), _PAIRS[link][: effort.marks]
        found = phase_diagram(family, strengths=strengths, alignments=alignments, goal=goal)
        diagram = to_dataset(found, boundaries(found))
        diagram["pair"] = (("pair_number", "coordinate"), np.asarray(pairs))
        diagram["simulated"] = (("pair_number", "end", "moment"), _simulated(work, family, goal, pairs))
        diagram = diagram.assign_coords(moment=["mean", "error", "theory"])
        parts.append(
            diagram.rename({"boundary": f"{link}_boundary"} | {name: f"{link}_{name}" for name in diagram.data_vars})
        )
    return xarray.merge(parts)


def draw(dataset: Any) -> Any:
    """A diagram for each link; arrows join simulated students and point to the faster one, with simulated over predicted times."""
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=1.5, foreground="white")]
    figure, axes = panels(1, len(_LINKS), 3.3, sharey=True)
    handles: dict[str, Any] = {}
    for ax, link in zip(axes, _LINKS, strict=True):
        own = {name: str(name).removeprefix(f"{link}_") for name in dataset.data_vars if str(name).startswith(link)}
        data = dataset[list(own)].rename(own)
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
        compute,
        draw,
    ),
)
