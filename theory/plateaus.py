r"""The plateau of negative D: where U settles before any overlap has grown, and how the plateau is left."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float

from odes import Overlaps, Problem, flow, gradient_at, pretrained
from odes.programs import program
from odes.shown import Shown


class Plateau(Shown):
    r"""The plateau of a problem with D(w0) < 0; all NaN if D(w0) >= 0 or if D has no zero at larger norm.

    - `up`: $u_p = |u|$ on the plateau, where D vanishes at $Q = \rho^2 + \kappa^2u_p^2$, $M = \rho c$;
    - `rate`: the largest real part of the eigenvalues of the flow's Jacobian at $u = u_p$ and no overlap; `tau` = 1/rate;
    - `drift`: $\kappa u_pC$, the speed at which the overlap m starts to grow on the plateau.
    """

    up: Float[Array, ""]
    rate: Float[Array, ""]
    tau: Float[Array, ""]
    drift: Float[Array, ""]


@program
def plateau(problem: Problem, *, resolution: int = 256) -> Plateau:
    r"""The plateau of a single-index problem whose D is negative at w0 (even Hermite links at small strength).

    Without overlap u obeys $\dot u = -\chi\kappa^2D(\rho^2 + \kappa^2u^2, \rho c)\,u$: it leaves 0 if D < 0 and settles where D
    vanishes. If C is zero there (no alignment) the plateau is a fixed point and its overlaps grow as $e^{t/\tau}$. If not,
    the overlap also drifts, $\dot m = \kappa u_pC$ at m = 0, and leaves the plateau after a time near
    $\tau\log(1 + 1/(\tau\kappa u_p|C|))$, which does not grow with d.

    On the way to the plateau the overlap s = v·w0 grows as well, $\dot s = -\kappa u(D\rho^2 - C\rho c)$, which shifts
    $u_p$; the statement above is for small ρ.

    **Raises** ArgumentError unless the problem is single-index with pretrained weights.
    """
    problem.require_single_index()
    problem.require_known_search()
    problem = problem.replace(rank=1)
    start = pretrained(problem)

    def with_up(step: Array) -> Overlaps:
        return Overlaps(jnp.reshape(step / problem.adapter.kappa, (1, 1)), start.cross, start.down_gram)

    def curvature(step: Array) -> Array:
        return gradient_at(problem, with_up(step)).D[0, 0]

    steps = jnp.linspace(0, 10 * jnp.maximum(1, problem.strength), resolution) ** 2 / 10
    values = jax.vmap(curvature)(steps)
    crosses = (values[:-1] < 0) & (values[1:] >= 0)
    place = jnp.argmax(crosses)
    exists = (values[0] < 0) & crosses[place] & (problem.adapter.lr_ratio > 0)

    finest = 4 * float(jnp.finfo(values.dtype).eps)
    bracket = {"lower": steps[place], "upper": steps[place + 1]}
    bisection = optx.Bisection(rtol=finest, atol=finest, flip=False)
    step = optx.root_find(
        lambda x, _: curvature(x), bisection, steps[place], options=bracket, max_steps=64, throw=False
    ).value
    settled = with_up(step)
    flat, unravel = jax.flatten_util.ravel_pytree(settled)
    jacobian = jax.jacfwd(lambda y: jax.flatten_util.ravel_pytree(flow(problem, unravel(y)))[0])(flat)
    rate = jnp.max(jnp.real(jnp.linalg.eigvals(jnp.where(exists, jacobian, jnp.eye(flat.size)))))
    drift = step * gradient_at(problem, settled).C[0, 0]
    up = step / problem.adapter.kappa
    return Plateau(*(jnp.where(exists, x, jnp.nan) for x in (up, rate, 1 / rate, drift)))
