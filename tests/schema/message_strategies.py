"""Random messages of the schema for property tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from fcnproto.schema.fields import INTEGER_RANGES, Field, fields_of

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
_FLOATS = st.floats(width=32, allow_nan=False) | st.integers(-20, 20).map(float)


def messages(message_class: type[Message]) -> st.SearchStrategy[Message]:
    """Messages with a few random fields at every level; required fields are always set."""

    @st.composite
    def build(draw: Any) -> Message:
        message = message_class()
        _fill(draw, message, message.DESCRIPTOR, depth=0)
        return message

    return build()


def _fill(draw: Any, message: Message, descriptor: Descriptor, depth: int) -> None:
    table = fields_of(descriptor)
    usual = [field for field in table.by_name.values() if depth < 4 or field.message is None]
    chosen = draw(st.lists(st.sampled_from(usual), max_size=4, unique_by=lambda field: field.name)) if usual else []
    for field in sorted({*(field.name for field in chosen), *table.required}):
        _set(draw, message, table.by_name[field], depth)


def _set(draw: Any, message: Message, field: Field, depth: int) -> None:
    if field.message is not None:
        count = draw(st.integers(1, 2)) if field.repeated else 1
        for _ in range(count):
            member = getattr(message, field.name)
            child = member.add() if field.repeated else member
            child.SetInParent()
            _fill(draw, child, field.message, depth + 1)
    elif field.repeated:
        getattr(message, field.name).extend(draw(st.lists(_values(field), min_size=1, max_size=3)))
    else:
        setattr(message, field.name, draw(_values(field)))


def _values(field: Field) -> st.SearchStrategy[Any]:
    if field.kind in INTEGER_RANGES:
        low, high = INTEGER_RANGES[field.kind]
        return st.integers(low, high) | st.integers(0, 9)
    return {
        "bool": st.booleans(),
        "string": _TEXT,
        "bytes": st.binary(max_size=6),
        "float": _FLOATS.map(lambda value: float(np.float32(value))),
        "double": st.floats(allow_nan=False),
        "enum": st.sampled_from(sorted(field.enum_numbers.values()) or [0]),
    }[field.kind]
