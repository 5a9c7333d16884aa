"""Starts of runs in stages: against weights and rows of V written out in coordinates."""

import jax.numpy as jnp
import numpy as np

from odes import Adapter, Transfer, gradient_at
from theory import escape_modes, staged_start

DIMENSION, AMPLITUDE = 12, 0.3


def in_coordinates(transfer, overlaps):
    """Target and source directions in the first coordinates, and rows of V with the given overlaps."""
    gram = np.asarray(transfer.lora.frame_gram)
    frame = np.zeros((len(gram), DIMENSION))
    frame[:, : len(gram)] = np.linalg.cholesky(gram)
    inside = np.linalg.solve(gram, np.asarray(overlaps.cross).T).T @ frame
    rest = np.linalg.cholesky(np.asarray(overlaps.down_gram) - inside @ inside.T)
    inside[:, len(gram) : len(gram) + len(rest)] += rest
    return frame, inside


def test_an_adapter_of_several_units_waits_along_every_growing_mode():
    """The gradient of both units in coordinates, weighted by a mode's column of U, in the span of the frame: what its row lies along."""
    transfer = Transfer("erf", units=2, teachers=2, cosine=jnp.array([0.9, 0.3]), length=0.5, adapter=Adapter(3))
    border = staged_start(transfer, None, 0.6)
    np.testing.assert_allclose(border.cross[0, 2], 0.6 * 0.5)
    np.testing.assert_array_equal(np.asarray(border.cross[2:]), 0.0)
    start = staged_start(transfer, border, AMPLITUDE)
    np.testing.assert_allclose(jnp.diagonal(start.down_gram), [0.25, 0.25, 1, 1, 1])
    (frame, weights), (_, rows) = in_coordinates(transfer, border), in_coordinates(transfer, start)
    gradient, modes = gradient_at(transfer.lora, border), escape_modes(transfer.fine_tuning(border))
    learnt = np.asarray(gradient.C) @ frame[:2] - np.asarray(gradient.D) @ weights[:2]
    spanned = np.linalg.pinv(frame) @ frame
    for mode, places in ((0, [2, 4]), (1, [3])):
        along = spanned @ learnt.T @ np.asarray(modes.up[mode])
        along *= AMPLITUDE / np.sqrt(len(places)) / np.linalg.norm(along)
        for place in places:
            np.testing.assert_allclose(spanned @ rows[place], along, atol=1e-12)


def test_without_growing_modes_the_adapter_has_no_overlaps():
    """Weights that are the target's directions already."""
    transfer = Transfer("erf", units=2, teachers=2)
    learnt = staged_start(transfer, None, 1.0)
    start = staged_start(transfer, learnt, AMPLITUDE)
    np.testing.assert_allclose(start.cross[2:], 0.0, atol=1e-12)
