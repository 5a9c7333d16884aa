"""How far a long computation is: a bar on a terminal, elsewhere a line a minute on standard error."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_SOON, _EVERY = 5.0, 60.0
"""After so many seconds it is said how long it will take, and then how far it is each time that so many have passed."""


class _Lines(tqdm):
    """Whole lines instead of a bar that is drawn over itself. Times go by what comes after the first piece, which compiles."""

    def __init__(self, *args: Any, **options: Any):
        self._told, self._first = 0.0, None
        super().__init__(*args, mininterval=_SOON, maxinterval=_SOON, delay=_SOON, leave=False, **options)

    def update(self, n: float | int | None = 1) -> bool | None:
        if self._first is None and n and n > 0:
            self._first = self.format_dict["elapsed"], self.n + n
        return super().update(n)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        state = self.format_dict
        if msg == "" or self._first is None:
            return
        elapsed, total = state["elapsed"], state["total"]
        since, done = elapsed - self._first[0], state["n"] - self._first[1]
        if since < _SOON or done <= 0 or not total or state["n"] >= total:
            return
        left = since * (total - state["n"]) / done
        if not self._told and left > _EVERY:
            told = f"will take about {tqdm.format_interval(elapsed + left)}"
        elif elapsed - self._told >= _EVERY:
            told = (
                f"{state['n'] / total:.0%} after {tqdm.format_interval(elapsed)}, {done / since:.4g} {state['unit']}/s, "
                f"{tqdm.format_interval(left)} left"
            )
        else:
            return
        self._told = elapsed
        name = f"{self.desc}: " if self.desc else ""
        print(f"{name}{told}", file=sys.stderr, flush=True)


def progress(
    work: Iterable | None = None,
    *,
    total: int | None = None,
    initial: int = 0,
    unit: str,
    what: str = "",
    shown: bool = True,
) -> Any:
    """A `tqdm` of `work`, or of `total` units to be counted by hand: a bar on a terminal, lines elsewhere, nothing unless `shown`.

    `initial` units have been done before.

    The first line is an estimate of the whole time, where that is more than a minute.
    """
    kind = tqdm if sys.stderr.isatty() else _Lines
    return kind(work, total=total, initial=initial, unit=unit, desc=what or None, disable=not shown)
