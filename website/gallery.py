"""The gallery: a page for every figure, from the registry of figures, docs/figures and the words of docs/figures.md."""

import dataclasses
import re
from pathlib import Path

from mkdocs.exceptions import PluginError

from validation.figures.effort import FULL, QUICK, Effort
from validation.figures.figure import Figure
from validation.figures.registry import all_figures

_SECTION = re.compile(r"^## (\S+)\n\n!\[[^]]*\]\((figures/\S+\.png)\)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:|#)")


def sections(figures_md: str) -> dict[str, tuple[str, str]]:
    """The picture and the words of every figure in docs/figures.md, by name.

    **Raises** PluginError if a figure of the registry has no section or a section has no figure.
    """
    found = {name: (picture, words.strip()) for name, picture, words in _SECTION.findall(figures_md)}
    if different := set(found) ^ set(all_figures()):
        raise PluginError(f"docs/figures.md and the registry of figures differ in {', '.join(sorted(different))}")
    return found


def overview(figures_md: str) -> str:
    """docs/figures.md as the site shows it: its first words, then every picture with a sentence and a link to its page."""
    found = sections(figures_md)
    introduction = figures_md[: _SECTION.search(figures_md).start()]  # type: ignore[union-attr]
    cards = [
        f'<a class="card" id="{name}" href="../gallery/{name}/"><img src="../{found[name][0]}" alt="{name}" loading="lazy">'
        f"<strong>{name}</strong><span>{_in_html(figure.sentence)}</span></a>"
        for name, figure in all_figures().items()
    ]
    return f'{introduction}<div class="gallery">\n' + "\n".join(cards) + "\n</div>\n"


def pages(docs: Path) -> dict[str, str]:
    """The page of every figure, by its place on the site."""
    found = sections((docs / "figures.md").read_text())
    return {f"gallery/{name}.md": _page(figure, *found[name]) for name, figure in all_figures().items()}


def _page(figure: Figure, picture: str, words: str) -> str:
    name = figure.name
    return f"""# {name}

{figure.sentence}

[![{name}](../{picture})](../{picture})

{_LINK.sub("](../", words)}

## Draw it

    searchphase figures {name}           # a PDF, a PNG and the data, into the folder figures
    searchphase figures {name} --quick   # less of everything, faster
    searchphase figures {name} --redraw  # draw the stored data again

## Its data

The data are not kept in the repository: with searchphase [installed](../index.md#install), each of the first two commands computes them
and writes `figures/{name}.nc`, some tens of kilobytes, below the folder in which it is run (`--folder` names another one). The same
settings, versions and device give the same numbers again. Which of the two commands the picture above is from is said
[above all figures](../figures.md). Any program that reads netCDF opens the file; in Python:

```python
import xarray

data = xarray.open_dataset("figures/{name}.nc")
print(data)  # every array that is drawn, with its dimensions
print(data.attrs)  # settings, seed, versions, device
```

## Settings

What `searchphase figures` computes, with and without `--quick`. `--seed` is 0 unless given.

| setting | `figures {name}` | `--quick` |
|---|---|---|
{_settings(FULL, QUICK)}

{_MEANINGS}

The code is in [{_module(figure)}](../reference/index.md) of the package `validation.figures`. [All figures](../figures.md#{name})
"""


_MEANINGS = re.sub(r"\n +", "\n", (Effort.__doc__ or "").partition("\n\n")[2]).strip()


def _settings(*efforts: Effort) -> str:
    names = [field.name for field in dataclasses.fields(Effort)]
    return "\n".join(f"| `{name}` | " + " | ".join(f"{getattr(e, name):g}" for e in efforts) + " |" for name in names)


def _module(figure: Figure) -> str:
    function = getattr(figure.draw, "func", figure.draw)
    return f"`{function.__module__.rpartition('.')[2]}.py`"


def _in_html(words: str) -> str:
    return words.replace("&", "&amp;").replace("<", "&lt;")
