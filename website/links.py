"""`python -m website.links site` counts the pages and links of a built site and reports those that lead nowhere.

Links to other hosts are counted, not followed. Whatever a page would load from another host is reported.
"""

import dataclasses
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

_LOADED = {"img": "src", "script": "src", "iframe": "src", "source": "src", "video": "src"}
_LOADED_LINKS = {"stylesheet", "icon", "preload", "preconnect", "modulepreload", "manifest", "dns-prefetch"}


@dataclasses.dataclass
class Report:
    """What was found: numbers of pages and of links, and one line for everything that is wrong."""

    pages: int = 0
    links: int = 0
    loaded: int = 0
    elsewhere: int = 0
    broken: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        counts = f"{self.pages} pages, {self.links} links between them, {self.elsewhere} to other hosts, "
        return "\n".join([*self.broken, f"{counts}{self.loaded} files loaded, {len(self.broken)} broken"])


class _Page(HTMLParser):
    """The links of a page, what it loads, and the places in it that a link may lead to."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and "href" in given:
            loaded = _LOADED_LINKS & set(given.get("rel", "").split())
            (self.loads if loaded else self.links).append(given["href"])
        elif tag in _LOADED and _LOADED[tag] in given:
            self.loads.append(given[_LOADED[tag]])


def checked(site: Path) -> Report:
    """The report on a built site."""
    pages = {file: _Page(file.read_text()) for file in sorted(site.rglob("*.html"))}
    report = Report(pages=len(pages))
    for file, page in pages.items():
        place = "/" + file.relative_to(site).as_posix()
        for target in page.links:
            report.links += 1
            _follow(report, site, pages, place, target, loaded=False)
        for target in page.loads:
            report.loaded += 1
            _follow(report, site, pages, place, target, loaded=True)
    report.links -= report.elsewhere
    return report


def _follow(report: Report, site: Path, pages: dict[Path, _Page], place: str, target: str, *, loaded: bool) -> None:
    parts = urlsplit(urljoin(place, target))
    if parts.scheme == "data":
        return
    if parts.scheme or parts.netloc:
        if loaded:
            report.broken.append(f"{place}: loads {target} from another host")
        else:
            report.elsewhere += 1
        return
    file = site / unquote(parts.path).lstrip("/")
    file = file / "index.html" if file.is_dir() else file
    if not file.is_file():
        report.broken.append(f"{place}: {target} does not exist")
    elif parts.fragment and file in pages and unquote(parts.fragment) not in pages[file].places:
        report.broken.append(f"{place}: {target} names a place that is not there")


def main(folder: str) -> int:
    """Prints the report; returns 1 if something is broken, 2 if there is no site."""
    if not (Path(folder) / "index.html").is_file():
        print(f"{folder} holds no site: make docs builds it", file=sys.stderr)
        return 2
    report = checked(Path(folder))
    print(report)
    return 1 if report.broken else 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:2] or ["site"]))
