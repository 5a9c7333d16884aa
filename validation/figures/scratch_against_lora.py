r"""Fine-tuning against training from scratch: the time to the same loss, against the strength of pretraining."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odes import SGD, Escape, Family, Overlaps, Problem, gradient_at, modified_flow, noise_at
from odes.programs import program
from theory import critical_points, passage, patience, resting_start, search_phase, weights_start
from validation.figures.figure import Figure, as_dataset
from validation.figures.measured import hermite_rate, trivial_loss, tuned
from validation.figures.style import COLOURS, STRENGTH_LABEL, draw_simulated, panels
from validation.figures.work import Work, at_dimension
from validation.simulation import Simulation, even_steps, mean_and_error

_GOAL = 0.01
"""Training has arrived at this fraction of the loss of a student whose output is always 0."""

_RECORDS = 200
_HIGH = 0.97


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Strengths of pretraining for one link function: the lowest of its curve, the `first` and `last` simulated one.

    Times are drawn in units of 1 / `unit`; `noise` scales θ (He3's gradients have heavy tails).
    """

    link: str
    panel: int
    low: float
    first: float
    last: float
    unit: int = 1
    noise: float = 1.0


_SWEEPS = (
    Sweep("linear", 0, low=0.02, first=0.15, last=0.85),
    Sweep("erf", 0, low=0.02, first=0.15, last=0.6),
    Sweep("He3", 1, low=0.335, first=0.4, last=0.85, unit=hermite_rate(3), noise=0.01),
)


def scratch_at(m: Array | float) -> Overlaps:
    """The overlaps of unit weights that are trained themselves, with w·ω* = m."""
    return weights_start(jnp.full(2, m))


def scratch_start(problem: Problem) -> Overlaps:
    r"""The typical random start, $m = d^{-1/2}$."""
    return scratch_at(1 / jnp.sqrt(problem.sgd.dimension))


@program
def scratch_time(problem: Problem, goal: float) -> Float[Array, ""]:
    r"""The time $\int dm/\dot m$ that unit weights take from $m = d^{-1/2}$ to the goal."""
    overlaps = jnp.linspace(-jnp.log(problem.sgd.dimension) / 2, -1e-4, 4001)
    m = jnp.exp(overlaps)
    loss = jax.vmap(lambda x: gradient_at(problem, scratch_at(x)).loss)(m)
    inverse = jax.vmap(lambda x: x / modified_flow(problem, scratch_at(x)).cross[0, 0])(m)
    steps = jnp.diff(overlaps) * (inverse[1:] + inverse[:-1]) / 2
    time = jnp.concatenate([jnp.zeros(1), jnp.cumsum(steps)])
    return jnp.interp(-goal, -loss, time)


@program
def lora_times(family: Family, strengths: Float[Array, " n"], goal: float) -> Float[Array, " n"]:
    """The times that the flow of finite steps takes from the typical start to the goal; 0 where w0 is there already."""

    def at(mu: Array) -> Array:
        problem = family.at(mu)
        horizon = patience(search_phase(problem))
        return passage(problem, resting_start(problem), Escape("absolute", goal), horizon).escape_time

    return jax.vmap(at)(strengths)


def common_sgd(link: str, strengths: np.ndarray, dimension: float, noise: float) -> SGD:
    r"""SGD that follows the flow closely at every strength, and from scratch too.

    From scratch noise must feed m less than the gradient does: $\theta \le c\,\dot m/(mN)$ at the start, c = `noise`.
    """
    sgd = [p.sgd for p in tuned([Family(link).at(mu) for mu in strengths], dimension, noise=noise)]
    rate = min(float(x.learning_rate) for x in sgd)
    scratch = Problem.full_weights(link, sgd=SGD(learning_rate=rate, batch_size=np.inf, dimension=dimension))
    start = scratch_start(scratch)
    growth = modified_flow(scratch, start).cross[0, 0] / start.cross[0, 0]
    batch = rate * dimension * float(noise_at(scratch, start)[0, 0] / growth) / noise
    return SGD(learning_rate=rate, batch_size=round(max(batch, float(sgd[0].batch_size))), dimension=dimension)


def crossing_times(run: Simulation, goal: float) -> np.ndarray:
    """When each seed's loss first fell to the goal, log-linear between records; NaN if it never did."""
    logs, t = np.log(np.maximum(np.asarray(run.loss), 1e-3 * goal)), np.asarray(run.t)
    below = logs <= np.log(goal)
    after = np.maximum(below.argmax(axis=1), 1)
    rows = np.arange(after.size)
    high, low = logs[rows, after - 1], logs[rows, after]
    fraction = (high - np.log(goal)) / (high - low)
    return np.where(below.any(axis=1), t[after - 1] + fraction * (t[after] - t[after - 1]), np.nan)


def _run(problem: Problem, time: float) -> np.ndarray:
    """Recorded steps of a run of 1.5 times the predicted time."""
    return even_steps(1.5 * time, float(problem.sgd.learning_rate), _RECORDS)


def _curves(work: Work, swept: Sweep) -> dict[str, Any]:
    """Times of theory and simulation, fine-tuned and from scratch, of one link function.

    A third of the effort's seeds is enough, since they all start alike. For the first link function there are also the time of
    the direct simulator at one strength, and the theory's at its dimension. From scratch η is four times smaller, since every
    step rescales the whole student.
    """
    effort, goal, seeds = work.effort, _GOAL * trivial_loss(swept.link), max(20, work.effort.seeds // 3)
    marks = np.linspace(swept.first, swept.last, effort.marks)
    every = jnp.asarray(np.concatenate([np.linspace(swept.low, _HIGH, effort.points), marks]))
    sgd = common_sgd(swept.link, marks, effort.dimension, swept.noise)
    family = Family(swept.link, sgd=sgd)
    lora = np.asarray(lora_times(family, every, goal))
    chain = []
    for mu, time in zip(marks, lora[effort.points :], strict=True):
        problem = family.at(mu)
        run = work.chain(problem, _run(problem, time), start=resting_start(problem), seeds=seeds)
        chain.append(mean_and_error(crossing_times(run, goal)))
    scratch = Problem.full_weights(swept.link, sgd=sgd.replace(learning_rate=sgd.learning_rate / 4))
    expected = float(scratch_time(scratch, goal))
    run = work.chain(scratch, _run(scratch, expected), start=scratch_start(scratch), seeds=seeds)
    scratch_chain = mean_and_error(crossing_times(run, goal))
    curves = {
        "strength": ("point", every[: effort.points]),
        "lora": ("point", swept.unit * lora[: effort.points]),
        "mark": ("mark", marks),
        "chain": (("mark", "moment"), swept.unit * np.array(chain)),
        "scratch": ((), swept.unit * expected),
        "scratch_chain": ("moment", swept.unit * np.array(scratch_chain)),
    }
    if swept is _SWEEPS[0]:
        middle = effort.marks // 2
        small = at_dimension(family.at(marks[middle]), effort.direct_dimension)
        theory = np.asarray(lora_times(Family(swept.link, sgd=small.sgd), every, goal))
        run = work.direct(small, _run(small, theory[effort.points + middle]), start=resting_start(small))
        curves |= {
            "small": ("point", theory[: effort.points]),
            "direct": ("value", [marks[middle], *mean_and_error(crossing_times(run, goal))]),
        }
    return {f"{swept.link}_{name}": curve for name, curve in curves.items()}


def compute(work: Work) -> Any:
    """Times to the goal of every link function, in variables whose names start with its own."""
    variables, effort = {}, work.effort
    for swept in _SWEEPS:
        variables |= _curves(work, swept)
    critical = float(critical_points("He3", low=0.2, high=0.5).strength[0])
    attrs = {"direct_dimension": effort.direct_dimension, "dimension": effort.dimension}
    return as_dataset(variables, attrs={"critical": critical, **attrs})


def _positive(times: np.ndarray) -> np.ndarray:
    return np.where(times > 0, times, np.nan)


def draw(dataset: Any) -> Any:
    """Curves show LoRA, horizontal lines training from scratch; the strengths where He3 never arrives are shaded."""
    figure, axes = panels(1, 2, 2.7)
    for link, ax in ((swept.link, axes[swept.panel]) for swept in _SWEEPS):
        style = {"color": COLOURS[link]}
        data = {name.removeprefix(f"{link}_"): dataset[name].values for name in dataset if name.startswith(link)}
        ax.plot(data["strength"], _positive(data["lora"]), label=f"{link}, LoRA", **style)
        draw_simulated(ax, data["mark"], *data["chain"].T, **style)
        ax.axhline(data["scratch"], linestyle="--", label=f"{link}, from scratch", **style)
        draw_simulated(ax, 0.02, *data["scratch_chain"], fmt="D", clip_on=False, **style)
        if "direct" in data:
            label = f"{link}, LoRA, $d = {dataset.attrs['direct_dimension']:g}$, direct"
            ax.plot(data["strength"], _positive(data["small"]), ":", **style)
            marker = {"fmt": "s:", "markeredgecolor": "black", "label": label}
            draw_simulated(ax, *data["direct"], direct=True, **marker, **style)
    axes[1].axvspan(0, dataset.attrs["critical"], color="0.9", linewidth=0)
    axes[1].text(dataset.attrs["critical"] / 2, 1e3, "LoRA never\narrives", ha="center", fontsize=7)
    for ax, time in zip(axes, (r"$t = \eta\cdot$step", r"$18\,t$"), strict=True):
        ax.set(yscale="log", xlim=(0, 1), xlabel=STRENGTH_LABEL, ylabel=f"time to the goal, {time}")
        ax.legend(loc="upper left" if ax is axes[0] else "upper right")
    axes[0].set_ylim(top=2e4)
    return figure


FIGURES = (
    Figure(
        "scratch-against-lora",
        "The time to 1 % of the trivial loss, fine-tuned with LoRA and from scratch, against the pretrained strength.",
        compute,
        draw,
    ),
)
