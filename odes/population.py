r"""The population loss in terms of the overlaps, its gradient, and the covariance of the gradient's noise.

Student $\hat y = \sum_k a_k \sigma(\lambda_k)$, teacher $y = \sum_j b_j \phi(\lambda^*_j) + \sqrt\Delta z$; the
preactivations are jointly Gaussian with covariances $Q = \langle\lambda\lambda^T\rangle$ (K x K),
$M = \langle\lambda\lambda^{*T}\rangle$ (K x P), $P = \langle\lambda^*\lambda^{*T}\rangle$ (P x P).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, ScalarLike

from odes.activations import Activation, both_are, unscaled
from odes.arguments import ArgumentError
from odes.gaussian import PairMoments, pair_moments, pair_rule, self_moments
from odes.overlaps import Covariances
from odes.problem import Problem
from odes.quadrature import gaussian_average
from odes.shown import Shown


class PopulationGradient(Shown):
    r"""The population loss and its gradient, $\nabla_W \ell = D W - C T$.

    - `loss`: $\ell = \frac12 E[(\hat y - y)^2]$ without the label noise's $\Delta/2$;
    - `C` (K, P): $C_{kj} = a_k b_j E[\sigma'(\lambda_k)\phi'(\lambda^*_j)] = -\partial\ell/\partial M$;
    - `D` (K, K): $D_{kl} = a_k a_l E[\sigma'(\lambda_k)\sigma'(\lambda_l)] + \delta_{kl} E[a_k e\, \sigma''(\lambda_k)]$, which is
      $\partial\ell/\partial Q + (\partial\ell/\partial Q)^T$, with the error $e = \hat y - y$.
    """

    loss: Float[Array, ""]
    C: Float[Array, "K P"]
    D: Float[Array, "K K"]


def _all_pairs(f: Activation, h: Activation, p: Array, q: Array, c: Array) -> PairMoments:
    """`pair_moments` for every entry of the covariance c (n, m), variances p (n,) and q (m,)."""
    over_columns = jax.vmap(lambda a, b, ab: pair_moments(f, h, a, b, ab), in_axes=(None, 0, 0))
    return jax.vmap(over_columns, in_axes=(0, None, 0))(p, q, c)


def _within(f: Activation, covariance: Array) -> PairMoments:
    """`pair_moments` of one link function at all pairs of its own preactivations, covariance (n, n)."""
    variances = jnp.diagonal(covariance)
    diagonal = jax.vmap(lambda p: self_moments(f, p))(variances)
    if covariance.shape[0] == 1:
        return jax.tree.map(lambda x: x[:, None], diagonal)
    same = jnp.eye(covariance.shape[0], dtype=bool)
    pairs = _all_pairs(f, f, variances, variances, covariance)
    return jax.tree.map(lambda one, two: jnp.where(same, one[:, None], two), diagonal, pairs)


@eqx.filter_jit
def gradient_of(problem: Problem, covariance: Covariances) -> PopulationGradient:
    r"""The loss and its gradient at given covariances of the preactivations, any numbers K and P of units.

    $$\ell = \tfrac12 \sum_{kl} a_k a_l E[\sigma_k\sigma_l] - \sum_{kj} a_k b_j E[\sigma_k\phi_j]
      + \tfrac12 \sum_{ij} b_i b_j E[\phi_i\phi_j]$$

    and C, D as in [`PopulationGradient`][], all from averages of pairs (`odes.gaussian.pair_moments`), so that relu
    is exact. Source: Saad & Solla 1995; Goldt et al. 2019.
    """
    student, teacher, Q, P = problem.student, problem.teacher, covariance.Q, covariance.P
    ss, pp = _within(student, Q), _within(teacher, P)
    sp = _all_pairs(student, teacher, jnp.diagonal(Q), jnp.diagonal(P), covariance.M)
    aa = jnp.outer(problem.readout, problem.readout)
    ab = jnp.outer(problem.readout, problem.teacher_readout)
    bb = jnp.outer(problem.teacher_readout, problem.teacher_readout)
    loss = 0.5 * jnp.sum(aa * ss.value) - jnp.sum(ab * sp.value) + 0.5 * jnp.sum(bb * pp.value)
    error_curvature = jnp.sum(aa * ss.curvature, axis=1) - jnp.sum(ab * sp.curvature, axis=1)
    loss = jnp.maximum(loss, 0)  # of overlaps with an integrator's errors it can be less
    return PopulationGradient(loss, ab * sp.cross, aa * ss.cross + jnp.diag(error_curvature))


class NoiseMoments(Shown):
    r"""The four averages from which the noise of one student unit on one teacher unit is put together.

    `ss` $= E[\sigma(\lambda)^2\sigma'(\lambda)^2]$, `sp` $= E[\sigma(\lambda)\phi(\lambda^*)\sigma'(\lambda)^2]$,
    `pp` $= E[\phi(\lambda^*)^2\sigma'(\lambda)^2]$, `slope` $= E[\sigma'(\lambda)^2]$.
    """

    ss: Float[Array, ""]
    sp: Float[Array, ""]
    pp: Float[Array, ""]
    slope: Float[Array, ""]


def noise_moments(
    student: Activation, teacher: Activation, q: ScalarLike, m: ScalarLike, p: ScalarLike
) -> NoiseMoments:
    r"""The [`NoiseMoments`][] at var λ = q, cov(λ, λ*) = m, var λ* = p.

    Closed forms for erf (the factor σ'^2 tilts the Gaussian: $\Sigma^{-1} \to \Sigma^{-1} + 4 e e^T$) and for relu; exact
    quadrature for polynomials, the rule that resolves the kinks otherwise.
    """
    q, m, p = (jnp.asarray(a, jnp.result_type(float)) for a in (q, m, p))
    (s, student), (t, teacher) = unscaled(student), unscaled(teacher)
    if (s, t) != (1, 1):
        moments = noise_moments(student, teacher, s**2 * q, s * t * m, t**2 * p)
        return jax.tree.map(lambda x: s**2 * x, moments)
    if both_are(student, teacher, "erf"):
        shrink = 1 / (1 + 4 * q)
        slope, tilted_p = (4 / np.pi) * jnp.sqrt(shrink), p - 4 * m**2 * shrink
        tilted = [(q * shrink,) * 3, (q * shrink, tilted_p, m * shrink), (tilted_p,) * 3]
        ss, sp, pp = (slope * pair_moments(student, teacher, *covariance).value for covariance in tilted)
        return NoiseMoments(ss, sp, pp, slope)
    if both_are(student, teacher, "relu"):
        pair = pair_moments(student, teacher, q, p, m)
        return NoiseMoments(q / 2, pair.value, p * pair.cross + m * pair.curvature, jnp.full_like(q, 0.5))

    def integrand(x, y):
        slope, image, target = student.derivative(x) ** 2, student(x), teacher(y)
        return jnp.stack([image**2 * slope, image * target * slope, target**2 * slope, slope])

    growth = 2 * max(student.growth, teacher.growth) + 2 * max(student.growth - 1, 0)
    rule = pair_rule(student, teacher, growth)
    smooth = not (student.kinked or teacher.kinked)
    return NoiseMoments(*gaussian_average(integrand, q, p, m, rule=rule, smooth=smooth))


def _one_unit(problem: Problem, covariance: Covariances) -> tuple[Array, ...]:
    """a, b, Q, M and P of one student and one teacher unit; ArgumentError for more, whose averages need K + P variables."""
    if covariance.M.shape != (1, 1):
        known = "must be of one student and one teacher unit for the SGD noise to be known (SGD(batch_size=inf) leaves it out)"
        raise ArgumentError("problem", f"{known}, but has K, P = {covariance.M.shape}")
    units = problem.readout[0], problem.teacher_readout[0]
    return *units, covariance.Q[0, 0], covariance.M[0, 0], covariance.P[0, 0]


@eqx.filter_jit
def noise_of(problem: Problem, covariance: Covariances) -> Float[Array, "K K"]:
    r"""$N_{kl} = a_k a_l E[(e^2 + \Delta)\sigma'(\lambda_k)\sigma'(\lambda_l)]$ at given covariances, for K = P = 1.

    The noise term of the flow is $\theta\kappa^2U^TNU$. One sample's gradient with respect to w_k is g_k x, g_k = a_k e σ'(λ_k);
    N is the second moment of g and so of the gradient in every direction to which no weight points.

    **Raises** ArgumentError for more units.
    """
    a, b, q, m, p = _one_unit(problem, covariance)
    moments = noise_moments(problem.student, problem.teacher, q, m, p)
    square = a**2 * moments.ss - 2 * a * b * moments.sp + b**2 * moments.pp
    return jnp.reshape(a**2 * (square + problem.sgd.label_noise * moments.slope), (1, 1))


def kurtosis_of(problem: Problem, covariance: Covariances) -> Float[Array, ""]:
    r"""$E[g^4]/E[g^2]^2$ of one sample's gradient amplitude $g = a(e - \sqrt\Delta z)\sigma'(\lambda)$, for K = P = 1.

    3 for a Gaussian, thousands for polynomials: how many samples a batch needs until its squared amplitude is sharp.

    **Raises** ArgumentError for more units.
    """
    a, b, q, m, p = _one_unit(problem, covariance)
    student, teacher, noise = problem.student, problem.teacher, problem.sgd.label_noise

    def integrand(x, y):
        square, slope = (a * student(x) - b * teacher(y)) ** 2, student.derivative(x) ** 2
        noisy = square**2 + 6 * noise * square + 3 * noise**2
        return jnp.stack([(square + noise) * slope, noisy * slope**2])

    growth = 4 * (max(student.growth, teacher.growth) + max(student.growth - 1, 0))
    rule = pair_rule(student, teacher, growth)
    second, fourth = gaussian_average(integrand, q, p, m, rule=rule, smooth=False)
    return fourth / second**2
