"""Tutorials: notebooks as plain Python files (jupytext's percent format), executed and shown with their outputs."""

import concurrent.futures
import hashlib
import itertools
import json
import multiprocessing
import os
from pathlib import Path

import jupytext
import nbformat
from mkdocs.exceptions import PluginError
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import MarkdownExporter

from validation.cli.compilation import hurried, own_folder

ORDER = ("first_steps", "does_pretraining_hurt", "your_own_link", "a_committee")
_PACKAGES = ("odes", "theory", "validation")
_SECONDS = 300
_AT_ONCE = 2
_COMPILED = {"EQX_ON_ERROR": "nan", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05"}
"""Compiled programs are kept, as those of the command line are, and compiled in a hurry."""

_SHOWN = ("image/png", "text/markdown", "text/plain")


def source(docs: Path, name: str) -> Path:
    """The tutorial's Python file."""
    return docs / "tutorials" / f"{name}.py"


def title(docs: Path, name: str) -> str:
    """The tutorial's heading."""
    lines = source(docs, name).read_text().splitlines()
    return next(line.removeprefix("# # ") for line in lines if line.startswith("# # "))


def executed(docs: Path, name: str, kept: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs: read from the folder `kept` if neither it nor the packages have changed, else executed.

    **Raises** PluginError with the error of a cell.
    """
    python = source(docs, name)
    state = hashlib.sha256(python.read_bytes())
    for file in sorted(file for package in _PACKAGES for file in Path(package).rglob("*.py")):
        state.update(file.read_bytes())
    file = kept / f"{name}-{state.hexdigest()[:16]}.ipynb"
    if file.exists():
        return nbformat.read(file, as_version=4)
    notebook = jupytext.read(python)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    environment = {"JAX_COMPILATION_CACHE_DIR": str(own_folder().with_name("tutorials"))} | os.environ | _COMPILED
    environment["XLA_FLAGS"] = hurried(environment.get("XLA_FLAGS", ""))
    try:
        client = NotebookClient(
            notebook, kernel_name="python3", timeout=_SECONDS, startup_timeout=_SECONDS, coalesce_streams=True
        )
        client.execute(cwd=str(docs.parent), env=environment)
    except CellExecutionError as error:
        raise PluginError(f"{python}: {error}") from None
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    kept.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, file)
    return notebook


def files(docs: Path, kept: Path) -> dict[str, str | bytes]:
    """Pages, pictures and notebooks with outputs of all tutorials, by place on the site."""
    written: dict[str, str | bytes] = {"tutorials/index.md": _overview(docs)}
    apart = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(_AT_ONCE, mp_context=apart) as processes:
        notebooks = list(processes.map(executed, itertools.repeat(docs), ORDER, itertools.repeat(kept)))
    for name, notebook in zip(ORDER, notebooks, strict=True):
        exporter = MarkdownExporter()
        exporter.display_data_priority = list(_SHOWN)  # type: ignore[assignment]
        text, resources = exporter.from_notebook_node(notebook, {"output_files_dir": name, "unique_key": name})
        heading, _, rest = text.strip().partition("\n")
        written[f"tutorials/{name}.md"] = f"{heading}\n\n{_downloads(name)}\n{rest}\n"
        written[f"tutorials/{name}.ipynb"] = json.dumps(notebook, indent=1)
        for place, picture in resources["outputs"].items():
            written[f"tutorials/{place}"] = picture
    return written


def _downloads(name: str) -> str:
    return f"[Python file]({name}.py){{ download }} · [notebook with outputs]({name}.ipynb){{ download }}\n{{ .downloads }}\n"


def _overview(docs: Path) -> str:
    rows = "\n".join(f"- [{title(docs, name)}]({name}.md)" for name in ORDER)
    return f"""# Tutorials

{rows}

Each is a plain Python file that runs in less than a minute: download it and run it as it is, `python first_steps.py`, or open it in Jupyter
([jupytext](https://jupytext.readthedocs.io)), VS Code or Spyder, which know its `# %%` marks as the cells of a notebook. The outputs here
were made when this site was built. The files need nothing but searchphase to run, which is why they are jupytext's and not marimo's: a
marimo notebook is made of decorated functions and needs marimo.
"""
