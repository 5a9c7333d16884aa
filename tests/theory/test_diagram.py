"""The phase diagram of pretraining: slopes against differences, boundaries against SciPy and closed forms."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from odes import SGD, Adapter, Escape, Family, Problem
from theory import BoundaryKind, Region, boundaries, fine_tuning, phase_diagram


@functools.cache
def times(link):
    """The time of fine-tuning to a goal as a function of arrays of strengths and alignments."""

    def at(strength, alignment, goal):
        return fine_tuning(Problem.single_index(link, strength=strength, alignment=alignment), goal).time

    return eqx.filter_jit(jax.vmap(at, in_axes=(0, 0, None)))


def names(found):
    return [[Region(i).name for i in row] for row in np.asarray(found.region)]


def places(found):
    """The strength and the alignment of every place of the grid."""
    return [jnp.ravel(x) for x in jnp.meshgrid(found.strength, found.alignment)]


def test_time_and_slope_are_those_of_fine_tuning(linear_diagram):
    found, _ = linear_diagram
    (rho, cosine), time, step = places(found), times("linear"), 3e-3
    values = {k: np.asarray(time(rho + k * step, cosine, Escape())) for k in (-2, -1, 0, 1, 2)}
    np.testing.assert_allclose(np.ravel(found.time), values[0], rtol=1e-6)
    slope = (values[-2] - 8 * values[-1] + 8 * values[1] - values[2]) / (12 * step)
    np.testing.assert_allclose(np.ravel(found.slope), slope, rtol=2e-5, atol=1e-4)


def test_linear_links_know_the_distance_from_the_target_alone(linear_diagram):
    """G = |w0 - ω*|^2, C = D = 1, and the loss is G/2: T is longest where w0 is nearest to ω*, at rho = c, and endless at c = 1."""
    found, edges = linear_diagram
    rho, cosine = np.meshgrid(found.strength, found.alignment)
    distance = 1 - 2 * rho * cosine + rho**2
    np.testing.assert_allclose(found.tau, 2 / (np.sqrt(1 + 4 * distance) - 1), rtol=1e-12)
    expected = np.where(rho < cosine, "hurts", "helps")
    assert names(found) == expected.tolist()
    np.testing.assert_allclose(edges.alignment, found.alignment[1:])
    np.testing.assert_allclose(edges.strength, found.alignment[1:], rtol=1e-6)
    assert [BoundaryKind(int(i)).name for i in edges.kind] == ["maximum", "maximum", "maximum", "divergence"]
    assert np.isnan(edges.time[-1]) and np.all(np.asarray(edges.time[:-1]) > np.asarray(found.time[1:4]).max(axis=1))
    assert len(set(np.asarray(edges.line).tolist())) == 1


def test_share_of_the_search(linear_diagram):
    """The time to nine tenths of the loss, over the time to half of it."""
    found, _ = linear_diagram
    search = times("linear")(*places(found), Escape("loss", 0.9))
    np.testing.assert_allclose(found.share, np.reshape(search, found.time.shape) / found.time, rtol=1e-6)
    np.testing.assert_array_equal(found.searching, np.asarray(found.share) > 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("link, alignment, kinds", [("erf", 0.8, ["maximum", "minimum"]), ("relu", 0.3, ["maximum"])])
def test_boundaries_are_where_scipy_finds_the_extrema(link, alignment, kinds):
    found = phase_diagram(link, strengths=[0.35, 0.5, 0.8, 1.3], alignments=[alignment])
    edges, time = boundaries(found), times(link)
    assert [BoundaryKind(int(i)).name for i in edges.kind] == kinds

    def at(*strengths):
        return np.asarray(time(jnp.asarray(strengths), jnp.full(len(strengths), alignment), Escape()))

    def rises(strength, step=0.02):
        values = at(*(strength + step * np.array([-2, -1, 1, 2])))
        return float(values @ np.array([1, -8, 8, -1]))

    for strength, best, kind in zip(edges.strength.tolist(), edges.time.tolist(), kinds, strict=True):
        root = optimize.brentq(rises, 0.93 * strength, 1.07 * strength, xtol=1e-9)
        assert abs(root - strength) < 2e-5
        sign = 1 if kind == "minimum" else -1
        range_ = (0.9 * strength, 1.1 * strength)
        extremum = optimize.minimize_scalar(
            lambda x, s=sign: s * float(at(*[x] * 4)[0]), bounds=range_, method="bounded"
        )
        assert abs(extremum.x - strength) < 2e-3 * strength
        np.testing.assert_allclose(sign * extremum.fun, best, rtol=1e-6)


@pytest.mark.slow
def test_plateau_begins_where_the_damping_vanishes():
    r"""relu, orthogonal: D = 1/2 - 1/(2 pi rho), from E[relu(x) delta(rho z)] over two independent Gaussians."""
    slow = Family("relu", sgd=SGD(learning_rate=0.05))
    found = phase_diagram(slow, strengths=[0.2, 0.45], alignments=[0.0])
    assert names(found) == [["plateau", "hurts"]]
    edges = boundaries(found)
    np.testing.assert_allclose(edges.strength, [1 / np.pi], rtol=1e-7)
    assert [BoundaryKind(int(i)).name for i in edges.kind] == ["border"]


@pytest.mark.slow
def test_weights_that_meet_an_absolute_goal():
    """Linear, loss |w0 - ω*|^2 / 2: at c = 1 the goal is met from rho = 1 - sqrt(2 * goal) on."""
    found = phase_diagram("linear", strengths=[0.3, 0.7, 0.95], alignments=[1.0], goal=Escape("absolute", 0.02))
    assert names(found) == [["hurts", "hurts", "met"]]
    assert float(found.time[0, 2]) == 0 and np.isnan(found.share[0, 2])
    edges = boundaries(found)
    np.testing.assert_allclose(edges.strength, [0.8], rtol=1e-7)
    assert BoundaryKind(int(edges.kind[0])).name == "border" and float(edges.time[0]) < 1e-2 * float(found.time[0, 1])
    assert [Region(int(x)).name for x in (edges.before[0], edges.after[0])] == ["hurts", "met"]


def test_what_cannot_be_integrated_is_said():
    """Nothing is integrated where the learning rate is too large, nor where the search takes forever."""
    large = phase_diagram(Family("linear", sgd=SGD(learning_rate=1.5)), strengths=[0.5, 0.8], alignments=[0.5])
    assert names(large) == [["coarse", "coarse"]] and np.isnan(large.time).all()
    assert boundaries(large).strength.size == 0
    endless = phase_diagram("linear", strengths=[0.99, 1.0, 1.01], alignments=[1.0])
    assert names(endless) == [["hurts", "unreached", "helps"]] and np.isnan(endless.time).all()
    edges = boundaries(endless)
    np.testing.assert_allclose(edges.strength, [1.0], rtol=1e-12)
    assert BoundaryKind(int(edges.kind[0])).name == "divergence"
    untrained = phase_diagram(Family("linear", adapter=Adapter(lr_ratio=0.0)), strengths=[0.5, 0.8], alignments=[0.5])
    assert names(untrained) == [["unreached", "unreached"]]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"strengths": [0.5]}, "`strengths` must be a list of at least two"),
        ({"strengths": [0.5, 0.3]}, "`strengths` must be positive, finite and increasing"),
        ({"strengths": [-0.5, 0.3]}, "`strengths` must be positive"),
        ({"alignments": []}, "`alignments` must be a list of at least one"),
        ({"alignments": [0.2, 1.2]}, "`alignments` must be increasing, between -1 and 1"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        phase_diagram("linear", **{"strengths": [0.3, 0.5], "alignments": [0.5]} | changes)


def test_bad_tolerance(linear_diagram):
    with pytest.raises(ValueError, match="`tolerance` must be positive"):
        boundaries(linear_diagram[0], tolerance=0.0)
