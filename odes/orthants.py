r"""Moments of up to four correlated Gaussian variables over the part of space in which all of them are positive.

Variables that depend on each other, as those of units in a plane do, are limits: each has an independent part added whose variance is
a vanishing fraction of its own. A law is therefore a [`Law`][]: the covariance and its first order in that fraction.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odes.diagonals import diagonal, diagonal_matrix
from odes.quadrature import safe_sqrt

_NODES = 32
_ROUNDING, _DOUBTFUL, _APART = 1.5e-14, 1e-10, 1e-10
"""A variance below the first part of its scale is 0. Between that and the second rounding may be seen: the variables are then taken
apart by independent parts of the third fraction of their variances."""
_EQUAL = 1e-14
"""Variables whose correlation is so close to 1 or -1 are the same, or opposite."""


class Law(NamedTuple):
    r"""Gaussian variables of mean 0 and covariance $S + \epsilon E$, $\epsilon \to 0$: one whose S is 0 has the variance $\epsilon E$.

    `scale` (n,) are the sizes of the numbers whose rounding is in the variances.
    """

    covariance: Array
    extra: Array
    scale: Array


def _ratio(x: Array, y: Array) -> Array:
    """x / y, and 0 with derivative 0 where y is 0 or, by rounding, less."""
    positive = y > 0
    return jnp.where(positive, x / jnp.where(positive, y, 1), 0)


def _law(covariance: Array) -> Law:
    return Law(covariance, diagonal_matrix(diagonal(covariance)), diagonal(covariance))


def _in_orders(law: Law, orders: list[list[int]]) -> Law:
    """The law of the variables in several orders, in front the axis of these: one program computes what is done for each variable."""
    places = np.array(orders)
    rows, columns = places[:, :, None], places[:, None, :]
    return Law(law.covariance[rows, columns], law.extra[rows, columns], law.scale[places])


def _given_first(law: Law) -> Law:
    """The law of the other variables where the first, whose variance is not 0, is 0.

    What is left of a variance by rounding is 0.
    """
    S, E, scale = law
    pull, mixed = _ratio(S[1:, 0], S[0, 0]), E[1:, 0]
    rest = S[1:, 1:] - jnp.outer(pull, S[1:, 0])
    scale = scale[1:] + pull**2 * scale[0]
    free = diagonal(rest) > _ROUNDING * scale
    crossed = jnp.outer(pull, mixed)
    extra = E[1:, 1:] - crossed - crossed.T + jnp.outer(pull, pull) * E[0, 0]
    return Law(jnp.where(free[:, None] & free[None], rest, 0), extra, scale)


def _correlations(law: Law) -> Float[Array, "n n"]:
    """Those of S; of variables with S = 0 those of E, since they are nothing beside the others and not correlated with them."""
    free = diagonal(law.covariance) > 0
    both, neither = free[:, None] & free[None], ~free[:, None] & ~free[None]
    chosen = jnp.where(both, law.covariance, jnp.where(neither, law.extra, 0))
    deviations = safe_sqrt(jnp.where(free, diagonal(law.covariance), diagonal(law.extra)))
    return _ratio(chosen, jnp.outer(deviations, deviations))


def _arcsine(correlation: Array) -> Array:
    """arcsin whose derivative is 0 at the ends."""
    return jnp.arctan2(correlation, safe_sqrt(1 - correlation**2))


def orthant_probability(covariance: Float[Array, "n n"]) -> Float[Array, ""]:
    r"""The probability that all of n <= 4 Gaussian variables of mean 0 are positive.

    $\frac14 + \frac{1}{2\pi}\arcsin\rho$ for two and $\frac18 + \frac{1}{4\pi}\sum\arcsin\rho_{ab}$ for three. For four the correlations
    across the pairs (0, 1) and (2, 3) are switched on by a factor t from 0 to 1, and by Plackett's identity (1954) the probability
    grows at the rate $\sum_{ab}\rho_{ab}\,\phi(t\rho_{ab})$ times the probability that the other two are positive where a and b are 0,
    with $\phi(r) = (2\pi)^{-1}(1 - r^2)^{-1/2}$: smooth in s for $t = \sin s$, 32 Gauss-Legendre nodes.
    """
    return _probability(_correlations(_law(covariance)))


def _probability(rho: Array) -> Array:
    """The probability at given correlations."""
    n = rho.shape[0]
    if n <= 3:
        angles = [_arcsine(rho[a, b]) for a in range(n) for b in range(a)]
        return 0.5**n + sum(angles, jnp.zeros((), rho.dtype)) / (4 * np.pi if n == 3 else 2 * np.pi)
    total = _plackett(rho)
    for a in range(n):
        others = np.array([b for b in range(n) if b != a])
        total = jnp.where(jnp.any(rho[a, others] > 1 - _EQUAL), _probability(rho[np.ix_(others, others)]), total)
    return jnp.where(jnp.any(rho < _EQUAL - 1), 0, total)


def _plackett(rho: Array) -> Array:
    """The probability for four variables, no two of which are the same or opposite."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    s, weights = (nodes + 1) * np.pi / 4, weights * np.pi / 4
    a, b = np.array([0, 0, 1, 1]), np.array([2, 3, 2, 3])
    c, d, t = 1 - a, 5 - b, jnp.asarray(np.sin(s), rho.dtype)[None]
    ab, ac, bc, ad, bd, cd = (rho[pair][:, None] for pair in ((a, b), (a, c), (b, c), (a, d), (b, d), (c, d)))
    r, bc, ad, cd = t * ab, t * bc, t * ad, t * cd
    left = 1 - r**2
    cc = left - (ac**2 + bc**2 - 2 * r * ac * bc)
    dd = left - (ad**2 + bd**2 - 2 * r * ad * bd)
    across = left * cd - (ac * ad + bc * bd - r * (ac * bd + bc * ad))
    others = 0.25 + jnp.arctan2(across, safe_sqrt(cc * dd - across**2)) / (2 * np.pi)
    grown = jnp.asarray(weights * np.cos(s), rho.dtype)[None] * ab * others / jnp.sqrt(left)
    apart = (0.25 + _arcsine(rho[0, 1]) / (2 * np.pi)) * (0.25 + _arcsine(rho[2, 3]) / (2 * np.pi))
    return apart + jnp.sum(grown) / (2 * np.pi)


def _steepness(law: Law, j: int) -> Float[Array, " n"]:
    """S_jn times the density of every x_n at 0; nothing where the variance of x_n is."""
    return _ratio(law.covariance[j], safe_sqrt(diagonal(law.covariance))) / math.sqrt(2 * math.pi)


def _doubtful(law: Law) -> Array:
    """Whether rounding may be seen in one of the variances."""
    left = diagonal(law.covariance)
    return jnp.any((left > 0) & (left < _DOUBTFUL * law.scale))


def _half_mean(law: Law) -> tuple[Array, Array]:
    r"""E[x_0; all positive] by Stein's lemma: $\sum_nS_{0n}\,p_n(0)$ times the probability of the others where $x_n = 0$; and whether
    it is doubtful."""
    size = law.covariance.shape[0]
    orders = [[n, *(m for m in range(size) if m != n)] for n in range(size)]
    given = jax.vmap(_given_first)(_in_orders(law, orders))
    probabilities = jax.vmap(lambda some: _probability(_correlations(some)))(given)
    return _steepness(law, 0) @ probabilities, _doubtful(law) | jnp.any(jax.vmap(_doubtful)(given))


def half_moments(covariance: Float[Array, "n n"], j: int) -> Float[Array, ""]:
    r"""E[x_0 x_j; all positive] of n <= 4 Gaussian variables of mean 0.

    By Stein's lemma,
    $S_{0j}P + \sum_{m\ne j}S_{0m}\,p_m(0)\,E[x_j;\text{others positive}\,|\,x_m = 0]$ with P the probability that all are.
    """
    if covariance.shape[0] < 3:
        return _half_moments(covariance, j)[0]
    both = jnp.stack([covariance, covariance + _APART * diagonal_matrix(diagonal(covariance))])
    (value, apart), (doubt, _) = jax.vmap(functools.partial(_half_moments, j=j))(both)
    return jnp.where(doubt, apart, value)


def _half_moments(covariance: Array, j: int) -> tuple[Array, Array]:
    law, size = _law(covariance), covariance.shape[0]
    total = covariance[0, j] * _probability(_correlations(law))
    others = [m for m in range(size) if m != j]
    if not others:
        return total, jnp.asarray(False)
    orders = [[m, j, *(n for n in others if n != m)] for m in others]
    means, doubts = jax.vmap(lambda some: _half_mean(_given_first(some)))(_in_orders(law, orders))
    return total + _steepness(law, 0)[np.array(others)] @ means, jnp.any(doubts)
