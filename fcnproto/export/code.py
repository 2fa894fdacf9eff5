"""Pieces of Python source in the formatter's own style, so that generated files need no formatter."""

from __future__ import annotations

import json
import keyword
from collections.abc import Sequence

WIDTH = 120
"""Columns of a line, as formatters have it."""


def call(start: str, arguments: Sequence[str], end: str, indent: int) -> list[str]:
    """The lines of `start(arguments)end`: on one line, else the arguments on one line of their own, else one each.

    Where `start` ends in "[" they stand in square brackets.
    """
    margin = " " * indent
    start, opening, closing = (start[:-1], "[", "]") if start.endswith("[") else (start, "(", ")")
    line = f"{margin}{start}{opening}{', '.join(arguments)}{closing}{end}"
    if len(line) <= WIDTH or not arguments:
        return [line]
    inner = f"{margin}    {', '.join(arguments)}"
    if len(inner) <= WIDTH:
        return [f"{margin}{start}{opening}", inner, f"{margin}{closing}{end}"]
    each = (f"{margin}    {argument}," for argument in arguments)
    return [f"{margin}{start}{opening}", *each, f"{margin}{closing}{end}"]


def several(targets: str, values: Sequence[str], indent: int) -> list[str]:
    """The lines of `targets = value, value`: one line, else one for each value in brackets."""
    margin = " " * indent
    line = f"{margin}{targets} = {', '.join(values)}"
    if len(line) <= WIDTH or len(values) == 1:
        return [line]
    return [f"{margin}{targets} = (", *(f"{margin}    {value}," for value in values), f"{margin})"]


def with_comment(lines: Sequence[str], comment: str) -> list[str]:
    """The lines with a comment: behind a single short line, else above."""
    if not comment:
        return list(lines)
    if len(lines) == 1 and len(lines[0]) + len(comment) + 4 <= WIDTH:
        return [f"{lines[0]}  # {comment}"]
    margin = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    return [f"{margin}# {comment}", *lines]


def identifier(name: str, taken: set[str], prefix: str = "blob") -> str:
    """A Python name for a blob, not yet in `taken`, to which it is added."""
    cleaned = "".join(sign if sign.isascii() and (sign.isalnum() or sign == "_") else "_" for sign in name)
    if not cleaned or not (cleaned[0].isalpha() or cleaned[0] == "_"):
        cleaned = f"{prefix}_{cleaned}"
    while cleaned in taken or keyword.iskeyword(cleaned):
        cleaned += "_"
    taken.add(cleaned)
    return cleaned


def number(value: float) -> str:
    """A number as short as reads back the same: float32 settings without the digits that double precision adds."""
    import numpy as np

    if isinstance(value, int) or float(value).is_integer():
        return repr(value) if isinstance(value, int) else repr(float(value))
    short = float(str(np.float32(value)))
    return repr(short if np.float32(short) == np.float32(value) and np.float32(value) == value else value)


def extents(values: Sequence[int]) -> str:
    """One number where all are the same, else a tuple."""
    unique = set(values)
    return str(values[0]) if len(unique) == 1 else f"({', '.join(map(str, values))})"


def text(value: str) -> str:
    """A string literal with double quotes."""
    return json.dumps(value, ensure_ascii=False)
