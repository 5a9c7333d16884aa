r"""The search phase, linearised at the pretrained weights: its rate, time scale, unstable mode and what feeds that."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from odes import Activation, Family, Problem, gradient_at, noise_at, pretrained, self_moments
from odes.arguments import ArrayLike
from odes.shown import Shown


class SearchPhase(Shown):
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

    **Raises** ArgumentError unless the problem is single-index with pretrained weights.
    """
    problem.require_known_search()
    start = pretrained(problem)
    gradient = gradient_at(problem, start)
    C, D = gradient.C[0, 0], gradient.D[0, 0]
    directions = jnp.concatenate([problem.target, problem.frozen])
    (length, overlap), (_, square) = directions @ problem.frame_gram @ directions.T
    across = square - overlap**2 / length
    G = (C * length - D * overlap) ** 2 / length + D**2 * jnp.where(across < 0, 0, across)
    rounding = (64 * jnp.finfo(G.dtype).eps) ** 2 * (C**2 * length + D**2 * square)
    G = jnp.where(G < rounding, 0, G)
    rate = escape_rate(D, G, kappa=problem.adapter.kappa, lr_ratio=problem.adapter.lr_ratio)
    return SearchPhase(C, D, G, noise_at(problem, start)[0, 0], gradient.loss, rate, 1 / rate)


@eqx.filter_jit
def sweep(family: str | Activation | Family, *, strength: ArrayLike, alignment: ArrayLike = 1.0) -> SearchPhase:
    """[`search_phase`][] at n pretrained strengths (and alignments) of a family, or of a link function's usual one.

    It is compiled once for each link function and n.

    >>> sweep("relu", strength=jnp.array([0.5, 0.8])).tau.round(6).tolist()
    [9.656854, 51.925824]
    """
    at = Family.of(family).at
    return jax.vmap(lambda rho, cosine: search_phase(at(rho, cosine)))(
        *jnp.broadcast_arrays(jnp.asarray(strength), jnp.asarray(alignment))
    )


def fastest_decay(problem: Problem, phase: SearchPhase) -> Float[Array, ""]:
    r"""The fastest rate at which U relaxes, $\chi\kappa^2\max(D, E[\sigma'^2])$: D at w0, E[σ'^2] at unit length, where training ends."""
    adapter = problem.adapter
    return adapter.lr_ratio * adapter.kappa**2 * jnp.maximum(phase.D, self_moments(problem.student, 1.0).cross)


def noise_unit(problem: Problem) -> Float[Array, ""]:
    r"""The noise scale $\lambda_+/N$ at w0, at which SGD noise feeds the unstable mode about as much as the random start does."""
    phase = search_phase(problem)
    return phase.rate / phase.noise


class UnstableMode(Shown):
    r"""The growing mode of the search phase, in the coordinates $(u, p/\sqrt G)$ of one adapter row.

    - `up`, `cross`: the unit right eigenvector $e \propto (\lambda_+, \kappa\sqrt G)$;
    - `rate`: $\log(1 + \eta\lambda_+)/\eta$, the rate of growth at the problem's learning rate; `tau` its inverse;
    - `lag`: by how much longer the flow of finite steps takes for a growth by e, $1/(\lambda_+ - \eta\lambda_+^2/2)$ less `tau`;
    - `initial`: the variance of the mode's amplitude at random starts; `variance`: with what SGD noise feeds it later.
    """

    up: Float[Array, ""]
    cross: Float[Array, ""]
    rate: Float[Array, ""]
    tau: Float[Array, ""]
    lag: Float[Array, ""]
    initial: Float[Array, ""]
    variance: Float[Array, ""]


def unstable_mode(problem: Problem, phase: SearchPhase | None = None) -> UnstableMode:
    r"""The growing mode of a single-index problem's search phase and the variance of its amplitude at dimension d.

    The linear system has the matrix $\begin{pmatrix} -\chi\kappa^2D & \chi\kappa\sqrt G \\ \kappa\sqrt G & 0 \end{pmatrix}$, the unit
    right eigenvector $e$ and the left eigenvector $f \propto (\lambda_+, \chi\kappa\sqrt G)$ with $f\cdot e = 1$. The second
    coordinate starts with variance 1/d. Each step multiplies the mode by $1 + \eta\lambda_+$ and adds noise of variance
    $\eta\chi^2\kappa^2\theta N/d$ to u; hence the amplitude, referred to the start, has per row the variance

    $$\mathrm{Var} = \frac1d\left(f_p^2 + \frac{f_u^2\,\chi^2\kappa^2\theta N}{2\lambda_+ + \eta\lambda_+^2}\right).$$

    **Raises** ArgumentError unless the problem is single-index.
    """
    phase = search_phase(problem) if phase is None else phase
    kappa, chi, eta = problem.adapter.kappa, problem.adapter.lr_ratio, problem.sgd.learning_rate
    slope = kappa * jnp.sqrt(phase.G)
    unit = jnp.sqrt(phase.rate**2 + slope**2)
    overlap = (phase.rate**2 + chi * slope**2) / unit
    left_up, left_cross = phase.rate / overlap, chi * slope / overlap
    diffusion = (chi * kappa) ** 2 * problem.sgd.noise_scale * phase.noise
    fed = left_up**2 * diffusion / (2 * phase.rate + eta * phase.rate**2)
    rate = jnp.log1p(eta * phase.rate) / eta
    lag = 1 / (phase.rate - eta * phase.rate**2 / 2) - 1 / rate
    initial, dimension = left_cross**2, problem.sgd.dimension
    return UnstableMode(
        phase.rate / unit, slope / unit, rate, 1 / rate, lag, initial / dimension, (initial + fed) / dimension
    )
