r"""Which checkpoint is fine-tuned fastest: the most pronounced case of every kind in a scan of links, cosines and goals.

Pretraining learns $\omega_s$ from random weights, fine-tuning $\omega^*$ by LoRA from the frozen weights. Whether more
pretraining helps depends on the goal: halving the checkpoint's own loss takes longer the better it is, while an absolute loss is a
goal that better checkpoints are nearer to.
"""

import dataclasses
from typing import Any

import numpy as np

from odes import SGD, Escape, Problem, Transfer, activation, self_moments
from theory import Verdict, judge, noise_unit, pretraining_times
from validation.figures.base import Figure, Work
from validation.figures.style import TEXT, link_label, time_axis

_LINKS = ("erf", "He1+He3", "He2+0.3*He1")
_COSINES = (0.2, 0.5, 0.9, 1.0)
_COLOURS = {"helps": "#D55E00", "hurts": "#009E73", "optimum": "#0072B2"}
_KINDS = {"helps": "always helps", "hurts": "always hurts", "optimum": "best in between"}
_GOALS = {"loss": "half its own loss", "absolute": "a tenth of the loss of a constant"}


@dataclasses.dataclass(frozen=True)
class Case:
    """A scanned link, cosine and goal, and the verdict on it."""

    link: str
    transfer: Transfer
    goal: Escape
    verdict: Verdict

    @property
    def contrast(self) -> float:
        """By what factor the best checkpoint beats the better of those at the ends that its kind compares it with."""
        times = np.asarray(self.verdict.swept.tuning.time)
        times = times[np.isfinite(times)]
        if self.verdict.best is None or not self.verdict.best.cost > 0:
            return 0.0
        other = {"helps": times[0], "hurts": times[-1], "optimum": min(times[0], times[-1])}[self.verdict.kind]
        return float(other) / self.verdict.best.cost


def _sgd(link: str, dimension: float) -> SGD:
    r"""η a tenth of $1/E[\sigma'^2]$, and half the noise that feeds the search from random weights as much as the start does."""
    rate = 0.1 / float(self_moments(activation(link), 1.0).cross)
    unit = float(noise_unit(Problem.single_index(link, strength=1.0, alignment=0.02)))
    return SGD(learning_rate=rate, batch_size=float(round(2 * rate * dimension / unit)), dimension=dimension)


def scan(dimension: float, points: int) -> dict[str, Case]:
    """The most pronounced case of each kind in the scan; kinds that do not occur are missing.

    Polynomials keep the length of their weights in pretraining, where free ones would leave for infinity.
    """
    found: dict[str, Case] = {}
    for link in _LINKS:
        goals = Escape(), Escape("absolute", float(self_moments(activation(link), 1.0).value) / 20)
        sgd, spherical = _sgd(link, dimension), activation(link).hermite is not None
        for cosine in _COSINES:
            transfer = Transfer(link, cosine=cosine, sgd=sgd, spherical=spherical)
            times = pretraining_times(transfer, points)
            for goal in goals:
                case = Case(link, transfer, goal, judge(transfer, times, goal))
                kind = case.verdict.kind
                if kind in _KINDS and case.contrast > (found[kind].contrast if kind in found else 0):
                    found[kind] = case
    return found


def _compute(work: Work):
    """Fine-tuning times of the chosen cases, and their simulated means with standard errors."""
    import xarray

    dimension = 5 * work.settings.dimension
    variables: dict[str, Any] = {}
    chosen = {}
    for kind, case in scan(dimension, max(8, work.settings.points // 4)).items():
        swept = case.verdict.swept
        time, tuned, tau = (np.asarray(x) for x in (swept.time, swept.tuning.time, swept.tuning.tau))
        marks = np.unique(np.linspace(0, time.size - 1, work.settings.marks + 2).astype(int))
        simulated = np.full((2, marks.size), np.nan)
        for column, i in enumerate(marks):
            longest = 1.5 * tuned[i] + 8 * tau[i]
            if longest <= work.settings.most_steps * float(case.transfer.sgd.learning_rate):
                simulated[:, column] = work.fine_tuning(case.transfer, float(time[i]), case.goal, float(longest))
        variables[f"time_{kind}"] = (f"checkpoint_{kind}", time)
        variables[f"theory_{kind}"] = (f"checkpoint_{kind}", tuned)
        variables[f"marks_{kind}"] = (f"mark_{kind}", time[marks])
        variables[f"chain_{kind}"] = (("moment", f"mark_{kind}"), simulated)
        turns = [(turn.at, turn.cost) for turn in case.verdict.turns if turn.kind == "best"]
        variables[f"best_{kind}"] = ((f"turn_{kind}", "coordinate"), np.array(turns).reshape(-1, 2))
        chosen[kind] = {
            "link": case.link,
            "cosine": float(case.transfer.cosine),
            "goal": case.goal.criterion,
            "contrast": case.contrast,
        }
    attrs = {f"{name}_{kind}": value for kind, case in chosen.items() for name, value in case.items()}
    return xarray.Dataset(variables, attrs=attrs | {"dimension": dimension})


def _draw(dataset):
    """A panel for every kind that occurs; triangles: best checkpoints."""
    import matplotlib.pyplot as plt

    kinds = [kind for kind in _KINDS if f"link_{kind}" in dataset.attrs]
    figure, axes = plt.subplots(1, len(kinds), figsize=(TEXT, 2.5), squeeze=False)
    for ax, kind in zip(axes[0], kinds, strict=True):
        link, cosine, goal = (dataset.attrs[f"{n}_{kind}"] for n in ("link", "cosine", "goal"))
        colour, time = _COLOURS[kind], dataset[f"time_{kind}"].values
        never = time[np.isnan(dataset[f"theory_{kind}"].values)]
        ax.plot(time, dataset[f"theory_{kind}"], color=colour, label="theory")
        ax.errorbar(dataset[f"marks_{kind}"], *dataset[f"chain_{kind}"].values, fmt="o", color=colour, label="chain")
        for at, cost in dataset[f"best_{kind}"].values:
            ax.plot(at, cost, "v", color="black", markersize=5, label="best checkpoint")
        time_axis(ax, float(time[1]), float(time[-1]))
        if never.size and never[0] == 0:
            ax.axvspan(0, never[-1], color="0.9", label="goal never reached")
        tuned = dataset[f"theory_{kind}"].values
        if np.nanmax(tuned) > 5 * np.nanmin(tuned):
            ax.set_yscale("log")
        ax.set_title(f"{_KINDS[kind]}: {link_label(link)}, cosine {cosine:g}\nto {_GOALS[goal]}", fontsize=7)
        ax.legend()
    return figure


FIGURES = (
    Figure(
        "checkpoints",
        "Fine-tuning time against pretraining time: cases where pretraining always helps, always hurts, and is best cut short.",
        _compute,
        _draw,
    ),
)
