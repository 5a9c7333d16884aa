"""Results as text: JSON for programs, tables for people."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np


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


def lines_of(
    points: Sequence[dict[str, Any]], *, mixture: bool = False
) -> Iterator[tuple[str, list[float], list[dict[str, Any]]]]:
    """The lines of a picture against strength, one for each alignment, rank and dimension: label, strengths, points.

    Mixtures are one line, against mu, for each rank and dimension.
    """
    names = ("rank", "dimension") if mixture else ("alignment", "rank", "dimension")
    shown = [name for name in names if len({str(point[name]) for point in points}) > 1]
    lines: dict[tuple, list[dict[str, Any]]] = {}
    for point in points:
        lines.setdefault(tuple(point[name] for name in shown), []).append(point)
    for place, chosen in lines.items():
        strengths = [point["strength"] * (point["alignment"] if mixture else 1) for point in chosen]
        yield ", ".join(f"{name} {value:g}" for name, value in zip(shown, place, strict=True)), strengths, chosen
