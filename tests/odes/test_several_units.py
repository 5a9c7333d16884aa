"""Several units: the flow against one that is written anew, known fixed points, starts and constructors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp

from odes import (
    SGD,
    Adapter,
    Escape,
    Problem,
    covariances,
    flow,
    frame_overlaps,
    gradient_at,
    mean_change,
    modified_flow,
    pretrained,
    random_overlaps,
    solve,
)


def averages(problem, up, cross, gram, readout, nodes):
    """E[g (F x)^T], E[g (V x)^T], E[g g^T] and E[e s(W x)] by Gauss-Hermite quadrature in span(F, V), without Stein's lemma."""
    whole = np.block([[np.asarray(problem.frame_gram), cross.T], [cross, gram]])
    values, vectors = np.linalg.eigh(whole)
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    size = len(whole)
    z = np.stack(np.meshgrid(*[z] * size, indexing="ij")).reshape(size, -1)
    weights = functools.reduce(np.multiply.outer, [w / w.sum()] * size).ravel()
    y = vectors * np.sqrt(np.maximum(values, 0)) @ z
    frame, rows = np.split(y, [problem.frame_size])
    own = np.asarray(problem.frozen) @ frame + float(problem.adapter.kappa) * up @ rows
    target = np.asarray(problem.target) @ frame
    images = np.asarray(problem.student(jnp.asarray(own)))
    error = readout @ images - np.asarray(problem.teacher_readout) @ np.asarray(problem.teacher(jnp.asarray(target)))
    slopes = readout[:, None] * np.asarray(problem.student.derivative(jnp.asarray(own)))
    g = weights * error * slopes
    noise = (weights * (error**2 + float(problem.sgd.label_noise)) * slopes) @ slopes.T
    return g @ frame.T, g @ rows.T, noise, images @ (weights * error)


def right_hand_side(problem, shapes, nodes):
    """The flow as a function of a flat state, from the averages."""
    adapter, sgd = problem.adapter, problem.sgd
    kappa, chi, theta = float(adapter.kappa), float(adapter.lr_ratio), float(sgd.noise_scale)

    def change(_, y):
        up, cross, gram, readout = (part.reshape(shape) for part, shape in zip(np.split(y, cuts), shapes, strict=True))
        H, J, N, E = averages(problem, up, cross, gram, readout, nodes)
        d_cross = -kappa * up.T @ H
        d_gram = -kappa * (up.T @ J + J.T @ up) + theta * kappa**2 * up.T @ N @ up
        if adapter.normalized:
            half = np.diagonal(d_gram) / 2
            d_cross, d_gram = d_cross - half[:, None] * cross, d_gram - np.add.outer(half, half) * gram
        parts = (-chi * kappa * J, d_cross, d_gram, -float(sgd.readout_lr_ratio) * E)
        return np.concatenate([part.ravel() for part in parts])

    cuts = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
    return change


NOISY = dict(dimension=400, batch_size=100, learning_rate=0.1, label_noise=0.2)  # theta = 0.4
CASES = {
    "K = P = 2, rank 2, readouts": (
        Problem.committee(
            "He2",
            pretrained=[[0.5, 0.1], [0.0, 0.4]],
            readout=[0.5, 0.4],
            teacher_readout=[0.6, -0.3],
            adapter=Adapter(2, scale=1.0, lr_ratio=0.7),
            sgd=SGD(readout_lr_ratio=0.5, **NOISY),
        ),
        5,
        3.0,
    ),
    "K = 3 > P = 2, free rows, other links": (
        Problem.committee(
            "erf(0.3*x)",
            teacher="erf(-0.4*x)",
            pretrained=[0.5, 0.3, 0.0],
            teachers=2,
            teacher_gram=[[1, 0.3], [0.3, 0.8]],
            own=[0.0, 0.0, 0.6],
            adapter=Adapter(1, lr_ratio=2.0, normalized=False),
            sgd=SGD(readout_lr_ratio=1.0, **NOISY),
        ),
        13,
        10.0,
    ),
    "K = 2 < P = 4": (
        Problem.committee(
            "He1+0.4*He2",
            pretrained=[0.5, 0.2],
            teachers=4,
            readout="1/sqrt(n)",
            teacher_readout="1/n",
            sgd=SGD(**NOISY),
        ),
        5,
        4.0,
    ),
    "rank 3, He3 from He2": (
        Problem.committee(
            "He2",
            teacher="He1+0.2*He3",
            pretrained=[0.5, -0.4],
            readout="1/n",
            adapter=Adapter(3, scale=1.0, lr_ratio=0.5, normalized=False),
            sgd=SGD(**NOISY),
        ),
        6,
        2.0,
    ),
    "all weights, phase retrieval": (
        Problem.committee("He0+He2", pretrained=[[0.0]] * 4, readout="1/n", trains="weights", sgd=SGD(**NOISY)),
        4,
        1.0,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_flow_matches_an_independent_one(case, key):
    problem, nodes, end = CASES[case]
    if "weights" in case:
        start = random_overlaps(problem, key, up=np.eye(4), length=0.8)
    else:
        start = random_overlaps(problem, key, up=0.3)
    readout = np.asarray(problem.readout)
    parts = [np.asarray(part) for part in (start.up, start.cross, start.down_gram)] + [readout]
    field = right_hand_side(problem, [part.shape for part in parts], nodes)
    y0 = np.concatenate([part.ravel() for part in parts])
    options = {"method": "DOP853", "rtol": 1e-11, "atol": 1e-12}
    theirs = solve_ivp(field, (0, end), y0, **options).y[:, -1]
    ours = solve(problem, start, t1=end, rtol=1e-11, atol=1e-12, times=[end])
    final = [ours.final.up, ours.final.cross, ours.final.down_gram, ours.readout[-1]]
    np.testing.assert_allclose(
        np.concatenate([np.ravel(x) for x in final]), theirs, rtol=0, atol=1e-8 * np.abs(theirs).max()
    )
    assert np.abs(theirs - y0).max() > 0.05


def test_the_other_start_of_lora_is_that_of_vanishing_rows(key):
    """V = 0 and a given U: like rows of length 1e-7."""
    problem = Problem.committee("erf", pretrained=[0.5, 0.3], adapter=Adapter(2, normalized=False), sgd=SGD(**NOISY))
    up = jax.random.normal(key, (2, 2))
    zero, small = frame_overlaps(problem, up=up), random_overlaps(problem, key, up=up, length=1e-7)
    one, two = (solve(problem, start, t1=5.0).loss for start in (zero, small))
    np.testing.assert_allclose(one, two, rtol=1e-6)
    assert one[-1] < 0.9 * one[0]
    with pytest.raises(ValueError, match="`rows` must be of length 1"):
        frame_overlaps(problem.replace(normalized=True), up=up)


@pytest.mark.parametrize("units", [2, 3, 4])
def test_symmetric_plateau_of_saad_and_solla(units):
    """All students along the sum of the teachers, R = 1/sqrt(K(2K - 1)): a fixed point, with the known loss."""
    problem = Problem.committee(
        "erf(x/sqrt(2))", pretrained=np.zeros(units), trains="weights", sgd=SGD(batch_size=np.inf)
    )
    overlap = 1 / np.sqrt(units * (2 * units - 1))
    plateau = frame_overlaps(problem, up=np.eye(units), rows=np.full((units, units), overlap))
    both = covariances(problem, plateau)
    np.testing.assert_allclose(both.M, overlap, rtol=1e-14)
    np.testing.assert_allclose(both.Q, 1 / (2 * units - 1), rtol=1e-14)
    loss = units / np.pi * (np.pi / 6 - units * np.arcsin(1 / (2 * units)))
    np.testing.assert_allclose(gradient_at(problem, plateau).loss, loss, rtol=1e-12)
    change = flow(problem, plateau)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(change)) < 1e-15


def test_steady_state_with_label_noise_of_goldt():
    """l = theta Delta / (2 pi) (K - P + P / sqrt 3) to leading order in theta, approached linearly."""
    ratios = []
    for theta in (0.04, 0.02):
        sgd = SGD(dimension=1e4, learning_rate=0.01, label_noise=0.01).replace(noise_scale=theta)
        problem = Problem.committee("erf(x/sqrt(2))", pretrained=[1, 1], trains="weights", sgd=sgd)
        start = frame_overlaps(problem, up=np.eye(2), rows=np.eye(2))
        loss = solve(problem, start, t1=300.0, rtol=1e-10, atol=1e-13).loss
        np.testing.assert_allclose(loss[-1], loss[-20], rtol=1e-6)
        ratios.append(float(loss[-1]) / (theta * 0.01 / (2 * np.pi) * 2 / np.sqrt(3)))
    np.testing.assert_allclose(ratios[1], 1.009, atol=1e-3)
    np.testing.assert_allclose(2 * ratios[1] - ratios[0], 1, atol=1e-3)


def test_committee_reads_rows_lengths_and_readouts():
    problem = Problem.committee(
        "relu", pretrained=[0.1, 0.9, 0.2], teachers=2, own=[0, 0.3, 0.4], readout="1/sqrt(n)", teacher_readout="1/n"
    )
    assert problem.directions == ("target 1", "target 2", "own 2", "own 3") and problem.units == (3, 2)
    np.testing.assert_allclose(problem.frozen, [[0.1, 0, 0, 0], [0, 0.9, 0.3, 0], [0, 0, 0, 0.4]])
    np.testing.assert_allclose(problem.readout, 3**-0.5)
    np.testing.assert_allclose(problem.teacher_readout, 0.5)
    weights = Problem.committee("relu", pretrained=[[0.1, 0.2]], trains="weights")
    assert weights.units == (1, 2) and not np.any(weights.frozen) and float(weights.adapter.lr_ratio) == 0


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(pretrained=[]), "`pretrained` must be a list of numbers or a matrix, not empty"),
        (dict(pretrained=[[0.5, 0.1]], teachers=3), "`pretrained` must have shape"),
        (dict(readout=[1.0]), "`readout` must have shape"),
        (dict(readout="1/m"), "`readout` must be"),
        (dict(teacher_gram=[[1, 2], [2, 1]]), "positive semi-definite"),
        (dict(teacher_gram=[[1, 0.2], [0.1, 1]]), "symmetric"),
        (dict(teachers=0), "`teachers` must be a whole number of at least 1"),
        (dict(trains="weights", adapter=Adapter(2)), "`adapter` must be left out"),
        (dict(own=[1.0]), "`own` must have shape"),
    ],
)
def test_bad_committees_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        Problem.committee("erf", **(dict(pretrained=[0.5, 0.3]) | change))


def test_a_learnt_target_stays_learnt():
    """Rank 2 has learnt the two missing directions: no direction grows, not even the antisymmetric rounding of R."""
    problem = Problem.committee(
        "erf", pretrained=[0.1, 0.1, 1, 1], adapter=Adapter(2), sgd=SGD(dimension=100, batch_size=5000)
    )
    learnt = frame_overlaps(problem, up=[[0.9, 0], [0, 0.9], [0, 0], [0, 0]], rows=np.eye(2, 4))
    flat, shaped = ravel_pytree(learnt)
    for field in (flow, mean_change, modified_flow):
        jacobian = jax.jacfwd(lambda x, field=field: ravel_pytree(field(problem, shaped(x)))[0])(flat)
        assert np.linalg.eigvals(np.asarray(jacobian)).real.max() < 1e-8


def test_a_committee_may_be_traced():
    """Also its escape: relative to w0 = frozen weights, from U that is not 0, or to the start where nothing is frozen."""

    @jax.jit
    def traced(mu):
        problem = Problem.committee("erf", pretrained=mu)
        start = random_overlaps(problem, jax.random.key(0), up=0.4)
        return solve(problem, start, t1=300.0, escape=Escape(), until_escape=True).escape_time

    problem = Problem.committee("erf", pretrained=[0.3, 0.4])
    start = random_overlaps(problem, jax.random.key(0), up=0.4)
    run = solve(problem, start, t1=300.0, escape=Escape(), until_escape=True)
    np.testing.assert_allclose(traced(jnp.array([0.3, 0.4])), run.escape_time, rtol=1e-6)
    at_rest = gradient_at(problem, pretrained(problem)).loss
    np.testing.assert_allclose(gradient_at(problem, run.final).loss, at_rest / 2, rtol=1e-6)
    assert abs(run.loss[0] / at_rest - 1) > 0.03
    weights = Problem.committee("erf", pretrained=[0.3, 0.4], trains="weights")
    half = frame_overlaps(weights, up=np.eye(2), rows=0.5 * np.eye(2))
    run = solve(weights, half, t1=300.0, escape=Escape(), until_escape=True)
    np.testing.assert_allclose(gradient_at(weights, run.final).loss, run.loss[0] / 2, rtol=1e-6)
