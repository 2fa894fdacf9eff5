"""The WindowData layer: windows cut out of images for training detectors (R-CNN)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcnproto.data.images import decode, resize_bilinear
from fcnproto.data.paths import read_list, resolve
from fcnproto.data.transform import read_mean_image
from fcnproto.errors import DataError
from fcnproto.layers.base import Shape
from fcnproto.layers.registry import register
from fcnproto.layers.source import PartialShape, SourceLayer


@dataclass(frozen=True)
class Window:
    """A window of an image: label (0 background) and its corners, both inclusive."""

    image: str
    label: int
    x1: int
    y1: int
    x2: int
    y2: int


@dataclass
class WindowLists:
    """The windows of a file that training draws from."""

    foreground: list[Window]
    background: list[Window]


@dataclass(frozen=True)
class Placement:
    """Which pixels of the image fill which part of the crop: corners (inclusive), the part's size, what is left free
    above it, and to its left and right."""

    x1: int
    y1: int
    x2: int
    y2: int
    height: int
    width: int
    above: int
    left: int
    right: int


def read_windows(path: str, foreground_from: float, background_below: float) -> WindowLists:
    """The windows in a window file, sorted by their overlap with an object; those between the limits are dropped.

    The file: for each image `# index`, its path, channels, height, width, the number of windows, and for each of
    these `class overlap x1 y1 x2 y2`. Raises `DataError`.
    """
    words = iter(read_list(path, "window file").split())
    lists = WindowLists([], [])
    images = 0
    try:
        for mark in words:
            if mark != "#":
                raise DataError(f"{path}: expected '#' before image {images}, found {mark!r}")
            _read_image(words, lists, foreground_from, background_below)
            images += 1
    except (ValueError, StopIteration, RuntimeError) as error:
        raise DataError(f"{path}: image {images}: damaged or incomplete ({error or 'the file ends'})") from None
    except DataError as error:
        raise DataError(f"{path}: image {images}: {error}") from None
    if not images:
        raise DataError(f"{path}: the window file is empty")
    return lists


def _read_image(words: Iterator[str], lists: WindowLists, foreground_from: float, background_below: float) -> None:
    next(words)  # the image's index
    image = next(words)
    channels = int(next(words))
    if channels != 3:
        raise DataError(f"{image} has {channels} channels; windows are cut out of 3-channel images")
    next(words), next(words)  # height and width: the image itself knows them
    for _ in range(int(next(words))):
        label, overlap = int(next(words)), float(next(words))
        corners = [int(next(words)) for _ in range(4)]
        if overlap >= foreground_from:
            if label <= 0:
                raise DataError(f"a foreground window (overlap {overlap:g}) has class {label}, expected 1 or more")
            lists.foreground.append(Window(image, label, *corners))
        elif overlap < background_below:
            lists.background.append(Window(image, 0, *corners))


def _round(value: np.floating) -> int:
    """C's round: halves away from zero."""
    return int(math.copysign(math.floor(abs(float(value)) + 0.5), float(value)))


def place_window(window: Window, image_size: tuple[int, int], crop: int, pad: int, square: bool) -> Placement:
    """Where a window goes in a crop x crop picture, with `pad` pixels of context on every side of it.

    The window is widened by crop / (crop - 2 pad) about its centre, to a square first if `square`; what of it lies
    outside of the image (height, width) stays free. Rounding as in Caffe (float32). Raises `DataError`.
    """
    rows, columns = image_size
    x1, y1, x2, y2 = window.x1, window.y1, window.x2, window.y2
    if not pad and not square:
        _check_inside(window, x1, y1, x2, y2, image_size)
        return Placement(x1, y1, x2, y2, crop, crop, 0, 0, 0)
    if crop <= 2 * pad:
        raise DataError(f"context_pad {pad} leaves nothing of crop_size {crop}")
    two = np.float32(2)
    factor = np.float32(crop) / np.float32(crop - 2 * pad)
    half_height, half_width = np.float32(y2 - y1 + 1) / two, np.float32(x2 - x1 + 1) / two
    middle_x, middle_y = np.float32(x1) + half_width, np.float32(y1) + half_height
    if square:
        half_height = half_width = max(half_height, half_width)
    x1, x2 = _round(middle_x - half_width * factor), _round(middle_x + half_width * factor)
    y1, y2 = _round(middle_y - half_height * factor), _round(middle_y + half_height * factor)
    scale_x = np.float32(crop) / np.float32(x2 - x1 + 1)
    scale_y = np.float32(crop) / np.float32(y2 - y1 + 1)
    over_left, over_right = max(0, -x1), max(0, x2 - columns + 1)
    over_top, over_bottom = max(0, -y1), max(0, y2 - rows + 1)
    x1, x2, y1, y2 = x1 + over_left, x2 - over_right, y1 + over_top, y2 - over_bottom
    _check_inside(window, x1, y1, x2, y2, image_size)
    return Placement(
        x1,
        y1,
        x2,
        y2,
        _round(np.float32(y2 - y1 + 1) * scale_y),
        _round(np.float32(x2 - x1 + 1) * scale_x),
        _round(np.float32(over_top) * scale_y),
        _round(np.float32(over_left) * scale_x),
        _round(np.float32(over_right) * scale_x),
    )


def _check_inside(window: Window, x1: int, y1: int, x2: int, y2: int, image_size: tuple[int, int]) -> None:
    rows, columns = image_size
    if not (0 <= x1 <= x2 < columns and 0 <= y1 <= y2 < rows):
        raise DataError(f"{window.image}: {window} does not lie in the image of {rows} x {columns}")


@register("WindowData")
class WindowData(SourceLayer):
    """Caffe's WindowData: windows drawn at random, with replacement, and warped to crop_size x crop_size.

    A batch has first backgrounds, then int(batch * fg_fraction) foregrounds. Tops: data (batch, 3, crop, crop) in BGR,
    and label (batch,). crop_size, mirror and the mean come from `transform_param`, the scale from `window_data_param`,
    as in Caffe. What lies outside of the image is 0 after the mean was subtracted. Random in the TEST phase as well. A
    window belongs to the image that it is listed under, whatever index the file gives that image.
    """

    differences = (
        "images are decoded by Pillow, not OpenCV. A window belongs to the image that it is listed under, whatever "
        "index the file gives it (Caffe reads past its list). A `crop_mode` other than warp and square is an error "
        "(Caffe warps), and so is an image that can't be read (Caffe leaves the rest of the batch empty)."
    )
    config_field = "window_data_param"
    also_reads = ("transform_param",)
    tops = (2, 2)
    handles = ("windows", "mean", "encoded")

    def __init__(self, param: Any, num_tops: int | None = None) -> None:
        super().__init__(param, num_tops)
        self.windows: WindowLists | None = None
        self.mean: np.ndarray | None = None
        self.encoded: dict[str, bytes] | None = None
        """The files read so far, with cache_images."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        config, transform = self.config, self.param.transform_param
        if config.batch_size == 0:
            self.fail("window_data_param needs a batch_size above 0")
        if transform.crop_size == 0:
            self.fail("transform_param needs a crop_size above 0")
        if config.crop_mode not in ("warp", "square"):
            self.fail(f"crop_mode {config.crop_mode!r}; expected 'warp' or 'square'")
        if transform.HasField("mean_file") and transform.mean_value:
            self.fail("transform_param: give mean_file or mean_value, not both")
        if len(transform.mean_value) not in (0, 1, 3):
            self.fail(f"{len(transform.mean_value)} mean_values for 3 channels; give one, or one for each channel")
        self.warn_unread(("mean_file", "crop_size", "mirror"), "Caffe reads it in transform_param only")
        for name in ("scale", "force_color", "force_gray"):
            if transform.HasField(name):
                self.warn(f"transform_param.{name} has no effect; nor has it in Caffe")

    def top_shapes(self, shapes: Sequence[Shape]) -> list[PartialShape]:
        batch, crop = self.config.batch_size, self.param.transform_param.crop_size
        return [(batch, 3, crop, crop), (batch,)]

    def forward(self) -> tuple[Tensor, ...]:
        config = self.config
        foregrounds = int(np.float32(config.batch_size) * np.float32(config.fg_fraction))
        try:
            if self.windows is None:
                path = resolve(config.source, self.base_dir, "window_data_param.source")
                self.windows = read_windows(path, config.fg_threshold, config.bg_threshold)
            kinds = [("background", self.windows.background, config.batch_size - foregrounds)]
            kinds.append(("foreground", self.windows.foreground, foregrounds))
            items, labels = [], []
            for kind, windows, count in kinds:
                if count and not windows:
                    raise DataError(f"{config.source} has no {kind} windows, but a batch needs {count}")
                for _ in range(count):
                    window = windows[int(self.generator.integers(len(windows)))]
                    items.append(self._cut(window))
                    labels.append(window.label)
        except DataError as error:
            self.data_error(str(error))
        return torch.from_numpy(np.stack(items)), torch.tensor(labels, dtype=torch.float32, device="cpu")

    def _cut(self, window: Window) -> np.ndarray:
        """(3, crop, crop): the window's pixels, warped, mirrored by chance, less the mean, scaled."""
        crop = self.param.transform_param.crop_size
        mirror = bool(self.param.transform_param.mirror and self.generator.integers(2))
        image = self._image(window.image)
        square = self.config.crop_mode == "square"
        place = place_window(window, (image.shape[0], image.shape[1]), crop, self.config.context_pad, square)
        # The free margin is mirrored with the picture.
        top, left = place.above, place.right if mirror else place.left
        # Rounding can make the picture one pixel too large for the rest of the crop.
        height, width = min(place.height, crop - top), min(place.width, crop - left)
        if height < 1 or width < 1:
            raise DataError(f"{window.image}: {window} has nothing of the image in it")
        pixels = resize_bilinear(image[place.y1 : place.y2 + 1, place.x1 : place.x2 + 1], height, width)
        pixels = pixels[:, ::-1] if mirror else pixels
        values = pixels.transpose(2, 0, 1).astype(np.float32)
        mean = self._mean(crop)
        if mean is not None:
            values -= mean[:, top : top + height, left : left + width]
        result = np.zeros((3, crop, crop), dtype=np.float32)
        result[:, top : top + height, left : left + width] = values * np.float32(self.config.scale)
        return result

    def _image(self, name: str) -> np.ndarray:
        path = resolve(self.config.root_folder + name, self.base_dir, "image")
        if not self.config.cache_images:
            return decode(path, "color")
        self.encoded = self.encoded if self.encoded is not None else {}
        if path not in self.encoded:
            try:
                with open(path, "rb") as file:
                    self.encoded[path] = file.read()
            except OSError as error:
                raise DataError(f"{path}: {error.strerror}") from error
        return decode(self.encoded[path], "color", path)

    def _mean(self, crop: int) -> np.ndarray | None:
        """What to subtract, (3, crop, crop). A mean image is cut from the place that is central along its width."""
        transform = self.param.transform_param
        if self.mean is None and transform.HasField("mean_file"):
            image = read_mean_image(transform.mean_file, self.base_dir)
            first = (image.shape[2] - crop) // 2
            if image.shape[0] != 3 or first < 0 or image.shape[1] < first + crop:
                raise DataError(
                    f"the mean image {transform.mean_file!r} has shape {image.shape}, expected 3 channels and at least "
                    f"{crop} x {crop}, no lower than wide"
                )
            self.mean = image[:, first : first + crop, first : first + crop]
        elif self.mean is None and transform.mean_value:
            values = np.array(transform.mean_value, dtype=np.float32)
            self.mean = np.broadcast_to(values[:, None, None], (3, crop, crop))
        return self.mean
