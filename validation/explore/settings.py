"""What the explorer's controls hold: one problem, as an address, a command line or Python spell it."""

import dataclasses
import math
import shlex
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from odes import SGD, Family, Problem
from odes.arguments import ArgumentError, require, require_known
from validation.checks.settings import OneUnit

_LARGEST_RANK = 64
"""Adapters of more rows are refused: a page would wait for them."""

_RANKS = f"a whole number from 1 to {_LARGEST_RANK}"

_FLAGS = {"dimension": "dim"}
"""Settings whose flag on the command line has another name."""

_TEXTS = ("activation", "teacher")
"""Settings that are words."""

_SWITCHES = {"free_rows": {"true": True, "false": False}}
"""Settings that are true or false, and the words for it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(OneUnit):
    """One unit and its SGD: `batch_size` B (infinite for gradient flow), `learning_rate` η, `label_noise` Δ, the variance, and
    `dimension` d; the defaults are those of every command.

    >>> Settings.of({"activation": "He3", "strength": "0.3"}).query
    'activation=He3&strength=0.3'

    **Raises** ArgumentError, from [`Settings.of`][], [`Settings.place`][], [`Settings.family`][] and [`Settings.problem`][], for what is
    not allowed.
    """

    batch_size: float = 500.0
    learning_rate: float = 0.2
    label_noise: float = 0.0
    dimension: float = 1000.0

    @classmethod
    def of(cls, words: Mapping[str, str]) -> "Settings":
        """The settings that words spell, by name; those that are missing or empty have their default."""
        names = [field.name for field in dataclasses.fields(cls)]
        values: dict[str, Any] = {}
        for name, word in words.items():
            require_known("address", name, names)
            if word.strip():
                values[name] = _value(name, word.strip())
        return cls(**values)

    @property
    def given(self) -> dict[str, str]:
        """The settings that differ from the default, in words."""
        changed = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default
        }
        return {name: _word(value) for name, value in changed.items()}

    @property
    def query(self) -> str:
        """The part of an address after the question mark; empty for the defaults."""
        return urlencode(self.given)

    @property
    def command(self) -> str:
        """The command line that prints the numbers of this problem, the law of the escape time among them."""
        words = {"dimension": f"{self.dimension:.12g}"} | self.given
        flags = [
            word
            for name, value in words.items()
            for word in (f"--{_FLAGS.get(name, name)}".replace("_", "-"), *([] if name in _SWITCHES else [value]))
        ]
        return shlex.join(["searchphase", "escape", *flags])

    @property
    def python(self) -> str:
        """Lines of Python that do the same."""

        def call(function: str, values: dict[str, Any]) -> str:
            return f"{function}({', '.join(f'{name}={_literal(value)}' for name, value in values.items())})"

        kept = {name: getattr(self, name) for name in self.given}
        adapter = {name: kept[name] for name in ("rank", "scale", "lr_ratio") if name in kept}
        adapter |= {"normalized": False} if self.free_rows else {}
        sgd = {name: kept[name] for name in ("learning_rate", "batch_size", "dimension", "label_noise") if name in kept}
        parts = {name: kept[name] for name in ("teacher",) if name in kept}
        given, maker = {"strength": self.strength, "alignment": self.alignment}, "single_index"
        if self.mixture is not None:
            given, maker = {"mu": self.mixture}, "mixture"
        words = [repr(self.activation), *(f"{name}={_literal(value)}" for name, value in (given | parts).items())]
        words += [
            f"{name}={call(kind, values)}"
            for name, kind, values in (("adapter", "Adapter", adapter), ("sgd", "SGD", sgd))
            if values
        ]
        used = [kind for kind, values in (("SGD", sgd), ("Adapter", adapter)) if values]
        return "\n".join(
            [
                "import jax",
                "",
                'jax.config.update("jax_enable_x64", True)',
                f"from odes import {', '.join([*used, 'Problem'])}",
                "from theory import escape_law, search_phase",
                "",
                f"problem = Problem.{maker}({', '.join(words)})",
                "print(search_phase(problem))",
                "print(escape_law(problem))",
            ]
        )

    @property
    def place(self) -> tuple[float, float]:
        """Strength and alignment, those of the mixture if it is given."""
        if self.mixture is not None:
            if {"strength", "alignment"} & set(self.given):
                raise ArgumentError("mixture", "sets strength and alignment: give it alone, or give those two")
            require("mixture", self.mixture, "finite", lambda mu: abs(mu) < 1e100)
        return super().place

    def family(self) -> Family:
        """All of the problem but strength and alignment."""
        require("rank", self.rank, _RANKS, lambda rank: (rank >= 1) & (rank <= _LARGEST_RANK))
        names = ("learning_rate", "batch_size", "dimension", "label_noise")
        return self.trained_by(SGD(**{name: getattr(self, name) for name in names}))

    def problem(self) -> Problem:
        """The problem."""
        strength, alignment = self.place
        require("strength", strength, "positive and finite", lambda rho: (rho > 0) & (rho < 1e100))
        return self.family().at(strength, alignment)


def _value(name: str, word: str) -> str | bool | float | int:
    if name in _TEXTS:
        return word
    if name not in _SWITCHES:
        return _number(name, word)
    if word not in _SWITCHES[name]:
        raise ArgumentError(name, f"takes true or false, not {word!r:.40}")
    return _SWITCHES[name][word]


def _word(value: str | bool | float | int) -> str:
    if isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else f"{value:.12g}"


def _number(name: str, word: str) -> float | int:
    try:
        number = float(word)
    except ValueError:
        raise ArgumentError(name, f"takes a number, not {word!r:.40}") from None
    if name != "rank":
        return number
    if not number.is_integer():
        raise ArgumentError(name, f"must be {_RANKS}, but is {word}")
    return int(number)


def _literal(value: Any) -> str:
    """A value as Python writes it."""
    return 'float("inf")' if value == math.inf else repr(value)
