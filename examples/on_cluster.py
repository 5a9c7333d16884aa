"""Runs a command of searchphase on workers that a batch system starts (SLURM unless told otherwise).

    python examples/on_cluster.py --workers 32 --hours 4 -- simulate --method chain --seeds 1024 --block 64 --output run.nc

It needs `pip install dask-jobqueue 'searchphase[cluster]'` and a folder that all machines see, from which it is called on a login
node or, better, in a job of its own. Further words for the batch system: `--directive=--partition=long --directive=--account=me`.
Should this process or the cluster die, the same line with `--resume` among the command's flags goes on.
"""

import argparse
import subprocess
import sys

import dask_jobqueue
from dask_jobqueue.local import LocalCluster

SYSTEMS = {
    "slurm": dask_jobqueue.SLURMCluster,
    "pbs": dask_jobqueue.PBSCluster,
    "sge": dask_jobqueue.SGECluster,
    "lsf": dask_jobqueue.LSFCluster,
    "htcondor": dask_jobqueue.HTCondorCluster,
    "local": LocalCluster,
}


def main() -> int:
    """Starts the workers, runs the command with their scheduler's address, and ends them; gives the command's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--system", choices=SYSTEMS, default="slurm", help="batch system (local: processes of this machine)"
    )
    parser.add_argument("--workers", type=int, default=8, help="number of workers, each a job of one core")
    parser.add_argument("--memory", default="4GiB", help="memory of a worker")
    parser.add_argument("--hours", type=int, default=1, help="time limit of a worker")
    parser.add_argument("--directive", action="append", default=[], help="a further line for the batch system's script")
    parser.add_argument("command", nargs="+", help="a command of searchphase with its flags, after --")
    asked = parser.parse_args()
    options = {"cores": 1, "processes": 1, "memory": asked.memory, "job_extra_directives": asked.directive}
    if asked.system not in ("local", "htcondor"):
        options["walltime"] = f"{asked.hours:02d}:00:00"
    with SYSTEMS[asked.system](**options) as cluster:
        cluster.scale(asked.workers)
        words = [sys.executable, "-m", "validation", *asked.command, "--scheduler", cluster.scheduler_address]
        return subprocess.run(words).returncode


if __name__ == "__main__":
    sys.exit(main())
