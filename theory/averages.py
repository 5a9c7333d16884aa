"""Means of passage times over starts of which the amplitude's law is known."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from odes.quadrature import safe_sqrt
from odes.shown import Shown


class ControlledMean(Shown):
    r"""The mean of $T_i$ over starts with weights $p_i$, with the logarithms $\log a_i$ of their amplitudes as a control variate.

    - `mean`: $\sum_ip_iT_i + b(\sum_ip_i\log a_i - E\log a)$ with the slope b of least squares; `slope`: b, 0 where not all arrive
        or all amplitudes are the same;
    - `rest` (n,): what is left of every $T_i$, less the mean, beyond $-b\log a_i$; `variance`: $\sum_ip_i$ rest$_i^2$;
    - `reached`: the part of the weights whose starts arrive.
    """

    mean: Float[Array, ""]
    slope: Float[Array, ""]
    rest: Float[Array, " n"]
    variance: Float[Array, ""]
    reached: Float[Array, ""]

    def error(self, count: Float[Array, ""]) -> Float[Array, ""]:
        """The standard error of the mean over so many independent starts."""
        return safe_sqrt(self.variance / count)


def controlled_mean(
    times: Float[Array, " n"], logs: Float[Array, " n"], expected: Float[Array, ""], weights: Float[Array, " n"]
) -> ControlledMean:
    r"""The mean of `times`, NaN for starts that do not arrive and do not count, by the logarithms of amplitudes whose mean is `expected`.

    A single start whose logarithm is the expected one has its own time for a mean.
    """
    arrived = jnp.isfinite(times)
    reached = jnp.sum(jnp.where(arrived, weights, 0))
    share = jnp.where(arrived, weights, 0) / jnp.where(reached > 0, reached, 1)
    centre, middle = share @ jnp.where(arrived, times, 0), share @ logs
    late, large = jnp.where(arrived, times - centre, 0), logs - middle
    spread, every = share @ large**2, jnp.all(arrived | (weights == 0))
    known = every & (spread > 0)
    slope = jnp.where(known, -(share @ (late * large)) / jnp.where(known, spread, 1), 0)
    rest = late + slope * large
    return ControlledMean(centre + slope * (middle - expected), slope, rest, share @ rest**2, reached)
