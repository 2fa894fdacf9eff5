"""Caffe's data transformation (`transform_param`): crop, mirror, mean, scale. For one item at a time, in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from fcnproto.data.paths import resolve
from fcnproto.errors import DataError, WeightsError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.weights import read_blob


def read_mean_image(name: str, base_dir: str | None) -> np.ndarray:
    """The mean image (channels, height, width) in a .binaryproto. Raises `DataError`."""
    path = resolve(name, base_dir, "mean_file")
    try:
        mean = np.asarray(read_blob(path), dtype=np.float32)
    except WeightsError as error:
        raise DataError(str(error)) from error
    if mean.ndim == 4 and mean.shape[0] == 1:
        mean = mean[0]
    if mean.ndim != 3:
        raise DataError(
            f"{path}: holds a blob of shape {mean.shape}, expected a mean image (1, channels, height, width)"
        )
    return mean


class Placement(NamedTuple):
    """What was drawn for an item: the window that is cropped, and whether it is mirrored."""

    top: int
    left: int
    rows: int
    columns: int
    mirror: bool


@dataclass
class DataTransform:
    """The transformation that a `TransformationParameter` describes.

    For an item (channels, height, width): take a crop (random in TRAIN, else the centre), subtract the mean, multiply
    by the scale, mirror. The mean image has the item's own size and is taken at the crop's place, before mirroring.
    Mirroring is random in the TEST phase as well, as in Caffe.
    """

    param: caffe_pb2.TransformationParameter
    base_dir: str | None = None
    mean_image: np.ndarray | None = field(default=None, repr=False)

    def problem(self) -> str | None:
        """What is contradictory in the settings, or None."""
        if self.param.HasField("mean_file") and self.param.mean_value:
            return "transform_param: give mean_file or mean_value, not both"
        if self.param.force_color and self.param.force_gray:
            return "transform_param: give force_color or force_gray, not both"
        if bool(self.param.crop_h) != bool(self.param.crop_w):
            return "transform_param: give crop_h and crop_w together"
        return None

    def output_shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        """The shape that an item of this size is given. Raises `DataError` where it is smaller than the crop."""
        rows, columns = self.crop
        if not rows:
            return channels, height, width
        if height < rows or width < columns:
            size = f"crop_size {rows}" if self.param.crop_size else f"a crop of {rows} x {columns}"
            raise DataError(f"an item of {height} x {width} is smaller than {size}")
        return channels, rows, columns

    @property
    def crop(self) -> tuple[int, int]:
        """The height and width of the crop, 0 where there is none: crop_size, or SSD's crop_h and crop_w."""
        if self.param.crop_size:
            return self.param.crop_size, self.param.crop_size
        return self.param.crop_h, self.param.crop_w

    def __call__(self, item: np.ndarray, train: bool, generator: np.random.Generator | None) -> np.ndarray:
        """Transform an item (channels, height, width) of uint8 or float32 to float32.

        `generator` may be None where `is_random(train)` is False. Raises `DataError`.
        """
        return self.apply(item, self.place(item.shape, train, generator))

    def place(self, shape: Sequence[int], train: bool, generator: np.random.Generator | None) -> Placement:
        """Draw what is random for an item of shape (channels, height, width).

        In Caffe's order: mirror, then the crop's row, then its column. `generator` may be None where
        `is_random(train)` is False. Raises `DataError`.
        """
        channels, height, width = shape
        _, rows, columns = self.output_shape(channels, height, width)
        mirror = bool(self.param.mirror and _draw(generator, 2))
        if self.crop[0] and train:
            return Placement(
                _draw(generator, height - rows + 1), _draw(generator, width - columns + 1), rows, columns, mirror
            )
        return Placement((height - rows) // 2, (width - columns) // 2, rows, columns, mirror)

    def apply(self, item: np.ndarray, at: Placement) -> np.ndarray:
        """An item (channels, height, width) cropped, less the mean, scaled and mirrored, as float32."""
        window = (slice(None), slice(at.top, at.top + at.rows), slice(at.left, at.left + at.columns))
        result = item[window].astype(np.float32)
        mean = self._mean(item.shape)
        if mean is not None:
            result -= mean[window] if mean.shape == item.shape else mean
        if self.param.scale != 1:
            result *= np.float32(self.param.scale)
        return result[:, :, ::-1] if at.mirror else result

    def is_random(self, train: bool) -> bool:
        """Whether random numbers are drawn at all (Caffe makes a generator only then)."""
        return bool(self.param.mirror or (train and self.crop[0]))

    def _mean(self, shape: tuple[int, ...]) -> np.ndarray | None:
        """What to subtract: an image of the item's shape, or (channels or 1, 1, 1), or nothing."""
        if self.param.HasField("mean_file"):
            if self.mean_image is None:
                self.mean_image = read_mean_image(self.param.mean_file, self.base_dir)
            if self.mean_image.shape != shape:
                raise DataError(
                    f"the mean image {self.param.mean_file!r} has shape {self.mean_image.shape}, but an item (before "
                    f"cropping) {tuple(shape)}"
                )
            return self.mean_image
        values = self.param.mean_value
        if not values:
            return None
        if len(values) not in (1, shape[0]):
            raise DataError(f"{len(values)} mean_values for {shape[0]} channels; give one, or one for each channel")
        return np.array(values, dtype=np.float32)[:, None, None]


def _draw(generator: np.random.Generator | None, count: int) -> int:
    """A whole number from 0 to count - 1."""
    assert generator is not None
    return int(generator.integers(count))
