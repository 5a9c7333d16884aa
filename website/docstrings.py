"""Docstrings as Markdown: examples that start with >>> become code, and references find what a package exports."""

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"(?:^|(?<=\n\n))( *)>>> .*?(?=\n\s*\n|\Z)", re.DOTALL)


class Examples(griffe.Extension):
    """Puts a fence around every example of a docstring, which Markdown would take for quotations."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


class Exports(griffe.Extension):
    """Makes what packages import in their __init__ known by those names too, methods included: `odes.Family.at`."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        loader.resolve_aliases(implicit=True, external=False)
        for module in (pkg, *pkg.modules.values()):
            for alias in module.members.values():
                if isinstance(alias, griffe.Alias) and alias.resolved and alias.is_class:
                    for name, member in alias.final_target.members.items():
                        if not member.is_alias:
                            member.aliases[f"{alias.path}.{name}"] = alias


def fenced(text: str) -> str:
    r"""The text with a fence around every example, which ends with the first empty line.

    >>> print(fenced("Two:\n\n>>> 1 + 1\n2\n\nso."))
    Two:
    <BLANKLINE>
    ```pycon
    >>> 1 + 1
    2
    ```
    <BLANKLINE>
    so.
    """
    return _EXAMPLE.sub(lambda match: f"{match[1]}```pycon\n{match[0]}\n{match[1]}```", text)
