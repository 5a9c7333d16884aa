r"""How pretraining turns a vanishing gradient into a finite one, for Hermite links.

The student is $w = \mu\omega^* + uv$ with |v| = 1 and $m = v\cdot\omega^*$. Along the sphere of v, in the direction of ω*,
$t = (\omega^* - mv)/\sqrt{1-m^2}$, descent of the population loss ($\nabla_w\ell = Dw - C\omega^*$) pushes v with the force

$$F = -u\,t\cdot\nabla_w\ell = u\,(C - D\mu)\sqrt{1-m^2}, \qquad C = k\,k!\,(\mu + um)^{k-1}$$

for $\mathrm{He}_k$. From scratch, μ = 0 and u = 1, it vanishes as $m^{k-1}$: the search lasts $d^{(k-2)/2}$ (k > 2). With a pretrained part
it starts from a constant, which the weights' length enters through D, and which can be negative: then v is pushed away from ω*.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from odes import Overlaps, Problem, activation, gradient_at
from odes.programs import program
from validation.figures.figure import Figure, as_dataset
from validation.figures.measured import hermite_rate
from validation.figures.style import (
    COLOURS,
    M_LABEL,
    STRENGTH_LABEL,
    draw_simulated,
    link_label,
    panels,
    strength_colour,
)
from validation.figures.work import Work
from validation.simulation import mean_and_error

_DEGREES = 1, 2, 3, 4, 5
_STRENGTHS = 0.0, 0.1, 0.2, 0.4
"""The first is training from scratch."""
_UP = 0.5
_SMALLEST = 1e-3
_MARKED = 0.01, 0.9
_SAMPLED_FORCE = 0.05
"""Samples are drawn at overlaps in this interval, and from scratch only where $m^{k-1}$ is at least this."""
_SAMPLES_PER_SEED = 25_000
_SHOWN = 3e-4, 2


@program
def force(problem: Problem, up: jax.Array, overlaps: jax.Array) -> jax.Array:
    r"""$F = u\,(C - D\mu)\sqrt{1-m^2}$ at each overlap m, for a problem whose frozen weights are μω* or none."""
    along = problem.frozen @ problem.frame_gram
    strength = along[0, 0]

    def at(m: jax.Array) -> jax.Array:
        cross = m * jnp.stack([jnp.ones_like(m), problem.frame_gram[0, 1]])[None]
        gradient = gradient_at(problem, Overlaps(jnp.reshape(up, (1, 1)), cross, jnp.ones((1, 1))))
        return up * (gradient.C - gradient.D * strength)[0, 0] * jnp.sqrt(1 - m**2)

    return jax.vmap(at)(overlaps)


@program
def sampled_force(link: str, strength: jax.Array, up: jax.Array, overlaps: jax.Array, keys: jax.Array) -> jax.Array:
    r"""The force as an average of $-u\,e\,\sigma'(w\cdot x)\,t\cdot x$ over Gaussian inputs, for each key and overlap."""
    function = activation(link)

    def average(key: jax.Array, m: jax.Array) -> jax.Array:
        target, across = jax.random.normal(key, (2, _SAMPLES_PER_SEED))
        length = jnp.sqrt(1 - m**2)
        own = strength * target + up * (m * target + length * across)
        error = function(own) - function(target)
        return -up * jnp.mean(error * function.derivative(own) * (length * target - m * across))

    def at_all(key: jax.Array) -> jax.Array:
        return jax.vmap(average)(jax.random.split(key, overlaps.size), overlaps)

    return jax.lax.map(at_all, keys)


def _problem(k: int, strength: float) -> tuple[Problem, jax.Array]:
    """The problem and u: a pretrained part with an adapter, or weights trained from scratch."""
    if strength == 0:
        return Problem.full_weights(f"He{k}"), jnp.asarray(1.0, float)
    return Problem.single_index(f"He{k}", strength=strength), jnp.asarray(_UP, float)


def marked_overlaps(k: int, strength: float, count: int) -> jax.Array:
    """The overlaps at which samples are drawn: those at which their average can be told from zero."""
    low, high = _MARKED
    return jnp.geomspace(low if strength or k == 1 else _SAMPLED_FORCE ** (1 / (k - 1)), high, count)


def compute(work: Work) -> Any:
    r"""$F/(u\,k\,k!)$ against m, from the population gradient and from samples; its value at m = 0 against the strength."""
    effort = work.effort
    overlaps = jnp.geomspace(_SMALLEST, 1, 4 * effort.points)
    strengths = jnp.geomspace(0.02, 1, 4 * effort.points)
    lines, marks, sampled, initial = [], [], [], []
    for k in _DEGREES:
        rate = hermite_rate(k)
        for strength in _STRENGTHS:
            problem, up = _problem(k, strength)
            lines.append(force(problem, up, overlaps) / (up * rate))
            marks.append(marked_overlaps(k, strength, 2 * effort.marks))
            keys = jax.random.split(work.key(), effort.seeds)
            values = sampled_force(f"He{k}", jnp.asarray(strength), up, marks[-1], keys)
            sampled.append(mean_and_error(values / (up * rate)))

        def start(strength: jax.Array, k: int = k) -> jax.Array:
            problem = Problem.single_index(f"He{k}", strength=strength)
            return force(problem, jnp.asarray(_UP, float), jnp.zeros(1))[0]

        initial.append(jax.jit(jax.vmap(start))(strengths) / (_UP * rate))
    means, errors = zip(*sampled)
    shape, records = (len(_DEGREES), len(_STRENGTHS), -1), ("degree", "strength", "record")
    return as_dataset(
        {
            "force": (("degree", "strength", "overlap"), np.reshape(lines, shape)),
            "sampled_force": (records, np.reshape(means, shape)),
            "standard_error": (records, np.reshape(errors, shape)),
            "mark": (records, np.reshape(marks, shape)),
            "initial_force": (("degree", "pretraining"), initial),
        },
        coords={"degree": _DEGREES, "strength": _STRENGTHS, "overlap": overlaps, "pretraining": strengths},
        attrs={"up": _UP, "samples": effort.seeds * _SAMPLES_PER_SEED},
    )


def draw(dataset: Any) -> Any:
    """A panel for each link on logarithmic axes, dashed where the force is negative; the last shows its value at m = 0."""
    figure, axes = panels(2, 3, 4.2)
    for ax, (i, k) in zip(axes.flat, enumerate(dataset["degree"].values)):
        for j, strength in enumerate(dataset["strength"].values):
            _draw_force(ax, dataset.isel(degree=i, strength=j), float(strength))
        ax.set(xscale="log", yscale="log", xlim=(_SMALLEST, 1), ylim=_SHOWN, title=link_label(f"He{k}"))
        ax.set_xlabel(M_LABEL)
    for ax in axes[:, 0]:
        ax.set_ylabel(r"force $|F|\,/\,(u\,k\,k!)$")
    axes[0, 0].legend(loc="lower left")
    last = axes.flat[len(_DEGREES)]
    for k, forces in zip(dataset["degree"].values, dataset["initial_force"].values, strict=True):
        _draw_signed(last, dataset["pretraining"], forces, COLOURS[f"He{k}"], link_label(f"He{k}"))
    last.set(xscale="log", yscale="log", xlim=(0.02, 1), ylim=(_SHOWN[0], 30))
    last.set(title="at $m = 0$", xlabel=STRENGTH_LABEL)
    last.legend(loc="upper left", ncols=3)
    return figure


def _draw_signed(ax: Any, x: Any, y: np.ndarray, colour: Any, label: str) -> None:
    """Draws |y|, solid where y is positive and dashed where it is negative."""
    ax.plot(x, np.where(y > 0, y, np.nan), color=colour, label=label)
    ax.plot(x, np.where(y > 0, np.nan, -y), "--", color=colour)


def _draw_force(ax: Any, curve: Any, strength: float) -> None:
    colour = strength_colour(strength) if strength else "k"
    label = rf"$\mu = {strength:g}$" if strength else "from scratch"
    _draw_signed(ax, curve["overlap"], curve["force"].values, colour, label)
    draw_simulated(ax, curve["mark"], np.abs(curve["sampled_force"]), curve["standard_error"], color=colour)


FIGURES = (
    Figure(
        "gradient-transfer",
        "The force that turns the adapter to the target against their overlap: a power from scratch, a constant with pretraining.",
        compute,
        draw,
    ),
)
