"""Results as text: JSON for programs, tables for people."""

import json
import math
from collections.abc import Mapping, Sequence
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
