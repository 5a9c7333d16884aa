"""Enumerations whose members are whole numbers, so that arrays can hold them, with a name for programs and a meaning for people."""

import enum
from typing import Any

import numpy as np

from odes.arguments import concrete


class Meaning(enum.IntEnum):
    """Members are written NAME = "meaning" and numbered from 0.

    >>> class Answer(Meaning):
    ...     no = "certainly not"
    ...     yes = "certainly"
    >>> Answer(1).name, Answer.yes.meaning, int(Answer.yes)
    ('yes', 'certainly', 1)
    """

    meaning: str

    def __new__(cls, meaning: str):
        member = int.__new__(cls, len(cls.__members__))
        member._value_, member.meaning = len(cls.__members__), meaning
        return member

    @classmethod
    def meanings(cls) -> dict[str, str]:
        """The meaning of every name."""
        return {member.name: member.meaning for member in cls}

    @classmethod
    def named(cls, number: Any) -> Any:
        """The name of a member's number; arrays and traced numbers as they are."""
        return cls(int(number)).name if concrete(number) and np.ndim(number) == 0 else number
