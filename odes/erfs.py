r"""Link functions that are sums of error functions, or close to one: their Gaussian averages are closed formulas.

With $f(x) = \alpha + \sum_m\beta_m\,\mathrm{erf}(s_mx)$ every average over any numbers of variables that the dynamics needs is a sum of
arcsines. Sigmoid links are close to such sums: the derivative of the logistic function is a mixture of Gaussians, of which few terms are
near to all.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from odes.activations import ATOMS, Activation, HermiteSeries, LinearCombination, Scaled

_TERMS = 3
"""A function is approximated by so many error functions."""

_CLOSE = 5e-4
"""Its derivative may be off by this part, in the root mean square over a Gaussian variable of any of the variances below."""

_VARIANCES = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 9.0)

_END, _POINTS = 14.0, 2001
"""Functions are compared at so many points up to this argument, on both sides of 0."""


@dataclasses.dataclass(frozen=True)
class ErfSeries:
    r"""$f(x) = \alpha + \sum_m\beta_m\,\mathrm{erf}(s_mx)$: the `offset` α, the `weights` β and the `scales` s."""

    offset: float
    weights: tuple[float, ...]
    scales: tuple[float, ...]

    def scaled(self, scale: float, weight: float = 1.0) -> "ErfSeries":
        """The series of `weight` f(`scale` x)."""
        weights = tuple(weight * beta for beta in self.weights)
        return ErfSeries(weight * self.offset, weights, tuple(scale * s for s in self.scales))

    @property
    def link(self) -> Activation:
        """The series as a link function."""
        erf, one = ATOMS["erf"], HermiteSeries((self.offset,))
        terms = [(1.0, one)] if self.offset else []
        terms += [(beta, Scaled(erf, s)) for beta, s in zip(self.weights, self.scales, strict=True)]
        name = "+".join(f"{beta:g}*erf({s:g}*x)" for beta, s in zip(self.weights, self.scales, strict=True))
        return Activation(f"{self.offset:g}+{name}" if self.offset else name, LinearCombination(tuple(terms)))


def erf_series(link: Activation) -> ErfSeries | None:
    """The series that a link function is; None for one that is none, or a constant.

    >>> from odes.activations import activation
    >>> erf_series(activation("erf(2*x)+0.5*erf"))
    ErfSeries(offset=0.0, weights=(1.0, 0.5), scales=(2.0, 1.0))
    >>> erf_series(activation("tanh")) is None
    True
    """
    series = _series(link.function)
    return series if series is not None and series.weights else None


def _series(function) -> ErfSeries | None:
    if function == ATOMS["erf"].function:
        return ErfSeries(0.0, (1.0,), (1.0,))
    if isinstance(function, HermiteSeries) and len(function.coefficients) == 1:
        return ErfSeries(function.coefficients[0], (), ())
    if isinstance(function, Scaled):
        inner = _series(function.function)
        return None if inner is None else inner.scaled(function.scale)
    if isinstance(function, LinearCombination):
        parts = [(c, _series(part)) for c, part in function.terms]
        known = [part.scaled(1.0, c) for c, part in parts if part is not None]
        if len(known) == len(parts):
            weights, scales = (sum((getattr(part, name) for part in known), ()) for name in ("weights", "scales"))
            return ErfSeries(sum(part.offset for part in known), weights, scales)
    return None


def nearest_erfs(link: Activation) -> Activation | None:
    r"""A link function whose derivative is everywhere close to that of another, and which is a sum of three error functions and a constant.

    It is fitted to f and f' by least squares. Its derivative is off by less than 5e-4, relative to $E[f'^2]^{1/2}$, in the root mean
    square over a Gaussian variable of every variance from 0.1 to 9 (of a scaled argument, of that argument): by 1e-4 to 4e-4 for tanh. None
    where no such sum is found, as for links with kinks, those that grow, and those that are neither odd nor odd about a constant. One
    that is such a sum is passed through.
    """
    if erf_series(link) is not None:
        return link
    scale, base = (link.function.scale, link.function.base) if isinstance(link.function, Scaled) else (1.0, link)
    series = None if base.kinked or base.hermite is not None else _fitted(base)
    return None if series is None else series.scaled(scale).link


@functools.cache
def _fitted(link: Activation) -> ErfSeries | None:
    from scipy import optimize, special

    x = np.linspace(0, _END, _POINTS)
    with jax.ensure_compile_time_eval():
        both = jnp.asarray(np.concatenate([-x[::-1], x]))
        values, slopes = (np.asarray(f(both), float) for f in (link, link.derivative))
    left, right = np.split(values, 2)
    offset, odd, slope = float(right[0]), (right - left[::-1]) / 2, slopes[_POINTS:]
    gaussians = [np.exp(-(x**2) / (2 * p)) / np.sqrt(p) for p in _VARIANCES]
    if not np.all(np.isfinite(slopes)) or not slope[0] > 0:
        return None
    weights = np.sqrt(np.mean(gaussians, axis=0))

    def parts(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        beta, s = numbers[:_TERMS], np.exp(numbers[_TERMS:])
        below = 2 / np.sqrt(np.pi) * np.exp(-(np.outer(s, x) ** 2)) * s[:, None]
        return beta @ special.erf(np.outer(s, x)), beta @ below

    def residual(numbers: np.ndarray) -> np.ndarray:
        value, below = parts(numbers)
        return np.concatenate([weights * (value - odd), weights * (below - slope)])

    steep = slope[0] / max(abs(odd[-1]), 1e-300)
    first = np.concatenate([np.full(_TERMS, odd[-1] / _TERMS), np.log(steep) + np.linspace(-0.7, 0.4, _TERMS)])
    found = optimize.least_squares(residual, first, xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=2000).x
    value, below = parts(found)
    whole = np.concatenate([-value[::-1], value]) + offset - values
    both_slopes = np.concatenate([below[::-1], below])
    for gaussian in gaussians:
        weight = np.concatenate([gaussian[::-1], gaussian])
        size = np.sqrt(weight @ slopes**2)
        if (
            not np.sqrt(weight @ (both_slopes - slopes) ** 2) <= _CLOSE * size
            or not np.sqrt(weight @ whole**2) <= _CLOSE * size
        ):
            return None
    scales = np.exp(found[_TERMS:])
    return ErfSeries(
        offset if abs(offset) > _CLOSE * abs(odd[-1]) else 0.0, tuple(found[:_TERMS].tolist()), tuple(scales.tolist())
    )
