r"""The population loss in terms of the overlaps, and its gradient.

Student $\hat y = \sum_k a_k \sigma(\lambda_k)$, teacher $y = \sum_j b_j \phi(\lambda^*_j) + \sqrt\Delta z$; the
preactivations are jointly Gaussian with covariances $Q = \langle\lambda\lambda^T\rangle$ (K x K),
$M = \langle\lambda\lambda^{*T}\rangle$ (K x P), $P = \langle\lambda^*\lambda^{*T}\rangle$ (P x P).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from odes.activations import Activation
from odes.diagonals import diagonal, diagonal_matrix
from odes.gaussian import PairMoments, pair_moments, self_moments
from odes.overlaps import Covariances
from odes.problem import Problem
from odes.programs import program
from odes.shown import Shown


class PopulationGradient(Shown):
    r"""The population loss and its gradient, $\nabla_W \ell = D W - C T$.

    - `loss`: $\ell = \frac12 E[(\hat y - y)^2]$ without the label noise's $\Delta/2$;
    - `C` (K, P): $C_{kj} = a_k b_j E[\sigma'(\lambda_k)\phi'(\lambda^*_j)] = -\partial\ell/\partial M$;
    - `D` (K, K): $D_{kl} = a_k a_l E[\sigma'(\lambda_k)\sigma'(\lambda_l)] + \delta_{kl} E[a_k e\, \sigma''(\lambda_k)]$, which is
      $\partial\ell/\partial Q + (\partial\ell/\partial Q)^T$, with the error $e = \hat y - y$;
    - `readout` (K,): $\partial\ell/\partial a_k = E[e\,\sigma(\lambda_k)]$.
    """

    loss: Float[Array, ""]
    C: Float[Array, "K P"]
    D: Float[Array, "K K"]
    readout: Float[Array, " K"]


def _all_pairs(f: Activation, h: Activation, p: Array, q: Array, c: Array) -> PairMoments:
    """`pair_moments` for every entry of the covariance c (n, m), variances p (n,) and q (m,)."""
    over_columns = jax.vmap(lambda a, b, ab: pair_moments(f, h, a, b, ab), in_axes=(None, 0, 0))
    return jax.vmap(over_columns, in_axes=(0, None, 0))(p, q, c)


def within(f: Activation, covariance: Array) -> PairMoments:
    """`pair_moments` of one link function at all pairs of its own preactivations, covariance (n, n)."""
    variances = diagonal(covariance)
    own = jax.vmap(lambda p: self_moments(f, p))(variances)
    if covariance.shape[0] == 1:
        return jax.tree.map(lambda x: x[:, None], own)
    same = jnp.eye(covariance.shape[0], dtype=bool)
    pairs = _all_pairs(f, f, variances, variances, covariance)
    return jax.tree.map(lambda one, two: jnp.where(same, one[:, None], two), own, pairs)


@program
def gradient_of(problem: Problem, covariance: Covariances) -> PopulationGradient:
    r"""The loss and its gradient at given covariances of the preactivations, any numbers K and P of units.

    $$\ell = \tfrac12 \sum_{kl} a_k a_l E[\sigma_k\sigma_l] - \sum_{kj} a_k b_j E[\sigma_k\phi_j]
      + \tfrac12 \sum_{ij} b_i b_j E[\phi_i\phi_j]$$

    and C, D as in [`PopulationGradient`][], all from averages of pairs (`odes.gaussian.pair_moments`), so that relu
    is exact. Source: Saad & Solla 1995; Goldt et al. 2019.
    """
    student, teacher, Q, P = problem.student, problem.teacher, covariance.Q, covariance.P
    ss, pp = within(student, Q), within(teacher, P)
    sp = _all_pairs(student, teacher, diagonal(Q), diagonal(P), covariance.M)
    aa = jnp.outer(problem.readout, problem.readout)
    ab = jnp.outer(problem.readout, problem.teacher_readout)
    bb = jnp.outer(problem.teacher_readout, problem.teacher_readout)
    loss = 0.5 * jnp.sum(aa * ss.value) - jnp.sum(ab * sp.value) + 0.5 * jnp.sum(bb * pp.value)
    error_curvature = jnp.sum(aa * ss.curvature, axis=1) - jnp.sum(ab * sp.curvature, axis=1)
    loss = jnp.maximum(loss, 0)  # of overlaps with an integrator's errors it can be less
    by_readout = ss.value @ problem.readout - sp.value @ problem.teacher_readout
    return PopulationGradient(loss, ab * sp.cross, aa * ss.cross + diagonal_matrix(error_curvature), by_readout)
