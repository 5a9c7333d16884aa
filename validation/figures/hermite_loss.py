r"""Loss against time for Hermite links: weak and strong pretraining, and training from scratch.

From scratch the overlap of unit weights grows as $\dot m = k\,k!\,m^{k-1}(1 - m^2)$: from $m = d^{-1/2}$ the search lasts of order 1, log d
and $d^{k/2-1}$ for k = 1, k = 2 and k > 2, in units of 1/(k k!). An adapter on weights $\mu\omega^*$ escapes at the rate λ₊ at every k.
Below their largest critical strength odd links, k > 2, escape the wrong way: v turns to -ω* until w = 0 and the loss k!/2
of a student whose output is 0 is left. D > 0 there, so that nothing grows again.
"""

import dataclasses
import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from odes import Overlaps, Problem, log_times, noise_at
from odes.programs import program
from theory import resting_start, search_phase, weights_start
from validation.figures.effort import Effort
from validation.figures.figure import Figure, as_dataset
from validation.figures.measured import followed, hermite_rate
from validation.figures.style import COLOURS, draw_simulated, link_label, panels
from validation.figures.work import Work, sgd_at
from validation.simulation import Simulation, mean_and_error

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

_noise_at = program(noise_at)


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

    @functools.cached_property
    def learning_rate(self) -> float:
        r"""η, at most half of the rate at which the length of weights at the target stops being stable.

        The loss has the curvature $E[\sigma'^2\lambda^2] = (2k-1)\,k\,k!$ along w at w = ω*, and steps are stable up to 2 over that. At
        η = 0.1/(k k!) losses from scratch differ from the flow of finite steps by 1 %, and that goes as η².
        """
        return min(_LARGEST_RATE, 1 / (2 * self.k - 1)) / hermite_rate(self.k)

    @functools.cached_property
    def start(self) -> Overlaps:
        """An overlap of $d^{-1/2}$ with the direction of growth."""
        if self.strength:
            return resting_start(self._with_noise(0.0))
        return weights_start(jnp.full(2, self.dimension**-0.5))

    @functools.cached_property
    def growth(self) -> float:
        """The rate at which the overlap grows at first, over k k!."""
        if self.strength:
            return float(search_phase(self._with_noise(0.0)).rate) / hermite_rate(self.k)
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
            return self._with_noise(_CHECKED_NOISE)
        noise = float(_noise_at(Problem.full_weights(f"He{self.k}"), weights_start(jnp.zeros(2)))[0, 0])
        few_samples = self.dimension * self.last / hermite_rate(self.k) / _SAMPLES
        return self._with_noise(min(few_samples, _QUIET * self.growth * hermite_rate(self.k) / noise))

    def _with_noise(self, noise_scale: float) -> Problem:
        sgd = sgd_at(self.learning_rate, noise_scale, self.dimension)
        if self.strength:
            return Problem.single_index(f"He{self.k}", strength=self.strength, sgd=sgd)
        return Problem.full_weights(f"He{self.k}", sgd=sgd)

    def flow(self, points: int) -> tuple[np.ndarray, np.ndarray]:
        """Times in units of 1/(k k!) and the loss over k!, by the flow of finite steps."""
        times = log_times(self.last / hermite_rate(self.k), points, first=_FIRST / hermite_rate(self.k))
        solution = followed(self.problem, self.start, times)
        return np.asarray(times) * hermite_rate(self.k), np.asarray(solution.loss) / math.factorial(self.k)

    def steps(self, marks: int) -> np.ndarray:
        """As many steps of learning after the start as there are marks, evenly spaced in the logarithm."""
        last = self.last / (self.learning_rate * hermite_rate(self.k))
        spaced = np.geomspace(1, last, marks).round()
        return np.concatenate([[0], np.maximum(spaced, 1 + np.arange(marks))])

    def marks(self, run: Simulation) -> tuple[np.ndarray, ...]:
        """Times in units of 1/(k k!), the mean loss over k! and its standard error."""
        mean, error = mean_and_error(run.loss / math.factorial(self.k))
        return np.asarray(run.t) * hermite_rate(self.k), mean, error


def curves(effort: Effort) -> list[Curve]:
    """Every link at every strength, at the dimension of the direct simulator."""
    return [Curve(k, strength, effort.direct_dimension) for k in _DEGREES for strength in _STRENGTHS]


def compute(work: Work) -> Any:
    """The loss of every curve by the flow and by simulations from the same start."""
    effort = work.effort
    lines, marks, direct = [], [], ()
    for curve in curves(effort):
        steps = curve.steps(3 * effort.marks)
        seeds = effort.seeds if curve.checked else min(effort.seeds, _MOST_SEEDS)
        lines.append(curve.flow(4 * effort.points))
        marks.append(curve.marks(work.chain(curve.problem, steps, start=curve.start, seeds=seeds)))
        if curve.checked:
            direct = curve.marks(work.direct(curve.problem, steps, start=curve.start))
    shape = len(_DEGREES), len(_STRENGTHS), -1
    times, losses = (np.reshape(x, shape) for x in zip(*lines))
    record_times, means, errors = (np.reshape(x, shape) for x in zip(*marks))
    axes = "degree", "strength"
    return as_dataset(
        {
            "time": ((*axes, "point"), times),
            "loss": ((*axes, "point"), losses),
            "record_time": ((*axes, "record"), record_times),
            "simulated_loss": ((*axes, "record"), means),
            "standard_error": ((*axes, "record"), errors),
            "direct": (("quantity", "record"), direct),
        },
        coords={"degree": _DEGREES, "strength": _STRENGTHS, "quantity": ["time", "mean", "error"]},
        attrs={"dimension": effort.direct_dimension},
    )


def draw(dataset: Any) -> Any:
    """A panel for each kind of training, a line for each link; simulations are drawn as markers."""
    figure, axes = panels(1, len(_STRENGTHS), 2.7, sharey=True)
    for j, ax in enumerate(axes):
        strength = float(dataset["strength"][j])
        for i, k in enumerate(dataset["degree"].values):
            curve, colour = dataset.isel(degree=i, strength=j), COLOURS[f"He{k}"]
            ax.plot(curve["time"][1:], curve["loss"][1:], color=colour, label=link_label(f"He{k}"))
            marks = curve.isel(record=slice(1, None))
            simulated = (marks[name] for name in ("record_time", "simulated_loss", "standard_error"))
            draw_simulated(ax, *simulated, color=colour, markersize=3)
            if (k, strength) == _CHECKED:
                style = {"color": colour, "markerfacecolor": "none", "markersize": 5.5}
                draw_simulated(ax, *dataset["direct"].values[:, 1:], direct=True, **style)
        last = float(dataset["time"][:, j].max())
        title = rf"adapter, $\mu = {strength:g}$" if strength else f"from scratch, $d = {dataset.attrs['dimension']:g}$"
        ax.set(xscale="log", yscale="log", xlim=(_FIRST, last), ylim=(1e-3, 2))
        ax.set(xlabel=r"time $t\cdot k\,k!$", title=title)
    axes[0].set_ylabel(r"loss $\ell\,/\,k!$")
    axes[0].legend(loc="lower left")
    return figure


FIGURES = (
    Figure(
        "hermite-loss",
        "Loss against time for Hermite links: weak pretraining of odd links is unlearned, from scratch they are learned late.",
        compute,
        draw,
    ),
)
