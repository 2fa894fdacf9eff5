"""Text that came from a file, made harmless for the place it goes to: one function for each target.

Names of nets, layers, blobs and classes may hold anything: quotes, line ends, escape sequences of terminals, marks that
turn the direction of reading, markup. What shows or writes them goes through one of these, so that they arrive as data.
Generated Python source has its own rules, in `export/code.py`.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Set
from typing import Any

ELLIPSIS = "…"
_LONGEST_WORD, _LONGEST_MESSAGE = 300, 4000
_SHORT_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_FORBIDDEN_IN_FILE_NAMES = frozenset('/\\:*?"<>|')
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # Windows opens these, not a file
_BREAKS = re.compile(r"\s*[^\S ]\s*")
_WORD = re.compile(rf"\S{{{_LONGEST_WORD + 1},}}")


def printable(text: object, longest: int | None = None) -> str:
    """Text for people's eyes, on one line: terminals, log lines, reports, pictures.

    Line ends, control characters, marks of direction and lone surrogates are shown as Python's escapes, spaces of any
    width as a space. Of more than `longest` characters the middle is left out. A text made printable stays as it is.
    """
    shown = str(text)
    if longest is not None and len(shown) > 2 * longest:  # no need to look at what isn't shown
        shown = shown[:longest] + shown[-longest:]
    if not shown.isprintable():
        shown = "".join(map(_visible, shown))
    return shown if longest is None else shortened(shown, longest)


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    if unicodedata.category(character) == "Zs":
        return " "
    number = ord(character)
    escape = f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
    return _SHORT_ESCAPES.get(character, escape)


def shortened(text: str, longest: int) -> str:
    """The text, its middle replaced by an ellipsis where it has more than `longest` characters."""
    if len(text) <= longest:
        return text
    end = (longest - 1) // 3
    return text[: longest - 1 - end] + ELLIPSIS + text[len(text) - end :]


def one_line(message: str) -> str:
    """A message, such as an error's, printable and on one line: line ends and tabs become spaces.

    Words (a name, a path) of more than 300 characters are shortened, and so is a message of more than 4,000.
    """
    line = printable(_BREAKS.sub(" ", message).strip())
    line = _WORD.sub(lambda match: shortened(match.group(), _LONGEST_WORD), line)
    return shortened(line, _LONGEST_MESSAGE)


def markup(text: object, longest: int | None = None) -> str:
    """Printable text for an element or a quoted attribute of HTML or XML, which forbids control codes."""
    return html.escape(printable(text, longest))


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON with every name as it is; what is not printable stands as an escape, so that it may be shown on a terminal.

    A lone surrogate, which UTF-8 can't carry, is written as an escape, too.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n " else json.dumps(char)[1:-1] for char in text)


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element: no name in it can end the element, or begin a comment."""
    return json_text(value).replace("<", "\\u003c")


def attribute_json(value: Any) -> str:
    """JSON for a quoted attribute of HTML or SVG: in ASCII, so that no parser changes a character of a name."""
    return html.escape(json.dumps(value))


def attribute_text(text: str) -> str:
    """A name for a quoted attribute, with JSON's escapes: a script gets the very name by parsing it between quotes."""
    return attribute_json(text).removeprefix("&quot;").removesuffix("&quot;")


def plot_text(text: object, longest: int | None = None) -> str:
    """Printable text for matplotlib, which would read what stands between dollar signs as formulas."""
    return printable(text, longest).replace("$", "\\$")


def csv_cell(text: object) -> str:
    """Printable text for a cell of a CSV file; spreadsheets would run one that begins like a formula."""
    shown = printable(text)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown


def file_name(text: str, taken: Set[str] = frozenset(), longest: int = 100) -> str:
    """A name for a file, made of `text` and an ending of one's own: never empty, never a path.

    Signs that some system gives a meaning become underscores, as do leading dots and dashes and closing dots and
    spaces; names of devices get one in front. At most `longest` bytes in UTF-8. A number is added to a name that is
    in `taken`, which holds file names in lower case.
    """
    name = "".join("_" if char in _FORBIDDEN_IN_FILE_NAMES or not char.isprintable() else char for char in text)
    name = re.sub(r"^[.\-~ ]", "_", name.encode()[:longest].decode(errors="ignore"))
    name = re.sub(r"[. ]$", "_", name) or "_"
    if _DEVICES.match(name):
        name = f"_{name}"
    free, number = name, 1
    while free.lower() in taken:
        number += 1
        free = f"{name}-{number}"
    return free
