r"""Averages over one and over two correlated Gaussian variables by quadrature, with derivatives that stay exact.

Nearly everything here is an average over $(x, y) \sim \mathcal N(0, [[p, c], [c, q]])$ with $c^2 \le pq$. The rules are:

- [`line_rule`][]: functions of one variable, with kinks at given places;
- [`polar_rule`][]: functions of two, with kinks at 0 or none, at any variance and correlation;
- [`panel_rule`][]: functions of two, with kinks at any given places;
- [`tensor_rule`][]: polynomials of two, exactly;
- [`cloud_rule`][]: functions of more variables, by quasi-random points, to about 1e-3.

One rule differentiates them: Price's theorem, $\partial_c E[F] = E[F_{xy}]$, $\partial_p E[F] = E[F_{xx}]/2$, for smooth F.
Derivatives stay exact and finite at full correlation $c^2 = pq$, where the nodes themselves move infinitely fast.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, ScalarLike

from odes.diagonals import diagonal

_RADIAL_NODES, _RADIAL_END, _RADIAL_SCALE = 56, 9.0, 0.12
_ANGULAR_NODES, _ANGULAR_SCALE = 64, 1 / 60
_PANEL_NODES, _STEP_NODES, _STEP_SCALE = 80, 128, 0.5
_POINTS, _LINES, _LINE_NODES = 2**13, 2**11, 12
_NARROWEST = 1e-5
"""Steps of a conditional average that are narrower than this, in standard deviations, are taken as jumps."""

Nodes = tuple[Array, ...]
"""The points of a quadrature rule, one array per variable, and their weights."""

Kinks = tuple[float, ...]
"""The places where a function, or one of its derivatives, jumps."""


def _graded_legendre(n: int, end: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """n Gauss-Legendre nodes and weights on [0, end], graded towards 0 by t = scale * sinh(s).

    Functions that vary on any scale from about `scale / 3` to `end` near t = 0 are resolved, because in s they all
    vary on scale one.
    """
    nodes, weights = np.polynomial.legendre.leggauss(n)
    length = np.arcsinh(end / scale)
    s = length * (nodes + 1) / 2
    return scale * np.sinh(s), scale * np.cosh(s) * length * weights / 2


def _end(degree: int, finer: int = 1) -> float:
    """Where nodes end, in standard deviations, for functions that grow with the given power; further out for finer rules."""
    return _RADIAL_END + math.sqrt(degree) + finer - 1


def _radial(degree: int, finer: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Nodes r on [0, infinity) and weights for exp(-r^2/2) dr times functions that grow like r^degree at most."""
    r, weights = _graded_legendre(finer * (_RADIAL_NODES + degree), _end(degree, finer), _RADIAL_SCALE)
    return r, weights * np.exp(-(r**2) / 2)


def _angular(degree: int, finer: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1], graded towards both ends."""
    t, weights = _graded_legendre(finer * (_ANGULAR_NODES // 2 + degree // 2), 0.5, _ANGULAR_SCALE)
    return np.concatenate([t, 1 - t]), np.concatenate([weights, weights])


def _panels(breaks: Array, end: float, scale: float | Array, n: int) -> tuple[Array, Array]:
    """Nodes and weights on [-end, end], cut at increasing `breaks` (..., b): n on each panel, graded to both of its ends."""
    edge = jnp.full_like(breaks[..., :1], end)
    edges = jnp.concatenate([-edge, jnp.clip(breaks, -end, end), edge], axis=-1)
    low, high = edges[..., :-1, None], edges[..., 1:, None]
    each = (1,) * breaks.ndim + (-1,)
    unit, unit_weights = (jnp.asarray(x, breaks.dtype).reshape(each) for x in np.polynomial.legendre.leggauss(n // 2))
    length = jnp.arcsinh((high - low) / (2 * scale))
    s = length * (unit + 1) / 2
    step, weight = scale * jnp.sinh(s), scale * jnp.cosh(s) * length * unit_weights / 2
    both = jnp.concatenate([low + step, high - step], axis=-1), jnp.concatenate([weight, weight], axis=-1)
    nodes, weights = (x.reshape(*breaks.shape[:-1], -1) for x in both)
    return nodes, weights


def safe_sqrt(x: Array) -> Array:
    """sqrt(max(x, 0)) whose derivative is 0, not infinite, at x <= 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def correlation_angle(p: Array, q: Array, c: Array) -> Array:
    r"""The angle $\beta \in [0, \pi]$ with $\cos\beta = c/\sqrt{pq}$; its derivative is set to 0 at $\beta = 0, \pi$."""
    return jnp.arctan2(safe_sqrt(p * q - c**2), c)


def _with_zero(kinks: Kinks) -> np.ndarray:
    """Where the line is cut: at the kinks and at 0, towards which nodes are graded in any case."""
    return np.unique([0.0, *kinks])


@functools.cache
def line_rule(degree: int, kinks: Kinks = (), finer: int = 1) -> Callable[[Array], Nodes]:
    """The rule for E[F(x)] with F of at most the given growth, smooth but for `kinks`; a `finer` one has as many times the nodes."""
    cuts, end, n = _with_zero(kinks), _end(degree, finer), 2 * finer * (_RADIAL_NODES + degree)

    def rule(p: Array) -> Nodes:
        root = jnp.sqrt(p)
        x, weights = _panels(jnp.asarray(cuts, p.dtype) / root, end, _RADIAL_SCALE, n)
        return root * x, weights * jnp.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)

    return rule


@functools.cache
def polar_rule(degree: int, finer: int = 1) -> Callable[[Array, Array, Array], Nodes]:
    r"""The rule for E[F(x, y)] with F of at most the given growth, smooth but for kinks at x = 0 and y = 0.

    With $x = \sqrt p\, r \cos t$ and $y = \sqrt q\, r \cos(t - \beta)$ the circle is cut at the four rays where x = 0 or y = 0
    into two arcs of length $\beta$ and two of length $\pi - \beta$. On each arc F is smooth even where it has kinks at 0, and
    the nodes are graded towards both ends of the arc and towards r = 0, which resolves features of width 1 in
    variables of variance up to several hundred. 4 x 64 x 57 nodes for bounded F, more for fast growth.
    """
    radial, angular = _radial(degree + 1, finer), _angular(degree, finer)

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
def panel_rule(degree: int, kinks: Kinks, others: Kinks, finer: int = 1) -> Callable[[Array, Array, Array], Nodes]:
    r"""The rule for E[F(x, y)] with F of at most the given growth, smooth but for `kinks` in x and the `others` in y.

    $x = \sqrt p\,s$ and $y = cs/\sqrt p + \sqrt{q - c^2/p}\,z$ with independent normal s and z. For every s, the line of z is cut
    where y has a kink; the average over z is then smooth in s but near $s = k\sqrt p/c$ for every kink k of y, where it changes over
    the width $\sqrt{pq/c^2 - 1}$: s is cut there too, and nodes are graded down to that width. About 1e5 nodes for one kink each.
    """
    own, other, end = _with_zero(kinks), _with_zero(others), _end(degree, finer)
    n, n_steps = finer * (_PANEL_NODES + degree), finer * (_STEP_NODES + degree)

    def rule(p: Array, q: Array, c: Array) -> Nodes:
        root, rest = jnp.sqrt(p), safe_sqrt(q - c**2 / p)
        steep = c / root
        sloped = jax.lax.stop_gradient(jnp.where(jnp.abs(steep) > _NARROWEST, steep, _NARROWEST))
        width = jax.lax.stop_gradient(rest / jnp.abs(sloped))
        near = jnp.asarray(other[other != 0], p.dtype) / sloped
        scale = jnp.where(width > _NARROWEST, jnp.minimum(_STEP_SCALE * width, _RADIAL_SCALE), _RADIAL_SCALE)
        s, s_weights = _panels(jnp.sort(jnp.concatenate([jnp.asarray(own, p.dtype) / root, near])), end, scale, n_steps)
        s, s_weights = s[:, None], s_weights[:, None]
        cuts = (jnp.asarray(other, p.dtype)[None] - steep * s) / jnp.where(rest > 0, rest, 1)
        z, z_weights = _panels(cuts, end, _RADIAL_SCALE, n)
        weights = s_weights * z_weights * jnp.exp(-(s**2 + z**2) / 2) / (2 * np.pi)
        return jnp.broadcast_to(root * s, z.shape), steep * s + rest * z, weights

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


def plane_rule(degree: int, kinks: Kinks, others: Kinks, finer: int = 1) -> Callable[[Array, Array, Array], Nodes]:
    """The cheapest rule for E[F(x, y)] with F of at most the given growth, smooth but for `kinks` in x and the `others` in y."""
    if {*kinks, *others} <= {0.0}:
        return polar_rule(degree, finer)
    return panel_rule(degree, kinks, others, finer)


def cholesky_root(covariance: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The lower-triangular L with L L^T = `covariance`, whose columns are 0 where a variable depends on those before it."""
    columns: list[Array] = []
    for n in range(covariance.shape[0]):
        rest = covariance[:, n] - sum((column * column[n] for column in columns), jnp.zeros_like(covariance[n]))
        pivot = rest[n]
        free = pivot > 1e-14 * covariance[n, n]
        column = jnp.where(free, rest / jnp.sqrt(jnp.where(free, pivot, 1)), 0)
        columns.append(jnp.where(np.arange(covariance.shape[0]) >= n, column, 0))
    return jnp.stack(columns, axis=1)


@functools.cache
def _normal_points(n: int, count: int, sample: int) -> np.ndarray:
    """Points (n, count) that are spread like independent normal numbers: scrambled Sobol points, of which `sample` says which."""
    from scipy import special
    from scipy.stats import qmc

    return special.ndtri(qmc.Sobol(n, scramble=True, rng=sample).random(count)).T


@functools.cache
def cloud_rule(degree: int, kinks: tuple[Kinks, ...], sample: int = 0) -> Callable[[Array], Nodes]:
    r"""The rule for E[F(x)] of a function of n variables with F of at most the given growth, smooth but for `kinks` of every variable.

    x = L z with L a root of the covariance. Smooth functions are averaged over 8192 fixed scrambled Sobol points z. For functions
    with kinks those would make averages that jump: they are integrated along 2048 parallel lines, cut where any variable has a kink, and
    over Sobol points across. Averages are smooth functions of the covariance, with an error of 1e-3 to 1e-2, which another `sample`
    shows.
    """
    n, end = len(kinks), _end(degree)
    if not any(kinks):

        def points(covariance: Array) -> Nodes:
            z = jnp.asarray(_normal_points(n, _POINTS, sample), covariance.dtype)
            return *(cholesky_root(covariance) @ z), jnp.full(_POINTS, 1 / _POINTS, covariance.dtype)

        return points
    units = np.repeat(np.arange(n), [len(some) for some in kinks])
    places = np.concatenate([np.asarray(some, float) for some in kinks])
    along = np.linalg.qr(np.concatenate([np.ones((n, 1)), np.eye(n)[:, 1:]], axis=1))[0]

    def lines(covariance: Array) -> Nodes:
        across = along[:, 1:] @ _normal_points(n - 1, _LINES, sample)
        root = cholesky_root(covariance)
        middle, direction = root @ jnp.asarray(across, root.dtype), root @ jnp.asarray(along[:, 0], root.dtype)
        steep = direction[units]
        moving = jnp.abs(steep) > _NARROWEST * jnp.sqrt(diagonal(covariance))[units]
        cuts = (jnp.asarray(places, root.dtype)[:, None] - middle[units]) / jnp.where(moving, steep, 1)[:, None]
        cuts = jnp.where(moving[:, None], cuts, end)
        s, weights = _panels(jnp.sort(cuts, axis=0).T, end, _STEP_SCALE, 2 * _LINE_NODES)
        x = middle[:, :, None] + direction[:, None, None] * s[None]
        weights = weights * jnp.exp(-(s**2) / 2) / (np.sqrt(2 * np.pi) * _LINES)
        return *x.reshape(n, -1), weights.reshape(-1)

    return lines


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
    with respect to the covariance is that of Price's theorem if `smooth`; a function with kinks is
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
