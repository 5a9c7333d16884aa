r"""Where runs start: overlaps along the gradient at w0, on the unstable mode, typical ones, and those of weights that are trained."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma
from jaxtyping import Array, Bool, Float, ScalarLike

from odes import Overlaps, Problem, Transfer, pretrained
from theory.search import SearchPhase, UnstableMode, search_phase, unstable_mode


def moves(problem: Problem, phase: SearchPhase) -> Bool[Array, ""]:
    """Whether the gradient at w0 and the training of U set the adapter going."""
    return jnp.isfinite(phase.rate) & (phase.G > 0) & (problem.adapter.lr_ratio > 0)


def along_gradient(problem: Problem, phase: SearchPhase, up: Float[Array, " r"], cross: Float[Array, " r"]) -> Overlaps:
    r"""U = `up`, and orthonormal rows of V whose overlaps with the unit vector along $C\omega^* - Dw_0$ are `cross`."""
    direction = (phase.C * problem.target - phase.D * problem.frozen) @ problem.frame_gram / jnp.sqrt(phase.G)
    return Overlaps(up[None], cross[:, None] * direction, pretrained(problem).down_gram)


def mode_start(problem: Problem, phase: SearchPhase, mode: UnstableMode, amplitudes: Float[Array, " r"]) -> Overlaps:
    """The overlaps of an adapter whose rows have the given amplitudes along the unstable mode."""
    return along_gradient(problem, phase, mode.up * amplitudes, mode.cross * amplitudes)


def shared_start(problem: Problem, amplitude: ScalarLike) -> Overlaps:
    """The overlaps on the unstable mode whose amplitude the rows of the adapter share equally."""
    phase, rank = search_phase(problem), problem.adapter.rank
    return mode_start(problem, phase, unstable_mode(problem, phase), jnp.full(rank, amplitude / np.sqrt(rank)))


def resting_start(problem: Problem) -> Overlaps:
    r"""U = 0 and rows of V whose overlap with the gradient's direction at w0 is the typical $d^{-1/2}$."""
    rank, overlap = problem.adapter.rank, 1 / jnp.sqrt(problem.sgd.dimension)
    return along_gradient(problem, search_phase(problem), jnp.zeros(rank), jnp.full(rank, overlap))


def typical_amplitude(problem: Problem, mode: UnstableMode) -> Float[Array, ""]:
    r"""The amplitude a whose logarithm is the mean one: $\log a = \log\sqrt{\mathrm{Var}} + \tfrac12(\psi(r/2) + \log 2)$."""
    half = jnp.asarray(problem.adapter.rank / 2, mode.variance.dtype)
    return jnp.exp((jnp.log(mode.variance) + digamma(half) + jnp.log(2.0)) / 2)


def typical_start(problem: Problem, phase: SearchPhase, mode: UnstableMode) -> Overlaps:
    r"""The start from which the flow takes the mean time, to leading order, from random starts with SGD noise.

    The rows of the adapter are on the unstable mode with the total amplitude of [`typical_amplitude`][], shared by them like
    quantiles of a half-normal law. Where D <= 0 they have U = 0 instead and the total overlap $(r/d)^{1/2}$ with the
    gradient's direction. Where nothing moves the start is w0 itself.
    """
    from scipy import special

    rank, moving, damped = problem.adapter.rank, moves(problem, phase), phase.D > 0
    shares = special.ndtri((1 + (np.arange(rank) + 0.5) / rank) / 2)
    rows = jnp.asarray(shares / np.linalg.norm(shares), mode.variance.dtype)
    amplitude = typical_amplitude(problem, mode)
    up = jnp.where(damped, mode.up * amplitude, 0)
    cross = jnp.where(damped, mode.cross * amplitude, jnp.sqrt(rank / problem.sgd.dimension))
    safe = jax.tree.map(lambda x: jnp.where(moving, x, 1.0), phase)
    moved = along_gradient(problem, safe, up * rows, cross * rows)
    return jax.tree.map(lambda a, b: jnp.where(moving, a, b), moved, pretrained(problem))


def weights_start(cross: Float[Array, " f"], square: ScalarLike = 1.0) -> Overlaps:
    """Weights that are trained themselves: their overlaps with the frame and their squared length."""
    return Overlaps(jnp.ones((1, 1)), cross[None], jnp.full((1, 1), square))


def staged_start(transfer: Transfer, border: Overlaps, amplitude: float) -> Overlaps:
    """Weights whose overlap with the source is `amplitude`, and an adapter with U = 0 that waits for them.

    The overlaps of its rows with the frame lie along the gradient with which fine-tuning begins at the `border`; their total
    is `amplitude`. The rest of every row is orthogonal to all others.
    """
    rank, gram = transfer.adapter.rank, transfer.lora.frame_gram
    phase = search_phase(transfer.fine_tuning(border))
    inside = phase.C * transfer.lora.target[0] - phase.D * jnp.linalg.pinv(gram) @ border.cross[0]
    row = amplitude / np.sqrt(rank) * inside / jnp.sqrt(inside @ gram @ inside)
    rows = jnp.concatenate([jnp.array([[0.0, amplitude]]), jnp.tile(row, (rank, 1))])
    overlaps = rows @ gram @ rows.T
    return Overlaps(transfer.up[None], rows @ gram, overlaps + jnp.diag(1 - jnp.diagonal(overlaps)))
