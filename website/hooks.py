"""MkDocs calls these while it builds the site (`hooks` in mkdocs.yml): pages that are made, links out of docs/, mathematics."""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from validation.cli.commands import COMMANDS
from validation.figures.registry import all_figures
from website import commands, gallery, mathematics, reference, tutorials

_KEPT = Path("build/tutorials")
"""Where executed tutorials are kept."""

_ORIGINS = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "benchmarks.md": "benchmarks/README.md",
}
"""Pages whose text is elsewhere in the repository."""

_LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)(?=[)#])")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Entries "@name" of the navigation become the pages that are made."""
    docs = Path(config.docs_dir)
    made: dict[str, list[Any]] = {
        "@tutorials": [{tutorials.title(docs, name): f"tutorials/{name}.md"} for name in tutorials.ORDER],
        "@gallery": [{name: f"gallery/{name}.md"} for name in all_figures()],
        "@commands": [{name: f"commands/{name}.md"} for name in COMMANDS],
        "@reference": reference.navigation(),
    }

    def expanded(entries: list[Any]) -> Iterator[Any]:
        for entry in entries:
            if isinstance(entry, dict):
                yield {name: list(expanded(part)) if isinstance(part, list) else part for name, part in entry.items()}
            else:
                yield from made.get(entry, [entry])

    config.nav = list(expanded(config.nav or []))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made, and the files of the repository to which pages link."""
    docs = Path(config.docs_dir)
    root = docs.parent
    texts: dict[str, str | bytes] = dict(tutorials.files(docs, _KEPT))
    texts |= gallery.pages(docs) | commands.pages() | reference.pages()
    texts |= {page: (root / origin).read_text() for page, origin in _ORIGINS.items()}
    for place, content in texts.items():
        files.append(File.generated(config, place, content=content))
    for place, file in mathematics.style_files():
        files.append(File.generated(config, place, abs_src_path=str(file)))
    pages = [page for page in files.documentation_pages() if page.src_uri not in texts or page.src_uri in _ORIGINS]
    linked = {_linked(link[1], page.src_uri) for page in pages for link in _LINK.finditer(page.content_string)}
    for name in sorted(linked):
        if _site_place(name).startswith("files/") and (root / name).is_file():
            files.append(File.generated(config, _site_place(name), abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files outside docs/ lead to their copies on the site; docs/figures.md shows small pictures."""
    place = page.file.src_uri
    if place == "figures.md":
        markdown = gallery.overview(markdown)

    def replaced(match: re.Match[str]) -> str:
        target = _site_place(_linked(match[1], place))
        moved = place in _ORIGINS or target.startswith("files/") or target in _ORIGINS
        return (
            posixpath.relpath(target, posixpath.dirname(place) or ".")
            if moved and files.get_file_from_path(target)
            else match[1]
        )

    return _LINK.sub(replaced, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas are set; search does not look into the code of functions."""
    html = html.replace(
        '<details class="mkdocstrings-source"', '<details class="mkdocstrings-source" data-search-exclude'
    )
    return mathematics.typeset(html, page.file.src_uri)


def _linked(target: str, page: str) -> str:
    """The path in the repository to which a link on a page leads."""
    origin = _ORIGINS.get(page, f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))


def _site_place(path: str) -> str:
    """Where on the site a file of the repository is."""
    pages = {origin: page for page, origin in _ORIGINS.items()}
    return pages.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}")
