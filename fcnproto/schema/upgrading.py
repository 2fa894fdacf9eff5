"""Reading old nets and solvers whole, for writing them in the current format: what `fcnproto upgrade` does.

The upgrades themselves are in `schema/upgrade.py`; they are applied anyway when a net is loaded.
"""

from __future__ import annotations

import os

from google.protobuf.message import DecodeError, Message

from fcnproto.errors import PrototxtError, WeightsError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.definition import stored_definition
from fcnproto.schema.kinds import WEIGHTS, open_binary
from fcnproto.schema.text import parse_file, warn_unknown
from fcnproto.schema.upgrade import upgrade_net, upgrade_solver
from fcnproto.schema.weights import open_weights

_LEGACY_AXES = 4

PathLike = str | os.PathLike[str]


def read_text(path: PathLike) -> Message:
    """The NetParameter or SolverParameter in a text file, as written; unknown fields are kept, and told of.

    PrototxtError, that of the kind which more of the text fits, if it is neither.
    """
    failures = []
    for kind in (caffe_pb2.NetParameter, caffe_pb2.SolverParameter):
        try:
            message: Message = parse_file(path, kind, strict=False)
        except PrototxtError as error:
            failures.append(error)
            continue
        warn_unknown(message, os.fspath(path))
        return message
    raise max(failures, key=lambda error: (error.line or 0, error.column or 0)) from None


def read_binary_net(path: PathLike) -> Message:
    """The NetParameter in a binary file with its weights, as stored, but for what forks have under other numbers: that
    is read as the fork's (`fork_evidence.py`). WeightsError if it is damaged or another file."""
    name = os.fspath(path)
    net = caffe_pb2.NetParameter()
    with open_binary(name, WEIGHTS) as file:
        try:
            net.ParseFromString(file.read())
        except DecodeError:
            raise WeightsError(f"{name}: damaged, or no caffemodel of 2 GiB or less") from None
    if not net.layer and not net.layers:
        raise WeightsError(f"{name}: there is no layer in it; this is not a caffemodel")
    stored = stored_definition(path)
    if stored is None:
        return net
    for group in ("layer", "layers"):
        for target, source in zip(getattr(stored, group), getattr(net, group), strict=True):
            target.blobs.extend(source.blobs)
    with open_weights(path) as weights:
        for target, layer in zip((*stored.layer, *stored.layers), weights.layers, strict=True):
            for blob, one in zip(target.blobs, layer.blobs, strict=True):
                if one is not None and len(one.shape) > _LEGACY_AXES:  # as C3D wrote them
                    blob.Clear()
                    blob.shape.dim.extend(one.shape)
                    blob.data.extend(one.array().ravel().tolist())
    return stored


def upgrade(message: Message, name: str) -> bool:
    """Upgrade a net or solver in place. False if something in it has no place in the current format (warnings tell)."""
    if isinstance(message, caffe_pb2.SolverParameter):
        return upgrade_solver(message, name)
    return upgrade_net(message, name)
