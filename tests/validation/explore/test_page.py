"""The command `searchphase explore` and its page in a real browser; the latter is skipped where there is no browser."""

import contextlib
import gc
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.browsers import WIDTHS
from tests.command_line import assert_refused, on_its_own, run
from validation.explore.server import answered
from validation.explore.settings import Settings

WAIT = 120_000
"""Milliseconds for programs to be compiled."""


def started(**environment):
    """A process that serves the page, and the page's address."""
    words = [sys.executable, "-m", "validation", "explore", "--no-browser", "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, env=os.environ | environment, **pipes)
    line = process.stdout.readline()
    return process, re.search(r"http://127\.0\.0\.1:\d+/", line).group()


def ask(address):
    """Asks for what will not be answered."""
    with contextlib.suppress(OSError), urlopen(address) as answer:
        answer.read()


def test_a_port_in_use_is_refused(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert_refused(capsys, ["explore", "--no-browser", "--port", port], f"--port {port} cannot be listened on")
    gc.collect()  # a socket left open would be a warning here, and so an error
    assert_refused(capsys, ["explore", "--no-browser", "--port", "70000"], "--port must be between 0 and 65535")


def test_a_missing_extra_is_said(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *x: None if name == "bokeh" else find(name, *x))
    assert_refused(capsys, ["explore", "--no-browser"], "needs the package bokeh: pip install 'searchphase[app]'")


def test_the_help_says_what_it_is(capsys):
    code, out, _ = run(capsys, "explore", "--help")
    assert code == 0 and "--no-browser" in out and "8017" in out


def test_wrong_settings_are_answered_in_one_line():
    assert answered("search", {"strength": "-1"}) == {
        "error": "Argument `strength` must be positive and finite, but is -1.0",
        "name": "strength",
    }
    assert "did you mean 'relu'?" in answered("law", {"activation": "relux"})["error"]


@pytest.mark.slow
def test_pages_of_other_hosts_get_no_answer(address):
    stranger = Request(f"{address}start", headers={"Host": "elsewhere.example"})
    with pytest.raises(HTTPError) as refused:
        urlopen(stranger)
    assert refused.value.code == 404
    refused.value.close()


@pytest.mark.slow
def test_ctrl_c_ends_it_with_one_line():
    process, address = started(**on_its_own())
    with urlopen(address) as answer:
        assert b"searchphase" in answer.read()
    asked = threading.Thread(target=ask, args=[f"{address}numbers/law"])
    asked.start()
    time.sleep(3)  # its programs are being compiled
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    asked.join()
    assert process.returncode == 130 and err == "searchphase explore: interrupted; the page is closed\n" and out == ""


@pytest.fixture(scope="module")
def address():
    process, found = started()
    yield found
    process.terminate()
    process.communicate(timeout=20)


@pytest.fixture(params=WIDTHS)
def page(request, browser, address):
    """The page; a test fails if the console has an error or another host is asked."""
    wrong, size = [], dict(zip(("width", "height"), WIDTHS[request.param], strict=True))
    page = browser.new_page(viewport=size)
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith((address, "data:")) else wrong.append(asked.url))
    page.goto(address)
    logged(page, "region: answered")
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    page.close()
    assert wrong == []


def logged(page, words):
    """Waits until the newest line of the log has these words."""
    page.wait_for_function(
        "words => document.getElementById('status').textContent.includes(words)", arg=words, timeout=WAIT
    )


@pytest.mark.slow
def test_a_slider_moves_the_plot_and_the_address_within_150_ms(page, address):
    drawn = "Bokeh.documents.map(d => d.get_model_by_name('here')).find(Boolean).data.tau[0]"
    before, slider = page.evaluate(drawn), page.get_by_role("slider", name="strength")
    taken = []
    for _ in range(10):
        page.evaluate("document.getElementById('log').replaceChildren()")
        slider.press("ArrowRight")
        logged(page, "search: answered")
        page.wait_for_timeout(50)
        taken += [int(time) for time in re.findall(r"search: answered in (\d+) ms", page.locator("#log").inner_text())]
    assert sorted(taken)[len(taken) // 2] < 150
    assert page.evaluate(drawn) > before and page.url == f"{address}?strength=0.55"
    page.goto(f"{address}?strength=0.3&rank=2")
    logged(page, "region: answered")
    assert page.locator("input[name=strength]").input_value() == "0.3"
    assert "--strength 0.3 --rank 2" in page.locator("#command").inner_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "words"), [("activation", "exec(1)", "exec(1)"), ("strength", "-1", "positive")]
)
def test_wrong_input_is_answered_on_the_page(page, name, value, words):
    field = page.locator(f"input[name={name}]")
    right = field.input_value()
    field.fill(value)
    field.press("Tab")
    page.locator("#error", has_text=words).wait_for(timeout=WAIT)
    field.fill(right)
    field.press("Tab")
    page.locator("#error").wait_for(state="hidden", timeout=WAIT)


@pytest.mark.slow
def test_the_copied_lines_are_those_of_the_controls(page, address):
    """A mixture stands in place of strength and alignment, whose controls show its values until it is cleared."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
    page.locator("input[name=mixture]").fill("0.4")
    page.get_by_role("checkbox", name="free rows").check()
    page.locator("#command", has_text="--free-rows").wait_for(timeout=WAIT)
    assert (
        page.locator("input[name=strength]").is_disabled()
        and page.get_by_role("slider", name="alignment").is_disabled()
    )
    assert page.locator("input[name=strength]").input_value() == "0.7211"
    logged(page, "region: answered")
    for what, words in (
        ("address", f"{address}?mixture=0.4&free_rows=true"),
        ("command", "searchphase escape --dim 1000 --mixture 0.4 --free-rows"),
        ("Python lines", Settings(mixture=0.4, free_rows=True).python),
    ):
        page.get_by_role("button", name=f"Copy the {what}").click()
        logged(page, "is copied")
        assert page.evaluate("navigator.clipboard.readText()") == words
        page.evaluate("document.getElementById('status').textContent = ''")
    page.reload()
    logged(page, "region: answered")
    assert page.get_by_role("checkbox", name="free rows").is_checked()
    page.locator("input[name=mixture]").fill("")
    page.locator("#command", has_text="--strength 0.7211 --alignment 0.5547").wait_for(timeout=WAIT)
    assert page.locator("input[name=strength]").is_enabled()


@pytest.mark.slow
def test_plots_follow_the_preference_for_light_or_dark(page):
    """Also when it changes while the page is open."""
    ground = """() => [getComputedStyle(document.body.querySelector('section')).backgroundColor,
        ...Bokeh.documents.flatMap(d => d.roots()).map(p => p.background_fill_color)]"""
    line = "Bokeh.documents[0].roots()[0].renderers.find(r => r.name === 'theory').glyph.line_color.value"
    for scheme, section, plot, theory in (
        ("dark", "rgb(30, 33, 38)", "#1e2126", "#6cb8ea"),
        ("light", "rgb(255, 255, 255)", "#ffffff", "#0072b2"),
    ):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(f"Bokeh.documents[0].roots()[0].background_fill_color === '{plot}'")
        assert page.evaluate(ground) == [section, *[plot] * 5] and page.evaluate(line) == theory


@pytest.mark.slow
def test_seeds_are_simulated_on_demand(page):
    page.get_by_role("button", name="Simulate").click()
    page.locator("#chain-words", has_text="of 8 seeds escaped").wait_for(timeout=WAIT)
    assert page.evaluate("Bokeh.documents.map(d => d.get_model_by_name('seeds')).find(Boolean).data.loss.length") == 8
