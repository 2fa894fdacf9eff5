"""SciPy's module `misc` of the time: the functions on images that it lost in versions 1.2 and 1.3, by Pillow.

Scripts and layers written for pycaffe read and resize their images with them.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

_NAME = "scipy.misc"
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "cubic": Image.Resampling.BICUBIC,
}


def bytescale(
    data: Any, cmin: float | None = None, cmax: float | None = None, high: int = 255, low: int = 0
) -> np.ndarray:
    """Values stretched from `cmin`..`cmax` (their own range, if not given) to whole numbers `low`..`high`."""
    array = np.asarray(data)
    if array.dtype == np.uint8:
        return array
    least, most = array.min() if cmin is None else cmin, array.max() if cmax is None else cmax
    if most < least:
        raise ValueError("`cmax` should be larger than `cmin`.")
    scaled = (array - least) * ((high - low) / ((most - least) or 1)) + low
    return (scaled.clip(low, high) + 0.5).astype(np.uint8)


def toimage(
    arr: Any,
    high: int = 255,
    low: int = 0,
    cmin: float | None = None,
    cmax: float | None = None,
    pal: Any = None,
    mode: str | None = None,
    channel_axis: int | None = None,
) -> Image.Image:
    """A Pillow image of an array: grey of two axes, RGB or RGBA of three, stretched to 0..255 unless it is uint8."""
    array = np.asarray(arr)
    if array.ndim == 2:
        if mode == "F":
            return Image.fromarray(array.astype(np.float32))
        if mode == "I":
            return Image.fromarray(array.astype(np.int32))
        image = Image.fromarray(bytescale(array, cmin, cmax, high, low))
        if pal is not None:
            image.putpalette(np.asarray(pal, np.uint8).tobytes())
        return image.convert(mode) if mode not in (None, "L", "P") else image
    if array.ndim != 3 or not {3, 4} & set(array.shape):
        raise ValueError("'arr' does not have a suitable array shape for any mode.")
    axis = channel_axis
    if axis is None:
        axis = array.shape.index(3) if 3 in array.shape else array.shape.index(4)
    pixels = np.ascontiguousarray(np.moveaxis(bytescale(array, cmin, cmax, high, low), axis, 2))
    image = Image.fromarray(pixels)
    return image if mode in (None, image.mode) else image.convert(mode)


def fromimage(im: Image.Image, flatten: bool = False, mode: str | None = None) -> np.ndarray:
    """The array of a Pillow image; with `flatten` grey in floats."""
    if mode is not None:
        im = im.convert(mode)
    elif im.mode == "P":
        im = im.convert("RGBA" if "transparency" in im.info else "RGB")
    if im.mode == "1":
        im = im.convert("L")
    return np.array(im.convert("F") if flatten else im)


def imread(name: Any, flatten: bool = False, mode: str | None = None) -> np.ndarray:
    """An image file's array (height, width[, channels])."""
    with Image.open(name) as image:
        return fromimage(image, flatten, mode)


def imsave(name: Any, arr: Any, format: str | None = None) -> None:
    """Write an array as an image, stretched to 0..255 unless it is uint8."""
    toimage(arr, channel_axis=2 if np.ndim(arr) == 3 else None).save(name, format)


def imresize(
    arr: Any, size: int | float | Sequence[int], interp: str = "bilinear", mode: str | None = None
) -> np.ndarray:
    """An image resized: `size` is a percentage (a whole number), a factor (a fraction) or (height, width)."""
    image = toimage(arr, mode=mode)
    if isinstance(size, (int, np.integer)):
        size = float(size) / 100.0
    if isinstance(size, (float, np.floating)):
        width, height = (int(extent * size) for extent in image.size)
    else:
        height, width = (int(extent) for extent in size)
    return fromimage(image.resize((width, height), resample=_RESAMPLING[interp]))


def imrotate(arr: Any, angle: float, interp: str = "bilinear") -> np.ndarray:
    """An image turned counter-clockwise by degrees about its centre."""
    return fromimage(toimage(arr).rotate(angle, resample=_RESAMPLING[interp]))


def imshow(arr: Any) -> None:
    """Show an image in a viewer."""
    toimage(arr).show()


def __getattr__(name: str) -> Any:
    """What has only moved: `comb`, `factorial`, `logsumexp`, `face`, ..."""
    for place in ("scipy.special", "scipy.datasets"):
        if not name.startswith("_") and hasattr(importlib.import_module(place), name):
            return getattr(importlib.import_module(place), name)
    raise AttributeError(f"module {_NAME!r} has no attribute {name!r}")


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives this module where `scipy.misc` is imported."""

    def __init__(self) -> None:
        self._own: ModuleSpec | None = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for that one name."""
        return ModuleSpec(_NAME, self) if fullname == _NAME else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """This module, under that name."""
        module = importlib.import_module(__name__)
        self._own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has been executed under its own name, and keeps that."""
        module.__spec__ = self._own


def provide() -> None:
    """Make `import scipy.misc` give this module from now on."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
        sys.modules.pop(_NAME, None)
