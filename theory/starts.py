r"""Where runs start: overlaps along the gradient at w0, on the unstable mode, typical ones, and those of weights that are trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma
from jaxtyping import Array, Bool, Float, ScalarLike

from odes import Overlaps, Problem, Transfer, pretrained
from odes.overlaps import rows_of_length
from odes.quadrature import safe_sqrt
from theory.search import SearchPhase, UnstableMode, search_phase, unstable_mode

_SPANS = 1e-10
"""A direction of the frame counts if its part outside those before has at least this part of its squared length."""


def moves(problem: Problem, phase: SearchPhase) -> Bool[Array, ""]:
    """Whether the gradient at w0 and the training of U set the adapter going."""
    return jnp.isfinite(phase.rate) & (phase.G > 0) & (problem.adapter.lr_ratio > 0)


def _gradient(problem: Problem, phase: SearchPhase) -> Float[Array, " f"]:
    r"""The overlaps of the unit vector along $C\omega^* - Dw_0$ with the frame."""
    return ((phase.C * problem.target - phase.D * problem.frozen) @ problem.frame_gram)[0] / jnp.sqrt(phase.G)


def along_gradient(problem: Problem, phase: SearchPhase, up: Float[Array, " r"], cross: Float[Array, " r"]) -> Overlaps:
    r"""U = `up`, and orthonormal rows of V whose overlaps with the unit vector along $C\omega^* - Dw_0$ are `cross`."""
    return Overlaps(up[None], jnp.outer(cross, _gradient(problem, phase)), pretrained(problem).down_gram)


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


@functools.cache
def start_normals(starts: int, rank: int, frame: int) -> np.ndarray:
    """Standard normals (n, r, 3 + f + r) for [`random_start`][], for every row of n starts; the same at every call.

    The first of each row, which decide when it escapes, are quantiles of equal probability in a random order (a Latin
    hypercube), and positive: the equations do not change if a row and its column of U both change their sign. Then their
    lengths in each start are made the quantiles of equal probability of a chi law.
    """
    from scipy import special

    rng = np.random.default_rng(0)
    normals = rng.normal(size=(starts, rank, 3 + frame + rank))
    levels = rng.permuted(np.tile(np.arange(starts), (rank, 1)), axis=1).T
    amplitudes = special.ndtri((1 + (levels + 0.5) / starts) / 2)
    lengths = np.linalg.norm(amplitudes, axis=1)
    normals[..., 0] = amplitudes * (chi_quantiles(rank, starts)[lengths.argsort().argsort()] / lengths)[:, None]
    return normals


def chi_quantiles(degrees: int, n: int) -> np.ndarray:
    """The midpoints of n levels of equal probability of a chi law, increasing."""
    from scipy import special

    return np.sqrt(2 * special.gammaincinv(degrees / 2, (np.arange(n) + 0.5) / n))


def random_start(
    problem: Problem, phase: SearchPhase, mode: UnstableMode, normals: Float[Array, "r k"]
) -> tuple[Overlaps, Float[Array, ""]]:
    r"""A random start at dimension d, with what SGD noise adds to its unstable mode later; and that mode's amplitude |a|.

    The rows of V are uniform on the sphere ([`odes.random_overlaps`][]; the lengths of their parts outside the frame by the
    cube root of Wilson and Hilferty, to relative order $d^{-2}$) and U = 0. Since the noise feeds the mode while it is small, the
    flow from this start shifted along the mode by the noise's part of the amplitude takes the time of SGD. Both parts are
    Gaussian ([`unstable_mode`][]); of the standard `normals` ([`start_normals`][]) the first is the row's amplitude.
    """
    rank, gram, dimension = problem.adapter.rank, problem.frame_gram, problem.sgd.dimension
    amplitude, other, length = normals[:, 0], normals[:, 1], normals[:, 2]
    drawn, fed = jnp.sqrt(mode.initial), safe_sqrt(mode.variance - mode.initial)
    total = jnp.sqrt(mode.variance)
    noise = fed * (fed * amplitude - drawn * other) / total
    along = (drawn * amplitude + fed * other) / total + jnp.sqrt(dimension) * mode.cross * noise
    columns = [_gradient(problem, phase)]
    rest = gram - jnp.outer(columns[0], columns[0])
    for row in range(gram.shape[0]):
        spans = rest[row, row] > _SPANS * gram[row, row]
        columns.append(jnp.where(spans, rest[row] / jnp.sqrt(jnp.where(spans, rest[row, row], 1)), 0))
        rest -= jnp.outer(columns[-1], columns[-1])
    root = jnp.stack(columns, axis=1)
    span = jnp.any(root != 0, axis=0).astype(root.dtype)
    inside = jnp.concatenate([along[:, None], normals[:, 3 : 3 + gram.shape[0]]], axis=1) * span[None]
    freedom = dimension - jnp.sum(span) - jnp.arange(rank, dtype=root.dtype)
    ninth = 2 / (9 * freedom)
    lengths = safe_sqrt(freedom * (1 - ninth + jnp.sqrt(ninth) * length) ** 3)
    outside = jnp.tril(normals[:, 3 + gram.shape[0] :], -1) + jnp.diag(lengths)
    cross, down_gram = rows_of_length(inside, root, outside, jnp.ones(()))
    return Overlaps((mode.up * noise)[None], cross, down_gram), total * jnp.linalg.norm(amplitude)


def typical_amplitude(problem: Problem, mode: UnstableMode) -> Float[Array, ""]:
    r"""The amplitude a whose logarithm is the mean one: $\log a = \log\sqrt{\mathrm{Var}} + \tfrac12(\psi(r/2) + \log 2)$."""
    half = jnp.asarray(problem.adapter.rank / 2, mode.variance.dtype)
    return jnp.exp((jnp.log(mode.variance) + digamma(half) + jnp.log(2.0)) / 2)


def typical_start(problem: Problem, phase: SearchPhase, mode: UnstableMode, *, equal: bool = False) -> Overlaps:
    r"""The start from which the flow takes the mean time, to leading order, from random starts with SGD noise.

    The rows of the adapter are on the unstable mode with the total amplitude of [`typical_amplitude`][], shared by them like
    quantiles of a half-normal law, or in `equal` parts. Where D <= 0 they have U = 0 instead and the total overlap $(r/d)^{1/2}$ with the
    gradient's direction. Where nothing moves the start is w0 itself.
    """
    from scipy import special

    rank, moving, damped = problem.adapter.rank, moves(problem, phase), phase.D > 0
    shares = np.ones(rank) if equal else special.ndtri((1 + (np.arange(rank) + 0.5) / rank) / 2)
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
    return Overlaps(transfer.up, rows @ gram, overlaps + jnp.diag(1 - jnp.diagonal(overlaps)))
