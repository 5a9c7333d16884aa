"""Jobs a second on one, two, four ... processes, what an engine costs a job, and sharded against unsharded seeds on the same cores.

    python benchmarks/scaling.py

Prints Markdown. Everything is warm: each process has compiled what it runs before it is timed.
"""

import concurrent.futures
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence

from validation.cli.compilation import set_up

set_up(alone="--devices" not in sys.argv)

import jax  # noqa: E402
import numpy as np  # noqa: E402

from odes import SGD, Problem  # noqa: E402
from validation.jobs.engine import all_results, carry_out  # noqa: E402
from validation.jobs.executors import processes, usable_cores  # noqa: E402
from validation.simulation import chain_simulator, simulate  # noqa: E402
from validation.simulation.ensemble import one_stage, planned  # noqa: E402

_BLOCKS, _SEEDS, _STEPS, _EMPTY, _REPEATS = 12, 64, 1000, 200, 2


@dataclasses.dataclass(frozen=True)
class Nothing:
    """A job without work."""

    number: int
    size: int = 1

    @property
    def name(self) -> str:
        return f"nothing-{self.number}"

    def run(self, advanced) -> int:
        return self.number


def sweep(blocks: int) -> Sequence:
    """Blocks of the chain, a second each or less."""
    problem = Problem.single_index("erf", strength=0.5, sgd=SGD(dimension=1e4, batch_size=256, learning_rate=0.05))
    stages = one_stage(chain_simulator(problem), [0, _STEPS])
    return planned(*stages, key=jax.random.key(0), seeds=_SEEDS * blocks, block=_SEEDS).jobs


def seconds(jobs: Sequence, executor: concurrent.futures.Executor | None) -> float:
    """How long the jobs take, the shortest of some repeats."""
    taken = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        all_results(carry_out(jobs, executor=executor))
        taken.append(time.perf_counter() - began)
    return min(taken)


def engines() -> None:
    """This process, one process, twice as many and so on up to the number of cores, and a Dask cluster of two, in turns."""
    counts = [2**power for power in range(1 + int(np.log2(max(2, usable_cores()))))]
    jobs, empty = sweep(_BLOCKS * counts[-1]), [Nothing(number) for number in range(_EMPTY)]
    rows = []

    def measured(name: str, executor: concurrent.futures.Executor | None, count: int = 1) -> None:
        some = jobs[: _BLOCKS * count]
        all_results(carry_out(some[: 4 * count], executor=executor))
        all_results(carry_out(empty[: 4 * count], executor=executor))
        busy, idle = seconds(some, executor), seconds(empty, executor)
        rows.append((name, len(some) / busy, 1e3 * idle / len(empty)))

    measured("this process", None)
    for count in counts:
        with processes(count) as pool:
            measured(f"{count} process{'es' * (count > 1)}", pool, count)
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        print("(without distributed: pip install 'searchphase[cluster]')", file=sys.stderr)
    else:
        options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
        with LocalCluster(**options) as there, Client(there) as client:
            measured("Dask, 2 workers", client.get_executor(pure=False), 2)
    blocks = f"{_BLOCKS} blocks for each process, of {_SEEDS} seeds and {_STEPS} steps (B = 256)"
    print(f"\n{blocks}, and {_EMPTY} jobs without work:\n")
    print("| engine | blocks a second | an empty job, ms |\n| --- | --- | --- |")
    for name, speed, overhead in rows:
        print(f"| {name} | {speed:.3g} | {overhead:.2g} |")


def devices() -> None:
    """The same blocks on one device and split over as many as this process has been told to have."""
    problem = Problem.single_index("erf", strength=0.5, sgd=SGD(dimension=1e4, batch_size=256, learning_rate=0.05))
    options = {"key": jax.random.key(0), "seeds": 4 * _SEEDS, "block": _SEEDS, "steps": [0, _STEPS]}
    simulator, taken = chain_simulator(problem), []
    total = float(np.sum(np.asarray(simulate(simulator, **options).loss)))
    for _ in range(_REPEATS):
        began = time.perf_counter()
        simulate(simulator, **options)
        taken.append(time.perf_counter() - began)
    print(json.dumps({"devices": jax.device_count(), "seconds": min(taken), "sum": total.hex()}))


def main() -> None:
    """All tables."""
    if sys.argv[1:] == ["--devices"]:
        devices()
        return
    engines()
    found = []
    for count in (1, 2, 4):
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
        environment = os.environ | {"XLA_FLAGS": flags, "PJRT_NPROC": str(usable_cores())}
        command = [sys.executable, __file__, "--devices"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    alike = "the same bits" if len({row["sum"] for row in found}) == 1 else "DIFFERENT NUMBERS"
    print(f"\nFour such blocks in one process whose CPU is so many devices ({alike}):\n")
    print("| devices | blocks a second |\n| --- | --- |")
    for row in found:
        print(f"| {row['devices']} | {4 / row['seconds']:.3g} |")


if __name__ == "__main__":
    main()
