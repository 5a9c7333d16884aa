"""The reference of the command line, from what `searchphase COMMAND --help` prints."""

import contextlib
import dataclasses
import io
import os
import re
from unittest import mock

from mkdocs.exceptions import PluginError

from validation.cli.commands import COMMANDS, command
from validation.cli.main import main

_WIDE = {"COLUMNS": "4000", "LINES": "400"}
"""A terminal so wide that no line of the help is broken."""


def pages() -> dict[str, str]:
    """The page of every command and their list, by place on the site."""
    helps = {name: _help(name, "--help") for name in COMMANDS}
    written = {f"commands/{name}.md": _page(name, text) for name, text in helps.items()}
    rows = "\n".join(f"| [`{name}`]({name}.md) | {_description(text)[0]} |" for name, text in helps.items())
    written["commands/index.md"] = f"""# Commands

`searchphase COMMAND --help` prints what these pages say; they are made from it. `python -m validation` is the same command.

| command | what it does |
|---|---|
{rows}

Results go to standard output, progress and errors to standard error. The exit code is 0 when the work is done, 1 when a
check said no, 2 for wrong input, which gets one line, and 130 after Ctrl-C. `searchphase --version` prints the version.
[Results and the shell](../howto/results.md) tells what `--json`, `--output` and `--plot` give, and how the shell completes flags.
"""
    return written


def _help(*words: str) -> str:
    """What the command line prints."""
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # boxes are drawn where the encoding has lines
    with mock.patch.dict(os.environ, _WIDE), contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main(list(words))
    printed.seek(0)
    return printed.read()


def _description(text: str) -> list[str]:
    """The paragraphs between the usage and the flags."""
    return [" ".join(words.split()) for words in text.partition("╭─")[0].split("\n\n")[1:] if words.strip()]


def _flags(text: str) -> list[tuple[str, str]]:
    """Every flag as it is called, with the words on it."""
    found = []
    for entry in re.split(r"\n(?=│ [\[A-Z-])", text)[1:]:
        first, *others = (line.strip("│ ") for line in entry.splitlines() if line.startswith("│"))
        called, *words = re.split(r" {2,}", first, maxsplit=1)
        found.append((called, " ".join(words + others)))
    return found


def _page(name: str, text: str) -> str:
    flags, fields = _flags(text), dataclasses.fields(command(name))
    if len(flags) != len(fields) + 1:
        raise PluginError(f"the help of {name} shows {len(flags)} flags, of which it has {len(fields) + 1}")
    usage = text.partition("\n\n")[0].removeprefix("usage: ")
    entries = [f"`{called}` {{ #{_anchor(called)} }}\n:   {_escaped(words)}" for called, words in flags]
    paragraphs = "\n\n".join(_escaped(words) for words in _description(text))
    return f"# searchphase {name}\n\n{paragraphs}\n\n    {usage}\n\n## Flags\n\n" + "\n\n".join(entries) + "\n"


def _anchor(called: str) -> str:
    return re.findall(r"--([\w-]+)", called)[-1] if "--" in called else "arguments"


def _escaped(words: str) -> str:
    """Words of the help as Markdown: stars and the like stand for themselves."""
    return re.sub(r"(--[a-z][\w-]*)", r"`\1`", re.sub(r"([*_<\[|])", r"\\\1", words))
