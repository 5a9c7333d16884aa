"""What figures have in common: SGD that follows the flow closely, flows and steps, and τ measured from simulated escape times."""

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from odes import SGD, Escape, Overlaps, Problem, Solution, activation, self_moments, solve
from odes.programs import program
from theory import mode_start, passage, patience, search_phase, typical_amplitude, unstable_mode
from validation.figures.work import Work, at_dimension
from validation.simulation import mean_and_error


def tuned(problems: Sequence[Problem], dimension: float, *, noise: float = 2.0) -> list[Problem]:
    r"""The problems with SGD that follows the flow closely, all with one batch size (a simulator is compiled for each).

    η is the smaller of 0.1 τ and 0.2 over the larger of D and $E[\sigma'^2]$ at unit length. The noise scale is at most
    $\theta = c\,\lambda_+/N$ with c = `noise`; at c = 2 SGD feeds the unstable mode about as much as the random start does, at 0
    batches are infinite.
    """
    rates, batches = [], []
    for problem in problems:
        phase = search_phase(problem)
        steepness = max(float(phase.D), float(self_moments(problem.student, 1.0).cross))
        rates.append(min(0.1 * float(phase.tau), 0.2 / steepness))
        batches.append(rates[-1] * dimension * float(phase.noise / phase.rate))
    batch = max(1, round(max(batches) / noise)) if noise else np.inf
    sgd = [SGD(learning_rate=rate, batch_size=batch, dimension=dimension) for rate in rates]
    return [problem.replace(sgd=new) for problem, new in zip(problems, sgd, strict=True)]


def hermite_rate(*degrees: int) -> int:
    r"""$E[\sigma'^2] = \sum k\,k!$ of a sum of Hermite polynomials He_k, the unit of its rates.

    >>> hermite_rate(2), hermite_rate(1, 3)
    (4, 19)
    """
    return sum(k * math.factorial(k) for k in degrees)


def trivial_loss(link: str) -> float:
    r"""$\tfrac12E[\sigma(z)^2]$, the loss of a student whose output is always 0."""
    return float(self_moments(activation(link), 1.0).value) / 2


def followed(problem: Problem, start: Overlaps, times: Any, **options: Any) -> Solution:
    """The flow of finite steps from `start`, at the given times; `options` are those of [`odes.solve`][]."""
    return solve(problem, start, t1=times[-1], times=times, finite_steps=True, **options)


def log_steps(first: float | int, last: float | int, count: int) -> Int[np.ndarray, " n"]:
    """Step 0 and at most `count` steps from `first` to `last` that are evenly spaced in their logarithm."""
    return np.unique(np.concatenate([[0], np.geomspace(first, last, count).round()])).astype(int)


class LeadingOrder(eqx.Module):
    r"""$E[t] = T_0 + \tau'L$ at rank 1 (docs/theory.md, section 7): `constant` $T_0$, `depth` L, and `tau` τ'."""

    constant: Float[Array, ""]
    depth: Float[Array, ""]
    tau: Float[Array, ""]


@program
def leading_order(problem: Problem, escape: Escape) -> LeadingOrder:
    r"""The law of the escape time to leading order.

    $T_0 = T(a_0) + \tau'\log a_0$ from the flow at the root mean square amplitude $a_0$; $e^{-L}$ is the typical amplitude. `constant` is
    NaN where D <= 0 or the flow does not escape.
    """
    phase = search_phase(problem)
    mode = unstable_mode(problem)
    amplitude = jnp.sqrt(mode.variance)
    start = mode_start(problem, mode, amplitude[None])
    time = passage(problem, start, escape, patience(phase), rtol=1e-6, atol=1e-10).escape_time
    constant = jnp.where(phase.D > 0, time, jnp.nan) + mode.tau * jnp.log(amplitude)
    return LeadingOrder(constant, -jnp.log(typical_amplitude(problem, mode)), mode.tau)


def simulated_tau(
    work: Work, problem: Problem, escape: Escape | None = None, *, direct: bool = False
) -> tuple[float, float]:
    r"""τ and its standard error from the mean of simulated escape times.

    The mean less the flow's $T_0$, over L, is τ'; $\tau = \eta/(e^{\eta/\tau'} - 1)$ is free of the finite learning rate. NaN where
    there is no escape, where it takes more steps than the effort allows, and where fewer than two seeds escape.
    """
    escape = Escape() if escape is None else escape
    here = at_dimension(problem, work.effort.direct_dimension) if direct else problem
    law, eta = leading_order(here, escape), float(problem.sgd.learning_rate)
    longest = float(law.constant + (law.depth + 8) * law.tau)
    if not longest <= work.effort.most_steps * eta:
        return np.nan, np.nan
    times = work.escape_times(problem, longest, escape, direct=direct)
    times = times[np.isfinite(times)]
    if times.size < 2:
        return np.nan, np.nan
    mean, error = mean_and_error(times)
    growth = (mean - float(law.constant)) / float(law.depth)
    tau = eta / np.expm1(eta / growth)
    return float(tau), float(error / float(law.depth) * np.exp(eta / growth) * (tau / growth) ** 2)
