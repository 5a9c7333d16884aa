"""Independent computations that the tests compare with: NumPy and SciPy only, nothing of the project."""

import numpy as np
from scipy import special

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
    """E[F(x, y)] by panels in whitened coordinates that start where x = 0 and where y = 0; F may have kinks there."""
    slope, width = c / np.sqrt(p), np.sqrt(max(q - c**2 / p, 0.0))
    total = 0.0
    for end in (-END, END):
        z, wz = _panels(np.array(0.0), np.array(end))
        x = np.sqrt(p) * z
        density = wz * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
        if width == 0:
            total += np.sum(density * function(x, slope * z))
            continue
        cut = np.clip(-slope * z / width, -END, END)
        for inner_end in (-END, END):
            s, ws = _panels(cut, np.full_like(z, inner_end))
            inner = ws * np.exp(-(s**2) / 2) / np.sqrt(2 * np.pi)
            y = slope * z[:, None] + width * s
            total += np.sum(density[:, None] * inner * function(np.broadcast_to(x[:, None], y.shape), y))
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
