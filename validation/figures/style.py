"""One look for every figure: style sheet, panels, markers of simulations, colours of link functions and strengths, words for symbols."""

import contextlib
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COLUMN, TEXT = 3.3, 6.9
"""Widths in inches of one column and of the whole text in a two-column paper."""

TIME_LABEL = r"time $t = \eta\cdot$step"
TAU_LABEL = r"search-phase time $\tau$"
STRENGTH_LABEL = r"pretrained strength $\mu$"
LENGTH_LABEL = r"pretrained strength $\rho = |w_0|$"
ALIGNMENT_LABEL = r"alignment $c = \cos(w_0, \omega^*)$"
ESCAPE_LABEL = "escape time"
PRETRAINING_LABEL = r"pretraining time $\eta\cdot$step"
FINE_TUNING_LABEL = r"fine-tuning time $\eta\cdot$step"
LOSS_LABEL = r"population loss $\ell$"
M_LABEL = r"adapter overlap $m = v\cdot\omega^*$"
OVERLAP_LABEL = r"student overlap $w\cdot\omega^*$"

COLOURS = {
    "linear": "#0072B2",
    "relu": "#D55E00",
    "erf": "#009E73",
    "sigmoid": "#CC79A7",
    "tanh": "#56B4E9",
    "He1": "#332288",
    "He2": "#E69F00",
    "He3": "#0072B2",
    "He4": "#882255",
    "He5": "#D55E00",
    "He6": "#44AA99",
    "He7": "#009E73",
    "He10": "#999933",
}
"""Colour-blind-safe colours (Okabe & Ito; Tol) of the link functions, the same in every figure."""


def link_label(name: str) -> str:
    """A link function's name as it is written in figures.

    >>> link_label("He10")
    'He$_{10}$'
    """
    return re.sub(r"He(\d+)", r"He$_{\1}$", name)


def strength_colour(strength: float) -> Any:
    """The colour of a pretrained strength between 0 and 1, the same in every figure, dark for weak pretraining."""
    import matplotlib

    return matplotlib.colormaps["viridis"](0.92 * strength)


def panels(rows: int, columns: int, height: float, *, width: float = TEXT, **options: Any) -> tuple[Any, Any]:
    """A Matplotlib figure as wide as the text, unless told otherwise, and its panels; `options` are those of `plt.subplots`."""
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, figsize=(width, height), **options)


def draw_simulated(ax: Any, x: Any, mean: Any, error: Any, *, direct: bool = False, **style: Any) -> Any:
    """Draws simulated means with their standard errors: dots for the chain, open squares for the direct simulator."""
    marker = {"fmt": "s", "markerfacecolor": "white"} if direct else {"fmt": "o"}
    return ax.errorbar(x, mean, error, **{"elinewidth": 0.8, **marker, **style})


def sweep_axis(ax: Any, against: str) -> None:
    """The horizontal axis of a sweep over strengths, mixtures, alignments, factors of the pretrained rows, ranks or dimensions."""
    labels = {"mu": STRENGTH_LABEL, "strength": LENGTH_LABEL, "alignment": ALIGNMENT_LABEL}
    labels |= {"rank": "rank $r$", "dimension": "dimension $d$", "factor": "factor of the pretrained rows"}
    ax.set_xlabel(labels[against])
    if against == "rank":
        ax.xaxis.get_major_locator().set_params(integer=True)
    if against == "dimension":
        ax.set_xscale("log")


def log_height(ax: Any) -> None:
    """Makes the vertical axis logarithmic, with numbers also where it spans less than a decade."""
    ax.set_yscale("log")
    _numbered(ax.yaxis)


def log_width(ax: Any) -> None:
    """Makes the horizontal axis logarithmic, with numbers also where it spans less than a decade."""
    ax.set_xscale("log")
    _numbered(ax.xaxis)


def _numbered(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

    low, high = axis.get_view_interval()
    if high < 10 * low:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(ScalarFormatter(useOffset=False))
        axis.set_minor_locator(NullLocator())


def time_axis(ax: Any, first: float, last: float) -> None:
    """A logarithmic axis of pretraining times that has room for time 0: linear up to `first`, ticks at 0 and powers of ten."""
    ax.set_xscale("symlog", linthresh=first, linscale=0.5)
    decades = range(math.ceil(math.log10(first)), math.floor(math.log10(last)) + 1)
    ax.set_xticks([0, *(10.0**k for k in decades)], ["0", *(f"$10^{{{k}}}$" for k in decades)])
    ax.minorticks_off()
    ax.set(xlim=(-0.2 * first, 1.2 * last), xlabel=PRETRAINING_LABEL, ylabel=FINE_TUNING_LABEL)


@contextlib.contextmanager
def figure_style() -> Iterator[None]:
    """Draws with the project's style sheet and without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns of the creation time of fonts in PDF files
    with plt.style.context(Path(__file__).parent / "searchphase.mplstyle"):
        yield
    plt.close("all")
