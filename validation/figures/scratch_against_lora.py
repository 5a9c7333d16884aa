r"""Fine-tuning against training from scratch: the time to the same loss, against the strength of pretraining."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odes import SGD, Escape, Overlaps, Problem, gradient_at, modified_flow, noise_at, pretrained, solve
from theory import critical_points, search_phase
from validation.figures.base import Figure, Work, at_dimension, typical_start
from validation.figures.measured import tuned
from validation.figures.style import COLOURS, STRENGTH_LABEL, TEXT
from validation.simulation.result import Simulation, even_steps, mean_and_error

_GOAL = 0.01
"""Training has arrived at this fraction of the loss of the best constant."""

_PATIENCE = 50
_RECORDS = 200
_HIGH = 0.97
_TIMES = ("lora", "small", "chain", "scratch", "scratch_chain")


@dataclasses.dataclass(frozen=True)
class Case:
    """A link function, the lowest strength of its curve, the `first` and `last` simulated one.

    Times are drawn in units of 1 / `unit`; `noise` scales θ (He3's gradients have heavy tails).
    """

    link: str
    panel: int
    low: float
    first: float
    last: float
    unit: float = 1.0
    noise: float = 1.0


_CASES = (
    Case("linear", 0, low=0.02, first=0.15, last=0.85),
    Case("erf", 0, low=0.02, first=0.15, last=0.6),
    Case("He3", 1, low=0.335, first=0.4, last=0.85, unit=18.0, noise=0.01),
)


def goal_loss(link: str) -> float:
    r"""$0.01\cdot\tfrac12\mathrm{Var}[\sigma(z)]$, the loss at which training has arrived."""
    problem = Problem.single_index(link, strength=1.0)
    z, weights = np.polynomial.hermite_e.hermegauss(60)
    labels = np.asarray(problem.teacher(jnp.asarray(z)))
    mean = np.average(labels, weights=weights)
    return _GOAL * float(np.average((labels - mean) ** 2, weights=weights)) / 2


def scratch_at(m: Array) -> Overlaps:
    """The overlaps of unit weights that are trained themselves, with w·ω* = m."""
    return Overlaps(jnp.ones((1, 1)), jnp.full((1, 2), m), jnp.ones((1, 1)))


def scratch_start(problem: Problem) -> Overlaps:
    r"""The typical random start, $m = d^{-1/2}$."""
    return scratch_at(1 / jnp.sqrt(problem.sgd.dimension))


@eqx.filter_jit
def scratch_time(problem: Problem, goal: float) -> Float[Array, ""]:
    r"""The time $\int dm/\dot m$ that unit weights take from $m = d^{-1/2}$ to the goal."""
    overlaps = jnp.linspace(-jnp.log(problem.sgd.dimension) / 2, -1e-4, 4001)
    m = jnp.exp(overlaps)
    loss = jax.vmap(lambda x: gradient_at(problem, scratch_at(x)).loss)(m)
    inverse = jax.vmap(lambda x: x / modified_flow(problem, scratch_at(x)).cross[0, 0])(m)
    steps = jnp.diff(overlaps) * (inverse[1:] + inverse[:-1]) / 2
    time = jnp.concatenate([jnp.zeros(1), jnp.cumsum(steps)])
    return jnp.interp(-goal, -loss, time)


@eqx.filter_jit
def lora_times(link: str, strengths: Float[Array, " n"], sgd: SGD, goal: float) -> Float[Array, " n"]:
    """The times that the flow of finite steps takes from the typical start to the goal; 0 where w0 is there already."""

    def at(mu: Array) -> Array:
        problem = Problem.single_index(link, strength=mu, sgd=sgd)
        ratio = goal / gradient_at(problem, pretrained(problem)).loss
        end = _PATIENCE * search_phase(problem).tau
        escape = Escape("loss", jnp.minimum(ratio, 0.999))
        run = solve(
            problem,
            typical_start(problem),
            t1=end,
            times=end[None],
            escape=escape,
            until_escape=True,
            finite_steps=True,
        )
        return jnp.where(ratio < 1, run.escape_time, 0)

    return jax.vmap(at)(strengths)


def common_sgd(link: str, strengths: np.ndarray, dimension: float, noise: float) -> SGD:
    r"""SGD that follows the flow closely at every strength, and from scratch too.

    From scratch noise must feed m less than the gradient does: $\theta \le c\,\dot m/(mN)$ at the start, c = `noise`.
    """
    sgd = [p.sgd for p in tuned([Problem.single_index(link, strength=mu) for mu in strengths], dimension, noise=noise)]
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


def _curves(work: Work, case: Case) -> dict[str, Any]:
    """Times of theory and simulation, fine-tuned and from scratch, of one link function.

    A third of the settings' seeds is enough: they all start alike. For the first link function also the direct
    simulator's at one strength, and the theory's at its dimension. From scratch η is four times smaller, since every step
    rescales the whole student.
    """
    settings, goal, seeds = work.settings, goal_loss(case.link), max(20, work.settings.seeds // 3)
    marks = np.linspace(case.first, case.last, settings.marks)
    every = jnp.asarray(np.concatenate([np.linspace(case.low, _HIGH, settings.points), marks]))
    sgd = common_sgd(case.link, marks, settings.dimension, case.noise)
    lora = np.asarray(lora_times(case.link, every, sgd, goal))
    chain = []
    for mu, time in zip(marks, lora[settings.points :], strict=True):
        problem = Problem.single_index(case.link, strength=mu, sgd=sgd)
        run = work.chain(problem, _run(problem, time), start=typical_start(problem), seeds=seeds)
        chain.append(mean_and_error(crossing_times(run, goal)))
    slower = eqx.tree_at(lambda x: x.learning_rate, sgd, sgd.learning_rate / 4)
    scratch = Problem.full_weights(case.link, sgd=slower)
    expected = float(scratch_time(scratch, goal))
    run = work.chain(scratch, _run(scratch, expected), start=scratch_start(scratch), seeds=seeds)
    curves = {
        "strength": np.asarray(every)[: settings.points],
        "lora": lora[: settings.points],
        "mark": marks,
        "chain": np.array(chain),
        "scratch": np.array(expected),
        "scratch_chain": np.array(mean_and_error(crossing_times(run, goal))),
    }
    if case is _CASES[0]:
        middle = settings.marks // 2
        small = at_dimension(
            Problem.single_index(case.link, strength=marks[middle], sgd=sgd), settings.direct_dimension
        )
        theory = np.asarray(lora_times(case.link, every, small.sgd, goal))
        run = work.direct(small, _run(small, theory[settings.points + middle]), start=typical_start(small))
        curves |= {
            "small": theory[: settings.points],
            "direct": np.array([marks[middle], *mean_and_error(crossing_times(run, goal))]),
        }
    return curves


_DIMENSIONS = {
    "strength": ("point",),
    "lora": ("point",),
    "small": ("point",),
    "mark": ("mark",),
    "chain": ("mark", "moment"),
    "scratch": (),
    "scratch_chain": ("moment",),
    "direct": ("value",),
}


def _compute(work: Work):
    """Times to the goal of every link function, each in a variable named after it."""
    import xarray

    variables = {}
    for case in _CASES:
        for name, values in _curves(work, case).items():
            variables[f"{case.link}_{name}"] = (_DIMENSIONS[name], values * (case.unit if name in _TIMES else 1))
    critical = float(critical_points("He3", low=0.2, high=0.5).strength[0])
    attrs = {"critical": critical, "direct_dimension": work.settings.direct_dimension}
    return xarray.Dataset(variables, attrs={**attrs, "dimension": work.settings.dimension})


def _draw(dataset):
    """Curves: LoRA; horizontal lines: from scratch; the strengths where He3 never arrives are shaded."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(TEXT, 2.7))
    for case in _CASES:
        ax, style = axes[case.panel], {"color": COLOURS[case.link]}
        data = {name: dataset[f"{case.link}_{name}"].values for name in _DIMENSIONS if f"{case.link}_{name}" in dataset}
        lora = np.where(data["lora"] > 0, data["lora"], np.nan)
        ax.plot(data["strength"], lora, label=f"{case.link}, LoRA", **style)
        ax.errorbar(data["mark"], *data["chain"].T, fmt="o", **style)
        ax.axhline(data["scratch"], linestyle="--", label=f"{case.link}, from scratch", **style)
        ax.errorbar(0.02, *data["scratch_chain"], fmt="D", clip_on=False, **style)
        if "direct" in data:
            small = np.where(data["small"] > 0, data["small"], np.nan)
            label = f"{case.link}, LoRA, $d = {dataset.attrs['direct_dimension']:g}$, direct"
            ax.plot(data["strength"], small, ":", **style)
            ax.errorbar(
                data["direct"][0],
                *data["direct"][1:],
                fmt="s:",
                markerfacecolor="none",
                markeredgecolor="black",
                label=label,
                **style,
            )
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
        _compute,
        _draw,
    ),
)
