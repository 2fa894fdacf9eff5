"""Random changes of an image's colours (`distort_param`), with OpenCV's 8-bit arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fcnproto.errors import DataError
from fcnproto.schema import caffe_pb2

# The channels of blue, green, red among (value, least, falling, rising), by sector of the hue.
_SECTORS = np.array([[1, 3, 0], [1, 0, 2], [3, 0, 1], [0, 2, 1], [0, 1, 3], [2, 1, 0]])


def scaled(values: np.ndarray, factor: float, shift: float) -> np.ndarray:
    """values * factor + shift, rounded to even and kept within 0..255."""
    return np.rint(values * np.float32(factor) + np.float32(shift)).clip(0, 255).astype(np.uint8)


def to_hsv(image: np.ndarray) -> np.ndarray:
    """BGR (h, w, 3) to hue 0..179, saturation and value 0..255, in fixed point."""
    blue, green, red = (image[..., channel].astype(np.int64) for channel in range(3))
    value = image.max(2).astype(np.int64)
    span = value - image.min(2)
    steps = np.arange(256)
    of_value = np.rint((255 << 12) / np.maximum(steps, 1)).astype(np.int64) * (steps > 0)
    of_span = np.rint((180 << 12) / (6.0 * np.maximum(steps, 1))).astype(np.int64) * (steps > 0)
    saturation = (span * of_value[value] + (1 << 11)) >> 12
    turn = np.where(value == red, green - blue, np.where(value == green, blue - red + 2 * span, red - green + 4 * span))
    hue = (turn * of_span[span] + (1 << 11)) >> 12
    return np.stack([hue + np.where(hue < 0, 180, 0), saturation, value], 2).clip(0, 255).astype(np.uint8)


def from_hsv(image: np.ndarray) -> np.ndarray:
    """The inverse; hues from 180 on go round."""
    hue = image[..., 0].astype(np.float32) * np.float32(6 / 180)
    saturation, value = (image[..., channel].astype(np.float32) * np.float32(1 / 255) for channel in (1, 2))
    sector = np.floor(hue).astype(np.int64)
    part = hue - sector.astype(np.float32)
    one = np.float32(1)
    levels = np.stack(
        [
            value,
            value * (one - saturation),
            value * (one - saturation * part),
            value * (one - saturation * (one - part)),
        ],
        2,
    )
    return np.rint(np.take_along_axis(levels, _SECTORS[sector % 6], 2) * 255).clip(0, 255).astype(np.uint8)


def distort(image: np.ndarray, settings: caffe_pb2.DistortionParameter, generator: np.random.Generator) -> np.ndarray:
    """SSD's distortion of a BGR image (h, w, 3) of uint8: brightness, then contrast, saturation and hue, or saturation,
    hue and contrast, at last the order of channels, each with its probability.

    Raises `DataError` where an image without three channels is to change in saturation, hue or order.
    """

    def brightness(pixels: np.ndarray) -> np.ndarray:
        shift = generator.uniform(-settings.brightness_delta, settings.brightness_delta)
        return scaled(pixels, 1, shift)

    def contrast(pixels: np.ndarray) -> np.ndarray:
        factor = generator.uniform(settings.contrast_lower, settings.contrast_upper)
        return scaled(pixels, factor, 0) if abs(factor - 1) > 1e-3 else pixels

    def saturation(pixels: np.ndarray) -> np.ndarray:
        changed = to_hsv(_coloured(pixels))
        factor = generator.uniform(settings.saturation_lower, settings.saturation_upper)
        changed[..., 1] = scaled(changed[..., 1], factor, 0)
        return from_hsv(changed)

    def hue(pixels: np.ndarray) -> np.ndarray:
        changed = to_hsv(_coloured(pixels))
        changed[..., 0] = scaled(changed[..., 0], 1, generator.uniform(-settings.hue_delta, settings.hue_delta))
        return from_hsv(changed)

    def order(pixels: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(_coloured(pixels)[..., generator.permutation(3)])

    steps: list[tuple[Callable[[np.ndarray], np.ndarray], float]] = [
        (saturation, settings.saturation_prob),
        (hue, settings.hue_prob),
    ]
    late = generator.uniform() <= 0.5
    steps.insert(len(steps) if late else 0, (contrast, settings.contrast_prob))
    for step, probability in [(brightness, settings.brightness_prob), *steps, (order, settings.random_order_prob)]:
        if generator.uniform() < probability:
            image = step(image)
    return image


def problem(settings: caffe_pb2.DistortionParameter) -> str | None:
    """What is contradictory in the settings, or None."""
    if settings.brightness_delta < 0 or settings.hue_delta < 0:
        return "distort_param: brightness_delta and hue_delta must not be negative"
    for name in ("contrast", "saturation"):
        lower, upper = getattr(settings, f"{name}_lower"), getattr(settings, f"{name}_upper")
        if getattr(settings, f"{name}_prob") > 0 and not 0 <= lower <= upper:
            return f"distort_param: {name}_lower {lower:g} must be from 0 to {name}_upper {upper:g}"
    return None


def _coloured(image: np.ndarray) -> np.ndarray:
    if image.shape[2] != 3:
        raise DataError(f"distort_param changes colours, but an image has {image.shape[2]} channels; set force_color")
    return image
