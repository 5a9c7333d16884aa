r"""The law of the escape time at dimension d: not only how fast overlaps grow, but when they have grown."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, polygamma
from jaxtyping import Array, Float

from odes import Escape, Overlaps, Problem, pretrained, solve
from theory.stability import SearchPhase, search_phase

_SEED = 1e-5


class EscapeLaw(eqx.Module):
    """Mean and standard deviation of the escape time over random starts and SGD noise; NaN where the law does not hold."""

    mean: Float[Array, ""]
    std: Float[Array, ""]


def _unstable_mode(problem: Problem, phase: SearchPhase) -> tuple[Array, Array, Array, Array]:
    """The unit right eigenvector (e_u, e_p) and the left eigenvector (f_u, f_p), f·e = 1, of the unstable mode."""
    slope = problem.adapter.kappa * jnp.sqrt(phase.G)
    unit = jnp.sqrt(phase.rate**2 + slope**2)
    overlap = (phase.rate**2 + problem.adapter.lr_ratio * slope**2) / unit
    return phase.rate / unit, slope / unit, phase.rate / overlap, problem.adapter.lr_ratio * slope / overlap


def amplitude_variance(problem: Problem, phase: SearchPhase) -> Float[Array, ""]:
    r"""The variance, per adapter row, of the amplitude with which a random start and SGD noise feed the unstable mode.

    In coordinates $(u, p/\sqrt G)$ the linear system has the matrix
    $\begin{pmatrix} -\chi\kappa^2D & \chi\kappa\sqrt G \\ \kappa\sqrt G & 0 \end{pmatrix}$, with unit right eigenvector
    $e \propto (\lambda_+, \kappa\sqrt G)$ and left eigenvector $f \propto (\lambda_+, \chi\kappa\sqrt G)$, $f\cdot e = 1$.
    The second coordinate starts with variance 1/d; SGD drives the first at the rate $\chi^2\kappa^2\theta n/d$; hence

    $$\mathrm{Var} = \frac1d\left(f_p^2 + \frac{f_u^2\,\chi^2\kappa^2\theta n}{2\lambda_+}\right).$$
    """
    kappa, chi = problem.adapter.kappa, problem.adapter.lr_ratio
    _, _, f_up, f_cross = _unstable_mode(problem, phase)
    diffusion = (chi * kappa) ** 2 * problem.sgd.noise_scale * phase.noise
    return (f_cross**2 + f_up**2 * diffusion / (2 * phase.rate)) / problem.sgd.dimension


def escape_law(problem: Problem, escape: Escape | None = None) -> EscapeLaw:
    r"""Mean and standard deviation of the escape time at the problem's dimension, batch size and rank.

    Let T(δ) be the time that the flow, with its noise term, takes from δe, e the unit unstable mode of one row, to the
    escape; for small δ it is $T_0 + \tau\log(1/\delta)$. The amplitudes of the r rows are Gaussian
    ([`amplitude_variance`][]) and add in quadrature, so

    $$E[t] = T_0 - \tau\left[\log\sqrt{\mathrm{Var}} + \tfrac12(\psi(r/2) + \log 2)\right], \qquad
      \mathrm{std}[t] = \tfrac{\tau}{2}\sqrt{\psi'(r/2)}.$$

    Leading order in 1/d: trust it where the mean is many τ. NaN where D(w0) <= 0 (the plateau of [`theory.plateau`][]
    comes first) and where the flow does not escape.

    **Raises** ValueError unless the problem is single-index.
    """
    escape = Escape() if escape is None else escape
    phase = search_phase(problem)
    rank = problem.adapter.rank
    allowed = (phase.D > 0) & (phase.G > 0) & (problem.adapter.lr_ratio > 0)
    e_up, e_cross, _, _ = _unstable_mode(problem, phase)
    direction = (phase.C * problem.target - phase.D * problem.frozen) @ problem.frame_gram / jnp.sqrt(phase.G)
    still = pretrained(problem)
    first = (jnp.arange(rank) == 0).astype(direction.dtype)
    start = Overlaps(_SEED * e_up * first[None], _SEED * e_cross * first[:, None] * direction, still.down_gram)
    start = jax.tree.map(lambda mode, rest: jnp.where(allowed, mode, rest), start, still)
    t1 = jnp.where(allowed, 200 * phase.tau, 1.0)
    solution = solve(problem, start, t1=t1, times=t1[None], escape=escape, until_escape=True, atol=1e-14)
    constant = solution.escape_time + phase.tau * jnp.log(_SEED)
    spread = jnp.log(amplitude_variance(problem, phase)) / 2
    half = jnp.asarray(rank / 2, phase.tau.dtype)
    mean = constant - phase.tau * (spread + (digamma(half) + jnp.log(2)) / 2)
    std = phase.tau * jnp.sqrt(polygamma(1, half)) / 2
    valid = allowed & jnp.isfinite(solution.escape_time)
    return EscapeLaw(jnp.where(valid, mean, jnp.nan), jnp.where(valid, std, jnp.nan))
