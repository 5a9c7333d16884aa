"""Fine-tuning as a function of the pretraining before it: its weights, its time and the slope of that."""

import jax.numpy as jnp
import numpy as np
import pytest

import theory.lanes
from odes import SGD, Adapter, Escape, Family, Transfer, gradient_at, pretrained, solve
from tests.helpers import at, close
from theory import Validity, checkpoints, fine_tuning
from validation.simulation import mean_and_error, simulated_fine_tuning

LARGE = SGD(dimension=1e5, batch_size=2e4)


def pretrained_for(activation):
    """Pretraining in which the weights turn to the source, grow and then shrink to its length."""
    return Transfer(activation, cosine=0.8, sgd=LARGE)


@pytest.fixture(scope="module")
def swept():
    return checkpoints(pretrained_for("erf"), jnp.array([0.0, 4.0, 8.0]), None)


def test_pretraining_goes_on_after_the_source_is_learnt():
    """Long after convergence the loss is rounding, of either sign; fine-tuning is then the same from all checkpoints."""
    late = checkpoints(pretrained_for("erf"), [200.0, 400.0, 600.0], None)
    assert np.abs(late.source_loss).max() < 1e-7
    np.testing.assert_allclose(late.strength, 1, rtol=1e-3)
    np.testing.assert_allclose(late.tuning.time[1:], late.tuning.time[0], rtol=1e-3)


def test_checkpoints_are_the_weights_of_the_pretraining_run(swept):
    """Time 0 is the random w0; all against the mean steps and fine-tuning from each state on its own."""
    transfer = pretrained_for("erf")
    start = transfer.typical_start()
    later = solve(transfer.pretraining, start, t1=8.0, times=[4.0, 8.0], iterated=True).overlaps
    for i, state in enumerate((start, at(later, 0), at(later, 1))):
        overlap, source, square = float(state.cross[0, 0]), float(state.cross[0, 1]), float(state.down_gram[0, 0])
        np.testing.assert_allclose(swept.strength[i], np.sqrt(square), rtol=1e-7)
        np.testing.assert_allclose(swept.alignment[i], overlap / np.sqrt(square), rtol=1e-7)
        np.testing.assert_allclose(swept.distance[i], np.sqrt(square - 2 * overlap + 1), rtol=1e-7)
        for loss, along in ((swept.source_loss[i], source), (swept.target_loss[i], overlap)):
            alone = Family("erf").with_overlap(along, square)
            np.testing.assert_allclose(loss, gradient_at(alone, pretrained(alone)).loss, rtol=1e-6)
        problem = Family("erf", sgd=LARGE).with_overlap(overlap, square)
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
    """Central differences of h = 0.03 within a step: their error and the integrator's (1e-7 of the time over 2h) are below 2e-4."""
    transfer, times, h = pretrained_for(activation), jnp.array([3.1, 5.1, 8.1]), 0.03
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


@pytest.mark.slow
def test_fine_tuning_after_many_large_steps_takes_the_time_of_the_chain(key):
    """Near the source the gradient is what pretraining has left of it, exponentially small in the 19 steps."""
    sgd = SGD(learning_rate=0.2825, dimension=3e5).replace(noise_scale=0.35)
    transfer = Transfer("erf", adapter=Adapter(3, lr_ratio=1.33), sgd=sgd.whole_batches())
    time, goal = 19 * float(transfer.sgd.learning_rate), Escape("loss", 0.9)
    found = checkpoints(transfer, [time], goal).tuning
    simulated = simulated_fine_tuning(transfer, time, goal, longest=2 * float(found.time[0]), seeds=60, key=key)
    mean, error = mean_and_error(simulated)
    assert abs(mean - float(found.time[0])) < 4 * error < 0.06 * mean


def test_pretraining_that_is_a_matter_of_luck_is_refused_until_it_has_converged():
    # x^2 - 1: random weights leave the start at times that scatter by more than pretraining takes
    transfer = Transfer(
        "He2",
        cosine=0.065,
        adapter=Adapter(3, scale=6.57, lr_ratio=1.58),
        sgd=SGD(learning_rate=4.6e-4, batch_size=64, dimension=472),
    )
    times = np.array([1.39, 2.78])
    drawn = checkpoints(transfer, times).tuning
    assert drawn.validity.tolist() == [Validity.unsettled, Validity.holds]
    given = checkpoints(transfer, times, start=transfer.typical_start()).tuning
    assert given.validity.tolist() == [Validity.holds, Validity.holds]
    np.testing.assert_allclose(given.time, drawn.time, rtol=1e-12)


def test_links_neither_even_nor_odd_are_pretrained_by_the_sign_of_the_start():
    """Half of the random weights of He2 + He3/2 turn away from the source: no time is that of all."""
    transfer = Transfer("He2+0.5*He3", cosine=0.74, sgd=SGD(learning_rate=0.003, batch_size=np.inf, dimension=2826))
    times = np.array([2.4, 4.8])
    assert checkpoints(transfer, times).tuning.validity.tolist() == [Validity.unsettled] * 2
    given = checkpoints(transfer, times, start=transfer.typical_start()).tuning
    assert given.validity.tolist() == [Validity.holds] * 2


def committee_pretrained(batch_size):
    """Two units learn two source directions; of the target's two one is the same and one is new. The noise scale is 1."""
    sgd = SGD(dimension=2e4, batch_size=2000, learning_rate=0.1)
    return Transfer(
        "erf(x/sqrt(2))",
        units=2,
        teachers=2,
        cosine=[1.0, 0.3],
        adapter=Adapter(2),
        sgd=sgd,
        pretraining_sgd=sgd.replace(batch_size=batch_size),
    )


@pytest.fixture(scope="module")
def few_lanes():
    """No more checkpoints of committees are computed at a time than are asked for."""
    with pytest.MonkeyPatch.context() as fewer:
        fewer.setattr(theory.lanes, "_ON_CPU", 3)
        yield


@pytest.fixture(scope="module")
def committees(few_lanes):
    """On the symmetric plateau, while units part, and when the source is learnt."""
    return checkpoints(committee_pretrained(2e5), [20.0, 150.0, 400.0])


def test_checkpoints_of_several_units_are_means_over_pretrainings(committees):
    """The plateau of Saad & Solla has |w|^2 = 1/3; later every unit is one source direction, of which one is a target's."""
    assert np.all(np.asarray(committees.tuning.validity) == Validity.holds)
    np.testing.assert_allclose(committees.strength[2], 1, rtol=1e-3)
    np.testing.assert_allclose(committees.alignment[2], (1 + 0.3) / 2, rtol=1e-2)
    np.testing.assert_allclose(committees.distance[2], np.sqrt((0 + 2 - 2 * 0.3) / 2), rtol=1e-2)
    assert 1e-2 > committees.source_loss[1] > 1e-4 > committees.source_loss[2]
    assert float(committees.tuning.error[1]) > 10 * float(committees.tuning.error[2])


@pytest.mark.slow
def test_a_given_start_of_several_units_is_followed_alone(key):
    """The checkpoint is the state of that run, and its time the mean of fine-tuning from it, up to the scatter of other adapters."""
    transfer = committee_pretrained(2e5)
    start = transfer.random_start(key)
    found = checkpoints(transfer, [20.0], start=start)
    state = solve(transfer.pretraining, start, t1=20.0, times=[20.0], iterated=True).final
    alone = fine_tuning(transfer.fine_tuning(state))
    np.testing.assert_allclose(found.target_loss[0], gradient_at(transfer.lora, state).loss, rtol=1e-6)
    together = np.hypot(found.tuning.error[0], alone.error)
    assert abs(float(found.tuning.time[0] - alone.time)) < 4 * together < 0.01 * float(alone.time)
    later, earlier = (checkpoints(transfer, [20.0 + sign * 0.03], start=start).tuning.time[0] for sign in (1, -1))
    np.testing.assert_allclose(found.slope[0], (later - earlier) / 0.06, rtol=1e-2)


def test_noise_that_parts_the_units_in_pretraining_is_no_mean_over_starts(committees):
    """At the noise scale 1 it adds more than the start's own variance before they part; where all has been learnt it does not matter."""
    noisy = checkpoints(committee_pretrained(2e3), [150.0, 1000.0]).tuning
    assert noisy.validity.tolist() == [Validity.unsettled, Validity.holds]


@pytest.mark.slow
def test_fine_tuning_of_several_units_takes_the_time_of_the_chain(committees, key):
    """Pretraining from random weights and fine-tuning by the exact chain, against means over the same two random numbers."""
    transfer = committee_pretrained(2e5)
    for time, expected, known in zip(committees.time, committees.tuning.time, committees.tuning.error, strict=True):
        simulated = simulated_fine_tuning(transfer, float(time), Escape(), longest=80.0, seeds=64, key=key)
        mean, error = mean_and_error(simulated)
        assert abs(mean - float(expected)) < 4 * np.hypot(error, known) < 0.1 * mean
