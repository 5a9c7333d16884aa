r"""How long the search takes: τ against the strength of pretraining, with simulated escape times turned into τ."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from odes import Escape, Family, log_times
from theory import critical_points, resting_start, search_phase, sweep
from validation.figures.figure import Figure, as_dataset
from validation.figures.measured import followed, hermite_rate, log_steps, simulated_tau, tuned
from validation.figures.style import (
    COLOURS,
    M_LABEL,
    STRENGTH_LABEL,
    TAU_LABEL,
    TEXT,
    draw_simulated,
    link_label,
    panels,
    strength_colour,
)
from validation.figures.work import Work
from validation.simulation import mean_and_error

_STRENGTHS = 0.02, 0.98
_MARKED = 0.1, 0.8
_SHOWN = 0.2, 0.325
_DIRECT = 0.5


@dataclasses.dataclass(frozen=True)
class Link:
    """A student's link function, in which `panel` it is drawn, and the unit of its times, 1/`rate`."""

    name: str
    panel: int = 0
    rate: int = 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """A figure of τ(μ): link functions, whether labels are squared, how noisy SGD is, which link's dynamics is shown."""

    links: Sequence[Link]
    titles: Sequence[str] = ("",)
    squared: bool = False
    noise: float = 2.0
    shown: str | None = None
    unit: str = ""
    legend: str = "upper left"
    columns: int = 2

    @property
    def escape(self) -> Escape:
        """A run escapes when its loss is halved; where the loss need not fall so far, at a twentieth of the way in overlap."""
        return Escape() if self.noise else Escape("overlap", 0.05)

    def teacher(self, link: str) -> str:
        """The teacher's link function."""
        return f"({link})^2" if self.squared else link

    def family(self, link: str) -> Family:
        """The problems of a link function."""
        return Family(link, teacher=self.teacher(link))


def compute(work: Work, plan: Plan) -> Any:
    """τ(μ), its divergences, and simulated values at some strengths, for every link of the plan."""
    effort = work.effort
    names = [link.name for link in plan.links]
    strengths = np.linspace(*_STRENGTHS, 4 * effort.points + 1)
    marks = np.linspace(*_MARKED, effort.marks)
    tau, zeros, simulated = [], [], np.full((len(names), marks.size, 2), np.nan)
    for i, name in enumerate(names):
        family = plan.family(name)
        tau.append(sweep(family, strength=jnp.asarray(strengths)).tau)
        zeros.append(critical_points(family, low=_STRENGTHS[0], high=_STRENGTHS[1]).strength)
        if i < effort.simulated_links:
            problems = tuned([family.at(mu) for mu in marks], effort.dimension, noise=plan.noise)
            simulated[i] = [simulated_tau(work, problem, plan.escape) for problem in problems]
    (checked,) = tuned([plan.family(names[0]).at(_DIRECT)], effort.direct_dimension)
    direct = simulated_tau(work, checked, plan.escape, direct=True)
    variables = {
        "tau": (("link", "strength"), tau),
        "critical_strength": (("link", "zero"), zeros),
        "simulated_tau": (("link", "mark"), simulated[..., 0]),
        "standard_error": (("link", "mark"), simulated[..., 1]),
        "direct_tau": ((), direct[0]),
        "direct_error": ((), direct[1]),
    }
    if plan.shown is not None:
        variables |= _dynamics(work, plan.family(plan.shown))
    return as_dataset(
        variables,
        coords={"link": names, "strength": strengths, "mark": marks},
        attrs={"direct_strength": _DIRECT, "seeds": effort.seeds, "dimension": effort.dimension},
    )


def _dynamics(work: Work, family: Family) -> dict[str, tuple[Any, Any]]:
    """m(t) from the typical start at two strengths, from the flow and, as long as that takes few steps, from the chain."""
    effort, lines, moments, record_times = work.effort, [], [], []
    (first,) = tuned([family.at(_SHOWN[0])], effort.dimension)
    problems = [family.at(strength).replace(sgd=first.sgd) for strength in _SHOWN]
    ends = [12 * float(search_phase(problem).tau) for problem in problems]
    times = log_times(max(ends), effort.points, first=min(ends) / 1000)
    steps = log_steps(30, min(effort.most_steps // 4, int(max(ends) / float(first.sgd.learning_rate))), 12)
    for problem in problems:
        start = resting_start(problem)
        lines.append(followed(problem, start, times).m[:, 0])
        run = work.chain(problem, steps, start=start, seeds=min(effort.seeds, 32))
        moments.append(mean_and_error(run.m[..., 0]))
        record_times.append(run.t)
    means, errors = zip(*moments)
    records = "shown_strength", "record"
    return {
        "overlap": (("shown_strength", "time"), lines),
        "simulated_overlap": (records, means),
        "overlap_error": (records, errors),
        "record_time": (records, record_times),
        "time": ("time", times),
        "shown_strength": ("shown_strength", _SHOWN),
    }


def draw(dataset: Any, plan: Plan) -> Any:
    """τ is drawn against μ on a logarithmic axis, with divergences dotted and simulated values as markers."""
    widths = [1.0] * len(plan.titles) + [0.7] * (plan.shown is not None)
    width = 0.55 * TEXT if len(widths) == 1 else TEXT
    figure, axes = panels(1, len(widths), 2.5, width=width, width_ratios=widths, squeeze=False)
    for i, link in enumerate(plan.links):
        ax, colour = axes[0, link.panel], COLOURS[link.name]
        ax.plot(dataset["strength"], link.rate * dataset["tau"][i], color=colour, label=link_label(link.name))
        for zero in dataset["critical_strength"].values[i]:
            if zero < _STRENGTHS[1] - 1e-6:
                ax.axvline(zero, color=colour, linestyle=":", linewidth=0.8)
        moments = (link.rate * dataset[name][i] for name in ("simulated_tau", "standard_error"))
        draw_simulated(ax, dataset["mark"], *moments, color=colour)
        if i == 0:
            moments = (link.rate * dataset[name] for name in ("direct_tau", "direct_error"))
            draw_simulated(ax, dataset.attrs["direct_strength"], *moments, direct=True, color=colour)
    for ax, title in zip(axes[0], plan.titles, strict=False):
        ax.set(yscale="log", xlabel=STRENGTH_LABEL, xlim=(0, 1), title=title)
        low, high = ax.get_ylim()
        ax.set_ylim(low, min(high, 1e6))
        ax.legend(loc=plan.legend, ncols=plan.columns, handlelength=1.2, columnspacing=0.8)
    axes[0, 0].set_ylabel(f"{TAU_LABEL}{plan.unit}")
    if plan.shown is not None:
        _draw_dynamics(axes[0, -1], dataset, plan)
    return figure


def _draw_dynamics(ax: Any, dataset: Any, plan: Plan) -> None:
    rate = next(link.rate for link in plan.links if link.name == plan.shown)
    for i, strength in enumerate(dataset["shown_strength"].values):
        colour = strength_colour(float(strength))
        ax.plot(rate * dataset["time"], dataset["overlap"][i].clip(-1, 1), color=colour, label=rf"$\mu = {strength:g}$")
        marks = rate * dataset["record_time"][i], dataset["simulated_overlap"][i], dataset["overlap_error"][i]
        draw_simulated(ax, *marks, color=colour, markersize=2.5)
    ax.set(xscale="log", xlabel=r"time $t\times k\,k!$", ylabel=M_LABEL)
    ax.set_title(f"dynamics, {link_label(plan.shown or '')}")
    ax.legend(loc="lower left" if plan.squared else "upper left")


def _figure(name: str, sentence: str, plan: Plan) -> Figure:
    return Figure(name, sentence, functools.partial(compute, plan=plan), functools.partial(draw, plan=plan))


FIGURES = (
    _figure(
        "escape-time",
        "Search-phase time against the strength of aligned pretraining, for linear, relu, erf and sigmoid links.",
        Plan([Link("erf"), Link("relu"), Link("linear"), Link("sigmoid")]),
    ),
    _figure(
        "escape-time-hermite",
        "The same for Hermite links, odd and even, whose search phase diverges at interior critical strengths.",
        Plan(
            [Link(f"He{k}", 0 if k % 2 else 1, hermite_rate(k)) for k in (3, 5, 7, 2, 6, 10)],
            titles=("odd links", "even links"),
            noise=0.0,
            shown="He3",
            unit=r" $\times\,k\,k!$",
            legend="upper right",
            columns=1,
        ),
    ),
    _figure(
        "escape-time-squared-labels",
        "The same where the adapter learns the squares of the labels: most links diverge no longer where pretraining is strong.",
        Plan(
            [
                *(Link(name) for name in ("erf", "relu", "linear", "sigmoid")),
                *(Link(f"He{k}", 1, hermite_rate(k)) for k in (3, 2, 5)),
            ],
            titles=("squared labels", r"squared labels, $\tau\times k\,k!$"),
            squared=True,
            legend="upper center",
            noise=0.0,
            shown="He3",
        ),
    ),
)
