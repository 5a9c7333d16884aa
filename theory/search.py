r"""The search phase, linearised at the pretrained weights: its rate, time scale, unstable mode and what feeds that."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from odes import Activation, Family, Problem, gradient_at, pretrained, self_moments
from odes.arguments import ArrayLike
from odes.programs import program
from odes.shown import Shown
from theory.modes import EscapeModes, escape_modes


class SearchPhase(Shown):
    r"""The search phase, linearised at U = 0 and no overlap.

    - `C` $= E[\sigma'(\lambda)\phi'(\lambda^*)]$ and `D` $= E[\sigma'^2] + E[(\sigma - \phi)\sigma'']$, at w0;
    - `G` $= |\nabla_W\ell(w_0)|^2 = (C - D\rho c)^2 + D^2\rho^2(1 - c^2)$;
    - `noise` $= E[(e^2 + \Delta)\sigma'^2]$ and `loss`, at w0;
    - `rate` λ₊ and `tau` = 1/λ₊.

    Of several units these are the numbers of the mode that grows fastest, whose column of U has the direction û, and which obeys the
    equations of one unit: $D = \hat u^TD\hat u$, $G = |g^T\hat u|^2$, noise $\hat u^TN\hat u$, and C is the largest entry of
    $\hat u^TC$ in absolute value, that of the teacher's direction which it sees best.
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


def search_phase(problem: Problem) -> SearchPhase:
    r"""C, D, G, the noise, the loss, and the rate and time scale of the search phase.

    Linear theory in the limit d -> infinity: with $p = v\cdot(C\omega^* - Dw_0)$ for a row v of the adapter of one unit,
    $\dot u = \chi\kappa(p - \kappa Du)$ and $\dot p = \kappa Gu$, so that overlaps grow as $e^{\lambda_+t}$ ([`escape_rate`][]). `tau`
    is infinite where G = 0 (to rounding) and D >= 0. This is the first of the [`escape_modes`][]. Use `jax.vmap` for sweeps.

    >>> from odes import Problem
    >>> print(search_phase(Problem.single_index("linear", strength=0.5)))
    C = 1, D = 1, G = 0.25, noise = 0.25, loss = 0.125, rate = 0.207107, tau = 4.82843

    **Raises** ArgumentError for a problem without pretrained weights, or whose readouts are trained.
    """
    return leading_phase(escape_modes(problem))


@program
def leading_phase(modes: EscapeModes) -> SearchPhase:
    """The search phase as the mode that grows fastest sees it."""
    unit = jax.lax.stop_gradient(modes.leading)
    seen = unit @ modes.C
    C = seen[jnp.argmax(jnp.abs(seen))]
    D, G, noise = (unit @ matrix @ unit for matrix in (modes.D, modes.gram, modes.noise))
    return SearchPhase(C, D, G, noise, modes.loss, modes.rate, 1 / modes.rate)


@program
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


def fastest_decay(problem: Problem) -> Float[Array, ""]:
    r"""The fastest rate at which U relaxes: $\chi\kappa^2$ times the largest eigenvalue of D at w0, or that of D of units which
    agree, at unit length, where training ends: $\sum_ka_k^2E[\sigma'^2]$."""
    adapter, D = problem.adapter, gradient_at(problem, pretrained(problem)).D
    steepest = D[0, 0] if D.shape == (1, 1) else jnp.linalg.eigvalsh(jax.lax.stop_gradient(D))[-1]
    learnt = jnp.sum(problem.readout**2) * self_moments(problem.student, 1.0).cross
    return adapter.lr_ratio * adapter.kappa**2 * jnp.maximum(steepest, learnt)


def noise_unit(problem: Problem) -> Float[Array, ""]:
    r"""The noise scale $\lambda_+/N$ at w0, at which SGD noise feeds the unstable mode about as much as the random start does."""
    phase = search_phase(problem)
    return phase.rate / phase.noise


class UnstableMode(Shown):
    r"""The mode of the search phase that grows fastest, in the coordinates of [`theory.EscapeModes`][] for one adapter row.

    - `up` (K,): the column of U, and `cross`: the overlap of the row with the direction that it learns, at unit amplitude;
    - `direction` (f,): the overlaps of that direction with the frame;
    - `rate`: $\log(1 + \eta\lambda_+)/\eta$, the rate of growth at the problem's learning rate; `tau` its inverse;
    - `lag`: by how much longer the flow of finite steps takes for a growth by e, $1/(\lambda_+ - \eta\lambda_+^2/2)$ less `tau`;
    - `initial`: the variance of the mode's amplitude at random starts; `variance`: with what SGD noise feeds it later.
    """

    up: Float[Array, " K"]
    cross: Float[Array, ""]
    direction: Float[Array, " f"]
    rate: Float[Array, ""]
    tau: Float[Array, ""]
    lag: Float[Array, ""]
    initial: Float[Array, ""]
    variance: Float[Array, ""]


def unstable_mode(problem: Problem, modes: EscapeModes | None = None) -> UnstableMode:
    r"""The mode that grows fastest and the variance of its amplitude at dimension d.

    Its right eigenvector $e = (u, x)$ is of unit length, its left one $f \propto (u, \chi x)$ with $f\cdot e = 1$. The coordinates x
    start with variance 1/d. Each step multiplies the mode by $1 + \eta\lambda_+$ and adds noise of covariance
    $\eta\chi^2\kappa^2\theta N/d$ to u; hence the amplitude, referred to the start, has per row the variance

    $$\mathrm{Var} = \frac1d\left(|f_x|^2 + \frac{\chi^2\kappa^2\theta\,f_u^TNf_u}{2\lambda_+ + \eta\lambda_+^2}\right).$$

    **Raises** ArgumentError as [`escape_modes`][] does.
    """
    return _unstable_mode(problem, escape_modes(problem) if modes is None else modes)


@program
def _unstable_mode(problem: Problem, modes: EscapeModes) -> UnstableMode:
    eta, rate, dimension = problem.sgd.learning_rate, modes.rate, problem.sgd.dimension
    starts, fed = amplitudes(problem, modes)
    logarithmic = jnp.log1p(eta * rate) / eta
    return UnstableMode(
        up=modes.up[0],
        cross=jnp.sqrt(jnp.sum(modes.cross[0] ** 2)),
        direction=modes.directions[0],
        rate=logarithmic,
        tau=1 / logarithmic,
        lag=1 / (rate - eta * rate**2 / 2) - 1 / logarithmic,
        initial=starts[0] @ starts[0] / dimension,
        variance=(starts[0] @ starts[0] + fed[0, 0]) / dimension,
    )


def amplitudes(problem: Problem, modes: EscapeModes) -> tuple[Float[Array, "K K"], Float[Array, "K K"]]:
    r"""What makes the amplitudes of the first K modes of one row: how they depend on the row's overlaps x at the start, and d times the
    covariance of what SGD noise adds to them, referred to the start. Modes that do not grow have none.

    Left vectors are $f_i = (u_i, \chi x_i)/(u_i^2 + \chi x_i^2)$; the covariance is
    $\chi^2\kappa^2\theta\,f_{u,i}^TNf_{u,j}\,w_{ij}/(\lambda_i + \lambda_j + \eta\lambda_i\lambda_j)$. A mode is fed until the search is
    over, when the first one has grown by $d^{1/2}$: $w_{ij} = (1 - d^{-(\lambda_i + \lambda_j)/2\lambda_1})/(1 - 1/d)$, which is 1
    for the first.
    """
    adapter, sgd, units = problem.adapter, problem.sgd, problem.units[0]
    kappa, chi, eta = adapter.kappa, adapter.lr_ratio, sgd.learning_rate
    rates, up, cross = modes.rates[:units], modes.up[:units], modes.cross[:units]
    growing = rates > 0
    overlap = jnp.where(growing, jnp.sum(up**2 + chi * cross**2, axis=1), 1)
    left_up, left_cross = (jnp.where(growing[:, None], x / overlap[:, None], 0) for x in (up, chi * cross))
    pairs = jnp.add.outer(rates, rates)
    first = jnp.where(growing[0], rates[0], 1)
    waited = jnp.expm1(-pairs * jnp.log(sgd.dimension) / 2 / first) / jnp.expm1(-jnp.log(sgd.dimension))
    both = jnp.outer(growing, growing)
    grown = jnp.where(both, pairs + eta * jnp.outer(rates, rates), 1)
    fed = (chi * kappa) ** 2 * sgd.noise_scale * (left_up @ modes.noise @ left_up.T) * waited / grown
    return left_cross, jnp.where(both, fed, 0)
