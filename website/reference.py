"""The reference of the packages, from their docstrings: a page for every module, and a list of what a package exports."""

import functools
import re
from collections.abc import Iterator

import griffe
from mkdocs.exceptions import PluginError

PACKAGES = ("odes", "theory", "validation.simulation", "validation.jobs")
"""The packages whose modules have pages."""


@functools.cache
def _collection() -> griffe.ModulesCollection:
    """The packages, read without being imported."""
    loader = griffe.GriffeLoader(search_paths=["."])
    for name in dict.fromkeys(name.partition(".")[0] for name in PACKAGES):
        loader.load(name)
    loader.resolve_aliases()
    return loader.modules_collection


def _loaded(name: str) -> griffe.Module:
    return _collection()[name]


def _modules(name: str) -> Iterator[griffe.Module]:
    for module in sorted(_loaded(name).modules.values(), key=lambda module: module.name):
        if not module.name.startswith("_"):
            yield module


def pages() -> dict[str, str]:
    """The page of every module and package and their list, by place on the site.

    **Raises** PluginError that names every public module, class, function and method without a docstring.
    """
    if silent := [path for name in PACKAGES for module in _modules(name) for path in _without_words(module)]:
        raise PluginError(f"no docstring: {', '.join(silent)}")
    written = {"reference/index.md": _overview()}
    for name in PACKAGES:
        written[f"{_folder(name)}/index.md"] = _package(name)
        for module in _modules(name):
            written[f"{_folder(name)}/{module.name}.md"] = (
                f"# {module.path} {{ #{module.path} }}\n\n::: {module.path}\n"
            )
    return written


def navigation() -> list[dict[str, object]]:
    """The entries of the reference in the site's navigation."""
    entries: list[dict[str, object]] = [{"Overview": "reference/index.md"}]
    for name in PACKAGES:
        inside: list[object] = [f"{_folder(name)}/index.md"]
        inside += [{module.name: f"{_folder(name)}/{module.name}.md"} for module in _modules(name)]
        entries.append({name: inside})
    return entries


def _folder(name: str) -> str:
    return f"reference/{name.rpartition('.')[2]}"


def _without_words(thing: griffe.Object | griffe.Alias) -> Iterator[str]:
    """Public classes, functions, methods and properties of a module that have no docstring, and the module if it has none."""
    if not thing.has_docstring and not _implied(thing):
        yield thing.path
    for member in thing.members.values():
        if member.is_alias or member.name.startswith("_"):
            continue
        if isinstance(member, griffe.Class | griffe.Function) or "property" in member.labels:
            yield from _without_words(member)


def _implied(thing: griffe.Object | griffe.Alias) -> bool:
    """Whether a method or property is what one of the same name says that a base class documents."""
    bases = thing.parent.mro() if isinstance(thing.parent, griffe.Class) else []
    return any(thing.name in base.members and base.members[thing.name].has_docstring for base in bases)


def _sentence(thing: griffe.Object | griffe.Alias) -> str:
    """The first paragraph of a docstring, in one line of a table and without references, which hold in its module alone."""
    words = thing.docstring.value.partition("\n\n")[0] if thing.docstring else ""
    return re.sub(r"\[(`[^`]+`)\]\[\]", r"\1", " ".join(words.split())).replace("|", r"\|")


def _package(name: str) -> str:
    package = _loaded(name)
    rows = [
        f"| [`{member.name}`][{name}.{member.name}] | {_sentence(member)} |"
        for member in package.members.values()
        if member.is_alias and not member.name.startswith("_") and not member.is_module
    ]
    modules = "\n".join(f"| [`{module.name}`]({module.name}.md) | {_sentence(module)} |" for module in _modules(name))
    return f"""# {name} {{ #{name} }}

{_sentence(package)}

What `from {name} import ...` offers:

| name | what it is |
|---|---|
{chr(10).join(rows)}

Its modules, with all that is public in them:

| module | what it is about |
|---|---|
{modules}
"""


def _overview() -> str:
    rows = "\n".join(
        f"| [`{name}`]({name.rpartition('.')[2]}/index.md) | {_sentence(_loaded(name))} |" for name in PACKAGES
    )
    return f"""# Reference of the packages

| package | what it is about |
|---|---|
{rows}

Imports run one way, `odes` ← `theory` ← `validation`; the simulators know the equations alone, since they are the evidence for the theory.
`import searchphase` imports all three. Importing changes no global setting: switch on double precision yourself,
`jax.config.update("jax_enable_x64", True)`. Wrong input raises [`odes.arguments.ArgumentError`][], a `ValueError` that carries the
argument's name. Every package has a `py.typed`, so that type checkers see its types. All examples run as tests.
"""
