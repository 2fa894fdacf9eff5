"""Settings messages of layer types from outside the package, as fields of `LayerParameter`.

A message class can't get another field once it is made, but it can have extensions: `caffe.proto` leaves the numbers
that neither Caffe nor `forks.proto` uses open for them. A settings field is such an extension, entered into the pool
that the schema is in, so protobuf itself copies, compares, serialises and parses it, within whole nets and caffemodels.
What makes it a field like others is done here: the table that the text parser and writer go by (`fields.py`) gets an
entry, and `LayerParameter` an attribute of its name; `HasField` and `ClearField` take the name too. Messages that were
parsed before hold the bytes as an unknown field. Forks whose layers are the package's own have real fields
(`forks.proto`) instead.
"""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message import Message

from fcnproto.atomic import PathLike
from fcnproto.errors import PrototxtError, UsageError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.fields import Field, add_field, fields_of
from fcnproto.schema.proto_file import fields_with_scope, read_proto

_PACKAGE = "fcnproto.own"
_LAYER: Any = caffe_pb2.LayerParameter
_SCHEMA = _LAYER.DESCRIPTOR.file
_SUFFIX = "Parameter"
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# The package's own numbers: stable for a name, out of the way of those that Caffe and its forks use.
_FIRST_NUMBER, _NUMBERS = 1 << 28, 1 << 27

_extensions: dict[str, FieldDescriptor] = {}
# What each was made of: the message's name, the number, and the description of the `.proto` file (empty for a class).
_given: dict[str, tuple[str, int, bytes]] = {}
_by_type: dict[str, str] = {}


def field_name(message_name: str) -> str:
    """The field that holds a settings message: `blend_param` for `BlendParameter`."""
    return "_".join(_WORDS.split(message_name.removesuffix(_SUFFIX))).lower() + "_param"


def stable_number(name: str) -> int:
    """The field number of settings that say none: the same for a name in every version."""
    return _FIRST_NUMBER + zlib.crc32(name.encode()) % _NUMBERS


def settings_fields(type_name: str) -> tuple[str, ...]:
    """The settings field that was made for a layer type from outside, if any."""
    return (_by_type[type_name],) if type_name in _by_type else ()


def add_settings(
    type_name: str, settings: PathLike | type[Message], folder: PathLike, number: int | None = None
) -> str:
    """Make a settings message a field of `LayerParameter`; returns the field's name.

    Args:
        type_name: the layer type, whose message in a `.proto` file is `<Type>Parameter`.
        settings: a message class of protobuf's, or the path of a `.proto` file (looked up in `folder`, then from the
            working directory), whose messages may use those of Caffe's schema such as FillerParameter.
        number: the field's number in binary files, by default `stable_number` of its name.

    Doing so again with the same settings changes nothing. Where the schema has a field of that name, a `.proto` file
    whose message it covers stands for it. `PrototxtError` for a faulty file, `UsageError` for a class that is no
    message, and for a name or number that is taken.
    """
    if isinstance(settings, type):
        if not issubclass(settings, Message):
            raise UsageError(
                f"register_layer({type_name!r}): settings={settings.__name__} is no protobuf message class"
            )
        file, message = None, settings.DESCRIPTOR.full_name
        name = field_name(settings.DESCRIPTOR.name)
        _share_file(settings.DESCRIPTOR.file)
    else:
        path = _found(settings, folder, type_name)
        file, message = _described(path, type_name), f"{_PACKAGE}.{type_name}.{type_name}{_SUFFIX}"
        name = field_name(type_name)
        known = _schema_field(name)
        if known is not None:
            _check_covered(known, file, path, type_name)
            _by_type[type_name] = name
            return name
    if _schema_field(name) is not None:
        raise UsageError(
            f"register_layer({type_name!r}): Caffe's schema has a field {name} already; "
            f"say config_field = {name!r} in the class instead of settings="
        )
    extension = _extension(type_name, name, message, number or stable_number(name), file)
    if name not in _extensions:
        _enter(name, extension)
    _by_type[type_name] = name
    return name


def _schema_field(name: str) -> Field | None:
    """The field of that name which the schema itself has."""
    return None if name in _extensions else fields_of(_LAYER.DESCRIPTOR).by_name.get(name)


def _found(path: PathLike, folder: PathLike, type_name: str) -> Path:
    places = [Path(folder) / path, Path(path)]
    for place in places:
        if place.is_file():
            return place
    tried = " or ".join(str(place.resolve()) for place in dict.fromkeys(places))
    raise UsageError(f"register_layer({type_name!r}): settings={os.fspath(path)!r}: no such file ({tried})")


def _described(path: Path, type_name: str) -> FileDescriptorProto:
    """What a `.proto` file describes, its messages moved into a package of the layer type's own."""
    file = read_proto(path)
    wanted = type_name + _SUFFIX
    if not any(message.name == wanted for message in file.message_type):
        known = ", ".join(message.name for message in file.message_type) or "none"
        raise PrototxtError(
            f'no message "{wanted}" in it (it has {known}); that of type {type_name!r} is called so', str(path)
        )
    package, own = f".{file.package}" if file.package else "", f".{_PACKAGE}.{type_name}"
    imports = [name for name in file.dependency if not name.endswith("caffe.proto")]
    if imports:
        raise PrototxtError(f'imports "{imports[0]}", which is not read; put its messages into this file', str(path))
    for _, field in fields_with_scope(file):
        if field.extendee:
            raise PrototxtError(f"extends {field.extendee}, which settings can't", str(path))
        if not field.HasField("type"):
            _use_schema(field, path)
        elif field.type_name:
            field.type_name = own + field.type_name.removeprefix(package)
    result = FileDescriptorProto(
        name=f"{_PACKAGE.replace('.', '/')}/{type_name}.proto", package=own[1:], syntax="proto2"
    )
    result.dependency.append(_SCHEMA.name)
    result.message_type.extend(file.message_type)
    result.enum_type.extend(file.enum_type)
    return result


def _use_schema(field: FieldDescriptorProto, path: Path) -> None:
    """Give a field whose type its file doesn't have that of Caffe's schema."""
    short = field.type_name.removeprefix(".").removeprefix("caffe.")
    pool = descriptor_pool.Default()
    for kind, find in (
        (FieldDescriptorProto.TYPE_MESSAGE, pool.FindMessageTypeByName),
        (FieldDescriptorProto.TYPE_ENUM, pool.FindEnumTypeByName),
    ):
        try:
            found = find(f"{_SCHEMA.package}.{short}")
        except KeyError:
            continue
        field.type, field.type_name = kind, f".{found.full_name}"
        return
    raise PrototxtError(
        f'field "{field.name}" has the type {field.type_name}, which neither this file nor Caffe has', str(path)
    )


def _check_covered(known: Field, file: FileDescriptorProto, path: Path, type_name: str) -> None:
    """UsageError unless the schema's own message has all fields of the file's, each of the same kind."""
    own = next(message for message in file.message_type if message.name == type_name + _SUFFIX)
    there = {} if known.message is None else fields_of(known.message).by_name
    for field in own.field:
        repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
        if field.name not in there or there[field.name].repeated != repeated:
            raise UsageError(
                f"register_layer({type_name!r}): Caffe's schema has a field {known.name} already, and it has no "
                f"{'list ' if repeated else ''}{field.name!r} as in {path}; give the type another name"
            )


def _share_file(file: Any) -> None:
    """Enter a message class's file, with what it imports, into the schema's pool."""
    pool = descriptor_pool.Default()
    try:
        if pool.FindFileByName(file.name) is file:
            return
    except KeyError:
        pass
    for imported in file.dependencies:
        _share_file(imported)
    try:
        pool.AddSerializedFile(file.serialized_pb)
    except TypeError as error:
        raise UsageError(f"{file.name}: another file of this name, with other messages, is in use ({error})") from None


def _extension(
    type_name: str, name: str, message: str, number: int, file: FileDescriptorProto | None
) -> FieldDescriptor:
    """The extension for a message, made unless it is there; `UsageError` where another is."""
    pool = descriptor_pool.Default()
    given = message, number, b"" if file is None else file.SerializeToString(deterministic=True)
    if name in _extensions:
        if _given[name] != given:
            raise UsageError(
                f"register_layer({type_name!r}): {name} was registered before with other settings or another number; "
                "begin a new process for the new ones"
            )
        return _extensions[name]
    _check_number(type_name, name, number)
    if file is not None:
        _add(pool, file, type_name)
    own = FileDescriptorProto(
        name=f"{_PACKAGE.replace('.', '/')}/{name}.proto", package=f"{_PACKAGE}.fields", syntax="proto2"
    )
    own.dependency.extend([_SCHEMA.name, pool.FindMessageTypeByName(message).file.name])
    own.extension.add(
        name=name,
        number=number,
        label=FieldDescriptorProto.LABEL_OPTIONAL,
        type=FieldDescriptorProto.TYPE_MESSAGE,
        type_name=f".{message}",
        extendee=f".{_LAYER.DESCRIPTOR.full_name}",
    )
    _add(pool, own, type_name)
    _given[name] = given
    found: FieldDescriptor = pool.FindExtensionByName(f"{_PACKAGE}.fields.{name}")
    return found


def _add(pool: Any, file: FileDescriptorProto, type_name: str) -> None:
    try:
        pool.AddSerializedFile(file.SerializeToString())
    except TypeError as error:
        reason = str(error).splitlines()[-1]
        raise UsageError(f"register_layer({type_name!r}): protobuf refuses the settings ({reason})") from None


def _check_number(type_name: str, name: str, number: int) -> None:
    """`UsageError` where a field number is taken or not open for settings."""
    taken = fields_of(_LAYER.DESCRIPTOR).by_number.get(number)
    where = f"register_layer({type_name!r}): {name} can't have the number {number}"
    if taken is not None:
        raise UsageError(f"{where}, which is that of {taken.name}; give another with number=")
    description = descriptor_pb2.DescriptorProto()
    _LAYER.DESCRIPTOR.CopyToProto(description)
    if not any(one.start <= number < one.end for one in description.extension_range):
        raise UsageError(f"{where}; open are 12 to 99, 149 to 18999 and those from 30000 on")


def _enter(name: str, extension: FieldDescriptor) -> None:
    """Make an extension a field for the parsers, and an attribute of layers' messages."""
    class_of(extension.message_type)
    _extensions[name] = extension
    add_field(_LAYER.DESCRIPTOR, extension)
    setattr(_LAYER, name, property(lambda layer: layer.Extensions[extension]))


def _by_name(plain: Any, extended: str) -> Any:
    """A method of `LayerParameter` that takes a field's name, for settings fields by that of their extension."""

    def method(layer: Any, name: str) -> Any:
        extension = _extensions.get(name)
        return plain(layer, name) if extension is None else getattr(layer, extended)(extension)

    return method


_LAYER.HasField = _by_name(_LAYER.HasField, "HasExtension")
_LAYER.ClearField = _by_name(_LAYER.ClearField, "ClearExtension")


def class_of(descriptor: Any) -> Any:
    """The class that the runtime makes of a message's descriptor; protobuf before 4.22 has it by another name."""
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(descriptor.file.pool).GetPrototype(descriptor)
