r"""Linear stability of the pretrained weights: the rate of the search phase and its time scale tau."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from odes import SGD, Activation, Adapter, Problem, gradient_at, noise_at, pretrained
from odes.arguments import ArrayLike


class SearchPhase(eqx.Module):
    r"""The search phase of a single-index problem, linearised at U = 0 and no overlap.

    - `C` $= E[\sigma'(\lambda)\phi'(\lambda^*)]$ and `D` $= E[\sigma'^2] + E[(\sigma - \phi)\sigma'']$, at w0;
    - `G` $= |\nabla_W\ell(w_0)|^2 = (C - D\rho c)^2 + D^2\rho^2(1 - c^2)$;
    - `noise` $= E[(e^2 + \Delta)\sigma'^2]$ and `loss`, at w0;
    - `rate` λ₊ and `tau` = 1/λ₊.
    """

    C: Float[Array, ""]
    D: Float[Array, ""]
    G: Float[Array, ""]
    noise: Float[Array, ""]
    loss: Float[Array, ""]
    rate: Float[Array, ""]
    tau: Float[Array, ""]

    def __str__(self) -> str:
        if self.tau.ndim:
            return f"SearchPhase of {self.tau.size} problems"
        return ", ".join(f"{field.name} = {float(getattr(self, field.name)):.6g}" for field in dataclasses.fields(self))


def escape_rate(
    D: ScalarLike, G: ScalarLike, *, kappa: ScalarLike = 1.0, lr_ratio: ScalarLike = 1.0
) -> Float[Array, ""]:
    r"""The growth rate of the unstable mode,

    $$\lambda_+ = \tfrac12\left(-\chi\kappa^2D + \sqrt{\chi^2\kappa^4D^2 + 4\chi\kappa^2G}\right),$$

    the larger root of $\lambda^2 + \chi\kappa^2D\lambda - \chi\kappa^2G = 0$, evaluated without cancellation. κ and the learning rate
    ratio χ enter only as χκ². As χ grows, λ₊ tends to G/D if D > 0.
    """
    speed = jnp.asarray(lr_ratio * kappa**2, jnp.result_type(float))
    damping, drive = speed * D, speed * G
    root = jnp.sqrt(damping**2 + 4 * drive)
    damped = damping > 0
    return jnp.where(damped, 2 * drive / jnp.where(damped, damping + root, 1), (root - damping) / 2)


@eqx.filter_jit
def search_phase(problem: Problem) -> SearchPhase:
    r"""C, D, G, the noise, the loss, and the rate and time scale of the search phase of a single-index problem.

    Linear theory in the limit d -> infinity: with $p = v\cdot(C\omega^* - Dw_0)$ for a row v of the adapter,
    $\dot u = \chi\kappa(p - \kappa Du)$ and $\dot p = \kappa Gu$, so that overlaps grow as $e^{\lambda_+t}$ ([`escape_rate`][]). `tau`
    is infinite where G = 0 (to rounding) and D >= 0. Use `jax.vmap` for sweeps.

    >>> from odes import Problem
    >>> print(search_phase(Problem.single_index("linear", strength=0.5)))
    C = 1, D = 1, G = 0.25, noise = 0.25, loss = 0.125, rate = 0.207107, tau = 4.82843

    **Raises** ArgumentError unless the problem is single-index.
    """
    problem.require_single_index()
    start = pretrained(problem)
    gradient = gradient_at(problem, start)
    C, D = gradient.C[0, 0], gradient.D[0, 0]
    overlap, square = problem.frame_gram[0, 1], problem.frame_gram[1, 1]
    across = square - overlap**2
    G = (C - D * overlap) ** 2 + D**2 * jnp.where(across < 0, 0, across)
    rounding = (64 * jnp.finfo(G.dtype).eps) ** 2 * (C**2 + D**2 * square)
    G = jnp.where(G < rounding, 0, G)
    rate = escape_rate(D, G, kappa=problem.adapter.kappa, lr_ratio=problem.adapter.lr_ratio)
    return SearchPhase(C, D, G, noise_at(problem, start)[0, 0], gradient.loss, rate, 1 / rate)


@eqx.filter_jit
def sweep(
    student: str | Activation,
    *,
    strength: ArrayLike,
    alignment: ArrayLike = 1.0,
    teacher: str | Activation | None = None,
    adapter: Adapter | None = None,
    sgd: SGD | None = None,
) -> SearchPhase:
    """[`search_phase`][] at n pretrained strengths (and alignments), compiled once for each link function and n.

    >>> sweep("relu", strength=jnp.array([0.5, 0.8])).tau.round(6).tolist()
    [9.656854, 51.925824]
    """

    def at(rho: Array, cosine: Array) -> SearchPhase:
        return search_phase(
            Problem.single_index(student, strength=rho, alignment=cosine, teacher=teacher, adapter=adapter, sgd=sgd)
        )

    return jax.vmap(at)(*jnp.broadcast_arrays(jnp.asarray(strength), jnp.asarray(alignment)))
