"""A sweep by the processes of an MPI program: `mpiexec -n 9 python -m mpi4py.futures examples/with_mpi.py`, eight of which compute.

It needs `pip install mpi4py`. What is finished is kept beside `run.nc`: the same line goes on after an interruption.
"""

import jax
import numpy as np
from mpi4py.futures import MPIPoolExecutor

jax.config.update("jax_enable_x64", True)

from odes import SGD, Escape, Family  # noqa: E402
from validation.jobs.parts import Parts  # noqa: E402
from validation.simulation import Place, chain_simulator, even_steps, simulate_points  # noqa: E402


def main() -> None:
    """Escape times at eight strengths."""
    sgd = SGD(dimension=1e4, batch_size=2000, learning_rate=0.2)
    strengths = np.linspace(0.1, 0.45, 8).tolist()
    problems = [Family("erf", sgd=sgd).at(strength, 1.0) for strength in strengths]
    settings = {"strengths": strengths, "seeds": 64, "block": 16, "end": 300.0}
    with MPIPoolExecutor() as executor:
        found = simulate_points(
            problems,
            chain_simulator,
            places=[Place(strength, 1.0, 1, 1e4) for strength in strengths],
            key=jax.random.key(0),
            seeds=64,
            block=16,
            steps=[even_steps(300.0, 0.2, 50)] * len(problems),
            escape=Escape(),
            until_escape=True,
            parts=Parts("run.nc", settings, resume=True),
            executor=executor,
        )
    for strength, run in zip(strengths, found.simulations, strict=True):
        times = np.asarray(run.escape_times)
        print(f"strength {strength:.2f}: {np.isfinite(times).sum()} of 64 escape, mean time {np.nanmean(times):.2f}")
    for failure in found.failures:
        print(f"{failure.name} failed: {failure.reason}")


if __name__ == "__main__":
    main()
