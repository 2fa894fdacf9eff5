"""Writes weight files that Caffe reads: `.caffemodel` and `.caffemodel.h5`, whole or not at all.

Values go from the arrays' own memory into the file; protobuf never sees them. Which layers a file has, and what their
definitions say, is decided by the caller; Caffe's own rules for that are in the docstrings.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from fcnproto.atomic import PathLike, atomic_write
from fcnproto.errors import FcnprotoWarning, WeightsError
from fcnproto.schema import caffe_pb2, unknown
from fcnproto.schema.blobs import encode_blob, storable
from fcnproto.schema.fields import fields_of
from fcnproto.schema.hdf5 import write_dataset
from fcnproto.schema.hdf5_writing import new_hdf5
from fcnproto.schema.wire import LENGTH, encode_tag, encode_varint

# What protobuf, and so Caffe, reads at most in one message.
CAFFE_LIMIT = (1 << 31) - 1

LayerBlobs = Sequence[Any]
# Per layer of the net, in its order, or by layer name (then layers of the same name share their entry).
NetBlobs = Mapping[str, LayerBlobs] | Sequence[LayerBlobs]
_Part = bytes | memoryview


def write_caffemodel(
    path: PathLike, net: caffe_pb2.NetParameter, blobs: NetBlobs, diffs: NetBlobs | None = None
) -> None:
    """Writes a `.caffemodel`: `net` in the current format, each layer with its blobs (`data`, and `diff` if given).

    Arrays are stored as float32, or as `double_data` where they are float64, as Caffe's nets of doubles do. Blobs that
    `net` itself holds are replaced. Caffe repeats a shared parameter in every layer that uses it, and leaves out
    `state`, `force_backward` and `debug_info`. A file beyond 2 GiB is written, with an FcnprotoWarning: this package
    reads it, Caffe can't; HDF5 has no such limit. ValueError where `blobs` and `net` don't fit together."""
    layers = _per_layer(net, blobs, "blobs")
    gradients = [()] * len(layers) if diffs is None else _per_layer(net, diffs, "diffs")
    head = caffe_pb2.NetParameter()
    head.CopyFrom(net)
    head.ClearField("layer")
    with atomic_write(path) as file:
        file.write(head.SerializeToString(deterministic=True))
        for layer, values, layer_diffs in zip(net.layer, layers, gradients, strict=True):
            parts = _layer_parts(layer, values, layer_diffs)
            file.write(encode_tag(100, LENGTH) + encode_varint(_size(parts)))
            for part in parts:
                file.write(part)
        size = file.tell()
    if size > CAFFE_LIMIT:
        message = f"{os.fspath(path)}: {size} bytes are more than Caffe can read from a binary file; HDF5 has no limit"
        warnings.warn(message, FcnprotoWarning, stacklevel=2)


def _layer_parts(layer: caffe_pb2.LayerParameter, values: LayerBlobs, diffs: LayerBlobs) -> list[_Part]:
    """A LayerParameter in parts, fields in the order of their numbers, so blobs amid the settings as Caffe has them."""
    numbers = [field.number for field in fields_of(layer.DESCRIPTOR).by_name.values()]
    parts: list[_Part] = [_only(layer, {number for number in numbers if number < 7})]
    for index, value in enumerate(values):
        data = storable(value)
        diff = storable(np.asarray(diffs[index], data.dtype)) if index < len(diffs) else None
        if diff is not None and diff.shape != data.shape:
            raise ValueError(f'layer "{layer.name}": blob {index} is {data.shape}, its diff {diff.shape}')
        blob = list(encode_blob(data, diff))
        parts += [encode_tag(7, LENGTH) + encode_varint(_size(blob)), *blob]
    parts.append(_only(layer, {number for number in numbers if number > 7}))
    unread = caffe_pb2.LayerParameter()
    for text in unknown.kept(layer):
        unknown.keep(unread, text)
    return [*parts, unread.SerializeToString(deterministic=True)]


def _only(layer: caffe_pb2.LayerParameter, numbers: set[int]) -> bytes:
    kept = caffe_pb2.LayerParameter()
    for descriptor, value in layer.ListFields():
        if descriptor.number in numbers:
            if descriptor.name in ("name", "type", "phase"):
                setattr(kept, descriptor.name, value)
            elif fields_of(layer.DESCRIPTOR).by_name[descriptor.name].repeated:
                getattr(kept, descriptor.name).extend(value)
            else:
                getattr(kept, descriptor.name).CopyFrom(value)
    return kept.SerializeToString(deterministic=True)


def _size(parts: Sequence[_Part]) -> int:
    return sum(map(len, parts))


def _per_layer(net: caffe_pb2.NetParameter, blobs: NetBlobs, what: str) -> list[LayerBlobs]:
    if isinstance(blobs, Mapping):
        strange = set(blobs) - {layer.name for layer in net.layer}
        if strange:
            raise ValueError(f'{what} for the layer "{min(strange)}", which the net does not have')
        return [blobs.get(layer.name, ()) for layer in net.layer]
    if len(blobs) != len(net.layer):
        raise ValueError(f"{what} for {len(blobs)} layers, but the net has {len(net.layer)}")
    return list(blobs)


def check_hdf5_names(path: PathLike, names: Sequence[str]) -> None:
    """WeightsError where Caffe can't put layers of these names into the HDF5 file: empty ones, those with a slash
    or a NUL, the same one twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen or not name or "/" in name or "\0" in name or name == ".":
            reason = "another has the same name" if name in seen else "HDF5 allows no such name"
            raise WeightsError(
                f'{os.fspath(path)}: layer "{name}" can\'t be saved in HDF5: {reason}; save it as binary'
            )
        seen.add(name)


def write_hdf5_weights(
    path: PathLike, names: Sequence[str], blobs: Sequence[LayerBlobs], diffs: Sequence[LayerBlobs] | None = None
) -> None:
    """Writes a `.caffemodel.h5`: `/data/<layer>/<index>` for each blob, and a group for every layer, with blobs or not.

    A blob that is None is left out: Caffe stores a shared parameter in the layer that owns it only, but its diff
    (`/diff/...`, if `diffs` are given) in each. WeightsError as of `check_hdf5_names`."""
    check_hdf5_names(path, names)
    with new_hdf5(path) as (file, check):
        for root, values in (("data", blobs), ("diff", diffs)):
            if values is not None:
                top = file.create_group(root)
                for name, layer in zip(names, values, strict=True):
                    _write_group(top.create_group(name), layer)
                    check()


def _write_group(group: h5py.Group, values: LayerBlobs) -> None:
    for index, value in enumerate(values):
        if value is not None:
            write_dataset(group, str(index), value)
