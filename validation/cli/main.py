"""The command `searchphase`: parses the flags, runs one command, turns bad input into one line and exit code 2."""

import contextlib
import importlib.metadata
import io
import itertools
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any

from validation.cli.commands import COMMANDS, command
from validation.cli.compilation import DEVICES, compile_barely, require_device, set_up

_IN_FILES = {"dimension", "batch_size", "learning_rate", "label_noise", "readout_lr_ratio", "rank", "scale", "lr_ratio"}
_IN_FILES |= {"student", "teacher"}
"""Arguments that are entries of a problem's file where there is one."""

_FLAGS = {"dimension": "dim", "student": "activation"}
"""Arguments whose flag has another name."""

_LOOPS = ("simulate",)
"""Commands whose time is in their loops, not in compiling them."""

_SIMULATIONS = ("simulate", "validate", "figures")
"""Commands that simulate, in one process for each core: threads of XLA would only be in each other's way."""

_INTERRUPTED = 130
"""The exit code of a process that Ctrl-C ended."""

_CLOSED = 141
"""That of one whose standard output was closed."""

_CLEARER = (
    (
        r": (?:could not convert string to float:|no type matching .*FLOAT .* from) \[? ?('.*') ?\]?$",
        r" takes a number, not \1",
    ),
    (
        r": (?:invalid literal for int.*:|no type matching .*INT .* from) \[? ?('.*') ?\]?$",
        r" takes a whole number, not \1",
    ),
    (r": (takes .*)$", r" \1"),
    (r"^invalid choice ('.*') for argument '(--\S+)'\. Expected one of \((.*)\)$", r"\2 takes one of \3, not \1"),
    (r"^Unrecognized options: (-?[\d.].*)$", r"too many values: \1 (flags take one value here)"),
)
"""What tyro says of words that the flag does not take, and how it is said here."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs `searchphase` with `args`; those of the process unless given, whose programs are then kept ([`odes.programs`][]).

    Returns the exit code: 0 done, 1 the check said no, 2 bad input, 130 interrupted.
    """
    given = list(sys.argv[1:] if args is None else args)
    if given == ["--version"]:
        print(f"searchphase {importlib.metadata.version('searchphase')}")
        return 0
    name = given[0] if given and given[0] in COMMANDS else None
    try:
        return _run(given, name, own_process=args is None)
    except KeyboardInterrupt:  # while packages are imported
        return _say(name, "interrupted", _INTERRUPTED)


def asked_device(args: Sequence[str]) -> str | None:
    """The device that `--device` names, which must be known before JAX is imported; None if there is none of that name.

    >>> asked_device(["solve", "--device", "gpu"]), asked_device(["solve", "--device=cpu"]), asked_device(["solve"])
    ('gpu', 'cpu', None)
    """
    words = [word for part in args for word in part.split("=", 1)]
    after = [value for flag, value in itertools.pairwise(words) if flag == "--device"]
    return after[-1] if after and after[-1] in DEVICES else None


def _run(args: list[str], name: str | None, *, own_process: bool) -> int:
    device, flags = asked_device(args), os.environ.get("XLA_FLAGS", "")
    set_up(loops=name in _LOOPS, device=device, alone=name in _SIMULATIONS)
    import jax

    from odes import programs
    from odes.arguments import ArgumentError
    from validation.jobs.engine import JobsFailed, said

    chosen, code = None, 2
    try:
        chosen = parsed(args)
        require_device(device)
        if own_process:
            if hasattr(type(chosen), "brief") and chosen.brief:
                compile_barely(flags)
            if programs.configured("jax_enable_compilation_cache"):
                programs.keep(programs.configured("jax_compilation_cache_dir"))
        code = chosen.run()
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _CLOSED
    except (MemoryError, OverflowError, jax.errors.JaxRuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = reason if reason.startswith("INVALID_ARGUMENT") else f"too large for this machine: {reason}"
    except JobsFailed as error:
        unfinished = getattr(chosen, "unfinished", said)
        message, code = unfinished(error.failures), 1
    except ArgumentError as error:
        file = getattr(chosen, "problem", None)
        if isinstance(file, str) and error.name in _IN_FILES and not _given(chosen, error.name):
            message = f"{file}: `{error.name}` {error.complaint}"
        else:
            flag = "" if error.name is None else f"--{_FLAGS.get(error.name, error.name)} ".replace("_", "-")
            message = flag + error.complaint
    except OSError as error:
        message = str(error)
    except KeyboardInterrupt:
        if own_process:  # which ends once nothing more is being compiled: another Ctrl-C would abort that
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        kept = getattr(chosen, "interrupted", None)
        message, code = f"interrupted{f'; {kept()}' if kept else ''}", _INTERRUPTED
    return _say(name, message, code)


def _given(chosen: Any, name: str) -> bool:
    """Whether a command has a flag of this name and it is not as it is by itself."""
    field = type(chosen).__dataclass_fields__.get(name)
    return field is not None and getattr(chosen, name) != field.default


def _say(name: str | None, message: str, code: int) -> int:
    """Prints one line on standard error; returns the exit code."""
    one_line = message.replace("\n", " ")
    print(f"searchphase{f' {name}' if name else ''}: {one_line}", file=sys.stderr)
    return code


def parsed(args: list[str]) -> Any:
    """The command's dataclass, filled from `args`; ArgumentError with one line where tyro would print a box.

    Of a command that is named only its own module is imported.
    """
    import tyro

    from odes.arguments import ArgumentError

    config = (tyro.conf.FlagCreatePairsOff,)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            if args and args[0] in COMMANDS:
                return tyro.cli(command(args[0]), prog=f"searchphase {args[0]}", args=args[1:], config=config)
            return tyro.extras.subcommand_cli_from_dict(
                {name: command(name) for name in COMMANDS},
                prog="searchphase",
                description="Escape times and training dynamics of LoRA fine-tuning in high dimension (--version says which).",
                args=args,
                config=config,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ArgumentError(None, _one_line(printed.getvalue())) from None


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
    message = " ".join(lines).removeprefix("Error parsing ").rstrip(". ")
    for words, clearer in _CLEARER:
        message = re.sub(words, clearer, message)
    return f"{message} (see --help)"
