r"""Loss against time for Hermite links: weak and strong pretraining, and training from scratch.

From scratch the overlap of unit weights grows as $\dot m = k\,k!\,m^{k-1}(1 - m^2)$: from $m = d^{-1/2}$ the search lasts of order 1, log d
and $d^{k/2-1}$ for k = 1, k = 2 and k > 2, in units of 1/(k k!). An adapter on weights $\mu\omega^*$ escapes at the rate λ₊ at every k.
Below their largest critical strength odd links, k > 2, escape the wrong way: v turns to -ω* until w = 0 and the loss k!/2
of a student that says nothing is left. D > 0 there, so that nothing grows again.
"""

import dataclasses
import functools
import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from odes import SGD, Overlaps, Problem, log_times, noise_at, solve
from theory import search_phase
from validation.figures.base import Figure, Settings, Work, typical_start
from validation.figures.style import COLOURS, TEXT, link_label
from validation.simulation.result import Simulation, mean_and_error

_DEGREES = 1, 2, 3, 4, 5
_STRENGTHS = 0.1, 0.9, 0.0
"""The last is training from scratch."""
_LARGEST_RATE = 0.1
_FIRST, _SHORTEST = 0.2, 300.0
"""The first time of the axis, and the shortest training with an adapter, in units of 1/(k k!)."""
_SAMPLES, _QUIET = 2e8, 0.02
_MOST_SEEDS = 20
_CHECKED, _CHECKED_NOISE = (2, 0.1), 0.01
"""The curve that is simulated with more noise, and directly too; its noise scale."""

_noise_at = eqx.filter_jit(noise_at)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Training with He_k at dimension d, from μω* with an adapter or, at μ = 0, from scratch."""

    k: int
    strength: float
    dimension: float

    @property
    def checked(self) -> bool:
        """Whether this is the curve that the direct simulator repeats."""
        return (self.k, self.strength) == _CHECKED

    @property
    def rate(self) -> int:
        r"""$E[\mathrm{He}_k'^2] = k\,k!$, the unit of rates."""
        return self.k * math.factorial(self.k)

    @functools.cached_property
    def learning_rate(self) -> float:
        r"""η, at most half of where the length of weights at the target stops being stable.

        The loss has the curvature $E[\sigma'^2\lambda^2] = (2k-1)\,k\,k!$ along w at w = ω*, and steps are stable up to 2 over that. At
        η = 0.1/(k k!) losses from scratch differ from the flow of finite steps by 1 %, and that goes as η².
        """
        return min(_LARGEST_RATE, 1 / (2 * self.k - 1)) / self.rate

    @functools.cached_property
    def start(self) -> Overlaps:
        """An overlap of $d^{-1/2}$ with the direction of growth."""
        if self.strength:
            return typical_start(self._with_batch(np.inf))
        cross = self.dimension**-0.5 * jnp.ones((1, 2))
        return Overlaps(jnp.ones((1, 1)), cross, jnp.ones((1, 1)))

    @functools.cached_property
    def growth(self) -> float:
        """The rate at which the overlap grows at first, over k k!."""
        if self.strength:
            return float(search_phase(self._with_batch(np.inf)).rate) / self.rate
        return self.dimension ** (1 - self.k / 2)

    @functools.cached_property
    def last(self) -> float:
        """When training ends, in units of 1/(k k!)."""
        if self.strength:
            return max(_SHORTEST, 6 / self.growth)
        return 2 * math.log(self.dimension) / self.growth if self.k == 2 else 30 + 0.5 / self.growth

    @functools.cached_property
    def problem(self) -> Problem:
        r"""The problem with little noise.

        Every seed meets at least 2e8 samples, in batches so large that their means can be drawn from the normal limit; and
        θ is at most 0.02 times the rate of growth, over N for unit weights without overlap.
        """
        if self.checked:
            return self._with_batch(float(round(self.learning_rate * self.dimension / _CHECKED_NOISE)))
        unit = Overlaps(jnp.ones((1, 1)), jnp.zeros((1, 2)), jnp.ones((1, 1)))
        noise = float(_noise_at(Problem.full_weights(f"He{self.k}"), unit)[0, 0])
        noise_scale = min(
            self.dimension * self.last / self.rate / _SAMPLES,
            _QUIET * self.growth * self.rate / noise,
        )
        return self._with_batch(float(round(self.learning_rate * self.dimension / noise_scale)))

    def _with_batch(self, batch: float) -> Problem:
        sgd = SGD(learning_rate=self.learning_rate, batch_size=batch, dimension=self.dimension)
        if self.strength:
            return Problem.single_index(f"He{self.k}", strength=self.strength, sgd=sgd)
        return Problem.full_weights(f"He{self.k}", sgd=sgd)

    def flow(self, points: int) -> tuple[np.ndarray, np.ndarray]:
        """Times in units of 1/(k k!) and the loss over k!, by the flow of finite steps."""
        end = self.last / self.rate
        times = log_times(end, points, first=_FIRST / self.rate)
        solution = solve(self.problem, self.start, t1=end, times=times, finite_steps=True)
        return np.asarray(times) * self.rate, np.asarray(solution.loss) / math.factorial(self.k)

    def steps(self, marks: int) -> np.ndarray:
        """As many steps of learning after the start as there are marks, evenly spaced in the logarithm."""
        last = self.last / (self.learning_rate * self.rate)
        spaced = np.geomspace(1, last, marks).round()
        return np.concatenate([[0], np.maximum(spaced, 1 + np.arange(marks))])

    def marks(self, run: Simulation) -> tuple[np.ndarray, ...]:
        """Times in units of 1/(k k!), the mean loss over k! and its standard error."""
        mean, error = mean_and_error(run.loss / math.factorial(self.k))
        return np.asarray(run.t) * self.rate, mean, error


def curves(settings: Settings) -> list[Curve]:
    """Every link at every strength, at the dimension of the direct simulator."""
    return [Curve(k, strength, settings.direct_dimension) for k in _DEGREES for strength in _STRENGTHS]


def compute(work: Work) -> Any:
    """The loss of every curve by the flow and by simulations from the same start."""
    import xarray

    settings = work.settings
    lines, marks, direct = [], [], ()
    for curve in curves(settings):
        steps = curve.steps(3 * settings.marks)
        seeds = settings.seeds if curve.checked else min(settings.seeds, _MOST_SEEDS)
        lines.append(curve.flow(4 * settings.points))
        marks.append(curve.marks(work.chain(curve.problem, steps, start=curve.start, seeds=seeds)))
        if curve.checked:
            direct = curve.marks(work.direct(curve.problem, steps, start=curve.start))
    shape = len(_DEGREES), len(_STRENGTHS), -1
    times, losses = (np.reshape(x, shape) for x in zip(*lines))
    record_times, means, errors = (np.reshape(x, shape) for x in zip(*marks))
    axes = "degree", "strength"
    return xarray.Dataset(
        {
            "time": ((*axes, "point"), times),
            "loss": ((*axes, "point"), losses),
            "record_time": ((*axes, "record"), record_times),
            "simulated_loss": ((*axes, "record"), means),
            "standard_error": ((*axes, "record"), errors),
            "direct": (("quantity", "record"), np.stack(direct)),
        },
        coords={"degree": list(_DEGREES), "strength": list(_STRENGTHS), "quantity": ["time", "mean", "error"]},
        attrs={"dimension": settings.direct_dimension},
    )


def draw(dataset: Any) -> Any:
    """A panel for each kind of training, a line for each link; simulations as markers."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(_STRENGTHS), figsize=(TEXT, 2.7), sharey=True)
    for j, ax in enumerate(axes):
        strength = float(dataset["strength"][j])
        for i, k in enumerate(dataset["degree"].values):
            curve, colour = dataset.isel(degree=i, strength=j), COLOURS[f"He{k}"]
            ax.plot(curve["time"][1:], curve["loss"][1:], color=colour, label=link_label(f"He{k}"))
            marks = curve.isel(record=slice(1, None))
            _draw_marks(ax, marks["record_time"], marks["simulated_loss"], marks["standard_error"], "o", color=colour)
            if (k, strength) == _CHECKED:
                style = {"color": colour, "markerfacecolor": "none", "markersize": 5.5}
                x, y, error = dataset["direct"].values[:, 1:]
                _draw_marks(ax, x, y, error, "s", **style)
        last = float(dataset["time"][:, j].max())
        title = rf"adapter, $\mu = {strength:g}$" if strength else f"from scratch, $d = {dataset.attrs['dimension']:g}$"
        ax.set(xscale="log", yscale="log", xlim=(_FIRST, last), ylim=(1e-3, 2))
        ax.set(xlabel=r"time $t\cdot k\,k!$", title=title)
    axes[0].set_ylabel(r"loss $\ell\,/\,k!$")
    axes[0].legend(loc="lower left")
    return figure


def _draw_marks(ax: Any, x: Any, y: Any, error: Any, marker: str, **style: Any) -> None:
    ax.errorbar(x, y, error, fmt=marker, elinewidth=0.8, **({"markersize": 3} | style))


FIGURES = (
    Figure(
        "hermite-loss",
        "Loss against time for Hermite links: weak pretraining of odd links is unlearned, from scratch they are learned late.",
        compute,
        draw,
    ),
)
