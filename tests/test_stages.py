"""Rows at rest and weight decay, runs in stages, and fine-tuning as a function of the pretraining before it."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from odes import (
    SGD,
    Adapter,
    Escape,
    Overlaps,
    Problem,
    Stage,
    Transfer,
    covariances,
    flow,
    gradient_at,
    load,
    mean_change,
    pretrained,
    solve,
    solve_stages,
)
from tests.test_chain import TOO_SMALL, smallest_p
from tests.test_sgd import frame_of
from theory import checkpoints, escape_law, fine_tuning
from validation.simulation import chain_simulator, direct_simulator, simulate, simulate_stages
from validation.simulation.direct import Weights, sgd_step


def same_bits(one, other):
    for x, y in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_array_equal(x, y)


def close(one, other, **tolerances):
    for x, y in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(x, y, **tolerances)


def at(overlaps, *where):
    return jax.tree.map(lambda x: x[where], overlaps)


# One step: rows at rest and weight decay


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("trained", [[1, 0, 1], [0, 1, 0]])
def test_one_step_of_some_rows_with_weight_decay(trained, normalized, key):
    """Against autodiff of the batch loss plus the decay of the trained rows; what is at rest keeps every bit."""
    adapter = Adapter(3, scale=4.5, lr_ratio=1.7, normalized=normalized, weight_decay=0.4, trained=trained)
    problem = Problem.single_index("erf", strength=0.6, alignment=0.4, teacher="tanh", adapter=adapter)
    keys, mask = jax.random.split(key, 4), jnp.asarray(trained, float)
    F, inputs = frame_of(problem, 9), jax.random.normal(keys[0], (20, 9))
    noise = jax.random.normal(keys[1], (20,))
    U, V = jax.random.normal(keys[2], (1, 3)), jax.random.normal(keys[3], (3, 9))

    def objective(U, V):
        student = problem.student(inputs @ (F[1] + 1.5 * U[0] @ V))
        loss = jnp.mean((student - (jnp.tanh(inputs @ F[0]) + noise)) ** 2) / 2
        return loss + 0.4 / 2 * jnp.sum((mask[:, None] * V) ** 2)

    dU, dV = jax.grad(objective, (0, 1))(U, V)
    new_V = V - 0.2 * dV
    if normalized:
        new_V /= jnp.linalg.norm(new_V, axis=1, keepdims=True)
    ours, moving = sgd_step(problem, F, Weights(U, V), inputs, noise), np.array(trained) == 1
    np.testing.assert_allclose(ours.up[:, moving], (U - 0.2 * 1.7 * dU)[:, moving], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(ours.down[moving], new_V[moving], rtol=1e-11, atol=1e-13)
    same_bits((ours.up[:, ~moving], ours.down[~moving]), (U[:, ~moving], V[~moving]))


def steady(stage, eta):
    """A problem of rank 2 and scale 3 with an infinite batch (weight decay in pretraining), and overlaps to start."""
    sgd = SGD(dimension=20, batch_size=np.inf, learning_rate=eta)
    adapter = Adapter(2, scale=3.0, lr_ratio=0.7, normalized=stage != "LoRA, free rows")
    spherical = stage == "spherical pretraining"
    transfer = Transfer("erf", cosine=0.6, adapter=adapter, sgd=sgd, spherical=spherical, weight_decay=0.5)
    start = transfer.random_start(jax.random.key(5))
    moved = eqx.tree_at(lambda x: x.up, start, start.up + jnp.array([[0.0, 0.3, -0.2]]))
    if "pretraining" in stage:
        return transfer.pretraining, moved
    return (transfer.problem("target", "weights") if stage == "target weights" else transfer.lora), moved


STEADY = ["pretraining", "spherical pretraining", "LoRA", "LoRA, free rows", "target weights"]


def one_step(problem, start):
    """The change of the overlaps in one step of the chain with an infinite batch, over the learning rate."""
    run = simulate(chain_simulator(problem, start=start), key=jax.random.key(0), seeds=1, steps=[0, 1])
    return jax.tree.map(lambda x: (x[0, 1] - x[0, 0]) / problem.sgd.learning_rate, run.overlaps)


def difference(one, other):
    return max(float(np.abs(x - y).max()) for x, y in zip(*map(jax.tree.leaves, (one, other)), strict=True))


@pytest.mark.parametrize("stage", STEADY)
def test_gradient_descent_follows_the_flow_to_first_order(stage):
    """Small steps of the chain with an infinite batch against the noiseless flow: the error halves with the step."""

    def error(eta):
        problem, start = steady(stage, eta)
        return difference(one_step(problem, start), flow(problem, start, noise=False))

    errors = error(1e-4), error(5e-5)
    assert errors[0] < 1e-3
    np.testing.assert_allclose(errors[0] / errors[1], 2, rtol=1e-2)


@pytest.mark.parametrize("stage", STEADY)
def test_mean_change_is_one_step_of_gradient_descent(stage):
    """At a large learning rate, against the chain with an infinite batch, which the flow of rate 0 is far from."""
    problem, start = steady(stage, 0.3)
    step = one_step(problem, start)
    close(mean_change(problem, start, noise=False), step, rtol=1e-10, atol=1e-12)
    assert difference(flow(problem, start, noise=False), step) > 1e-3


@pytest.mark.parametrize("stage", STEADY)
@pytest.mark.parametrize("field", [flow, mean_change])
def test_what_is_at_rest_does_not_move(stage, field):
    """Rows of V at rest, their Gram matrix and columns of U; all of U while weights are trained; unit lengths."""
    problem, start = steady(stage, 0.3)
    change, rest = field(problem, start), np.asarray(problem.adapter.trained) == 0
    assert np.all(change.up[:, rest] == 0) and np.all(change.cross[rest] == 0)
    assert np.all(change.down_gram[np.ix_(rest, rest)] == 0) and np.all(change.cross[~rest] != 0)
    assert np.all(change.up == 0) if rest.sum() == 2 else np.all(change.up[:, ~rest] != 0)
    lengths = np.diagonal(change.down_gram)[~rest]
    assert np.abs(lengths).max() < 1e-14 if problem.adapter.normalized else np.abs(lengths).min() > 1e-3


# The joint state against the single-index problem


def fine_tuned(transfer, state):
    """The single-index problem of fine-tuning from a joint state with the adapter's U = 0, and its start."""
    start = Overlaps(
        state.up[:, 1:],
        jnp.stack([state.cross[1:, 0], state.down_gram[1:, 0]], axis=1),
        state.down_gram[1:, 1:],
    )
    return transfer.fine_tuning(state), start


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
    expected = [
        (transfer.pretraining, "tanh", [0.0, 1.0], 0.3, weights | dict(normalized=True, weight_decay=0.5)),
        (transfer.lora, "relu", [1.0, 0.0], 0.1, dict(trained=[0.0, 1.0, 1.0], lr_ratio=0.7, normalized=False)),
        (transfer.problem("target", "weights"), "relu", [1.0, 0.0], 0.1, weights | dict(normalized=False)),
        (
            transfer.problem("target", "weights", teacher="He2"),
            "He2",
            [1.0, 0.0],
            0.1,
            weights | dict(normalized=False),
        ),
    ]
    for problem, teacher, target, rate, adapter in expected:
        values = problem.to_dict()
        same = dict(student="erf", rank=3, weight_decay=0.0, frozen=[[0.0, 0.0]], frame_gram=[[1.0, 0.6], [0.6, 1.0]])
        for name, value in (same | adapter | dict(teacher=teacher, target=[target], learning_rate=rate)).items():
            assert values[name] == value, name
        np.testing.assert_allclose(problem.adapter.kappa, 1.5, rtol=1e-15)


# Stages, integrated

TRANSFER = Transfer("erf", cosine=0.8, adapter=Adapter(2, scale=3.0), sgd=SGD(dimension=1000, batch_size=200))
START = TRANSFER.random_start(jax.random.key(3))
GOAL = Escape("loss", 0.2)


def two_stages(first=20.0, second=60.0):
    return [Stage("pretraining", TRANSFER.pretraining, first), Stage("LoRA", TRANSFER.lora, second)]


@pytest.fixture(scope="module")
def solution():
    return solve_stages(two_stages(), START, records=11, escape=GOAL)


def test_stages_are_joined_at_their_borders(solution):
    """Times, stage numbers, and every stage's overlaps against solving it on its own."""
    np.testing.assert_allclose(solution.borders, [0, 20, 80])
    np.testing.assert_allclose(solution.t, np.r_[np.linspace(0, 20, 11), np.linspace(20, 80, 11)])
    assert solution.stage.tolist() == [0] * 11 + [1] * 11
    first = solve(TRANSFER.pretraining, START, t1=20.0, times=np.linspace(0, 20, 11))
    second = solve(TRANSFER.lora, first.final, t1=60.0, times=np.linspace(0, 60, 11), escape=GOAL, origin=first.final)
    same_bits(at(solution.overlaps, 0), START)
    close(at(solution.overlaps, slice(0, 11)), first.overlaps, rtol=1e-12)
    close(at(solution.overlaps, slice(11, 22)), second.overlaps, rtol=1e-12)
    same_bits(at(solution.overlaps, 11), first.final)
    close(at(solution.overlaps, 10), at(solution.overlaps, 11), rtol=1e-12)
    close(at(solution.overlaps, -1), solution.final, rtol=1e-12)
    assert solution.messages == ("reached t1", "reached t1") and float(solution.escape_time) > 1
    np.testing.assert_allclose(solution.escape_time, second.escape_time, rtol=1e-12)
    assert float(jnp.abs(solution.final.up[0, 1:]).max()) > 0.1


def test_losses_are_those_of_both_tasks(solution):
    """At start, border and end, against the joint problems and single-index ones whose w0 is the student there."""
    for record in (0, 10, 11, 21):
        state = at(solution.overlaps, record)
        for number, problem in enumerate((TRANSFER.pretraining, TRANSFER.lora)):
            covariance = covariances(problem, state)
            alone = Problem.single_index_from("erf", overlap=covariance.M[0, 0], square=covariance.Q[0, 0])
            loss = float(solution.losses[number, record])
            np.testing.assert_allclose(loss, gradient_at(problem, state).loss, rtol=1e-12)
            np.testing.assert_allclose(loss, gradient_at(alone, pretrained(alone)).loss, rtol=1e-10)
    source, target = np.asarray(solution.losses)
    assert source[10] < 0.1 * source[0] and target[21] < 0.1 * target[0] and source[21] > 2 * source[10]


def test_a_stage_of_no_duration_is_skipped(solution):
    """It has one record, and what comes before and after does not know of it."""
    first, last = two_stages()
    run = solve_stages([first, Stage("nothing", TRANSFER.lora, 0.0), last], START, records=11, escape=GOAL)
    kept = np.delete(np.arange(23), 11)
    assert run.stage.tolist() == [0] * 11 + [1] + [2] * 11 and run.messages[1] == "skipped"
    same_bits(
        (run.t[kept], at(run.overlaps, kept), run.escape_time), (solution.t, solution.overlaps, solution.escape_time)
    )
    same_bits((run.t[11], at(run.overlaps, 11)), (run.t[12], at(run.overlaps, 12)))
    same_bits(run.losses[:, kept], solution.losses[jnp.array([0, 1, 1])])


def test_escape_is_counted_from_the_start_of_a_stage(solution):
    """Relative to the loss there, with the time since then: where the target's loss is the threshold times that."""
    run = solve_stages(two_stages(), START, records=11, escape=GOAL, since=0)
    target = np.asarray(run.losses[1])
    assert target[10] > 0.2 * target[0] and float(run.escape_time) > 20
    for found, origin in ((run, 0), (solution, 11)):
        since = float(found.escape_time) - (20 if origin == 0 else 0)
        begin = at(run.overlaps, 11)
        there = solve(TRANSFER.lora, begin, t1=since, times=np.linspace(0, since, 11), escape=GOAL, origin=begin).final
        np.testing.assert_allclose(gradient_at(TRANSFER.lora, there).loss, 0.2 * target[origin], rtol=1e-6)
    assert f"escape {float(run.escape_time):.6g} after the start of pretraining" in str(run)
    assert f"escape {float(solution.escape_time):.6g} after the start of LoRA" in str(solution)


def test_no_escape_says_within_which_time():
    stages = two_stages(second=0.5)
    for since, within in (
        (1, "no escape within 0.5 of the start of LoRA"),
        (0, "no escape within 20.5 of the start of p"),
    ):
        run = solve_stages(stages, START, records=11, escape=GOAL, since=since)
        assert np.isnan(run.escape_time) and within in str(run)
    run = solve_stages(stages, START, records=11)
    assert np.isnan(run.escape_time) and "escape" not in str(run) and "LoRA: t = 20 to 20.5, reached t1" in str(run)


@pytest.mark.slow
def test_stages_work_under_grad_and_jit():
    """The derivative of the final loss in the first stage's duration against central differences."""

    @jax.jit
    def loss(duration):
        stages = [Stage("a", TRANSFER.pretraining, duration), Stage("b", TRANSFER.lora, 10.0)]
        return solve_stages(stages, START, records=2, rtol=1e-10, atol=1e-12).losses[1, -1]

    numeric = (loss(5.01) - loss(4.99)) / 0.02
    np.testing.assert_allclose(jax.grad(loss)(5.0), numeric, rtol=1e-4)


OTHER = Transfer("erf", cosine=0.7, adapter=Adapter(2))


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: solve_stages([], START), "`stages` must be at least one"),
        (lambda: solve_stages(two_stages(), START, records=1), "`records` must be at least 2"),
        (
            lambda: solve_stages([*two_stages(), Stage("rank 1", Transfer("erf", cosine=0.8).lora, 1.0)], START),
            "`stages` must be of the same units, rank and frame",
        ),
        (
            lambda: solve_stages([*two_stages(), Stage("cosine 0.7", OTHER.lora, 1.0)], START),
            "`stages` must be of the same units, rank and frame",
        ),
        (lambda: two_stages(first=-1.0), "`duration` must be non-negative and finite"),
        (lambda: two_stages(first=np.inf), "`duration` must be non-negative and finite"),
        (lambda: Transfer("erf", cosine=1.2), "`cosine` must be between -1 and 1"),
        (lambda: Transfer("erf", cosine=-1.2), "`cosine` must be between -1 and 1"),
        (lambda: Transfer("erf", spherical=True, length=0.5), "`length` must be 1 for spherical pretraining"),
        (lambda: Transfer("erf", length=0.0), "`length` must be positive and finite"),
        (lambda: Transfer("erf", weight_decay=-0.1), "`weight_decay` must be non-negative and finite"),
        (
            lambda: Transfer("erf", sgd=SGD(dimension=10), pretraining_sgd=SGD(dimension=20)),
            "`pretraining_sgd` must be of the dimension of `sgd`",
        ),
        (lambda: Adapter(2, trained=[1.0, 0.5]), "`trained` must be 0 or 1 for every row"),
        (lambda: Adapter(2, trained=[1.0]), "`trained` must have shape"),
        (lambda: Adapter(2, weight_decay=-1.0), "`weight_decay` must be non-negative"),
        (lambda: Escape("absolute", 0.0), "`threshold` must be positive and finite"),
    ],
)
def test_bad_arguments_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_save_and_load(solution, tmp_path):
    solution.save(tmp_path / "run.nc", note="kept")
    stored = load(tmp_path / "run.nc")
    for name in ("losses", "stage", "borders", "escape_time"):
        np.testing.assert_array_equal(stored[name], getattr(solution, name))
    for name in ("up", "cross", "down_gram"):
        np.testing.assert_array_equal(stored[name], getattr(solution.overlaps, name))
    np.testing.assert_array_equal(stored["time"], solution.t)
    assert stored["labels"].values.tolist() == ["pretraining", "LoRA"]
    assert json.loads(stored.attrs["kind"]) == "stages" and json.loads(stored.attrs["note"]) == "kept"
    problems = json.loads(stored.attrs["problems"])
    for stage in solution.stages:
        assert Problem.from_dict(problems[stage.name]).to_dict() == stage.problem.to_dict()


def test_plot_shows_losses_borders_and_escape(solution):
    import matplotlib.pyplot as plt

    axes = solution.plot()
    lines = axes.get_lines()
    for line, loss in zip(lines, solution.losses, strict=False):
        np.testing.assert_array_equal(line.get_xydata(), np.stack([solution.t, loss], axis=1))
    vertical = [line.get_xdata()[0] for line in lines[2:]]
    np.testing.assert_allclose(vertical, [20, 20 + float(solution.escape_time)])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["labels of pretraining", "labels of LoRA"]
    assert solution.plot(axes) is axes
    plt.close(axes.figure)


# Stages, simulated

SEEDS = 1000


def small(weight_decay=0.3, batch=8.0, adapter=None):
    """A transfer at d = 30 with a large learning rate, whose pretraining has weight decay and batches of its own."""
    return Transfer(
        "erf",
        cosine=0.7,
        adapter=Adapter(2, scale=3.0) if adapter is None else adapter,
        sgd=SGD(dimension=30, batch_size=12, learning_rate=0.3, label_noise=0.1),
        pretraining_sgd=SGD(dimension=30, batch_size=batch, learning_rate=0.2, label_noise=0.1),
        weight_decay=weight_decay,
        length=0.8,
    )


def simulators(transfer, kind, **options):
    options = dict(up=transfer.up, length=transfer.lengths, dtype="float64") | options
    return [kind(problem, **options) for problem in (transfer.pretraining, transfer.lora)]


def whole_student(run, record=-1):
    """W·ω*, |W|² and the loss of every seed on the labels of the run, and the overlaps that only rows of V have."""
    state = at(run.overlaps, slice(None), record)
    covariance = jax.vmap(lambda one: covariances(run.problem, one))(state)
    parts = [covariance.M[:, 0], covariance.Q[:, 0], run.loss[:, record, None], state.up[:, 0, 1:]]
    rows, columns = np.tril_indices(state.down_gram.shape[-1])
    parts += [state.cross[:, 1:, 0], state.down_gram[:, rows, columns]]
    return np.concatenate([np.asarray(part) for part in parts], axis=1)


def test_simulated_stages_have_the_same_law(key):
    """KS tests of chain and direct simulator, 1000 seeds, after both stages; another weight decay is noticed."""
    keys, steps = jax.random.split(key, 3), [[0, 40], [0, 60]]
    direct = simulate_stages(simulators(small(), direct_simulator), key=keys[0], seeds=SEEDS, steps=steps)
    chain = simulate_stages(simulators(small(), chain_simulator), key=keys[1], seeds=SEEDS, steps=steps)
    for one, two in zip(direct, chain, strict=True):
        assert smallest_p(whole_student(one), whole_student(two)) > TOO_SMALL
    other = small(weight_decay=0.5)
    wrong = simulate_stages(simulators(other, chain_simulator), key=keys[2], seeds=SEEDS, steps=steps)
    assert smallest_p(whole_student(direct[-1]), whole_student(wrong[-1])) < 1e-6


@pytest.mark.parametrize("kind", [direct_simulator, chain_simulator])
def test_simulated_stages_go_on_where_the_one_before_left_off(kind, key):
    """A border is in both simulations, rows at rest rest, and times begin at 0."""
    first, second = simulate_stages(simulators(small(), kind), key=key, seeds=SEEDS, steps=[[0, 10], [0, 5, 20]])
    np.testing.assert_allclose(first.t, [0, 2])
    np.testing.assert_allclose(second.t, [0, 1.5, 6])
    close(at(first.overlaps, slice(None), 1), at(second.overlaps, slice(None), 0), atol=1e-12)
    np.testing.assert_allclose(
        first.overlaps.down_gram[:, 0, 1:, 1:], first.overlaps.down_gram[:, 1, 1:, 1:], atol=1e-12
    )
    np.testing.assert_allclose(second.overlaps.cross[:, 0, 0], second.overlaps.cross[:, 2, 0], atol=1e-12)
    assert np.all(first.overlaps.up == first.overlaps.up[:1, :1]) and np.all(second.overlaps.up[:, 2, 0, 1:] != 0)
    assert np.abs(first.overlaps.cross[:, 1, 0] - first.overlaps.cross[:, 0, 0]).min() > 0
    again = simulate(simulators(small(), kind)[0], key=key, seeds=SEEDS, steps=[0, 10])
    close((first.overlaps, first.loss), (again.overlaps, again.loss), rtol=1e-12, atol=1e-14)


def test_a_run_in_two_parts_is_the_run(key):
    """The random numbers go on at a border: the same problem twice against once, bit for bit."""
    simulator = simulators(small(), direct_simulator)[0]
    whole = simulate(simulator, key=key, seeds=SEEDS, steps=[0, 10, 15, 20])
    parts = simulate_stages([simulator] * 2, key=key, seeds=SEEDS, steps=[[0, 10], [0, 5, 10]])
    same_bits(parts[0].overlaps, at(whole.overlaps, slice(None), slice(0, 2)))
    same_bits(parts[1].overlaps, at(whole.overlaps, slice(None), slice(1, 4)))


def gradient_descent_first(batch):
    """A transfer whose pretraining has an infinite batch and whose fine-tuning one of the given size."""
    return eqx.tree_at(
        lambda t: (t.pretraining_sgd.batch_size, t.sgd.batch_size), small(), (jnp.inf, jnp.asarray(batch))
    )


def test_escape_times_from_the_origin_are_those_of_the_single_index_problem(key):
    """Gradient descent, seed by seed: the joint state with origin against the frame (ω*, w0) from that state."""
    transfer, steps = gradient_descent_first(np.inf), np.arange(0, 201, 4)
    _, run = simulate_stages(simulators(transfer, chain_simulator), key=key, seeds=4, steps=[[0, 5], steps])
    origin = at(run.overlaps, slice(None), 0)
    alone = []
    for seed in range(4):
        problem, start = fine_tuned(transfer, at(origin, seed))
        alone.append(simulate(chain_simulator(problem, start=start), key=key, seeds=1, steps=steps))
    np.testing.assert_allclose(run.loss, np.concatenate([one.loss for one in alone]), atol=1e-10)
    for escape in (Escape("loss", 0.5), Escape("loss", 0.2), Escape("absolute", 0.03)):
        times = np.asarray(run.escape_times(escape, origin))
        np.testing.assert_allclose(times, [float(one.escape_times(escape)[0]) for one in alone], rtol=1e-8)
        assert np.all(times > 1) and len(set(times.round(3))) == 4


@pytest.mark.slow
def test_escape_times_after_a_stage_have_the_law_of_a_start_there(key):
    """Gradient descent, then batches of 12: KS test of 1000 escape times against the single-index problem."""
    transfer, steps, escape = gradient_descent_first(12.0), np.arange(0, 301, 2), Escape()
    start = transfer.random_start(jax.random.key(8))
    joint = simulators(transfer, chain_simulator, start=start)
    runs = simulate_stages(joint, key=key, seeds=SEEDS, steps=[[0, 5], steps], until=escape)
    origin = at(runs[1].overlaps, slice(None), 0)
    problem, there = fine_tuned(transfer, at(origin, 0))
    alone = simulate(
        chain_simulator(problem, start=there, dtype="float64"),
        key=jax.random.key(9),
        seeds=SEEDS,
        steps=steps,
        until=escape,
    )
    one, two = np.asarray(runs[1].escape_times(escape, origin)), np.asarray(alone.escape_times(escape))
    assert np.isfinite(one).mean() > 0.95 and np.isfinite(two).mean() > 0.95
    assert stats.ks_2samp(*(np.nan_to_num(x, nan=1e3) for x in (one, two))).pvalue > TOO_SMALL
    without = np.nan_to_num(np.asarray(runs[1].escape_times(escape)), nan=1e3)
    assert stats.ks_2samp(without, np.nan_to_num(two, nan=1e3)).pvalue < 1e-6


def test_early_stop_is_in_the_last_stage_and_does_not_change_it(key):
    """Against the run without, for both origins; the first stage is recorded whole."""
    steps, joint = [[0, 10, 20], np.arange(0, 401, 20)], simulators(small(), chain_simulator)
    full = simulate_stages(joint, key=key, seeds=SEEDS, steps=steps)
    escape, stops = Escape("loss", 0.2), []
    for since in (0, 1):
        first, second = simulate_stages(joint, key=key, seeds=SEEDS, steps=steps, until=escape, since=since)
        same_bits((first.overlaps, first.loss, first.recorded), (full[0].overlaps, full[0].loss, full[0].recorded))
        taken = int(second.recorded[0])
        assert np.all(second.recorded == taken) and np.isnan(second.loss[:, taken:]).all()
        same_bits(second.loss[:, :taken], full[1].loss[:, :taken])
        origin = at(full[since].overlaps, slice(None), 0)
        times = second.escape_times(escape, origin)
        same_bits(times, full[1].escape_times(escape, origin))
        assert float(second.t[taken - 2]) < float(times.max()) <= float(second.t[taken - 1])
        stops.append(taken)
    assert 1 < stops[0] < stops[1] < 21


@pytest.mark.parametrize(
    "kind, until",
    [
        (direct_simulator, None),
        (chain_simulator, None),
        pytest.param(chain_simulator, Escape("absolute", 0.15), marks=pytest.mark.slow),
    ],
)
def test_one_stage_is_a_simulation(kind, until, key):
    """Bit for bit, also where it stops early."""
    simulator, steps = simulators(small(), kind)[0], [0, 5, 20, 100, 400, 420]
    alone = simulate(simulator, key=key, seeds=SEEDS, steps=steps, until=until)
    (staged,) = simulate_stages([simulator], key=key, seeds=SEEDS, steps=[steps], until=until)
    same_bits(eqx.filter(alone, eqx.is_array), eqx.filter(staged, eqx.is_array))
    assert np.all(alone.recorded == 6) if until is None else np.all((alone.recorded > 1) & (alone.recorded < 6))


def test_bad_stages_of_a_simulation_are_named(key):
    joint = simulators(small(), chain_simulator)
    with pytest.raises(ValueError, match="`steps` must be one list for each of 2 stages"):
        simulate_stages(joint, key=key, seeds=2, steps=[[0, 1]])
    with pytest.raises(ValueError, match="`steps` must be a list of increasing whole numbers"):
        simulate_stages(joint, key=key, seeds=2, steps=[[0, 1], [3, 2]])
    with pytest.raises(ValueError, match="`seeds` must be at least 1"):
        simulate_stages(joint, key=key, seeds=0, steps=[[0, 1], [0]])
    for other in (small(adapter=Adapter(1)), eqx.tree_at(lambda t: t.cosine, small(), jnp.asarray(0.1))):
        with pytest.raises(ValueError, match="`simulators` must be of the same frame and rank"):
            simulate_stages([joint[0], simulators(other, chain_simulator)[1]], key=key, seeds=2, steps=[[0, 1], [0]])


# Fine-tuning as a function of pretraining

LARGE = SGD(dimension=1e5, batch_size=2e4)


@pytest.mark.parametrize("rank", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_time_of_fine_tuning_is_the_mean_of_the_law(rank):
    """Within 2 %, aligned and mixture at d = 1e5, at noise scales 1 and 4."""
    for batch in (2e4, 5e3):
        given = dict(adapter=Adapter(rank), sgd=SGD(dimension=1e5, batch_size=batch))
        for problem in (
            Problem.single_index("erf", strength=0.5, **given),
            Problem.mixture("erf", mu=0.5, **given),
        ):
            law, tuning = escape_law(problem), fine_tuning(problem)
            assert law.doubt == "" and bool(tuning.trusted)
            np.testing.assert_allclose(tuning.time, law.mean, rtol=0.02)


def test_goals_that_are_met_and_goals_that_are_not():
    """An absolute goal met by w0 takes no time, even where nothing moves; half the loss of w0 is the escape itself."""
    aligned = {mu: Problem.single_index("erf", strength=mu, sgd=LARGE) for mu in (0.5, 0.9, 1.0)}
    loss = {mu: float(gradient_at(problem, pretrained(problem)).loss) for mu, problem in aligned.items()}
    absolute = Escape("absolute", loss[0.5] / 2)
    assert loss[1.0] < 1e-15 and loss[0.9] < loss[0.5] / 2
    assert float(fine_tuning(aligned[1.0], absolute).time) == float(fine_tuning(aligned[0.9], absolute).time) == 0
    escape = fine_tuning(aligned[0.5]).time
    np.testing.assert_allclose(fine_tuning(aligned[0.5], absolute).time, escape, rtol=1e-6)
    earlier = fine_tuning(aligned[0.5], Escape("absolute", 0.95 * loss[0.5])).time
    assert 0 < float(earlier) < float(escape)
    assert np.isnan(fine_tuning(aligned[1.0]).time) and not bool(fine_tuning(aligned[1.0]).trusted)


@pytest.mark.slow
def test_gradient_of_the_time_of_fine_tuning():
    """Against central differences with a relative step of 1e-3, whose own error is 2e-5."""
    names = ("overlap", "square", "scale", "lr_ratio", "learning_rate", "dimension")
    point = jnp.array([0.45, 0.3, 2.6, 1.3, 0.1, 1e5])

    @jax.jit
    def time(values):
        overlap, square, scale, lr_ratio, learning_rate, dimension = values
        adapter = Adapter(2, scale=scale, lr_ratio=lr_ratio)
        sgd = SGD(learning_rate=learning_rate, dimension=dimension, batch_size=2e4)
        problem = Problem.single_index_from("erf", overlap=overlap, square=square, adapter=adapter, sgd=sgd)
        return fine_tuning(problem).time

    exact = jax.grad(time)(point)
    for i, name in enumerate(names):
        later, earlier = (time(point.at[i].mul(factor)) for factor in (1.001, 0.999))
        numeric = (later - earlier) / (0.002 * point[i])
        np.testing.assert_allclose(exact[i], numeric, rtol=1e-4, err_msg=name)
        assert abs(float(exact[i] * point[i])) > 0.1


def pretrained_for(activation):
    """Pretraining in which the weights turn to the source, grow and then shrink to its length."""
    return Transfer(activation, cosine=0.8, sgd=LARGE)


@pytest.fixture(scope="module")
def swept():
    return checkpoints(pretrained_for("erf"), jnp.array([0.0, 4.0, 8.0]), None)


def test_checkpoints_are_the_weights_of_the_pretraining_run(swept):
    """Time 0 is the random w0; all against the flow of finite steps and fine-tuning from each state on its own."""
    transfer = pretrained_for("erf")
    start = transfer.typical_start()
    later = solve(transfer.pretraining, start, t1=8.0, times=[4.0, 8.0], finite_steps=True).overlaps
    for i, state in enumerate((start, at(later, 0), at(later, 1))):
        overlap, source, square = float(state.cross[0, 0]), float(state.cross[0, 1]), float(state.down_gram[0, 0])
        np.testing.assert_allclose(swept.strength[i], np.sqrt(square), rtol=1e-7)
        np.testing.assert_allclose(swept.alignment[i], overlap / np.sqrt(square), rtol=1e-7)
        np.testing.assert_allclose(swept.distance[i], np.sqrt(square - 2 * overlap + 1), rtol=1e-7)
        for loss, along in ((swept.source_loss[i], source), (swept.target_loss[i], overlap)):
            alone = Problem.single_index_from("erf", overlap=along, square=square)
            np.testing.assert_allclose(loss, gradient_at(alone, pretrained(alone)).loss, rtol=1e-6)
        problem = Problem.single_index_from("erf", overlap=overlap, square=square, sgd=LARGE)
        close(transfer.fine_tuning(state).to_dict()["frame_gram"], problem.to_dict()["frame_gram"], rtol=1e-12)
        tuning = fine_tuning(problem)
        np.testing.assert_allclose(swept.tuning.time[i], tuning.time, rtol=1e-5)
        np.testing.assert_allclose(swept.tuning.amplitude[i], tuning.amplitude, rtol=1e-5)
    np.testing.assert_allclose([swept.strength[0], swept.alignment[0]], [1, 0.8 / np.sqrt(1e5)], rtol=1e-12)
    before, whole = swept.samples(transfer)
    np.testing.assert_allclose(before, [0, 4, 8])
    np.testing.assert_allclose(whole - before, swept.tuning.time)


@pytest.mark.parametrize(
    "activation, goal",
    [
        ("erf", None),
        pytest.param("relu", None, marks=pytest.mark.slow),
        pytest.param("erf", Escape("absolute", 0.02), marks=pytest.mark.slow),
    ],
)
def test_slope_is_the_derivative_in_the_pretraining_time(activation, goal):
    """Central differences of h = 0.03: their error and the integrator's (1e-7 of the time over 2h) are below 2e-4."""
    transfer, times, h = pretrained_for(activation), jnp.array([3.0, 5.0, 8.0]), 0.03
    found = checkpoints(transfer, times, goal)
    later, earlier = (checkpoints(transfer, times + sign * h, goal).tuning.time for sign in (1, -1))
    numeric = (later - earlier) / (2 * h)
    assert np.all(np.abs(numeric) > 0.1)
    np.testing.assert_allclose(found.slope, numeric, rtol=1e-3)


@pytest.mark.slow
def test_a_goal_that_pretraining_meets_takes_no_time():
    """Whose slope is then 0; before, neither is."""
    found = checkpoints(pretrained_for("erf"), jnp.array([2.0, 5.0, 8.0]), Escape("absolute", 0.15))
    met = np.asarray(found.target_loss) <= 0.15
    assert met.tolist() == [False, True, True]
    assert np.all(found.tuning.time[met] == 0) and np.all(found.slope[met] == 0)
    assert float(found.tuning.time[0]) > 1 and abs(float(found.slope[0])) > 0.1
