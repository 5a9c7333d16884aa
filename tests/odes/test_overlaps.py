"""Random starts against normalised Gaussian vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odes import Problem, random_overlaps
from tests.helpers import largest_z
from tests.problems import frame_vectors, single


def test_random_overlaps_follow_the_exact_law(key):
    """Against normalised Gaussian vectors in d = 6 dimensions: means and covariances within four standard errors."""
    problem = single(d=6, strength=0.7, alignment=0.5, rank=2)
    draws = 40_000
    ours = jax.vmap(lambda k: random_overlaps(problem, k))(jax.random.split(key, draws))
    F = frame_vectors(problem, 6, jax.random.key(2))
    rows = jax.random.normal(jax.random.key(3), (draws, 2, 6))
    rows /= jnp.linalg.norm(rows, axis=2, keepdims=True)

    def features(cross, gram):
        flat = jnp.concatenate([cross.reshape(draws, -1), gram[:, 0, 1:]], axis=1)
        return jnp.concatenate(
            [flat, flat[:, :, None].repeat(5, 2).reshape(draws, -1) * jnp.tile(flat, 5), flat**4], axis=1
        )

    theirs = features(rows @ F.T, rows @ rows.transpose(0, 2, 1))
    assert largest_z(features(ours.cross, ours.down_gram), theirs) < 4.5
    np.testing.assert_allclose(jax.vmap(jnp.diagonal)(ours.down_gram), 1, rtol=1e-12)


def test_random_overlaps_of_aligned_weights_are_proportional(key):
    """The frame (w*, w0 = mu w*) has rank one."""
    state = random_overlaps(single(d=50, strength=0.3), key)
    np.testing.assert_allclose(state.cross[0, 1], 0.3 * state.cross[0, 0], rtol=1e-12)


def test_random_overlaps_of_aligned_weights_have_a_slope(key):
    """s = strength * m, whichever way derivatives are taken: the frame's second direction has length zero."""

    def drawn(strength):
        return random_overlaps(Problem.single_index("erf", strength=strength), key).cross[0]

    m = drawn(0.5)[0]
    for jacobian in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(jacobian(drawn)(0.5), [0, m], atol=1e-14)


def test_too_small_a_dimension_is_refused(key):
    with pytest.raises(ValueError, match="`dimension` must be"):
        random_overlaps(single(d=3, batch=1, alignment=0.5, rank=2), key)
