"""Runs in stages, integrated: their borders, losses, escape, file and picture."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odes import (
    SGD,
    Adapter,
    Escape,
    Family,
    Stage,
    Transfer,
    covariances,
    gradient_at,
    load,
    pretrained,
    read_dataset,
    solve,
    solve_stages,
)
from tests.helpers import at, close, pairs, same_bits

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
    """At start, border and end, against the joint problems and single-index ones whose w0 is the student there.

    A loss is a sum of terms of order 0.1, which leaves rounding of 1e-16 on it however small it is.
    """
    for record in (0, 10, 11, 21):
        state = at(solution.overlaps, record)
        for number, problem in enumerate((TRANSFER.pretraining, TRANSFER.lora)):
            covariance = covariances(problem, state)
            alone = Family("erf").with_overlap(covariance.M[0, 0], covariance.Q[0, 0])
            loss = float(solution.losses[number, record])
            np.testing.assert_allclose(loss, gradient_at(problem, state).loss, rtol=1e-12, atol=1e-15)
            np.testing.assert_allclose(loss, gradient_at(alone, pretrained(alone)).loss, rtol=1e-10, atol=1e-15)
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
            "`stages` must be of the same units, rank, frame",
        ),
        (
            lambda: solve_stages([*two_stages(), Stage("cosine 0.7", OTHER.lora, 1.0)], START),
            "`stages` must be of the same units, rank, frame",
        ),
        (lambda: two_stages(first=-1.0), "`duration` must be non-negative and finite"),
        (lambda: two_stages(first=np.inf), "`duration` must be non-negative and finite"),
    ],
)
def test_bad_arguments_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_save_and_load(solution, tmp_path):
    solution.save(tmp_path / "run.nc", note="kept")
    stored = load(tmp_path / "run.nc")
    for ours, known in pairs(stored, solution):
        same_bits(ours, known)
    assert str(stored) == str(solution) and stored.since == solution.since
    for ours, known in zip(stored.stages, solution.stages, strict=True):
        assert (ours.name, ours.restart) == (known.name, known.restart)
        assert ours.problem.to_dict() == known.problem.to_dict()
    dataset = read_dataset(tmp_path / "run.nc")
    assert dataset["labels"].values.tolist() == ["pretraining", "LoRA"]
    assert json.loads(dataset.attrs["kind"]) == "stages" and json.loads(dataset.attrs["note"]) == "kept"


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
