"""The built site in a real browser: no error, no other host, mathematics, search; skipped where there is no browser or site."""

import contextlib
import functools
import http.server
import threading
from pathlib import Path

import pytest

from tests.browsers import WIDTHS

SITE = Path(__file__).parents[2] / "site"
PAGES = (
    "index.html",
    "theory/index.html",
    "figures/index.html",
    "commands/escape/index.html",
    "reference/odes/problem/index.html",
)

pytestmark = pytest.mark.slow


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(folder):
    """The address of a server of the folder."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def address():
    if not (SITE / "index.html").exists():
        pytest.skip("there is no site: make docs builds it")
    with served(SITE) as found:
        yield found


class Visit:
    """A page of the browser that keeps what goes wrong: errors, failed requests, requests to other hosts."""

    def __init__(self, browser, address, size=WIDTHS["desktop"], **options):
        self.page = browser.new_page(viewport=dict(zip(("width", "height"), size, strict=True)), **options)
        self.wrong = []
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("requestfailed", lambda request: self._failed(request))
        self.page.on(
            "response",
            lambda answer: self.wrong.append(f"{answer.status}: {answer.url}") if answer.status >= 400 else None,
        )
        self.page.on("request", lambda request: self._seen(request.url, address))
        self.address = address

    def _seen(self, url, address):
        if not url.startswith((address, "data:", "blob:")):
            self.wrong.append(f"another host: {url}")

    def _failed(self, request):
        if request.failure != "net::ERR_ABORTED":  # the page was left before all was there
            self.wrong.append(f"failed: {request.url}")

    def go(self, place):
        answer = self.page.goto(self.address + place, wait_until="load")
        assert answer.ok, place
        return self.page


def test_every_page_loads_without_an_error_and_without_another_host(browser, address):
    visit = Visit(browser, address)
    for file in sorted(SITE.rglob("*.html")):
        if file.name != "404.html":
            visit.go(file.relative_to(SITE).as_posix())
    assert visit.wrong == []


@pytest.mark.parametrize("size", WIDTHS)
@pytest.mark.parametrize("place", PAGES)
def test_no_page_is_wider_than_the_window(browser, address, place, size):
    visit = Visit(browser, address, WIDTHS[size])
    page = visit.go(place)
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[size][0]
    assert visit.wrong == []


def test_mathematics_is_set_in_its_own_fonts(browser, address):
    page = Visit(browser, address).go("theory/index.html")
    page.evaluate("document.fonts.ready")
    assert page.locator(".formula .katex").count() > 100
    assert page.locator(".katex-error").count() == 0 and "\\frac" not in page.locator("article").inner_text()
    loaded = page.evaluate("[...document.fonts].filter(f => f.status == 'loaded').map(f => f.family)")
    assert any("KaTeX" in family for family in loaded)


def test_search_finds_a_function(browser, address):
    visit = Visit(browser, address)
    page = visit.go("index.html")
    page.locator("[data-md-component=search-query]").click()
    page.keyboard.type("escape_law")
    found = page.locator(".md-search-result__link", has_text="escape_law")
    found.first.wait_for(timeout=20_000)
    found.first.click()
    page.wait_for_load_state()
    assert "escape_law" in page.locator("article").inner_text() and visit.wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_system_chooses_light_or_dark(browser, address, scheme):
    page = Visit(browser, address, color_scheme=scheme).go("index.html")
    brightness = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"
    )
    assert (brightness > 600) == (scheme == "light")


def test_a_tutorial_is_downloaded(browser, address):
    page = Visit(browser, address).go("tutorials/first_steps/index.html")
    with page.expect_download() as waiting:
        page.get_by_text("Python file").click()
    assert "escape_law" in Path(waiting.value.path()).read_text()
