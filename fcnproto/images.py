"""Image files as inputs of nets: reading every usual kind of image, and the arithmetic that nets expect before a blob.

Used where people give pictures (segmenting, running a net). The data layers have readers of their own, which
follow Caffe to the bit for the formats that Caffe reads.
"""

from __future__ import annotations

import io
import json
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError, features

from fcnproto.bands import TIFF, Bands, as_bands, read_tiff
from fcnproto.errors import DataError, FcnprotoWarning, UsageError
from fcnproto.schema.arrays import npy_shape, read_npy

PathLike = str | os.PathLike[str]
Array = npt.NDArray[Any]
Kind = Literal["bgr", "rgb", "grey", "depth", "bands"]
Picture = Image.Image | Bands
"""What is read of an image file."""

UNREADABLE = frozenset({".heic", ".heif", ".jxl", ".cr2", ".nef", ".arw", ".dng"})
"""Names of images that nothing here reads."""

_STARTS = dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), ".tif") | {b"\x93NUMPY": ".npy"}
"""What TIFF files and arrays begin with."""
_GREY_WEIGHTS = (0.114, 0.587, 0.299)  # of blue, green and red: ITU-R 601, as OpenCV and hence Caffe
_RESAMPLING = Image.Resampling.BILINEAR


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a blob: (pixels - mean) * scale, as Caffe's transform_param.

    Attributes:
        kind: the channels: "bgr" and "rgb" (3), "grey" (1), or "depth": the natural logarithm of a one-channel image's
            values (1). Pixels are 0..255 before the mean is taken off. Or "bands": the values of an image of any
            number of bands as they are in the file, in its order.
        mean: nothing, one value for each channel (or for all), or a mean image (channels, height, width), in
            the order of the blob's channels.
        scale: factor after the mean is taken off; or one for each channel.
        bands: the number of channels of the kind "bands".
        why: where these settings come from, for messages.
    """

    kind: Kind = "bgr"
    mean: Array | None = None
    scale: float | tuple[float, ...] = 1.0
    why: str = ""
    bands: int = 0

    @property
    def channels(self) -> int:
        """The number of channels of the blob."""
        if self.kind == "bands":
            return self.bands
        return 3 if self.kind in ("bgr", "rgb") else 1

    def key(self) -> tuple[object, ...]:
        """What tells it from others: its settings, a mean as its numbers."""
        return self.kind, None if self.mean is None else self.mean.tolist(), self.scale, self.bands

    def __str__(self) -> str:
        if self.mean is None:
            mean = "no mean"
        elif self.mean.ndim == 3:
            mean = f"a mean image of {self.mean.shape[2]}x{self.mean.shape[1]}"
        else:
            mean = "mean " + " ".join(f"{value:g}" for value in self.mean)
        factors = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        kind = f"{self.bands} bands as they are" if self.kind == "bands" else self.kind.upper()
        scale = " ".join(f"{value:g}" for value in factors)
        return f"{kind}, {mean}, scale {scale}" + (f" ({self.why})" if self.why else "")


def open_image(path: PathLike, content: bytes | None = None) -> Image.Image:
    """The image file's first frame with its pixels read, turned upright as its EXIF data say. Raises `DataError`.

    With `content` that is the file's, and the path only its name."""
    file = os.fspath(path)
    try:
        with Image.open(file if content is None else io.BytesIO(content)) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{file}: is a folder, an image file was expected") from None
    except PermissionError:
        raise DataError(f"{file}: may not be read (permission denied)") from None
    except UnidentifiedImageError:
        raise DataError(f"{file}: {_why_unknown(file, content)}") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{file}: too many pixels to be taken for an honest image ({error})") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, MemoryError) as error:
        raise DataError(f"{file}: can't be read as an image: {error or type(error).__name__}") from error


def _why_unknown(file: str, content: bytes | None) -> str:
    """Why Pillow takes a file (or content of that name) for no image."""
    if not (os.path.getsize(file) if content is None else len(content)):
        return "the file is empty"
    suffix = os.path.splitext(file)[1].lower()
    if suffix == ".avif" and not features.check("avif"):
        return "this Pillow can't read AVIF; Pillow 11.3 and newer can (pip install -U pillow)"
    if suffix in UNREADABLE:
        return f"{suffix[1:].upper()} can't be read here; save it as PNG, TIFF or JPEG"
    return "not an image of a known kind"


def pixel_count(path: PathLike, content: bytes | None = None) -> int:
    """The number of pixels of an image file by its header; 0 where that can't be read (reading it will say why).

    With `content` that is the file's, and the path only its name."""
    try:
        with open(path, "rb") if content is None else io.BytesIO(content) as file:
            if _suffix(path, content) == ".npy":
                return math.prod(sorted(npy_shape(file))[-2:])
            with Image.open(file) as image:
                return image.width * image.height
    except Exception:  # damaged files raise whatever their decoder meets
        return 0


def _suffix(path: PathLike, content: bytes | None) -> str:
    """The ending of a file's name; of content, whose name may have none, the one that its first bytes mean, if any."""
    if content is None:
        return os.path.splitext(path)[1].lower()
    return next((suffix for start, suffix in _STARTS.items() if content.startswith(start)), "")


def read_image(path: PathLike, content: bytes | None = None) -> Image.Image:
    """An image file as 8-bit RGB, upright. With `content` that is the file's, and the path only its name. Raises
    `DataError`.

    Grey, palette, one-bit, YCbCr and CMYK images (without regard to a colour profile) are converted; transparent pixels
    show white behind them; 16-bit values are divided by 257, also those of colours in TIFF (where tifffile is
    installed) and .npy files. Of animations the first frame is taken.
    """
    suffix = _suffix(path, content)
    if suffix == ".npy":
        return to_rgb(_from_array(read_npy(path, content), "bgr", os.fspath(path)))
    values = read_tiff(os.fspath(path), content) if suffix in TIFF and _has_deep_colours(path, content) else None
    image = open_image(path, content) if values is None else _from_array(values, "bgr", os.fspath(path))
    try:
        return to_rgb(image)
    except (OSError, ValueError) as error:
        raise DataError(f"{os.fspath(path)}: {error}") from error


def _has_deep_colours(path: PathLike, content: bytes | None) -> bool:
    """Whether a TIFF has several channels of more than eight bits, of which Pillow reads the upper ones, or none."""
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            bits = image.tag_v2.get(258, (8,))  # type: ignore[attr-defined]
            return len(bits) > 1 and max(bits) > 8
    except UnidentifiedImageError:
        return (os.path.getsize(path) if content is None else len(content)) > 0
    except Exception:  # reading it says why
        return False


def read_picture(path: PathLike, kind: Kind = "bgr", bands: int = 0, content: bytes | None = None) -> Picture:
    """The image in a file for a kind of input: `read_bands`, `read_depth` or `read_image`. Raises `DataError`."""
    if kind == "bands":
        return read_bands(path, bands, content)
    return read_depth(path, content) if kind == "depth" else read_image(path, content)


def as_image(given: Any, kind: Kind = "bgr", bands: int = 0) -> Picture:
    """An image in whatever form a program has it, as `read_image` gives it (for the kind "depth" as `read_depth`, for
    "bands" `Bands`, with so many of them).

    A path; a PIL image of any mode (turned upright as its EXIF data say); or an array of uint8, (height, width) or
    (height, width, 1, 3 or 4) in RGB. They may be of uint16 or bool, depths and bands of any number.

    Raises `DataError`.
    """
    if isinstance(given, (str, os.PathLike)):
        return read_picture(given, kind, bands)
    if kind == "bands":
        return _bands_of(given, bands)
    if isinstance(given, Bands):
        raise DataError(f"an image of {given.count} bands is given, but this input takes pictures ({kind})")
    image = given if isinstance(given, Image.Image) else _from_array(given, kind)
    try:
        image = ImageOps.exif_transpose(image)
        return _depth(image, "the image") if kind == "depth" else to_rgb(image)
    except (OSError, ValueError) as error:
        raise DataError(f"an image of mode {image.mode} can't be used: {error}") from error


def read_bands(path: PathLike, count: int = 0, content: bytes | None = None) -> Bands:
    """The image in a .npy file, a TIFF (by tifffile where installed) or any other file that Pillow reads.

    With `content` that is the file's, and the path only its name.
    Raises `DataError` where it can't be read or has another number of bands than `count` (0: any).
    """
    file, suffix = os.fspath(path), _suffix(path, content)
    if suffix == ".npy":
        return as_bands(read_npy(file, content), count, file)
    if suffix in TIFF and (found := read_tiff(file, content)) is not None:
        return as_bands(found, count, file)
    return as_bands(_by_pillow(file, suffix, content), count, file)


def _by_pillow(file: str, suffix: str, content: bytes | None) -> Array:
    if suffix in TIFF:
        try:
            image = open_image(file, content)
        except DataError as error:
            if content is None and not os.path.isfile(file):
                raise
            raise UsageError(f"{error}; TIFFs of many bands need tifffile (pip install 'fcnproto[tiff]')") from None
    else:
        image = open_image(file, content)
        if _is_cut_to_eight_bits(file, content):
            raise DataError(
                f"{file}: has colours of 16 bits, of which only the upper eight can be read from this kind of file; "
                "save it as TIFF"
            )
    image = ImageOps.exif_transpose(image)
    return np.asarray(image.convert("RGB") if image.mode == "P" else image)


def _is_cut_to_eight_bits(file: str, content: bytes | None) -> bool:
    """Whether Pillow leaves the lower bits of a file's colours out (PNG of 16 bits a colour)."""
    with Image.open(file if content is None else io.BytesIO(content)) as image:
        return image.mode in ("RGB", "RGBA") and any(";16" in str(tile[3]) for tile in image.tile)


def _bands_of(given: Any, count: int) -> Bands:
    if isinstance(given, Bands):
        return as_bands(given.values, count)
    try:
        return as_bands(np.asarray(given), count)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"a {type(given).__name__} is no image: {error}") from error


def _from_array(given: Any, kind: Kind, name: str = "") -> Image.Image:
    try:
        values = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"a {type(given).__name__} is no image: {error}") from error
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    flat, numbers = values.ndim == 2, values.dtype.kind in "fiub"
    coloured = values.ndim == 3 and values.shape[2] in (3, 4) and values.dtype in (np.uint8, np.uint16)
    grey = flat and (values.dtype in (np.uint8, np.uint16, np.bool_) or (kind == "depth" and numbers))
    if not values.size or not (grey or (coloured and kind != "depth")):
        wanted = "numbers of shape (height, width)" if kind == "depth" else "RGB of uint8 and shape (height, width, 3)"
        what = name or f"a {type(given).__name__}"
        raise DataError(
            f"{what} of {values.dtype} and shape {values.shape} is no image here; give a path, a PIL "
            f"image, or an array: {wanted}"
        )
    if kind == "depth":
        return Image.fromarray(values.astype(np.float32))
    if coloured and values.dtype == np.uint16:
        values = np.rint(values / 257.0).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(values))


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB; see `read_image`. ValueError for floating-point and 32-bit pixels."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        return Image.alpha_composite(white, coloured).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Array:
    values = np.asarray(image)
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers of unknown range; save the image with 8 or 16 bits")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"pixels are 32-bit integers ({low}..{high}); save the image with 8 or 16 bits")
    # Read with OpenCV, as Caffe does, 16-bit images lose their low bytes; rounding differs by one at most.
    return np.rint(values / 257.0).astype(np.uint8)


def read_depth(path: PathLike, content: bytes | None = None) -> Image.Image:
    """A one-channel image of any depth (8, 16, 32 bits, float), its values as they are (mode F), upright."""
    return _depth(open_image(path, content), os.fspath(path))


def _depth(image: Image.Image, name: str) -> Image.Image:
    if len(image.getbands()) != 1 or image.mode in ("P", "1"):
        raise DataError(f"{name}: a depth image has one channel of numbers; this one's mode is {image.mode}")
    return Image.fromarray(np.asarray(image, dtype=np.float32))


def visible(image: Picture) -> Image.Image:
    """An image that can be shown: depths (mode F) as grey, from the nearest to the farthest; of bands a preview."""
    if isinstance(image, Bands):
        return image.preview()
    if image.mode != "F":
        return image
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    return Image.fromarray(np.rint((values - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)).convert("RGB")


def resize(image: Picture, height: int, width: int) -> Picture:
    """The image scaled to a size, bilinear; when it shrinks, every pixel counts (no aliasing)."""
    return image if image.size == (width, height) else image.resize((width, height), _RESAMPLING)


def limit_side(size: tuple[int, int], longest: int | None) -> tuple[int, int]:
    """(height, width) shrunk in proportion so that neither side is longer than `longest`."""
    height, width = size
    if longest is None or max(size) <= longest:
        return size
    factor = longest / max(size)
    return max(1, round(height * factor)), max(1, round(width * factor))


def to_blob(image: Picture, preprocessing: Preprocessing) -> Array:
    """The float32 array (channels, height, width) that a net is given for an image.

    `image` is from `as_image` for the same kind. A mean image of another size than the image
    counts by its average in each channel (a warning says so). DataError where a depth has no logarithm.
    """
    values = image.values if isinstance(image, Bands) else np.asarray(image, dtype=np.float32)
    if preprocessing.kind == "bands":
        blob = values.transpose(2, 0, 1)
    elif preprocessing.kind == "depth":
        blob = _log_depth(values)
    elif preprocessing.kind == "grey":
        blob = (values[:, :, ::-1] @ np.array(_GREY_WEIGHTS, dtype=np.float32))[None]
    else:
        blob = (values if preprocessing.kind == "rgb" else values[:, :, ::-1]).transpose(2, 0, 1)
    if preprocessing.mean is not None:
        blob = blob - fitting_mean(preprocessing.mean, blob.shape)
    if isinstance(preprocessing.scale, tuple):
        blob = blob * np.array(preprocessing.scale, dtype=np.float32)[:, None, None]
    elif preprocessing.scale != 1.0:
        blob = blob * np.float32(preprocessing.scale)
    return np.ascontiguousarray(blob, dtype=np.float32)


def _log_depth(values: Array) -> Array:
    if not (values > 0).all():
        raise DataError(
            f"{int((values <= 0).sum())} pixels have depth 0 or less, which has no logarithm; fill the holes first"
        )
    logarithm: Array = np.log(values)[None]
    return logarithm


def fitting_mean(mean: Array, shape: Sequence[int]) -> Array:
    """A mean as it is taken off a blob of `shape` (channels, height, width), as that or (channels, 1, 1).

    A mean image of another size counts by its average in each channel, with a warning. Raises `DataError`.
    """
    channels = mean.shape[0]
    if channels not in (1, shape[0]):
        raise DataError(f"the mean has {channels} channels, the input has {shape[0]}")
    if mean.ndim == 3 and tuple(mean.shape[1:]) == tuple(shape[1:]):
        return mean
    if mean.ndim == 3:
        warnings.warn(
            f"the mean image is {mean.shape[2]}x{mean.shape[1]}, images differ from it in size; "
            "they are taken relative to its average in each channel",
            FcnprotoWarning,
            stacklevel=3,
        )
        mean = mean.mean(axis=(1, 2), dtype=np.float64)
    return mean.astype(np.float64)[:, None, None]  # subtracted in double precision, as the data layers do


def read_statistics(path: PathLike) -> tuple[Array, tuple[float, ...]]:
    """Mean and scale of each band in a .json file of `fcnproto image-mean`. Raises `DataError`."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        mean, scale = (np.array([float(value) for value in content[key]]) for key in ("mean", "scale"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{os.fspath(path)}: holds no mean and scale of bands: {error}") from error
    if not mean.size or mean.shape != scale.shape or not np.isfinite([mean, scale]).all():
        raise DataError(f"{os.fspath(path)}: mean and scale must be as many finite numbers")
    return mean, tuple(scale.tolist())


def parse_scale(text: str) -> float | tuple[float, ...]:
    """The scale that a command line names: a number, one for each channel ("0.1,0.2"), or a .json file with them.

    ValueError for other texts, `DataError` for other files."""
    if text.lower().endswith(".json"):
        return read_statistics(text)[1]
    found = tuple(float(part) for part in text.split(","))
    return found[0] if len(found) == 1 else found


def parse_mean(text: str) -> Array | None:
    """The mean that a command line names: "none", numbers "104,117,123" in the blob's order of channels, or a file."""
    if text.lower() in ("", "none"):
        return None
    try:
        return np.array([float(part) for part in text.split(",")], dtype=np.float64)
    except ValueError:
        return read_mean(text)


def read_mean(path: PathLike) -> Array:
    """The mean in a .binaryproto (Caffe's mean image), .npy or .json file: (channels,) or (channels, h, w).

    Raises `DataError` for other contents and `WeightsError` for a damaged .binaryproto.
    """
    from fcnproto.schema.weights import read_blob

    file = Path(path)
    if not file.is_file():
        raise DataError(
            f"{file}: no such mean file; expected numbers separated by commas, a .binaryproto or a .npy file"
        )
    if file.suffix == ".npy":
        mean = read_npy(file)
    elif file.suffix == ".json":
        return read_statistics(file)[0]
    else:
        mean = read_blob(file)
    mean = np.asarray(mean)
    if mean.dtype.kind not in "fiu" or not (np.abs(mean.astype(np.float64)) < 1e30).all():
        raise DataError(f"{file}: a mean consists of finite numbers")
    while mean.ndim > 3 and mean.shape[0] == 1:
        mean = mean[0]
    turned = mean.ndim == 3 and mean.shape[2] in (1, 3) and mean.shape[0] not in (1, 3)
    if mean.ndim == 3 and mean.size and not turned:
        return mean.astype(np.float32)
    if mean.ndim == 1 and mean.size:
        return mean.astype(np.float64)
    raise DataError(f"{file}: shape {mean.shape}; a mean has shape (channels,) or (channels, height, width)")
