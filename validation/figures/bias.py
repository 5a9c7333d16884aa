r"""Even links carry a constant that the length of the weights sets: the zeroth Hermite coefficient, and what it does to training.

At weights of squared length r the link $\mathrm{He}_k$ is seen at variance r, where its mean is

$$a_0(r) = E_{z\sim\mathcal N(0,1)}\,\mathrm{He}_k(\sqrt r\,z) = (k-1)!!\,(r-1)^{k/2} \quad (k\text{ even}),$$

zero for odd k. The labels have mean zero, and so weak pretraining, r < 1, starts with an error in the constant that u can mend by
length alone, without any overlap: D(w0) < 0, u leaves 0 and settles on a plateau until the overlaps have grown.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from odes import Family, Problem, activation, log_times
from theory import hermite_coefficients, plateau, resting_start
from validation.figures.figure import Figure, as_dataset
from validation.figures.measured import followed, hermite_rate, log_steps
from validation.figures.style import COLOURS, COLUMN, draw_simulated, link_label, panels, strength_colour
from validation.figures.work import Work, sgd_at
from validation.simulation import Simulation, mean_and_error

_EVEN = 2, 4, 6, 10
_VARIANCES = 0.0, 1.6
_SAMPLES_PER_SEED = 50_000

_STRENGTHS = 0.1, 0.2, 0.4
_QUANTITIES = {
    "loss": r"loss $\ell$",
    "m": r"overlap $m$",
    "u": r"up-projection $u$",
    "um": r"gained overlap $um$",
}


@dataclasses.dataclass(frozen=True)
class Column:
    """Training with the link He_k at the noise scale θ; `first` and `last` time and the learning rate are in units of 1/(k k!)."""

    k: int
    first: float
    last: float
    noise_scale: float
    learning_rate: float = 0.2

    @property
    def link(self) -> str:
        """The name of the link function."""
        return f"He{self.k}"

    def problem(self, strength: float, dimension: float) -> Problem:
        """Aligned pretraining of the given strength."""
        sgd = sgd_at(self.learning_rate / hermite_rate(self.k), self.noise_scale, dimension)
        return Family(self.link, sgd=sgd).at(strength)

    def times(self, points: int) -> jax.Array:
        """Times of the flow's output, in units of t."""
        return log_times(self.last / hermite_rate(self.k), 4 * points, first=self.first / hermite_rate(self.k))

    def steps(self, marks: int) -> np.ndarray:
        """Steps of learning, evenly spaced in the logarithm, and 0."""
        return log_steps(self.first / self.learning_rate, self.last / self.learning_rate, 3 * marks)


_COLUMNS = Column(2, 0.4, 20.0, 0.03), Column(3, 4.0, 2000.0, 1e-4), Column(4, 0.4, 200.0, 2e-6)
_DIRECT = 0, 0.4
"""The column and the strength that the direct simulator repeats."""


def normalised_mean(k: int, variances: jax.Array) -> jax.Array:
    r"""$a_0(r)/\sqrt{k!}$ of He_k."""
    means = jax.vmap(lambda r: hermite_coefficients(f"He{k}", 0, variance=r)[0])(variances)
    return means / math.sqrt(math.factorial(k))


def sampled_mean(k: int, variances: jax.Array, key: jax.Array, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    r"""$a_0(r)/\sqrt{k!}$ as an average over Gaussian samples, and its standard error over seeds."""
    link = activation(f"He{k}")

    @jax.jit
    def average(one_key: jax.Array) -> jax.Array:
        z = jax.random.normal(one_key, (variances.size, _SAMPLES_PER_SEED))
        return jnp.mean(link(jnp.sqrt(variances)[:, None] * z), axis=1) / math.sqrt(math.factorial(k))

    return mean_and_error([average(one_key) for one_key in jax.random.split(key, seeds)])


def compute_means(work: Work) -> Any:
    """The zeroth coefficient against the variance, in closed form and sampled."""
    effort = work.effort
    variances = jnp.linspace(*_VARIANCES, 2 * effort.points)
    marks = jnp.linspace(*_VARIANCES, 2 * effort.marks + 2)
    means, errors = zip(*(sampled_mean(k, marks, work.key(), effort.seeds) for k in _EVEN))
    return as_dataset(
        {
            "mean": (("degree", "variance"), [normalised_mean(k, variances) for k in _EVEN]),
            "sampled_mean": (("degree", "mark"), means),
            "standard_error": (("degree", "mark"), errors),
        },
        coords={"degree": _EVEN, "variance": variances, "mark": marks},
        attrs={"samples": effort.seeds * _SAMPLES_PER_SEED},
    )


def draw_means(dataset: Any) -> Any:
    """The zeroth coefficients are drawn against the variance, samples as markers."""
    figure, ax = panels(1, 1, 2.5, width=COLUMN)
    for k in dataset["degree"].values:
        data, colour = dataset.sel(degree=k), COLOURS[f"He{k}"]
        ax.plot(data["variance"], data["mean"], color=colour, label=link_label(f"He{k}"))
        draw_simulated(ax, data["mark"], data["sampled_mean"], data["standard_error"], color=colour)
    ax.axhline(0, color="0.6", linewidth=0.6, zorder=0)
    ax.set(xlabel=r"squared length $r = |w|^2$", ylabel=r"constant $a_0(r)\,/\,\sqrt{k!}$", ylim=(-0.8, 0.75))
    ax.legend(loc="lower right", ncols=2)
    return figure


def observed(trajectory: Any) -> np.ndarray:
    """The drawn quantities of a trajectory of rank 1, or of many seeds."""
    m, u = trajectory.m[..., 0], trajectory.u[..., 0]
    return np.stack([trajectory.loss, m, u, u * m])


def plateaus(column: Column) -> np.ndarray:
    """u on the plateau at every strength, NaN where there is none."""

    @jax.jit
    def level(strength: jax.Array) -> jax.Array:
        return plateau(Problem.single_index(column.link, strength=strength)).up

    return np.array([level(jnp.asarray(strength)) for strength in _STRENGTHS])


def _marks(run: Simulation) -> tuple[np.ndarray, np.ndarray]:
    """The means over the seeds of the drawn quantities, and their standard errors."""
    return mean_and_error(np.moveaxis(observed(run), 1, 0))


def compute_dynamics(work: Work) -> Any:
    """Loss and overlaps of every column at every strength: the flow of finite steps, simulations, the plateau."""
    variables = {}
    for number in range(len(_COLUMNS)):
        variables |= _column(work, number)
    coords = {"strength": _STRENGTHS, "quantity": list(_QUANTITIES)}
    return as_dataset(variables | _directly(work), coords, {"direct_dimension": work.effort.direct_dimension})


def _column(work: Work, number: int) -> dict[str, tuple[Any, Any]]:
    """One column at every strength: the flow, the simulations and the plateau."""
    column, effort = _COLUMNS[number], work.effort
    steps, times, lines, moments = column.steps(effort.marks), column.times(effort.points), [], []
    for strength in _STRENGTHS:
        problem = column.problem(strength, effort.dimension)
        start = resting_start(problem)
        lines.append(observed(followed(problem, start, times)))
        moments.append(_marks(work.chain(problem, steps, start=start)))
    means, errors = zip(*moments)
    records = "strength", "quantity", f"record_{number}"
    return {
        f"time_{number}": (f"point_{number}", times * hermite_rate(column.k)),
        f"value_{number}": (("strength", "quantity", f"point_{number}"), lines),
        f"record_time_{number}": (f"record_{number}", steps * column.learning_rate),
        f"simulated_{number}": (records, means),
        f"error_{number}": (records, errors),
        f"plateau_{number}": ("strength", plateaus(column)),
    }


def _directly(work: Work) -> dict[str, tuple[Any, Any]]:
    """The column and strength of `_DIRECT` at the direct simulator's dimension: the flow and the simulation."""
    column, strength, effort = _COLUMNS[_DIRECT[0]], _DIRECT[1], work.effort
    problem, times = column.problem(strength, effort.direct_dimension), column.times(effort.points)
    start = resting_start(problem)
    line = observed(followed(problem, start, times))
    mean, error = _marks(work.direct(problem, column.steps(effort.marks), start=start))
    return {
        "direct_line": (("quantity", f"point_{_DIRECT[0]}"), line),
        "direct_simulated": (("quantity", f"record_{_DIRECT[0]}"), mean),
        "direct_error": (("quantity", f"record_{_DIRECT[0]}"), error),
    }


def draw_dynamics(dataset: Any) -> Any:
    """Loss, overlap, up-projection and their product against time, a column for each link."""
    figure, axes = panels(len(_QUANTITIES), len(_COLUMNS), 6.6, sharex="col")
    for number, column in enumerate(_COLUMNS):
        for row in range(len(_QUANTITIES)):
            for i, strength in enumerate(dataset["strength"].values):
                _draw_curve(axes[row, number], dataset, number, row, i, float(strength))
        axes[0, number].set_title(link_label(column.link))
        axes[-1, number].set(xscale="log", xlabel=r"time $t\cdot k\,k!$", xlim=(column.first, column.last))
    for row, label in enumerate(_QUANTITIES.values()):
        axes[row, 0].set_ylabel(label)
        _draw_direct(axes[row, _DIRECT[0]], dataset, row)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[0, 0].legend(handles[: len(_STRENGTHS)], labels[: len(_STRENGTHS)], loc="lower left")
    axes[1, 0].legend(handles[len(_STRENGTHS) :], labels[len(_STRENGTHS) :], loc="upper left")
    figure.align_ylabels(axes[:, 0])
    return figure


def _draw_curve(ax: Any, dataset: Any, number: int, row: int, i: int, strength: float) -> None:
    colour, label = strength_colour(strength), rf"$\mu = {strength:g}$"
    ax.plot(dataset[f"time_{number}"][1:], dataset[f"value_{number}"][i, row, 1:], color=colour, label=label)
    mean, error = (dataset[f"{name}_{number}"][i, row, 1:] for name in ("simulated", "error"))
    draw_simulated(ax, dataset[f"record_time_{number}"][1:], mean, error, color=colour)
    level = float(dataset[f"plateau_{number}"][i])
    if list(_QUANTITIES)[row] == "u" and np.isfinite(level):
        ax.axhline(level, color=colour, linestyle=":", linewidth=0.8)


def _draw_direct(ax: Any, dataset: Any, row: int) -> None:
    number, strength = _DIRECT
    colour = strength_colour(strength)
    label = f"direct SGD, $d = {dataset.attrs['direct_dimension']:g}$"
    ax.plot(dataset[f"time_{number}"][1:], dataset["direct_line"][row, 1:], color=colour, linestyle=(0, (1, 1)))
    mean, error = (dataset[name][row, 1:] for name in ("direct_simulated", "direct_error"))
    draw_simulated(ax, dataset[f"record_time_{number}"][1:], mean, error, direct=True, color=colour, label=label)


FIGURES = (
    Figure(
        "bias",
        "The mean of even Hermite links against the squared length of the weights: the constant that training has to mend.",
        compute_means,
        draw_means,
    ),
    Figure(
        "bias-dynamics",
        "Loss, overlap and up-projection in training with He2, He3 and He4: even links first rest on a plateau of u.",
        compute_dynamics,
        draw_dynamics,
    ),
)
