"""Resizing of 8-bit images as OpenCV does it, in all of its interpolations, with and without keeping the aspect.

Linear interpolation is `images.resize_bilinear`, bit by bit; the others agree with OpenCV to one level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fcnproto.data.images import resize_bilinear
from fcnproto.errors import DataError
from fcnproto.schema import caffe_pb2

Settings = caffe_pb2.ResizeParameter


def resize(image: np.ndarray, height: int, width: int, mode: int) -> np.ndarray:
    """(h, w, channels) of uint8 to (height, width, channels); `mode` is one of `Settings.InterpMode`."""
    if mode == Settings.LINEAR:
        return resize_bilinear(image, height, width)
    rows, columns = image.shape[:2]
    if mode == Settings.NEAREST:
        return image[nearest(rows, height)][:, nearest(columns, width)]
    if mode == Settings.AREA and not (rows >= height and columns >= width):
        return _apply(image, _stretched(rows, height), _stretched(columns, width))
    rule = {Settings.AREA: _area, Settings.CUBIC: _cubic, Settings.LANCZOS4: _lanczos}[mode]
    return _apply(image, rule(rows, height), rule(columns, width))


def _apply(image: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Weights (height, rows) and (width, columns) over an image."""
    rows, columns, channels = image.shape
    first = (down @ image.reshape(rows, -1).astype(np.float64)).reshape(len(down), columns, channels)
    result = np.einsum("wc,hck->hwk", across, first, optimize=True)
    return np.rint(result).clip(0, 255).astype(np.uint8)


def _matrix(source: int, positions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weights (target, source) of taps; those outside fall on the edge pixels."""
    result = np.zeros((len(positions), source))
    np.add.at(result, (np.arange(len(positions))[:, None], positions.clip(0, source - 1)), weights)
    return result


def nearest(source: int, target: int) -> np.ndarray:
    """The source pixel of each target pixel, as OpenCV's INTER_NEAREST takes it."""
    return np.minimum((np.arange(target) * (source / target)).astype(np.int64), source - 1)


def _area(source: int, target: int) -> np.ndarray:
    """Each target pixel is the mean of the source under it."""
    edges = np.arange(target + 1) * (source / target)
    low, high = edges[:-1, None], edges[1:, None]
    pixels = np.arange(source)
    shares = (np.minimum(high, pixels + 1) - np.maximum(low, pixels)).clip(min=0)
    shares[shares < 1e-3] = 0
    return np.asarray(shares / shares.sum(1, keepdims=True))


def _stretched(source: int, target: int) -> np.ndarray:
    """OpenCV's INTER_AREA where a side grows: linear only where a target pixel lies over two of the source."""
    scale = source / target
    first = np.floor(np.arange(target) * scale).astype(np.int64)
    share = (np.arange(target) + 1) - (first + 1) / scale
    share = np.where(share <= 0, 0, share - np.floor(share))
    return _matrix(source, np.stack([first, first + 1], 1), np.stack([1 - share, share], 1))


def _kernel(source: int, target: int, taps: int, weights: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Taps around half-pixel centres; `weights` maps distances (target, taps) to them."""
    centre = (np.arange(target) + 0.5) * (source / target) - 0.5
    positions = np.floor(centre).astype(np.int64)[:, None] + np.arange(1 - taps // 2, taps // 2 + 1)
    found = weights(centre[:, None] - positions)
    return _matrix(source, positions, found / found.sum(1, keepdims=True))


def _cubic(source: int, target: int) -> np.ndarray:
    def weights(distance: np.ndarray) -> np.ndarray:
        a, x = -0.75, np.abs(distance)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        return np.where(x <= 1, near, np.where(x < 2, far, 0))

    return _kernel(source, target, 4, weights)


def _lanczos(source: int, target: int) -> np.ndarray:
    return _kernel(source, target, 8, lambda distance: np.sinc(distance) * np.sinc(distance / 4))


def resized_shape(height: int, width: int, settings: caffe_pb2.ResizeParameter) -> tuple[int, int]:
    """The (height, width) that `apply_resize` gives an image of this size."""
    if settings.resize_mode != Settings.FIT_SMALL_SIZE:
        return settings.height, settings.width
    aspect = np.float32(width) / np.float32(height)
    if aspect < np.float32(settings.width) / np.float32(settings.height):
        return int(np.float32(settings.width) / aspect), settings.width
    return settings.height, int(aspect * np.float32(settings.height))


def apply_resize(
    image: np.ndarray, settings: caffe_pb2.ResizeParameter, generator: np.random.Generator | None
) -> np.ndarray:
    """SSD's resizing of an image (h, w, channels) of uint8.

    It is stretched (WARP), or made as large as fits and given borders (FIT_LARGE_SIZE_AND_PAD), or so large that no
    side is too small (FIT_SMALL_SIZE). One of the `interp_mode` is drawn, linear where none is given; `generator` may
    be None where there is nothing to draw. Raises `DataError`.
    """
    modes = list(settings.interp_mode) or [Settings.LINEAR]
    mode = modes[0]
    if len(modes) > 1:
        assert generator is not None
        mode = modes[int(generator.integers(len(modes)))]
    if settings.resize_mode != Settings.FIT_LARGE_SIZE_AND_PAD:
        return resize(image, *resized_shape(image.shape[0], image.shape[1], settings), mode)
    height, width = settings.height, settings.width
    aspect = np.float32(image.shape[1]) / np.float32(image.shape[0])
    if aspect > np.float32(width) / np.float32(height):
        inner = resize(image, max(math.floor(np.float32(width) / aspect), 1), width, mode)
    else:
        inner = resize(image, height, max(math.floor(aspect * np.float32(height)), 1), mode)
    missing = [size - extent for size, extent in zip((height, width), inner.shape[:2], strict=True)]
    borders = [(total // 2, total - total // 2) for total in missing]
    return _padded(inner, borders, settings)


def _padded(image: np.ndarray, borders: Sequence[tuple[int, int]], settings: caffe_pb2.ResizeParameter) -> np.ndarray:
    pads = [*borders, (0, 0)]
    if settings.pad_mode == Settings.MIRRORED:
        return np.pad(image, pads, "reflect")
    if settings.pad_mode == Settings.REPEAT_NEAREST:
        return np.pad(image, pads, "edge")
    values = list(settings.pad_value) or [0.0]
    if len(values) not in (1, image.shape[2]):
        raise DataError(f"{len(values)} pad_values for {image.shape[2]} channels; give one, or one for each channel")
    result = np.empty([sum(p) + e for p, e in zip(pads, image.shape, strict=True)], np.uint8)
    result[:] = np.rint(values).clip(0, 255).astype(np.uint8)
    (top, _), (left, _) = borders
    result[top : top + image.shape[0], left : left + image.shape[1]] = image
    return result
