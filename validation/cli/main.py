"""The command `searchphase`: parses the flags, runs one command, turns bad input into one line and exit code 2."""

import contextlib
import io
import re
import sys
from collections.abc import Sequence

import jax
import tyro

from validation.cli.commands import COMMANDS
from validation.cli.options import BadInput

_FLAGS = {"dimension": "dim"}
"""Arguments whose flag has another name."""

_INTERRUPTED = 130
"""The exit code of a process that Ctrl-C ended."""

_CLEARER = (
    (r": (?:could not convert string to float:|no type matching .*FLOAT .* from) \[? ?('.*') ?\]?$", "number"),
    (r": (?:invalid literal for int.*:|no type matching .*INT .* from) \[? ?('.*') ?\]?$", "whole number"),
)
"""What tyro says of a word that is not a number of the kind that the flag takes."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs `searchphase` with `args` (the process's own unless given).

    Returns the exit code: 0 done, 1 the check said no, 2 bad input, 130 interrupted.
    """
    jax.config.update("jax_enable_x64", True)
    args = list(sys.argv[1:] if args is None else args)
    name = args[0] if args and args[0] in COMMANDS else None
    code = 2
    try:
        return _parse(args).run()
    except (MemoryError, OverflowError, jax.errors.JaxRuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = f"too large for this machine: {reason}"
    except (BadInput, ValueError, OSError) as error:
        if isinstance(error, ValueError) and not str(error).startswith("Argument `"):
            raise
        message = re.sub(r"Argument `(\w+)`", _flag, str(error)).replace("\n", " ")
    except KeyboardInterrupt:
        message, code = "interrupted", _INTERRUPTED
    print(f"searchphase{f' {name}' if name else ''}: {message}", file=sys.stderr)
    return code


def _flag(match: re.Match[str]) -> str:
    return f"--{_FLAGS.get(match[1], match[1])}".replace("_", "-")


def _parse(args: list[str]):
    """The command's dataclass, filled from `args`; BadInput with one line where tyro would print a box."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.extras.subcommand_cli_from_dict(
                COMMANDS,
                prog="searchphase",
                description="Escape times and training dynamics of LoRA fine-tuning in high dimension.",
                args=args,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise BadInput(_one_line(printed.getvalue())) from None


def _one_line(box: str) -> str:
    """The message inside tyro's box (of lines, or of hyphens where the terminal has none), up to its first rule."""
    lines = []
    for line in box.splitlines()[1:]:
        text = line.strip("│ ")
        if set(text) <= set("-─╰╯╭╮"):
            if lines:
                break
            continue
        lines.append(text)
    message = " ".join(lines).removeprefix("Error parsing ").rstrip(".")
    for words, kind in _CLEARER:
        message = re.sub(words, rf" takes a {kind}, not \1", message)
    return f"{message} (see --help)"
