"""What Caffe's tools around data did: databases out of images, mean images out of databases or folders."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from fcnproto.data.datum import array_to_datum, datum_array, parse_datum
from fcnproto.data.image_data import read_image_list
from fcnproto.data.images import decode, open_image, resize_bilinear
from fcnproto.data.records import is_leveldb, is_lmdb, open_records
from fcnproto.data.writing import Backend, new_database
from fcnproto.errors import DataError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.weights import write_blob

Progress = Callable[[int, int], None]
"""Called with the number of items done and the number of all."""


@dataclass(frozen=True)
class ImageOptions:
    """How images become records; the names are those of Caffe's convert_imageset.

    `encoded` stores encoded images, in the format `encode_type` ("jpg", "png"; empty: each file's own, whose bytes are
    then stored as they are unless the image is resized or changes its number of channels). `resize` is (height, width).
    """

    gray: bool = False
    resize: tuple[int, int] | None = None
    encoded: bool = False
    encode_type: str = ""
    check_size: bool = False


@dataclass
class ConversionReport:
    """How many records were written, and why images were left out."""

    written: int = 0
    failures: list[str] = field(default_factory=list)


def convert_imageset(
    root: str,
    list_file: str,
    database: str,
    options: ImageOptions | None = None,
    *,
    shuffle: bool = False,
    seed: int | None = None,
    backend: Backend = "lmdb",
    progress: Progress | None = None,
) -> ConversionReport:
    """Make a database of the images in a list of lines `path label`, as Caffe's convert_imageset.

    `root` is put before the paths as it stands, so a folder ends in a slash. Keys are the line's index in 8 digits, "_"
    and the path. Images that can't be read are left out and reported. `shuffle` writes the lines in random order
    (repeatable with `seed`). Raises `DataError` where the list can't be read, nothing can be written, or with
    check_size an image differs in size.
    """
    options = options or ImageOptions()
    entries = read_image_list(list_file)
    if shuffle:
        random.Random(seed).shuffle(entries)
    report, first_size = ConversionReport(), 0
    with new_database(database, backend) as writer:
        for index, entry in enumerate(entries):
            try:
                datum = image_to_datum(root, entry, options)
            except DataError as error:
                report.failures.append(str(error))
            else:
                first_size = first_size or len(datum.data)
                if options.check_size and len(datum.data) != first_size:
                    raise DataError(
                        f"{root}{entry[0]}: has {len(datum.data)} bytes of data, the first one {first_size}"
                    )
                writer.put(f"{index:08d}_{entry[0]}".encode(errors="surrogateescape"), datum.SerializeToString())
                report.written += 1
            if progress is not None:
                progress(index + 1, len(entries))
        if not report.written:
            raise DataError(
                f"{list_file}: none of its {len(entries)} images can be read; the first: {report.failures[0]}"
            )
    return report


def image_to_datum(root: str, entry: tuple[str, int], options: ImageOptions) -> caffe_pb2.Datum:
    """The record of one image. Raises `DataError`."""
    name, label = entry
    path = root + name
    image = decode(path, "gray" if options.gray else "color")
    if options.resize is not None:
        image = resize_bilinear(image, *options.resize)
    if not (options.encoded or options.encode_type):
        return array_to_datum(image.transpose(2, 0, 1), label)
    suffix = os.path.splitext(name)[1].lower().lstrip(".")
    kind = (options.encode_type or suffix).lower().lstrip(".")
    if not kind:
        raise DataError(f"{path}: has no suffix that tells its format; give an encode_type")
    if options.resize is None and _same_kind(suffix, kind) and _is_gray(path) == options.gray:
        with open(path, "rb") as file:
            data = file.read()
    else:
        data = _encode(image, kind, path)
    return caffe_pb2.Datum(data=data, label=label, encoded=True)


def _same_kind(suffix: str, kind: str) -> bool:
    return suffix == kind or {suffix, kind} == {"jpg", "jpeg"}


def _is_gray(path: str) -> bool:
    with open_image(path) as image:
        return image.mode.startswith(("1", "L", "I"))


def _encode(image: np.ndarray, kind: str, path: str) -> bytes:
    """An image file's bytes; JPEG in the quality 95 that OpenCV takes by default."""
    format = Image.registered_extensions().get(f".{kind}")
    if format is None:
        raise DataError(f"{path}: {kind!r} is not an image format that can be written")
    pixels = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else np.ascontiguousarray(image[:, :, ::-1]))
    buffer = io.BytesIO()
    try:
        pixels.save(buffer, format, **({"quality": 95} if format == "JPEG" else {}))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: can't be written as {kind}: {error}") from error
    return buffer.getvalue()


@dataclass
class MeanReport:
    """The mean image (channels, height, width), float32, of `count` images; images left out, with the reason."""

    mean: np.ndarray
    count: int
    failures: list[str] = field(default_factory=list)

    @property
    def values(self) -> list[float]:
        """The mean of each channel, as for `mean_value`."""
        return [float(value) for value in self.mean.mean(axis=(1, 2), dtype=np.float64)]


def image_mean(
    source: str,
    *,
    gray: bool = False,
    resize: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> MeanReport:
    """The mean of all records of a database (LMDB, LevelDB), as Caffe's compute_image_mean, or of a folder's images.

    `gray` and `resize` (height, width) apply to a folder's images, which are read as colour images (BGR) otherwise. All
    need one size. Summed in float64, where Caffe's tool loses digits. Raises `DataError`; single unreadable images of a
    folder are left out and reported.
    """
    if is_lmdb(source) or is_leveldb(source):
        if gray or resize is not None:
            raise DataError(f"{source}: is a database; gray and resize apply to folders of images only")
        items, count = _records(source)
    elif os.path.isdir(source):
        items, count = _folder(source, gray, resize)
    else:
        raise DataError(f"{source}: neither a database nor a folder of images")
    total: np.ndarray | None = None
    report = MeanReport(np.zeros((0, 0, 0), np.float32), 0)
    for index, (name, item) in enumerate(items):
        if isinstance(item, DataError):
            report.failures.append(str(item))
        elif total is None:
            total, report.count = item.astype(np.float64), 1
        elif item.shape != total.shape:
            raise DataError(f"{name}: has shape {item.shape}, those before {total.shape}; a mean needs one size")
        else:
            total += item
            report.count += 1
        if progress is not None:
            progress(index + 1, count)
    if total is None:
        raise DataError(f"{source}: no image in it can be read; the first: {report.failures[0]}")
    report.mean = (total / report.count).astype(np.float32)
    return report


def write_mean(path: str, mean: np.ndarray) -> None:
    """Write a mean image (channels, height, width) as the .binaryproto that Caffe reads: 1 x C x H x W."""
    write_blob(path, mean[None])


Items = Iterator[tuple[str, "np.ndarray | DataError"]]


def _records(source: str) -> tuple[Items, int]:
    backend = caffe_pb2.DataParameter.LMDB if is_lmdb(source) else caffe_pb2.DataParameter.LEVELDB
    with closing(open_records(source, backend)) as records:
        count = records.count()

    def items() -> Items:
        with closing(open_records(source, backend)) as records:
            record = records.seek(None)
            for _ in range(count):
                name = f"record {record[0].decode(errors='backslashreplace')!r} of {source}"
                yield name, datum_array(parse_datum(record[1], name), name)
                record = records.next()

    return items(), count


def _folder(source: str, gray: bool, resize: tuple[int, int] | None) -> tuple[Items, int]:
    suffixes = Image.registered_extensions()
    paths = sorted(
        os.path.join(folder, file)
        for folder, _, files in os.walk(source)
        for file in files
        if os.path.splitext(file)[1].lower() in suffixes
    )
    if not paths:
        raise DataError(f"{source}: no images in this folder, nor a database")

    def items() -> Items:
        for path in paths:
            try:
                image = decode(path, "gray" if gray else "color")
            except DataError as error:
                yield path, error
                continue
            if resize is not None:
                image = resize_bilinear(image, *resize)
            yield path, image.transpose(2, 0, 1)

    return items(), len(paths)
