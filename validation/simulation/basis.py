r"""Coordinates of all fixed and trained directions in an orthonormal basis: where both simulators start."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odes import Overlaps, Problem, gram_root
from odes.programs import program


class FrameBasis(eqx.Module):
    r"""The frame's rows in an orthonormal basis of their span, whose first directions span the teachers.

    `rows` (f, f') with $\Gamma$ = rows rows^T, f' = rank Γ; `teacher` (P, P'), $T$ in the first P' = min(P, f') directions.
    """

    rows: Float[Array, "f span"]
    teacher: Float[Array, "P teachers"]


class Coordinates(eqx.Module):
    r"""The rows of V in an orthonormal basis of span(F, V), and U.

    `up` (K, r) is U, `readout` (K,) the readouts where they are trained; `inside` (r, f') and `outside` (r, r) are the components
    of V within span F and orthogonal to it, the second up to a rotation, so that $X$ = inside rows^T and
    $R$ = inside inside^T + outside outside^T. Unlike R itself they cannot become indefinite by rounding.
    """

    up: Float[Array, "K r"]
    inside: Float[Array, "r span"]
    outside: Float[Array, "r r"]
    readout: Float[Array, " K"] | None = None


def spanning_basis(problem: Problem) -> Float[Array, "f span"]:
    """The frame's rows in an orthonormal basis of their span, which depends on their Gram matrix alone.

    The basis's size is decided now, so the problem's arrays must be concrete.
    """
    root, spans = (np.asarray(x) for x in _gram_root(problem.frame_gram))
    return jax.device_put(root[:, spans])


_gram_root = program(gram_root)


def frame_basis(problem: Problem) -> FrameBasis:
    """The basis of the frame's span whose first directions span the teachers; the problem's arrays must be concrete."""
    root = np.asarray(spanning_basis(problem))
    target = np.asarray(problem.target, float) @ root
    rotation, _ = np.linalg.qr(target.T, mode="complete")
    teachers = min(target.shape)
    return FrameBasis(*jax.device_put((root @ rotation, (target @ rotation)[:, :teachers])))


@program
def to_coordinates(rows: Float[Array, "f span"], overlaps: Overlaps) -> Coordinates:
    """Coordinates of V that have the given overlaps with a frame of the given `rows`."""
    inside = overlaps.cross @ jnp.linalg.pinv(rows).T
    eigenvalues, vectors = jnp.linalg.eigh(overlaps.down_gram - inside @ inside.T)
    outside = vectors * jnp.sqrt(jnp.maximum(eigenvalues, 0))[None]
    return Coordinates(overlaps.up, inside, outside, overlaps.readout)


def to_overlaps(rows: Float[Array, "f span"], state: Coordinates) -> Overlaps:
    """The overlaps of V at given coordinates."""
    gram = state.inside @ state.inside.T + state.outside @ state.outside.T
    return Overlaps(state.up, state.inside @ rows.T, gram, state.readout)
