"""A fork's own schema, from its `caffe.proto`: for fields that the package's schema doesn't have.

It says which unknown fields of a text are the fork's, and reads the definition in a caffemodel of the fork by the
fork's numbers. What it knows beyond the package's schema is kept as text (`unknown.py`), not acted on. The schemas of
known forks need no file: see `fork_numbers.py`.
"""

from __future__ import annotations

import os
import zlib
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError

from fcnproto.atomic import PathLike
from fcnproto.errors import PrototxtError, WeightsError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.proto_file import fields_with_scope, read_proto
from fcnproto.schema.settings import class_of
from fcnproto.schema.text import format_message, parse

_NET = "NetParameter"


class ForkSchema:
    """The messages of a `.proto` file that describes nets as Caffe's does; `file` is what it says, if that is known.

    Raises `PrototxtError` for a file that can't be read, uses what it doesn't have, or has no NetParameter."""

    def __init__(self, path: PathLike, file: FileDescriptorProto | None = None) -> None:
        self.path = os.fspath(path)
        file = read_proto(path) if file is None else file
        if not any(message.name == _NET for message in file.message_type):
            raise PrototxtError(f"has no message {_NET}; the caffe.proto of a fork was expected", self.path)
        self._names = {(scope.rpartition(".")[2], field.name) for scope, field in fields_with_scope(file)}
        self._net: Any = class_of(self._pool(file).FindMessageTypeByName(f"{file.package}.{_NET}"))

    def _pool(self, file: FileDescriptorProto) -> Any:
        """A pool with the file alone, in a package of its own, so that no two schemas are taken for one."""
        package, own = f".{file.package}" if file.package else "", f"fork{zlib.crc32(file.SerializeToString()):08x}"
        for _, field in fields_with_scope(file):
            if not field.HasField("type"):
                raise PrototxtError(f'field "{field.name}" has the type {field.type_name}, which it lacks', self.path)
            if field.type_name:
                field.type_name = f".{own}{field.type_name.removeprefix(package)}"
        file.name, file.package = f"{own}.proto", own
        del file.dependency[:]
        pool = descriptor_pool.DescriptorPool()
        try:
            pool.AddSerializedFile(file.SerializeToString())
        except TypeError as error:
            raise PrototxtError(f"protobuf refuses it ({str(error).splitlines()[-1]})", self.path) from None
        return pool

    def has(self, message: str, field: str) -> bool:
        """Whether the fork has a field of that name in its message of that name."""
        return (message, field) in self._names

    def read_net(self, content: bytes, name: str) -> caffe_pb2.NetParameter:
        """The net that a fork's bytes describe; what the package's schema lacks is kept as text.

        `name` is the file's, for messages. `WeightsError` where the bytes don't follow the fork's schema."""
        return parse(format_message(self.parsed(content, name)), caffe_pb2.NetParameter, name, strict=False)

    def parsed(self, content: bytes, name: str) -> Any:
        """The fork's own message of the bytes of a net; `WeightsError` as of `read_net`."""
        net = self._net()
        try:
            net.ParseFromString(content)
        except (DecodeError, UnicodeDecodeError):
            raise WeightsError(f"{name}: the net definition in it doesn't follow {self.path}") from None
        return net
