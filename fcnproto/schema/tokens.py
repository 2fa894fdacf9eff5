"""Protobuf's text format cut into tokens, each with its place in the text.

The rules are those of protobuf's C++ tokenizer, which Caffe uses: `#` comments, C numbers with hexadecimal, octal and
the suffix `f`, strings in either quote that end on their line, C escapes. Not for the meaning of fields: see `text.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fcnproto.errors import PrototxtError

_TOKEN = re.compile(
    r"""
      (?P<blank>[ \t\r\n\v\f]+ | \#[^\n]*)
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<number>\.?[0-9](?:[eE][+-](?=[0-9])|[A-Za-z0-9_.])*)
    | (?P<string>"[^"\\\n]*(?:\\.[^"\\\n]*)*" | '[^'\\\n]*(?:\\.[^'\\\n]*)*')
    | (?P<symbol>[^"'])
    """,
    re.VERBOSE,
)
_LINE_END = re.compile(r"\r\n|\r|\n")
_ESCAPE = re.compile(
    r"\\(?:(?P<octal>[0-7]{1,3})|[xX](?P<hex>[0-9a-fA-F]{1,2})"
    r"|u(?P<pair>[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|u(?P<short>[0-9a-fA-F]{4})|U(?P<long>[0-9a-fA-F]{8})|(?P<plain>[abfnrtv\\?'\"]))|\\(?P<bad>.?)",
    re.DOTALL,
)
_PLAIN = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, "?": 63, "'": 39, '"': 34}
_INTEGER = re.compile(r"0[xX](?P<hex>[0-9a-fA-F]+)|0(?P<octal>[0-7]+)|(?P<decimal>0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?P<suffix>[fF]?)")
# The longest integer of any field, in the digits of its base; Python's int() is slow or refuses far beyond that.
_DIGITS = {"hex": (16, 16), "octal": (8, 22), "decimal": (10, 20)}


@dataclass(frozen=True)
class Token:
    """`kind` is name, number, string, symbol or end; `offset` counts characters from the start of the text."""

    kind: str
    text: str
    offset: int

    def __str__(self) -> str:
        """The token as an error message shows it."""
        if self.kind == "end":
            return "the end of the text"
        shown = self.text if len(self.text) <= 40 else self.text[:37] + "..."
        if self.kind == "string":
            return shown
        if 0xDC80 <= ord(shown[0]) <= 0xDCFF:  # text that is not UTF-8, as surrogateescape reads it
            return f"the byte 0x{ord(shown[0]) - 0xDC00:02x}"
        return f'"{shown}"' if shown.isprintable() else f"the character U+{ord(shown[0]):04X}"


def text_of(value: bytes) -> str:
    """The text that bytes of a file stand for: UTF-8, or else one character a byte (Latin-1).

    Nothing is lost: equal names stay equal, and `data/paths.py` finds the file whose name has just these bytes."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def place(text: str, offset: int) -> tuple[int, int]:
    """Line and column (from 1) of an offset in a text; `\\r\\n`, `\\n`, `\\r` each end a line, a tab is one column."""
    ends = [match.end() for match in _LINE_END.finditer(text, 0, offset)]
    return len(ends) + 1, offset - (ends[-1] if ends else 0) + 1


class Tokens:
    """The tokens of one text, taken one after the other; `current` is the next. Its errors know line and column."""

    def __init__(self, text: str, file: str | None) -> None:
        self.text, self.file = text, file
        self._position = 0
        self.current = self._scan()

    def advance(self) -> Token:
        """Takes the current token."""
        token = self.current
        self.current = self._scan()
        return token

    def accept(self, *symbols: str) -> bool:
        """Takes the current token if it is one of `symbols`, and says whether it did."""
        if self.current.kind == "symbol" and self.current.text in symbols:
            self.advance()
            return True
        return False

    def looking_at(self, *symbols: str) -> bool:
        return self.current.kind == "symbol" and self.current.text in symbols

    def after_colon(self) -> Token | None:
        """The token that follows the current one, if that is a colon; nothing is taken."""
        if not self.looking_at(":"):
            return None
        position = self._position
        following = self._scan()
        self._position = position
        return following

    def place(self, offset: int) -> tuple[int, int]:
        """Line and column of an offset, both from 1."""
        return place(self.text, offset)

    def error(self, message: str, where: Token | int | None = None) -> PrototxtError:
        """An error at a token or an offset (default: the current token)."""
        offset = self.current.offset if where is None else where if isinstance(where, int) else where.offset
        line, column = self.place(offset)
        return PrototxtError(message, self.file, line, column)

    def _scan(self) -> Token:
        while self._position < len(self.text):
            start = self._position
            match = _TOKEN.match(self.text, start)
            if match is None:
                raise self.error("this string is not closed on its line", start)
            self._position = match.end()
            if match.lastgroup != "blank":
                return Token(match.lastgroup or "", match.group(), start)
        return Token("end", "", len(self.text))

    def integer(self, token: Token) -> int | None:
        """The value of an integer token (decimal, hexadecimal, octal); None if it is written as a float.

        Values beyond 64 bits come back as 2**64, which no field takes."""
        match = _INTEGER.fullmatch(token.text)
        if match is None:
            if _DECIMAL.fullmatch(token.text) is None or re.fullmatch("[0-9]+", token.text):
                raise self.error(f"{token} is not a number", token)
            return None
        base, most = _DIGITS[match.lastgroup or ""]
        digits = match.group(match.lastgroup or "").lstrip("0") or "0"
        return int(digits, base) if len(digits) <= most else 1 << 64

    def decimal(self, token: Token) -> float:
        """The value of a number token for a float field: decimal only, as in protobuf; too large gives infinity."""
        match = _DECIMAL.fullmatch(token.text)
        if match is None or (_INTEGER.fullmatch(token.text) and token.text.startswith("0") and token.text != "0"):
            raise self.error(f"{token} is not a decimal number", token)
        return float(token.text[: match.start("suffix")])

    def string(self, token: Token) -> bytes:
        """The bytes that one string literal stands for (without its quotes, escapes resolved, else as in the file)."""
        body, parts, position = token.text[1:-1], [], 0
        for match in _ESCAPE.finditer(body):
            parts.append(body[position : match.start()].encode("utf-8", "surrogateescape"))
            parts.append(self._unescape(match, token.offset + 1 + match.start()))
            position = match.end()
        parts.append(body[position:].encode("utf-8", "surrogateescape"))
        return b"".join(parts)

    def _unescape(self, match: re.Match[str], offset: int) -> bytes:
        kind = match.lastgroup or ""
        value = match.group(kind)
        if kind == "plain":
            return bytes([_PLAIN[value]])
        if kind in ("octal", "hex"):
            number = int(value, 8 if kind == "octal" else 16)
            if number > 255:
                raise self.error(f'the escape "\\{value}" is more than one byte', offset)
            return bytes([number])
        if kind == "pair":
            high, low = int(value[:4], 16), int(value[-4:], 16)
            return chr(0x10000 + ((high & 0x3FF) << 10) + (low & 0x3FF)).encode("utf-8")
        if kind in ("short", "long"):
            number = int(value, 16)
            if number < 0x110000 and not 0xD800 <= number < 0xE000:
                return chr(number).encode("utf-8")
        raise self.error(f'"{match.group()}" is not an escape of protobuf\'s text format', offset)
