"""The noise of several units: against tensor quadrature, exact identities and other points."""

import functools
import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import integrate, stats

from odes import SGD, Activation, Covariances, Problem, activation, kurtosis_of, noise_error, noise_of
from odes.orthants import half_moments, orthant_probability
from odes.quadrature import cholesky_root

LABELS = 0.3


@jax.jit
def orthant_moments(covariance):
    """The probability that all variables are positive, and E[x_0 x_j; all positive] for every j, in one program."""
    moments = [half_moments(covariance, j) for j in range(covariance.shape[0])]
    return orthant_probability(covariance), jnp.stack(moments)


def committee(student, units, teachers, *, teacher=None, readout=None):
    """K student and P teacher units of different readouts, with label noise; their overlaps are given to `noise_of`."""
    total = units + teachers
    return Problem(
        student,
        teacher=teacher,
        frame_gram=np.eye(total),
        frozen=np.eye(total)[:units],
        target=np.eye(total)[units:],
        readout=np.linspace(1, 0.6, units) if readout is None else readout,
        teacher_readout=np.linspace(0.8, -0.5, teachers),
        sgd=SGD(label_noise=LABELS),
    )


def overlaps_of(units, total, seed):
    """Covariances of random preactivations."""
    rows = np.random.default_rng(seed).normal(size=(total, total + 1)) / np.sqrt(total + 1)
    S = jnp.asarray(rows @ rows.T)
    return Covariances(S[:units, :units], S[:units, units:], S[units:, units:])


def by_tensor_rule(problem, covariance, nodes):
    """N in all K + P dimensions: by Gauss-Hermite quadrature if `nodes` is a number, else by the trapezoidal rule at the nodes."""
    z, w = (nodes, stats.norm.pdf(nodes)) if np.ndim(nodes) else np.polynomial.hermite_e.hermegauss(nodes)
    S = np.block([[covariance.Q, covariance.M], [covariance.M.T, covariance.P]])
    return np.asarray(_tensor_sum(problem, np.linalg.cholesky(S), z, w / w.sum()))


@jax.jit
def _tensor_sum(problem, root, z, w):
    """The sum over all tuples of nodes, of which those with the same first node are taken together."""
    units, others = problem.units[0], root.shape[0] - 1
    rest = jnp.stack(jnp.meshgrid(*[z] * others, indexing="ij")).reshape(others, -1)
    weights = functools.reduce(jnp.multiply, jnp.meshgrid(*[w] * others, indexing="ij")).ravel()

    def given(first, weight):
        x = root @ jnp.concatenate([jnp.full((1, rest.shape[1]), first), rest])
        error = problem.readout @ problem.student(x[:units]) - problem.teacher_readout @ problem.teacher(x[units:])
        slopes = problem.readout[:, None] * problem.student.derivative(x[:units])
        return weight * ((weights * (error**2 + LABELS))[None] * slopes) @ slopes.T

    return jnp.sum(jax.lax.map(lambda node: given(*node), (z, w)), axis=0)


EVEN = np.linspace(-8, 8, 46)


@pytest.mark.parametrize(
    "student, teacher, nodes",
    [
        ("erf(x/3)", None, EVEN),
        ("erf(0.3*x)", "erf(-0.4*x)", EVEN),
        ("He2", None, 5),
        ("He3", "He2+0.5*He1", 7),
        ("He2+0.5*He3", None, 7),
        ("linear", "He4", 6),
        ("He2(x/2)", None, 5),
    ],
)
@pytest.mark.parametrize("units, teachers", [(2, 2), (3, 1), (1, 2)])
def test_closed_forms_by_tensor_quadrature(student, teacher, nodes, units, teachers):
    problem, covariance = committee(student, units, teachers, teacher=teacher), overlaps_of(units, units + teachers, 3)
    reference = by_tensor_rule(problem, covariance, nodes)
    ours = noise_of(problem, covariance)
    np.testing.assert_allclose(
        ours, reference, rtol=0, atol=(1e-9 if "erf" in student else 1e-12) * np.abs(reference).max()
    )
    assert float(noise_error(problem, covariance)) == 0


def in_fifty_digits(S, c, units):
    """N of erf units without label noise, by I4 of every four of them."""
    with mpmath.workdps(50):
        exact, c = mpmath.matrix(S.tolist()), [mpmath.mpf(x) for x in c]
        N = np.zeros((units, units))
        for k, l in itertools.combinations_with_replacement(range(units), 2):
            G = mpmath.matrix([[exact[a, b] for b in (k, l)] for a in (k, l)]) + mpmath.eye(2) / 2
            E = mpmath.matrix([[exact[i, a] for a in (k, l)] for i in range(len(c))])
            T = exact - E * G**-1 * E.T
            square = sum(
                c[i] * c[j] * mpmath.asin(T[i, j] / mpmath.sqrt((0.5 + T[i, i]) * (0.5 + T[j, j])))
                for i, j in np.ndindex(len(c), len(c))
            )
            N[k, l] = N[l, k] = c[k] * c[l] * 4 / mpmath.pi**2 * square / mpmath.sqrt(mpmath.det(G))
    return N


@pytest.mark.parametrize(
    "units, teachers, directions, scale, error",
    [
        pytest.param(2, 2, 2, 100, 1e-9, id="variances of 1e4, nearly dependent"),
        pytest.param(8, 8, 16, 0.3, 1e-13, id="an even number of units"),
        pytest.param(8, 9, 17, 0.3, 1e-13, id="an odd number of units"),
    ],
)
def test_the_closed_form_in_fifty_digits(units, teachers, directions, scale, error):
    rows = scale * np.random.default_rng(1).normal(size=(units + teachers, directions))
    S, problem = rows @ rows.T, committee("erf", units, teachers).replace(label_noise=0.0)
    blocks = (jnp.asarray(x) for x in (S[:units, :units], S[:units, units:], S[units:, units:]))
    N = in_fifty_digits(S, [*problem.readout.tolist(), *(-problem.teacher_readout).tolist()], units)
    np.testing.assert_allclose(noise_of(problem, Covariances(*blocks)), N, rtol=0, atol=error * np.abs(N).max())


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_the_slope_where_no_unit_depends_on_another(zero):
    """A negative zero among the covariances is a zero: the slope there is that of central differences."""
    problem, toward = committee("erf", 2, 2), jnp.asarray([[0.3, 1.0], [-0.8, 0.5]])
    own = jnp.where(jnp.eye(2) > 0, 1.0, zero)

    def total(M):
        return noise_of(problem, Covariances(own, M, own)).sum()

    _, slope = jax.jvp(total, (jnp.full((2, 2), zero),), (toward,))
    np.testing.assert_allclose(slope, (total(1e-4 * toward) - total(-1e-4 * toward)) / 2e-4, rtol=1e-6)


@pytest.mark.parametrize("link", ["erf", "relu", "He3", "relu(-2*x)", "tanh", "relu^2"])
def test_units_that_are_equal_share_the_noise_of_one(link):
    """Two copies of a unit with a readout each are one unit with their sum; all correlations between them are 1."""
    one = overlaps_of(1, 2, 5)
    whole = noise_of(committee(link, 1, 1, readout=[1.4]), one)[0, 0] / 1.4**2
    both = Covariances(jnp.full((2, 2), one.Q[0, 0]), jnp.repeat(one.M, 2, axis=0), one.P)
    problem = committee(link, 2, 1, readout=[0.5, 0.9])
    tolerance = 1e-11 if link not in ("tanh", "relu^2") else 8 * float(noise_error(problem, both))
    np.testing.assert_allclose(noise_of(problem, both), whole * np.outer([0.5, 0.9], [0.5, 0.9]), rtol=tolerance)


@pytest.mark.parametrize("link", ["erf", "relu", "He2", "tanh"])
def test_a_learnt_target_leaves_the_label_noise(link):
    """Students equal to the teachers: e = 0, whatever the rule, and derivatives are finite there."""
    S = overlaps_of(2, 4, 7).P
    problem = Problem(link, frame_gram=S, frozen=np.eye(2), target=np.eye(2), sgd=SGD(label_noise=LABELS))
    learnt = Covariances(S, S, S)
    still = problem.replace(label_noise=0.0)
    slopes = noise_of(problem, learnt) / LABELS
    more, jacobian = jax.jit(lambda c: (noise_of(still, c), jax.jacfwd(lambda c: noise_of(still, c))(c)))(learnt)
    assert np.abs(more).max() < (1e-7 if link == "relu" else 1e-10) * np.abs(slopes).max()  # a square root of rounding
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jacobian))


def test_points_are_as_good_as_they_say():
    """Against the trapezoidal rule."""
    for link in ("tanh", "sigmoid"):
        problem, covariance = committee(link, 2, 1), overlaps_of(2, 3, 11)
        estimate, reference = float(noise_error(problem, covariance)), by_tensor_rule(problem, covariance, EVEN)
        error = np.abs(noise_of(problem, covariance) - reference).max() / np.abs(reference).max()
        assert 0 < estimate < 4e-3 and error < 8 * estimate


def test_lines_through_kinks_agree_with_the_closed_form():
    """A relu that is not known as such, so that it is averaged along lines."""
    unknown = Activation.from_function(jax.nn.relu, name="unknown", kinks=(0,))
    covariance = overlaps_of(2, 4, 11)
    exact, lines = (noise_of(committee(link, 2, 2), covariance) for link in ("relu", unknown))
    error = float(noise_error(committee(unknown, 2, 2), covariance))
    assert np.abs(lines - exact).max() < 8 * error * np.abs(exact).max() and 0 < error < 0.02


@pytest.mark.parametrize("link", ["erf", "relu", "He3", "tanh"])
def test_derivatives_are_those_of_finite_differences(link):
    problem, at = committee(link, 2, 2), overlaps_of(2, 4, 13)
    flat = jnp.concatenate([at.Q.ravel(), at.M.ravel()])

    @jax.jit
    def noise(x):
        Q = x[:4].reshape(2, 2)
        return noise_of(problem, Covariances((Q + Q.T) / 2, x[4:].reshape(2, 2), at.P))

    exact, step = jax.jacfwd(noise)(flat), 1e-5
    for n in range(flat.size):
        move = step * jnp.eye(flat.size)[n]
        numeric = (noise(flat + move) - noise(flat - move)) / (2 * step)
        np.testing.assert_allclose(exact[..., n], numeric, rtol=1e-6, atol=1e-7 * float(jnp.abs(exact).max()))


@pytest.mark.parametrize("loadings", [[0.6, 0.3, 0.8, 0.5], [0.99, -0.4, 0.9, 0.7], [-0.5, 0.5, 0.95]])
def test_orthants_with_one_common_factor(loadings):
    """x_n = l_n z + s_n e_n: given the common z the variables are independent, and one integral is left."""
    loadings, deviations = np.array(loadings), np.array([1.3, 0.7, 1.0, 2.0])[: len(loadings)]
    own = np.sqrt(1 - loadings**2)
    covariance = jnp.asarray(np.outer(deviations, deviations) * (np.outer(loadings, loadings) + np.diag(own**2)))

    def above(z, n):
        mean = loadings[n] * z
        return deviations[n] * (mean * stats.norm.cdf(mean / own[n]) + own[n] * stats.norm.pdf(mean / own[n]))

    def average(function):
        return integrate.quad(
            lambda z: stats.norm.pdf(z) * function(z), -12, 12, epsabs=1e-13, epsrel=1e-12, limit=500
        )[0]

    chances = [lambda z, n=n: stats.norm.cdf(loadings[n] * z / own[n]) for n in range(len(loadings))]
    expected = average(lambda z: np.prod([chance(z) for chance in chances]))
    probability, moments = orthant_moments(covariance)
    np.testing.assert_allclose(probability, expected, rtol=1e-9)
    for j in range(1, len(loadings)):
        others = [chances[n] for n in range(1, len(loadings)) if n != j]
        expected = average(
            lambda z, j=j, others=others: above(z, 0) * above(z, j) * np.prod([chance(z) for chance in others])
        )
        np.testing.assert_allclose(moments[j], expected, rtol=1e-9)


def test_orthant_probabilities_that_are_known():
    probability = jax.jit(orthant_probability)
    for n in (2, 3, 4):
        np.testing.assert_allclose(probability((np.eye(n) + 1) / 2), 1 / (n + 1), rtol=1e-13)
        np.testing.assert_allclose(probability(np.eye(n)), 0.5**n, rtol=1e-14)


def test_a_root_of_a_singular_covariance():
    rows = np.random.default_rng(0).normal(size=(4, 2))
    root = cholesky_root(jnp.asarray(rows @ rows.T))
    np.testing.assert_allclose(root @ root.T, rows @ rows.T, rtol=1e-12)
    assert np.all(np.triu(root, 1) == 0) and np.all(np.abs(root[:, 2:]) < 1e-6)


def test_kurtosis_of_every_unit_from_samples():
    problem, covariance = committee("erf", 2, 1), overlaps_of(2, 3, 17)
    S = np.block([[covariance.Q, covariance.M], [covariance.M.T, covariance.P]])
    rng = np.random.default_rng(1)
    x = jnp.asarray(np.linalg.cholesky(S) @ rng.normal(size=(3, 1_000_000)))
    f = activation("erf")
    error = (
        problem.readout @ f(x[:2]) - problem.teacher_readout @ f(x[2:]) - np.sqrt(LABELS) * rng.normal(size=x.shape[1])
    )
    g = np.asarray(f.derivative(x[:2])) * np.asarray(problem.readout)[:, None] * np.asarray(error)
    blocks = g.reshape(2, 100, -1)
    each = (blocks**4).mean(-1) / (g**2).mean(-1, keepdims=True) ** 2
    standard_error = each.std(axis=1, ddof=1) / 10
    assert np.all(np.abs(kurtosis_of(problem, covariance) - each.mean(axis=1)) < 4 * standard_error + 5e-3)
    assert list(itertools.chain(kurtosis_of(problem, covariance).shape)) == [2]


@pytest.mark.parametrize("rows", ["any", "equal", "three equal", "opposite", "nearly in a plane"])
def test_orthants_of_variables_in_a_plane(rows):
    """Against the integral over the angle: E[r^2] = 2 times the mean over it, cut where a variable changes its sign."""
    for seed in range(6):
        vectors = np.random.default_rng(seed).normal(size=(4, 2))
        if rows != "any":
            vectors[3] = vectors[0] * (-1.5 if rows == "opposite" else 1)
        if rows == "three equal":
            vectors[1] = vectors[0]
        cuts = np.sort(
            np.concatenate([np.arctan2(vectors[:, 1], vectors[:, 0]) + s * np.pi / 2 for s in (-1, 1)]) % (2 * np.pi)
        )
        edges = np.concatenate([[0.0], cuts, [2 * np.pi]])
        z, w = np.polynomial.legendre.leggauss(20)
        angle = (edges[:-1, None] + np.diff(edges)[:, None] * (z + 1) / 2).ravel()
        weights = (np.diff(edges)[:, None] * w / 2).ravel() / (2 * np.pi)
        x = vectors @ np.stack([np.cos(angle), np.sin(angle)])
        inside = weights * np.all(x > 0, axis=0)
        tilt = 1e-6 * np.random.default_rng(seed + 10).normal(size=(4, 2)) * (rows == "nearly in a plane")
        lifted = np.concatenate([vectors, tilt], axis=1)
        covariance = jnp.asarray(lifted @ lifted.T)
        scale, atol = np.abs(covariance).max(), 1e-7 if rows != "nearly in a plane" else 3e-6
        probability, moments = orthant_moments(covariance)
        assert abs(float(probability) - inside.sum()) < 1e-5
        for j in range(4):
            assert abs(float(moments[j]) - 2 * np.sum(inside * x[0] * x[j])) < atol * scale
