"""The explorer's figures, empty: the page fills their sources with what the server answers, and gives them its colours."""

from typing import Any

from bokeh.models import ColumnDataSource, HoverTool
from bokeh.plotting import figure

from theory import Region

COLOURS = {
    Region.helps: "#56b4e9",
    Region.hurts: "#d55e00",
    Region.plateau: "#f0e442",
    Region.unreached: "#bbbbbb",
    Region.met: "#009e73",
    Region.coarse: "#cc79a7",
}
"""The colours of the regions of a phase diagram."""

_RED, _GREY, _GREEN = "#d55e00", "#999999", "#009e73"


def _source(name: str, *columns: str) -> ColumnDataSource:
    return ColumnDataSource({column: [] for column in columns}, name=name)


def _run(name: str) -> ColumnDataSource:
    return _source(name, "t", "loss", "overlap")


def _mark_escape(plot: Any) -> None:
    plot.vspan(x="t", source=_source("escape", "t"), color=_RED, line_dash="dotted", line_width=1.5)


def _figure(title: str, x: str, y: str, **options: Any) -> Any:
    plot = figure(
        title=title,
        x_axis_label=x,
        y_axis_label=y,
        height=290,
        sizing_mode="stretch_width",
        tools="pan,box_zoom,wheel_zoom,reset,save",
        active_drag=None,
        active_scroll=None,
        **options,
    )
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    return plot


def figures() -> dict[str, Any]:
    """Every figure by the name of its place on the page; their sources have the names that the page fills.

    What is named "theory" or "cross" takes its colour from the page, light or dark.
    """
    tau = _figure("Time scale of the search", "strength ρ", "τ", y_axis_type="log")
    curve = tau.line("strength", "tau", source=_source("curve", "strength", "tau"), line_width=2, name="theory")
    tau.vspan(x="strength", source=_source("critical", "strength"), color=_GREY, line_dash="dotted", line_width=1.5)
    tau.scatter("strength", "tau", source=_source("here", "strength", "tau"), color=_RED, size=10)
    tau.add_tools(HoverTool(renderers=[curve], tooltips=[("ρ", "@strength{0.000}"), ("τ", "@tau{0.000}")]))

    loss = _figure("Population loss", "time t = η · step", "loss", y_axis_type="log")
    loss.multi_line("t", "loss", source=_run("seeds"), color=_GREY, line_alpha=0.7)
    loss.line("t", "loss", source=_run("flow"), line_width=2, name="theory")
    _mark_escape(loss)

    overlaps = _figure("Overlaps", "time t = η · step", "overlap")
    overlaps.multi_line("t", "overlap", source=_run("seeds"), color=_GREY, line_alpha=0.7)
    for name, label, colour in (("up", "u", _GREEN), ("learnt", "m", "#e69f00")):
        overlaps.multi_line("t", "overlap", source=_source(name, "t", "overlap"), color=colour, legend_label=label)
    overlaps.line("t", "overlap", source=_run("flow"), line_width=2, name="theory", legend_label="w · ω*")
    _mark_escape(overlaps)
    overlaps.legend.location = "top_left"
    overlaps.legend.background_fill_alpha = 0.5

    law = _figure("Law of the escape time", "escape time", "part of the runs that has escaped", y_range=(0, 1.02))
    law.line("t", "level", source=_source("law", "t", "level"), line_width=2, name="theory")
    law.step("t", "level", source=_source("escapes", "t", "level"), color=_GREY, mode="after")
    _mark_escape(law)

    diagram = _figure("Phase diagram", "strength ρ", "alignment c", y_range=(-1.15, 1.15))
    places = _source("diagram", "strength", "alignment", "region", "colour", "width", "height")
    cells = diagram.rect(
        "strength", "alignment", "width", "height", source=places, fill_color="colour", line_color="white"
    )
    diagram.scatter(
        "strength",
        "alignment",
        source=_source("place", "strength", "alignment"),
        name="cross",
        size=10,
        marker="x",
        line_width=3,
    )
    diagram.add_tools(
        HoverTool(renderers=[cells], tooltips=[("ρ", "@strength{0.00}"), ("c", "@alignment{0.00}"), ("", "@region")])
    )
    return {"tau": tau, "loss": loss, "overlaps": overlaps, "law": law, "diagram": diagram}
