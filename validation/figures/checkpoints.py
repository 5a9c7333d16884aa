r"""Which checkpoint is fine-tuned fastest: the clearest example of every effect in a scan of links, cosines and goals.

Pretraining learns $\omega_s$ from random weights, fine-tuning $\omega^*$ by LoRA from the frozen weights. Whether more
pretraining helps depends on the goal: halving the checkpoint's own loss takes longer the better it is, while an absolute loss is a
goal that better checkpoints are nearer to.
"""

import dataclasses
from typing import Any

import numpy as np

from odes import SGD, Escape, Problem, Transfer, activation, self_moments
from theory import Effect, Verdict, judge, noise_unit, pretraining_times
from validation.figures.figure import Figure, as_dataset
from validation.figures.measured import trivial_loss
from validation.figures.style import draw_simulated, link_label, panels, time_axis
from validation.figures.work import Work, sgd_at

_LINKS = ("erf", "He1+He3", "He2+0.3*He1")
_COSINES = (0.2, 0.5, 0.9, 1.0)
_COLOURS = {"helps": "#D55E00", "hurts": "#009E73", "optimum": "#0072B2"}
_EFFECTS = {"helps": "always helps", "hurts": "always hurts", "optimum": "best in between"}
_GOALS = {"loss": "half its own loss", "absolute": "a tenth of the loss of a constant"}


@dataclasses.dataclass(frozen=True)
class Example:
    """A scanned link, cosine and goal, and the verdict on it."""

    link: str
    transfer: Transfer
    goal: Escape
    verdict: Verdict

    @property
    def contrast(self) -> float:
        """How many times longer fine-tuning takes from the checkpoint at the end than from the best one.

        The end is the first checkpoint where pretraining helps, the last one where it hurts, and the better of the two otherwise.
        """
        times = np.asarray(self.verdict.swept.tuning.time)
        times = times[np.isfinite(times)]
        if self.verdict.best is None or not self.verdict.best.cost > 0:
            return 0.0
        ends = {Effect.helps: times[0], Effect.hurts: times[-1]}
        return float(ends.get(self.verdict.kind, min(times[0], times[-1]))) / self.verdict.best.cost


def _sgd(link: str, dimension: float) -> SGD:
    r"""η is $0.1/E[\sigma'^2]$; the noise is half of that which feeds the search from random weights as much as the start does."""
    rate = 0.1 / float(self_moments(activation(link), 1.0).cross)
    unit = float(noise_unit(Problem.single_index(link, strength=1.0, alignment=0.02)))
    return sgd_at(rate, unit / 2, dimension)


def scan(dimension: float, points: int) -> dict[str, Example]:
    """The example of the largest contrast for each effect, by the effect's name; effects that do not occur are missing.

    Polynomials keep the length of their weights in pretraining, where free weights would leave for infinity.
    """
    found: dict[str, Example] = {}
    for link in _LINKS:
        goals = Escape(), Escape("absolute", trivial_loss(link) / 10)
        sgd, spherical = _sgd(link, dimension), activation(link).hermite is not None
        for cosine in _COSINES:
            transfer = Transfer(link, cosine=cosine, sgd=sgd, spherical=spherical)
            times = pretraining_times(transfer, points)
            for goal in goals:
                example = Example(link, transfer, goal, judge(transfer, times, goal))
                name = example.verdict.kind.name
                if name in _EFFECTS and example.contrast > (found[name].contrast if name in found else 0):
                    found[name] = example
    return found


def compute(work: Work) -> Any:
    """Fine-tuning times of the chosen examples, and their simulated means with standard errors."""
    effort, dimension = work.effort, 5 * work.effort.dimension
    variables: dict[str, tuple[Any, Any]] = {}
    attributes: dict[str, Any] = {}
    for name, example in scan(dimension, max(8, effort.points // 4)).items():
        transfer, swept = example.transfer, example.verdict.swept
        time, tuned, tau = (np.asarray(x) for x in (swept.time, swept.tuning.time, swept.tuning.tau))
        marks = np.unique(np.linspace(0, time.size - 1, effort.marks + 2).astype(int))
        simulated = np.full((2, marks.size), np.nan)
        for column, i in enumerate(marks):
            longest = 1.5 * tuned[i] + 8 * tau[i]
            if longest <= effort.most_steps * float(transfer.sgd.learning_rate):
                simulated[:, column] = work.fine_tuning(transfer, float(time[i]), example.goal, float(longest))
        turns = [(turn.at, turn.cost) for turn in example.verdict.turns if turn.kind == "best"]
        variables |= {
            f"time_{name}": (f"checkpoint_{name}", time),
            f"theory_{name}": (f"checkpoint_{name}", tuned),
            f"marks_{name}": (f"mark_{name}", time[marks]),
            f"chain_{name}": (("moment", f"mark_{name}"), simulated),
            f"best_{name}": ((f"turn_{name}", "coordinate"), np.reshape(turns, (-1, 2))),
        }
        attributes |= {
            f"link_{name}": example.link,
            f"cosine_{name}": float(transfer.cosine),
            f"goal_{name}": example.goal.criterion,
            f"contrast_{name}": example.contrast,
        }
    return as_dataset(variables, attrs=attributes | {"dimension": dimension})


def draw(dataset: Any) -> Any:
    """A panel for every effect that occurs; triangles show the best checkpoints."""
    kinds = [kind for kind in _EFFECTS if f"link_{kind}" in dataset.attrs]
    figure, axes = panels(1, len(kinds), 2.5, squeeze=False)
    for ax, kind in zip(axes[0], kinds, strict=True):
        link, cosine, goal = (dataset.attrs[f"{n}_{kind}"] for n in ("link", "cosine", "goal"))
        colour, time = _COLOURS[kind], dataset[f"time_{kind}"].values
        never = time[np.isnan(dataset[f"theory_{kind}"].values)]
        ax.plot(time, dataset[f"theory_{kind}"], color=colour, label="theory")
        draw_simulated(ax, dataset[f"marks_{kind}"], *dataset[f"chain_{kind}"].values, color=colour, label="chain")
        for at, cost in dataset[f"best_{kind}"].values:
            ax.plot(at, cost, "v", color="black", markersize=5, label="best checkpoint")
        time_axis(ax, float(time[1]), float(time[-1]))
        if never.size and never[0] == 0:
            ax.axvspan(0, never[-1], color="0.9", label="goal never reached")
        tuned = dataset[f"theory_{kind}"].values
        if np.nanmax(tuned) > 5 * np.nanmin(tuned):
            ax.set_yscale("log")
        ax.set_title(f"{_EFFECTS[kind]}: {link_label(link)}, cosine {cosine:g}\nto {_GOALS[goal]}", fontsize=7)
        ax.legend()
    return figure


FIGURES = (
    Figure(
        "checkpoints",
        "Fine-tuning time against pretraining time: cases where pretraining always helps, always hurts, and is best cut short.",
        compute,
        draw,
    ),
)
