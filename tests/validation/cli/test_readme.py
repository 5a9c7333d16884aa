"""The README's own example and table."""

import re
from pathlib import Path

import numpy as np

from tests.command_line import run

README = (Path(__file__).parents[3] / "README.md").read_text()


def test_python_example_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    tau, escape_time = capsys.readouterr().out.split()
    assert 4.8 < float(tau) < 12 and np.isfinite(float(escape_time))


def test_table_is_what_the_command_prints(capsys):
    (command,) = re.findall(r"\$ \.venv/bin/searchphase (escape .*)\n", README)
    code, out, _ = run(capsys, *command.split())
    assert code == 0 and "".join(f"    {line}\n" for line in out.splitlines()) in README
