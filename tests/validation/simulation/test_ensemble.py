"""Many seeds in blocks: what does not change their numbers, and early stop."""

import numpy as np
import pytest

from odes import Escape
from tests.helpers import at, pairs, same_bits
from tests.problems import single
from validation.simulation import chain_simulator, simulate
from validation.simulation.ensemble import block_slices

SIMULATOR = chain_simulator(single(d=1000, batch=64, strength=0.2))


def test_records_and_number_of_seeds_do_not_change_the_seeds(key):
    few = simulate(SIMULATOR, key=key, seeds=4, steps=[0, 50], block=2)
    many = simulate(SIMULATOR, key=key, seeds=8, steps=[0, 7, 20, 50, 60], block=2)
    same_bits(few.overlaps, at(many.overlaps, slice(4), [0, 3]))
    same_bits(few.loss, many.loss[:4, [0, 3]])
    together = simulate(SIMULATOR, key=key, seeds=4, steps=[0, 50])
    np.testing.assert_allclose(together.m, few.m, rtol=1e-4)  # another block: rounding, of samples in float32


@pytest.mark.parametrize("seeds, at_once", [(1, 5), (7, 3), (9, 4), (10, 3), (64, 5)])
def test_blocks_hold_every_seed_once_and_keep_their_size(seeds, at_once):
    slices = block_slices(seeds, at_once)
    assert [i for part in slices for i in range(part.start, part.stop)] == list(range(seeds))
    assert slices[0].stop <= at_once and block_slices(seeds, slices[0].stop) == slices


@pytest.mark.parametrize("link", ["erf", pytest.param("tanh", marks=pytest.mark.slow)])
def test_escape_times_are_those_of_every_step_whatever_is_recorded(link, key):
    """Against a record of every step, where the first one beyond the threshold is seen; a later end changes nothing."""
    simulator = chain_simulator(single(link, d=1000, batch=64, strength=0.2, eta=0.5))
    given = dict(key=key, seeds=6, block=3, escape=Escape("loss", 0.6))
    every = simulate(simulator, steps=np.arange(241), **given)
    margin = np.asarray(every.loss) / (0.6 * float(Escape().reference(simulator.problem))) - 1
    first = (margin <= 0).argmax(axis=1)
    before, after = np.take_along_axis(margin, np.stack([first - 1, first], axis=1), axis=1).T
    expected = np.where((margin <= 0).any(axis=1), 0.5 * (first - 1 + before / (before - after)), np.nan)
    assert np.isfinite(expected).sum() >= 3
    np.testing.assert_allclose(every.escape_times, expected, rtol=1e-9)
    for steps in ([240], [0, 100, 240], np.arange(0, 241, 3), [1, 260], np.arange(0, 501, 50)):
        times = np.asarray(simulate(simulator, steps=steps, **given).escape_times)
        same_bits(times[np.isfinite(expected)], np.asarray(every.escape_times)[np.isfinite(expected)])
    cut = float(np.nanmedian(expected))
    early = np.asarray(simulate(simulator, steps=[int(cut / 0.5)], **given).escape_times)
    np.testing.assert_array_equal(np.isfinite(early), expected <= 0.5 * int(cut / 0.5))


def test_a_start_beyond_the_threshold_has_escaped_at_0(key):
    met = simulate(SIMULATOR, key=key, seeds=2, steps=[0, 10], escape=Escape("absolute", 10.0))
    assert met.escape_times.tolist() == [0.0, 0.0]
    unwatched = simulate(SIMULATOR, key=key, seeds=2, steps=[0, 10])
    assert np.isnan(unwatched.escape_times).all() and unwatched.escape is None


def test_early_stop_leaves_out_records_and_no_escape(key):
    steps = np.arange(0, 601, 10)
    full = simulate(SIMULATOR, key=key, seeds=8, steps=steps, block=2, escape=Escape())
    stopped = simulate(SIMULATOR, key=key, seeds=8, steps=steps, block=2, escape=Escape(), until_escape=True)
    times, taken = np.asarray(stopped.escape_times), np.asarray(stopped.recorded)
    same_bits(times, full.escape_times)
    assert np.isfinite(times).all() and not stopped.diverged.any()
    assert (taken < steps.size).all() and (taken[::2] == taken[1::2]).all() and len(set(taken)) > 1
    assert (np.asarray(stopped.t)[taken - 1] >= times).all()
    left_out = np.arange(steps.size) >= taken[:, None]
    for ours, known in pairs((stopped.overlaps, stopped.loss), (full.overlaps, full.loss)):
        same_bits(ours[~left_out], known[~left_out])
        assert np.isnan(ours[left_out]).all()
