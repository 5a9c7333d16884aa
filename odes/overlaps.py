r"""The state of the limit: the overlaps that close the dynamics, and their exact random start at dimension d."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from odes.arguments import (
    ArrayLike,
    concrete,
    positive,
    real_array,
    require,
    require_key,
    require_kind,
    require_shape,
)
from odes.diagonals import diagonal, diagonal_matrix
from odes.problem import Problem
from odes.programs import program
from odes.quadrature import safe_sqrt
from odes.shown import Shown

_SPANS = 1e-10
"""A direction counts if its part across those before has at least this part of its squared length."""


class Overlaps(Shown):
    r"""The overlaps of an adapter of rank r.

    - `up` (K, r): U itself;
    - `cross` (r, f): $X = V F^T$, for a single-index problem the columns m = v·ω* and s = v·w0;
    - `down_gram` (r, r): $R = V V^T$;
    - `readout` (K,): a, where readouts are trained; None where they rest, and are the problem's.

    Trajectories and batches carry the same arrays with more axes in front.
    """

    up: Float[Array, "*batch K r"]
    cross: Float[Array, "*batch r f"]
    down_gram: Float[Array, "*batch r r"]
    readout: Float[Array, "*batch K"] | None = None

    def variables(self, *batch: str, prefix: str = "") -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        """The arrays as variables of an `xarray.Dataset`, their names after the `prefix`; `batch` names the axes in front."""
        axes = {
            "up": ("unit", "rank"),
            "cross": ("rank", "frame"),
            "down_gram": ("rank", "rank_"),
            "readout": ("unit",),
        }
        arrays = {name: getattr(self, name) for name in axes}
        return {
            prefix + name: ((*batch, *axes[name]), np.asarray(array))
            for name, array in arrays.items()
            if array is not None
        }

    @classmethod
    def from_variables(cls, dataset: Any, prefix: str = "") -> "Overlaps":
        """The overlaps whose `variables` are in a dataset."""
        names = [field.name for field in dataclasses.fields(cls) if prefix + field.name in dataset]
        return cls(**{name: jax.device_put(dataset[prefix + name].values) for name in names})


class Covariances(Shown):
    r"""The covariances of the preactivations: `Q` (K, K) $= WW^T$, `M` (K, P) $= WT^T$, `P` (P, P) $= TT^T$."""

    Q: Float[Array, "K K"]
    M: Float[Array, "K P"]
    P: Float[Array, "P P"]


def covariances(problem: Problem, overlaps: Overlaps) -> Covariances:
    r"""The preactivations' covariances at given overlaps.

    $Q = A\Gamma A^T + \kappa(AX^TU^T + UXA^T) + \kappa^2 URU^T$, $M = (A\Gamma + \kappa UX)\tilde B^T$, $P = \tilde B\Gamma\tilde B^T$;
    for a single-index problem $Q = \rho^2 + 2\kappa us + \kappa^2u^2q$ and $M = \rho c + \kappa um$.
    """
    step = problem.adapter.kappa * overlaps.up
    linear = problem.frozen @ overlaps.cross.T @ step.T
    frozen = problem.frozen @ problem.frame_gram
    return Covariances(
        Q=frozen @ problem.frozen.T + linear + linear.T + step @ overlaps.down_gram @ step.T,
        M=(frozen + step @ overlaps.cross) @ problem.target.T,
        P=problem.target @ problem.frame_gram @ problem.target.T,
    )


def with_readout(problem: Problem, overlaps: Overlaps) -> Problem:
    """The problem with the readouts of the overlaps, where these have any."""
    if overlaps.readout is None:
        return problem
    return eqx.tree_at(lambda p: p.readout, problem, overlaps.readout)


def with_own_readout(problem: Problem, overlaps: Overlaps) -> Overlaps:
    """The overlaps with the problem's readouts, where those are trained and the overlaps have none."""
    if overlaps.readout is not None or not problem.sgd.trains_readouts:
        return overlaps
    batch = overlaps.up.shape[:-2]
    return dataclasses.replace(overlaps, readout=jnp.broadcast_to(problem.readout, (*batch, problem.units[0])))


@program
def target_overlaps(problem: Problem, overlaps: Overlaps) -> Float[Array, "*batch K P"]:
    r"""$WT^T = (A\Gamma + \kappa UX)\tilde B^T$ of the whole student with what it learns, at one or many overlaps."""
    start = problem.frozen @ problem.frame_gram @ problem.target.T
    gained = problem.adapter.kappa * overlaps.up @ (overlaps.cross @ problem.target.T)
    return jnp.broadcast_to(start, gained.shape) + gained


def target_overlap(problem: Problem, overlaps: Overlaps) -> Float[Array, "*batch"]:
    r"""$w\cdot\omega^* = \rho c + \kappa\,u\cdot m$ of the whole student with what it learns, at one or many overlaps.

    **Raises** ArgumentError for more than one student or teacher unit.
    """
    problem.require_one_unit()
    return target_overlaps(problem, overlaps)[..., 0, 0]


def pretrained(problem: Problem) -> Overlaps:
    """The point where the search phase begins: U = 0, no overlap, orthonormal rows of V (the limit d -> infinity)."""
    rank = problem.adapter.rank
    dtype = problem.frame_gram.dtype
    return Overlaps(
        up=jnp.zeros((problem.units[0], rank), dtype),
        cross=jnp.zeros((rank, problem.frame_size), dtype),
        down_gram=jnp.eye(rank, dtype=dtype),
    )


def frame_overlaps(problem: Problem, *, up: ArrayLike, rows: ArrayLike | None = None) -> Overlaps:
    r"""The overlaps at U = `up` and rows of V in the span of the fixed directions, V = BF with B = `rows` (r, f), 0 unless given.

    $X = B\Gamma$, $R = B\Gamma B^T$. With rows 0 this is the other start of LoRA, $V = 0$ and a given U; with $U = 1$ and B the
    coordinates of W0 it is the start of training all weights from there.

    **Raises** ArgumentError for shapes that do not fit, and for rows of length 0 that are normalised.
    """
    rank, frame = problem.adapter.rank, problem.frame_size
    rows = jnp.zeros((rank, frame)) if rows is None else real_array(rows)
    require_shape("rows", rows, "(r, f)", (rank, frame))
    gram = rows @ problem.frame_gram @ rows.T
    if problem.adapter.normalized:
        require("rows", diagonal(gram), "of length 1, since the adapter's are normalised", lambda x: np.isclose(x, 1))
    up = jnp.broadcast_to(real_array(up), (problem.units[0], rank))
    return Overlaps(up, rows @ problem.frame_gram, gram)


def require_start(problem: Problem, start: Overlaps) -> None:
    """Raises ArgumentError unless `start` are overlaps of the problem's adapter."""
    require_kind("start", start, Overlaps, "Overlaps, such as those of random_overlaps")
    units, rank, frame = problem.units[0], problem.adapter.rank, problem.frame_size
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "up": ("(K, r)", (units, rank)),
        "cross": ("(r, f)", (rank, frame)),
        "down_gram": ("(r, r)", (rank, rank)),
    }
    if start.readout is not None:
        shapes["readout"] = ("(K,)", (units,))
    for name, (symbols, shape) in shapes.items():
        require_shape(f"start.{name}", getattr(start, name), symbols, shape)


def gram_root(gram: Float[Array, "f f"]) -> tuple[Float[Array, "f f"], Bool[Array, " f"]]:
    """Vectors with the given Gram matrix, as rows, in a basis in which only some directions (the second result) are not zero."""
    eigenvalues, vectors = jnp.linalg.eigh(gram)
    spans = eigenvalues > 1e3 * jnp.finfo(gram.dtype).eps * eigenvalues[-1]
    return vectors * safe_sqrt(jnp.where(spans, eigenvalues, 0))[None], spans


def orthonormal_components(gram: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Rows with the given Gram matrix, along orthonormal directions that they define one after the other (Gram and Schmidt).

    The result is lower triangular. A row counts as one of those before if its part across them has less than 1e-10 of its square
    length; its own column is 0 then.
    """
    columns, rest = [], gram
    for row in range(gram.shape[0]):
        spans = rest[row, row] > _SPANS * gram[row, row]
        columns.append(jnp.where(spans, rest[row] / jnp.sqrt(jnp.where(spans, rest[row, row], 1)), 0))
        rest = rest - jnp.outer(columns[-1], columns[-1])
    return jnp.tril(jnp.stack(columns, axis=1))


def random_overlaps(problem: Problem, key: PRNGKeyArray, *, up: ArrayLike = 0.0, length: ArrayLike = 1.0) -> Overlaps:
    r"""The overlaps of a random start at dimension d, drawn exactly: rows of V uniform on the sphere with radius `length`, U = `up`.

    Both are one number, or one for every row of V (its column of U); U may be given whole, as (K, r).

    The components of a Gaussian row in span F are normal; the remainders of the r rows lie in d - rank F dimensions
    and their Gram matrix is Wishart, drawn by Bartlett's decomposition; then the rows are normalised. The overlaps X are
    N(0, Γ/d) to leading order. Costs O(r^2) at any d.

    **Raises** ArgumentError if d is below rank F + r, where the r rows would not be independent of the frame.
    """
    require_kind("problem", problem, Problem, "a Problem")
    require_key(key)
    require("up", up, "finite", np.isfinite)
    shapes = [(problem.units[0], problem.adapter.rank)[n:] for n in range(3)]
    require("up", up, "one number, (r,) or (K, r)", lambda x: np.shape(x) in shapes)
    require("length", length, "positive and finite", positive)
    units, rank = problem.units[0], problem.adapter.rank
    rows, freedom = _drawn(problem.frame_gram, problem.sgd.dimension, key, real_array(length), rank=rank)
    overlaps = Overlaps(jnp.broadcast_to(real_array(up), (units, rank)), *rows)
    if concrete(freedom):
        dimension = np.asarray(problem.sgd.dimension)
        least = int(dimension - np.asarray(freedom)) + rank
        require("dimension", dimension, f"at least {least}, the number of directions", lambda x: x >= least)
    return overlaps


@program
def _drawn(
    gram: Float[Array, "f f"],
    dimension: Float[Array, ""],
    key: PRNGKeyArray,
    length: Float[Array, "*r"],
    *,
    rank: int,
) -> tuple[tuple[Float[Array, "r f"], Float[Array, "r r"]], Float[Array, ""]]:
    """X and R of a random start, and the number of dimensions outside span F; the same program for all link functions."""
    root, spans = gram_root(gram)
    freedom = dimension - jnp.sum(spans, dtype=gram.dtype)
    inside_key, below_key, diagonal_key = jax.random.split(key, 3)
    inside = jax.random.normal(inside_key, (rank, len(gram)), gram.dtype) * spans.astype(gram.dtype)[None]
    below = jnp.tril(jax.random.normal(below_key, (rank, rank), gram.dtype), -1)
    freedoms = freedom - jnp.arange(rank, dtype=gram.dtype)
    beside = jnp.sqrt(jax.random.chisquare(diagonal_key, freedoms, dtype=gram.dtype))
    return rows_of_length(inside, root, below + diagonal_matrix(beside), length), freedom


def rows_of_length(
    inside: Float[Array, "r k"], root: Float[Array, "f k"], outside: Float[Array, "r r"], length: Float[Array, "*r"]
) -> tuple[Float[Array, "r f"], Float[Array, "r r"]]:
    """X and R of rows that are rescaled to the given `length`.

    Before that they have the components `inside` along orthonormal directions, whose overlaps with the frame are `root`, and
    `outside` along others.
    """
    gram = inside @ inside.T + outside @ outside.T
    scale = length / jnp.sqrt(diagonal(gram))
    return inside @ root.T * scale[:, None], gram * jnp.outer(scale, scale)
