r"""The closed ordinary differential equations of the overlaps.

They are compiled functions: an integrator that calls them many times within one program traces them once.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from odes.devices import at_once
from odes.diagonals import diagonal
from odes.noise import kurtosis_of, noise_of
from odes.overlaps import Overlaps, covariances, with_readout
from odes.population import PopulationGradient, gradient_of
from odes.problem import Problem
from odes.programs import program

AVERAGES = 2.0**20
"""The bytes that the averages at one place may need: sums over some 15000 quadrature nodes, with what is computed on the way."""


def gradient_at(problem: Problem, overlaps: Overlaps) -> PopulationGradient:
    """The population loss and its gradient's coefficients C and D at given overlaps."""
    return gradient_of(with_readout(problem, overlaps), covariances(problem, overlaps))


def losses(problem: Problem, overlaps: Overlaps) -> Float[Array, "*batch"]:
    """The population loss at many overlaps, 64 at a time on a CPU, more on an accelerator ([`odes.devices.at_once`][])."""
    batch = overlaps.up.shape[:-2]
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(batch) :]), overlaps)
    together = at_once(64, bytes_each=AVERAGES)
    return jax.lax.map(lambda at: gradient_at(problem, at).loss, flat, batch_size=together).reshape(batch)


def noise_at(problem: Problem, overlaps: Overlaps) -> Float[Array, "K K"]:
    """N at given overlaps ([`noise_of`][])."""
    return noise_of(with_readout(problem, overlaps), covariances(problem, overlaps))


def kurtosis_at(problem: Problem, overlaps: Overlaps) -> Float[Array, " K"]:
    """The kurtosis of every unit's amplitude in one sample's gradient at given overlaps ([`kurtosis_of`][])."""
    return kurtosis_of(with_readout(problem, overlaps), covariances(problem, overlaps))


def _free_change(problem: Problem, overlaps: Overlaps, *, noise: bool, finite: bool) -> Overlaps:
    r"""The change of the overlaps in one SGD step over its learning rate η, before rows are rescaled to unit length.

    With the population gradient $G = DW - CT$, its overlaps $H = GF^T$, $J = GV^T$, and Ū for U without the columns of rows at
    rest, $\Delta U/\eta = -\chi\kappa J$ (trained columns), $\Delta X/\eta = -\kappa\bar U^TH - \lambda X$ (trained rows) and
    $\Delta R/\eta = -\kappa(\bar U^TJ + J^T\bar U) - \lambda(R + R^T) + \kappa^2\bar U^T(\eta GG^T + \theta N)\bar U$ (λ as in X). The
    term in $GG^T$, and the products of two changes that weight decay adds, are there if `finite`, that in θ if `noise`.
    """
    adapter, covariance = problem.adapter, covariances(problem, overlaps)
    problem = with_readout(problem, overlaps)
    gradient = gradient_of(problem, covariance)
    full = adapter.kappa * overlaps.up
    step = full * adapter.trained[None]
    decay = adapter.weight_decay * adapter.trained
    target = gradient.C @ problem.target
    along_frame = (
        gradient.D @ (problem.frozen @ problem.frame_gram + full @ overlaps.cross) - target @ problem.frame_gram
    )
    along_rows = (
        gradient.D @ (problem.frozen @ overlaps.cross.T + full @ overlaps.down_gram) - target @ overlaps.cross.T
    )
    d_cross = -step.T @ along_frame - decay[:, None] * overlaps.cross
    pull = step.T @ along_rows + decay[:, None] * overlaps.down_gram
    d_gram = -(pull + pull.T)
    if finite:
        half = gradient.D @ (covariance.Q @ gradient.D / 2 - covariance.M @ gradient.C.T)
        # symmetric, or an antisymmetric rounding of R grows
        square = half + half.T + gradient.C @ covariance.P @ gradient.C.T
        crossed = decay[:, None] * (along_rows.T @ step)
        shrunk = jnp.outer(decay, decay) * overlaps.down_gram
        d_gram += problem.sgd.learning_rate * (step.T @ square @ step + crossed + crossed.T + shrunk)
    if noise:
        d_gram += problem.sgd.noise_scale * step.T @ noise_of(problem, covariance) @ step
    d_up = -adapter.lr_ratio * adapter.kappa * along_rows * adapter.trained[None]
    d_readout = None if overlaps.readout is None else -problem.sgd.readout_lr_ratio * gradient.readout
    return Overlaps(d_up, d_cross, d_gram, d_readout)


@program
def flow(problem: Problem, overlaps: Overlaps, *, noise: bool = True) -> Overlaps:
    r"""The time derivative of the overlaps in the limit d -> infinity, η -> 0 at fixed θ = ηd/B.

    With $H = D(A\Gamma + \kappa UX) - C\tilde B\Gamma$ (the gradient's overlaps with the frame) and
    $J = D(AX^T + \kappa UR) - C\tilde BX^T$ (those with the rows of V),

    $$\dot U = -\chi\kappa J, \qquad \dot X = -\kappa U^TH, \qquad
      \dot R = -\kappa(U^TJ + J^TU) + \theta\kappa^2U^TNU.$$

    If the adapter is normalised, with $h_a = \dot R_{aa}/2R_{aa}$: $\dot X_a \mathrel{-}= h_aX_a$ and
    $\dot R_{ab} \mathrel{-}= (h_a + h_b)R_{ab}$, which keep lengths. Readouts that are trained follow
    $\dot a_k = -\chi_a\,\partial\ell/\partial a_k$; their noise is of order 1/d. Weight decay λ adds $-\lambda X$ to $\dot X$ and
    $-2\lambda R$ to $\dot R$. Rows of V at rest, and their columns of U, do not change. `noise=False` drops the term in θ.

    Source: Saad & Solla 1995 for the method; docs/theory.md, section 4.
    """
    change = _free_change(problem, overlaps, noise=noise, finite=False)
    if not problem.adapter.normalized:
        return change
    growth = diagonal(change.down_gram) / (2 * diagonal(overlaps.down_gram))
    return Overlaps(
        change.up,
        change.cross - growth[:, None] * overlaps.cross,
        change.down_gram - jnp.add.outer(growth, growth) * overlaps.down_gram,
        change.readout,
    )


def mean_change(problem: Problem, overlaps: Overlaps, *, noise: bool = True) -> Overlaps:
    r"""The change of the overlaps in one SGD step, over its learning rate η, in the limit d -> infinity at fixed θ = ηd/B.

    One step is $\Delta U = -\eta\chi\kappa J$, $\Delta X = -\eta\kappa U^TH$ and
    $$\Delta R = -\eta\kappa(U^TJ + J^TU) + \eta\kappa^2U^T(\eta GG^T + \theta N)U, \qquad G = DW - CT;$$
    if the adapter is normalised, $X_a + \Delta X_a$ is then divided by $l_a$ and $R_{ab} + \Delta R_{ab}$ by $l_al_b$, with
    $l_a^2 = 1 + \Delta R_{aa}/R_{aa}$, which keeps lengths. As η -> 0 this is [`odes.flow`][]. Small changes are computed
    without cancellation.
    """
    change, eta = _free_change(problem, overlaps, noise=noise, finite=True), problem.sgd.learning_rate
    if not problem.adapter.normalized:
        return change
    logs = jnp.log1p(eta * diagonal(change.down_gram) / diagonal(overlaps.down_gram)) / 2
    both = jnp.add.outer(logs, logs)
    return Overlaps(
        change.up,
        jnp.exp(-logs)[:, None] * change.cross + (jnp.expm1(-logs) / eta)[:, None] * overlaps.cross,
        jnp.exp(-both) * change.down_gram + jnp.expm1(-both) / eta * overlaps.down_gram,
        change.readout,
    )


@program
def modified_flow(problem: Problem, overlaps: Overlaps, *, noise: bool = True) -> Overlaps:
    r"""The flow that SGD of small but finite learning rate η follows, up to errors of order η².

    With the change g(y) of one step over η ([`odes.mean_change`][]),

    $$\dot y = g\big(y - \tfrac\eta2\,g(y)\big) = g(y) - \tfrac\eta2\,g'(y)\,g(y) + O(\eta^2),$$

    whose solution at t = η * step agrees with the iterated step to second order. A mode that grows by $1 + \eta\lambda$ a step
    grows at the rate $\lambda - \eta\lambda^2/2$. Source: backward error analysis (Hairer, Lubich & Wanner 2006, chapter IX).
    """
    half = problem.sgd.learning_rate / 2

    def again(at: Overlaps, _: None) -> tuple[Overlaps, Overlaps]:
        change = mean_change(problem, at, noise=noise)
        return jax.tree.map(lambda y, g: y - half * g, overlaps, change), change

    _, changes = jax.lax.scan(again, overlaps, length=2)  # twice the same code, compiled once
    return jax.tree.map(lambda x: x[-1], changes)


def diffusion(problem: Problem, overlaps: Overlaps, slope: Overlaps) -> Overlaps:
    r"""The covariance of SGD's noise on the overlaps per unit time, to leading order in 1/d, times a `slope`.

    The batch's gradient fluctuates by $\xi$ (K x d), whose rows have the covariance $N/B$ in every direction; a step changes the
    overlaps by $-\eta$ times

    $$\delta U = \chi\kappa\,\xi V^T, \qquad \delta X = \kappa U^T\xi F^T, \qquad \delta R = \kappa(U^T\xi V^T + V\xi^TU),$$

    of trained rows alone; normalised rows keep their lengths: with $h_a = \delta R_{aa}/2R_{aa}$, $\delta X_a \mathrel{-}= h_aX_a$ and
    $\delta R_{ab} \mathrel{-}= (h_a + h_b)R_{ab}$. With $\delta = L\xi$ the result is $\tfrac\theta dL(N \otimes 1)L^T$ times the
    slope, which is a gradient of something in the overlaps.
    """
    adapter, sgd, frame = problem.adapter, problem.sgd, problem.frame_size
    step = adapter.kappa * overlaps.up * adapter.trained[None]

    def kick(along: Array) -> Overlaps:
        """L of noise with the given components (K, f + r) along the rows of F and V."""
        up = adapter.lr_ratio * adapter.kappa * along[:, frame:] * adapter.trained[None]
        half = step.T @ along
        cross, gram = half[:, :frame], half[:, frame:]
        if adapter.normalized:
            growth = diagonal(gram) / diagonal(overlaps.down_gram)
            cross, gram = cross - growth[:, None] * overlaps.cross, gram - growth[:, None] * overlaps.down_gram
        return Overlaps(up, cross, gram + gram.T)

    spans = jnp.block([[problem.frame_gram, overlaps.cross.T], [overlaps.cross, overlaps.down_gram]])
    _, pull = jax.vjp(kick, jnp.zeros((problem.units[0], frame + adapter.rank), spans.dtype))
    along = noise_at(problem, overlaps) @ pull(slope)[0] @ spans
    return jax.tree.map(lambda x: sgd.noise_scale / sgd.dimension * x, kick(along))
