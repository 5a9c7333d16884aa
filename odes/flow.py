r"""The closed ordinary differential equations of the overlaps."""

import equinox as eqx
import jax
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


class _Gradient(eqx.Module):
    """The population gradient $G = DW - CT$ and its overlaps: H = G F^T, J = G V^T, `square` = G G^T."""

    H: Float[Array, "K f"]
    J: Float[Array, "K r"]
    square: Float[Array, "K K"]


def _gradient_overlaps(problem: Problem, overlaps: Overlaps) -> _Gradient:
    gradient = gradient_at(problem, overlaps)
    covariance = covariances(problem, overlaps)
    kappa, up, cross = problem.adapter.kappa, overlaps.up, overlaps.cross
    target = gradient.C @ problem.target
    mixed = gradient.D @ covariance.M @ gradient.C.T
    return _Gradient(
        H=gradient.D @ (problem.frozen @ problem.frame_gram + kappa * up @ cross) - target @ problem.frame_gram,
        J=gradient.D @ (problem.frozen @ cross.T + kappa * up @ overlaps.down_gram) - target @ cross.T,
        square=gradient.D @ covariance.Q @ gradient.D - mixed - mixed.T + gradient.C @ covariance.P @ gradient.C.T,
    )


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
    adapter, gradient = problem.adapter, _gradient_overlaps(problem, overlaps)
    step = adapter.kappa * overlaps.up
    d_cross = -step.T @ gradient.H
    drift = step.T @ gradient.J
    d_gram = -(drift + drift.T)
    if noise:
        d_gram += problem.sgd.noise_scale * step.T @ noise_at(problem, overlaps) @ step
    if adapter.normalized:
        growth = jnp.diagonal(d_gram) / 2
        d_cross -= growth[:, None] * overlaps.cross
        d_gram -= jnp.add.outer(growth, growth) * overlaps.down_gram
    return Overlaps(-adapter.lr_ratio * adapter.kappa * gradient.J, d_cross, d_gram)


def mean_change(problem: Problem, overlaps: Overlaps, *, noise: bool = True) -> Overlaps:
    r"""The change of the overlaps in one SGD step, over its learning rate η, in the limit d -> infinity at fixed θ = ηd/B.

    One step is $\Delta U = -\eta\chi\kappa J$, $\Delta X = -\eta\kappa U^TH$ and
    $$\Delta R = -\eta\kappa(U^TJ + J^TU) + \eta\kappa^2U^T(\eta GG^T + \theta N)U, \qquad G = DW - CT;$$
    if the adapter is normalised, $X_a + \Delta X_a$ is then divided by $l_a$ and $R_{ab} + \Delta R_{ab}$ by $l_al_b$, with
    $l_a^2 = 1 + \Delta R_{aa}/R_{aa}$, which keeps lengths. As η -> 0 this is [`odes.flow`][]. Small changes are computed
    without cancellation.
    """
    adapter, eta, gradient = problem.adapter, problem.sgd.learning_rate, _gradient_overlaps(problem, overlaps)
    step = adapter.kappa * overlaps.up
    d_cross = -step.T @ gradient.H
    drift = step.T @ gradient.J
    d_gram = eta * step.T @ gradient.square @ step - drift - drift.T
    if noise:
        d_gram += problem.sgd.noise_scale * step.T @ noise_at(problem, overlaps) @ step
    if adapter.normalized:
        logs = jnp.log1p(eta * jnp.diagonal(d_gram) / jnp.diagonal(overlaps.down_gram)) / 2
        both = jnp.add.outer(logs, logs)
        d_cross = jnp.exp(-logs)[:, None] * d_cross + (jnp.expm1(-logs) / eta)[:, None] * overlaps.cross
        d_gram = jnp.exp(-both) * d_gram + jnp.expm1(-both) / eta * overlaps.down_gram
    return Overlaps(-adapter.lr_ratio * adapter.kappa * gradient.J, d_cross, d_gram)


def modified_flow(problem: Problem, overlaps: Overlaps, *, noise: bool = True) -> Overlaps:
    r"""The flow that SGD of small but finite learning rate η follows, up to errors of order η².

    With the change g(y) of one step over η ([`odes.mean_change`][]),

    $$\dot y = g\big(y - \tfrac\eta2\,g(y)\big) = g(y) - \tfrac\eta2\,g'(y)\,g(y) + O(\eta^2),$$

    whose solution at t = η * step agrees with the iterated step to second order. A mode that grows by $1 + \eta\lambda$ a step
    grows at the rate $\lambda - \eta\lambda^2/2$. Source: backward error analysis (Hairer, Lubich & Wanner 2006, chapter IX).
    """
    half = problem.sgd.learning_rate / 2
    first = mean_change(problem, overlaps, noise=noise)
    return mean_change(problem, jax.tree.map(lambda y, g: y - half * g, overlaps, first), noise=noise)
