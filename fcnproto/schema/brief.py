"""A settings message in a few words, for drawings and lists. For the whole of it see `text.py`."""

from __future__ import annotations

from google.protobuf.message import Message

from fcnproto.schema.fields import fields_of

_MOST_SETTINGS = 3


def brief_settings(message: Message) -> str:
    """The first few numbers, switches and choices that are set, with their names: "axis 1, operation MAX"."""
    known = fields_of(message.DESCRIPTOR).by_name
    words = []
    for descriptor, value in message.ListFields():
        entry = known[descriptor.name]
        if entry.kind in ("message", "string", "bytes"):
            continue
        values = list(value) if entry.repeated else [value]
        texts = [entry.enum_names.get(item, str(item)) if entry.kind == "enum" else _number(item) for item in values]
        words.append(f"{descriptor.name} {'×'.join(texts)}")
    return ", ".join(words[:_MOST_SETTINGS])


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
