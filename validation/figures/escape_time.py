r"""How long the search takes: τ against the strength of pretraining, with simulated escape times turned into τ."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from odes import Escape, Problem, log_times, solve
from odes.arguments import ArrayLike
from theory import critical_points, search_phase, sweep
from validation.figures.base import Figure, Work, typical_start
from validation.figures.measured import simulated_tau, tuned
from validation.figures.style import COLOURS, M_LABEL, STRENGTH_LABEL, TAU_LABEL, TEXT, link_label, strength_colour
from validation.simulation.result import mean_and_error

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
        """The loss halved; a twentieth of the way in overlap where the loss need not fall so far."""
        return Escape() if self.noise else Escape("overlap", 0.05)

    def teacher(self, link: str) -> str:
        """The teacher's link function."""
        return f"({link})^2" if self.squared else link


def _problems(plan: Plan, link: str, strengths: ArrayLike, dimension: float, *, noise: float) -> list[Problem]:
    """The aligned problems of a link at some strengths."""
    teacher = plan.teacher(link)
    problems = [Problem.single_index(link, strength=float(mu), teacher=teacher) for mu in np.asarray(strengths)]
    return tuned(problems, dimension, noise=noise)


def compute(work: Work, plan: Plan) -> Any:
    """τ(μ), its divergences, and simulated values at some strengths, for every link of the plan."""
    import xarray

    settings = work.settings
    names = [link.name for link in plan.links]
    strengths = np.linspace(*_STRENGTHS, 4 * settings.points + 1)
    marks = np.linspace(*_MARKED, settings.marks)
    tau, zeros, simulated = [], [], np.full((len(names), marks.size, 2), np.nan)
    for i, name in enumerate(names):
        teacher = plan.teacher(name)
        tau.append(sweep(name, strength=jnp.asarray(strengths), teacher=teacher).tau)
        zeros.append(critical_points(name, low=_STRENGTHS[0], high=_STRENGTHS[1], teacher=teacher).strength)
        if i < settings.simulated_links:
            problems = _problems(plan, name, marks, settings.dimension, noise=plan.noise)
            simulated[i] = [simulated_tau(work, problem, plan.escape) for problem in problems]
    (checked,) = _problems(plan, names[0], [_DIRECT], settings.direct_dimension, noise=2.0)
    direct = simulated_tau(work, checked, plan.escape, direct=True)
    dataset = xarray.Dataset(
        {
            "tau": (("link", "strength"), np.stack([np.asarray(x) for x in tau])),
            "critical_strength": (("link", "zero"), np.stack([np.asarray(x) for x in zeros])),
            "simulated_tau": (("link", "mark"), simulated[..., 0]),
            "standard_error": (("link", "mark"), simulated[..., 1]),
            "direct_tau": ((), direct[0]),
            "direct_error": ((), direct[1]),
        },
        coords={"link": names, "strength": strengths, "mark": marks},
        attrs={"direct_strength": _DIRECT, "seeds": settings.seeds, "dimension": settings.dimension},
    )
    if plan.shown is None:
        return dataset
    return dataset.merge(_dynamics(work, plan, plan.shown))


def _dynamics(work: Work, plan: Plan, link: str) -> Any:
    """m(t) from the typical start at two strengths, from the flow and, as long as that takes few steps, from the chain."""
    import xarray

    lines, means, errors, record_times = [], [], [], []
    (first,) = _problems(plan, link, list(_SHOWN[:1]), work.settings.dimension, noise=2.0)
    problems = [
        Problem.single_index(link, strength=strength, teacher=plan.teacher(link), sgd=first.sgd) for strength in _SHOWN
    ]
    ends = [12 * float(search_phase(problem).tau) for problem in problems]
    times = log_times(max(ends), work.settings.points, first=min(ends) / 1000)
    for problem in problems:
        eta, start = float(problem.sgd.learning_rate), typical_start(problem)
        lines.append(solve(problem, start, t1=max(ends), times=times, finite_steps=True).m[:, 0])
        last = min(work.settings.most_steps // 4, int(max(ends) / eta))
        steps = np.concatenate([[0], np.unique(np.geomspace(30, last, 12).round().astype(int))])
        run = work.chain(problem, steps, start=start, seeds=min(work.settings.seeds, 32))
        mean, error = mean_and_error(run.m[..., 0])
        means.append(mean)
        errors.append(error)
        record_times.append(np.asarray(run.t))
    return xarray.Dataset(
        {
            "overlap": (("shown_strength", "time"), np.stack([np.asarray(x) for x in lines])),
            "simulated_overlap": (("shown_strength", "record"), np.stack(means)),
            "overlap_error": (("shown_strength", "record"), np.stack(errors)),
            "record_time": (("shown_strength", "record"), np.stack(record_times)),
        },
        coords={"time": np.asarray(times), "shown_strength": list(_SHOWN)},
    )


def draw(dataset: Any, plan: Plan) -> Any:
    """τ against μ on a logarithmic axis, divergences dotted, simulated values as markers."""
    import matplotlib.pyplot as plt

    panels = len(plan.titles) + (plan.shown is not None)
    widths = [1.0] * len(plan.titles) + [0.7] * (plan.shown is not None)
    size = (0.55 * TEXT if panels == 1 else TEXT, 2.5)
    figure, axes = plt.subplots(1, panels, figsize=size, width_ratios=widths, squeeze=False)
    for i, link in enumerate(plan.links):
        ax, colour = axes[0, link.panel], COLOURS[link.name]
        ax.plot(dataset["strength"], link.rate * dataset["tau"][i], color=colour, label=link_label(link.name))
        for zero in dataset["critical_strength"].values[i]:
            if zero < _STRENGTHS[1] - 1e-6:
                ax.axvline(zero, color=colour, linestyle=":", linewidth=0.8)
        ax.errorbar(
            dataset["mark"],
            link.rate * dataset["simulated_tau"][i],
            link.rate * dataset["standard_error"][i],
            fmt="o",
            color=colour,
            elinewidth=0.8,
        )
        if i == 0:
            ax.errorbar(
                dataset.attrs["direct_strength"],
                link.rate * dataset["direct_tau"],
                link.rate * dataset["direct_error"],
                fmt="s",
                color=colour,
                markerfacecolor="white",
                elinewidth=0.8,
            )
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
        ax.errorbar(
            rate * dataset["record_time"][i],
            dataset["simulated_overlap"][i],
            dataset["overlap_error"][i],
            fmt="o",
            color=colour,
            markersize=2.5,
        )
    ax.set(
        xscale="log", xlabel=r"time $t\times k\,k!$", ylabel=M_LABEL, title=f"dynamics, {link_label(plan.shown or '')}"
    )
    ax.legend(loc="lower left" if plan.squared else "upper left")


def _figure(name: str, sentence: str, plan: Plan) -> Figure:
    return Figure(name, sentence, functools.partial(compute, plan=plan), functools.partial(draw, plan=plan))


_HERMITE_RATE = {2: 4, 3: 18, 5: 600, 6: 4320, 7: 35280, 10: 36288000}

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
            [Link(f"He{k}", 0 if k % 2 else 1, _HERMITE_RATE[k]) for k in (3, 5, 7, 2, 6, 10)],
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
                *(Link(f"He{k}", 1, _HERMITE_RATE[k]) for k in (3, 2, 5)),
            ],
            titles=("squared labels", r"squared labels, $\tau\times k\,k!$"),
            squared=True,
            legend="upper center",
            noise=0.0,
            shown="He3",
        ),
    ),
)
