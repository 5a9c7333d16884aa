"""One look for every figure: a style sheet, a colour for each link function, words for each symbol."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

TIME_LABEL = r"time $t = \eta\cdot$step"
TAU_LABEL = r"search-phase time $\tau$"
STRENGTH_LABEL = r"pretrained strength $\mu$"
ESCAPE_LABEL = "escape time"
LOSS_LABEL = r"population loss $\ell$"

COLOURS = {"linear": "#0072B2", "relu": "#D55E00", "erf": "#009E73", "sigmoid": "#CC79A7", "tanh": "#56B4E9"}
"""Colour-blind-safe colours (Okabe & Ito) of the link functions that are drawn together most."""


@contextlib.contextmanager
def figure_style() -> Iterator[None]:
    """Draws with the project's style sheet and without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.style.context(Path(__file__).parent / "searchphase.mplstyle"):
        yield
    plt.close("all")
