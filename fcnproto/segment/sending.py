"""Images sent to a GPU as bytes, a quarter of what their blobs take; order of channels and mean are seen to there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fcnproto.images import Picture, Preprocessing, fitting_mean
from fcnproto.net.arriving import send

Array = npt.NDArray[Any]

_SMALL = 64
"""A mean of up to so many values is known by them."""


def suits(how: Preprocessing) -> bool:
    """Whether an image's blob is made of its three bytes a pixel by steps that a GPU does exactly as the host."""
    return how.kind in ("bgr", "rgb") and not isinstance(how.scale, tuple)


def pixels_of(image: Picture, how: Preprocessing) -> tuple[Tensor, Array | None]:
    """An RGB image as uint8 (1, 3, height, width), and the mean that its blob is to be less of.

    Raises `DataError` where the mean doesn't fit."""
    pixels = np.array(image).transpose(2, 0, 1)
    mean = None if how.mean is None else fitting_mean(how.mean, pixels.shape)
    return torch.from_numpy(pixels)[None], mean


class Means:
    """Means on a device, each sent once."""

    def __init__(self) -> None:
        self._known: dict[object, tuple[Array, Tensor]] = {}

    def on(self, device: torch.device, name: str, mean: Array) -> Tensor:
        """The mean of input `name` on a device."""
        key = name, device, mean.tobytes() if mean.size <= _SMALL else ""
        found = self._known.get(key)
        if found is None or (mean.size > _SMALL and found[0] is not mean):
            found = mean, send(torch.from_numpy(np.ascontiguousarray(mean)), device)
            self._known[key] = found
        return found[1]


def to_blobs(pixels: Tensor, how: Preprocessing, mean: Tensor | None) -> Tensor:
    """Float32 blobs (N, 3, height, width) of images' pixels, to the last bit those of `images.to_blob`."""
    value = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    if how.kind == "bgr":
        value = value.flip(1)
    if mean is not None:
        value = value - mean
    if how.scale != 1.0 and not isinstance(how.scale, tuple):
        value = value * float(np.float32(how.scale))
    return value.to(torch.float32)
