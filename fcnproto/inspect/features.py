"""Blobs of many images in one file: what Caffe's `extract_features` did, by blob name, to HDF5 or npz.

Images of one size are stacked: a dataset (or array) per blob, one row per image, and `image_names` beside them. Images
of several sizes give an entry `<blob>/<image name>` each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fcnproto.errors import DataError, UsageError
from fcnproto.escaping import printable
from fcnproto.images import Preprocessing, open_image
from fcnproto.inspect.running import image_value, run_with, write_array_text, write_arrays
from fcnproto.net import Net
from fcnproto.net.roles import image_inputs
from fcnproto.schema.hdf5_writing import new_hdf5

Array = npt.NDArray[Any]
Pool = Literal["mean", "max"]
Add = Callable[[str, Sequence[str], Array], None]

NAMES = "image_names"
FORMATS = (".h5", ".hdf5", ".npz", ".txt")


def extract_features(
    net: Net,
    images: Sequence[tuple[Path, str]],
    blobs: Sequence[str],
    output: Path,
    how: Preprocessing,
    *,
    kind: str | None = None,
    size: tuple[int, int] | None = None,
    crop: tuple[int, int] | None = None,
    batch: int = 1,
    pool: Pool | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, tuple[int, ...]]:
    """Run the net on every image and write its blobs; an HDF5 file is filled as the images pass.

    Args:
        images: (path, name) of each.
        output: .npz, .h5, .hdf5, or .txt (a line for each image and blob: both names, the shape, the values).
        kind: one of these endings, where the output's own name doesn't say it.
        how: the preprocessing of the net's image input.
        size, crop: (height, width) to scale images to, then to cut out of their middle.
        batch: images run at a time, where all have one size.
        pool: the mean or maximum over height and width instead of the whole blob.
        progress: called with the name of every image done.

    Returns the shape of each array written, by its name in the file. Raises `DataError` for images that can't be read,
    `UsageError` for another ending or a net with several image inputs, `GraphError` for an unknown blob.
    """
    if not images:
        raise UsageError("no images are given")
    if NAMES in blobs:
        raise UsageError(f"blob {NAMES!r} has the name under which the images are listed; it can't be written")
    images = [(path, _encodable(name)) for path, name in images]
    inputs = image_inputs(net, blobs)
    if len(inputs) > 1:
        raise UsageError(
            f"the net needs {', '.join(map(repr, inputs))}; features are taken of nets with one image input"
        )
    alike = size is not None or crop is not None or len({open_image(path).size for path, _ in images}) == 1
    step = batch if alike else 1
    with _writer(output, kind or output.suffix.lower(), alike, len(images)) as (add, shapes), torch.no_grad():
        for start in range(0, len(images), step):
            part = images[start : start + step]
            values = torch.cat([image_value(path, how, size, crop) for path, _ in part])
            for blob, rows in rows_of(net, inputs[0], values, blobs, pool).items():
                add(blob, [name for _, name in part], rows)
            for _, name in part:
                progress(name)
    return shapes


def rows_of(net: Net, input: str, values: Tensor, blobs: Sequence[str], pool: Pool | None) -> dict[str, Array]:
    """The blobs of images that are run together, on the CPU, a row for each. `DataError` where a blob has others."""
    found = run_with(net, {input: values.to(net.device)}, blobs)
    result = {}
    for blob in blobs:
        result[blob] = _pooled(found[blob], pool).float().cpu().numpy()
        if result[blob].shape[:1] != (len(values),):
            raise DataError(f"blob {blob!r} of shape {result[blob].shape} has no row for each of {len(values)} images")
    return result


def _encodable(name: str) -> str:
    """A file's name as a key: bytes that are no UTF-8, which neither format can hold, become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def _pooled(value: Tensor, pool: Pool | None) -> Tensor:
    if pool is None or value.dim() < 3:
        return value
    axes = tuple(range(2, value.dim()))
    return value.mean(axes) if pool == "mean" else value.amax(axes)


@contextmanager
def _writer(output: Path, ending: str, alike: bool, count: int) -> Iterator[tuple[Add, dict[str, tuple[int, ...]]]]:
    """Gives a function that takes (blob, image names, rows), and the table of shapes that it fills."""
    shapes: dict[str, tuple[int, ...]] = {}
    if ending == ".npz":
        arrays: dict[str, list[Array]] = {}
        names: dict[str, None] = {}

        def keep(blob: str, images: Sequence[str], rows: Array) -> None:
            names.update(dict.fromkeys(images))
            for name, row in zip(images, rows, strict=True):
                arrays.setdefault(blob if alike else f"{blob}/{name}", []).append(row)

        yield keep, shapes
        stacked = {key: np.stack(rows) if alike else rows[0] for key, rows in arrays.items()}
        shapes.update({key: value.shape for key, value in stacked.items()})
        write_arrays(output, {**stacked, NAMES: np.array(list(names))})
    elif ending in (".h5", ".hdf5"):
        with new_hdf5(output) as (file, check):
            add = _hdf5_adder(file, alike, count, shapes)

            def add_checked(blob: str, images: Sequence[str], rows: Array) -> None:
                add(blob, images, rows)
                check()

            yield add_checked, shapes
    elif ending == ".txt":
        lines: list[tuple[str, str, Array]] = []

        def list_rows(blob: str, images: Sequence[str], rows: Array) -> None:
            lines.extend((name, blob, row) for name, row in zip(images, rows, strict=True))
            shapes[blob] = (count, *rows.shape[1:])

        yield list_rows, shapes
        write_array_text(output, lines)
    else:
        raise UsageError(f"{output}: the name must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")


def _hdf5_adder(file: h5py.File, alike: bool, count: int, shapes: dict[str, tuple[int, ...]]) -> Add:
    done: dict[str, int] = {}
    listed = file.create_dataset(NAMES, (count,), dtype=h5py.string_dtype())

    def add(blob: str, images: Sequence[str], rows: Array) -> None:
        start = done.get(blob, 0)
        done[blob] = start + len(images)
        listed[start : start + len(images)] = list(images)
        if not alike:
            key = f"{blob}/{images[0]}"
            _create(file, key, data=rows[0])
            shapes[key] = rows[0].shape
            return
        if blob not in file:
            shapes[blob] = (count, *rows.shape[1:])
            _create(file, blob, shape=shapes[blob], dtype=rows.dtype)
        file[blob][start : start + len(images)] = rows

    return add


def _create(file: h5py.File, key: str, **options: Any) -> None:
    """A dataset of that name. UsageError where HDF5 has none such: slashes make groups in it, a NUL ends a name."""
    try:
        if "\0" in key:
            raise ValueError("a NUL would end the name")
        file.create_dataset(key, **options)
    except ValueError as error:
        raise UsageError(f"HDF5 can't hold an array called {key!r} ({error}); write .npz") from None


def summary(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The arrays written, in a few words."""
    listed = [f"{printable(name, 60)} {'x'.join(map(str, shape))}" for name, shape in shapes.items()]
    return ", ".join(listed[:4]) + (f", and {len(listed) - 4} more" if len(listed) > 4 else "")
