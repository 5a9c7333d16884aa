r"""What the dynamics needs of link functions of one and of two correlated Gaussian variables, to near machine precision.

[`pair_moments`][] and [`self_moments`][] are averages over $(x, y) \sim \mathcal N(0, [[p, c], [c, q]])$: closed forms for two
polynomials (Mehler's sum), two erf and two relu, quadrature ([`odes.quadrature`][]) for everything else.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, ScalarLike

from odes.activations import Activation, both_are, unscaled
from odes.erfs import ErfSeries, erf_series
from odes.quadrature import (
    Nodes,
    correlation_angle,
    gaussian_average,
    line_rule,
    plane_rule,
    safe_sqrt,
    tensor_rule,
)
from odes.shown import Shown


class PairMoments(Shown):
    r"""What the dynamics needs of two link functions f, h of Gaussians x, y with var x = p, var y = q, cov = c.

    - `value` $= E[f(x) h(y)]$
    - `cross` $= E[f'(x) h'(y)] = \partial_c E[f h]$
    - `curvature` $= E[f''(x) h(y)] = 2 \partial_p E[f h]$, which exists for kinked f too: Stein's lemma gives it as
      $(E[x f'(x) h(y)] - c E[f'(x) h'(y)]) / p$.
    """

    value: Float[Array, "..."]
    cross: Float[Array, "..."]
    curvature: Float[Array, "..."]


def mean_derivatives(series: tuple[float, ...], p: Array) -> Float[Array, " n"]:
    r"""$E[f^{(k)}(x)]$ for k = 0 ... deg f, for the polynomial $f = \sum_n a_n \mathrm{He}_n$ and var x = p.

    $E[f^{(k)}(x)] = \sum_i a_{k+2i} \frac{(k+2i)!}{2^i\, i!} (p-1)^i$, from $E[\mathrm{He}_{2i}(x)] = (2i-1)!!\,(p-1)^i$.
    """
    coefficients = jnp.asarray(_mean_derivative_coefficients(series), p.dtype)
    total = coefficients[:, -1]
    for i in reversed(range(coefficients.shape[1] - 1)):
        total = coefficients[:, i] + total * (p - 1)
    return total


@functools.cache
def _mean_derivative_coefficients(series: tuple[float, ...]) -> np.ndarray:
    """Row k holds the coefficients of E[f^(k)(x)] in powers of p - 1, lowest power first."""
    degree = len(series) - 1
    coefficients = np.zeros((degree + 1, degree // 2 + 1))
    for k in range(degree + 1):
        for i in range((degree - k) // 2 + 1):
            weight = math.factorial(k + 2 * i) // math.factorial(i) / 2**i
            coefficients[k, i] = series[k + 2 * i] * weight
    return coefficients


def _polynomial_moments(f: tuple[float, ...], h: tuple[float, ...], p: Array, q: Array, c: Array) -> PairMoments:
    """E[f(x) h(y)] = sum_k c^k / k! E[f^(k)(x)] E[h^(k)(y)] (Mehler)."""
    left, right = mean_derivatives(f, p), mean_derivatives(h, q)
    terms = min(left.size, right.size)
    pad = jnp.zeros(terms + 2, p.dtype)
    left, right = jnp.concatenate([left, pad]), jnp.concatenate([right, pad])
    products = jnp.stack(
        [
            left[:terms] * right[:terms],
            left[1 : terms + 1] * right[1 : terms + 1],
            left[2 : terms + 2] * right[:terms],
        ]
    )
    total = jnp.zeros(3, p.dtype)
    for k in reversed(range(terms)):
        total = products[:, k] + total * (c / (k + 1))
    return PairMoments(*total)


def _erf_moments(f: ErfSeries, h: ErfSeries, p: Array, q: Array, c: Array) -> PairMoments:
    """E[erf(x) erf(y)] = (2/pi) asin(2 c / sqrt((1 + 2p)(1 + 2q))), summed over the terms of two series."""
    scales, others = np.array(f.scales)[:, None], np.array(h.scales)[None]
    both, weights = scales * others, np.outer(f.weights, h.weights)
    parts = (2 / np.pi * weights, 4 / np.pi * weights * both, -8 / np.pi * weights * scales**2)
    squares, other_squares, both, value, cross, curvature = (
        jnp.asarray(x, p.dtype) for x in (scales**2, others**2, both, *parts)
    )
    p, c = 1 + 2 * squares * p, both * c
    product = p * (1 + 2 * other_squares * q)
    root = jnp.sqrt(product - 4 * c**2)
    return PairMoments(
        jnp.sum(value * jnp.arctan2(2 * c, root)) + f.offset * h.offset,
        jnp.sum(cross / root),
        jnp.sum(curvature * c / (p * root)),
    )


@jax.custom_jvp
def _relu_value(p: Array, q: Array, c: Array) -> Array:
    """E[relu(x) relu(y)] = (sqrt(pq) sin b + c (pi - b)) / (2 pi), b the angle of correlation."""
    return (safe_sqrt(p * q - c**2) + c * (np.pi - correlation_angle(p, q, c))) / (2 * np.pi)


@_relu_value.defjvp
def _relu_value_jvp(covariance, tangents):
    p, q, c = covariance
    forward, backward = _relu_moments(p, q, c), _relu_moments(q, p, c)
    tangent = 0.5 * (forward.curvature * tangents[0] + backward.curvature * tangents[1]) + forward.cross * tangents[2]
    return forward.value, tangent


def _relu_moments(p: Array, q: Array, c: Array) -> PairMoments:
    """The arc-cosine kernel (Cho & Saul 2009) and its derivatives, which have a true square-root edge at c^2 = pq."""
    return PairMoments(
        _relu_value(p, q, c),
        (np.pi - correlation_angle(p, q, c)) / (2 * np.pi),
        safe_sqrt(p * q - c**2) / (2 * np.pi * p),
    )


def has_closed_form(f: Activation, h: Activation) -> bool:
    """Whether the averages of two link functions are closed formulas, and not sums over thousands of nodes."""
    (_, f), (_, h) = unscaled(f), unscaled(h)
    series = erf_series(f) is not None and erf_series(h) is not None
    return (f.hermite is not None and h.hermite is not None) or series or both_are(f, h, "relu")


def pair_rule(f: Activation, h: Activation, degree: int) -> Callable[[Array, Array, Array], Nodes]:
    """The quadrature rule for functions of f(x) and h(y) that grow with the given power: exact for polynomials."""
    polynomials = f.hermite is not None and h.hermite is not None
    return tensor_rule(degree) if polynomials else plane_rule(degree, f.kinks, h.kinks)


def pair_moments(f: Activation, h: Activation, p: ScalarLike, q: ScalarLike, c: ScalarLike) -> PairMoments:
    r"""$E[f(x)h(y)]$, $E[f'(x)h'(y)]$, $E[f''(x)h(y)]$ for var x = p, var y = q, cov(x, y) = c; all arguments are scalars.

    Closed forms for two polynomials, two erf (Saad & Solla 1995) and sums of erf,
    two relu, of scaled arguments too; quadrature otherwise.
    Relative error below 1e-10 of $\sqrt{E[f^2]E[h^2]}$ (and alike for the derivatives) for variances in [1e-6, 1e2], of the
    scaled arguments, at every $c^2 \le pq$.

    >>> from odes.activations import activation
    >>> float(pair_moments(activation("relu"), activation("relu"), 1.0, 1.0, 1.0).value)
    0.5
    """
    p, q, c = (jnp.asarray(a, jnp.result_type(float)) for a in (p, q, c))
    (s, f), (t, h) = unscaled(f), unscaled(h)
    if (s, t) != (1, 1):  # f(x) = g(s x) is g of a variable of variance s^2 p
        moments = pair_moments(f, h, s**2 * p, t**2 * q, s * t * c)
        return PairMoments(moments.value, s * t * moments.cross, s**2 * moments.curvature)
    if f.hermite is not None and h.hermite is not None:
        return _polynomial_moments(f.hermite, h.hermite, p, q, c)
    series, other = erf_series(f), erf_series(h)
    if series is not None and other is not None:
        return _erf_moments(series, other, p, q, c)
    if both_are(f, h, "relu"):
        return _relu_moments(p, q, c)

    def integrand(x, y):
        slope, image = f.derivative(x), h(y)
        return jnp.stack([f(x) * image, slope * h.derivative(y), x * slope * image])

    value, cross, stein = gaussian_average(
        integrand, p, q, c, rule=pair_rule(f, h, f.growth + h.growth), smooth=not (f.kinked or h.kinked)
    )
    return PairMoments(value, cross, (stein - c * cross) / p)


def self_moments(f: Activation, p: ScalarLike) -> PairMoments:
    r"""[`pair_moments`][] of f with itself at y = x: $E[f^2]$, $E[f'^2]$, $E[f'' f]$, for var x = p."""
    p = jnp.asarray(p, jnp.result_type(float))
    s, f = unscaled(f)
    if s != 1:
        moments = self_moments(f, s**2 * p)
        return PairMoments(moments.value, s**2 * moments.cross, s**2 * moments.curvature)
    if has_closed_form(f, f):
        return pair_moments(f, f, p, p, p)

    def integrand(x):
        image, slope = f(x), f.derivative(x)
        return jnp.stack([image**2, slope**2, x * slope * image])

    value, cross, stein = gaussian_average(integrand, p, rule=line_rule(2 * f.growth, f.kinks), smooth=not f.kinked)
    return PairMoments(value, cross, stein / p - cross)
