"""Prints the latency table: how long whole commands take, as processes of their own, with an empty compilation cache and a full one.

Every command gets new, empty folders as JAX's persistent compilation cache (`JAX_COMPILATION_CACHE_DIR`): the median of the first runs
with each is "cold", that of the runs after the last of them is "warm". Both are also given over the time that `import jax, diffrax`
takes right before, which no command can beat; so are the limits, since machines differ in speed, and one machine from hour to hour.
"cpu" is the processors' time, which other work on the machine changes less than the time on the clock. JAX's other settings are left
alone: unless the project says otherwise, JAX stores only what took a second or more to compile. "stored" is the number of compiled
functions in the cache after the cold run.

Every command is run once for nothing first, so that files are read and Python's bytecode is in place. Run it on an idle machine.
"""

import argparse
import dataclasses
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from validation.cli.report import table

HERE = Path(__file__).resolve().parent.parent

_IMPORT = "import jax, diffrax"

_AS_COMMANDS = """
import os

os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
from validation.cli.compilation import set_up

set_up()
"""

_GRADIENT = """
import jax

jax.config.update("jax_enable_x64", True)
from odes import Escape, Problem, random_overlaps, solve


def escape_time(strength):
    problem = Problem.single_index("erf", strength=strength)
    start = random_overlaps(problem, jax.random.key(0))
    return solve(problem, start, t1=1000.0, escape=Escape(), until_escape=True).escape_time


gradient = jax.grad(escape_time)(0.5)
assert abs(gradient) > 0, gradient
"""


@dataclasses.dataclass(frozen=True)
class Job:
    """What a process does: `words` after the name of Python; `{folder}` among them is an empty folder.

    `cold` and `warm` are the limits, in times of the import, None where there is none; `once`: each is a single run, since it takes
    minutes.
    """

    what: str
    words: tuple[str, ...]
    cold: float | None = None
    warm: float | None = None
    once: bool = False


def _command(words: str, cold: float | None = None, warm: float | None = None, *, once: bool = False) -> Job:
    return Job(words.replace(" --folder {folder}", ""), ("-m", "validation", *words.split()), cold, warm, once)


_HELP = _command("--help", 1.3, 1.3)

_JOBS = (
    _command("escape"),
    _command("escape --dim 1000", 5, 3),
    _command("escape --problem examples/committee.toml"),
    _command("solve", 4, 2.5),
    _command("simulate --method chain --until-escape --seeds 64", 5, 3),
    _command("checkpoints --cosine 0.8", 12, 7),
    Job("gradient of an escape time", ("-c", _GRADIENT)),
    Job("gradient, set up as short commands are", ("-c", _AS_COMMANDS + _GRADIENT)),
)
_FIGURES = _command("figures --quick --folder {folder}", 300, once=True)


def seconds(checkout: Path, words: tuple[str, ...], cache: str) -> tuple[float, float]:
    """The time that a process takes from start to exit, and its processors' time, with a folder for compiled functions."""
    path = os.pathsep.join([str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "JAX_COMPILATION_CACHE_DIR": cache}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *(word.replace("{folder}", folder) for word in words)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        took = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr}")
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def medians(runs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The medians of several runs: of the time, and of the processors'."""
    wall, cpu = zip(*runs, strict=True)
    return statistics.median(wall), statistics.median(cpu)


def row(checkout: Path, job: Job, repeat: int, unit: float) -> dict[str, Any]:
    """One line of the table; `unit` is the time of the import."""
    repeat = 1 if job.once else repeat
    with tempfile.TemporaryDirectory() as caches:
        folders = [str(Path(caches, str(number))) for number in range(repeat)]
        cold, cold_cpu = medians([seconds(checkout, job.words, folder) for folder in folders])
        stored = sum(file.name.endswith("-cache") for file in Path(folders[-1]).rglob("*"))
        warm, warm_cpu = medians([seconds(checkout, job.words, folders[-1]) for _ in range(repeat)])
    limits = [("cold", cold / unit, job.cold), ("warm", warm / unit, job.warm)]
    missed = [name for name, took, limit in limits if limit is not None and took > limit]
    return {
        "what": job.what,
        "cold": cold,
        "cold / import": cold / unit,
        "cold, cpu": cold_cpu,
        "warm": warm,
        "warm / import": warm / unit,
        "warm, cpu": warm_cpu,
        "stored": stored,
        "limits": ", ".join(f"{name} {limit:.3g}" for name, _, limit in limits if limit is not None),
        "missed": ", ".join(missed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Prints how long whole commands take, without and with compiled functions."
    )
    parser.add_argument("--checkout", type=Path, default=HERE, help="folder of the revision to measure (this one)")
    parser.add_argument(
        "--repeat", type=int, default=3, metavar="N", help="runs of which a median is taken (3), cold and warm"
    )
    parser.add_argument("--figures", action="store_true", help="also draw all figures, twice (many minutes)")
    options = parser.parse_args()
    checkout = options.checkout.resolve()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as cache:
        for job in (_HELP, *_JOBS):
            seconds(checkout, job.words, cache)
        units, rows = [], []
        jobs: list[Job] = [_HELP, *_JOBS, *([_FIGURES] if options.figures else [])]
        for job in tqdm(jobs, unit="command", disable=None):
            units.append(medians([seconds(checkout, ("-c", _IMPORT), cache) for _ in range(options.repeat)]))
            rows.append(row(checkout, job, options.repeat, units[-1][0]))
        unit, cpu = medians(units)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f} at the start; jax {jax.__version__}; {checkout}\n"
    )
    first = {"what": _IMPORT, "warm": unit, "warm / import": 1.0, "warm, cpu": cpu, "limits": "", "missed": ""}
    print(table([dict.fromkeys(rows[0]) | first, *rows]))


if __name__ == "__main__":
    main()
