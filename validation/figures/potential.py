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

from odes import SGD, Overlaps, Problem, solve
from validation.figures.base import Figure, Work, typical_start
from validation.figures.style import TEXT, strength_colour
from validation.simulation.result import Simulation, mean_and_error

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
    batch = max(1.0, round(_LEARNING_RATE * dimension / _NOISE_SCALE))
    sgd = SGD(learning_rate=_LEARNING_RATE, batch_size=batch, dimension=dimension)
    return Problem.single_index("linear", strength=strength, sgd=sgd)


def _steps(strength: float, marks: int) -> np.ndarray:
    """Steps of learning at even times in units of $(1-\\mu)^{-2}$, the first of them 0."""
    times = np.linspace(0, _END, 2 * marks + 1) / (1 - strength) ** 2
    return (times / _LEARNING_RATE).round().astype(int)


def _followed(problem: Problem, start: Overlaps, scaled_times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """g and u / ((1-μ) m) of the flow of finite steps at times in units of $(1-\\mu)^{-2}$."""
    missing = 1 - float(problem.strength)
    times = scaled_times / missing**2
    solution = solve(problem, start, t1=times[-1], times=times, finite_steps=True)
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
    import xarray

    settings = work.settings
    g = np.linspace(-4, 4, settings.points)
    scaled = np.linspace(0, _END, 2 * settings.points)
    lines, marks, record_times = [], [], []
    for strength in _STRENGTHS:
        problem = _problem(strength, settings.dimension)
        start = typical_start(problem)
        lines.append(_followed(problem, start, scaled))
        run = work.chain(problem, _steps(strength, settings.marks), start=start)
        marks.append(_simulated(run))
        record_times.append(np.asarray(run.t) * (1 - strength) ** 2)
    smaller = _problem(_DIRECT, settings.direct_dimension)
    start = typical_start(smaller)
    run = work.direct(smaller, _steps(_DIRECT, settings.marks), start=start)
    positions, position_errors, ratios, ratio_errors = (np.stack(x) for x in zip(*marks))
    direct_position, direct_error, *_ = _simulated(run)
    return xarray.Dataset(
        {
            "potential": (("strength", "g"), np.stack([potential(g, strength) for strength in _STRENGTHS])),
            "position": (("strength", "time"), np.stack([line[0] for line in lines])),
            "ratio": (("strength", "time"), np.stack([line[1] for line in lines])),
            "slaved_position": ("time", slaved(np.arctanh(settings.dimension**-0.5), scaled)),
            "simulated_position": (("strength", "record"), positions),
            "position_error": (("strength", "record"), position_errors),
            "simulated_ratio": (("strength", "record"), ratios),
            "ratio_error": (("strength", "record"), ratio_errors),
            "record_time": (("strength", "record"), np.stack(record_times)),
            "smaller_position": ("time", _followed(smaller, start, scaled)[0]),
            "direct_position": ("record", direct_position),
            "direct_error": ("record", direct_error),
            "direct_time": ("record", np.asarray(run.t) * (1 - _DIRECT) ** 2),
        },
        coords={"g": g, "time": scaled, "strength": list(_STRENGTHS)},
        attrs={"dimension": settings.dimension, "direct_dimension": settings.direct_dimension},
    )


def draw(dataset: Any) -> Any:
    """The potential; g against time in units of the slaved rate; how well u is slaved."""
    import matplotlib.pyplot as plt

    figure, (shape, roll, slaving) = plt.subplots(1, 3, figsize=(TEXT, 2.4))
    for i, strength in enumerate(dataset["strength"].values):
        colour = strength_colour(float(strength))
        shape.plot(dataset["g"], dataset["potential"][i], color=colour, label=rf"$\mu = {strength:g}$")
        for ax, name in ((roll, "position"), (slaving, "ratio")):
            ax.plot(dataset["time"], dataset[name][i], color=colour)
            ax.errorbar(
                dataset["record_time"][i],
                dataset[f"simulated_{name}"][i],
                dataset[f"{name}_error"][i],
                fmt="o",
                color=colour,
                elinewidth=0.8,
            )
    colour = strength_colour(_DIRECT)
    dimension, smaller = dataset.attrs["dimension"], dataset.attrs["direct_dimension"]
    roll.plot(dataset["time"], dataset["slaved_position"], "k--", label=f"slaved, $d = {dimension:g}$")
    roll.plot(
        dataset["time"],
        dataset["smaller_position"],
        color=colour,
        linestyle=(0, (1, 1)),
    )
    roll.errorbar(
        dataset["direct_time"],
        dataset["direct_position"],
        dataset["direct_error"],
        fmt="s",
        color=colour,
        markerfacecolor="white",
        elinewidth=0.8,
        label=f"direct SGD, $d = {smaller:g}$",
    )
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
