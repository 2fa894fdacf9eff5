"""Resizing of float images as scikit-image and scipy do it for pycaffe, linear in a few lines of numpy.

Not OpenCV's (see `images.resize_bilinear`), and not torch's: the edges differ.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fcnproto.errors import DataError


def resize_normalised(image: np.ndarray, height: int, width: int, order: int = 1) -> np.ndarray:
    """(h, w, channels) in 0..1 to (height, width, channels), as scikit-image resizes with mode "constant".

    Pixel centres are half a pixel in; beyond the edges the value is 0. Sides that shrink are smoothed first (Gaussian,
    standard deviation half of the shrinking factor less 1). The result stays within the image's range.
    """
    result = image.astype(np.float64) if image.dtype != np.float32 else image
    for axis, target in ((0, height), (1, width)):
        factor = image.shape[axis] / target
        if factor > 1:
            result = _smooth(result, axis, (factor - 1) / 2)
    if order == 1:
        result = _linear(result, 0, height, centres=True)
        result = _linear(result, 1, width, centres=True)
    else:
        scale = (height / image.shape[0], width / image.shape[1], 1)
        result = _scipy().zoom(result, scale, order=order, mode="grid-constant", grid_mode=True)
    return result.clip(image.min(), image.max())


def zoom(image: np.ndarray, height: int, width: int, order: int = 1) -> np.ndarray:
    """(h, w, channels) to (height, width, channels), as scipy.ndimage.zoom: first on first, last on last pixel."""
    if order == 1:
        return _linear(_linear(image, 0, height, centres=False), 1, width, centres=False)
    return np.asarray(_scipy().zoom(image, (height / image.shape[0], width / image.shape[1], 1), order=order))


def _scipy() -> Any:
    try:
        from scipy import ndimage
    except ImportError:
        raise DataError(
            "interpolation other than linear (order 1) needs scipy: pip install 'fcnproto[scipy]'"
        ) from None
    return ndimage


def _linear(image: np.ndarray, axis: int, target: int, centres: bool) -> np.ndarray:
    """Linear interpolation along one axis; with `centres`, half-pixel centres and 0 beyond the edges."""
    source = image.shape[axis]
    if centres:
        position = (np.arange(target) + 0.5) * (source / target) - 0.5
    else:
        position = np.arange(target) * ((source - 1) / (target - 1) if target > 1 else 0.0)
    first = np.floor(position).astype(np.int64)
    shape = [1] * image.ndim
    shape[axis] = target
    fraction = (position - first).reshape(shape)
    padded = np.pad(image, [(1, 1) if i == axis else (0, 0) for i in range(image.ndim)])
    # Positions lie between -1 and `source`; with one pixel of zeros on either side all taps exist.
    left = padded.take((first + 1).clip(0, source + 1), axis)
    right = padded.take((first + 2).clip(0, source + 1), axis)
    return left * (1 - fraction) + right * fraction


def _smooth(image: np.ndarray, axis: int, sigma: float) -> np.ndarray:
    """A Gaussian filter along one axis, cut at 4 standard deviations, with zeros beyond the edges."""
    radius = int(4 * sigma + 0.5)
    if radius == 0:
        return image
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    padded = np.pad(image, [(radius, radius) if i == axis else (0, 0) for i in range(image.ndim)])
    size = image.shape[axis]
    return np.asarray(
        sum(weight * padded.take(range(k, k + size), axis) for k, weight in enumerate(weights)), dtype=np.float64
    )
