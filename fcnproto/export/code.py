"""Pieces of Python source in the formatter's own style, so that generated files need no formatter."""

from __future__ import annotations

import builtins
import keyword
from collections.abc import Sequence

WIDTH = 120
"""Columns of a line, as formatters have it."""

_LONGEST_NAME = 60
_WORDS = frozenset([*keyword.kwlist, "dict", "getattr", "super"])
BUILTINS = frozenset(dir(builtins))
"""What no name at the top of a generated module may hide."""


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
    """A Python name for a blob, not yet in `taken`, to which it is added: ASCII, of `_LONGEST_NAME` signs at most.

    It is no word of the language, no builtin that generated methods use, and begins with no underscore (within a class
    `__x` is another name).
    """
    cleaned = "".join(sign if sign.isascii() and sign.isalnum() else "_" for sign in name[:_LONGEST_NAME])
    if not cleaned[:1].isalpha():
        cleaned = f"{prefix}_{cleaned}" if cleaned[:1].isdigit() else cleaned.lstrip("_")
    if not cleaned[:1].isalpha():
        cleaned = f"{prefix}_{cleaned}".rstrip("_")
    found, count = cleaned, 1
    while found in taken or found in _WORDS:
        found, count = f"{cleaned}_{count if count > 1 else ''}", count + 1
    taken.add(found)
    return found


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def text(value: str) -> str:
    """A string literal with double quotes, in printable ASCII alone: whatever the string, it ends where it should."""
    return f'"{"".join(map(_sign, value))}"'


def _sign(sign: str) -> str:
    """A sign as it stands in a string literal."""
    code = ord(sign)
    if sign in _ESCAPES:
        return _ESCAPES[sign]
    if 0x20 <= code < 0x7F:
        return sign
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def prose(value: str, most: int = 300) -> str:
    """A text for a docstring or comment, of one line: printable ASCII without what could end or escape anything.

    Quotes become apostrophes, backslashes slashes, other signs question marks; beyond `most` signs it is cut.
    """
    cut = value if len(value) <= most else value[: most - 3] + "..."
    plain = cut.translate({ord('"'): "'", ord("\\"): "/"})
    return "".join(sign if " " <= sign <= "~" else " " if sign.isspace() else "?" for sign in plain)
