r"""The search phase of links of two frequencies, $\mathrm{He}_k + \mathrm{He}_{k+k'}$, against that of either alone.

The gradient at $w_0 = \mu\omega^*$ has the length $|C - D\mu|$, and τ diverges where it vanishes and D > 0. For k' odd, C and D of the
sum are the sums of both links' C and D. For k' even they are not: at variance $\mu^2 < 1$ the student's $\mathrm{He}_{k+k'}$ has a part
along $\mathrm{He}_k$, of the sign of $(\mu^2-1)^{k'/2}$. Divergences move with the second frequency or are gone, and the weaker link can
lose a fast search to the stronger one. Where the gradient vanishes with D < 0, τ = 1/|D| stays finite: u grows without overlap.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from odes import Family, Problem
from theory import critical_points, sweep
from validation.figures.figure import Figure, as_dataset
from validation.figures.measured import hermite_rate, simulated_tau, tuned
from validation.figures.style import COLOURS, STRENGTH_LABEL, TAU_LABEL, draw_simulated, link_label, panels
from validation.figures.work import Work

_PAIRS = (1, 2), (2, 3), (3, 4), (1, 3), (2, 4), (3, 5)
"""The two degrees of each panel: neighbours in the first row of three, equal parity in the second."""
_CHECKED = 2, 3
_MARKED, _NOISE = (0.42, 0.85), 1.0
_DIRECT, _DIRECT_NOISE = 0.6, 0.2
"""The sum that is simulated, at strengths in an interval and, directly, at one, with noise that leaves the law valid there."""
_STRENGTHS = 0.02, 0.98
_MOST_ZEROS = 6


def link(degrees: tuple[int, ...]) -> str:
    """The name of the sum of Hermite polynomials of the given degrees."""
    return "+".join(f"He{k}" for k in degrees)


def _checked(strengths: Sequence[float], dimension: float, noise: float) -> list[Problem]:
    """The sum that is simulated, at the given strengths."""
    return tuned([Family(link(_CHECKED)).at(strength) for strength in strengths], dimension, noise=noise)


def strengths_around(zeros: np.ndarray, points: int) -> np.ndarray:
    """An even grid of strengths that resolves the given divergences."""
    zeros = zeros[np.isfinite(zeros)]
    return np.unique(np.concatenate([np.linspace(*_STRENGTHS, points), zeros - 1e-4, zeros + 1e-4]))


def compute(work: Work) -> Any:
    """τ(μ) of every sum and of its terms, the divergences, and simulated values for one."""
    effort, (low, high) = work.effort, _STRENGTHS
    zeros = np.stack([critical_points(link(pair), low=low, high=high, size=_MOST_ZEROS).strength for pair in _PAIRS])
    strengths = strengths_around(zeros, 4 * effort.points)
    degrees = sorted({k for pair in _PAIRS for k in pair})

    def curve(chosen: tuple[int, ...]) -> np.ndarray:
        return hermite_rate(*chosen) * np.asarray(sweep(link(chosen), strength=jnp.asarray(strengths)).tau)

    marks = np.linspace(*_MARKED, effort.marks)
    checked = _checked(list(marks), effort.dimension, _NOISE)
    rate = hermite_rate(*_CHECKED)
    simulated = rate * np.array([simulated_tau(work, problem) for problem in checked])
    (smaller,) = _checked([_DIRECT], effort.direct_dimension, _DIRECT_NOISE)
    return as_dataset(
        {
            "tau": (("pair", "strength"), [curve(pair) for pair in _PAIRS]),
            "single_tau": (("degree", "strength"), [curve((k,)) for k in degrees]),
            "critical_strength": (("pair", "zero"), zeros),
            "simulated_tau": ("mark", simulated[:, 0]),
            "standard_error": ("mark", simulated[:, 1]),
            "direct_tau": ("value_and_error", rate * np.array(simulated_tau(work, smaller, direct=True))),
        },
        coords={"pair": [link(pair) for pair in _PAIRS], "degree": degrees, "strength": strengths, "mark": marks},
        attrs={"dimension": effort.dimension, "direct_dimension": effort.direct_dimension, "seeds": effort.seeds},
    )


def draw(dataset: Any) -> Any:
    """A panel for each sum has τ in black, of its terms in their colours, divergences dotted and simulations as markers."""
    figure, axes = panels(2, 3, 4.2, sharex=True, sharey=True)
    handles = {}
    for ax, pair, tau, zeros in zip(axes.flat, _PAIRS, dataset["tau"].values, dataset["critical_strength"].values):
        for k in pair:
            single, style = dataset["single_tau"].sel(degree=k), {"color": COLOURS[f"He{k}"], "linewidth": 0.7}
            (handles[link_label(f"He{k}")],) = ax.plot(dataset["strength"], single, **style)
        (handles["sum"],) = ax.plot(dataset["strength"], tau, color="k")
        for zero in zeros[np.isfinite(zeros)]:
            handles["no gradient"] = ax.axvline(zero, color="k", linestyle=":", linewidth=0.8)
        ax.set(yscale="log", xlim=(0, 1), ylim=(1, 1e5), title=link_label(" + ".join(f"He{k}" for k in pair)))
    ax = axes.flat[_PAIRS.index(_CHECKED)]
    marks = (dataset[name] for name in ("mark", "simulated_tau", "standard_error"))
    handles["chain"] = draw_simulated(ax, *marks, color="k")
    handles["direct SGD"] = draw_simulated(ax, _DIRECT, *dataset["direct_tau"].values, direct=True, color="k", zorder=3)
    for ax in axes[-1]:
        ax.set_xlabel(STRENGTH_LABEL)
    for ax in axes[:, 0]:
        ax.set_ylabel(rf"{TAU_LABEL} $\times\,E[\sigma'^2]$")
    terms = sorted(name for name in handles if name.startswith("He"))
    names = [*terms, "sum", "no gradient", "chain", "direct SGD"]
    figure.legend([handles[name] for name in names], names, loc="outside upper center", ncols=len(names))
    return figure


FIGURES = (
    Figure(
        "two-frequencies",
        "Search-phase time against the strength for sums of two Hermite links, with that of each alone and its divergences.",
        compute,
        draw,
    ),
)
