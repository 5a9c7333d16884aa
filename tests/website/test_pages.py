"""What pages of the documentation show is what their code prints."""

import re
import shlex
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from tests.command_line import run

ROOT = Path(__file__).parents[2]
PAGES = (
    "index.md",
    "howto/own-link.md",
    "howto/own-sweep.md",
    "howto/own-figure.md",
    "howto/problem-files.md",
    "howto/results.md",
    "validation.md",
)
NOT_RUN = ("import matplotlib.pyplot as plt\nimport xarray\n\ndata =",)
"""How blocks begin that need a figure's data."""

BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<shown>.*?)^```\n)?"
    r"|^    \$ searchphase (?P<words>(?!figures)[^\n]*)\n(?P<printed>(?:    [^\n]*\n)*)",
    re.MULTILINE | re.DOTALL,
)
"""Python with what it prints, or a command with some lines of what it prints; figures take too long."""


def ran(capsys, block, names):
    """What a block of a page prints when it is run with the names that blocks before it have left."""
    if block["words"] is not None:
        code, out, err = run(capsys, *shlex.split(block["words"]))
        assert code == 0, err
        return "".join(f"    {line}\n" for line in out.splitlines())
    exec(compile(block["code"], "a block of the page", "exec"), names)
    return capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_code_prints_what_is_shown(capsys, monkeypatch, tmp_path, page):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    names, text = {}, (ROOT / "docs" / page).read_text()
    found = [block for block in BLOCK.finditer(text) if not (block["code"] or "").startswith(NOT_RUN)]
    assert found
    for block in found:
        printed = ran(capsys, block, names)
        if block["shown"]:
            assert printed == block["shown"]
        for line in (block["printed"] or "").splitlines():
            assert any(other.startswith(line.removesuffix(" ...")) for other in [*printed.splitlines(), "    ..."]), (
                line
            )
    plt.close("all")
