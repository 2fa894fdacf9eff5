"""Reading old nets and solvers whole, for writing them in the current format: what `fcnproto upgrade` does.

The upgrades themselves are in `schema/upgrade.py`; they are applied anyway when a net is loaded.
"""

from __future__ import annotations

import os

from google.protobuf.message import DecodeError, Message

from fcnproto.errors import PrototxtError, WeightsError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.kinds import WEIGHTS, open_binary
from fcnproto.schema.text import parse_file
from fcnproto.schema.upgrade import upgrade_net, upgrade_solver

PathLike = str | os.PathLike[str]


def read_text(path: PathLike) -> Message:
    """The NetParameter or SolverParameter in a text file, as written.

    PrototxtError, that of the kind which more of the text fits, if it is neither.
    """
    failures = []
    for kind in (caffe_pb2.NetParameter, caffe_pb2.SolverParameter):
        try:
            message: Message = parse_file(path, kind)
            return message
        except PrototxtError as error:
            failures.append(error)
    raise max(failures, key=lambda error: (error.line or 0, error.column or 0)) from None


def read_binary_net(path: PathLike) -> Message:
    """The NetParameter in a binary file with its weights, as stored. WeightsError if it is damaged or another file."""
    name = os.fspath(path)
    net = caffe_pb2.NetParameter()
    with open_binary(name, WEIGHTS) as file:
        try:
            net.ParseFromString(file.read())
        except DecodeError:
            raise WeightsError(f"{name}: damaged, or no caffemodel of 2 GiB or less") from None
    if not net.layer and not net.layers:
        raise WeightsError(f"{name}: there is no layer in it; this is not a caffemodel")
    return net


def upgrade(message: Message, name: str) -> bool:
    """Upgrade a net or solver in place. False if something in it has no place in the current format (warnings tell)."""
    if isinstance(message, caffe_pb2.SolverParameter):
        return upgrade_solver(message, name)
    return upgrade_net(message, name)
