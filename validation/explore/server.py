"""The explorer's server: the page and its scripts, and the numbers, all from this machine."""

import asyncio
import atexit
import concurrent.futures
import contextlib
import importlib.resources
import json
import math
import os
import queue
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bokeh
import jax
import numpy as np
import tornado.httpserver
import tornado.web
from bokeh.embed import json_item

from odes.arguments import ArgumentError
from validation.explore import numbers
from validation.explore.figures import COLOURS, figures
from validation.explore.settings import Settings

HOST = "127.0.0.1"
"""The only address that is listened on: the page is for this machine."""

LINKS = ("linear", "relu", "erf", "sigmoid", "tanh", "He2", "He3", "He4", "He2+0.5*He4", "erf^2", "erf(x/sqrt(2))")
"""Link functions that are offered; others may be written."""

_HOSTS = r"(127\.0\.0\.1|localhost)"
"""Pages of other hosts, whose names may lead here too, get no answer."""

PARTS: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "search": numbers.search,
    "flow": lambda settings: numbers.flow(settings, patient=True),
    "law": numbers.law,
    "region": numbers.region,
    "diagram": numbers.diagram,
    "chain": numbers.chain,
}
"""What the page can ask for, by name."""


class Worker:
    """A thread that does one thing after the other, and says whether it is `busy`."""

    def __init__(self) -> None:
        self.busy = False
        self._tasks: queue.SimpleQueue[tuple[concurrent.futures.Future, Callable[[], Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            future, task = self._tasks.get()
            self.busy = True
            try:
                future.set_result(task())
            except BaseException as error:
                future.set_exception(error)
            self.busy = False

    async def done(self, task: Callable[[], Any]) -> Any:
        """What the task returns; raises what it raises."""
        future: concurrent.futures.Future = concurrent.futures.Future()
        self._tasks.put((future, task))
        return await asyncio.wrap_future(future)


def plain(values: Any) -> Any:
    """Arrays and numbers as JSON can hold them; what is not finite is None.

    >>> plain({"tau": np.array([1.5, np.inf]), "words": ""})
    {'tau': [1.5, None], 'words': ''}
    """
    if isinstance(values, dict):
        return {name: plain(value) for name, value in values.items()}
    if isinstance(values, np.ndarray | np.generic):
        values = values.tolist()
    if isinstance(values, list | tuple):
        return [plain(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def answered(part: str, words: dict[str, str]) -> dict[str, Any]:
    """A part of what the page shows, for settings in words; or the `error` in one line, with the `name` of the setting."""
    try:
        settings = Settings.of(words)
        found = plain(PARTS[part](settings))
        return found | {"query": settings.query, "command": settings.command, "python": settings.python}
    except ArgumentError as error:
        return {"error": str(error), "name": error.name}
    except (MemoryError, OverflowError, jax.errors.JaxRuntimeError) as error:
        return {
            "error": f"too large for this machine: {str(error).splitlines()[0] if str(error) else 'no memory'}",
            "name": None,
        }


class _Numbers(tornado.web.RequestHandler):
    def initialize(self, quick: Worker, slow: Worker) -> None:
        self.quick, self.slow = quick, slow

    async def get(self, part: str) -> None:
        words = {name: self.get_query_argument(name) for name in self.request.query_arguments}
        worker = self.quick if part == "search" else self.slow
        with contextlib.suppress(asyncio.CancelledError):  # the server ends, and nobody waits for the answer
            self.write(json.dumps(await worker.done(lambda: answered(part, words))))


class _Start(tornado.web.RequestHandler):
    def get(self) -> None:
        items = {name: json_item(plot) for name, plot in figures().items()}
        regions = {region.name: {"meaning": region.meaning, "colour": colour} for region, colour in COLOURS.items()}
        self.write(json.dumps({"figures": items, "links": LINKS, "regions": regions, "seeds": numbers.SEEDS}))


def application(quick: Worker, slow: Worker) -> tornado.web.Application:
    """The page, its scripts and its numbers: a slider's are computed by the `quick` worker, beside those that take long."""
    own = str(importlib.resources.files("validation.explore") / "page")
    scripts = str(Path(bokeh.__file__).parent / "server" / "static" / "js")
    app = tornado.web.Application()
    app.add_handlers(
        _HOSTS,
        [
            (f"/numbers/({'|'.join(PARTS)})", _Numbers, {"quick": quick, "slow": slow}),
            ("/start", _Start),
            (r"/bokeh/(bokeh(?:-api)?\.min\.js)", tornado.web.StaticFileHandler, {"path": scripts}),
            (r"/(.*)", tornado.web.StaticFileHandler, {"path": own, "default_filename": "index.html"}),
        ],
    )
    return app


async def serve(port: int, app: tornado.web.Application, listening: Callable[[str], Any]) -> None:
    """Serves the page until it is cancelled; `listening` is called with its address when it can be opened. Port 0 is any that is free.

    **Raises** ArgumentError for a port that cannot be listened on.
    """
    try:
        listener = socket.create_server((HOST, port), backlog=128)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "no such port"
        raise ArgumentError("port", f"{port} cannot be listened on: {reason} (0 takes one that is free)") from None
    server = tornado.httpserver.HTTPServer(app)
    listener.setblocking(False)
    server.add_socket(listener)
    listening(f"http://{HOST}:{listener.getsockname()[1]}/")
    try:
        await asyncio.Event().wait()
    finally:
        server.stop()


def explore(port: int, *, browser: bool) -> None:
    """Serves the page until Ctrl-C, prints its address, and opens it in a `browser` if asked for."""

    def listening(address: str) -> None:
        print(f"searchphase explore: {address} (Ctrl-C ends it)", flush=True)
        if browser:
            webbrowser.open(address)

    workers = Worker(), Worker()
    try:
        asyncio.run(serve(port, application(*workers), listening))
    finally:
        if any(worker.busy for worker in workers):
            atexit.register(_leave)


def _leave() -> None:
    """Ends the process as Ctrl-C does. A thread inside a compilation would make Python abort, and does not hear that it is to stop."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(130)
