"""Simulations on several devices: the same bits as on one, and devices that do not wait for each other."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import hashlib, json, sys
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
from odes import SGD, Escape, Problem
from validation.simulation import chain_simulator, direct_simulator, simulate
from validation.simulation.ensemble import one_stage, planned

problem = Problem.single_index("erf", strength=0.1, sgd=SGD(dimension=30, batch_size=8, learning_rate=0.5))
found = {"devices": jax.device_count()}
for make in (chain_simulator, direct_simulator):
    for blocks in (1, 4, 6):
        options = {"key": jax.random.key(3), "seeds": 5 * blocks - 1, "block": 5}
        options |= {"escape": Escape(), "until_escape": True}
        run = simulate(make(problem), steps=range(0, 301, 5), **options)
        leaves = [np.asarray(x) for x in jax.tree.leaves((run.overlaps, run.loss, run.recorded, run.escape_times))]
        found[f"{make.__name__}, {blocks}"] = hashlib.sha256(b"".join(x.tobytes() for x in leaves)).hexdigest()
        found[f"{make.__name__}, {blocks}, records"] = sorted(set(np.asarray(run.recorded).tolist()))
print(json.dumps(found))
"""


def digests(devices):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "EQX_ON_ERROR": "nan"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_seeds_do_not_depend_on_the_number_of_devices():
    """Each block stops when its own seeds have escaped, whichever blocks are beside it on other devices."""
    one, four = digests(1), digests(4)
    assert (one.pop("devices"), four.pop("devices")) == (1, 4)
    assert one == four
    assert len(one["chain_simulator, 6, records"]) > 1
