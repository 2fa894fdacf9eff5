"""What a text holds that the schema doesn't have: kept with its message, found again, written back, and told of.

A field of an unknown fork becomes an unknown field of protobuf's in the message where it stands, under one private
number, with its text for a value. So everything that copies, merges, pickles or stores messages keeps it, and nothing
else sees it. The text is `name: value`, or `name {` with its lines and `}`, two spaces a level.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from google.protobuf.message import Message

from fcnproto.schema import forks
from fcnproto.schema.fields import fields_of, suggestion
from fcnproto.schema.tokens import Tokens
from fcnproto.schema.wire import LENGTH, encode_tag, encode_varint

try:
    from google.protobuf.unknown_fields import UnknownFieldSet
except ImportError:  # protobuf 4.21

    def UnknownFieldSet(message: Message) -> Sequence[object]:  # type: ignore[no-redef]
        """The unknown fields of a message."""
        found: Sequence[object] = message.UnknownFields()  # type: ignore[attr-defined]
        return found


NUMBER = (1 << 29) - 2
"""The field number under which texts are kept: the last but one that there is, and no fork's."""
RECURRING = frozenset({"TransformationParameter.resize_param"})
"""Fields that have one value to most forks and several to another (MobileNet-YOLO): further ones are kept as texts, and
are no unknown fields."""
_DEEPEST = 100
_CLOSING = {"{": "}", "<": ">"}
_MOST_NAMED = 12


def keep(message: Message, text: str) -> None:
    """Keep the text of a field with a message."""
    content = text.encode("utf-8")
    message.MergeFromString(encode_tag(NUMBER, LENGTH) + encode_varint(len(content)) + content)


def kept(message: Message) -> list[str]:
    """The texts of unknown fields that stand directly in a message, in order."""
    return [
        one.data.decode("utf-8", "replace")
        for one in UnknownFieldSet(message)
        if one.field_number == NUMBER and one.wire_type == LENGTH
    ]


def has_others(message: Message) -> bool:
    """Whether a message directly holds unknown fields beside kept texts."""
    return any(one.field_number != NUMBER for one in UnknownFieldSet(message))


def name_of(text: str) -> str:
    """The name of the field that a kept text is of."""
    return text.partition(" ")[0].partition(":")[0]


def further(message: Message, name: str) -> list[str]:
    """The texts within the further messages of a field that recurs."""
    found = (text.split("\n") for text in kept(message) if name_of(text) == name)
    return ["\n".join(lines[1:-1]) for lines in found]


def recurs(message: Message, name: str) -> bool:
    """Whether a field of a message is one that recurs."""
    return f"{fields_of(message.DESCRIPTOR).name}.{name}" in RECURRING


def kept_within(message: Message) -> Iterator[tuple[Message, str]]:
    """All kept texts in a message and the messages in it, each with the message where it stands."""
    for text in kept(message):
        yield message, text
    table = fields_of(message.DESCRIPTOR)
    for descriptor, content in message.ListFields():
        field = table.by_name[descriptor.name]
        if field.kind == "message":
            for inner in content if field.repeated else [content]:
                yield from kept_within(inner)


def unknown_fields(message: Message) -> Counter[str]:
    """The unknown fields in a message as `Message.field`, or `Message.field: VALUE` for a value that a known field
    doesn't take, with how often they stand there."""
    found: Counter[str] = Counter()
    for owner, text in kept_within(message):
        table, name = fields_of(owner.DESCRIPTOR), name_of(text)
        if recurs(owner, name):
            continue
        found[f"{table.name}.{text if name in table.by_name else name}"] += 1
    return found


def unknown_values(message: Message) -> list[str]:
    """The settings in a message whose value nobody here knows, as `field: VALUE`: nothing here computes that. An
    `engine` isn't among them, as it chooses how to compute, not what."""
    found = [
        text
        for owner, text in kept_within(message)
        if name_of(text) in fields_of(owner.DESCRIPTOR).by_name and not recurs(owner, name_of(text))
    ]
    return [_shortened(text) for text in found if name_of(text) != "engine"]


def _shortened(text: str) -> str:
    """A kept text in one line."""
    return text if "\n" not in text else f"a further {name_of(text)}"


def told(
    fields: Mapping[str, int],
    types: Mapping[str, int],
    message: Message,
    theirs: Callable[[str, str], bool] | None = None,
    known_types: Iterable[str] = (),
) -> str:
    """One sentence on everything unknown, with counts, the forks known to have it, and likely misspellings.

    `message` is the one that holds the fields; `types` are names of layer types with how many layers have them;
    `theirs` says of a message's name and a field's whether a schema at hand has it; `known_types` are those that a
    misspelt one may be meant for. Empty where there is nothing to tell."""
    parts = []
    if fields:
        tables = {fields_of(owner.DESCRIPTOR).name: owner for owner, _ in kept_within(message)}
        names = [f"{_counted(name, count)}{_about_field(name, tables, theirs)}" for name, count in fields.items()]
        parts.append(f"unknown fields are kept without effect: {_some(names)}")
    if types:
        names = [f"{_counted(name, count)}{_about_type(name, known_types)}" for name, count in types.items()]
        parts.append(f"layers of unknown types hold their places, what needs them can't be computed: {_some(names)}")
    return "; ".join(parts) + " (strict=True, --strict refuses them)" if parts else ""


def _counted(name: str, count: int) -> str:
    return name if count == 1 else f"{name} ({count} times)"


def _brackets(text: str) -> str:
    return f" ({text})" if text else ""


def _about_type(name: str, known_types: Iterable[str]) -> str:
    known = forks.named(forks.having_type(name))
    near = difflib.get_close_matches(name, list(known_types), n=1, cutoff=0.8) if not known else []
    return _brackets(known or (f'did you mean "{near[0]}"?' if near else ""))


def _about_field(name: str, tables: Mapping[str, Message], theirs: Callable[[str, str], bool] | None) -> str:
    message, _, field = name.partition(".")
    if theirs is not None and theirs(message, field.partition(":")[0]):
        return " (in the fork's schema)"
    if ":" in field or message not in tables:
        return ""
    known = forks.named(forks.having_field(field)) if message == "LayerParameter" else ""
    near = "" if known else suggestion(field, fields_of(tables[message].DESCRIPTOR).by_name).removeprefix("; ")
    return _brackets(known or near)


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def read_field(tokens: Tokens, name: str) -> str:
    """The text of a field whose name was just taken: whatever protobuf's parser would skip there.

    Raises `PrototxtError` for what is no field's value."""
    return "\n".join(_field(tokens, name, 0))


def _field(tokens: Tokens, name: str, depth: int) -> list[str]:
    if depth > _DEEPEST:
        raise tokens.error(f"messages lie more than {_DEEPEST} deep in each other")
    colon = tokens.accept(":")
    if tokens.looking_at("{", "<"):
        return _message(tokens, name, depth)
    if not colon and not tokens.looking_at("["):
        raise tokens.error(f'expected ":" or "{{" after "{name}", found {tokens.current}')
    if not tokens.accept("["):
        return [f"{name}: {_scalar(tokens, name)}"]
    lines: list[str] = []
    scalars: list[str] = []
    while not tokens.accept("]"):
        if tokens.looking_at("{", "<"):
            lines += _message(tokens, name, depth)
        else:
            scalars.append(_scalar(tokens, name))
        if not tokens.accept(",") and not tokens.looking_at("]"):
            raise tokens.error(f'expected "," or "]" in the list of "{name}", found {tokens.current}')
    return lines if lines and not scalars else [f"{name}: [{', '.join(scalars)}]", *lines]


def _message(tokens: Tokens, name: str, depth: int) -> list[str]:
    closing = _CLOSING[tokens.advance().text]
    lines = [f"{name} {{"]
    while not tokens.accept(closing):
        if tokens.current.kind != "name":
            raise tokens.error(f'expected a field or "{closing}" in "{name}", found {tokens.current}')
        lines += [f"  {line}" for line in _field(tokens, tokens.advance().text, depth + 1)]
        tokens.accept(",", ";")
    return [*lines, "}"]


def _scalar(tokens: Tokens, name: str) -> str:
    if tokens.current.kind == "string":
        parts = []
        while tokens.current.kind == "string":
            token = tokens.advance()
            tokens.string(token)  # refuses wrong escapes
            parts.append(_printable(token.text))
        return " ".join(parts)
    sign = "-" if tokens.accept("-") else ""
    if tokens.current.kind not in ("name", "number"):
        raise tokens.error(f'"{name}" takes a value, found {tokens.current}')
    return sign + tokens.advance().text


def _printable(text: str) -> str:
    """A string's text; bytes that are no UTF-8 as octal escapes, which any reader takes for the same bytes."""
    return "".join(f"\\{ord(sign) - 0xDC00:03o}" if 0xDC80 <= ord(sign) <= 0xDCFF else sign for sign in text)
