"""Rows split over devices: four that a process of its own is made to see, and the one of this process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odes import Escape, devices, random_overlaps, solve, spread, spread_batched
from odes.arguments import ArgumentError
from odes.equations import losses
from tests.helpers import same_bits
from tests.problems import single
from validation.simulation import chain_simulator, direct_simulator


def found_by(*words):
    """What tests/four_devices.py finds."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.four_devices", *words]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found():
    """Solutions and simulations."""
    return found_by()


@pytest.mark.parametrize("what, tolerance", [("chain", 0), ("solve", 1e-9)])
def test_four_devices_give_what_one_gives_and_never_talk(found, what, tolerance):
    """The steps of the chain to the bit; solutions up to rounding, which the integrator's steps enlarge."""
    assert found[what] <= tolerance
    assert found[f"collectives of {what}"] == 0
    assert found["escaped"] == 16 and found["places"] == [4]


@pytest.mark.slow
def test_gradients_on_four_devices_are_those_on_one():
    found = found_by("gradient")
    assert found["gradient"] <= 1e-9 and found["collectives of gradient"] == 0


def test_the_count_of_collectives_can_fail(found):
    assert found["collectives of a sum over rows"] > 0


def test_rows_that_the_devices_cannot_share_evenly(found):
    """The same numbers, on one device; ten rows are three for each."""
    rows, difference, places = found["uneven"]
    assert rows == 13 and difference < 1e-9 and places == [1]
    assert found["rows of each device"] == [3]


def test_the_gradient_of_what_is_shared_is_the_sum_over_the_devices(found):
    np.testing.assert_allclose(*found["outer gradient"], rtol=1e-12)


def test_one_device_is_plain_vmap(problem, key):
    def escape(problem, key):
        return solve(problem, random_overlaps(problem, key), t1=50.0, times=[50.0], escape=Escape())

    keys = jax.random.split(key, 3)
    plain = eqx.filter_jit(eqx.filter_vmap(escape, in_axes=(None, 0)))(problem, keys)
    one = spread(escape, in_axes=(None, 0), devices=jax.devices()[:1])(problem, keys)
    same_bits(plain, one)
    assert type(one) is type(plain) and str(one) == str(plain)


def test_trees_of_axes_and_arguments_that_are_no_arrays():
    both = {"split": np.arange(3.0), "shared": np.arange(2.0), "name": "x"}
    axes = ({"split": 0, "shared": None, "name": None}, None, 0)
    total = spread(lambda both, power, none: (both["split"] + both["shared"]) ** power, in_axes=axes)(both, 2, None)
    np.testing.assert_array_equal(total, (np.arange(3.0)[:, None] + np.arange(2.0)) ** 2)
    kept = spread_batched(lambda x: {"rows": x, "link": "erf"})(np.arange(3))
    assert kept["link"] == "erf" and kept["rows"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "in_axes, arguments, message",
    [
        (1, (np.zeros(2),), "`in_axes` must hold 0 and None alone, but has 1"),
        (None, (np.zeros(2),), "`in_axes` must be 0 for at least one array"),
        (0, (np.zeros(2), np.zeros(3)), r"different numbers of rows, \[2, 3\]"),
        (0, (np.zeros(2), np.zeros(())), "must be None for an array without axes"),
        (0, (np.zeros((0, 2)),), "no rows"),
        ((0, 0), (np.zeros(2),), "does not have the structure of the arguments"),
    ],
)
def test_axes_that_do_not_fit_are_named(in_axes, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        spread(lambda *x: x[0], in_axes=in_axes)(*arguments)


def test_no_devices_are_refused():
    with pytest.raises(ArgumentError, match="`devices` must hold at least one device"):
        spread(jnp.sin, devices=[])


def test_an_accelerator_does_what_fills_an_eighth_of_its_memory(monkeypatch):
    problem = single(d=1000, batch=500)
    simulators = chain_simulator(problem), direct_simulator(problem), chain_simulator(problem, dtype="float64")
    assert devices.at_once(64, bytes_each=1.0) == 64
    assert [simulator.seeds_at_once for simulator in simulators] == [131, 1, 131]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(devices, "available_memory", lambda: 64e9)
    assert devices.at_once(64, bytes_each=2.0**20) == 7629
    assert [simulator.seeds_at_once for simulator in simulators] == [500_000, 1333, 250_000]
    monkeypatch.setattr(devices, "available_memory", lambda: 1e6)
    assert [simulator.seeds_at_once for simulator in simulators] == [131, 1, 131]


def test_the_memory_of_an_accelerator_is_its_own(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 123}

    there = devices.available_memory()
    assert 2**28 < there <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    assert devices.available_memory() == 123


def test_losses_do_not_depend_on_how_many_are_computed_at_a_time(problem, monkeypatch):
    many = jax.vmap(lambda key: random_overlaps(problem, key, up=0.3))(jax.random.split(jax.random.key(1), 100))
    few = losses(problem, many)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    np.testing.assert_allclose(losses(problem, many), few, rtol=1e-13)


def test_float32_is_not_rounded_to_what_tensor_cores_take():
    """Every product of matrices of a float32 simulator asks for full precision."""
    simulator = direct_simulator(single(d=20, batch=4, rank=2))
    state = simulator.start(jax.random.key(0))
    for function, arguments in ((simulator.step, (state, jax.random.key(1))), (simulator.overlaps, (state,))):
        text = str(jax.make_jaxpr(function)(*arguments))
        assert text.count("dot_general[") > 1
        assert text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == text.count("dot_general[")
