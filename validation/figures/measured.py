"""What figures have in common: SGD that follows the flow closely, and τ measured from simulated escape times."""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma
from jaxtyping import Array, Float

from odes import SGD, Escape, Problem, self_moments
from theory import escape_from, mode_start, search_phase, unstable_mode
from validation.figures.base import Work, at_dimension
from validation.simulation.result import even_steps, mean_and_error

_RECORDS = 200


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
    return [eqx.tree_at(lambda p: p.sgd, problem, new) for problem, new in zip(problems, sgd, strict=True)]


class LeadingOrder(eqx.Module):
    r"""$E[t] = T_0 + \tau'L$ at rank 1 (docs/theory.md, section 7): `constant` $T_0$, `depth` L, and `tau` τ'."""

    constant: Float[Array, ""]
    depth: Float[Array, ""]
    tau: Float[Array, ""]


@eqx.filter_jit
def leading_order(problem: Problem, escape: Escape) -> LeadingOrder:
    r"""The law of the escape time to leading order.

    $T_0 = T(a_0) + \tau'\log a_0$ from the flow at the typical amplitude $a_0$; $L = -\log a_0 - (\psi(1/2) + \log 2)/2$. `constant` is
    NaN where D <= 0 or the flow does not escape.
    """
    phase = search_phase(problem)
    mode = unstable_mode(problem, phase)
    amplitude = jnp.sqrt(mode.variance)
    start = mode_start(problem, phase, mode, amplitude[None])
    time = escape_from(problem, start, escape, phase, rtol=1e-6, atol=1e-10).escape_time
    return LeadingOrder(
        constant=jnp.where(phase.D > 0, time, jnp.nan) + mode.tau * jnp.log(amplitude),
        depth=-jnp.log(amplitude) - (digamma(0.5) + jnp.log(2.0)) / 2,
        tau=mode.tau,
    )


def simulated_tau(
    work: Work, problem: Problem, escape: Escape | None = None, *, direct: bool = False
) -> tuple[float, float]:
    r"""τ and its standard error from the mean of simulated escape times.

    The mean less the flow's $T_0$, over L, is τ'; $\tau = \eta/(e^{\eta/\tau'} - 1)$ is free of the finite learning rate. NaN where
    there is no escape, where it takes more steps than the settings allow, and where fewer than two seeds escape.
    """
    escape = Escape() if escape is None else escape
    here = at_dimension(problem, work.settings.direct_dimension) if direct else problem
    law, eta = leading_order(here, escape), float(problem.sgd.learning_rate)
    longest = float(law.constant + (law.depth + 8) * law.tau)
    if not longest <= work.settings.most_steps * eta:
        return np.nan, np.nan
    run = work.direct if direct else work.chain
    times = np.asarray(run(problem, even_steps(longest, eta, _RECORDS), until=escape).escape_times(escape))
    times = times[np.isfinite(times)]
    if times.size < 2:
        return np.nan, np.nan
    mean, error = mean_and_error(times)
    growth = (mean - float(law.constant)) / float(law.depth)
    tau = eta / np.expm1(eta / growth)
    return float(tau), float(error / float(law.depth) * np.exp(eta / growth) * (tau / growth) ** 2)
