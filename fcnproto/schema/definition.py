"""The net that a `.caffemodel` carries within it: its layers and settings, without the weights.

Only the bytes of the definition pass through memory, however large the file is. For weights see `weights.py`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from fcnproto.atomic import PathLike
from fcnproto.errors import FcnprotoWarning, WeightsError
from fcnproto.schema import caffe_pb2, fork_binary, fork_evidence, unknown
from fcnproto.schema.fields import FIRST_ADDED, MessageFields, fields_of
from fcnproto.schema.fork_schema import ForkSchema
from fcnproto.schema.kinds import HEAD_BYTES, WEIGHTS, is_hdf5, open_binary
from fcnproto.schema.tokens import text_of
from fcnproto.schema.upgrade import V1_NUMBERS, upgrade_net
from fcnproto.schema.wire import LENGTH, VARINT, Field, MessageReader, Window, encode_tag, encode_varint

# Definitions have some kilobytes; this much of one is something else.
_LARGEST = 64 << 20
_MOST_TOLD = 6
_NET = caffe_pb2.NetParameter.DESCRIPTOR
# Where blobs lie: per message the field of the blobs, and the fields to descend into.
_BLOBS = {"LayerParameter": 7, "V1LayerParameter": 6, "V0LayerParameter": 50}
_LAYER_TYPE, _SETTINGS_FROM, _LONGEST_TYPE = 2, 12, 1000
_V1_TYPE, _V1_TYPES = 5, caffe_pb2.V1LayerParameter.LayerType.DESCRIPTOR
_INNER = {("NetParameter", 2), ("NetParameter", 100), ("V1LayerParameter", 1)}


def net_definition(
    path: PathLike, caffe_proto: PathLike | None = None, dialect: str | None = None
) -> caffe_pb2.NetParameter:
    """The net in a binary weight file without its blobs, brought up to date by Caffe's upgrades.

    What forks wrote under their own numbers is read by those of the fork that the file itself shows, or that `dialect`
    names (`fork_evidence.py`), else by the layers' types (`fork_binary.py`). Fields that nobody knows, and those on
    which the forks that may have written it disagree, are told by an FcnprotoWarning and left out. With a fork's own
    `caffe_proto` all is read by its numbers. What the package's schema lacks is kept as text. WeightsError if the file
    is no caffemodel; HDF5 weights carry no definition. PrototxtError where the upgrade refuses the net."""
    name = os.fspath(path)
    with open_binary(name, WEIGHTS) as file:
        if is_hdf5(file.read(HEAD_BYTES)):
            raise WeightsError(f"{name}: HDF5 weight files carry no net definition; only binary caffemodels do")
        window = Window(file, name)
        content = _Stripper(window, as_written=True).message(0, window.size, _NET)
        stripper = _Stripper(window)
        net = caffe_pb2.NetParameter()
        try:
            if caffe_proto is not None:
                net = ForkSchema(caffe_proto).read_net(content, name)
            elif reading := fork_evidence.read(content, name, dialect):
                net = reading.net
                _tell_left_out(name, reading.left_out)
            else:
                net.ParseFromString(stripper.message(0, window.size, _NET))
            _check_texts(net)
        except (DecodeError, UnicodeDecodeError):
            raise WeightsError(f"{name}: the net definition in it is damaged") from None
    if not net.layer and not net.layers:
        raise WeightsError(f"{name}: there is no layer in it; this is not a caffemodel")
    if not net.IsInitialized():
        raise WeightsError(f"{name}: the net definition in it lacks {', '.join(net.FindInitializationErrors())}")
    if stripper.unknown:
        numbers = ", ".join(map(str, sorted(stripper.unknown)))
        message = f"{name}: fields that Caffe does not know are left out (numbers {numbers}); another program wrote it"
        if stripper.others:
            message += f"; these numbers are known as {', '.join(dict.fromkeys(stripper.others))}"
        warnings.warn(message, FcnprotoWarning, stacklevel=2)
    upgrade_net(net, name)
    typeless = [layer.name for layer in net.layer if not layer.type]
    if typeless:
        numbers = f" (numbers {', '.join(map(str, sorted(stripper.types)))})" if stripper.types else ""
        raise WeightsError(
            f"{name}: the definition in it has no known type{numbers} for layer {', '.join(map(repr, typeless[:3]))}"
            f"{', ...' if len(typeless) > 3 else ''}; write it by hand, the weights load into a net with these names"
        )
    return net


def stored_definition(path: PathLike) -> caffe_pb2.NetParameter | None:
    """The definition in a caffemodel that a fork wrote under numbers of its own, without its blobs and not upgraded;
    None where nobody but Caffe, or no known fork, may have written it. Errors and warnings as of `net_definition`."""
    name = os.fspath(path)
    with open_binary(name, WEIGHTS) as file:
        window = Window(file, name)
        reading = fork_evidence.read(_Stripper(window, as_written=True).message(0, window.size, _NET), name)
    if reading is None:
        return None
    _tell_left_out(name, reading.left_out)
    return reading.net


def _tell_left_out(name: str, settings: Sequence[str]) -> None:
    if settings:
        more = f" and {len(settings) - _MOST_TOLD} more" if len(settings) > _MOST_TOLD else ""
        message = (
            f"{name}: what one number means differs among the forks of Caffe that may have written it, so this is left "
            f"out: {'; '.join(settings[:_MOST_TOLD])}{more} (say which with dialect=, --dialect, or caffe_proto=, "
            "--caffe-proto)"
        )
        warnings.warn(message, FcnprotoWarning, stacklevel=3)


def _check_texts(message: Message) -> None:
    """UnicodeDecodeError for texts that are not UTF-8; protobuf reads them, some of its versions then give bytes."""
    table = fields_of(message.DESCRIPTOR)
    for descriptor, content in message.ListFields():
        field = table.by_name[descriptor.name]
        for value in content if field.repeated else [content]:
            if field.kind == "message":
                _check_texts(value)
            elif field.kind == "string" and isinstance(value, bytes):
                value.decode("utf-8")


def _is_inner(table: MessageFields, found: Field) -> bool:
    """Whether a field is a message in which there may be blobs."""
    return (table.name, found.number) in _INNER and found.wire == LENGTH


class _Stripper:
    """Copies a message without the blobs inside it, and notes the fields that its type doesn't have."""

    def __init__(self, window: Window, as_written: bool = False) -> None:
        self.window, self.as_written = window, as_written
        self.unknown: set[int] = set()
        self.others: list[str] = []
        """What the numbers left out of layers are to forks."""
        self.types: set[int] = set()
        """The numbers of V1 layer types that nobody knows."""
        self.size = 0

    def message(self, start: int, end: int, descriptor: Descriptor) -> bytes:
        table = fields_of(descriptor)
        content = bytearray()
        type_name = self._type_name(start, end) if table.name == "LayerParameter" else None
        reader = MessageReader(self.window, start, end)
        while found := reader.next():
            known = table.by_number.get(found.number)
            if found.number == unknown.NUMBER or self._stays(table, found):
                content += self._copy(found)
            elif type_name is not None and found.wire == LENGTH and found.number >= _SETTINGS_FROM:
                content += self._settings(found, type_name)
            elif known is None:
                self.unknown.add(found.number)
            elif found.number == _BLOBS.get(table.name):
                continue
            elif _is_inner(table, found):
                assert known is not None and known.message is not None
                inner = self.message(found.start, found.end, known.message)
                content += encode_tag(found.number, LENGTH) + encode_varint(len(inner)) + inner
            elif (table.name, found.number, found.wire) == ("V1LayerParameter", _V1_TYPE, VARINT):
                content += encode_tag(_V1_TYPE, VARINT) + encode_varint(self._type(found.value))
            else:
                content += self._copy(found)
        return bytes(content)

    def _stays(self, table: MessageFields, found: Field) -> bool:
        """Whether a field is copied as it is, being neither blobs nor a message that may hold some."""
        return self.as_written and found.number != _BLOBS.get(table.name) and not _is_inner(table, found)

    def _type_name(self, start: int, end: int) -> str:
        reader = MessageReader(self.window, start, end)
        while found := reader.next():
            if found.number == _LAYER_TYPE and found.wire == LENGTH and found.end - found.start < _LONGEST_TYPE:
                return text_of(self.window.read(found.start, found.end))
        return ""

    def _settings(self, found: Field, type_name: str) -> bytes:
        """A settings field of a layer under the schema's number; nothing where nobody knows what it is."""
        field, others = fork_binary.settings_field(type_name, found.number)
        if field is None:
            self.unknown.add(found.number)
            self.others.append(f"{found.number}: {others} (in a layer of type {type_name!r})")
            return b""
        if field.number != found.number:
            self._count(found)
            return fork_binary.settings(self.window, found.start, found.end, found.number, field)
        if field.message is None or field.message.file is not _NET.file or field.number >= FIRST_ADDED:
            return self._copy(found)
        self._count(found)
        try:
            inner, left_out = fork_binary.with_additions(self.window, found.start, found.end, field.message.name)
        except WeightsError:  # damaged: protobuf will say so of the whole
            return self.window.read(found.begin, found.end)
        self.unknown.update(left_out)
        return encode_tag(found.number, LENGTH) + encode_varint(len(inner)) + inner

    def _type(self, number: int) -> int:
        """The number by which the schema knows a V1 layer type of the file."""
        if number in _V1_TYPES.values_by_number:
            return number
        if number in V1_NUMBERS:
            return int(_V1_TYPES.values_by_name[V1_NUMBERS[number]].number)
        self.types.add(number)
        return 0

    def _copy(self, found: Field) -> bytes:
        self._count(found)
        return self.window.read(found.begin, found.end)

    def _count(self, found: Field) -> None:
        self.size += found.end - found.begin
        if self.size > _LARGEST:
            raise self.window.error("the net definition in it is absurdly large; this is not a caffemodel")
