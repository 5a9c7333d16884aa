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

from odes import SGD, Problem, activation, log_times, solve
from theory import hermite_coefficients, plateau
from validation.figures.base import Figure, Work, typical_start
from validation.figures.style import COLOURS, COLUMN, TEXT, link_label, strength_colour
from validation.simulation.result import Simulation, mean_and_error

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
    """Training with the link He_k at the noise scale θ; times `first`, `last` and the learning rate in units of 1/(k k!)."""

    k: int
    first: float
    last: float
    noise_scale: float
    learning_rate: float = 0.2

    @property
    def link(self) -> str:
        """The name of the link function."""
        return f"He{self.k}"

    @property
    def rate(self) -> int:
        r"""$E[\mathrm{He}_k'^2] = k\,k!$, the unit of rates."""
        return self.k * math.factorial(self.k)

    def problem(self, strength: float, dimension: float) -> Problem:
        """Aligned pretraining of the given strength."""
        eta = self.learning_rate / self.rate
        batch = max(1.0, round(eta * dimension / self.noise_scale))
        sgd = SGD(learning_rate=eta, batch_size=batch, dimension=dimension)
        return Problem.single_index(self.link, strength=strength, sgd=sgd)

    def times(self, points: int) -> jax.Array:
        """Times of the flow's output, in units of t."""
        return log_times(self.last / self.rate, 4 * points, first=self.first / self.rate)

    def steps(self, marks: int) -> np.ndarray:
        """Steps of learning, evenly spaced in the logarithm, and 0."""
        spaced = np.geomspace(self.first, self.last, 3 * marks) / self.learning_rate
        return np.unique(np.concatenate([[0], spaced.round()])).astype(int)


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
    import xarray

    settings = work.settings
    variances = jnp.linspace(*_VARIANCES, 2 * settings.points)
    marks = jnp.linspace(*_VARIANCES, 2 * settings.marks + 2)
    sampled = [sampled_mean(k, marks, work.key(), settings.seeds) for k in _EVEN]
    return xarray.Dataset(
        {
            "mean": (("degree", "variance"), np.stack([normalised_mean(k, variances) for k in _EVEN])),
            "sampled_mean": (("degree", "mark"), np.stack([mean for mean, _ in sampled])),
            "standard_error": (("degree", "mark"), np.stack([error for _, error in sampled])),
        },
        coords={"degree": list(_EVEN), "variance": np.asarray(variances), "mark": np.asarray(marks)},
        attrs={"samples": settings.seeds * _SAMPLES_PER_SEED},
    )


def draw_means(dataset: Any) -> Any:
    """The zeroth coefficients against the variance, samples as markers."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(COLUMN, 2.5))
    for i, k in enumerate(dataset["degree"].values):
        colour = COLOURS[f"He{k}"]
        ax.plot(dataset["variance"], dataset["mean"][i], color=colour, label=link_label(f"He{k}"))
        ax.errorbar(
            dataset["mark"],
            dataset["sampled_mean"][i],
            dataset["standard_error"][i],
            fmt="o",
            color=colour,
            elinewidth=0.8,
        )
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
    return mean_and_error(np.moveaxis(observed(run), 1, 0))


def compute_dynamics(work: Work) -> Any:
    """Loss and overlaps of every column at every strength: the flow of finite steps, simulations, the plateau."""
    import xarray

    parts = [_column(work, number) for number in range(len(_COLUMNS))]
    whole = xarray.merge([*parts, _directly(work)])
    coordinates = {"strength": list(_STRENGTHS), "quantity": list(_QUANTITIES)}
    return whole.assign_coords(coordinates).assign_attrs(direct_dimension=work.settings.direct_dimension)


def _column(work: Work, number: int) -> Any:
    import xarray

    column, settings = _COLUMNS[number], work.settings
    steps = column.steps(settings.marks)
    times, lines, means, errors = column.times(settings.points), [], [], []
    for strength in _STRENGTHS:
        problem = column.problem(strength, settings.dimension)
        start = typical_start(problem)
        lines.append(observed(solve(problem, start, t1=times[-1], times=times, finite_steps=True)))
        mean, error = _marks(work.chain(problem, steps, start=start))
        means.append(mean)
        errors.append(error)
    records = "strength", "quantity", f"record_{number}"
    return xarray.Dataset(
        {
            f"time_{number}": (f"point_{number}", np.asarray(times) * column.rate),
            f"value_{number}": (("strength", "quantity", f"point_{number}"), np.stack(lines)),
            f"record_time_{number}": (f"record_{number}", steps * column.learning_rate),
            f"simulated_{number}": (records, np.stack(means)),
            f"error_{number}": (records, np.stack(errors)),
            f"plateau_{number}": ("strength", plateaus(column)),
        }
    )


def _directly(work: Work) -> Any:
    """The column and strength of `_DIRECT` at the direct simulator's dimension: the flow and the simulation."""
    import xarray

    settings = work.settings
    column, strength = _COLUMNS[_DIRECT[0]], _DIRECT[1]
    problem, times = column.problem(strength, settings.direct_dimension), column.times(settings.points)
    start = typical_start(problem)
    line = observed(solve(problem, start, t1=times[-1], times=times, finite_steps=True))
    mean, error = _marks(work.direct(problem, column.steps(settings.marks), start=start))
    return xarray.Dataset(
        {
            "direct_line": (("quantity", f"point_{_DIRECT[0]}"), line),
            "direct_simulated": (("quantity", f"record_{_DIRECT[0]}"), mean),
            "direct_error": (("quantity", f"record_{_DIRECT[0]}"), error),
        }
    )


def draw_dynamics(dataset: Any) -> Any:
    """Loss, overlap, up-projection and their product against time, a column for each link."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(_QUANTITIES), len(_COLUMNS), figsize=(TEXT, 6.6), sharex="col")
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
    colour = strength_colour(strength)
    ax.plot(
        dataset[f"time_{number}"][1:],
        dataset[f"value_{number}"][i, row, 1:],
        color=colour,
        label=rf"$\mu = {strength:g}$",
    )
    ax.errorbar(
        dataset[f"record_time_{number}"][1:],
        dataset[f"simulated_{number}"][i, row, 1:],
        dataset[f"error_{number}"][i, row, 1:],
        fmt="o",
        color=colour,
        elinewidth=0.8,
    )
    level = float(dataset[f"plateau_{number}"][i])
    if list(_QUANTITIES)[row] == "u" and np.isfinite(level):
        ax.axhline(level, color=colour, linestyle=":", linewidth=0.8)


def _draw_direct(ax: Any, dataset: Any, row: int) -> None:
    number, strength = _DIRECT
    colour = strength_colour(strength)
    label = f"direct SGD, $d = {dataset.attrs['direct_dimension']:g}$"
    ax.plot(dataset[f"time_{number}"][1:], dataset["direct_line"][row, 1:], color=colour, linestyle=(0, (1, 1)))
    ax.errorbar(
        dataset[f"record_time_{number}"][1:],
        dataset["direct_simulated"][row, 1:],
        dataset["direct_error"][row, 1:],
        fmt="s",
        color=colour,
        markerfacecolor="white",
        elinewidth=0.8,
        label=label,
    )


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
