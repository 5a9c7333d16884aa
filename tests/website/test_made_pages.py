"""The pages that are made from figures, commands and packages."""

import dataclasses

import pytest

pytest.importorskip("mkdocs", reason="comes with searchphase[docs]")

from mkdocs.exceptions import PluginError

from validation.cli.commands import COMMANDS, command
from website import commands, gallery, mathematics


def test_a_command_page_has_every_flag():
    pages = commands.pages()
    for name in COMMANDS:
        page = pages[f"commands/{name}.md"]
        for field in dataclasses.fields(command(name)):
            flag = field.name.replace("_", "-")
            assert f"{{ #{flag} }}" in page or "{ #arguments }" in page and f"--{flag}" not in page, (name, flag)
        assert "│" not in page and "╭" not in page


def test_a_figure_without_a_section_ends_the_build():
    with pytest.raises(PluginError, match="escape-law"):
        gallery.sections("## rank\n\n![rank](figures/rank.png)\n\nWords.\n")


def test_a_formula_is_set_and_an_error_names_its_page():
    page = r'<span class="arithmatex">\(\tau &lt; \theta\)</span>'
    assert 'class="katex"' in mathematics.typeset(page, "theory.md")
    with pytest.raises(PluginError, match="theory.md.*frac"):
        mathematics.typeset(r'<span class="arithmatex">\(\frac{1\)</span>', "theory.md")
