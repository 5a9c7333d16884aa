"""What tests of every package say about trees of arrays and about samples."""

import jax
import numpy as np
from scipy import stats

TOO_SMALL = 1e-4
"""A p-value below which two samples do not share a law (some 150 statistics are tested here in all)."""


def pairs(one, other):
    """The leaves of two trees, side by side."""
    return zip(*map(jax.tree.leaves, (one, other)), strict=True)


def same_bits(one, other):
    for x, y in pairs(one, other):
        np.testing.assert_array_equal(x, y)


def close(one, other, **tolerances):
    for x, y in pairs(one, other):
        np.testing.assert_allclose(x, y, **tolerances)


def difference(one, other):
    """The largest difference between two trees."""
    return max(float(np.abs(x - y).max()) for x, y in pairs(one, other))


def at(tree, *where):
    """The same entry or slice of every leaf."""
    return jax.tree.map(lambda x: x[where], tree)


def central_slopes(function, point):
    """The derivatives of a function of numbers (n,), last axis n, by central differences with relative steps of 1e-3."""
    slopes = []
    for i in range(point.size):
        later, earlier = (function(point.at[i].mul(factor)) for factor in (1.001, 0.999))
        slopes.append((later - earlier) / (0.002 * point[i]))
    return np.stack(slopes, axis=-1)


def smallest_p(one, two):
    """The smallest two-sample Kolmogorov-Smirnov p-value over the columns and twenty random directions, which see joint laws."""
    spread = one.std(axis=0)
    varies = spread > 1e-6 * np.abs(one).max(axis=0)
    scaled = [(x[:, varies] - one[:, varies].mean(axis=0)) / spread[varies] for x in (one, two)]
    directions = np.random.default_rng(0).normal(size=(varies.sum(), 20))
    joined = [np.concatenate([x, x @ directions], axis=1) for x in scaled]
    return min(stats.ks_2samp(a, b).pvalue for a, b in zip(*(x.T for x in joined), strict=True))


def largest_z(one, two):
    """The largest difference between the means of two samples of one size, column by column, in standard errors."""
    error = np.sqrt((one.var(axis=0) + two.var(axis=0)) / len(one))
    return float(np.abs((one.mean(axis=0) - two.mean(axis=0)) / error).max())


def features(run, record=-1):
    """Every overlap and the loss at one record, a row for every seed."""
    state = jax.tree.map(lambda x: np.asarray(x[:, record]), run.overlaps)
    rank = state.down_gram.shape[-1]
    rows, columns = np.tril_indices(rank)
    parts = [
        state.up.reshape(len(state.up), -1),
        state.cross.reshape(len(state.up), -1),
        state.down_gram[:, rows, columns],
        np.asarray(run.loss)[:, record, None],
    ]
    if state.readout is not None:
        parts.append(state.readout)
    return np.concatenate(parts, axis=1)
