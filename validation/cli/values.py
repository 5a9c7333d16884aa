"""What the flags hold: lists of numbers and ranges, optional values; and checks of them."""

import dataclasses
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from odes.arguments import ArgumentError
from validation.cli.compilation import DEVICES


def numbers(words: list[str]) -> tuple[float, ...]:
    """The numbers that a list of words stands for, each a number or an even range LOW:HIGH:N.

    >>> numbers(["0.5:1.5:3", "2"])
    (0.5, 1.0, 1.5, 2.0)

    **Raises** ValueError, which tyro turns into a message that names the flag.
    """
    values: list[float] = []
    for word in words:
        try:
            if ":" not in word:
                values.append(float(word))
                continue
            low, high, count = word.split(":")
            if int(count) < 1 or not math.isfinite(float(low) + float(high)):
                raise ValueError
            values.extend(np.linspace(float(low), float(high), int(count)).tolist())
        except ValueError:
            raise ValueError(f"takes numbers or ranges LOW:HIGH:N such as 0.1:0.9:9, not {word!r}") from None
    if not values:
        raise ValueError("takes at least one number")
    return tuple(values)


Numbers = Annotated[
    tuple[float, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="X [X ...]|LOW:HIGH:N",
        instance_from_str=numbers,
        is_instance=lambda values: isinstance(values, tuple),
        str_from_instance=lambda values: [f"{value:g}" for value in values],
    ),
    tyro.conf.arg(help_behavior_hint=""),
]
OptionalFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
OptionalInt = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
OptionalText = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
OptionalPath = Annotated[str | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]


Device = Annotated[
    Literal["cpu", "gpu"] | None,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="cpu|gpu",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: value is None or value in DEVICES,
        str_from_instance=lambda value: [str(value)],
        choices=tuple(DEVICES),
    ),
    tyro.conf.arg(help_behavior_hint=""),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    device: Device = None
    """Where it is computed; what JAX finds, or $JAX_PLATFORMS says, unless given."""


def check(name: str, value: Any, allowed: str, good: bool | Callable[[float], Any]) -> None:
    """Raises ArgumentError for the first number that is not `good`; `value` is one number or several."""
    for number in value if isinstance(value, tuple) else (value,):
        if not (good(number) if callable(good) else good):
            shown = str(number) if isinstance(number, int) else f"{number:.10g}"
            raise ArgumentError(name, f"must be {allowed}, but is {shown}")


def positive(value: float) -> bool:
    """Positive and finite."""
    return math.isfinite(value) and value > 0


def check_seed(seed: int) -> None:
    """Raises ArgumentError for a seed that JAX does not take."""
    check("seed", seed, "a 64-bit integer", -(2**63) <= seed < 2**63)


def check_writable(name: str, path: str | None, suffixes: tuple[str, ...]) -> None:
    """Raises ArgumentError, before any work is done, if a result could not be written to `path` afterwards."""
    if path is None:
        return
    if Path(path).suffix not in suffixes:
        raise ArgumentError(name, f"must end in {' or '.join(suffixes)}, but is {path!r}")
    folder = Path(path).parent
    if not folder.is_dir():
        raise ArgumentError(name, f"names a file in {str(folder)!r}, which is not a folder")
    try:
        if Path(path).is_dir():
            raise IsADirectoryError
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        raise ArgumentError(name, f"cannot be written: {path!r}") from None


def writable_folder(name: str, path: str) -> Path:
    """The folder at `path`, made if it is missing; ArgumentError, before any work is done, if it cannot be written."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ArgumentError(name, f"{path!r} cannot be written: {error.strerror}") from None
    return folder
