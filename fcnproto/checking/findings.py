"""What a rule found, for people and programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["fault", "suspect", "note"]
"""A fault certainly spoils training or output; a suspect depends on what is meant; a note is good to know."""

LEVELS: tuple[Level, ...] = ("fault", "suspect", "note")
"""The gravest first."""

_SHOWN = 4


@dataclass(frozen=True)
class Finding:
    """One finding of one rule.

    Attributes:
        level: "fault", "suspect" or "note".
        code: the kind of finding, such as "never-learns".
        where: the place, for people: file and line, layers, blobs, images.
        seen: what is there, in numbers.
        why: what comes of it.
        remedy: what to do.
        layers: the layers that it is about, by name.
    """

    level: Level
    code: str
    where: str
    seen: str
    why: str
    remedy: str
    layers: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.where}: {self.seen}, so {self.why}; {self.remedy} [{self.code}]"


def listed(names: Sequence[str]) -> str:
    """The layers of these names for `Finding.where`: all of them if they are few, else the first and how many."""
    return f"layer{'s' if len(names) > 1 else ''} {some(names)}"


def some(names: Sequence[str]) -> str:
    """These names, quoted: all of them if they are few, else the first and how many."""
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return shown + (f" and {more} more" if more > 0 else "")
