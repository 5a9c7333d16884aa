"""How far a long computation is, where standard error is no terminal."""

import re

import pytest

from validation.progress import progress


@pytest.fixture
def clock(monkeypatch):
    """The time, to be set by hand."""
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def counted(clock, steps, seconds):
    with progress(total=steps, unit="step", what="erf") as bar:
        for _ in range(steps):
            clock[0] += seconds
            bar.update()


def test_a_long_run_says_how_long_and_then_a_line_a_minute(clock, capsys):
    counted(clock, 300, 1.0)
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "erf: will take about 05:00"
    assert 3 <= len(lines) <= 5
    assert all(re.fullmatch(r"erf: \d+% after \d\d:\d\d, 1 step/s, \d\d:\d\d left", line) for line in lines), lines


def test_the_first_piece_and_what_was_done_before_do_not_count_for_how_long(clock, capsys):
    """The first piece takes as long as its programs need to be compiled, and what is kept took no time at all."""
    with progress(total=400, initial=200, unit="step") as bar:
        for seconds in (50.0, *[1.0] * 199):
            clock[0] += seconds
            bar.update()
    assert capsys.readouterr().err.splitlines()[0] == "will take about 04:09"


def test_a_short_run_says_nothing(clock, capsys):
    counted(clock, 40, 1.0)
    assert capsys.readouterr().err == ""


def test_every_piece_of_work_is_counted_once(clock, capsys):
    for _ in progress(range(300), total=300, unit="setting"):
        clock[0] += 1.0
    *_, last = capsys.readouterr().err.splitlines()
    share, minutes, seconds = map(int, re.match(r"(\d+)% after (\d\d):(\d\d)", last).groups())
    assert abs(share - (60 * minutes + seconds) / 3) <= 2
