"""The command `searchphase`, called as a user calls it."""

import os

from validation.cli.main import main


def on_its_own():
    """The environment of a process that may die while it writes: a file cut short would stay in the cache of compiled programs."""
    return os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}


def run(capsys, *words):
    """Exit code, standard output and standard error of `searchphase words...`."""
    try:
        code = main(list(words))
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def assert_refused(capsys, words, message):
    """Bad input is one line on standard error, of the command that was called, and exit code 2."""
    code, out, err = run(capsys, *words)
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and message in err and err.startswith("searchphase"), err
