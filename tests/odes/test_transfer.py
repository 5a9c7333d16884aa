"""The joint state of two tasks against the single-index problem; its starts and its problems."""

import jax.numpy as jnp
import numpy as np
import pytest

from odes import SGD, Adapter, Overlaps, Transfer, covariances, solve
from tests.problems import fine_tuned


@pytest.mark.parametrize(
    "activation, rank, normalized", [("erf", 1, True), pytest.param("relu", 2, False, marks=pytest.mark.slow)]
)
def test_lora_in_the_joint_state_is_the_single_index_problem(activation, rank, normalized, key):
    """From the same weights, the same run in the frames (ω*, ω_s) and (ω*, w0), to the integrator's tolerance."""
    adapter = Adapter(rank, scale=1.6 * rank, lr_ratio=0.7, normalized=normalized)
    sgd = SGD(dimension=12, batch_size=4, learning_rate=0.2, label_noise=0.1)
    transfer = Transfer(activation, cosine=0.6, adapter=adapter, sgd=sgd, length=0.7)
    tight = dict(t1=80.0, times=jnp.linspace(0.0, 80.0, 9), rtol=1e-10, atol=1e-12)
    joint_start = transfer.random_start(key)
    joint = solve(transfer.lora, joint_start, **tight)
    problem, start = fine_tuned(transfer, joint_start)
    alone = solve(problem, start, **tight)
    assert float(jnp.abs(alone.u[-1]).max()) > 0.2
    np.testing.assert_allclose(joint.target_overlap, alone.target_overlap, atol=2e-8)
    np.testing.assert_allclose(joint.loss, alone.loss, atol=2e-8)
    np.testing.assert_allclose(joint.overlaps.up[..., 1:], alone.overlaps.up, atol=2e-8)
    np.testing.assert_allclose(joint.overlaps.down_gram[:, 1:, 0], alone.s, atol=2e-8)
    np.testing.assert_allclose(joint.overlaps.down_gram[:, 1:, 1:], alone.overlaps.down_gram, atol=2e-8)


def test_starts_of_a_transfer(key):
    """The random start has the lengths and U, the typical one also the overlaps' standard deviations."""
    transfer = Transfer("erf", cosine=0.6, adapter=Adapter(2, scale=3.0), sgd=SGD(dimension=50), length=0.7)
    random, typical, overlap = transfer.random_start(key), transfer.typical_start(), 0.7 / np.sqrt(50)
    for start in (random, typical):
        np.testing.assert_allclose(start.up, [[1 / 1.5, 0, 0]], rtol=1e-12)
        np.testing.assert_allclose(np.diagonal(start.down_gram), [0.49, 1, 1], rtol=1e-12)
        square = covariances(transfer.lora, start).Q[0, 0]
        np.testing.assert_allclose(square, 0.49, rtol=1e-12)
    np.testing.assert_allclose(typical.cross, [[0.6 * overlap, overlap], [0, 0], [0, 0]], rtol=1e-12)
    assert np.all(typical.down_gram == np.diag(np.diagonal(typical.down_gram))) and np.all(random.cross != 0)


def test_problems_of_a_transfer():
    """Every stage's labels, SGD and what is trained."""
    transfer = Transfer(
        "erf",
        source="tanh",
        target="relu",
        cosine=0.6,
        adapter=Adapter(2, scale=3.0, lr_ratio=0.7, normalized=False),
        sgd=SGD(learning_rate=0.1),
        pretraining_sgd=SGD(learning_rate=0.3),
        spherical=True,
        weight_decay=0.5,
    )
    weights = dict(trained=[1.0, 0.0, 0.0], lr_ratio=0.0)
    free = weights | dict(normalized=False)
    expected = [
        (transfer.pretraining, "tanh", [0.0, 1.0], 0.3, weights | dict(normalized=True, weight_decay=0.5)),
        (transfer.lora, "relu", [1.0, 0.0], 0.1, dict(trained=[0.0, 1.0, 1.0], lr_ratio=0.7, normalized=False)),
        (transfer.problem("target", "weights"), "relu", [1.0, 0.0], 0.1, free),
        (transfer.problem("target", "weights", teacher="He2"), "He2", [1.0, 0.0], 0.1, free),
    ]
    for problem, teacher, target, rate, adapter in expected:
        values = problem.to_dict()
        same = dict(student="erf", rank=3, weight_decay=0.0, frozen=[[0.0, 0.0]], frame_gram=[[1.0, 0.6], [0.6, 1.0]])
        for name, value in (same | adapter | dict(teacher=teacher, target=[target], learning_rate=rate)).items():
            assert values[name] == value, name
        np.testing.assert_allclose(problem.adapter.kappa, 1.5, rtol=1e-15)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(cosine=1.2), "`cosine` must be between -1 and 1"),
        (dict(cosine=-1.2), "`cosine` must be between -1 and 1"),
        (dict(spherical=True, length=0.5), "`length` must be 1 for spherical pretraining"),
        (dict(length=0.0), "`length` must be positive and finite"),
        (dict(weight_decay=-0.1), "`weight_decay` must be non-negative and finite"),
        (
            dict(sgd=SGD(dimension=10), pretraining_sgd=SGD(dimension=20)),
            "`pretraining_sgd` must be of the dimension of `sgd`",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Transfer("erf", **arguments)


def test_lora_of_several_units_in_the_joint_state_is_a_problem_of_its_own(key):
    """From the same weights and trained readouts, the same run in the frame of both tasks and in that of the pretrained rows."""
    sgd = SGD(dimension=50, batch_size=20, learning_rate=0.2, label_noise=0.1)
    transfer = Transfer(
        "erf",
        source="tanh",
        cosine=0.6,
        units=3,
        teachers=2,
        readout=[1.0, 0.5, -0.4],
        teacher_readout=[0.8, 0.3],
        adapter=Adapter(2, scale=3.0, lr_ratio=0.7),
        sgd=sgd,
        pretraining_sgd=sgd.replace(readout_lr_ratio=0.5, batch_size=jnp.inf),
        length=0.7,
    )
    state = solve(transfer.pretraining, transfer.random_start(key), t1=5.0, times=[5.0]).final
    assert float(jnp.abs(state.readout - transfer.readout).max()) > 0.02
    tight = dict(t1=20.0, times=jnp.linspace(0.0, 20.0, 5), rtol=1e-10, atol=1e-12)
    joint = solve(transfer.lora, state, **tight)
    rows = jnp.concatenate([state.cross[3:, :2], state.down_gram[3:, :3]], axis=1)
    problem = transfer.fine_tuning(state)
    assert problem.directions == ("target 1", "target 2", "pretrained 1", "pretrained 2", "pretrained 3")
    alone = solve(problem, Overlaps(state.up[:, 3:], rows, state.down_gram[3:, 3:]), **tight)
    np.testing.assert_allclose(joint.loss, alone.loss, rtol=1e-7)
    np.testing.assert_allclose(joint.covariances.Q, alone.covariances.Q, atol=1e-8)
    assert float(jnp.abs(alone.overlaps.up[-1]).max()) > 0.05
    with pytest.raises(ValueError, match="of one student and one teacher unit"):
        transfer.typical_start()
