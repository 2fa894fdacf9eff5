"""What the schema says of each message's fields, in one form for every protobuf runtime.

The descriptor classes of protobuf changed between 4.21 and 7 (`label` gave way to `is_repeated`), and asking them is
slow in the pure-Python implementation. The readers and writers of this floor go through these tables instead. Not for
values.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

FIRST_ADDED = 20001
"""From this number on a field of one of Caffe's messages is an addition of Caffe's forks (`protos/forks.proto`)."""

_SETTINGS = "_param"

INTEGER_RANGES: dict[str, tuple[int, int]] = {
    "int32": (-(1 << 31), (1 << 31) - 1),
    "int64": (-(1 << 63), (1 << 63) - 1),
    "uint32": (0, (1 << 32) - 1),
    "uint64": (0, (1 << 64) - 1),
}

# Every field type that the schema and settings of users' own layers use, by what text knows of it.
_KINDS: dict[int, str] = {
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_SINT32: "int32",
    FieldDescriptor.TYPE_SINT64: "int64",
    FieldDescriptor.TYPE_FIXED32: "uint32",
    FieldDescriptor.TYPE_FIXED64: "uint64",
    FieldDescriptor.TYPE_SFIXED32: "int32",
    FieldDescriptor.TYPE_SFIXED64: "int64",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_ENUM: "enum",
    FieldDescriptor.TYPE_MESSAGE: "message",
}


@dataclass(frozen=True)
class Field:
    """One field: `kind` is the proto type's name ("enum" and "message" for the composed ones)."""

    name: str
    number: int
    kind: str
    repeated: bool
    required: bool
    message: Descriptor | None
    enum_numbers: dict[str, int]

    @property
    def enum_names(self) -> dict[int, str]:
        return {number: name for name, number in self.enum_numbers.items()}


@dataclass(frozen=True)
class MessageFields:
    """One message type: its short name and its fields by name and by number."""

    name: str
    by_name: dict[str, Field]
    by_number: dict[int, Field]
    required: tuple[str, ...]
    own: bool
    """Whether it is none of Caffe's or its forks', but the settings of a user's own layer."""


_OWN_PACKAGE = "fcnproto"
_tables: dict[str, MessageFields] = {}


def fields_of(descriptor: Descriptor) -> MessageFields:
    """The table of a message type (made once per type)."""
    table = _tables.get(descriptor.full_name)
    if table is None:
        fields = [_field(field) for field in descriptor.fields]
        table = MessageFields(
            name=descriptor.name,
            by_name={field.name: field for field in fields},
            by_number={field.number: field for field in fields},
            required=tuple(field.name for field in fields if field.required),
            own=descriptor.file.package != _OWN_PACKAGE,
        )
        _tables[descriptor.full_name] = table
    return table


def add_field(message: Descriptor, extension: FieldDescriptor) -> None:
    """Make an extension of a message one of the fields in its table, under the extension's short name."""
    table, field = fields_of(message), _field(extension)
    table.by_name[field.name] = table.by_number[field.number] = field


def _field(descriptor: Any) -> Field:
    enum = descriptor.enum_type
    return Field(
        name=descriptor.name,
        number=descriptor.number,
        kind=_KINDS[descriptor.type],
        repeated=_flag(descriptor, "is_repeated", FieldDescriptor.LABEL_REPEATED),
        required=_flag(descriptor, "is_required", FieldDescriptor.LABEL_REQUIRED),
        message=descriptor.message_type,
        enum_numbers={value.name: value.number for value in enum.values} if enum is not None else {},
    )


def _flag(descriptor: Any, attribute: str, label: int) -> bool:
    """`is_repeated` and `is_required` where the runtime has them; reading `label` there would warn."""
    value = getattr(descriptor, attribute, None)
    return bool(descriptor.label == label if value is None else value)


def suggestion(name: str, candidates: Iterable[str]) -> str:
    """`; did you mean "x"?` for the nearest of `candidates`, or nothing when none is near."""
    # What all settings' names end in says nothing about likeness.
    settings = name.lower().endswith(_SETTINGS)
    known = [one for one in candidates if not settings or one.endswith(_SETTINGS)]
    folded = {one.lower().removesuffix(_SETTINGS if settings else ""): one for one in reversed(known)}
    wanted = name.lower().removesuffix(_SETTINGS if settings else "")[:100]
    near = difflib.get_close_matches(wanted, list(folded), n=1, cutoff=0.8 if settings else 0.6)
    if not near:
        # A name cut short or written out: conv for convolution, average for AVE.
        long = [other for other in folded if min(len(other), len(wanted)) >= 3]
        starts = [other for other in long if other.startswith(wanted) or wanted.startswith(other)]
        near = sorted(starts, key=lambda other: abs(len(other) - len(wanted)))
    return f'; did you mean "{folded[near[0]]}"?' if near else ""
