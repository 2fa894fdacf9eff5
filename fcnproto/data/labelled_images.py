"""Layers of segmentation forks that read lists of an image and an image of labels: DenseImageData, ImageSegData and
ImageLabelmapData. They read as ImageData does; an image and its labels are cropped and mirrored alike."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fcnproto.data.image_data import Entry, ImageData
from fcnproto.data.images import decode, resize_bilinear
from fcnproto.data.paths import read_list, resolve
from fcnproto.data.resizing import nearest
from fcnproto.data.transform import DataTransform
from fcnproto.errors import DataError
from fcnproto.layers.base import Shape
from fcnproto.layers.registry import register
from fcnproto.layers.source import PartialShape
from fcnproto.schema import caffe_pb2

_PIXEL, _IMAGE = caffe_pb2.ImageDataParameter.PIXEL, caffe_pb2.ImageDataParameter.IMAGE
_PLAIN = DataTransform(caffe_pb2.TransformationParameter())
"""Crops and mirrors alone: for labels."""


class Labelled(NamedTuple):
    """An image (channels, height, width), its labels (1, height, width) and the height and width in the file."""

    image: np.ndarray
    labels: np.ndarray
    size: tuple[int, int]


def read_pairs(path: str, words: int) -> list[Entry]:
    """The lines of a list file, each with `words` words (1 or 2) divided by blanks; further ones are not read.

    Empty lines are passed over. Raises `DataError` with file and line.
    """
    entries: list[Entry] = []
    for number, line in enumerate(read_list(path, "list of images").split("\n"), start=1):
        found = line.split()
        if not found:
            continue
        if len(found) < words:
            raise DataError(f"{path}:{number}: expected an image and its labels, found {line.strip()!r}")
        entries.append((found[0], found[1] if words == 2 else ""))
    if not entries:
        raise DataError(f"{path}: the list of images is empty")
    return entries


class _LabelledImages(ImageData):
    """What the three layers have in common."""

    tops: ClassVar[tuple[int, int | None]] = (2, 2)

    def _read_entries(self) -> list[Entry]:
        return read_pairs(resolve(self.config.source, self.base_dir, f"{self.config_field}.source"), 2)

    divided = 1
    """How many times smaller images of labels are than their images, along both axes."""

    def declared_shapes(self) -> list[PartialShape]:
        data, _ = super().declared_shapes()
        assert data is not None
        return [data, self._label_shape(data), (data[0], 1, 1, 2)][: self.num_tops]

    def _label_shape(self, data: tuple[int | None, ...]) -> PartialShape:
        return (data[0], 1, *(None if extent is None else extent // self.divided for extent in data[2:]))

    def top_shapes(self, shapes: Sequence[Shape]) -> list[PartialShape]:
        data, *others = self.declared_shapes()
        if data is not None and None in data:
            with suppress(DataError):  # said when the first batch is asked for
                data = (*data[:2], *self._first_size())
                others[0] = self._label_shape(data)
        return [data, *others]

    def forward(self) -> tuple[Tensor, ...]:
        images: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        sizes: list[tuple[int, int]] = []
        try:
            for entry in self._batch():
                found = self._placed(self._read(entry))
                images.append(found.image)
                labels.append(found.labels)
                sizes.append((min(found.size[0], found.image.shape[1]), min(found.size[1], found.image.shape[2])))
                self._check_size(entry, images)
        except DataError as error:
            self.data_error(str(error))
        dims = torch.tensor(sizes, dtype=torch.float32, device="cpu").reshape(-1, 1, 1, 2)
        return (torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels)), dims)[: self.num_tops]

    def _read(self, entry: Entry) -> Labelled:
        image = decode(self._path(entry), "color" if self.config.is_color else "gray")
        size = image.shape[0], image.shape[1]
        labels = self._labels(entry, size)
        if labels.shape[:2] != size:
            raise DataError(f"{entry[1]} has {labels.shape[:2]} labels for {entry[0]} of {size} pixels")
        if self.config.new_height:
            image = resize_bilinear(image, self.config.new_height, self.config.new_width)
            labels = self._resized(labels)
        return Labelled(image.transpose(2, 0, 1), self._encoded(labels).transpose(2, 0, 1), size)

    def _labels(self, entry: Entry, size: tuple[int, int]) -> np.ndarray:
        """The labels (height, width, 1) of an entry whose image has `size`."""
        return decode(resolve(f"{self.config.root_folder}{entry[1]}", self.base_dir, "image of labels"), "gray")

    def _resized(self, labels: np.ndarray) -> np.ndarray:
        rows, columns = (
            nearest(labels.shape[0], self.config.new_height // self.divided),
            nearest(labels.shape[1], self.config.new_width // self.divided),
        )
        return labels[rows][:, columns]

    def _encoded(self, labels: np.ndarray) -> np.ndarray:
        """What the pixels of a label image stand for."""
        return labels

    def _placed(self, found: Labelled) -> Labelled:
        """Image and labels cropped and mirrored alike, the image less its mean, as float32."""
        place = self.transform.place(found.image.shape, self.training, self._random())
        image, labels = self.transform.apply(found.image, place), _PLAIN.apply(found.labels, place)
        return Labelled(image, labels, found.size)

    def _random(self) -> np.random.Generator | None:
        return self.generator if self.transform.is_random(self.training) else None


@register("DenseImageData")
class DenseImageData(_LabelledImages):
    """SegNet's DenseImageData: images and images of labels out of a list of lines `image labels`, in order or shuffled.

    Tops: data (batch, 3 or 1, height, width), BGR, and label (batch, 1, height, width), the grey values of the label
    image. With new_height and new_width images are resized, label images by the nearest pixel. `transform_param` says
    mean and scale of the image; crops and mirroring are refused, as in the fork. ENet's `label_divide_factor` makes
    images of labels that many times smaller.
    """

    fork = "SegNet, ENet"
    config_field = "dense_image_data_param"
    differences = "several workers deal the lines out among them, and images are decoded by Pillow, as for ImageData."

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        if self.transform.param.mirror or self.transform.crop[0]:
            self.fail("transform_param: images and labels can't be cropped or mirrored here, nor in SegNet's Caffe")
        self.warn_unread(("crop_width", "crop_height"), "SegNet's Caffe doesn't read it")
        self.divided = self.config.label_divide_factor
        if self.divided != 1 and not (self.divided and self.config.new_height):
            self.fail(f"label_divide_factor {self.divided} must be positive, and goes with new_height and new_width")


@register("ImageSegData")
class ImageSegData(_LabelledImages):
    """DeepLab's and PSPNet's ImageSegData: images and their labels out of a list, in order or shuffled.

    The labels are, by `image_data_param.label_type`, the grey values of an image that each line names second (PIXEL,
    the default), the whole number in that place (IMAGE), or `ignore_label` (NONE) everywhere. Tops: data (batch, 3 or
    1, height, width), label (batch, 1, height, width), and the height and width of each image in the file, at most the
    top's, (batch, 1, 1, 2). Images and labels are cropped (at random in TRAIN) and mirrored alike; what is smaller than
    the crop is padded below and to the right, in the dialect "pspnet" around, with the mean and `ignore_label`.
    """

    fork = "DeepLab, PSPNet"
    tops = (2, 3)
    fork_fields: ClassVar[tuple[str, ...]] = (
        "transform_param.crop_h",
        "transform_param.crop_w",
        "transform_param.crop_height",
        "transform_param.crop_width",
        "image_data_param.label_type",
        "image_data_param.ignore_label",
    )
    differences = "label images are resized by the nearest pixel (DeepLab's first version mixes neighbouring labels)."

    def __init__(self, param: Any, num_tops: int | None = None) -> None:
        super().__init__(param, num_tops)
        own = caffe_pb2.TransformationParameter()
        own.CopyFrom(param.transform_param)
        own.crop_h, own.crop_w = own.crop_h or own.crop_height, own.crop_w or own.crop_width
        self.transform = DataTransform(own)

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        if self.transform.param.HasField("mean_file"):
            self.fail("transform_param.mean_file isn't possible here, nor in the fork; give mean_value")

    def _read_entries(self) -> list[Entry]:
        named = self.config.label_type in (_PIXEL, _IMAGE)
        return read_pairs(resolve(self.config.source, self.base_dir, "image_data_param.source"), 2 if named else 1)

    def _labels(self, entry: Entry, size: tuple[int, int]) -> np.ndarray:
        if self.config.label_type == _PIXEL:
            return super()._labels(entry, size)
        label = self.config.ignore_label
        if self.config.label_type == _IMAGE:
            try:
                label = int(entry[1])
            except ValueError:
                raise DataError(f"{self.config.source}: the label of {entry[0]}, {entry[1]!r}, is no number") from None
        return np.full((*size, 1), min(max(label, 0), 255), dtype=np.uint8)

    def _placed(self, found: Labelled) -> Labelled:
        crop, shape = self.transform.crop, found.image.shape
        missing = [max(0, crop[axis] - shape[1 + axis]) for axis in (0, 1)]
        if any(missing):
            before = [amount // 2 if self.dialect == "pspnet" else 0 for amount in missing]
            ends = [(0, 0), *((first, both - first) for first, both in zip(before, missing, strict=True))]
            means = np.array([*self.transform.param.mean_value], dtype=np.float32)
            if len(means) not in (1, shape[0]):  # none given, or a number that is refused below
                means = np.zeros(1, dtype=np.float32)
            image = np.broadcast_to(
                means[:, None, None], (shape[0], shape[1] + missing[0], shape[2] + missing[1])
            ).copy()
            image[:, before[0] : before[0] + shape[1], before[1] : before[1] + shape[2]] = found.image
            labels = np.pad(found.labels, ends, constant_values=min(max(self.config.ignore_label, 0), 255))
            found = Labelled(image, labels, found.size)
        return super()._placed(found)


@register("ImageLabelmapData")
class ImageLabelmapData(_LabelledImages):
    """HED's ImageLabelmapData: images and images of edges out of a list of lines `image labels`, in order or shuffled.

    Tops: data (batch, 3 or 1, height, width), BGR, and label (batch, 1, height, width), 1 where the edge image is above
    127, else 0. Both are resized alike to new_height x new_width, cropped at random in both phases, and mirrored.
    """

    fork = "HED, RCF, DeepSkeleton"
    differences = "labels are mirrored with their image (HED's code leaves them as they are)."

    def _resized(self, labels: np.ndarray) -> np.ndarray:
        return resize_bilinear(labels, self.config.new_height, self.config.new_width)

    def _encoded(self, labels: np.ndarray) -> np.ndarray:
        return (labels > 127).astype(np.uint8)

    def _placed(self, found: Labelled) -> Labelled:
        place = self.transform.place(found.image.shape, True, self._random())
        image, labels = self.transform.apply(found.image, place), _PLAIN.apply(found.labels, place)
        return Labelled(image, labels, found.size)

    def _random(self) -> np.random.Generator | None:
        return self.generator if self.transform.is_random(True) else None
