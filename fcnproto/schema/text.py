"""Reads and writes protobuf's text format (`.prototxt`) for the messages of the schema.

A parser of its own, over the schema's descriptors: every error has file, line and column, and neither errors nor
accepted texts vary with the installed protobuf. It follows protobuf's C++ parser, which Caffe uses. `read_net` and
`read_solver` also bring old formats up to date (`upgrade.py`). Not for binary files: see `weights.py`.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from fcnproto.atomic import PathLike, atomic_write
from fcnproto.errors import FcnprotoWarning, PrototxtError
from fcnproto.schema import caffe_pb2, unknown
from fcnproto.schema.fields import FIRST_ADDED, INTEGER_RANGES, Field, MessageFields, fields_of, suggestion
from fcnproto.schema.kinds import HEAD_BYTES, foreign_kind, is_hdf5, looks_binary
from fcnproto.schema.tokens import Token, Tokens, text_of
from fcnproto.schema.upgrade import upgrade_net, upgrade_solver

AnyMessage = TypeVar("AnyMessage", bound=Message)

_CLOSING = {"{": "}", "<": ">"}
_TRUE, _FALSE = ("true", "True", "t"), ("false", "False", "f")


def read_net(path: PathLike, *, strict: bool = False, quiet: bool = False) -> caffe_pb2.NetParameter:
    """The net in a prototxt file, brought up to date by Caffe's upgrades. PrototxtError if it can't be read.

    Fields that no fork is known to have are kept and told of in one FcnprotoWarning, or refused if `strict`. `quiet`
    leaves the telling to the caller, who says more (`unknown.told`)."""
    net = parse_file(path, caffe_pb2.NetParameter, strict=strict)
    upgrade_net(net, os.fspath(path))
    if not quiet:
        warn_unknown(net, os.fspath(path))
    return net


def read_net_or_solver(path: PathLike, *, quiet: bool = False) -> caffe_pb2.NetParameter | caffe_pb2.SolverParameter:
    """A net's text as `read_net` reads it, or a solver's as `read_solver` does. The net's error where it is neither."""
    try:
        return read_net(path, quiet=quiet)
    except PrototxtError as error:
        try:
            return read_solver(path)
        except PrototxtError:
            raise error from None


def read_solver(path: PathLike, *, strict: bool = False) -> caffe_pb2.SolverParameter:
    """The solver in a prototxt file, brought up to date by Caffe's upgrades. PrototxtError if it can't be read.

    Nets inside it (`net_param` and its like) are left as they stand; Caffe upgrades them no more than that. Unknown
    fields are kept and told of in one FcnprotoWarning, or refused if `strict`."""
    solver = parse_file(path, caffe_pb2.SolverParameter, strict=strict)
    upgrade_solver(solver, os.fspath(path))
    warn_unknown(solver, os.fspath(path))
    return solver


def warn_unknown(message: Message, file: str) -> None:
    """One FcnprotoWarning that names all fields of a message which the schema doesn't have, if there are any."""
    if said := unknown.told(unknown.unknown_fields(message), {}, message):
        warnings.warn(f"{file}: {said}", FcnprotoWarning, stacklevel=3)


def parse_file(path: PathLike, message_class: type[AnyMessage], *, strict: bool = True) -> AnyMessage:
    """The message in a text file, as written, without upgrades. Unknown fields are refused unless `strict` is False.

    A byte order mark is skipped. Comments and strings may be in any encoding, as protobuf's C++ parser reads them: a
    string that is not UTF-8 (GBK, Latin-1) becomes one character a byte; see `tokens.text_of`."""
    file = os.fspath(path)
    try:
        content = Path(path).read_bytes()
    except IsADirectoryError:
        raise PrototxtError("this is a folder; a prototxt file was expected", file) from None
    except OSError as error:
        raise PrototxtError(f"can't be read: {error.strerror or error}", file) from None
    _check_is_text(content[:HEAD_BYTES], file)
    text = content.decode("utf-8-sig", "surrogateescape")
    if not text.strip():
        raise PrototxtError("the file is empty", file)
    if "\n" not in text:
        # The line ends of old Macs; protobuf would take all that follows the first comment for a part of it.
        text = text.replace("\r", "\n")
    return parse(text, message_class, file, strict=strict)


def _check_is_text(head: bytes, file: str) -> None:
    kind = foreign_kind(head)
    if kind is None and is_hdf5(head):
        kind = "an HDF5 file (weights go where weights are asked for)"
    if kind is None and head.startswith((b"\xff\xfe", b"\xfe\xff")):
        kind = "UTF-16 text (save it as UTF-8)"
    if kind is None and looks_binary(head):
        kind = "a binary file, perhaps a caffemodel (weights go where weights are asked for)"
    if kind is not None:
        raise PrototxtError(f"this is not a prototxt but {kind}", file)


def parse(text: str, message_class: type[AnyMessage], file: str | None = None, *, strict: bool = True) -> AnyMessage:
    """The message that a text describes, without upgrades; PrototxtError where it doesn't follow the schema.

    As in protobuf's C++ parser a field that isn't repeated may be set once only, and required fields must be there.
    Unless `strict`, fields that the schema doesn't have, and names that an enum doesn't, are kept with the message in
    which they stand (`unknown.py`)."""
    message = message_class()
    tokens = Tokens(text, file)
    _Parser(tokens, strict).fields(message, message.DESCRIPTOR, None, tokens.current)
    return message


def _is_of_other_kind(name: str, table: MessageFields) -> str:
    """The kind of file, "net" or "solver", that has such a field at its top; empty where none has."""
    for kind, other in (("net", caffe_pb2.NetParameter), ("solver", caffe_pb2.SolverParameter)):
        if name in other.DESCRIPTOR.fields_by_name and table.name in ("NetParameter", "SolverParameter"):
            return kind
    return ""


class _Parser:
    """Recursive descent over the schema, which doesn't nest messages in themselves: its depth bounds the recursion."""

    def __init__(self, tokens: Tokens, strict: bool) -> None:
        self.tokens, self.strict = tokens, strict
        self.open: list[tuple[MessageFields, Token]] = []
        self.misplaced: PrototxtError | None = None
        """The first field that an outer message has: where brackets don't match, it shows the place."""

    def fields(self, message: Message, descriptor: Descriptor, closing: str | None, start: Token) -> None:
        """Fields up to the `closing` bracket (None: the end of the text) into `message`."""
        tokens, table = self.tokens, fields_of(descriptor)
        seen: dict[str, Token] = {}
        unknown_texts: list[str] = []
        self.open.append((table, start))
        while not (tokens.current.kind == "end" if closing is None else tokens.looking_at(closing)):
            token = self._field_name(table, closing)
            field = table.by_name.get(token.text)
            if field is None:
                self._check_unknown(token, table)
                unknown_texts.append(unknown.read_field(tokens, token.text))
                tokens.accept(",", ";")
                continue
            if not field.repeated:
                recurs = f"{table.name}.{field.name}" in unknown.RECURRING
                if token.text in seen and field.number >= FIRST_ADDED and (recurs or not self.strict):
                    unknown_texts.append(unknown.read_field(tokens, token.text))  # it has several in another fork
                    tokens.accept(",", ";")
                    continue
                if token.text in seen:
                    first = tokens.place(seen[token.text].offset)[0]
                    raise tokens.error(
                        f'"{token.text}" is set twice, but takes one value (first on line {first})', token
                    )
                seen[token.text] = token
            if self._is_unknown_value(field):
                unknown_texts.append(unknown.read_field(tokens, token.text))
            else:
                self._field(message, field, token)
            tokens.accept(",", ";")
        missing = [f'"{name}"' for name in table.required if name not in seen]
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            raise tokens.error(f"{table.name} needs {' and '.join(missing)}, which {verb} not set", start)
        for text in unknown_texts:
            unknown.keep(message, text)
        self.open.pop()

    def _check_unknown(self, token: Token, table: MessageFields) -> None:
        """Raises for a field that the schema doesn't have if the parser is strict, or if it can be no fork's: in the
        settings of a user's own layer, or where it shows another kind of file."""
        refused = self.strict or table.own or (len(self.open) == 1 and _is_of_other_kind(token.text, table))
        misplaced = self.misplaced is None and any(token.text in other.by_name for other, _ in self.open[:-1])
        if refused or misplaced:  # the words take longer than all else
            error = self.tokens.error(self._unknown(token.text, table), token)
            if refused:
                raise error
            self.misplaced = error

    def _is_unknown_value(self, field: Field) -> bool:
        """Whether, after a field's name, there follows what another fork's schema may take, to be kept: a name that an
        enum doesn't have, a list for one value, a number for the text of a field that forks added."""
        following = None if self.strict else self.tokens.after_colon()
        if following is None or field.kind == "message":
            return False
        if following.text == "[":
            return not field.repeated
        if field.kind == "enum":
            return following.kind == "name" and following.text not in field.enum_numbers
        return field.kind == "string" and following.kind == "number" and field.number >= FIRST_ADDED

    def _field_name(self, table: MessageFields, closing: str | None) -> Token:
        tokens = self.tokens
        token = tokens.current
        if token.kind == "name":
            return tokens.advance()
        if tokens.looking_at("["):
            raise tokens.error("extensions and Any messages ([...]) are not part of Caffe's schema")
        if self.misplaced is not None:
            raise self.misplaced
        if token.kind == "end":
            line = tokens.place(self.open[-1][1].offset)[0]
            raise tokens.error(f'"{closing}" is missing: the {table.name} that begins on line {line} is not closed')
        if tokens.looking_at("}", ">") and closing is None:
            raise tokens.error(f"{token} closes nothing; there is one too many above, or an opening one is missing")
        raise tokens.error(f"expected a field of {table.name}, found {token}")

    def _unknown(self, name: str, table: MessageFields) -> str:
        """The message for a field that `table` doesn't have, with the likeliest repair."""
        message = f'{table.name} has no field "{name}"'
        outer = [other.name for other, _ in self.open[:-1] if name in other.by_name]
        if outer:
            return f'{message}, {outer[-1]} has: is a closing "}}" missing above?'
        inner = [
            field.name
            for field in table.by_name.values()
            if field.message is not None and field.number < FIRST_ADDED and name in fields_of(field.message).by_name
        ]
        near = suggestion(name, table.by_name)
        if len(self.open) == 1 and (kind := _is_of_other_kind(name, table)):
            return f"{message}; this looks like a {kind} file"
        if not near and 0 < len(inner) <= 4:
            return f"{message}; it belongs inside {' or '.join(inner)}"
        return message + near

    def _field(self, message: Message, field: Field, token: Token) -> None:
        tokens = self.tokens
        if field.kind == "message":
            tokens.accept(":")
            if not tokens.looking_at("{", "<") and not (field.repeated and tokens.looking_at("[")):
                raise tokens.error(f'expected "{{" after "{field.name}", found {tokens.current}')
        elif not tokens.accept(":"):
            raise tokens.error(f'expected ":" after "{field.name}", found {tokens.current}')
        if not tokens.looking_at("["):
            self._value(message, field, token)
            return
        if not field.repeated:
            raise tokens.error(f'"{field.name}" takes one value, not a list')
        tokens.advance()
        if tokens.accept("]"):
            return
        while True:
            self._value(message, field, tokens.current)
            if tokens.accept("]"):
                return
            if not tokens.accept(","):
                raise tokens.error(f'expected "," or "]" in the list of "{field.name}", found {tokens.current}')

    def _value(self, message: Message, field: Field, start: Token) -> None:
        """One value of `field` into `message`; `start` is where a submessage is said to begin."""
        tokens = self.tokens
        if field.kind == "message":
            if not tokens.looking_at("{", "<"):
                raise tokens.error(f'expected "{{" in the list of "{field.name}", found {tokens.current}')
            closing = _CLOSING[tokens.advance().text]
            member = getattr(message, field.name)
            child = member.add() if field.repeated else member
            if not field.repeated:
                child.SetInParent()
            assert field.message is not None
            self.fields(child, field.message, closing, start)
            tokens.advance()
            return
        value = self._scalar(field)
        if field.repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)

    def _scalar(self, field: Field) -> Any:
        kind = field.kind
        if kind in ("string", "bytes"):
            return self._string(field)
        if kind == "bool":
            return self._bool(field)
        if kind == "enum":
            return self._enum(field)
        return self._float(field) if kind in ("float", "double") else self._integer(field)

    def _expected(self, field: Field, what: str) -> PrototxtError:
        return self.tokens.error(f'"{field.name}" takes {what}, found {self.tokens.current}')

    def _string(self, field: Field) -> str | bytes:
        tokens = self.tokens
        first = tokens.current
        if first.kind != "string":
            what = f'text in quotes ("{first.text}")' if first.kind == "name" else "text in quotes"
            raise self._expected(field, what)
        pieces = []
        while tokens.current.kind == "string":
            pieces.append(tokens.string(tokens.advance()))
        value = b"".join(pieces)
        if field.kind == "bytes":
            return value
        return text_of(value)

    def _bool(self, field: Field) -> bool:
        token = self.tokens.current
        if token.kind == "name" and token.text in _TRUE + _FALSE:
            return self.tokens.advance().text in _TRUE
        if token.kind == "number" and self.tokens.integer(token) in (0, 1):
            return self.tokens.integer(self.tokens.advance()) == 1
        raise self._expected(field, "true or false")

    def _enum(self, field: Field) -> int:
        tokens = self.tokens
        token = tokens.current
        names = field.enum_numbers
        if token.kind == "name":
            if token.text not in names:
                near = suggestion(token.text, names) or f" (one of {', '.join(names)})" * (len(names) <= 8)
                raise tokens.error(f'"{field.name}" has no value "{token.text}"{near}')
            return names[tokens.advance().text]
        if token.kind == "string":
            near = suggestion(token.text[1:-1], names)
            raise tokens.error(f'"{field.name}" takes a name without quotes, found {token}{near}')
        if token.kind == "number" or tokens.looking_at("-"):
            value = self._signed_integer(field)
            if value in names.values():
                return value
            raise tokens.error(f'"{field.name}" has no value with the number {value}', token)
        raise self._expected(field, f"one of {', '.join(names)}" if len(names) <= 8 else "a name")

    def _signed_integer(self, field: Field) -> int:
        negative = self.tokens.accept("-")
        token = self.tokens.current
        value = self.tokens.integer(token) if token.kind == "number" else None
        if value is None:
            raise self._expected(field, "a whole number")
        self.tokens.advance()
        return -value if negative else value

    def _integer(self, field: Field) -> int:
        start = self.tokens.current
        value = self._signed_integer(field)
        low, high = INTEGER_RANGES[field.kind]
        if not low <= value <= high:
            raise self.tokens.error(f'"{field.name}" takes whole numbers from {low} to {high}', start)
        return value

    def _float(self, field: Field) -> float:
        negative = self.tokens.accept("-")
        token = self.tokens.current
        if token.kind == "number":
            value = self.tokens.decimal(self.tokens.advance())
        elif token.kind == "name" and token.text.lower() in ("inf", "infinity", "nan"):
            value = float(self.tokens.advance().text)
        else:
            raise self._expected(field, "a number")
        return -value if negative else value


def format_message(message: Message) -> str:
    """The message as protobuf's text format writes it: set fields in the order of their numbers, two spaces per level.

    Floats have the fewest digits that read back to the same value; text beyond ASCII stays readable UTF-8."""
    lines: list[str] = []
    _format_fields(message, "", lines)
    return "".join(lines)


def write_message(path: PathLike, message: Message, comment: str = "") -> None:
    """Writes a message as a text file, whole or not at all, below lines of comment."""
    with atomic_write(path, "w") as file:
        file.write(comment + format_message(message))


def _format_fields(message: Message, indent: str, lines: list[str]) -> None:
    table = fields_of(message.DESCRIPTOR)
    for descriptor, content in message.ListFields():
        field = table.by_name[descriptor.name]
        for value in content if field.repeated else [content]:
            if field.kind == "message":
                lines.append(f"{indent}{field.name} {{\n")
                _format_fields(value, indent + "  ", lines)
                lines.append(f"{indent}}}\n")
            else:
                lines.append(f"{indent}{field.name}: {_format_scalar(field, value)}\n")
    lines += [f"{indent}{line}\n" for text in unknown.kept(message) for line in text.split("\n")]


def _format_scalar(field: Field, value: Any) -> str:
    if field.kind == "bool":
        return "true" if value else "false"
    if field.kind == "enum":
        return field.enum_names.get(value, str(value))
    if field.kind in ("float", "double"):
        shortest = str(np.float32(value) if field.kind == "float" else float(value))
        return shortest.removesuffix(".0")
    if field.kind == "string":
        return '"' + "".join(map(_escaped, value)) + '"'
    if field.kind == "bytes":
        return '"' + "".join(_ESCAPES.get(chr(byte)) or _ascii(byte) for byte in value) + '"'
    return str(value)


def _escaped(character: str) -> str:
    """A character of a string; what is not printable as the octal codes of its bytes, which any reader takes."""
    if character.isprintable():
        return _ESCAPES.get(character, character)
    return _ESCAPES.get(character) or "".join(f"\\{byte:03o}" for byte in character.encode())


def _ascii(byte: int) -> str:
    return chr(byte) if byte < 127 else f"\\{byte:03o}"


_ESCAPES = {chr(code): f"\\{code:03o}" for code in (*range(32), 127)}
_ESCAPES.update({"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\", "'": "\\'"})
