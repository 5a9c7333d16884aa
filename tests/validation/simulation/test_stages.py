"""Runs in stages, simulated: their law, their borders, escape after a stage, early stop."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from odes import SGD, Adapter, Escape, Stage, Transfer, covariances
from tests.helpers import TOO_SMALL, at, close, same_bits, smallest_p
from tests.problems import fine_tuned
from validation.simulation import chain_simulator, direct_simulator, simulate, simulate_stages

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


def simulator(transfer, kind, problem=None, **options):
    """A simulator of one stage of the transfer, pretraining unless given."""
    options = dict(up=transfer.up, length=transfer.lengths, dtype="float64") | options
    return kind(transfer.pretraining if problem is None else problem, **options)


def staged(transfer, kind, *, records, start=None, **options):
    """Pretraining and LoRA, to the last of the recorded steps of each."""
    problems = {"pretraining": transfer.pretraining, "LoRA": transfer.lora}
    stages = [
        Stage(name, problem, float(problem.sgd.learning_rate) * steps[-1])
        for (name, problem), steps in zip(problems.items(), records)
    ]
    given = {} if start is None else {"start": start}
    return simulate_stages(
        stages, lambda problem, _: simulator(transfer, kind, problem, **given), records=records, **options
    )


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
    direct = staged(small(), direct_simulator, key=keys[0], seeds=SEEDS, records=steps)
    chain = staged(small(), chain_simulator, key=keys[1], seeds=SEEDS, records=steps)
    for one, two in zip(direct, chain, strict=True):
        assert smallest_p(whole_student(one), whole_student(two)) > TOO_SMALL
    other = small(weight_decay=0.5)
    wrong = staged(other, chain_simulator, key=keys[2], seeds=SEEDS, records=steps)
    assert smallest_p(whole_student(direct[-1]), whole_student(wrong[-1])) < 1e-6


@pytest.mark.parametrize("kind", [direct_simulator, chain_simulator])
def test_simulated_stages_go_on_where_the_one_before_left_off(kind, key):
    """A border is in both simulations, rows at rest rest, and times begin at 0."""
    first, second = staged(small(), kind, key=key, seeds=SEEDS, records=[[0, 10], [0, 5, 20]])
    np.testing.assert_allclose(first.t, [0, 2])
    np.testing.assert_allclose(second.t, [0, 1.5, 6])
    close(at(first.overlaps, slice(None), 1), at(second.overlaps, slice(None), 0), atol=1e-12)
    np.testing.assert_allclose(
        first.overlaps.down_gram[:, 0, 1:, 1:], first.overlaps.down_gram[:, 1, 1:, 1:], atol=1e-12
    )
    np.testing.assert_allclose(second.overlaps.cross[:, 0, 0], second.overlaps.cross[:, 2, 0], atol=1e-12)
    assert np.all(first.overlaps.up == first.overlaps.up[:1, :1]) and np.all(second.overlaps.up[:, 2, 0, 1:] != 0)
    assert np.abs(first.overlaps.cross[:, 1, 0] - first.overlaps.cross[:, 0, 0]).min() > 0
    again = simulate(simulator(small(), kind), key=key, seeds=SEEDS, steps=[0, 10])
    close((first.overlaps, first.loss), (again.overlaps, again.loss), rtol=1e-12, atol=1e-14)


def test_a_run_in_two_parts_is_the_run(key):
    """The random numbers go on at a border: the same problem twice against once, bit for bit."""
    one = simulator(small(), direct_simulator)
    whole = simulate(one, key=key, seeds=SEEDS, steps=[0, 10, 15, 20])
    stages = [Stage(name, one.problem, 10 * float(one.problem.sgd.learning_rate)) for name in ("first", "second")]
    parts = simulate_stages(stages, lambda *_: one, key=key, seeds=SEEDS, records=[[0, 10], [0, 5, 10]])
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
    _, run = staged(transfer, chain_simulator, key=key, seeds=4, records=[[0, 5], steps])
    origin = at(run.overlaps, slice(None), 0)
    for escape in (Escape("loss", 0.5), Escape("loss", 0.2), Escape("absolute", 0.03)):
        _, run = staged(transfer, chain_simulator, key=key, seeds=4, records=[[0, 5], steps], escape=escape)
        alone = []
        for seed in range(4):
            problem, start = fine_tuned(transfer, at(origin, seed))
            alone.append(simulate(chain_simulator(problem, start=start), key=key, seeds=1, steps=steps, escape=escape))
        np.testing.assert_allclose(run.loss, np.concatenate([one.loss for one in alone]), atol=1e-10)
        times = np.asarray(run.escape_times)
        np.testing.assert_allclose(times, [float(one.escape_times[0]) for one in alone], rtol=1e-8)
        assert np.all(times > 1) and len(set(times.round(3))) == 4


@pytest.mark.slow
def test_escape_times_after_a_stage_have_the_law_of_a_start_there(key):
    """Gradient descent, then batches of 12: KS test of 1000 escape times against the single-index problem."""
    transfer, steps, escape = gradient_descent_first(12.0), np.arange(0, 301, 2), Escape()
    start = transfer.random_start(jax.random.key(8))
    given = dict(start=start, seeds=SEEDS, records=[[0, 5], steps], escape=escape)
    runs = staged(transfer, chain_simulator, key=key, **given)
    origin = at(runs[1].overlaps, slice(None), 0)
    problem, there = fine_tuned(transfer, at(origin, 0))
    alone = simulate(
        chain_simulator(problem, start=there, dtype="float64"),
        key=jax.random.key(9),
        seeds=SEEDS,
        steps=steps,
        escape=escape,
    )
    one, two = np.asarray(runs[1].escape_times), np.asarray(alone.escape_times)
    assert np.isfinite(one).mean() > 0.95 and np.isfinite(two).mean() > 0.95
    assert stats.ks_2samp(*(np.nan_to_num(x, nan=1e3) for x in (one, two))).pvalue > TOO_SMALL
    runs = staged(transfer, chain_simulator, key=key, **given, since=0)
    without = np.nan_to_num(np.asarray(runs[1].escape_times), nan=1e3)
    assert stats.ks_2samp(without, np.nan_to_num(two, nan=1e3)).pvalue < 1e-6


def test_early_stop_is_in_the_last_stage_and_does_not_change_it(key):
    """Against the run without, for both origins; the first stage is recorded whole."""
    given = dict(key=key, seeds=SEEDS, records=[[0, 10, 20], np.arange(0, 401, 20)])
    full = staged(small(), chain_simulator, **given)
    escape, stops = Escape("loss", 0.2), []
    for since in (0, 1):
        watched = staged(small(), chain_simulator, **given, escape=escape, since=since)[1]
        first, second = staged(small(), chain_simulator, **given, escape=escape, until_escape=True, since=since)
        same_bits((first.overlaps, first.loss, first.recorded), (full[0].overlaps, full[0].loss, full[0].recorded))
        taken = int(second.recorded[0])
        assert np.all(second.recorded == taken) and np.isnan(second.loss[:, taken:]).all()
        same_bits(second.loss[:, :taken], full[1].loss[:, :taken])
        times = np.asarray(second.escape_times)
        same_bits(times, watched.escape_times)
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
    one, steps = simulator(small(), kind), [0, 5, 20, 100, 400, 420]
    stops = {"escape": until, "until_escape": until is not None}
    alone = simulate(one, key=key, seeds=SEEDS, steps=steps, **stops)
    stage = Stage("only", one.problem, steps[-1] * float(one.problem.sgd.learning_rate))
    (only,) = simulate_stages([stage], lambda *_: one, key=key, seeds=SEEDS, records=[steps], **stops)
    same_bits(eqx.filter(alone, eqx.is_array), eqx.filter(only, eqx.is_array))
    assert np.all(alone.recorded == 6) if until is None else np.all((alone.recorded > 1) & (alone.recorded < 6))


def test_bad_stages_of_a_simulation_are_named(key):
    transfer, given = small(), dict(key=key, seeds=2)
    stages = [Stage("pretraining", transfer.pretraining, 0.2), Stage("LoRA", transfer.lora, 0.9)]

    def run(stages=stages, records=([0, 1], [0, 3]), **options):
        build = lambda problem, _: simulator(transfer, chain_simulator, problem)  # noqa: E731
        return simulate_stages(stages, build, records=records, **given | options)

    with pytest.raises(ValueError, match="`records` must be one for each of 2 stages"):
        run(records=[[0, 1]])
    with pytest.raises(ValueError, match="`records` must be a list of increasing whole numbers"):
        run(records=[[0, 1], [3, 2]])
    with pytest.raises(ValueError, match="`records` must be 3, the steps of stage 'LoRA', at last"):
        run(records=[[0, 1], [0, 2]])
    with pytest.raises(ValueError, match="`seeds` must be at least 1"):
        run(seeds=0)
    for other in (small(adapter=Adapter(1)), eqx.tree_at(lambda t: t.cosine, small(), jnp.asarray(0.1))):
        with pytest.raises(ValueError, match="`stages` must be of the same units, rank, frame"):
            run(stages=[stages[0], Stage("LoRA", other.lora, 0.9)])
