"""Running any net on images or arrays: what it is given, what it gives, and the best classes of a classifier.

Files in, files out; for label maps see `segment/segmenter.py`.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fcnproto import precision
from fcnproto.atomic import atomic_write
from fcnproto.errors import DataError, UsageError
from fcnproto.escaping import printable
from fcnproto.images import Picture, Preprocessing, as_image, resize, to_blob
from fcnproto.net import Net
from fcnproto.schema.arrays import is_archive, read_npy, read_npz

Array = npt.NDArray[Any]
PathLike = str | os.PathLike[str]

_GOLDEN_PREFIX = "in."
_OTHER_GOLDEN = ("out.", "gout.", "gin.", "param.", "gparam.")


def run_with(net: Net, values: Mapping[str, Tensor], blobs: Sequence[str]) -> Mapping[str, Tensor]:
    """The net's outputs that can be computed from `values` alone, and `blobs`.

    Unlike in calling the net, data layers that read files are left out; DummyData layers make their data. Raises
    `GraphError` where a blob, or every output, needs another input.
    """
    idle = [layer for layer in net.data_layers() if not any(top in values for top in layer.param.top)]
    if all(layer.makes_data for layer in idle):
        outputs: Mapping[str, Tensor] = net(dict(values), blobs=list(blobs))
        return outputs
    made = dict(values)
    for layer in idle:
        if layer.makes_data:
            made |= {top: value.to(net.device, net.dtype) for top, value in zip(layer.param.top, layer(), strict=True)}
    plan = net.plan(list(made), list(blobs))
    with precision.in_force(net.device) as in_force_backward:
        results = plan.module(*(made[name] for name in plan.inputs))
        in_force_backward(results)
    return {name: results[position] for name, position in plan.keys.items()}


def image_value(
    path: PathLike,
    how: Preprocessing,
    size: tuple[int, int] | None = None,
    crop: tuple[int, int] | None = None,
) -> Tensor:
    """The value (1, channels, height, width) of an input for an image file, scaled to `size`, then cut in the middle to
    `crop` (both height, width). Raises `DataError`."""
    return value_of(as_image(path, how.kind, how.bands), how, size, crop, path)


def value_of(
    image: Picture,
    how: Preprocessing,
    size: tuple[int, int] | None,
    crop: tuple[int, int] | None,
    path: PathLike,
) -> Tensor:
    """As `image_value`, for an image that was read; `path` is for messages."""
    if size is not None:
        image = resize(image, *size)
    if crop is not None:
        image = _centre(image, *crop, path)
    try:
        return torch.from_numpy(to_blob(image, how))[None]
    except DataError as error:
        raise DataError(f"{os.fspath(path)}: {error}") from error


def _centre(image: Picture, height: int, width: int, path: PathLike) -> Picture:
    if height > image.height or width > image.width:
        raise DataError(
            f"{os.fspath(path)}: the image of {image.width}x{image.height} pixels is smaller than the crop of "
            f"{width}x{height}; scale it first (--resize)"
        )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def read_arrays(path: PathLike, net: Net) -> dict[str, Tensor]:
    """The inputs in an .npz file, by blob name, or in an .npy file for a net with one input.

    Of a golden file (keys `in.<blob>`, `out.<blob>`, ...) the inputs are taken. Raises `DataError`.
    """
    file, inputs = Path(path), list(net.source_shapes)
    if not is_archive(file):
        content = read_npy(file)
        if len(inputs) != 1:
            raise DataError(
                f"{file}: one array, but the net has the inputs {', '.join(inputs)}; give them in an .npz file"
            )
        return {inputs[0]: _tensor(content, file, inputs[0])}
    found = dict(read_npz(file, lambda key: key in inputs or not key.startswith(_OTHER_GOLDEN)))
    prefix = "" if any(key in net.source_shapes for key in found) else _GOLDEN_PREFIX
    arrays = {key[len(prefix) :]: value for key, value in found.items() if key.startswith(prefix)}
    unknown = [name for name in arrays if name not in net.source_shapes]
    if unknown or not arrays:
        what = f"{unknown[0]!r} is no input of the net" if unknown else "no inputs in it"
        raise DataError(f"{file}: {what}; the inputs are {', '.join(map(repr, net.source_shapes)) or 'none'}")
    return {name: _tensor(array, file, name) for name, array in arrays.items()}


def read_array(path: PathLike, name: str) -> Tensor:
    """The input `name` in an .npy file, or under its own name in an .npz file. Raises `DataError`."""
    file = Path(path)
    if not is_archive(file):
        return _tensor(read_npy(file), file, name)
    found = dict(read_npz(file, lambda key: key == name))
    if name not in found:
        raise DataError(f"{file}: holds no array called {name!r}")
    return _tensor(found[name], file, name)


def _tensor(array: Array, file: Path, name: str) -> Tensor:
    if array.dtype.kind not in "fiub":
        raise DataError(f"{file}: {name!r} holds no numbers (its type is {array.dtype})")
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if native.dtype.kind in "ub" and native.dtype.itemsize > 1:
        native = native.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(native).reshape(native.shape))


def write_arrays(path: PathLike, arrays: Mapping[str, Array]) -> None:
    """Write an .npz file of arrays under any names (`numpy.savez` has words of its own among them).

    `UsageError` for a name with a NUL, where the archive's directory would end it.
    """
    for name in arrays:
        if "\0" in name:
            raise UsageError(f"{os.fspath(path)}: an .npz file can't hold an array called {name!r}: it has a NUL")
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def write_array_text(path: PathLike, arrays: Iterable[tuple[str, str, Array]]) -> None:
    """Write arrays as text, a line each: a name, the blob's, the shape as 1x3x5, the values; tabs between them.

    Values have the digits that read back to the same float32."""
    with atomic_write(path, "w") as file:
        for name, blob, array in arrays:
            fields = [name, blob, "x".join(map(str, array.shape)), *map(str, array.reshape(-1))]
            file.write("\t".join(map(printable, fields)) + "\n")


def best_classes(scores: Array, count: int) -> list[tuple[int, float]]:
    """The `count` highest of a classifier's scores (classes,) or (classes, 1, 1): (class, score), the highest first."""
    flat = scores.reshape(-1)
    if flat.size != scores.shape[0]:
        raise UsageError(f"scores of shape {scores.shape} are not those of a classifier, which have shape (classes,)")
    order = np.argsort(-flat, kind="stable")[:count]
    return [(int(index), float(flat[index])) for index in order]
