r"""Gaussian averages of one and of two correlated variables, to near machine precision.

Everything here is an average over $(x, y) \sim \mathcal N(0, [[p, c], [c, q]])$ with $c^2 \le pq$. Three quadrature
rules compute them and one rule differentiates them:

- [`polar_rule`][]: functions with a kink at 0 or none, at any variance and correlation;
- [`tensor_rule`][]: polynomials, exactly;
- [`line_rule`][]: functions of one variable, with a kink at 0 or none;
- Price's theorem, $\partial_c E[F] = E[F_{xy}]$, $\partial_p E[F] = E[F_{xx}]/2$, for smooth F: derivatives stay exact and
  finite at full correlation $c^2 = pq$, where the nodes themselves move infinitely fast.

[`pair_moments`][] is what the dynamics needs of two link functions. It uses closed forms for two polynomials (Mehler's
sum), two erf and two relu, and the rules for everything else.
"""

import functools
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, ScalarLike

from odes.activations import Activation, both_are

_RADIAL_NODES, _RADIAL_END, _RADIAL_SCALE = 56, 9.0, 0.12
_ANGULAR_NODES, _ANGULAR_SCALE = 64, 1 / 60

Nodes = tuple[Array, ...]
"""The points of a quadrature rule, one array per variable, and their weights."""


def _graded_legendre(n: int, end: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """n Gauss-Legendre nodes and weights on [0, end], graded towards 0 by t = scale * sinh(s).

    Functions that vary on any scale from about `scale / 3` to `end` near t = 0 are resolved, because in s they all
    vary on scale one.
    """
    nodes, weights = np.polynomial.legendre.leggauss(n)
    length = np.arcsinh(end / scale)
    s = length * (nodes + 1) / 2
    return scale * np.sinh(s), scale * np.cosh(s) * length * weights / 2


def _radial(degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes r on [0, infinity) and weights for exp(-r^2/2) dr times functions that grow like r^degree at most."""
    r, weights = _graded_legendre(_RADIAL_NODES + degree, _RADIAL_END + math.sqrt(degree), _RADIAL_SCALE)
    return r, weights * np.exp(-(r**2) / 2)


def _angular(degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1], graded towards both ends."""
    t, weights = _graded_legendre(_ANGULAR_NODES // 2 + degree // 2, 0.5, _ANGULAR_SCALE)
    return np.concatenate([t, 1 - t]), np.concatenate([weights, weights])


def safe_sqrt(x: Array) -> Array:
    """sqrt(max(x, 0)) whose derivative is 0, not infinite, at x <= 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def correlation_angle(p: Array, q: Array, c: Array) -> Array:
    r"""The angle $\beta \in [0, \pi]$ with $\cos\beta = c/\sqrt{pq}$; its derivative is set to 0 at $\beta = 0, \pi$."""
    return jnp.arctan2(safe_sqrt(p * q - c**2), c)


@functools.cache
def line_rule(degree: int) -> Callable[[Array], Nodes]:
    """The rule for E[F(x)] with F of at most the given growth: two graded half lines, so a kink at 0 is harmless."""
    radial = _radial(degree)

    def rule(p: Array) -> Nodes:
        r, weights = (jnp.asarray(a, p.dtype) for a in radial)
        x = jnp.sqrt(p) * r
        return jnp.concatenate([x, -x]), jnp.concatenate([weights, weights]) / np.sqrt(2 * np.pi)

    return rule


@functools.cache
def polar_rule(degree: int) -> Callable[[Array, Array, Array], Nodes]:
    r"""The rule for E[F(x, y)] with F of at most the given growth, smooth but for kinks at x = 0 and y = 0.

    With $x = \sqrt p\, r \cos t$ and $y = \sqrt q\, r \cos(t - \beta)$ the circle is cut at the four rays where x = 0 or y = 0
    into two arcs of length $\beta$ and two of length $\pi - \beta$. On each arc F is smooth even where it has kinks at 0, and
    the nodes are graded towards both ends of the arc and towards r = 0, which resolves features of width 1 in
    variables of variance up to several hundred. 4 x 64 x 57 nodes for bounded F, more for fast growth.
    """
    radial, angular = _radial(degree + 1), _angular(degree)

    def rule(p: Array, q: Array, c: Array) -> Nodes:
        r, radial_weights = (jnp.asarray(a, p.dtype) for a in radial)
        unit, angular_weights = (jnp.asarray(a, p.dtype) for a in angular)
        beta = correlation_angle(p, q, c)
        lengths = jnp.stack([beta, jnp.pi - beta])
        along, back = jnp.outer(lengths, unit), jnp.outer(lengths, 1 - unit)
        x_angles = jnp.stack([jnp.sin(along[0]), jnp.sin(back[1])])
        y_angles = jnp.stack([-jnp.sin(back[0]), jnp.sin(along[1])])
        x = jnp.sqrt(p) * jnp.multiply.outer(x_angles, r)
        y = jnp.sqrt(q) * jnp.multiply.outer(y_angles, r)
        weights = jnp.multiply.outer(jnp.outer(lengths, angular_weights), radial_weights * r) / (2 * np.pi)
        return jnp.stack([x, -x]), jnp.stack([y, -y]), jnp.stack([weights, weights])

    return rule


@functools.cache
def tensor_rule(degree: int) -> Callable[[Array, Array, Array], Nodes]:
    """The rule, n x n nodes with n = degree // 2 + 1, that averages polynomials of total `degree` exactly."""
    z, w = np.polynomial.hermite_e.hermegauss(degree // 2 + 1)
    w = w / w.sum()

    def rule(p: Array, q: Array, c: Array) -> Nodes:
        nodes, weights = jnp.asarray(z, p.dtype), jnp.asarray(w, p.dtype)
        first, second = jnp.meshgrid(nodes, nodes, indexing="ij")
        y = (c / jnp.sqrt(p)) * first + safe_sqrt(q - c**2 / p) * second
        return jnp.sqrt(p) * first, y, jnp.outer(weights, weights)

    return rule


def _partial(function: Callable, argument: int) -> Callable:
    """The derivative of an elementwise function with respect to one of its arguments."""

    def derivative(*xs):
        tangents = tuple(jnp.ones_like(x) if i == argument else jnp.zeros_like(x) for i, x in enumerate(xs))
        return jax.jvp(function, xs, tangents)[1]

    return derivative


def _sum_over_nodes(function: Callable, nodes: Nodes) -> Array:
    *points, weights = nodes
    values = function(*points)
    return jnp.sum(values * weights[None], axis=tuple(range(1, values.ndim)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _smooth_average(function: Callable, rule: Callable, *covariance: Array) -> Array:
    return _sum_over_nodes(function, rule(*covariance))


@_smooth_average.defjvp
def _price(function, rule, covariance, tangents):
    def average(f):
        return _smooth_average(f, rule, *covariance)

    value = average(function)
    tangent = 0.5 * tangents[0] * average(_partial(_partial(function, 0), 0))
    if len(covariance) == 3:
        tangent += 0.5 * tangents[1] * average(_partial(_partial(function, 1), 1))
        tangent += tangents[2] * average(_partial(_partial(function, 0), 1))
    return value, tangent


def gaussian_average(
    function: Callable, *covariance: ScalarLike, rule: Callable, smooth: bool = True
) -> Float[Array, " n"]:
    r"""E[F(x)] with `covariance` = (p,), or E[F(x, y)] with `covariance` = (p, q, c).

    $$E[F] = \int F(x, y)\, \mathcal N\!\left((x, y); 0, \begin{pmatrix} p & c \\ c & q \end{pmatrix}\right) dx\, dy$$

    `function` maps arrays x (and y) of one shape to an array (n, *shape): n averages share their nodes. Its derivative
    with respect to the covariance is that of Price's theorem if `smooth`; a function with a kink at 0 is
    differentiated through the moving nodes instead, which is exact except in the direction of c at full correlation,
    where 0 is returned.

    >>> one = jnp.ones(())
    >>> gaussian_average(lambda x, y: jnp.stack([x * y, x**2]), one, one, 0.5 * one, rule=polar_rule(2)).round(9).tolist()
    [0.5, 1.0]
    """
    arrays = jnp.broadcast_arrays(*(jnp.asarray(a, jnp.result_type(float)) for a in covariance))
    if smooth:
        return _smooth_average(function, rule, *arrays)
    return _sum_over_nodes(function, rule(*arrays))


class PairMoments(eqx.Module):
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


def _erf_moments(p: Array, q: Array, c: Array) -> PairMoments:
    """E[erf(x) erf(y)] = (2/pi) asin(2 c / sqrt((1 + 2p)(1 + 2q)))."""
    product = (1 + 2 * p) * (1 + 2 * q)
    root = jnp.sqrt(product - 4 * c**2)
    return PairMoments(
        (2 / np.pi) * jnp.arctan2(2 * c, root),
        (4 / np.pi) / root,
        -(8 / np.pi) * c / ((1 + 2 * p) * root),
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
    return (f.hermite is not None and h.hermite is not None) or both_are(f, h, "erf") or both_are(f, h, "relu")


def pair_moments(f: Activation, h: Activation, p: ScalarLike, q: ScalarLike, c: ScalarLike) -> PairMoments:
    r"""$E[f(x)h(y)]$, $E[f'(x)h'(y)]$, $E[f''(x)h(y)]$ for var x = p, var y = q, cov(x, y) = c; all arguments are scalars.

    Closed forms for two polynomials, two erf (Saad & Solla 1995), two relu; the polar rule otherwise. Relative error
    below 1e-10 of $\sqrt{E[f^2]E[h^2]}$ (and alike for the derivatives) for variances in [1e-6, 1e2] at every $c^2 \le pq$.

    >>> from odes.activations import activation
    >>> float(pair_moments(activation("relu"), activation("relu"), 1.0, 1.0, 1.0).value)
    0.5
    """
    p, q, c = (jnp.asarray(a, jnp.result_type(float)) for a in (p, q, c))
    if f.hermite is not None and h.hermite is not None:
        return _polynomial_moments(f.hermite, h.hermite, p, q, c)
    if both_are(f, h, "erf"):
        return _erf_moments(p, q, c)
    if both_are(f, h, "relu"):
        return _relu_moments(p, q, c)

    def integrand(x, y):
        slope, image = f.derivative(x), h(y)
        return jnp.stack([f(x) * image, slope * h.derivative(y), x * slope * image])

    value, cross, stein = gaussian_average(
        integrand, p, q, c, rule=polar_rule(f.growth + h.growth), smooth=not (f.kinked or h.kinked)
    )
    return PairMoments(value, cross, (stein - c * cross) / p)


def self_moments(f: Activation, p: ScalarLike) -> PairMoments:
    r"""[`pair_moments`][] of f with itself at y = x: $E[f^2]$, $E[f'^2]$, $E[f'' f]$, for var x = p."""
    p = jnp.asarray(p, jnp.result_type(float))
    if has_closed_form(f, f):
        return pair_moments(f, f, p, p, p)

    def integrand(x):
        image, slope = f(x), f.derivative(x)
        return jnp.stack([image**2, slope**2, x * slope * image])

    value, cross, stein = gaussian_average(integrand, p, rule=line_rule(2 * f.growth), smooth=not f.kinked)
    return PairMoments(value, cross, stein / p - cross)
