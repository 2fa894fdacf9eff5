"""Reads weight files: `.caffemodel` (binary NetParameter of any of Caffe's formats), `.caffemodel.h5`, `.binaryproto`.

`open_weights` finds out where every layer's blobs lie without reading them; each is then read straight into the memory
that wants it. The kind of file is told by its content, as in Caffe. Written with a hostile file in mind: see `wire.py`
and `hdf5.py`. Which blob goes into which net is not decided here. Writing is in `saving.py`, the definition that a
caffemodel carries in `definition.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from fcnproto.atomic import PathLike, atomic_write
from fcnproto.errors import WeightsError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.blobs import Array, StoredBlob, encode_blob, expect, read_binary_blob, storable
from fcnproto.schema.hdf5 import HDF5Blob, find_member, hdf5_errors, member, numbered, open_hdf5
from fcnproto.schema.kinds import BLOB, HEAD_BYTES, STATE, WEIGHTS, is_hdf5, open_binary, wrong_kind
from fcnproto.schema.tokens import text_of
from fcnproto.schema.upgrade import V1_NUMBERS, V1_TYPES
from fcnproto.schema.upgrade_v0 import V0_TYPES
from fcnproto.schema.wire import LENGTH, VARINT, Field, MessageReader, Window

# Together the layers, blobs and pieces of blobs of a file; nets have some thousands.
_MOST_PARTS = 200_000
_LONGEST_NAME = 1 << 16
_NET_NAME, _NET_OLD_LAYERS, _NET_LAYERS = 1, 2, 100


@dataclass
class StoredLayer:
    """A layer in a weight file. `type` is the current type name, empty in HDF5 files, which don't say it.

    Layers in HDF5 files may lack blobs that another layer owns: those are None in `blobs`, or beyond its end."""

    name: str
    type: str = ""
    blobs: list[StoredBlob | None] = field(default_factory=list)


class WeightsFile:
    """An open weight file: its `layers` in file order, and `kind`, "binary" or "hdf5". Close it, or use it in `with`.

    Caffe copies from the two kinds by slightly different rules, so the kind is told."""

    def __init__(self, path: str, kind: str, layers: list[StoredLayer], close: Callable[[], None]) -> None:
        self.path, self.kind, self.layers = path, kind, layers
        self.close = close

    def __enter__(self) -> WeightsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_weights(path: PathLike) -> WeightsFile:
    """Opens a `.caffemodel` or `.caffemodel.h5` and finds its blobs; no values are read yet.

    WeightsError if the file is missing, of another kind, cut off or damaged."""
    name = os.fspath(path)
    file = open_binary(name, WEIGHTS)
    try:
        if not is_hdf5(file.read(HEAD_BYTES)):
            layers = _BinaryNet(Window(file, name)).layers()
            return WeightsFile(name, "binary", layers, file.close)
    except BaseException:
        file.close()
        raise
    file.close()
    hdf5 = open_hdf5(name)
    try:
        with hdf5_errors(name):
            is_state = isinstance(find_member(hdf5, "history"), h5py.Group) and find_member(hdf5, "data") is None
        if is_state:
            raise wrong_kind(name, WEIGHTS, STATE)
        return WeightsFile(name, "hdf5", _hdf5_layers(hdf5, name), hdf5.close)
    except BaseException:
        hdf5.close()
        raise


class _BinaryNet:
    """Finds the layers of a binary NetParameter in all three formats."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.parts = 0

    def layers(self) -> list[StoredLayer]:
        layers: list[StoredLayer] = []
        numbers: set[int] = set()
        reader = MessageReader(self.window, 0, self.window.size)
        while found := reader.next():
            if found.number in (_NET_NAME, _NET_OLD_LAYERS, _NET_LAYERS):
                expect(self.window, found, LENGTH)
            if found.number == _NET_LAYERS:
                layers.append(self._layer(found))
            elif found.number == _NET_OLD_LAYERS:
                layers.append(self._v1_layer(found))
            numbers.add(found.number)
            self._count(1)
        if not layers:
            raise self.window.error("there is no layer in it; this is not a caffemodel")
        if {_NET_LAYERS, _NET_OLD_LAYERS} <= numbers:
            raise self.window.error("it has layers in the old and in the current format, which Caffe refuses too")
        return layers

    def _layer(self, message: Field) -> StoredLayer:
        layer = StoredLayer("")
        reader = MessageReader(self.window, message.start, message.end)
        while found := reader.next():
            if found.number == 1:
                layer.name = self._string(found)
            elif found.number == 2:
                layer.type = self._string(found)
            elif found.number == 7:
                self._blob(layer, found)
        return self._labelled(layer)

    def _v1_layer(self, message: Field) -> StoredLayer:
        layer, inner = StoredLayer(""), None
        reader = MessageReader(self.window, message.start, message.end)
        while found := reader.next():
            if found.number == 4:
                layer.name = self._string(found)
            elif found.number == 5:
                expect(self.window, found, VARINT)
                layer.type = _v1_type(found.value)
            elif found.number == 6:
                self._blob(layer, found)
            elif found.number == 1:
                expect(self.window, found, LENGTH)
                inner = self._v0_layer(found, inner or StoredLayer(""))
        # What stands beside a V0 layer's own message is dropped by Caffe's upgrade.
        return self._labelled(layer if inner is None else inner)

    def _v0_layer(self, message: Field, layer: StoredLayer) -> StoredLayer:
        reader = MessageReader(self.window, message.start, message.end)
        while found := reader.next():
            if found.number == 1:
                layer.name = self._string(found)
            elif found.number == 2:
                type_name = self._string(found)
                layer.type = V1_TYPES.get(V0_TYPES.get(type_name, ""), type_name)
            elif found.number == 50:
                self._blob(layer, found)
        return layer

    def _labelled(self, layer: StoredLayer) -> StoredLayer:
        for index, blob in enumerate(layer.blobs):
            assert blob is not None
            blob.label = blob_label(layer.name, index)
        return layer

    def _blob(self, layer: StoredLayer, found: Field) -> None:
        expect(self.window, found, LENGTH)
        blob = read_binary_blob(self.window, found.start, found.end, "")
        layer.blobs.append(blob)
        self._count(1 + len(blob.floats) + len(blob.doubles))

    def _string(self, found: Field) -> str:
        expect(self.window, found, LENGTH)
        if found.end - found.start > _LONGEST_NAME:
            raise self.window.damaged(found.start, f"a name is {found.end - found.start} bytes long")
        return text_of(self.window.read(found.start, found.end))

    def _count(self, parts: int) -> None:
        self.parts += parts
        if self.parts > _MOST_PARTS:
            raise self.window.error(f"it has more than {_MOST_PARTS} layers and blobs; this is not a caffemodel")


def blob_label(layer: str, index: int) -> str:
    """How messages call a layer's blob."""
    return f'blob {index} of layer "{layer}"'


def _v1_type(number: int) -> str:
    values = caffe_pb2.V1LayerParameter.LayerType.DESCRIPTOR.values_by_number
    return V1_TYPES[values[number].name if number in values else V1_NUMBERS.get(number, "NONE")]


def _hdf5_layers(file: h5py.File, name: str) -> list[StoredLayer]:
    data = member(file, "data", h5py.Group, name)
    with hdf5_errors(name):
        keys = list(data)
    if not keys:
        raise WeightsError(f"{name}: there is no layer in it; this is not a caffemodel")
    layers: list[StoredLayer] = []
    parts = 0
    for layer in keys:
        group = member(data, layer, h5py.Group, name)
        blobs: list[StoredBlob | None] = []
        for index, key in enumerate(numbered(group, name)):
            label = blob_label(layer, index)
            blobs.append(None if key is None else HDF5Blob(member(group, key, h5py.Dataset, name), name, label))
        layers.append(StoredLayer(layer, "", blobs))
        parts += 1 + len(blobs)
        if parts > _MOST_PARTS:
            raise WeightsError(f"{name}: it has more than {_MOST_PARTS} layers and blobs; this is not a caffemodel")
    return layers


def read_blob(path: PathLike) -> Array:
    """The array in a `.binaryproto` file, such as a mean image: float32 (float64 if stored so), its shape as stored,
    so usually (1, channels, height, width). WeightsError if it is not such a file."""
    name = os.fspath(path)
    with open_binary(name, BLOB) as file:
        window = Window(file, name)
        blob = read_binary_blob(window, 0, window.size, "the blob")
        if not blob.stored:
            raise WeightsError(f"{name}: there is no blob in it; this is not a .binaryproto file")
        return blob.array()


def write_blob(path: PathLike, array: Any) -> None:
    """Writes an array as a `.binaryproto` file, whole or not at all.

    Arrays of three or four axes get the four legacy extents, which every reader of mean files knows; others a shape."""
    values = storable(np.asarray(array))
    with atomic_write(Path(path)) as file:
        for part in encode_blob(values, legacy=values.ndim in (3, 4)):
            file.write(part)
