"""Reading and making `Datum` messages, the records of Caffe's databases."""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from fcnproto.data.images import Mode, decode
from fcnproto.errors import DataError
from fcnproto.schema import caffe_pb2


def parse_datum(value: bytes, name: str) -> caffe_pb2.Datum:
    """The message in a record. Raises `DataError`; `name` says in the message which record."""
    try:
        return caffe_pb2.Datum.FromString(value)
    except DecodeError as error:
        raise DataError(f"{name}: not a Datum ({error})") from error


def datum_array(datum: caffe_pb2.Datum, name: str = "datum", mode: Mode = "native") -> np.ndarray:
    """The item in a Datum: (channels, height, width), uint8, or float32 where it holds float_data.

    An encoded image is decoded by Pillow (Caffe: by OpenCV) to the order BGR: with its own channels, or as `mode` says.
    Raises `DataError`.
    """
    if datum.encoded:
        return decode(datum.data, mode, name).transpose(2, 0, 1)
    shape = (datum.channels, datum.height, datum.width)
    if min(shape) < 1:
        raise DataError(f"{name}: an item of {shape[0]} x {shape[1]} x {shape[2]} values")
    values = np.frombuffer(datum.data, np.uint8) if datum.data else np.array(datum.float_data, dtype=np.float32)
    if values.size != shape[0] * shape[1] * shape[2]:
        raise DataError(f"{name}: {values.size} values, expected {shape[0]} x {shape[1]} x {shape[2]}")
    return values.reshape(shape)


def array_to_datum(array: Any, label: int | None = None) -> caffe_pb2.Datum:
    """A Datum of an array (channels, height, width): bytes for uint8, else float_data. ValueError if not 3-D."""
    array = np.asarray(array)
    if array.ndim != 3:
        raise ValueError(f"an item has 3 axes (channels, height, width), this array has {array.ndim}")
    channels, height, width = array.shape
    datum = caffe_pb2.Datum(channels=channels, height=height, width=width)
    if array.dtype == np.uint8:
        datum.data = array.tobytes()
    else:
        datum.float_data.extend(array.astype(float).ravel().tolist())
    if label is not None:
        datum.label = int(label)
    return datum
