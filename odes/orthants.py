r"""Moments of up to four correlated Gaussian variables over the part of space in which all of them are positive."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odes.quadrature import safe_sqrt

_NODES = 32
_ROUNDING = 1e-13


def _ratio(x: Array, y: Array) -> Array:
    """x / y, and 0 with derivative 0 where y is 0 or, by rounding, less."""
    positive = y > 0
    return jnp.where(positive, x / jnp.where(positive, y, 1), 0)


def _given(covariance: Array, m: int) -> Array:
    """The covariance of the other variables where variable m is 0; that of a variable which depends on m is 0, without rounding."""
    others = np.array([n for n in range(covariance.shape[0]) if n != m], int)
    column, before = covariance[others, m], covariance[np.ix_(others, others)]
    rest = before - _ratio(jnp.outer(column, column), covariance[m, m])
    free = jnp.diagonal(rest) > _ROUNDING * jnp.diagonal(before)
    return jnp.where(free[:, None] & free[None], rest, 0)


def _angle(covariance: Array, a: int, b: int) -> Array:
    """asin of the correlation of variables a and b."""
    root = safe_sqrt(covariance[a, a] * covariance[b, b] - covariance[a, b] ** 2)
    nothing = (root == 0) & (covariance[a, b] == 0)
    return jnp.where(nothing, 0, jnp.arctan2(covariance[a, b], jnp.where(nothing, 1, root)))


def orthant_probability(covariance: Float[Array, "n n"]) -> Float[Array, ""]:
    r"""The probability that all of n <= 4 Gaussian variables of mean 0 are positive.

    $\frac14 + \frac{1}{2\pi}\arcsin\rho$ for two and $\frac18 + \frac{1}{4\pi}\sum\arcsin\rho_{ab}$ for three. For four the correlations
    across the pairs (0, 1) and (2, 3) are switched on by a factor t from 0 to 1, and by Plackett's identity (1954) the probability
    grows at the rate $\sum_{ab}\rho_{ab}\,\phi(t\rho_{ab})$ times the probability that the other two are positive where a and b are 0,
    with $\phi(r) = (2\pi)^{-1}(1 - r^2)^{-1/2}$: smooth in s for $t = \sin s$, 32 Gauss-Legendre nodes.
    """
    n = covariance.shape[0]
    if n <= 3:
        angles = [_angle(covariance, a, b) for a in range(n) for b in range(a)]
        return 0.5**n + sum(angles, jnp.zeros((), covariance.dtype)) / (4 * np.pi if n == 3 else 2 * np.pi)
    deviations = jnp.sqrt(jnp.diagonal(covariance))
    rho = _ratio(covariance, jnp.outer(deviations, deviations))
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    s, weights = (nodes + 1) * np.pi / 4, weights * np.pi / 4
    t = np.sin(s)
    start = orthant_probability(covariance[:2, :2]) * orthant_probability(covariance[2:, 2:])
    total = jnp.zeros((), covariance.dtype)
    for a in (0, 1):
        for b in (2, 3):
            c, d = 1 - a, 5 - b
            r = t * rho[a, b]
            ac, bc, ad, bd, cd = rho[a, c], t * rho[b, c], t * rho[a, d], rho[b, d], t * rho[c, d]
            left = 1 - r**2
            cc = left - (ac**2 + bc**2 - 2 * r * ac * bc)
            dd = left - (ad**2 + bd**2 - 2 * r * ad * bd)
            across = left * cd - (ac * ad + bc * bd - r * (ac * bd + bc * ad))
            angle = jnp.arctan2(across, safe_sqrt(jnp.asarray(cc * dd - across**2)))
            density = np.cos(s) / jnp.sqrt(left)
            total += jnp.sum(weights * rho[a, b] * density * (0.25 + angle / (2 * np.pi))) / (2 * np.pi)
    return start + total


def _half_mean(covariance: Array, j: int) -> Array:
    r"""E[x_j; all positive] by Stein's lemma: $\sum_nS_{jn}\,p_n(0)$ times the probability of the others where $x_n = 0$."""
    total = jnp.zeros((), covariance.dtype)
    for n in range(covariance.shape[0]):
        steep = _ratio(covariance[j, n], safe_sqrt(covariance[n, n])) / math.sqrt(2 * math.pi)
        total += steep * orthant_probability(_given(covariance, n))
    return total


def half_moments(covariance: Float[Array, "n n"], j: int) -> Float[Array, ""]:
    r"""E[x_0 x_j; all positive] of n <= 4 Gaussian variables of mean 0.

    By Stein's lemma,
    $S_{0j}P + \sum_{m\ne j}S_{0m}\,p_m(0)\,E[x_j;\text{others positive}\,|\,x_m = 0]$ with P the probability that all are.
    """
    total = covariance[0, j] * orthant_probability(covariance)
    for m in range(covariance.shape[0]):
        if m != j:
            steep = _ratio(covariance[0, m], safe_sqrt(covariance[m, m])) / math.sqrt(2 * math.pi)
            total += steep * _half_mean(_given(covariance, m), j - (m < j))
    return total
