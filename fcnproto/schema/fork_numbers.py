"""The numbers that Caffe's forks gave their fields and enum values, as schemas to read their binary files by.

`fork_numbers.txt` says of each known fork in what its `caffe.proto` differs from Caffe's; `protos/fork_numbers.py`
makes it. Which fork wrote a file is found out in `fork_evidence.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from fcnproto.schema import caffe_pb2
from fcnproto.schema.fields import FIRST_ADDED
from fcnproto.schema.fork_schema import ForkSchema
from fcnproto.schema.upgrade import V1_NUMBERS

TABLE_FILE = Path(__file__).with_name("fork_numbers.txt")
CAFFE = "BVLC/caffe"
"""How Caffe itself is called among the forks."""
_WORD = re.compile(r"(?P<number>-?\d+)(?:=(?P<value>\w+)|:(?P<name>\w+):(?P<type>[\w.]+)(?P<label>[*!]?))?")
_LABELS = {
    "": FieldDescriptorProto.LABEL_OPTIONAL,
    "*": FieldDescriptorProto.LABEL_REPEATED,
    "!": FieldDescriptorProto.LABEL_REQUIRED,
}
_SCALARS = {
    name.removeprefix("TYPE_").lower(): number
    for name, number in FieldDescriptorProto.Type.items()
    if name not in ("TYPE_MESSAGE", "TYPE_ENUM", "TYPE_GROUP")
}
_MOST_NAMED = 3


class _Difference(NamedTuple):
    """What some forks have otherwise in a message or enum: words as of `fork_numbers.txt`."""

    forks: frozenset[int]
    scope: str
    words: tuple[str, ...]


@cache
def _table() -> tuple[tuple[str, ...], tuple[_Difference, ...]]:
    names, differences = [], []
    for line in TABLE_FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        first, scope, *words = line.split()
        if first == "fork":
            names.append(words[0])
        else:
            differences.append(_Difference(frozenset(map(int, first.split(","))), scope, tuple(words)))
    return tuple(names), tuple(differences)


def names() -> tuple[str, ...]:
    """The forks whose numbers are known, Caffe itself first."""
    return (CAFFE, *_table()[0])


@cache
def contested(old: bool) -> frozenset[tuple[str, int]]:
    """The numbers, with the messages or enums they are of, that have not the same name to Caffe and all its forks.

    `old`: count the forks that know the format before 2014 alone, too."""
    caffes = dict[tuple[str, int], str]()
    for scope, message in _scopes("", _caffes().message_type):
        caffes |= {(scope, field.number): field.name for field in message.field}
        for enum in message.enum_type:
            caffes |= {(f"{scope}.{enum.name}", value.number): value.name for value in enum.value}
    found = set()
    differences = _table()[1]
    ancient = {fork for one in differences for fork in one.forks if one.scope == "NetParameter" and "-100" in one.words}
    for one in differences:
        if not old and one.forks <= ancient:
            continue
        for match in map(_WORD.fullmatch, one.words):
            assert match is not None
            number, name = int(match["number"]), match["name"] or match["value"]
            if name is not None and caffes.get((one.scope, number)) != name:
                found.add((one.scope, number))
    return frozenset(found)


def named(forks: list[str]) -> str:
    """Names of forks for people: `A, B and others`."""
    return ", ".join(forks[:_MOST_NAMED]) + (" and others" if len(forks) > _MOST_NAMED else "")


@cache
def schema(fork: str) -> ForkSchema:
    """The schema of a fork, by its name: Caffe's own with what the fork has otherwise. `KeyError` for another name."""
    known, differences = _table()
    index = None if fork == CAFFE else dict(zip(known, range(len(known)), strict=True))[fork]
    file = _caffes()
    scopes = dict(_scopes("", file.message_type))
    enums = {f"{scope}.{enum.name}": enum for scope, message in scopes.items() for enum in message.enum_type}
    enums |= {enum.name: enum for enum in file.enum_type}
    if index is None:  # it is read together with the first FCN branch, which had a few types more
        for number, name in V1_NUMBERS.items():
            enums["V1LayerParameter.LayerType"].value.add(name=name, number=number)
    theirs = [one for one in differences if index in one.forks]
    for one in theirs:
        if "=" in one.words[0] or one.scope in enums:
            _change_enum(_enum(file, scopes, enums, one.scope), one.words)
    for one in theirs:
        if one.scope not in enums:
            _change_message(_message(file, scopes, one.scope), one.words, enums)
    return ForkSchema(f"the numbers of {fork}", file)


def _caffes() -> FileDescriptorProto:
    """Caffe's own schema: the package's without what `forks.proto` added, and without defaults."""
    file = FileDescriptorProto()
    caffe_pb2.DESCRIPTOR.CopyToProto(file)  # type: ignore[no-untyped-call]
    for _, message in _scopes("", file.message_type):
        kept = [field for field in message.field if field.number < FIRST_ADDED]
        for field in kept:
            field.ClearField("default_value")
        del message.field[:], message.extension_range[:]
        message.field.extend(kept)
        for enum in message.enum_type:
            values = [value for value in enum.value if value.number < FIRST_ADDED]
            del enum.value[:]
            enum.value.extend(values)
    _keep_nets(file)
    return file


def _keep_nets(file: FileDescriptorProto) -> None:
    """Leave the messages that a net is made of."""
    messages = {message.name: message for message in file.message_type}
    found, waiting = set[str](), ["NetParameter"]
    while waiting:
        name = waiting.pop()
        if name in found or name not in messages:
            continue
        found.add(name)
        scopes = [messages[name], *(inner for _, inner in _scopes("", messages[name].nested_type))]
        types = (field.type_name for scope in scopes for field in scope.field)
        waiting += [kind.removeprefix(f".{file.package}.").partition(".")[0] for kind in types]
    del file.message_type[:]
    file.message_type.extend(messages[name] for name in messages if name in found)


def _scopes(scope: str, messages: object) -> Iterator[tuple[str, DescriptorProto]]:
    for message in messages:  # type: ignore[attr-defined]
        name = f"{scope}{message.name}"
        yield name, message
        yield from _scopes(f"{name}.", message.nested_type)


def _message(file: FileDescriptorProto, scopes: dict[str, DescriptorProto], name: str) -> DescriptorProto:
    """The message of that full name, made if there is none."""
    if name not in scopes:
        outer, _, inner = name.rpartition(".")
        where = _message(file, scopes, outer).nested_type if outer else file.message_type
        scopes[name] = where.add(name=inner)
    return scopes[name]


def _enum(
    file: FileDescriptorProto,
    scopes: dict[str, DescriptorProto],
    enums: dict[str, EnumDescriptorProto],
    name: str,
) -> EnumDescriptorProto:
    """The enum of that full name, made if there is none."""
    if name not in enums:
        outer, _, inner = name.rpartition(".")
        where = _message(file, scopes, outer).enum_type if outer else file.enum_type
        enums[name] = where.add(name=inner)
    return enums[name]


def _change_enum(enum: EnumDescriptorProto, words: tuple[str, ...]) -> None:
    values = {value.number: value.name for value in enum.value}
    for match in map(_WORD.fullmatch, words):
        assert match is not None
        number = int(match["number"])
        if match["value"] is None:
            values.pop(-number, None)
        else:
            values = {key: name for key, name in values.items() if name != match["value"]} | {number: match["value"]}
    del enum.value[:]
    for number, name in sorted(values.items()):
        enum.value.add(name=name, number=number)


def _change_message(message: DescriptorProto, words: tuple[str, ...], enums: dict[str, EnumDescriptorProto]) -> None:
    fields = {field.number: field for field in message.field}
    for match in map(_WORD.fullmatch, words):
        assert match is not None
        number = int(match["number"])
        if match["name"] is None:
            fields.pop(-number, None)
            continue
        field = FieldDescriptorProto(name=match["name"], number=number, label=_LABELS[match["label"]])
        if match["type"] in _SCALARS:
            field.type = _SCALARS[match["type"]]  # type: ignore[assignment]
        else:
            field.type_name = f".{caffe_pb2.DESCRIPTOR.package}.{match['type']}"
            is_enum = match["type"] in enums
            field.type = FieldDescriptorProto.TYPE_ENUM if is_enum else FieldDescriptorProto.TYPE_MESSAGE
        fields = {key: other for key, other in fields.items() if other.name != field.name} | {number: field}
    kept = [fields[number] for number in sorted(fields)]
    del message.field[:]
    message.field.extend(kept)
