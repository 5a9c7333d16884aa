"""Results as text: JSON for programs, tables for people."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from odes.storage import write_whole


def plain(value: Any) -> Any:
    """Arrays and numbers as JSON can hold them: lists and floats, null for what is not finite.

    >>> plain({"a": np.array([1.0, np.nan])})
    {'a': [1.0, None]}
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "shape"):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def print_json(value: Any) -> None:
    """Prints one JSON document on standard output."""
    print(json.dumps(plain(value), allow_nan=False))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as an aligned table with a header.

    >>> print(table([{"mu": 0.5, "tau": 9.65685}, {"mu": 0.8, "tau": None}]))
     mu    tau
    0.5  9.657
    0.8      -
    """
    header = list(rows[0])
    cells = [header] + [[_cell(row[name]) for name in header] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def write_table(rows: Sequence[Mapping[str, Any]], path: str) -> None:
    """Writes rows to a CSV file; what is a list, a mapping or not there is left out, since a cell holds one number or text."""
    columns = [name for name in rows[0] if not any(isinstance(row[name], list | tuple | Mapping) for row in rows)]

    def write(file: Path) -> None:
        with file.open("w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(stream, columns, extrasaction="ignore")
            table.writeheader()
            table.writerows({name: _number(row[name]) for name in columns} for row in rows)

    write_whole(path, write)


def _number(value: Any) -> Any:
    """A number in all its digits, empty where there is none."""
    value = value.item() if hasattr(value, "item") else value
    return "" if isinstance(value, float) and math.isnan(value) else value


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float | np.floating):
        return f"{value:.4g}" if math.isfinite(value) else "-"
    return str(value)


def rows_of(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Columns of equal length as rows.

    >>> rows_of({"mu": [0.5, 0.8], "tau": [9.0, 30.0]})
    [{'mu': 0.5, 'tau': 9.0}, {'mu': 0.8, 'tau': 30.0}]
    """
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def spread_over(length: int, shown: int) -> np.ndarray:
    """At most `shown` places of so many, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, length - 1, shown).astype(int))


def print_sample(columns: Mapping[str, Any]) -> None:
    """Prints eleven rows of the columns as a table."""
    chosen = {name: np.asarray(values, float) for name, values in columns.items()}
    places = spread_over(len(next(iter(chosen.values()))), 11)
    print(table(rows_of({name: values[places].tolist() for name, values in chosen.items()})))


_AXES = ("strength", "factor", "dimension", "rank", "alignment")
"""What a picture may be drawn against: the first of these that takes several values."""


def lines_of(
    points: Sequence[dict[str, Any]], *, mixture: bool = False
) -> tuple[str, list[tuple[str, list[float], list[dict[str, Any]]]]]:
    """What a picture of a sweep is drawn against, and its lines, one for all else that varies: label, numbers, points.

    Mixtures are drawn against mu.
    """
    several = [name for name in _AXES if len({str(point.get(name)) for point in points}) > 1] or ["strength"]
    against, shown = ("mu", set(several) - {"strength", "alignment"}) if mixture else (several[0], set(several[1:]))
    lines: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        label = ", ".join(f"{name} {point[name]:g}" for name in _AXES if name in shown)
        lines.setdefault(label, []).append(point)

    def number(point: dict[str, Any]) -> float:
        return point["strength"] * point["alignment"] if mixture else point[against]

    return against, [(label, [number(point) for point in chosen], chosen) for label, chosen in lines.items()]
