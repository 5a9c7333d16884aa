"""The phase diagram of pretraining: slopes against differences, boundaries against SciPy and closed forms; the command."""

import functools
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from odes import SGD, Adapter, Escape, Problem, load
from theory import KINDS, REGIONS, boundaries, fine_tuning, regimes
from validation.cli.main import main
from validation.figures.phase_diagram import filled, to_dataset

STRENGTHS = np.array([0.1, 0.33, 0.55, 0.88, 1.3])
ALIGNMENTS = np.array([0.0, 0.3, 0.5, 0.8, 1.0])


@functools.cache
def times(link):
    """The time of fine-tuning to a goal as a function of arrays of strengths and alignments."""

    def at(strength, alignment, goal):
        return fine_tuning(Problem.single_index(link, strength=strength, alignment=alignment), goal).time

    return eqx.filter_jit(jax.vmap(at, in_axes=(0, 0, None)))


def names(found):
    return [[list(REGIONS)[i] for i in row] for row in np.asarray(found.region)]


@pytest.fixture(scope="module")
def linear():
    found = regimes("linear", strengths=STRENGTHS, alignments=ALIGNMENTS)
    return found, boundaries(found)


def test_time_and_slope_are_those_of_fine_tuning(linear):
    found, _ = linear
    rho, cosine = (jnp.asarray(x.ravel()) for x in np.meshgrid(STRENGTHS, ALIGNMENTS))
    time, step = times("linear"), 3e-3
    values = {k: np.asarray(time(rho + k * step, cosine, Escape())) for k in (-2, -1, 0, 1, 2)}
    np.testing.assert_allclose(np.ravel(found.time), values[0], rtol=1e-6)
    slope = (values[-2] - 8 * values[-1] + 8 * values[1] - values[2]) / (12 * step)
    np.testing.assert_allclose(np.ravel(found.slope), slope, rtol=2e-5, atol=1e-4)


def test_linear_links_know_the_distance_from_the_target_alone(linear):
    """G = |w0 - ω*|^2, C = D = 1, and the loss is G/2: T is longest where w0 is nearest to ω*, at rho = c, and endless at c = 1."""
    found, edges = linear
    distance = 1 - 2 * STRENGTHS * ALIGNMENTS[:, None] + STRENGTHS**2
    np.testing.assert_allclose(found.tau, 2 / (np.sqrt(1 + 4 * distance) - 1), rtol=1e-12)
    expected = np.where(STRENGTHS < ALIGNMENTS[:, None], "hurts", "helps")
    assert names(found) == expected.tolist()
    np.testing.assert_allclose(edges.alignment, ALIGNMENTS[1:])
    np.testing.assert_allclose(edges.strength, ALIGNMENTS[1:], rtol=1e-6)
    assert [list(KINDS)[i] for i in edges.kind] == ["maximum", "maximum", "maximum", "divergence"]
    assert np.isnan(edges.time[-1]) and np.all(np.asarray(edges.time[:-1]) > np.asarray(found.time[1:4]).max(axis=1))
    assert len(set(np.asarray(edges.line).tolist())) == 1


def test_regions_are_filled_between_the_boundaries(linear):
    """The region on the fine grid is that of rho < c or rho > c, to a cell."""
    fine, across, number, share = filled(to_dataset(*linear))
    far = np.abs(fine - across[:, None]) > 2 * (fine[1] - fine[0])
    expected = np.where(fine < across[:, None], list(REGIONS).index("hurts"), list(REGIONS).index("helps"))
    inside = far & (across[:, None] > ALIGNMENTS[1])
    np.testing.assert_array_equal(number[inside], expected[inside])
    assert np.all((share > 0) & (share <= 1))


def test_share_of_the_search(linear):
    """The time to nine tenths of the loss, over the time to half of it."""
    found, _ = linear
    rho, cosine = (jnp.asarray(x.ravel()) for x in np.meshgrid(STRENGTHS, ALIGNMENTS))
    search = times("linear")(rho, cosine, Escape("loss", 0.9))
    np.testing.assert_allclose(found.share, np.reshape(search, found.time.shape) / found.time, rtol=1e-6)
    np.testing.assert_array_equal(found.searching, np.asarray(found.share) > 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("link, alignment, kinds", [("erf", 0.8, ["maximum", "minimum"]), ("relu", 0.3, ["maximum"])])
def test_boundaries_are_where_scipy_finds_the_extrema(link, alignment, kinds):
    found = regimes(link, strengths=[0.35, 0.5, 0.8, 1.3], alignments=[alignment])
    edges, time = boundaries(found), times(link)
    assert [list(KINDS)[i] for i in edges.kind] == kinds

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
    found = regimes("relu", strengths=[0.2, 0.45], alignments=[0.0])
    assert names(found) == [["plateau", "hurts"]]
    edges = boundaries(found)
    np.testing.assert_allclose(edges.strength, [1 / np.pi], rtol=1e-7)
    assert [list(KINDS)[i] for i in edges.kind] == ["border"]


@pytest.mark.slow
def test_weights_that_meet_an_absolute_goal():
    """Linear, loss |w0 - ω*|^2 / 2: at c = 1 the goal is met from rho = 1 - sqrt(2 * goal) on."""
    found = regimes("linear", strengths=[0.3, 0.7, 0.95], alignments=[1.0], goal=Escape("absolute", 0.02))
    assert names(found) == [["hurts", "hurts", "met"]]
    assert float(found.time[0, 2]) == 0 and np.isnan(found.share[0, 2])
    edges = boundaries(found)
    np.testing.assert_allclose(edges.strength, [0.8], rtol=1e-7)
    assert list(KINDS)[int(edges.kind[0])] == "border" and float(edges.time[0]) < 1e-2 * float(found.time[0, 1])
    assert [list(REGIONS)[int(x)] for x in (edges.before[0], edges.after[0])] == ["hurts", "met"]


def test_what_cannot_be_integrated_is_said():
    """Nothing is integrated where the learning rate is too large, nor where the search takes forever."""
    large = regimes("linear", strengths=[0.5, 0.8], alignments=[0.5], sgd=SGD(learning_rate=1.5))
    assert names(large) == [["coarse", "coarse"]] and np.isnan(large.time).all()
    assert boundaries(large).strength.size == 0
    endless = regimes("linear", strengths=[0.99, 1.0, 1.01], alignments=[1.0])
    assert names(endless) == [["hurts", "unreached", "helps"]] and np.isnan(endless.time).all()
    edges = boundaries(endless)
    np.testing.assert_allclose(edges.strength, [1.0], rtol=1e-12)
    assert list(KINDS)[int(edges.kind[0])] == "divergence"
    untrained = regimes("linear", strengths=[0.5, 0.8], alignments=[0.5], adapter=Adapter(lr_ratio=0.0))
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
        regimes("linear", **{"strengths": [0.3, 0.5], "alignments": [0.5]} | changes)


def test_bad_tolerance(linear):
    with pytest.raises(ValueError, match="`tolerance` must be positive"):
        boundaries(linear[0], tolerance=0.0)


def command(*words):
    return main(["phase-diagram", "--activation", "linear", *words])


def test_command_prints_draws_and_stores(capsys, tmp_path):
    file, plot = tmp_path / "diagram.nc", tmp_path / "diagram.png"
    words = ["--strength", "0.2:1.2:4", "--alignment", "0.5", "0.8", "--output", str(file), "--plot", str(plot)]
    assert command(*words, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    keys = "strength alignment region time slope share searching tau D trusted boundaries regions kinds"
    assert list(result) == keys.split()
    assert list(result["boundaries"][0]) == "alignment strength kind before after time line".split()
    assert [edge["kind"] for edge in result["boundaries"]] == ["maximum", "maximum"]
    np.testing.assert_allclose([edge["strength"] for edge in result["boundaries"]], [0.5, 0.8], rtol=1e-6)
    stored = load(file)
    np.testing.assert_array_equal(stored["time"], np.array(result["time"]))
    assert stored["region"].values.tolist() == result["region"] and stored.attrs["kind"] == '"phase-diagram"'
    assert plot.stat().st_size > 5000


def test_command_prints_a_table(capsys):
    assert command("--strength", "0.2:1.2:4", "--alignment", "0.5") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "alignment" and "maximum 0.5" in lines[1] and lines[1].split()[1] == "hurts"
    assert any(line.startswith("maximum: the worst strength") for line in lines)
    assert "the search takes more than half of the time at 4 of 4 places of the grid" in lines


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--strength 0.5", "--strength takes at least two different strengths"),
        ("--strength 0.5 x", "--strength takes numbers or ranges"),
        ("--alignment 0:1.5:4", "--alignment must be between -1 and 1, but is 1.5"),
        ("--mixture 0.5", "--mixture"),
        ("--alignment 0.5 --plot a.png", "--plot needs at least two different alignments"),
        ("--criterion los", "--criterion must be one of loss, overlap, absolute, but is 'los'"),
        ("--threshold 1.5", "--threshold must be between 0 and 1"),
        ("--teacher Relu", "--teacher must be"),
        ("--batch-size 0", "--batch-size must be at least 1"),
        ("--output diagram.txt", "--output must end in .nc"),
    ],
)
def test_bad_flags_are_one_line(flags, message, capsys):
    assert command(*flags.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("searchphase phase-diagram: ") and message in captured.err
    assert captured.err.count("\n") == 1 and not captured.out
