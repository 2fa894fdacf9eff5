"""What pycaffe has in `caffe.io`: images for nets (`Transformer`, `oversample`) and arrays in messages.

Images are arrays (height, width, channels), colours in the order RGB, usually in 0..1.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fcnproto.data.datum import array_to_datum, datum_array, parse_datum
from fcnproto.data.images import FAULTS, open_image
from fcnproto.data.interpolation import resize_normalised, zoom
from fcnproto.errors import DataError
from fcnproto.schema import caffe_pb2

__all__ = [
    "Transformer",
    "array_to_blobproto",
    "array_to_datum",
    "arraylist_to_blobprotovector_str",
    "blobproto_to_array",
    "blobprotovector_str_to_arraylist",
    "datum_to_array",
    "load_image",
    "oversample",
    "resize_image",
]


def load_image(filename: str | os.PathLike[str], color: bool = True) -> np.ndarray:
    """An image as float32 in 0..1: RGB (height, width, 3), or grey (height, width, 1) without `color`.

    As in pycaffe: alpha is dropped, an EXIF orientation not looked at, grey is 0.2125 R + 0.7154 G + 0.0721 B. Raises
    `DataError` naming the file.
    """
    image = open_image(filename)
    try:
        if image.mode.startswith("I"):  # 16 bits
            pixels = np.asarray(image)[:, :, None] / 65535.0
        elif image.mode in ("L", "LA", "1"):
            pixels = np.asarray(image.convert("L"))[:, :, None] / 255.0
        else:
            pixels = np.asarray(image.convert("RGB")) / 255.0
    except FAULTS as error:
        raise DataError(f"{os.fspath(filename)}: not a readable image ({error})") from error
    if color:
        pixels = np.tile(pixels, (1, 1, 3 // pixels.shape[2]))
    elif pixels.shape[2] == 3:
        pixels = pixels @ np.array([[0.2125], [0.7154], [0.0721]])
    return pixels.astype(np.float32)


def resize_image(im: Any, new_dims: Sequence[int], interp_order: int = 1) -> np.ndarray:
    """Resize (height, width, channels) to `new_dims` (height, width); float32.

    As in pycaffe, images of 1 or 3 channels go scikit-image's way (half-pixel centres; smoothed first where they
    shrink; outside of the image lies its smallest value), others scipy's zoom (corners on corners). Orders other than
    1 (linear) need scipy.
    """
    im = np.asarray(im)
    height, width = int(new_dims[0]), int(new_dims[1])
    if im.ndim != 3:
        raise DataError(f"an image has 3 axes (height, width, channels), this array has {im.ndim}")
    if im.shape[-1] in (1, 3):
        low, high = im.min(), im.max()
        if high <= low:
            return np.full((height, width, im.shape[-1]), low, dtype=np.float32)
        normalised = (im - low) / (high - low)
        result = resize_normalised(normalised, height, width, interp_order) * (high - low) + low
    else:
        result = zoom(im, height, width, interp_order)
    return result.astype(np.float32)


def oversample(images: Iterable[Any], crop_dims: Sequence[int]) -> np.ndarray:
    """Ten crops of each image: top left, top right, bottom left, bottom right, centre, then the same five mirrored.

    Images (height, width, channels) of one size; the result is (10 * n, crop height, crop width, channels), float32.
    """
    stack = np.stack([np.asarray(image) for image in images])
    rows, columns = (int(extent) for extent in crop_dims)
    free_rows, free_columns = stack.shape[1] - rows, stack.shape[2] - columns
    if free_rows < 0 or free_columns < 0:
        raise DataError(f"images of {stack.shape[1]} x {stack.shape[2]} are smaller than crops of {rows} x {columns}")
    places = [(top, left) for top in (0, free_rows) for left in (0, free_columns)]
    # The centre as pycaffe has it: rounded down from half the image less half the crop.
    places.append((int(stack.shape[1] / 2.0 - rows / 2.0), int(stack.shape[2] / 2.0 - columns / 2.0)))
    five = np.stack([stack[:, top : top + rows, left : left + columns] for top, left in places], axis=1)
    ten = np.concatenate([five, five[:, :, :, ::-1]], axis=1)
    return ten.reshape(-1, rows, columns, stack.shape[3]).astype(np.float32)


class Transformer:
    """pycaffe's Transformer: from an image to what a net's input blob takes, and back.

    Per input: resize to the blob's size, transpose, swap channels, times the raw scale, minus the mean, times the input
    scale. `inputs` maps names to blob shapes. Wrong names and lengths raise `DataError`, a mean of the wrong shape
    ValueError as in pycaffe.
    """

    def __init__(self, inputs: Mapping[str, Sequence[int]]) -> None:
        self.inputs = {name: tuple(shape) for name, shape in inputs.items()}
        self.transpose: dict[str, tuple[int, ...]] = {}
        self.channel_swap: dict[str, tuple[int, ...]] = {}
        self.raw_scale: dict[str, float] = {}
        self.mean: dict[str, np.ndarray] = {}
        self.input_scale: dict[str, float] = {}

    def _shape(self, in_: str) -> tuple[int, ...]:
        if in_ not in self.inputs:
            raise DataError(f"{in_!r} is not one of the net's inputs: {', '.join(map(repr, self.inputs))}")
        return self.inputs[in_]

    def preprocess(self, in_: str, data: Any) -> np.ndarray:
        """From an image (height, width, channels) to the input's (channels, height, width), float32."""
        shape = self._shape(in_)
        image = np.asarray(data).astype(np.float32, copy=False)
        if image.shape[:2] != shape[2:]:
            image = resize_image(image, shape[2:])
        if in_ in self.transpose:
            image = image.transpose(self.transpose[in_])
        if in_ in self.channel_swap:
            image = image[list(self.channel_swap[in_])]
        if in_ in self.raw_scale:
            image = image * np.float32(self.raw_scale[in_])
        if in_ in self.mean:
            image = image - self.mean[in_]
        if in_ in self.input_scale:
            image = image * np.float32(self.input_scale[in_])
        return image.astype(np.float32)

    def deprocess(self, in_: str, data: Any) -> np.ndarray:
        """The inverse of `preprocess` but for the resizing: an image (height, width, channels)."""
        self._shape(in_)
        image = np.array(data, dtype=np.float32)
        image = image.reshape(image.shape[-3:]) if image.ndim > 3 else image
        if in_ in self.input_scale:
            image = image / np.float32(self.input_scale[in_])
        if in_ in self.mean:
            image = image + self.mean[in_]
        if in_ in self.raw_scale:
            image = image / np.float32(self.raw_scale[in_])
        if in_ in self.channel_swap:
            image = image[np.argsort(self.channel_swap[in_])]
        if in_ in self.transpose:
            image = image.transpose(np.argsort(self.transpose[in_]))
        return image

    def set_transpose(self, in_: str, order: Sequence[int]) -> None:
        """The order of axes that makes (channels, height, width) of an image, usually (2, 0, 1)."""
        if len(order) != len(self._shape(in_)) - 1:
            raise DataError(f"transpose order {tuple(order)} for {in_!r}: expected {len(self._shape(in_)) - 1} axes")
        self.transpose[in_] = tuple(order)

    def set_channel_swap(self, in_: str, order: Sequence[int]) -> None:
        """The order of channels: (2, 1, 0) makes BGR of RGB."""
        if len(order) != self._shape(in_)[1]:
            raise DataError(f"channel order {tuple(order)} for {in_!r}: expected {self._shape(in_)[1]} channels")
        self.channel_swap[in_] = tuple(order)

    def set_raw_scale(self, in_: str, scale: float) -> None:
        """The factor before the mean, such as 255 for images in 0..1."""
        self._shape(in_)
        self.raw_scale[in_] = scale

    def set_input_scale(self, in_: str, scale: float) -> None:
        """The factor after the mean."""
        self._shape(in_)
        self.input_scale[in_] = scale

    def set_mean(self, in_: str, mean: Any) -> None:
        """The mean to subtract, channels in the order of the net: (channels,), (height, width), or all three.

        An image of another size is resized to the input's. ValueError for other shapes.
        """
        shape = self._shape(in_)
        mean = np.asarray(mean)
        if mean.ndim == 1:
            if mean.shape[0] != shape[1]:
                raise ValueError(f"the mean has {mean.shape[0]} channels, the input {in_!r} {shape[1]}")
            mean = mean[:, None, None]
        else:
            if mean.ndim == 2:
                mean = mean[None]
            if mean.ndim != 3 or mean.shape[0] not in (1, shape[1]):
                raise ValueError(f"mean shape invalid: {mean.shape} for the input {in_!r} of shape {shape}")
            if mean.shape[1:] != shape[2:]:
                mean = resize_image(mean.transpose(1, 2, 0), shape[2:]).transpose(2, 0, 1)
        self.mean[in_] = mean.astype(np.float32)


def blobproto_to_array(blob: caffe_pb2.BlobProto, return_diff: bool = False) -> np.ndarray:
    """The values (or gradients) of a message, in its shape; float32. ValueError where count and shape differ."""
    values = np.array(blob.diff if return_diff else blob.data, dtype=np.float32)
    if any(blob.HasField(name) for name in ("num", "channels", "height", "width")):
        return values.reshape(blob.num, blob.channels, blob.height, blob.width)
    return values.reshape(tuple(blob.shape.dim))


def array_to_blobproto(arr: Any, diff: Any = None) -> caffe_pb2.BlobProto:
    """A message of an array's values, and optionally gradients."""
    arr = np.asarray(arr)
    blob = caffe_pb2.BlobProto(data=arr.astype(float).ravel().tolist())
    blob.shape.dim.extend(arr.shape)
    if diff is not None:
        blob.diff.extend(np.asarray(diff).astype(float).ravel().tolist())
    return blob


def arraylist_to_blobprotovector_str(arraylist: Iterable[Any]) -> bytes:
    """Arrays as the bytes of a BlobProtoVector."""
    return bytes(caffe_pb2.BlobProtoVector(blobs=[array_to_blobproto(arr) for arr in arraylist]).SerializeToString())


def blobprotovector_str_to_arraylist(str: bytes) -> list[np.ndarray]:
    """The arrays in the bytes of a BlobProtoVector."""
    return [blobproto_to_array(blob) for blob in caffe_pb2.BlobProtoVector.FromString(str).blobs]


def datum_to_array(datum: caffe_pb2.Datum | bytes) -> np.ndarray:
    """The item in a Datum (or its bytes): (channels, height, width), uint8 or float32. Raises `DataError`."""
    return datum_array(parse_datum(datum, "datum") if isinstance(datum, bytes) else datum).copy()
