"""Decoding and resizing of images as Caffe's data layers had it from OpenCV.

Images are arrays (height, width, channels) of uint8 with colours in the order blue, green, red. Decoding is Pillow's;
JPEG pixels agree with OpenCV's where both stand on libjpeg-turbo. Resizing repeats OpenCV's fixed-point arithmetic.
"""

from __future__ import annotations

import io
import os
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fcnproto.errors import DataError

Mode = Literal["native", "color", "gray"]

FAULTS = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, MemoryError, Image.DecompressionBombError)
"""What Pillow raises for files that are damaged, or made to do damage."""


def open_image(source: str | os.PathLike[str] | bytes, name: str | None = None) -> Image.Image:
    """A Pillow image from a file or from encoded bytes, its pixels not yet decoded.

    `name` goes into messages in place of the bytes. Raises `DataError` naming the file.
    """
    label = name or (os.fspath(source) if not isinstance(source, bytes) else "encoded image")
    try:
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except FileNotFoundError:
        raise DataError(f"{label}: no such file") from None
    except UnidentifiedImageError:
        raise DataError(f"{label}: not an image of a known format") from None
    except FAULTS as error:
        raise DataError(f"{label}: not a readable image ({error})") from error


def decode(source: str | os.PathLike[str] | bytes, mode: Mode = "native", name: str | None = None) -> np.ndarray:
    """Decode an image to (height, width, channels), uint8.

    "color": 3 channels, BGR; "gray": 1 channel; both turned as the EXIF orientation says and with alpha dropped.
    "native": the channels that the file has (1, 3, or 4 with alpha), not turned, as for an encoded Datum.
    Raises `DataError` naming the file; also for 16-bit images in native mode (Caffe: 8 bits only).
    """
    image = open_image(source, name)
    label = name or (os.fspath(source) if not isinstance(source, bytes) else "encoded image")
    try:
        if mode == "native":
            return _native(image, label)
        if mode == "gray" and image.format == "JPEG" and image.mode == "RGB":
            image.draft("L", image.size)  # libjpeg's own luminance, which OpenCV takes too
        format = image.format  # which the turned copy has lost
        image = ImageOps.exif_transpose(image)
        return _color(image) if mode == "color" else _gray(image, format)
    except DataError:
        raise
    except FAULTS as error:
        raise DataError(f"{label}: not a readable image ({error})") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as its upper 8 bits, as OpenCV strips them; other modes as they are."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    return image


def _color(image: Image.Image) -> np.ndarray:
    if image.mode == "CMYK":  # OpenCV's formula, on ink as stored in the file (Pillow gives it inverted)
        ink = 255 - np.asarray(image).astype(np.int32)
        black = ink[:, :, 3:]
        return (black - ((255 - ink[:, :, 2::-1]) * black >> 8)).astype(np.uint8)
    return np.ascontiguousarray(np.asarray(_eight_bits(image).convert("RGB"))[:, :, ::-1])


def _gray(image: Image.Image, format: str | None) -> np.ndarray:
    image = _eight_bits(image)
    if image.mode in ("L", "1", "LA"):
        return np.asarray(image.convert("L"))[:, :, None]
    # Luminance 0.299 R + 0.587 G + 0.114 B in fixed point: libpng's own, which truncates, or OpenCV's, which rounds.
    weights, half, bits = ((3737, 19234, 9797), 0, 15) if format == "PNG" else ((1868, 9617, 4899), 1 << 13, 14)
    return ((_color(image).astype(np.int32) @ np.array(weights) + half) >> bits).astype(np.uint8)[:, :, None]


def _native(image: Image.Image, label: str) -> np.ndarray:
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{label}: has more than 8 bits per channel, expected 8")
    if image.mode in ("L", "1"):
        return np.asarray(image.convert("L"))[:, :, None]
    if "A" in image.mode or "transparency" in image.info:
        return np.ascontiguousarray(np.asarray(image.convert("RGBA"))[:, :, [2, 1, 0, 3]])
    return _color(image)


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (h, w, channels) of uint8 to (height, width, channels), equal to OpenCV's INTER_LINEAR bit by bit.

    Positions are those of half-pixel centres, weights are rounded to 1/2048, sums to 1/4 and then to whole numbers;
    halving both sides takes the rounded mean of each 2x2 block. No filter against aliasing.
    """
    rows, columns = image.shape[:2]
    if (rows, columns) == (height, width):
        return image.copy()
    pixels = image.astype(np.int32)
    if (rows, columns) == (2 * height, 2 * width):
        blocks = pixels.reshape(height, 2, width, 2, -1).sum(axis=(1, 3))
        return ((blocks + 2) >> 2).astype(np.uint8)
    left, right, left_weight, right_weight = _taps(columns, width, clamp=True)
    upper, lower, upper_weight, lower_weight = _taps(rows, height, clamp=False)
    across = pixels[:, left] * left_weight[:, None] + pixels[:, right] * right_weight[:, None] >> 4
    total = (across[upper] * upper_weight[:, None, None] >> 16) + (across[lower] * lower_weight[:, None, None] >> 16)
    return (total + 2 >> 2).clip(0, 255).astype(np.uint8)


def _taps(source: int, target: int, clamp: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each target position the two source positions and their weights in 1/2048.

    `clamp`: positions beyond the ends weigh the end pixel alone (columns); otherwise both indices are clipped (rows).
    """
    position = ((np.arange(target) + 0.5) * (1.0 / (target / source)) - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    fraction = position - first.astype(np.float32)
    if clamp:
        fraction = np.where((first < 0) | (first >= source - 1), np.float32(0), fraction)
        first = first.clip(0, source - 1)
    scale = np.float32(2048)
    weights = [np.rint(weight * scale).astype(np.int32) for weight in (np.float32(1) - fraction, fraction)]
    return first.clip(0, source - 1), (first + 1).clip(0, source - 1), weights[0], weights[1]
