"""The diagonal of square matrices by slices and masks: `jnp.diagonal` is a gather, of which compiled programs would hold dozens."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def diagonal(matrix: Float[Array, "*batch n n"]) -> Float[Array, "*batch n"]:
    """The diagonals of square matrices.

    >>> diagonal(jnp.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [1.0, 4.0]
    """
    size = matrix.shape[-1]
    return matrix.reshape(*matrix.shape[:-2], size**2)[..., :: size + 1]


def diagonal_matrix(entries: Float[Array, " n"]) -> Float[Array, "n n"]:
    """The matrix with the given diagonal and 0 elsewhere.

    >>> diagonal_matrix(jnp.array([1.0, 4.0])).tolist()
    [[1.0, 0.0], [0.0, 4.0]]
    """
    return jnp.where(np.eye(entries.size, dtype=bool), entries[:, None], 0)
