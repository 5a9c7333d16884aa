r"""The closed ordinary differential equations of the overlaps."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from odes.overlaps import Covariances, Overlaps, covariances
from odes.population import PopulationGradient, gradient_noise, population_gradient
from odes.problem import Problem


def gradient_at(problem: Problem, overlaps: Overlaps) -> PopulationGradient:
    """The population loss and its gradient's coefficients C and D at given overlaps."""
    covariance = covariances(problem, overlaps)
    return population_gradient(
        problem.student,
        problem.teacher,
        covariance.Q,
        covariance.M,
        covariance.P,
        readout=problem.readout,
        teacher_readout=problem.teacher_readout,
    )


def noise_of(problem: Problem, covariance: Covariances) -> Float[Array, "K K"]:
    """N, the second moment of one sample's gradient amplitudes, at given covariances of the preactivations (K = P = 1)."""
    return gradient_noise(
        problem.student,
        problem.teacher,
        covariance.Q,
        covariance.M,
        covariance.P,
        readout=problem.readout,
        teacher_readout=problem.teacher_readout,
        label_noise=problem.sgd.label_noise,
    )


def noise_at(problem: Problem, overlaps: Overlaps) -> Float[Array, "K K"]:
    """N at given overlaps (K = P = 1)."""
    return noise_of(problem, covariances(problem, overlaps))


def flow(problem: Problem, overlaps: Overlaps, *, noise: bool = True) -> Overlaps:
    r"""The time derivative of the overlaps in the limit d -> infinity, η -> 0 at fixed θ = ηd/B.

    With $H = D(A\Gamma + \kappa UX) - C\tilde B\Gamma$ (the gradient's overlaps with the frame) and
    $J = D(AX^T + \kappa UR) - C\tilde BX^T$ (those with the rows of V),

    $$\dot U = -\chi\kappa J, \qquad \dot X = -\kappa U^TH, \qquad
      \dot R = -\kappa(U^TJ + J^TU) + \theta\kappa^2U^TNU.$$

    If the adapter is normalised, with $h_a = \dot R_{aa}/2$: $\dot X_a \mathrel{-}= h_aX_a$ and
    $\dot R_{ab} \mathrel{-}= (h_a + h_b)R_{ab}$, which keep $R_{aa} = 1$. `noise=False` drops the term in θ.

    Source: Saad & Solla 1995 for the method; docs/theory.md, section 4.
    """
    adapter = problem.adapter
    gradient = gradient_at(problem, overlaps)
    up, cross, down_gram = overlaps.up, overlaps.cross, overlaps.down_gram
    target_cross = gradient.C @ problem.target
    H = (
        gradient.D @ (problem.frozen @ problem.frame_gram + adapter.kappa * up @ cross)
        - target_cross @ problem.frame_gram
    )
    J = gradient.D @ (problem.frozen @ cross.T + adapter.kappa * up @ down_gram) - target_cross @ cross.T
    d_up = -adapter.lr_ratio * adapter.kappa * J
    d_cross = -adapter.kappa * up.T @ H
    drift = adapter.kappa * up.T @ J
    d_gram = -(drift + drift.T)
    if noise:
        step = adapter.kappa * up
        d_gram += problem.sgd.noise_scale * step.T @ noise_at(problem, overlaps) @ step
    if adapter.normalized:
        growth = jnp.diagonal(d_gram) / 2
        d_cross -= growth[:, None] * cross
        d_gram -= jnp.add.outer(growth, growth) * down_gram
    return Overlaps(d_up, d_cross, d_gram)
