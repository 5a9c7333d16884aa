"""Independent computations that the tests compare with: NumPy and SciPy only, nothing of the project."""

import math

import numpy as np
from scipy import integrate, special

PANELS, ORDER, END = 24, 10, 12.5


def _panels(start, end):
    """Composite Gauss-Legendre nodes and weights from `start` to `end` (arrays of one shape), panels growing from `start`."""
    x, w = np.polynomial.legendre.leggauss(ORDER)
    edges = np.concatenate([[0], np.geomspace(1e-7, 0.04, PANELS), np.linspace(0.04, 1, PANELS)[1:]])
    unit = (edges[:-1, None] + np.diff(edges)[:, None] * (x + 1) / 2).ravel()
    weights = (np.diff(edges)[:, None] * w / 2).ravel()
    length = np.asarray(end - start)[..., None]
    return np.asarray(start)[..., None] + length * unit, np.abs(length) * weights


def pair_average(function, p, q, c):
    """E[F(x, y)] by panels in whitened coordinates that start where x = 0 and where y = 0; F may have kinks there.

    F gets x as a column beside the rows of y, and may return several numbers, in the first axis.
    """
    slope, width = c / np.sqrt(p), np.sqrt(max(q - c**2 / p, 0.0))
    total = 0.0
    for end in (-END, END):
        z, wz = _panels(np.array(0.0), np.array(end))
        x = np.sqrt(p) * z
        density = wz * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
        if width == 0:
            total += function(x[:, None], slope * z[:, None])[..., 0] @ density
            continue
        cut = np.clip(-slope * z / width, -END, END)
        for inner_end in (-END, END):
            s, ws = _panels(cut, np.full_like(z, inner_end))
            inner = ws * np.exp(-(s**2) / 2) / np.sqrt(2 * np.pi)
            y = slope * z[:, None] + width * s
            total += np.sum(function(x[:, None], y) * inner, axis=-1) @ density
    return total


def _hermite(k):
    return lambda x: special.eval_hermitenorm(k, x)


def _sigmoid_slope(x):
    return special.expit(x) * special.expit(-x)


FUNCTIONS = {
    "linear": (lambda x: x, lambda x: np.ones_like(x)),
    "relu": (lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(float)),
    "relu^2": (lambda x: np.maximum(x, 0) ** 2, lambda x: 2 * np.maximum(x, 0)),
    "erf": (special.erf, lambda x: 2 / np.sqrt(np.pi) * np.exp(-(x**2))),
    "erf^2": (lambda x: special.erf(x) ** 2, lambda x: 4 / np.sqrt(np.pi) * np.exp(-(x**2)) * special.erf(x)),
    "sigmoid": (special.expit, _sigmoid_slope),
    "tanh": (np.tanh, lambda x: np.cosh(x) ** -2.0),
    "tanh^2": (lambda x: np.tanh(x) ** 2, lambda x: 2 * np.tanh(x) * np.cosh(x) ** -2.0),
    "He2": (_hermite(2), lambda x: 2 * x),
    "He3": (_hermite(3), lambda x: 3 * _hermite(2)(x)),
    "He5": (_hermite(5), lambda x: 5 * _hermite(4)(x)),
    "He3^2": (lambda x: _hermite(3)(x) ** 2, lambda x: 6 * _hermite(3)(x) * _hermite(2)(x)),
    "He2+0.5*He4": (lambda x: _hermite(2)(x) + 0.5 * _hermite(4)(x), lambda x: 2 * x + 2 * _hermite(3)(x)),
    "erf+relu": (lambda x: special.erf(x) + np.maximum(x, 0), lambda x: 2 / np.sqrt(np.pi) * np.exp(-(x**2)) + (x > 0)),
    "tanh+He7": (lambda x: np.tanh(x) + _hermite(7)(x), lambda x: np.cosh(x) ** -2.0 + 7 * _hermite(6)(x)),
}
"""Link functions and their derivatives, written in NumPy."""

REFERENCE_POINTS = [
    # activation, teacher, family, mu, C, D, noise, loss, tau (kappa = chi = 1), each known to the digits shown
    ("linear", None, "aligned", 0.5, 1, 1, 0.25, 0.125, 4.828427125),
    ("relu", None, "aligned", 0.5, 0.5, 0.5, 0.125, 0.0625, 9.656854249),
    ("relu", None, "aligned", 0.8, 0.5, 0.5, 0.02, 0.01, 51.92582404),
    ("relu", None, "mixture", 0.5, 0.375, 0.3408450569, 0.1704225285, 0.1079225285, 6.862958665),
    ("erf", None, "aligned", 0.5, 0.680575164, 1.053927653, 0.04668701684, 0.02794735626, 45.59417214),
    ("erf", None, "mixture", 0.5, 0.5694100347, 0.6522576143, 0.2249473144, 0.1312257211, 5.119881445),
    ("sigmoid", None, "aligned", 0.5, 0.04958100298, 0.06064509159, 0.0004130219982, 0.004148476115, 178.6088705),
    ("tanh", None, "aligned", 0.8, 0.5009377093, 0.587954607, 0.002526779613, 0.002724308557, 630.6787931),
    ("He2", None, "aligned", 0.5, 2, -0.5, 8.4375, 0.84375, 0.3977967969),
    ("He3", None, "aligned", 0.3, 1.62, 6.1245, 12.75548157, 3.1755675, 129.8067534),
    ("He3", None, "mixture", 0.5, 4.5, 2.25, 174.65625, 3.1875, 0.3836999814),
    ("erf", "erf^2", "aligned", 0.5, 0, 0.6002108774, 0.2954734017, 0.2764918154, 8.044551184),
]

HE3_CRITICAL = 0.320724347323
"""The first strength at which the gradient of aligned He3 vanishes: a root of 4 mu^2 + 2 mu - 1 - 5 mu^4."""


def hermite_coefficient(function, k, variance):
    """E[f(sqrt(variance) z) He_k(z)] / k! by adaptive quadrature, for a function that may have a kink at 0."""

    def integrand(z):
        return function(np.sqrt(variance) * np.array(z)) * special.eval_hermitenorm(k, z) * np.exp(-(z**2) / 2)

    halves = [integrate.quad(integrand, a, b, epsabs=1e-11 * math.factorial(k))[0] for a, b in ((-14, 0), (0, 14))]
    return sum(halves) / math.sqrt(2 * math.pi) / math.factorial(k)


def aligned_gradient(k):
    """A(mu) = C - D mu of aligned He_k from NumPy's exact Hermite algebra, as a polynomial in mu."""
    # He_n(mu x) = sum_i mu^(n-2i) (mu^2-1)^i n! / (2^i i! (n-2i)!) He_(n-2i)(x)
    P = np.polynomial.Polynomial

    def expansion(n):
        terms = {}
        for i in range(n // 2 + 1):
            coefficient = math.factorial(n) / (2**i * math.factorial(i) * math.factorial(n - 2 * i))
            terms[n - 2 * i] = coefficient * P([0, 1]) ** (n - 2 * i) * P([-1, 0, 1]) ** i
        return terms

    def inner(a, b):
        return sum((math.factorial(j) * a[j] * b[j] for j in a.keys() & b.keys()), P([0.0]))

    own, slope, bend = expansion(k), expansion(k - 1), expansion(k - 2)
    target, target_slope = {k: P([1.0])}, {k - 1: P([1.0])}
    C = k**2 * inner(slope, target_slope)
    D = k**2 * inner(slope, slope) + k * (k - 1) * (inner(bend, own) - inner(bend, target))
    return C - D * P([0, 1])


def erf_trajectory(rho, c, start, t1):
    """Rank one, erf, no noise: (u, m, s) by SciPy from a right-hand side written out in NumPy, and the loss, of time.

    `start` are u, m and s at time 0.
    """

    def averages(y):
        u, m, s = y
        Q, M = rho**2 + 2 * u * s + u**2, rho * c + u * m
        C = 4 / np.pi / np.sqrt((1 + 2 * Q) * 3 - 4 * M**2)
        slope = 4 / np.pi / np.sqrt((1 + 2 * Q) ** 2 - 4 * Q**2)
        D = slope - 2 * Q / (1 + 2 * Q) * slope + 2 * M / (1 + 2 * Q) * C
        own, cross = np.arcsin(2 * Q / (1 + 2 * Q)), np.arcsin(2 * M / np.sqrt(3 * (1 + 2 * Q)))
        return C, D, (own - 2 * cross + np.arcsin(2 / 3)) / np.pi

    def rhs(t, y):
        u, m, s = y
        C, D, _ = averages(y)
        J = D * (s + u) - C * m
        h = -u * J
        return [-J, -u * (D * (rho * c + u * m) - C) - h * m, -u * (D * (rho**2 + u * s) - C * rho * c) - h * s]

    solution = integrate.solve_ivp(rhs, (0, t1), start, method="DOP853", rtol=1e-12, atol=1e-14, dense_output=True)
    return solution.sol, lambda t: averages(solution.sol(t))[2]
