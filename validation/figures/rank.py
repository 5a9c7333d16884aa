r"""Escape times against the rank of the adapter: more rows have more chances to start well."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, polygamma

from odes import Adapter, Escape, Family, Problem
from theory import EscapeLaw, escape_law
from validation.figures.effort import Effort
from validation.figures.figure import Figure, as_dataset
from validation.figures.measured import tuned
from validation.figures.style import ESCAPE_LABEL, draw_simulated, panels, strength_colour
from validation.figures.work import Work, at_dimension

_STRENGTHS = (0.5, 0.7)
"""Of the mixtures w0 = μ ω* + (1 - μ) ξ."""

_LARGEST_RANK = 16
_NOISE = 0.5
_RECORDS = 80


def _problems(rank: int, dimension: float) -> list[Problem]:
    """The erf students of this figure, in the order of `_STRENGTHS`; κ = 1 at every rank."""
    family = Family("erf", adapter=Adapter(rank))
    return tuned([family.mixture(mu) for mu in _STRENGTHS], dimension, noise=_NOISE)


def _ranks(effort: Effort) -> np.ndarray:
    """Powers of 2 from 1 to 16."""
    return 2 ** np.linspace(0, np.log2(_LARGEST_RANK), min(5, 1 + effort.marks // 2)).round().astype(int)


def at_ranks(law: EscapeLaw, ranks: Any) -> np.ndarray:
    r"""Mean and standard deviation at any rank (2, n) from the law at rank 1:

    $$E[t] = T_0 - \tau\left[\log\sqrt{\mathrm{Var}} + \tfrac12(\psi(r/2) + \log 2)\right], \qquad
      \mathrm{std}[t] = \tfrac\tau2\sqrt{\psi'(r/2)}.$$

    [`theory.escape_law`][] at every rank agrees to about 1 % where the whole amplitude, $\sqrt{r\,\mathrm{Var}}$, is small.
    """
    half = jnp.asarray(np.asarray(ranks) / 2)
    mean = law.offsets.mean() - law.tau * (jnp.log(law.amplitude) + (digamma(half) + np.log(2)) / 2)
    return np.stack([mean, law.tau / 2 * jnp.sqrt(polygamma(1, half))])


def mean_and_std(times: np.ndarray) -> np.ndarray:
    """Mean and standard deviation over seeds with their standard errors, [[mean, error], [std, error]], by the jackknife."""
    count = times.size
    kept = np.array([np.delete(times, i).std(ddof=1) for i in range(count)])
    error = np.sqrt((count - 1) * kept.var())
    std = times.std(ddof=1)
    return np.array([[times.mean(), std / np.sqrt(count)], [std, error]])


def _escapes(work: Work, problem: Problem, law: np.ndarray, *, direct: bool = False) -> np.ndarray:
    """[`mean_and_std`][] of simulated escape times, over long enough a time for the predicted mean and deviation."""
    return mean_and_std(work.escape_times(problem, law[0] + 8 * law[1], Escape(), records=_RECORDS, direct=direct))


def compute(work: Work) -> Any:
    """Mean and standard deviation of the escape time, by law and simulation, at every rank."""
    effort = work.effort
    ranks, fine = _ranks(effort), np.geomspace(1, _LARGEST_RANK, effort.points)
    plain = _problems(1, effort.dimension)
    laws = [escape_law(problem) for problem in plain]
    simulated = [
        [
            _escapes(work, problem, at_ranks(law, rank))
            for problem, law in zip(_problems(int(rank), effort.dimension), laws, strict=True)
        ]
        for rank in ranks
    ]
    middle = int(ranks[ranks.size // 4])
    at_small = at_ranks(escape_law(at_dimension(plain[0], effort.direct_dimension)), middle)
    direct = _escapes(work, _problems(middle, effort.dimension)[0], at_small, direct=True)
    return as_dataset(
        {
            "law": (("strength", "moment", "fine"), [at_ranks(law, fine) for law in laws]),
            "chain": (("rank", "strength", "moment", "value"), simulated),
            "direct": ("value", direct[0]),
            "direct_law": ((), at_small[0]),
        },
        coords={"rank": ranks, "fine": fine, "strength": _STRENGTHS, "moment": ["mean", "std"]},
        attrs={"dimension": effort.dimension, "direct_dimension": effort.direct_dimension, "direct_rank": middle},
    )


def draw(dataset: Any) -> Any:
    """Means are drawn left, standard deviations right."""
    figure, axes = panels(1, 2, 2.5)
    rank, ranks = dataset.attrs["direct_rank"], dataset["rank"].values
    for ax, moment, word in zip(axes, ("mean", "std"), ("mean", "std. dev. of"), strict=True):
        for mu in _STRENGTHS:
            data, colour = dataset.sel(strength=mu, moment=moment), strength_colour(mu)
            ax.plot(data["fine"], data["law"], color=colour, label=f"mixture $\\mu = {mu}$")
            draw_simulated(ax, data["rank"], *data["chain"].transpose("value", "rank").values, color=colour)
        ax.set(xscale="log", xlabel="rank $r$", ylabel=f"{word} {ESCAPE_LABEL}", ylim=(0, None))
        ax.set_xticks(ranks, [str(r) for r in ranks])
        ax.minorticks_off()
    label = f"direct and law at $d = {dataset.attrs['direct_dimension']:g}$, $\\mu = {_STRENGTHS[0]}$"
    draw_simulated(axes[0], rank, *dataset["direct"].values, direct=True, color="black", label=label)
    axes[0].plot([rank / 1.2, rank * 1.2], [dataset["direct_law"]] * 2, "--", color="black")
    axes[0].set_title(f"erf, $d = {dataset.attrs['dimension']:g}$; dots: chain")
    axes[1].legend(*axes[0].get_legend_handles_labels())
    return figure


FIGURES = (
    Figure(
        "rank", "Mean and spread of the escape time fall with the rank of the adapter, as its law says.", compute, draw
    ),
)
