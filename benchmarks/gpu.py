"""The tests that compare an accelerator with its CPU (`--check`), and the table of what it does in a second (`--benchmark`).

What they print goes to `check.txt`, `benchmark.txt` and `benchmark.json` in `--folder` too, if that is given. Where JAX finds no GPU
one line says so, and the exit code is 0.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHECKED = os.environ.get("GPU_CHECK_ON", "gpu")
"""GPU_CHECK_ON=cpu compares the CPU with itself, to try it out."""


def _run(what: str, command: list[str], file: Path | None) -> int:
    """Runs Python with the arguments `command`; what it prints goes to the screen and to a file. Returns its exit code."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    began, lines = time.perf_counter(), []
    with subprocess.Popen(
        [sys.executable, "-u", *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    lines.append(f"{what}: exit code {process.returncode} after {time.perf_counter() - began:.0f} s\n")
    print(lines[-1], end="", flush=True)
    if file is not None:
        file.write_text("".join(lines))
    return process.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks an accelerator against the CPU of its machine, and times it.")
    parser.add_argument("--check", action="store_true", help="run tests/gpu")
    parser.add_argument("--benchmark", action="store_true", help="print the table of run.py --device gpu")
    parser.add_argument("--folder", type=Path, help="also write what is printed, and the table as JSON, to this folder")
    parser.add_argument("--share", default="1", help="of --benchmark: this part of the work alone")
    options = parser.parse_args()
    ask = [
        sys.executable,
        "-c",
        "import jax; print(jax.default_backend())",
    ]  # another process: JAX takes a GPU's memory
    found = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split()[-1]
    if found != CHECKED:
        print(f"nothing to check: JAX finds no GPU here, but {found}")
        return 0
    folder: Path | None = options.folder
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    codes = []
    if options.check:
        quiet = ["-q", "-n0", "-W", "default", "-p", "no:cacheprovider", "--durations=12", "tests/gpu"]
        codes.append(_run("check", ["-m", "pytest", *quiet], folder and folder / "check.txt"))
    if options.benchmark:
        table = ["benchmarks/run.py", "--device", CHECKED, "--share", options.share]
        if folder is not None:
            table += ["--json", str((folder / "benchmark.json").absolute())]
        codes.append(_run("benchmark", table, folder and folder / "benchmark.txt"))
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main())
