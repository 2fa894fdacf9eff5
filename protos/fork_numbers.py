"""Makes fcnproto/schema/fork_numbers.txt: what differs between the numbers of Caffe's messages and those of its forks.

    python protos/fork_numbers.py FOLDER

FOLDER holds the forks' own caffe.proto files, each as `owner@repository.proto`. Of each, what its nets are made of is
compared with protos/caffe.proto: the fields that a fork has besides, or under another number, name, type or label, the
numbers that it has not, and likewise the values of enums. Forks that share a line say it together.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from fcnproto.schema.proto_file import read_proto

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "fcnproto/schema/fork_numbers.txt"
HEAD = """\
# What the caffe.proto files of Caffe's forks have under which numbers, where that differs from Caffe's own. Made by
# protos/fork_numbers.py, read by fcnproto/schema/fork_numbers.py. A line: the forks by their numbers in the first list,
# a message or enum, then number:name:type of each field (* repeated, ! required), number=name of each enum value, and
# -number for what Caffe has and they don't.
"""
LABELS = {FieldDescriptorProto.LABEL_REPEATED: "*", FieldDescriptorProto.LABEL_REQUIRED: "!"}
Facts = dict[str, dict[int, str]]


def facts(file: FileDescriptorProto) -> Facts:
    """By message or enum, and in it by number, what a net's definition can hold."""
    package = f".{file.package}." if file.package else "."
    messages, enums = dict[str, DescriptorProto](), dict[str, EnumDescriptorProto]()
    for name, message in _nested("", file.message_type):
        messages[name] = message
        enums |= {f"{name}.{enum.name}": enum for enum in message.enum_type}
    enums |= {enum.name: enum for enum in file.enum_type}
    renamed = _renamed(messages)
    found: Facts = {}
    waiting = ["NetParameter"]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        if name in enums:
            found[name] = {value.number: f"={value.name}" for value in reversed(enums[name].value)}
            continue
        found[name] = {}
        for field in messages[name].field:
            kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
            if field.type_name:
                kind = field.type_name.removeprefix(package)
                waiting.append(kind)
            found[name][field.number] = f":{field.name}:{renamed(kind)}{LABELS.get(field.label, '')}"
    return {renamed(name): members for name, members in found.items()}


def _renamed(messages: dict[str, DescriptorProto]) -> Callable[[str], str]:
    """What a message is called here: in schemas from before 2014 LayerParameter was what is V1LayerParameter now."""
    layers = next(field.type_name for field in messages["NetParameter"].field if field.name in ("layer", "layers"))
    is_old = "layer" not in {field.name for field in messages["NetParameter"].field}
    if not (is_old and layers.endswith(".LayerParameter")):
        return str
    return lambda name: re.sub(r"^LayerParameter\b", "V1LayerParameter", name)


def _nested(scope: str, messages: object) -> Iterator[tuple[str, DescriptorProto]]:
    for message in messages:  # type: ignore[attr-defined]
        name = f"{scope}{message.name}"
        yield name, message
        yield from _nested(f"{name}.", message.nested_type)


def differences(fork: Facts, caffe: Facts) -> Iterator[tuple[str, str]]:
    """What a fork has otherwise, as (message or enum, word of a line)."""
    for name, members in fork.items():
        own = caffe.get(name, {})
        for number, text in members.items():
            if own.get(number) != text:
                yield name, f"{number}{text}"
        for number in own.keys() - members.keys():
            yield name, f"-{number}"


def main(folder: Path) -> None:
    """Writes the table."""
    caffe = facts(read_proto(ROOT / "protos/caffe.proto"))
    files = sorted(folder.glob("*.proto"), key=lambda path: path.name.lower())
    owners: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, path in enumerate(files):
        for difference in differences(facts(read_proto(path)), caffe):
            owners[difference].append(index)
    lines: dict[tuple[tuple[int, ...], str], list[str]] = defaultdict(list)
    for (name, word), forks in owners.items():
        lines[tuple(forks), name].append(word)
    with TARGET.open("w", encoding="utf-8") as target:
        target.write(HEAD)
        for index, path in enumerate(files):
            target.write(f"fork {index} {path.stem.replace('@', '/')}\n")
        for (members, name), words in sorted(lines.items(), key=lambda item: (item[0][1], item[0][0])):
            words.sort(key=lambda word: int(word.lstrip("-").replace("=", ":").partition(":")[0]))
            target.write(f"{','.join(map(str, members))} {name} {' '.join(words)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
