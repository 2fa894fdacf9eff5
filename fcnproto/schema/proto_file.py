"""Reads `.proto` files (the part of proto2 and proto3 that describes messages and enums) without protoc.

`read_proto` gives protobuf's own description of a file. It is for schemas of users' own layers (`settings.py`) and of
Caffe's forks: messages, enums, nested ones, oneofs, defaults, extensions; services and options without a meaning here
are passed over, groups and maps refused. Not for values: those are in `text.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from fcnproto.atomic import PathLike
from fcnproto.errors import PrototxtError
from fcnproto.schema.tokens import Token, Tokens

_COMMENT = re.compile(r"""(?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|//[^\n]*|/\*.*?(?:\*/|\Z)""", re.DOTALL)
_SCALARS = {
    name: getattr(FieldDescriptorProto, f"TYPE_{name.upper()}")
    for name in (
        *("double", "float", "int32", "int64", "uint32", "uint64", "sint32", "sint64", "fixed32", "fixed64"),
        *("sfixed32", "sfixed64", "bool", "string", "bytes"),
    )
}
_LABELS = {
    name: getattr(FieldDescriptorProto, f"LABEL_{name.upper()}") for name in ("optional", "required", "repeated")
}
_NUMBERS = range(1, 1 << 29)
_RESERVED_NUMBERS = range(19000, 20000)
_DEEPEST = 32
_LARGEST = 16 << 20


def read_proto(path: PathLike) -> FileDescriptorProto:
    """What a `.proto` file describes; see `parse_proto`. PrototxtError where it can't be read."""
    file = os.fspath(path)
    try:
        if os.path.getsize(file) > _LARGEST:
            raise PrototxtError(f"more than {_LARGEST >> 20} MiB; this is no .proto file", file)
        text = Path(path).read_text("utf-8-sig")
    except OSError as error:
        raise PrototxtError(f"can't be read: {error.strerror or error}", file) from None
    except UnicodeDecodeError:
        raise PrototxtError("this is not text in UTF-8; a .proto file was expected", file) from None
    return parse_proto(text, file)


def parse_proto(text: str, file: str | None = None) -> FileDescriptorProto:
    """What the text of a `.proto` file describes.

    Names of types are given in full (`.package.Message`) where the file itself has them; others stay as they are
    written, for whoever knows the imported files. A proto3 file is described as the proto2 file with the same bytes and
    the same text. `PrototxtError` with line and column for what is neither.
    """
    # Blanks in the place of comments keep all offsets.
    plain = _COMMENT.sub(lambda match: match["text"] or re.sub(r"[^\n]", " ", match.group()), text)
    reader = _Reader(Tokens(plain, file), file)
    reader.file_level()
    _resolve(reader.result)
    return reader.result


class _Reader:
    """Recursive descent; messages in messages are bounded."""

    def __init__(self, tokens: Tokens, file: str | None) -> None:
        self.tokens = tokens
        self.result = FileDescriptorProto(name=file or "")
        self.proto3 = False
        self.depth = 0

    def file_level(self) -> None:
        tokens, result = self.tokens, self.result
        while tokens.current.kind != "end":
            if tokens.accept(";"):
                continue
            start = tokens.current
            word = self._name("message, enum, package, import, option or extend")
            if word == "syntax":
                self._expect("=")
                syntax = self._string()
                if syntax not in ("proto2", "proto3"):
                    raise tokens.error(f'"{syntax}" is not proto2 or proto3', start)
                self.proto3 = syntax == "proto3"
                self._expect(";")
            elif word == "package":
                result.package = self._full_name()
                self._expect(";")
            elif word == "import":
                if tokens.current.kind == "name":
                    tokens.advance()
                result.dependency.append(self._string())
                self._expect(";")
            elif word == "message":
                self._message(result.message_type.add())
            elif word == "enum":
                self._enum(result.enum_type.add())
            elif word == "extend":
                self._extend(result.extension)
            elif word == "option":
                self._skip_statement()
            elif word == "service":
                self._name("the name of a service")
                self._skip_block()
            else:
                raise tokens.error(f"expected message, enum, package, import, option or extend, found {start}", start)

    def _message(self, message: DescriptorProto) -> None:
        tokens = self.tokens
        message.name = self._name("the name of a message")
        self.depth += 1
        if self.depth > _DEEPEST:
            raise tokens.error(f"messages lie more than {_DEEPEST} deep in each other")
        self._expect("{")
        while not tokens.accept("}"):
            if tokens.accept(";"):
                continue
            start = tokens.current
            if start.kind == "end":
                raise tokens.error(f'"}}" is missing: message {message.name} is not closed')
            word = self._name(f"a field of {message.name}") if not tokens.looking_at(".") else ""
            follows_name = tokens.current.kind == "name"
            if word == "message" and follows_name:
                self._message(message.nested_type.add())
            elif word == "enum" and follows_name:
                self._enum(message.enum_type.add())
            elif word == "oneof" and follows_name:
                self._oneof(message)
            elif word == "extend" and (follows_name or tokens.looking_at(".")):
                self._extend(message.extension)
            elif word == "extensions" and tokens.current.kind == "number":
                self._ranges(message)
            elif word in ("option", "reserved"):
                self._skip_statement()
            else:
                self._field(message.field.add(), word, start)
        self.depth -= 1

    def _oneof(self, message: DescriptorProto) -> None:
        index = len(message.oneof_decl)
        message.oneof_decl.add(name=self._name("the name of a oneof"))
        self._expect("{")
        while not self.tokens.accept("}"):
            if self.tokens.accept(";"):
                continue
            start = self.tokens.current
            word = self._name("a field") if not self.tokens.looking_at(".") else ""
            if word == "option":
                self._skip_statement()
                continue
            field = message.field.add()
            self._field(field, word, start, labelled=False)
            field.oneof_index = index

    def _extend(self, extensions: object) -> None:
        extendee = self._full_name()
        self._expect("{")
        while not self.tokens.accept("}"):
            if self.tokens.accept(";"):
                continue
            start = self.tokens.current
            field = extensions.add()  # type: ignore[attr-defined]
            self._field(field, self._name("a field") if not self.tokens.looking_at(".") else "", start)
            field.extendee = extendee

    def _field(self, field: FieldDescriptorProto, word: str, start: Token, labelled: bool = True) -> None:
        """One field, its first word taken already (empty where it begins with a dot)."""
        tokens = self.tokens
        field.label = FieldDescriptorProto.LABEL_OPTIONAL
        if labelled and word in _LABELS:
            if word == "required" and self.proto3:
                raise tokens.error("proto3 has no required fields", start)
            field.label = _LABELS[word]
            word = self._name("a type") if not tokens.looking_at(".") else ""
        elif labelled and not self.proto3:
            raise tokens.error(f"expected optional, required or repeated before the type, found {start}", start)
        if word == "group" or (word == "map" and tokens.looking_at("<")):
            raise tokens.error(f"{word} fields are not read here; use a message", start)
        if word in _SCALARS:
            field.type = _SCALARS[word]
            if self.proto3 and word not in ("string", "bytes") and field.label == FieldDescriptorProto.LABEL_REPEATED:
                field.options.packed = True
        else:
            field.type_name = self._full_name(word)
        field.name = self._name("the name of the field")
        self._expect("=")
        number = self._integer()
        if number not in _NUMBERS or number in _RESERVED_NUMBERS:
            raise tokens.error(f"{number} is not a number that a field can have (1 to 18999, 20000 to 536870911)")
        field.number = number
        if tokens.accept("["):
            self._field_options(field)
        self._expect(";")

    def _field_options(self, field: FieldDescriptorProto) -> None:
        while True:
            if self.tokens.accept("("):
                self._full_name()
                self._expect(")")
                name = ""
            else:
                name = self._name("an option")
            while self.tokens.accept("."):
                name = f"{name}.{self._name('an option')}"
            self._expect("=")
            value = self._constant(field)
            if name == "default":
                field.default_value = value
            elif name == "packed":
                field.options.packed = value == "true"
            if self.tokens.accept("]"):
                return
            self._expect(",")

    def _constant(self, field: FieldDescriptorProto) -> str:
        """The value of an option as a descriptor holds it."""
        tokens = self.tokens
        if tokens.looking_at("{"):
            self._skip_block()
            return ""
        sign = "-" if tokens.accept("-") else ""
        token = tokens.current
        if token.kind == "string":
            return self._string()
        tokens.advance()
        if token.kind == "name":
            return sign + token.text
        if token.kind != "number":
            raise tokens.error(f"expected a value, found {token}", token)
        whole = tokens.integer(token)
        if field.type in (FieldDescriptorProto.TYPE_FLOAT, FieldDescriptorProto.TYPE_DOUBLE) or whole is None:
            return sign + repr(tokens.decimal(token)).removesuffix(".0")
        return f"{sign}{whole}"

    def _enum(self, enum: EnumDescriptorProto) -> None:
        tokens = self.tokens
        enum.name = self._name("the name of an enum")
        self._expect("{")
        while not tokens.accept("}"):
            if tokens.accept(";"):
                continue
            name = self._name(f"a value of {enum.name}")
            if name == "option":
                option = self._full_name() if tokens.current.kind == "name" else ""
                if option == "allow_alias":
                    self._expect("=")
                    enum.options.allow_alias = self._name("true or false") == "true"
                self._skip_statement()
                continue
            if name == "reserved" and not tokens.looking_at("="):
                self._skip_statement()
                continue
            self._expect("=")
            enum.value.add(name=name, number=self._integer())
            if tokens.looking_at("["):
                self._skip_statement()
            else:
                self._expect(";")
        if not enum.value:
            raise tokens.error(f"enum {enum.name} has no values")

    def _ranges(self, message: DescriptorProto) -> None:
        while True:
            start = self._integer()
            end = start
            if self.tokens.current.text == "to":
                self.tokens.advance()
                is_max = self.tokens.current.text == "max"
                end = _NUMBERS[-1] if is_max else self._integer()
                if is_max:
                    self.tokens.advance()
            message.extension_range.add(start=start, end=end + 1)
            if not self.tokens.accept(","):
                break
        self._skip_statement()

    def _skip_statement(self) -> None:
        """Up to the next `;`, blocks included."""
        while not self.tokens.accept(";"):
            if self.tokens.looking_at("{"):
                self._skip_block()
                continue
            if self.tokens.current.kind == "end":
                raise self.tokens.error('expected ";", found the end of the text')
            self.tokens.advance()

    def _skip_block(self) -> None:
        start, depth = self.tokens.current, 0
        while True:
            if self.tokens.current.kind == "end":
                raise self.tokens.error('the "{" here is not closed', start)
            token = self.tokens.advance()
            depth += {"{": 1, "}": -1}.get(token.text, 0) if token.kind == "symbol" else 0
            if depth == 0:
                return

    def _name(self, what: str) -> str:
        token = self.tokens.current
        if token.kind != "name":
            raise self.tokens.error(f"expected {what}, found {token}")
        return self.tokens.advance().text

    def _full_name(self, first: str | None = None) -> str:
        """A name with dots, perhaps with one before it; `first` is a part that was taken already."""
        parts = [first] if first else ["" if self.tokens.accept(".") else self._name("a name")]
        if parts == [""]:
            parts.append(self._name("a name"))
        while self.tokens.accept("."):
            parts.append(self._name("a name"))
        return ".".join(parts)

    def _integer(self) -> int:
        sign = -1 if self.tokens.accept("-") else 1
        token = self.tokens.current
        value = self.tokens.integer(token) if token.kind == "number" else None
        if value is None:
            raise self.tokens.error(f"expected a whole number, found {token}")
        self.tokens.advance()
        return sign * value

    def _string(self) -> str:
        value = b""
        if self.tokens.current.kind != "string":
            raise self.tokens.error(f"expected text in quotes, found {self.tokens.current}")
        while self.tokens.current.kind == "string":
            value += self.tokens.string(self.tokens.advance())
        return value.decode("utf-8", "replace")

    def _expect(self, symbol: str) -> None:
        if not self.tokens.accept(symbol):
            raise self.tokens.error(f'expected "{symbol}", found {self.tokens.current}')


def _resolve(file: FileDescriptorProto) -> None:
    """Give the types of fields in full, and say which are messages and which enums, as far as the file has them."""
    root = f".{file.package}" if file.package else ""
    kinds: dict[str, int] = {}

    def enter(scope: str, messages: object, enums: object) -> None:
        for enum in enums:  # type: ignore[attr-defined]
            kinds[f"{scope}.{enum.name}"] = FieldDescriptorProto.TYPE_ENUM
        for message in messages:  # type: ignore[attr-defined]
            kinds[f"{scope}.{message.name}"] = FieldDescriptorProto.TYPE_MESSAGE
            enter(f"{scope}.{message.name}", message.nested_type, message.enum_type)

    enter(root, file.message_type, file.enum_type)
    for scope, field in fields_with_scope(file):
        name = _found(field.type_name, scope, kinds) if field.type_name else None
        if name is not None:
            field.type_name = name
            field.type = kinds[name]  # type: ignore[assignment]
        if field.extendee:
            field.extendee = _found(field.extendee, scope, kinds) or field.extendee


def fields_with_scope(file: FileDescriptorProto) -> Iterator[tuple[str, FieldDescriptorProto]]:
    """Every field of a file, extensions included, with the full name (`.package.Message`) of what it stands in."""
    root = f".{file.package}" if file.package else ""
    for extension in file.extension:
        yield root, extension
    stack = [(f"{root}.{message.name}", message) for message in file.message_type]
    while stack:
        scope, message = stack.pop()
        for field in (*message.field, *message.extension):
            yield scope, field
        stack += [(f"{scope}.{nested.name}", nested) for nested in message.nested_type]


def _found(name: str, scope: str, kinds: dict[str, int]) -> str | None:
    """The full name that `name` has in `scope`, looked up from the inside outwards; None if the file has none such."""
    if name.startswith("."):
        return name if name in kinds else None
    while True:
        candidate = f"{scope}.{name}"
        if candidate in kinds:
            return candidate
        if not scope:
            return None
        scope = scope.rpartition(".")[0]
