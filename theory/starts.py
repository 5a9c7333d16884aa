r"""Where runs start: overlaps along the gradient at w0, on the unstable mode, typical ones, and those of weights that are trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, ndtri
from jaxtyping import Array, Bool, Float, ScalarLike

from odes import Overlaps, Problem, Transfer, pretrained
from odes.arguments import real_array
from odes.diagonals import diagonal, diagonal_matrix
from odes.overlaps import orthonormal_components, rows_of_length
from odes.quadrature import safe_sqrt
from theory.modes import EscapeModes, escape_modes
from theory.search import SearchPhase, UnstableMode, amplitudes, unstable_mode

_FURTHER = 0.1
"""The amplitudes of further modes where all start, in units of the first."""


def moves(problem: Problem, phase: SearchPhase) -> Bool[Array, ""]:
    """Whether the gradient at w0 and the training of U set the adapter going."""
    return jnp.isfinite(phase.rate) & (phase.G > 0) & (problem.adapter.lr_ratio > 0)


def on_rows(problem: Problem, up: Float[Array, "K r"], cross: Float[Array, "r f"]) -> Overlaps:
    """U = `up`, and orthonormal rows of V whose overlaps with the frame are `cross`."""
    return Overlaps(up, cross, pretrained(problem).down_gram)


def mode_start(problem: Problem, mode: UnstableMode, amplitudes: Float[Array, " r"]) -> Overlaps:
    """The overlaps of an adapter whose rows have the given amplitudes along the unstable mode."""
    return on_rows(problem, jnp.outer(mode.up, amplitudes), jnp.outer(mode.cross * amplitudes, mode.direction))


def shared_start(problem: Problem, amplitude: ScalarLike) -> Overlaps:
    """The overlaps on the unstable mode whose amplitude the rows of the adapter share equally."""
    rank = problem.adapter.rank
    return mode_start(problem, unstable_mode(problem), jnp.full(rank, amplitude / np.sqrt(rank)))


def spread_start(problem: Problem, amplitude: ScalarLike) -> Overlaps:
    """The overlaps on all growing modes, each with some rows of the adapter to itself, as many as there are, which share its amplitude
    equally: that of the fastest is given, further ones have a tenth of it. For one unit it is the [`shared_start`][]."""
    modes, (units, _), rank = escape_modes(problem), problem.units, problem.adapter.rank
    shares = _row_shares(units, rank) * np.where(np.arange(units) == 0, 1, _FURTHER)[:, None]
    parts = real_array(amplitude) * real_array(shares) * (modes.rates[:units] > 0).astype(modes.up.dtype)[:, None]
    return on_rows(problem, modes.up[:units].T @ parts, parts.T @ modes.cross[:units] @ modes.span)


def _row_shares(units: int, rank: int) -> Float[np.ndarray, "K r"]:
    """The parts of each mode that the rows of the adapter have: some rows to itself, as many as there are, in equal shares of length 1."""
    apart = min(units, rank)
    shares = np.equal.outer(np.arange(units) % apart, np.arange(rank) % apart).astype(float)
    return shares / np.sqrt(shares.sum(axis=1, keepdims=True))


def resting_start(problem: Problem) -> Overlaps:
    r"""U = 0 and rows of V whose overlap with the direction that they learn at w0 is the typical $d^{-1/2}$."""
    rank, overlap = problem.adapter.rank, 1 / jnp.sqrt(problem.sgd.dimension)
    still = pretrained(problem)
    return on_rows(problem, still.up, jnp.outer(jnp.full(rank, overlap), escape_modes(problem).directions[0]))


@functools.cache
def start_normals(starts: int, rank: int, frame: int, units: int = 1) -> np.ndarray:
    """Standard normals (n, r, 2K + 1 + f + r) for [`random_start`][], for every row of n starts; the same at every call.

    The first of each row, which decide when it escapes, are quantiles of equal probability in a random order (a Latin
    hypercube), and positive: the equations do not change if a row and its column of U both change their sign. Then their
    lengths in each start are made the quantiles of equal probability of a chi law.
    """
    from scipy import special

    rng = np.random.default_rng(0)
    normals = rng.normal(size=(starts, rank, 2 * units + 1 + frame + rank))
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
    problem: Problem, modes: EscapeModes, normals: Float[Array, "r n"]
) -> tuple[Overlaps, Float[Array, ""]]:
    r"""A random start at dimension d, with what SGD noise adds to its growing modes later; and the first mode's amplitude |a|.

    The rows of V are uniform on the sphere ([`odes.random_overlaps`][]; the lengths of their parts outside the frame by the
    cube root of Wilson and Hilferty, to relative order $d^{-2}$) and U = 0. Since the noise feeds the modes while they are small, the
    flow from this start shifted along the modes by the noise's part of their amplitudes takes the time of SGD. Both parts are
    Gaussian ([`theory.amplitudes`][]). They are written as a matrix M times standard normals; the rows of M are made orthonormal one
    after the other, so that of the standard `normals` ([`start_normals`][]) the first alone is the first mode's amplitude.
    """
    units, rank, gram, dimension = problem.units[0], problem.adapter.rank, problem.frame_gram, problem.sgd.dimension
    initial, fed = amplitudes(problem, modes)
    noise_root = orthonormal_components(fed)
    sources = jnp.concatenate([jnp.concatenate([initial, noise_root], axis=1), jnp.eye(2 * units, dtype=fed.dtype)])
    turned = orthonormal_components(sources @ sources.T)[units:]
    spans = jnp.any(turned != 0, axis=0)
    place = jnp.where(spans, jnp.cumsum(spans) - 1, 0)
    drawn = normals[:, : 2 * units][:, place] @ turned.T
    noise = drawn[:, units:] @ noise_root.T
    along = drawn[:, :units] + noise @ modes.cross[:units]
    there = diagonal_matrix(jnp.any(modes.span != 0, axis=1).astype(gram.dtype))
    root = orthonormal_components(jnp.block([[there, modes.span], [modes.span.T, gram]]))[units:]
    span = jnp.any(root != 0, axis=0).astype(root.dtype)
    inside = jnp.concatenate([along, normals[:, 2 * units + 1 :][:, : gram.shape[0]]], axis=1) * span[None]
    freedom = dimension - jnp.sum(span) - jnp.arange(rank, dtype=root.dtype)
    ninth = 2 / (9 * freedom)
    lengths = safe_sqrt(freedom * (1 - ninth + jnp.sqrt(ninth) * normals[:, 2 * units]) ** 3)
    outside = jnp.tril(normals[:, 2 * units + 1 + gram.shape[0] :], -1) + diagonal_matrix(lengths)
    cross, down_gram = rows_of_length(inside, root, outside, jnp.ones(()))
    up = (noise @ modes.up[:units]).T / jnp.sqrt(dimension)
    first = jnp.sqrt((initial[0] @ initial[0] + fed[0, 0]) / dimension)
    return Overlaps(up, cross, down_gram), first * jnp.linalg.norm(normals[:, 0])


def typical_amplitude(problem: Problem, mode: UnstableMode) -> Float[Array, ""]:
    r"""The amplitude a whose logarithm is the mean one: $\log a = \log\sqrt{\mathrm{Var}} + \tfrac12(\psi(r/2) + \log 2)$.

    Rows at rest do not count: r is the number of the others.
    """
    half = problem.adapter.trained_rows / 2
    return jnp.exp((jnp.log(mode.variance) + digamma(half) + jnp.log(2.0)) / 2)


def typical_start(problem: Problem, phase: SearchPhase, mode: UnstableMode, *, equal: bool = False) -> Overlaps:
    r"""The start from which the flow takes the mean time, to leading order, from random starts with SGD noise.

    The rows of the adapter are on the unstable mode with the total amplitude of [`typical_amplitude`][], shared by them like
    quantiles of a half-normal law, or in `equal` parts. Where D <= 0 they have U = 0 instead and the total overlap $(r/d)^{1/2}$ with the
    direction that they learn. Where nothing moves the start is w0 itself. Rows at rest have no share: r is the number of the others.
    """
    trained, moving, damped = problem.adapter.trained, moves(problem, phase), phase.D > 0
    rank = problem.adapter.trained_rows
    shares = trained if equal else trained * ndtri((1 + (jnp.cumsum(trained) - 0.5) / rank) / 2)
    rows = shares / jnp.linalg.norm(shares)
    amplitude = typical_amplitude(problem, mode)
    up = jnp.where(damped, mode.up * amplitude, 0)
    cross = jnp.where(damped, mode.cross * amplitude, jnp.sqrt(rank / problem.sgd.dimension))
    moved = on_rows(problem, jnp.outer(up, rows), jnp.outer(cross * rows, mode.direction))
    return jax.tree.map(lambda a, b: jnp.where(moving, a, b), moved, pretrained(problem))


def weights_start(cross: Float[Array, " f"], square: ScalarLike = 1.0) -> Overlaps:
    """Weights that are trained themselves: their overlaps with the frame and their squared length."""
    return Overlaps(jnp.ones((1, 1)), cross[None], jnp.full((1, 1), square))


def staged_start(transfer: Transfer, border: Overlaps | None, amplitude: ScalarLike) -> Overlaps:
    r"""Weights that have begun to learn the source, and an adapter with U = 0 that waits for them.

    The cosine of the k-th row of the weights with the source's direction of the same number, counted round, is the `amplitude`. The
    adapter's rows lie along what fine-tuning from the `border` learns in its growing modes, $u^T(CT - DW)$, as far as that is in the
    frame: every mode has some rows to itself, as many as there are, whose overlaps with that direction have the length `amplitude`
    together, in all modes alike. Without a border they have none. The rest of every row is orthogonal to all others.
    """
    units, rank, lora, lengths = transfer.units, transfer.adapter.rank, transfer.lora, transfer.lengths
    gram, sources = lora.frame_gram, transfer.teachers + np.arange(units) % transfer.teachers
    rows = jnp.zeros((units + rank, lora.frame_size)).at[np.arange(units), sources].set(amplitude * lengths[:units])
    if border is not None:
        modes = escape_modes(transfer.fine_tuning(border))
        inside = modes.C @ lora.target - modes.D @ border.cross[:units] @ jnp.linalg.pinv(gram)
        learnt = jnp.where(modes.rates[:units, None] > 0, modes.up[:units] @ inside, 0)
        square = jnp.sum(learnt @ gram * learnt, axis=1, keepdims=True)
        learnt = jnp.where(square > 0, learnt / jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
        rows = rows.at[units:].set(amplitude * real_array(_row_shares(units, rank)).T @ learnt)
    overlaps = rows @ gram @ rows.T
    return Overlaps(transfer.up, rows @ gram, overlaps + diagonal_matrix(lengths**2 - diagonal(overlaps)))
