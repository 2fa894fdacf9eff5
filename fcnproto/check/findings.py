"""What a rule found, for people and programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["fault", "suspect", "note"]
"""A fault certainly spoils training or output; a suspect depends on what is meant; a note is good to know."""

_SHOWN = 4


@dataclass(frozen=True)
class Finding:
    """One finding of one rule.

    Attributes:
        level: "fault", "suspect" or "note".
        code: the kind of finding, such as "never-learns".
        where: the layers (or files) that it is about.
        seen: what is there.
        why: what comes of it.
        remedy: what to do.
    """

    level: Level
    code: str
    where: str
    seen: str
    why: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.seen}, so {self.why}; {self.remedy} [{self.code}]"


def listed(names: Sequence[str]) -> str:
    """The layers of these names for `Finding.where`: all of them if they are few, else the first and how many."""
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"layer{'s' if len(names) > 1 else ''} {shown}" + (f" and {more} more" if more > 0 else "")
