"""Many checks as a verdict, as tables and as a picture."""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from validation.checks.attack import Tally
from validation.checks.base import LAW_ACCURACY, Check, Note, Result, z_limit
from validation.jobs.engine import Failure


@dataclasses.dataclass(frozen=True)
class Report:
    """The results of a validation: `checks`, and `notes` on what was not checked.

    `failures` are the checks that ended in an error. Where settings were drawn at random, their `tally`, and for each setting that
    disagrees the command of the simplest one found that still does.
    """

    checks: list[Check]
    notes: list[Note]
    tally: Tally | None = None
    simplest: Sequence[str] = ()
    failures: Sequence[Failure] = ()

    @classmethod
    def of(cls, results: Sequence[Result], failures: Sequence[Failure] = ()) -> "Report":
        """The report on some results."""
        checks = [result for result in results if isinstance(result, Check)]
        return cls(checks, [result for result in results if isinstance(result, Note)], failures=failures)

    @property
    def limit(self) -> float:
        """The largest |z| of an agreement."""
        return z_limit(len(self.checks))

    @property
    def wrong(self) -> list[Check]:
        """The checks that disagree."""
        return [check for check in self.checks if not check.agrees(self.limit)]

    @property
    def agrees(self) -> bool:
        """Whether there are checks and all agree."""
        return bool(self.checks) and not self.wrong

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Every check under stable keys."""
        return [dataclasses.asdict(check) | {"agrees": check.agrees(self.limit)} for check in self.checks]

    @property
    def skipped(self) -> list[dict[str, str]]:
        """Every note under stable keys."""
        return [dataclasses.asdict(note) for note in self.notes]

    def to_dataset(self) -> Any:
        """The checks as an `xarray.Dataset`."""
        import xarray

        names = [*(field.name for field in dataclasses.fields(Check)), "agrees"]
        columns = {name: ("check", np.array([row[name] for row in self.rows])) for name in names}
        return xarray.Dataset(columns, attrs={"not_checked": json.dumps(self.skipped)})

    def draw(self) -> Any:
        """Mean escape times, simulated over predicted; against the dimension, where that was varied; z of every check."""
        import matplotlib.pyplot as plt

        means = [check for check in self.checks if check.name.startswith("escape time, mean")]
        varied = [check for check in means if ", d = " in check.name]
        widths = [1.0] * (bool(means) + bool(varied)) + [1.1]
        size = 2.6 * len(widths) + 1.2, max(2.8, 0.6 + 0.14 * len(_groups(self.checks)))
        figure, axes = plt.subplots(1, len(widths), figsize=size, width_ratios=widths)
        panels = list(np.atleast_1d(axes))
        if means:
            _draw_ratios(panels.pop(0), means)
        if varied:
            _draw_dimensions(panels.pop(0), varied)
        _draw_deviations(panels.pop(0), self.checks, self.limit)
        return figure


def _column(checks: list[Check], name: str) -> np.ndarray:
    return np.array([getattr(check, name) for check in checks])


def _draw_ratios(ax: Any, means: list[Check]) -> None:
    theory, simulation, error = (_column(means, name) for name in ("theory", "simulation", "standard_error"))
    ax.errorbar(theory, simulation / theory, error / theory, fmt="o", markersize=3, elinewidth=0.8)
    ax.axhspan(1 - LAW_ACCURACY, 1 + LAW_ACCURACY, color="0.9", zorder=0)
    ax.axhline(1, color="k", linewidth=0.8)
    ax.set(xscale="log", xlabel="mean escape time $t$, law", ylabel=r"simulated / law (band: 3 %)")


def _draw_dimensions(ax: Any, varied: list[Check]) -> None:
    for i, setting in enumerate(dict.fromkeys(check.setting for check in varied)):
        chosen = [check for check in varied if check.setting == setting]
        d, theory, simulation, error = (
            _column(chosen, name) for name in ("dimension", "theory", "simulation", "standard_error")
        )
        ax.plot(d, theory, color=f"C{i}", label=setting)
        ax.errorbar(d, simulation, error, fmt="o", color=f"C{i}", markersize=3, elinewidth=0.8)
    ax.set(xscale="log", xlabel="dimension $d$", ylabel="mean escape time $t$", ylim=(0, None))
    ax.legend(loc="upper left")


def _draw_deviations(ax: Any, checks: list[Check], limit: float) -> None:
    groups = _groups(checks)
    for check in checks:
        place = groups.index(_group(check.name)) + 0.25 * np.sin(7 * check.simulation)
        ax.plot(check.z, place, "o", color="C0" if check.agrees(limit) else "C3", markersize=3, alpha=0.7)
    for sign in (-1, 1):
        ax.axvline(sign * limit, color="0.5", linestyle=":")
    ax.set(yticks=range(len(groups)), yticklabels=groups, xlabel="z (standard errors)")
    ax.invert_yaxis()


def _groups(checks: list[Check]) -> list[str]:
    return list(dict.fromkeys(_group(check.name) for check in checks))


_PARTICULARS = re.compile(
    r"( at |, (rank|d =|eta|as given|noise scale|scale|chain|direct)| about the mean).*| ?(?<!\^)\d+"
)
"""Where and in which way a number was measured, and of which unit or saddle it is."""


def _group(name: str) -> str:
    """What kind of number a check is about: its name without the particulars.

    >>> [_group(name) for name in ("escape time, mean, d = 1e+02", "w1.t2 at the border, chain", "|w2|^2 at t = 3 after it, direct")]
    ['escape time, mean', 'w.t', '|w|^2']
    """
    return _PARTICULARS.sub("", name).replace("escape time from a given start", "escape from a start")
