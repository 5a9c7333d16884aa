r"""Critical strengths: where the gradient at the pretrained weights vanishes and the search phase lasts forever."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from odes import Activation, Family, gradient_at, pretrained, self_moments
from odes.arguments import require
from odes.shown import Shown

_GOLDEN = 0.6180339887498949


class CriticalPoints(Shown):
    r"""The zeros of the gradient along a family of pretrained weights; unused places hold NaN.

    - `strength` (n,): the family's parameter at each zero, increasing;
    - `prefactor` (n,): A in $\tau \simeq A / (\mu - \mu_c)^2$; NaN where D <= 0: the law is another one,
      and τ stays finite if D < 0.
    """

    strength: Float[Array, " n"]
    prefactor: Float[Array, " n"]


@eqx.filter_jit
def critical_points(
    family: str | Activation | Family,
    *,
    low: ScalarLike,
    high: ScalarLike,
    alignment: ScalarLike | None = 1.0,
    resolution: int = 512,
    size: int = 24,
) -> CriticalPoints:
    r"""The strengths in [low, high] where $\nabla_W\ell(w_0) = C\omega^* - Dw_0$ vanishes, and how τ diverges at each.

    The weights are $w_0 = \mu\,(c\,\omega^* + \sqrt{1-c^2}\,\xi)$ with c = `alignment`, or, if `alignment` is None,
    $w_0 = \mu\,\omega^* + (1 - \mu)\,\xi$. The local minima of the gradient's length on `resolution` points are refined by
    golden sections and Gauss-Newton steps to rounding error and kept where the length is zero. Near a simple zero

    $$\tau \simeq \frac{D}{|\partial_\mu(C\omega^* - Dw_0)|^2}\,\frac{1}{(\mu - \mu_c)^2} \quad (D > 0),$$

    whatever χκ² is. Works under jit and vmap, so the number of places, `size`, is fixed; local minima of the length
    count among them. Two zeros closer than (high - low)/resolution may be found as one.

    >>> critical_points("He3", low=0.1, high=0.9).strength[0].round(12).tolist()
    0.320724347323
    """
    require("low", low, "positive", lambda x: x > 0)
    members = Family.of(family)

    def at(mu: Array) -> tuple[Array, Array]:
        """The gradient's components along ω* and ξ; the terms that cancel in them, and D."""
        if alignment is None:
            problem, along, across = members.mixture(mu), mu, 1 - mu
        else:
            problem = members.at(mu, alignment)
            cosine = jnp.asarray(alignment, mu.dtype)
            along, across = mu * cosine, mu * jnp.sqrt(1 - cosine**2)
        gradient = gradient_at(problem, pretrained(problem))
        C, D = gradient.C[0, 0], gradient.D[0, 0]
        square = along**2 + across**2
        curved = self_moments(problem.student, square).cross * jnp.sqrt(square)  # D itself is a difference
        return jnp.stack([C - D * along, -D * across]), jnp.stack([C, D * along, D * across, curved, D])

    def length(mu: Array) -> Array:
        return jnp.linalg.norm(at(mu)[0])

    def section(_, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        left, right = bracket
        inner = jnp.stack([right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)])
        inner_lengths = jax.vmap(jax.vmap(length))(inner)
        go_left = inner_lengths[0] < inner_lengths[1]
        return jnp.where(go_left, left, inner[0]), jnp.where(go_left, inner[1], right)

    def gauss_newton(mu: Array) -> Array:
        residual, slope = jax.jvp(lambda x: at(x)[0], (mu,), (jnp.ones_like(mu),))
        steepness = slope @ slope
        return mu - residual @ slope / jnp.where(steepness > 0, steepness, 1)

    low, high = (jnp.asarray(x, jnp.result_type(float)) for x in (low, high))
    spacing = (high - low) / (resolution - 1)
    grid = low + spacing * jnp.arange(-1.0, resolution + 1.0)
    grid = jnp.maximum(grid, low / 2)
    lengths = jax.vmap(length)(grid)
    lowest = (lengths[1:-1] <= lengths[:-2]) & (lengths[1:-1] < lengths[2:])
    (places,) = jnp.nonzero(lowest, size=size, fill_value=-1)
    brackets = grid[places], grid[places + 2]
    left, right = jax.lax.fori_loop(0, 16, section, brackets)
    zeros = jax.lax.fori_loop(0, 5, lambda _, mu: jax.vmap(gauss_newton)(mu), (left + right) / 2)
    (residuals, parts), (slopes, _) = jax.vmap(lambda mu: jax.jvp(at, (mu,), (jnp.ones_like(mu),)))(zeros)
    eps = jnp.finfo(zeros.dtype).eps
    inside = (zeros >= low - 1e4 * eps * high) & (zeros <= high + 1e4 * eps * high)
    vanishing = jnp.linalg.norm(residuals, axis=1) < 1e3 * eps * jnp.linalg.norm(parts[:, :4], axis=1)
    found = (places >= 0) & inside & vanishing
    D = parts[:, 4]
    prefactors = jnp.where(found & (D > 0), D / jnp.sum(slopes**2, axis=1), jnp.nan)
    order = jnp.argsort(jnp.where(found, zeros, jnp.inf))
    return CriticalPoints(jnp.where(found, zeros, jnp.nan)[order], prefactors[order])
