r"""The potential in which the adapter of a linear link rolls: its shape, and trajectories that obey it.

For the linear link, aligned, without noise, the flow is

$$\dot u = (1-\mu)\,m - u, \qquad \dot m = (1-\mu)\,u\,(1 - m^2).$$

u forgets at the rate 1, m grows at a rate of at most $(1-\mu)^2$. Where that is small against 1, u is slaved to m,
$u = (1-\mu)\,m$, and $m = \tanh g$ rolls down

$$\dot g = \frac{\dot m}{1-m^2} = (1-\mu)^2\tanh g = -V'(g), \qquad V(g) = -(1-\mu)^2\log\cosh g,$$

so that $\sinh g = \sinh g_0\; e^{(1-\mu)^2t}$ at every strength. At the start, where u = 0 is not slaved yet, and while m grows at a rate
λ₊ that is not small, $u = (1-\mu)\,m/(1+\lambda_+)$, the flow lags behind. Noise of scale θ adds $-\tfrac\theta2(1-\mu)^4\tanh^3g$ to the
slaved $\dot g$; it is in the flow that is drawn, not in its slaved limit.
"""

from typing import Any

import numpy as np

from odes import Family, Overlaps, Problem
from theory import resting_start
from validation.figures.figure import Figure, as_dataset
from validation.figures.measured import followed
from validation.figures.style import draw_simulated, panels, strength_colour
from validation.figures.work import Work, sgd_at
from validation.simulation import Simulation, mean_and_error

_STRENGTHS = 0.1, 0.4, 0.7
_DIRECT = 0.4
_LEARNING_RATE, _NOISE_SCALE = 0.1, 0.1
_END = 8.0
"""The last time, in units of $(1-\\mu)^{-2}$."""


def potential(g: np.ndarray, strength: float) -> np.ndarray:
    r"""$V(g) = -(1-\mu)^2\log\cosh g$."""
    return -((1 - strength) ** 2) * np.log(np.cosh(g))


def slaved(start: float, scaled_times: np.ndarray) -> np.ndarray:
    r"""g at times $(1-\mu)^2t$ in the potential: $\sinh g = \sinh g_0\,e^{(1-\mu)^2t}$."""
    return np.arcsinh(np.sinh(start) * np.exp(scaled_times))


def _problem(strength: float, dimension: float) -> Problem:
    return Family("linear", sgd=sgd_at(_LEARNING_RATE, _NOISE_SCALE, dimension)).at(strength)


def _steps(strength: float, marks: int) -> np.ndarray:
    """Steps of learning at even times in units of $(1-\\mu)^{-2}$, the first of them 0."""
    times = np.linspace(0, _END, 2 * marks + 1) / (1 - strength) ** 2
    return (times / _LEARNING_RATE).round().astype(int)


def _rolled(problem: Problem, start: Overlaps, scaled_times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """g and u / ((1-μ) m) of the flow of finite steps at times in units of $(1-\\mu)^{-2}$."""
    missing = 1 - float(problem.strength)
    solution = followed(problem, start, scaled_times / missing**2)
    m, u = np.asarray(solution.m[:, 0]), np.asarray(solution.u[:, 0])
    return np.arctanh(m), u / (missing * m)


def _simulated(run: Simulation) -> tuple[np.ndarray, ...]:
    """The mean g, the ratio of the mean u and the mean (1-μ) m, and their standard errors."""
    m, u = np.asarray(run.m[..., 0]), np.asarray(run.u[..., 0])
    slope = (1 - float(run.problem.strength)) * m.mean(axis=0)
    _, ratio_error = mean_and_error(u - m * (u.mean(axis=0) / m.mean(axis=0)))
    return *mean_and_error(np.arctanh(m)), u.mean(axis=0) / slope, ratio_error / slope


def compute(work: Work) -> Any:
    """The potential, the flow and its slaved limit, and simulations from the same start."""
    effort = work.effort
    g = np.linspace(-4, 4, effort.points)
    scaled = np.linspace(0, _END, 2 * effort.points)
    lines, marks, record_times = [], [], []
    for strength in _STRENGTHS:
        problem = _problem(strength, effort.dimension)
        start = resting_start(problem)
        lines.append(_rolled(problem, start, scaled))
        run = work.chain(problem, _steps(strength, effort.marks), start=start)
        marks.append(_simulated(run))
        record_times.append(run.t * (1 - strength) ** 2)
    smaller = _problem(_DIRECT, effort.direct_dimension)
    start = resting_start(smaller)
    run = work.direct(smaller, _steps(_DIRECT, effort.marks), start=start)
    curves, records = ("strength", "time"), ("strength", "record")
    positions, slavings = zip(*lines)
    names = "simulated_position", "position_error", "simulated_ratio", "ratio_error"
    direct_position, direct_error, *_ = _simulated(run)
    return as_dataset(
        {
            "potential": (("strength", "g"), [potential(g, strength) for strength in _STRENGTHS]),
            "position": (curves, positions),
            "ratio": (curves, slavings),
            "slaved_position": ("time", slaved(np.arctanh(effort.dimension**-0.5), scaled)),
            **{name: (records, values) for name, values in zip(names, zip(*marks), strict=True)},
            "record_time": (records, record_times),
            "smaller_position": ("time", _rolled(smaller, start, scaled)[0]),
            "direct_position": ("record", direct_position),
            "direct_error": ("record", direct_error),
            "direct_time": ("record", run.t * (1 - _DIRECT) ** 2),
        },
        coords={"g": g, "time": scaled, "strength": _STRENGTHS},
        attrs={"dimension": effort.dimension, "direct_dimension": effort.direct_dimension},
    )


def draw(dataset: Any) -> Any:
    """The panels show the potential, g against time in units of the slaved rate, and how well u is slaved."""
    figure, (shape, roll, slaving) = panels(1, 3, 2.4)
    for i, strength in enumerate(dataset["strength"].values):
        colour = strength_colour(float(strength))
        shape.plot(dataset["g"], dataset["potential"][i], color=colour, label=rf"$\mu = {strength:g}$")
        for ax, name in ((roll, "position"), (slaving, "ratio")):
            ax.plot(dataset["time"], dataset[name][i], color=colour)
            marks = (dataset[which][i] for which in ("record_time", f"simulated_{name}", f"{name}_error"))
            draw_simulated(ax, *marks, color=colour)
    colour = strength_colour(_DIRECT)
    dimension, smaller = dataset.attrs["dimension"], dataset.attrs["direct_dimension"]
    roll.plot(dataset["time"], dataset["slaved_position"], "k--", label=f"slaved, $d = {dimension:g}$")
    roll.plot(dataset["time"], dataset["smaller_position"], color=colour, linestyle=(0, (1, 1)))
    marks = (dataset[f"direct_{name}"] for name in ("time", "position", "error"))
    draw_simulated(roll, *marks, direct=True, color=colour, label=f"direct SGD, $d = {smaller:g}$")
    slaving.axhline(1, color="k", linestyle="--")
    shape.set(xlabel=r"position $g = \mathrm{artanh}\,m$", ylabel=r"potential $V(g)$")
    shape.legend(loc="lower center")
    scaled_time = r"time $(1-\mu)^2\,t$"
    roll.set(xlabel=scaled_time, ylabel=r"position $g$", yscale="log")
    roll.legend(loc="lower right")
    slaving.set(xlabel=scaled_time, ylabel=r"slaving $u\,/\,(1-\mu)\,m$", ylim=(0, 1.1))
    return figure


FIGURES = (
    Figure(
        "potential",
        "The potential in which the adapter of a linear link rolls while its up-projection is slaved, and where it is not.",
        compute,
        draw,
    ),
)
