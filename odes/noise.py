r"""The covariance of the gradient's noise for any numbers of units, $N_{kl} = E[g_kg_l]$, $g_k = a_k(e - \sqrt\Delta z)\sigma'(\lambda_k)$.

The joint covariance of all K + P preactivations is $S = \begin{pmatrix} Q & M \\ M^T & P \end{pmatrix}$, and the error
$e = \sum_ic_if_i(x_i)$ with c = (a, -b) and f the student's or the teacher's link function. Averages of the products of four factors,
$E[f_if_j\sigma'_k\sigma'_l]$, are

- closed formulas for erf and sums of erf: the factors $\sigma'$ tilt the Gaussian; for several units of links that are close to such a sum
    (tanh, sigmoid), those of that sum ([`odes.erfs.nearest_erfs`][]);
- finite sums for polynomials: Mehler's sum, of four variables;
- arcsines for relu, and where i, j, k and l all differ one integral over them, by Gauss-Legendre;
- quadrature in the plane of one student and one teacher unit, and fixed quasi-random points for more, for all other links.

Arguments may be scaled in each of them.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.polynomial import hermite_e

from odes.activations import both_are, unscaled
from odes.diagonals import diagonal
from odes.erfs import ErfSeries, erf_series, nearest_erfs
from odes.gaussian import has_closed_form, mean_derivatives, pair_rule
from odes.orthants import half_moments
from odes.overlaps import Covariances
from odes.population import within
from odes.problem import Problem
from odes.programs import program
from odes.quadrature import Nodes, cloud_rule, gaussian_average

_MOST_TERMS = 2**16
"""Sums for polynomials that have more terms than this are done by quasi-random points."""


def joint(covariance: Covariances) -> Float[Array, "n n"]:
    """S, the covariance of all K + P preactivations."""
    return jnp.block([[covariance.Q, covariance.M], [covariance.M.T, covariance.P]])


@program
def noise_of(problem: Problem, covariance: Covariances, *, sample: int = 0) -> Float[Array, "K K"]:
    r"""$N_{kl} = a_k a_l E[(e^2 + \Delta)\sigma'(\lambda_k)\sigma'(\lambda_l)]$ at given covariances.

    The noise term of the flow is $\theta\kappa^2U^TNU$. One sample's gradient with respect to w_k is g_k x, g_k = a_k e σ'(λ_k);
    N is the second moment of g and so of the gradient in every direction to which no weight points.

    Near machine precision where it is a closed formula or an integral over the plane, 1e-6 for relu units that nearly depend on each
    other; for several units of other links to about 1e-4 where these are close to sums of erf, and else by fixed quasi-random points,
    of which `sample` says which ([`noise_error`][]).
    """
    problem = _near_sum(problem) or problem
    readout, factors = problem.readout, jnp.concatenate([problem.readout, -problem.teacher_readout])
    square = _squared_error(problem, factors, joint(covariance), sample)
    labels = problem.sgd.label_noise * within(problem.student, covariance.Q).cross
    return jnp.outer(readout, readout) * (square + labels)


def noise_error(problem: Problem, covariance: Covariances) -> Float[Array, ""]:
    """The error of [`noise_of`][] relative to its largest entry; 0 where it is a closed formula or an integral over the plane.

    From another set of points where it is done by points; where it is that of sums of erf, from the average over points of what these
    leave out.
    """
    first, close = noise_of(problem, covariance), _near_sum(problem)
    if close is None:
        missing = noise_of(problem, covariance, sample=1) - first
    else:
        factors = jnp.concatenate([problem.readout, -problem.teacher_readout])
        by_points = [_by_points(some, factors, joint(covariance), 0) for some in (problem, close)]
        missing = jnp.outer(problem.readout, problem.readout) * (by_points[0] - by_points[1])
    return jnp.abs(missing).max() / jnp.abs(first).max()


def _near_sum(problem: Problem) -> Problem | None:
    """The problem with links that are sums of erf, where there are several units and no exact average; None where that is not so."""
    single, exact = (
        problem.readout.size + problem.teacher_readout.size == 2,
        has_closed_form(problem.student, problem.teacher),
    )
    return None if single or exact else in_closed_form(problem)


def in_closed_form(problem: Problem) -> Problem | None:
    """The problem with links whose averages are closed formulas and that are those of the problem to 5e-4 of their derivatives
    ([`odes.erfs.nearest_erfs`][]); None where there are none."""
    if has_closed_form(problem.student, problem.teacher):
        return problem
    student, teacher = nearest_erfs(problem.student), nearest_erfs(problem.teacher)
    return None if student is None or teacher is None else problem.replace(student=student, teacher=teacher)


def _squared_error(problem: Problem, factors: Array, covariance: Array, sample: int) -> Float[Array, "K K"]:
    r"""$E[e^2\sigma'(\lambda_k)\sigma'(\lambda_l)]$ by the best rule for the link functions."""
    units = problem.readout.size
    (s, student), (t, teacher) = unscaled(problem.student), unscaled(problem.teacher)
    scales = np.repeat([s, t], [units, factors.size - units])
    scaled = covariance * np.outer(scales, scales)
    own, other = erf_series(problem.student), erf_series(problem.teacher)
    if own is not None and other is not None:
        return _erf_square(units, factors, covariance, own, other)
    if both_are(student, teacher, "relu"):
        return s**2 * _relu_square(units, factors, scaled)
    polynomials = problem.student.hermite is not None and problem.teacher.hermite is not None
    if polynomials and factors.size > 2:
        terms = _mehler_terms(*_polynomials(problem))
        if terms is not None:
            return _polynomial_square(problem, factors, covariance, terms)

    if factors.size == 2:
        return _plane_square(problem, factors, covariance)
    return _by_points(problem, factors, covariance, sample)


def _by_points(problem: Problem, factors: Array, covariance: Array, sample: int) -> Float[Array, "K K"]:
    r"""$E[e^2\sigma'(\lambda_k)\sigma'(\lambda_l)]$ by quasi-random points."""
    units = problem.readout.size

    def integrand(*x: Array) -> Array:
        slopes = [problem.student.derivative(some) for some in x[:units]]
        error = _error(problem, factors, x)
        return jnp.stack([error**2 * slopes[k] * slopes[l] for k, l in zip(*_upper(units), strict=True)])

    *x, weights = _cloud(problem, _growth(problem), sample)(covariance)
    return _symmetric(units, integrand(*x) @ weights)


def _error(problem: Problem, factors: Array, x: Sequence[Array]) -> Array:
    """e at given preactivations."""
    units = problem.readout.size
    images = [*map(problem.student, x[:units]), *map(problem.teacher, x[units:])]
    return sum((c * image for c, image in zip(factors, images, strict=True)), jnp.zeros_like(x[0]))


def _growth(problem: Problem) -> int:
    """The power with which the square of the gradient's amplitude grows."""
    student, teacher = problem.student.growth, problem.teacher.growth
    return 2 * (max(student, teacher) + max(student - 1, 0))


def _cloud(problem: Problem, growth: int, sample: int) -> Callable[[Array], Nodes]:
    units, teachers = problem.units
    return cloud_rule(growth, (problem.student.kinks,) * units + (problem.teacher.kinks,) * teachers, sample)


def _plane_square(problem: Problem, factors: Array, covariance: Array) -> Float[Array, "1 1"]:
    """The average of one student and one teacher unit, in the plane."""
    student, teacher = problem.student, problem.teacher

    def integrand(x: Array, y: Array) -> Array:
        slope, image, target = student.derivative(x) ** 2, student(x), teacher(y)
        return jnp.stack([image**2 * slope, image * target * slope, target**2 * slope])

    rule, smooth = pair_rule(student, teacher, _growth(problem)), not (student.kinked or teacher.kinked)
    (p, c), (_, q) = covariance
    moments = gaussian_average(integrand, p, q, c, rule=rule, smooth=smooth)
    return jnp.reshape(moments @ _weights_of_pairs(factors), (1, 1))


@functools.cache
def _upper(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows and columns of a matrix's upper triangle, as integers of 32 bits, which are right in either precision."""
    rows, columns = np.triu_indices(n)
    return rows.astype(np.int32), columns.astype(np.int32)


def _symmetric(n: int, upper: Array) -> Float[Array, "n n"]:
    """The symmetric matrix with the given upper triangle."""
    place = np.zeros((n, n), int)
    place[_upper(n)] = np.arange(upper.size)
    return upper[np.maximum(place, place.T)]


def _weights_of_pairs(factors: Array) -> Array:
    """c_i c_j for i <= j, twice where i < j."""
    i, j = _upper(factors.size)
    return factors[i] * factors[j] * np.where(i == j, 1.0, 2.0)


def _erf_square(
    units: int, factors: Array, covariance: Array, student: ErfSeries, teacher: ErfSeries
) -> Float[Array, "K K"]:
    r"""$\frac4\pi\det(1 + 2G)^{-1/2}\,(c^T\kappa(T)\,c + c_0^2)$ with $T = S - E(\frac12 + G)^{-1}E^T$, E the columns k and l of S and G
    their rows, for every two terms of the derivatives of two units. It is tilted by k first, then by l,
    $T = S - uu^T - vv^T$ with $u = S_k/(\frac12 + S_{kk})^{1/2}$, $v = (S_l - u_lu)/(\frac12 + S_{ll} - u_l^2)^{1/2}$: without the
    cancellation in the determinant, which took up to 1e-7 of the result at variances of $10^4$.

    The variables are the arguments of all error functions, κ is the matrix of averages of two of them at the covariance T, and $c_0$ is
    the constant part of the error, whose average with the odd rest vanishes. Without case distinctions for equal indices, the I4 of Saad
    & Solla 1995.
    """
    parts = [student] * units + [teacher] * (factors.size - units)
    owner = np.repeat(np.arange(len(parts)), [len(part.scales) for part in parts])
    scales, weights = (np.concatenate([getattr(part, name) for part in parts]) for name in ("scales", "weights"))
    S = covariance if owner.size == len(parts) else covariance[owner][:, owner]
    S, c, terms = S * np.outer(scales, scales), factors[owner] * weights, units * len(student.scales)
    reach = c.size // 2 if c.size >= _LONG_ROW else 0

    def further(x: Array) -> Array:
        """With so many more along the last axis as rows of angles that run around a circle reach."""
        return jnp.concatenate([x, x[..., :reach]], axis=-1)

    rows, variances, (k, l) = further(S), diagonal(S), _upper(terms)
    root = jnp.sqrt(variances[k] + 0.5)
    u = rows[k] / root[:, None]
    across = S[k, l] / root
    rest = jnp.sqrt(variances[l] + 0.5 - across**2)
    v = (rows[l] - across[:, None] * u) / rest[:, None]
    shrink = jax.lax.rsqrt(further(variances)[None] + 0.5 - u**2 - v**2)
    angles = _sum_of_angles(S, further(c), shrink, u * shrink, v * shrink)
    square = angles * (4 / np.pi**2)
    if any(part.offset for part in parts):
        square += (factors @ np.array([part.offset for part in parts])) ** 2 * (2 / np.pi)
    slopes = weights[:terms] * scales[:terms]
    every = _symmetric(terms, square / (root * rest)) * np.outer(slopes, slopes)
    return every.reshape(units, -1, units, len(student.scales)).sum((1, 3))


_LONG_ROW = 16
"""Loops over fewer numbers than this are not vectorised."""


def _sum_of_angles(S: Array, c: Array, shrink: Array, u: Array, v: Array) -> Float[Array, " pairs"]:
    r"""$\sum_{ij}c_ic_j\arcsin(S_{ij}h_ih_j - u_iu_j - v_iv_j)$ for every row of h (`shrink`), u and v.

    Where c, h, u and v go on around a circle, in rows of one length: every i with the t-th after it, for t up to half way round, where
    each pair is met twice. Else in one row, each i with every j from i on. Both by slices, since gathers take longer than the arcsines.
    """
    n = len(S)
    reach = c.size - n

    def sines(some: Array, i: slice, j: slice) -> Array:
        both, first, second = (x[:, i] * x[:, j] for x in (shrink, u, v))
        return some[None] * both - first - second

    if not reach:
        every = jnp.concatenate([sines(S[i, i:], slice(i, i + 1), slice(i, n)) for i in range(n)], axis=1)
        return _arcsin(every.ravel()).reshape(every.shape) @ _weights_of_pairs(c)

    t, i = np.indices((reach + 1, n), dtype=np.int32)
    pairs = S[i, (i + t) % n]

    def row(t: int) -> Array:
        weight = c[t : t + n] * (1 if t == 0 or 2 * t == n else 2)
        return weight[None] * _arcsin(sines(pairs[t], slice(n), slice(t, t + n)))

    return functools.reduce(jnp.add, map(row, range(reach + 1))) @ c[:n]


_ASIN = (
    (
        1 / 6,
        -3.25565818622400915405e-01,
        2.01212532134862925881e-01,
        -4.00555345006794114027e-02,
        7.91534994289814532176e-04,
        3.47933107596021167570e-05,
    ),
    (1.0, -2.40339491173441421878, 2.02094576023350569471, -6.88283971605453293030e-01, 7.70381505559019352791e-02),
)
"""Numerator and denominator of $(\\arcsin\\sqrt z - \\sqrt z)/z^{3/2}$ for z up to 1/4, lowest power first (FreeBSD's libm, e_asin.c)."""


def _arcsin(x: Array) -> Array:
    """arcsin to rounding, half the time of XLA's own, which takes most of that of N; for |x| < 1."""
    size = jnp.abs(x)
    large = size > 0.5
    z = jnp.where(large, (1 - size) / 2, size**2)
    root = jnp.where(large, jnp.sqrt(jnp.where(large, z, 1)), size)
    numerator, denominator = (
        functools.reduce(lambda total, a: a + z * total, reversed(series), jnp.zeros_like(z)) for series in _ASIN
    )
    angle = root + root * z * numerator / denominator
    angle = jnp.where(large, np.pi / 2 - 2 * angle, angle)
    return jnp.where(x < 0, -angle, angle)  # not the sign bit of x: the slope at -0 is 1


def _relu_square(units: int, factors: Array, covariance: Array) -> Float[Array, "K K"]:
    """Sums of E[x_i x_j] over the part of space in which x_i, x_j, x_k and x_l are positive."""
    pairs = list(zip(*_upper(factors.size), strict=True))
    groups: dict[tuple[int, ...], list[tuple[int, int, tuple[int, ...]]]] = {}
    for row, (k, l) in enumerate(zip(*_upper(units), strict=True)):
        for column, (i, j) in enumerate(pairs):
            inside = list(dict.fromkeys((int(i), int(j), int(k), int(l))))
            shape = (len(inside), inside.index(int(j)))
            groups.setdefault(shape, []).append((row, column, tuple(inside)))
    moments = jnp.zeros((units * (units + 1) // 2, len(pairs)), covariance.dtype)
    for (_, j), members in groups.items():
        rows, columns, inside = (np.array(some) for some in zip(*members, strict=True))
        parts = covariance[inside[:, :, None], inside[:, None, :]]
        moments = moments.at[rows, columns].set(jax.vmap(functools.partial(half_moments, j=j))(parts))
    return _symmetric(units, moments @ _weights_of_pairs(factors))


Series = tuple[float, ...]


def _polynomials(problem: Problem) -> tuple[Series, Series, Series]:
    """The Hermite series of σ', σ and φ."""
    student, teacher = problem.student.hermite, problem.teacher.hermite
    assert student is not None and teacher is not None
    slope = tuple(hermite_e.hermeder(student).tolist()) or (0.0,)
    return slope, student, teacher


def _parity(series: Series) -> int | None:
    """0 for an even polynomial, 1 for an odd one, None for others."""
    odd, even = any(series[1::2]), any(series[::2])
    return None if odd and even else int(odd)


@functools.cache
def _mehler_terms(slope: Series, student: Series, teacher: Series) -> tuple[np.ndarray, np.ndarray] | None:
    """The exponents (terms, 6) of the covariances of six pairs of (k, l, i, j) and the coefficients 1 / prod m!; None if too many.

    Of the terms in which every variable occurs no more often than its polynomial has derivatives. Those that vanish by
    parity for student and teacher alike are left out.
    """
    most = [len(slope) - 1] * 2 + [max(len(student), len(teacher)) - 1] * 2
    inner, outer = _parity(slope), _parity(student)
    outer = outer if outer == _parity(teacher) else None
    parities = [inner, inner, outer, outer]
    edges, terms = list(itertools.combinations(range(4), 2)), []

    def extend(chosen: tuple[int, ...], left: list[int]) -> bool:
        if len(chosen) == len(edges):
            odd = [(full - rest) % 2 for full, rest in zip(most, left, strict=True)]
            if all(want is None or want == is_odd for want, is_odd in zip(parities, odd, strict=True)):
                terms.append(chosen)
            return len(terms) <= _MOST_TERMS
        a, b = edges[len(chosen)]
        for m in range(min(left[a], left[b]) + 1):
            rest = [some - m * (n in (a, b)) for n, some in enumerate(left)]
            if not extend((*chosen, m), rest):
                return False
        return True

    if not extend((), most):
        return None
    exponents = np.array(terms)
    factorials = np.array([math.factorial(m) for m in range(max(most) + 1)], float)
    return exponents, 1 / factorials[exponents].prod(axis=1)


def _polynomial_square(
    problem: Problem, factors: Array, covariance: Array, terms: tuple[np.ndarray, np.ndarray]
) -> Float[Array, "K K"]:
    r"""Mehler's sum of four variables, with a, b running over k, l, i, j and $n_a$ the sum of all $m_{ab}$,

    $$E\Big[\prod_af_a(x_a)\Big] = \sum_m\prod_{a<b}\frac{S_{ab}^{m_{ab}}}{m_{ab}!}\prod_aE\big[f_a^{(n_a)}(x_a)\big].$$
    """
    units, (exponents, coefficients) = problem.readout.size, terms
    slope, student, teacher = _polynomials(problem)
    edges, variances = list(itertools.combinations(range(4), 2)), diagonal(covariance)
    length = max(map(len, (slope, student, teacher)))

    def means(series: Series, p: Array) -> Array:
        derivatives = mean_derivatives(series, p)
        return jnp.pad(derivatives, (0, length - derivatives.size))

    along = jax.vmap(functools.partial(means, slope))(variances[:units])
    images = jnp.concatenate(
        [
            jax.vmap(functools.partial(means, student))(variances[:units]),
            jax.vmap(functools.partial(means, teacher))(variances[units:]),
        ]
    )
    pairs, outer = _upper(units), _upper(factors.size)
    first, second = np.indices((pairs[0].size, outer[0].size)).reshape(2, -1)
    variables = [pairs[0][first], pairs[1][first], outer[0][second], outer[1][second]]
    occurs = [sum(exponents[:, e] for e, pair in enumerate(edges) if a in pair) for a in range(4)]
    total = jnp.asarray(coefficients, covariance.dtype)[None]
    for a, table in enumerate([along, along, images, images]):
        total = total * table[variables[a]][:, occurs[a]]
    for e, (a, b) in enumerate(edges):
        entry = covariance[variables[a], variables[b]][:, None]
        powers = jnp.cumprod(
            jnp.concatenate([jnp.ones_like(entry), jnp.broadcast_to(entry, (entry.size, length))], 1), axis=1
        )
        total = total * powers[:, exponents[:, e]]
    moments = total.sum(axis=1).reshape(pairs[0].size, outer[0].size)
    return _symmetric(units, moments @ _weights_of_pairs(factors))


def kurtosis_of(problem: Problem, covariance: Covariances) -> Float[Array, " K"]:
    r"""$E[g_k^4]/E[g_k^2]^2$ of every unit's amplitude $g_k = a_k(e - \sqrt\Delta z)\sigma'(\lambda_k)$ in one sample's gradient.

    3 for a Gaussian, thousands for polynomials: how many samples a batch needs until its squared amplitude is sharp. For several
    units by quasi-random points, which see less of heavy tails than there is.
    """
    noise, factors = problem.sgd.label_noise, jnp.concatenate([problem.readout, -problem.teacher_readout])

    def integrand(*x: Array) -> Array:
        square = _error(problem, factors, x) ** 2
        noisy = square**2 + 6 * noise * square + 3 * noise**2
        slopes = [problem.student.derivative(some) ** 2 for some in x[: problem.readout.size]]
        return jnp.stack([(square + noise) * slope for slope in slopes] + [noisy * slope**2 for slope in slopes])

    growth, S = 2 * _growth(problem), joint(covariance)
    if factors.size == 2:
        rule = pair_rule(problem.student, problem.teacher, growth)
        moments = gaussian_average(integrand, S[0, 0], S[1, 1], S[0, 1], rule=rule, smooth=False)
    else:
        *x, weights = _cloud(problem, growth, sample=0)(S)
        moments = integrand(*x) @ weights
    second, fourth = jnp.split(moments, 2)
    return fourth / second**2
