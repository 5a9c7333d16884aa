r"""Hermite expansion of a link function at any variance, and its information exponent."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, ScalarLike

from odes import Activation, activation, gaussian_average
from odes.activations import HermiteSeries
from odes.arguments import ArgumentError
from odes.gaussian import mean_derivatives
from odes.quadrature import line_rule


def hermite_coefficients(
    name: str | Activation, order: int, *, variance: ScalarLike = 1.0
) -> Float[Array, " coefficients"]:
    r"""The coefficients $a_k(r)$, k = 0 ... `order`, of $f(\sqrt r\, z) = \sum_k a_k(r)\, \mathrm{He}_k(z)$.

    $$a_k(r) = \frac{1}{k!} E_{z \sim \mathcal N(0,1)}[f(\sqrt r\, z)\, \mathrm{He}_k(z)]$$

    r is `variance`, the squared norm of the weights. Exact for polynomials, where $a_k(r) = r^{k/2} E[f^{(k)}]/k!$;
    graded quadrature otherwise, to about 1e-12 of $\sqrt{E[f^2]/k!}$ for k up to 20.

    >>> hermite_coefficients("He2", 2, variance=3.0).round(9).tolist()
    [2.0, 0.0, 3.0]

    **Raises** ArgumentError if `order` is negative.
    """
    if order < 0:
        raise ArgumentError("order", f"must be at least 0, but is {order}")
    f = activation(name)
    variance = jnp.asarray(variance, jnp.result_type(float))
    factorials = np.cumprod(np.concatenate([[1.0], np.arange(1.0, order + 1)]))
    if f.hermite is not None:
        means = mean_derivatives(f.hermite, variance)[: order + 1]
        means = jnp.concatenate([means, jnp.zeros(order + 1 - means.size, means.dtype)])
        return means * jnp.sqrt(variance) ** jnp.arange(order + 1.0) / factorials
    basis = [HermiteSeries(tuple(np.eye(order + 1)[k] / factorials[k])) for k in range(order + 1)]
    x, weights = line_rule(f.growth + order, f.kinks)(variance)
    z, image = x / jnp.sqrt(variance), f(x)
    return jnp.stack([jnp.sum(weights * image * polynomial(z)) for polynomial in basis])


def information_exponent(name: str | Activation, *, max_order: int = 20, tolerance: float | None = None) -> int | None:
    r"""The smallest k >= 1 with $a_k \ne 0$ (Ben Arous et al. 2021); None if there is none up to `max_order`.

    A coefficient counts as zero if $\sqrt{k!}\,|a_k|$ is below `tolerance` (a tenth of the root of the
    floating point type's epsilon unless given) times $\sqrt{E[f^2]}$.

    >>> information_exponent("He3"), information_exponent("erf"), information_exponent("erf^2")
    (3, 1, 2)
    """
    f = activation(name)
    norm = np.sqrt(float(gaussian_average(lambda x: f(x)[None] ** 2, 1.0, rule=line_rule(2 * f.growth, f.kinks))[0]))
    coefficients = np.asarray(hermite_coefficients(f, max_order))
    sizes = np.abs(coefficients) * np.sqrt(np.cumprod(np.concatenate([[1.0], np.arange(1.0, max_order + 1)])))
    if tolerance is None:
        tolerance = 0.1 * float(np.sqrt(jnp.finfo(jnp.result_type(float)).eps))
    present = np.flatnonzero(sizes[1:] > tolerance * norm)
    return int(present[0]) + 1 if present.size else None
