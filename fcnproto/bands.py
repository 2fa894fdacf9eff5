"""Images of any number of bands (multispectral, thermal, elevation), and their values out of TIFF files.

Used for nets whose inputs are no photographs (`images.read_bands` opens any file); values stay as they are in the file.
`Bands` has the few methods of Pillow's images that preparing and augmenting need.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fcnproto.errors import DataError

PathLike = str | os.PathLike[str]
Array = npt.NDArray[Any]

TIFF = (".tif", ".tiff")
_MOST_VALUES = 1 << 30
_SHOWN_SHARES = (2, 98)
"""Per cent of a band's values below black and white in a preview."""


@dataclass(frozen=True, eq=False)
class Bands:
    """An image of N bands: `values` is float32 (height, width, bands), as in the file, whatever its bits."""

    values: Array

    mode = "bands"

    @property
    def width(self) -> int:
        """Pixels across."""
        return int(self.values.shape[1])

    @property
    def height(self) -> int:
        """Pixels down."""
        return int(self.values.shape[0])

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as Pillow has it."""
        return self.width, self.height

    @property
    def count(self) -> int:
        """The number of bands."""
        return int(self.values.shape[2])

    def resize(self, size: tuple[int, int], resample: Image.Resampling) -> Bands:
        """Scaled to (width, height), each band as Pillow scales one of floating-point numbers."""
        bands = [
            np.asarray(Image.fromarray(np.ascontiguousarray(self.values[:, :, k])).resize(size, resample))
            for k in range(self.count)
        ]
        return Bands(np.stack(bands, axis=2))

    def crop(self, box: tuple[int, int, int, int]) -> Bands:
        """The part from (left, top) to (right, bottom)."""
        left, top, right, bottom = box
        return Bands(self.values[top:bottom, left:right])

    def transpose(self, method: Image.Transpose) -> Bands:
        """Left and right exchanged, which is all that is needed here."""
        if method is not Image.Transpose.FLIP_LEFT_RIGHT:
            raise ValueError(f"{method} of an image of bands")
        return Bands(self.values[:, ::-1])

    def preview(self) -> Image.Image:
        """A picture to look at: the first three bands as red, green and blue, or the first as grey, each stretched."""
        chosen = self.values[:, :, : 3 if self.count >= 3 else 1]
        low, high = (np.percentile(chosen, share, axis=(0, 1)) for share in _SHOWN_SHARES)
        shown = np.clip((chosen - low) * (255 / np.maximum(high - low, 1e-12)), 0, 255)
        pixels = np.nan_to_num(shown).astype(np.uint8)
        return Image.fromarray(pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2))


def as_bands(values: Any, count: int = 0, name: str = "the image") -> Bands:
    """The image in an array of numbers: (height, width), (height, width, bands) or (bands, height, width).

    Bands come last unless only the first axis has the `count` that is wanted. Raises `DataError`.
    """
    array = np.asarray(values)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or not array.size or array.dtype.kind not in "fiub":
        raise DataError(f"{name}: an array of shape {array.shape} and {array.dtype} is no image of bands")
    if count and array.shape[2] != count and array.shape[0] == count:
        array = array.transpose(1, 2, 0)
    if count and array.shape[2] != count:
        raise DataError(f"{name}: has {array.shape[2]} bands, the net's input takes {count}")
    found = array.astype(np.float32)
    if not np.isfinite(found).all():
        raise DataError(f"{name}: {int((~np.isfinite(found)).sum())} values are no finite numbers; fill them first")
    return Bands(found)


def read_tiff(file: str, content: bytes | None = None) -> Array | None:
    """The values (height, width, bands) or (height, width) of a TIFF's first image; None without tifffile.

    With `content` that is the file's, and `file` only its name."""
    try:
        import tifffile
    except ImportError:
        return None
    try:
        with tifffile.TiffFile(file if content is None else io.BytesIO(content)) as opened:
            series, size = opened.series[0], os.path.getsize(file) if content is None else len(content)
            if series.size > _MOST_VALUES or series.size > 4096 * max(size, 1):
                raise DataError(f"{file}: says that it has {series.size:,} values, too many for an honest image")
            axes, values = series.axes, series.asarray()
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except Exception as error:  # damaged files raise whatever tifffile meets
        raise DataError(f"{file}: can't be read as TIFF: {error or type(error).__name__}") from error
    kept = [place for place, extent in enumerate(values.shape) if extent > 1 or axes[place] in "YX"]
    axes, values = "".join(axes[place] for place in kept), values.reshape([values.shape[place] for place in kept])
    if values.ndim == 3 and axes[1:] == "YX":
        values = values.transpose(1, 2, 0)
    if values.ndim > 3:
        raise DataError(f"{file}: has the axes {series.axes} of shape {series.shape}; an image has two and its bands")
    return np.asarray(values)
