r"""Critical points: where the gradient at the pretrained weights vanishes and the search phase lasts forever."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, ScalarLike

from odes import Activation, Family, Problem, gradient_at, pretrained, self_moments
from odes.arguments import require, scalar, within_one
from odes.overlaps import orthonormal_components
from odes.programs import program
from odes.shown import Shown

_GOLDEN = 0.6180339887498949


class CriticalPoints(Shown):
    r"""The zeros of the gradient along a family of pretrained weights; unused places hold NaN.

    - `strength` (n,): the family's parameter at each zero, increasing;
    - `prefactor` (n,): A in $\tau \simeq A / (\mu - \mu_c)^2$; NaN where an eigenvalue of D is not positive: the law is another one,
      and τ stays finite if one is negative.
    """

    strength: Float[Array, " n"]
    prefactor: Float[Array, " n"]


@program
def critical_points(
    family: str | Activation | Family | Callable[[Array], Problem],
    *,
    low: ScalarLike,
    high: ScalarLike,
    alignment: ScalarLike | None = 1.0,
    resolution: int = 512,
    size: int = 24,
) -> CriticalPoints:
    r"""The parameters in [low, high] where $\nabla_W\ell(W_0) = DW_0 - CT$ vanishes, so that no mode grows, and how τ diverges at each.

    The `family` is a function of a number μ that makes a problem with any numbers of units, whose frame has the same Gram matrix at all
    μ ([`odes.Problem.committee`][] of rows that depend on μ); or single-index problems, whose weights are
    $w_0 = \mu\,(c\,\omega^* + \sqrt{1-c^2}\,\xi)$ with c = `alignment`, or, if `alignment` is None,
    $w_0 = \mu\,\omega^* + (1 - \mu)\,\xi$. The local minima of the gradient's length on `resolution` points are refined by
    golden sections and Gauss-Newton steps to rounding error and kept where the length is zero. Near a simple zero the largest rate is that
    of $\lambda Du = gg^Tu$ with $g \simeq (\mu - \mu_c)\,\partial_\mu g$, so that for positive definite D

    $$\tau \simeq \frac{1}{\max\mathrm{eig}(D^{-1}\partial_\mu g\,\partial_\mu g^T)}\,\frac{1}{(\mu - \mu_c)^2},$$

    which is $D/|\partial_\mu(C\omega^* - Dw_0)|^2$ for one unit, whatever χκ² is. Works under jit and vmap, so the number of places,
    `size`, is fixed; local minima of the length count among them. Two zeros closer than (high - low)/resolution may be found as one, and
    the function is looked at up to that far beyond both ends.

    >>> critical_points("He3", low=0.1, high=0.9).strength[0].round(12).tolist()
    0.320724347323
    >>> committee = lambda mu: Problem.committee("erf", pretrained=mu * jnp.ones(2))
    >>> critical_points(committee, low=0.1, high=1.2).strength[:2].round(9).tolist()
    [1.0, nan]

    **Raises** ArgumentError for single-index problems with a `low` that is not positive.
    """
    single = isinstance(family, str | Activation | Family)
    if isinstance(family, str | Activation | Family):
        require("low", low, "positive", lambda x: x > 0)
        member = _single_index(Family.of(family), alignment)
    else:
        member = family

    @jax.jit  # traced once, not at each of its uses
    def at(mu: Array) -> tuple[Array, Array, Array]:
        """The gradient's components along orthonormal directions; the terms that cancel in them, and D."""
        problem = member(mu)
        gradient, root = gradient_at(problem, pretrained(problem)), orthonormal_components(problem.frame_gram)
        learnt, kept = gradient.C @ problem.target @ root, gradient.D @ problem.frozen @ root
        lengths = problem.lengths
        steep = jax.vmap(lambda square: self_moments(problem.student, square).cross)(lengths**2)
        curved = problem.readout**2 * steep * lengths  # D itself is a difference
        parts = jnp.concatenate([jnp.ravel(learnt), jnp.ravel(kept), curved])
        return jnp.ravel(learnt - kept), parts, gradient.D

    def length(mu: Array) -> Array:
        return jnp.linalg.norm(at(mu)[0])

    @jax.jit
    def around(mu: Float[Array, " n"]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """The same at many places, and its derivatives."""
        return jax.vmap(lambda x: jax.jvp(at, (x,), (jnp.ones_like(x),)))(mu)

    def section(_, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        left, right = bracket
        inner = jnp.stack([right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)])
        first, second = jax.vmap(length)(inner.ravel()).reshape(inner.shape)
        go_left = first < second
        return jnp.where(go_left, left, inner[0]), jnp.where(go_left, inner[1], right)

    def gauss_newton(_, mu: Float[Array, " n"]) -> Float[Array, " n"]:
        (residuals, *_), (slopes, *_) = around(mu)
        steepness = jnp.sum(slopes**2, axis=1)
        return mu - jnp.sum(residuals * slopes, axis=1) / jnp.where(steepness > 0, steepness, 1)

    low, high = (jnp.asarray(x, jnp.result_type(float)) for x in (low, high))
    spacing = (high - low) / (resolution - 1)
    grid = low + spacing * jnp.arange(-1.0, resolution + 1.0)
    grid = jnp.maximum(grid, low / 2) if single else grid
    lengths = jax.vmap(length)(grid)
    lowest = (lengths[1:-1] <= lengths[:-2]) & (lengths[1:-1] < lengths[2:])
    (places,) = jnp.nonzero(lowest, size=size, fill_value=-1)
    brackets = grid[places], grid[places + 2]
    left, right = jax.lax.fori_loop(0, 16, section, brackets)
    zeros = jax.lax.fori_loop(0, 5, gauss_newton, (left + right) / 2)
    (residuals, parts, D), (slopes, *_) = around(zeros)
    eps = jnp.finfo(zeros.dtype).eps
    inside = (zeros >= low - 1e4 * eps * high) & (zeros <= high + 1e4 * eps * high)
    vanishing = jnp.linalg.norm(residuals, axis=1) < 1e3 * eps * jnp.linalg.norm(parts, axis=1)
    found = (places >= 0) & inside & vanishing
    prefactors = jnp.where(found, jax.vmap(_prefactor)(D, slopes), jnp.nan)
    order = jnp.argsort(jnp.where(found, zeros, jnp.inf))
    return CriticalPoints(jnp.where(found, zeros, jnp.nan)[order], prefactors[order])


def _single_index(members: Family, alignment: ScalarLike | None) -> Callable[[Array], Problem]:
    """The problems of a family in the orthonormal frame of ω* and ξ, which does not change with μ."""
    cosine = None if alignment is None else scalar("alignment", alignment, "between -1 and 1", within_one)

    def at(mu: Array) -> Problem:
        along, across = mu, 1 - mu
        if cosine is not None:
            along, across = mu * cosine, mu * jnp.sqrt(1 - jnp.asarray(cosine, mu.dtype) ** 2)
        return Problem(
            members.student,
            teacher=members.teacher,
            frame_gram=np.eye(2),
            directions=("target", "across"),
            target=[[1.0, 0.0]],
            frozen=jnp.stack([along, across])[None],
            adapter=members.adapter,
            sgd=members.sgd,
        )

    return at


def _prefactor(D: Float[Array, "K K"], slopes: Float[Array, " n"]) -> Float[Array, ""]:
    r"""The inverse of the largest eigenvalue of $D^{-1}\partial_\mu g\,\partial_\mu g^T$; NaN unless D is positive definite."""
    if D.shape == (1, 1):  # LAPACK's routines take longer to translate than all the rest
        return jnp.where(D[0, 0] > 0, D[0, 0] / (slopes @ slopes), jnp.nan)
    definite = jnp.linalg.eigvalsh(D)[0] > 0
    root = jnp.linalg.cholesky(jnp.where(definite, D, jnp.eye(len(D), dtype=D.dtype)))
    whitened = jax.scipy.linalg.solve_triangular(root, slopes.reshape(len(D), -1), lower=True)
    return jnp.where(definite, 1 / jnp.linalg.eigvalsh(whitened @ whitened.T)[-1], jnp.nan)
