"""Whether and how an image is segmented in tiles, and the labels or scores of all tiles put together.

What tiles are, and why they equal the whole, is in `segment/cutting.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fcnproto.errors import UsageError
from fcnproto.layers.base import Shape
from fcnproto.net import Net
from fcnproto.net.memory import free_bytes
from fcnproto.segment.cutting import Cutting, Part, Strides

AUTO, OFF = "auto", "off"
_SURELY_SMALL = 32_768
"""Bytes: an image that has free memory of so much for each pixel isn't looked at closer."""
_OVER_BLOBS = 2.0
"""The memory that a call takes, as a multiple of the blobs alive at one time."""
_OF_FREE = 0.8
_SIDES = (8192, 4096, 2048, 1024, 512, 256, 128)
"""Pixels: the tiles that are tried in turn."""

Size = tuple[tuple[str, Shape], ...]


class Tiles:
    """The decision for a net and its score blobs, `tile` being "auto", "off" or the pixels of a side.

    Raises `UsageError` for another `tile`, and where tiles are asked for that the net's layers don't allow.
    """

    def __init__(self, net: Net, blobs: Sequence[str], tile: int | str) -> None:
        wrong = isinstance(tile, bool) or (tile not in (AUTO, OFF) if isinstance(tile, str) else tile < 1)
        if wrong:
            raise UsageError(f"tile must be 'auto', 'off' or a number of pixels from 1 on, not {tile!r}")
        self.tile, self._net = tile, net
        self._sides: dict[Size, int | None] = {}
        self._cuttings: dict[Size, Cutting] = {}
        self._strides: Strides | None = None
        if tile != OFF:
            try:
                self._strides = Strides.of(net, blobs)
            except UsageError:
                if tile != AUTO:
                    raise

    def cutting(self, values: Mapping[str, Tensor]) -> tuple[Cutting, int] | None:
        """How images of this size are cut, and the side of the tiles; None where they go through the net whole."""
        if self._strides is None:
            return None
        size = _size_of(values)
        if size not in self._sides:
            self._sides[size] = self.tile if isinstance(self.tile, int) else self._by_memory(size)
        side = self._sides[size]
        if side is None or side >= max(next(iter(values.values())).shape[2:]):
            return None
        return self._cut(size), side

    def shrink(self, values: Mapping[str, Tensor]) -> bool:
        """After memory has not sufficed: smaller tiles from now on; False where there are none that may be chosen."""
        if self._strides is None or self.tile != AUTO:
            return False
        size = _size_of(values)
        now = self._sides.get(size) or max(next(iter(values.values())).shape[2:])
        smaller = [side for side in _SIDES if side < now]
        if smaller:
            self._sides[size] = smaller[0]
        return bool(smaller)

    def _by_memory(self, size: Size) -> int | None:
        """The side of the largest tiles for which memory is free, the smallest at worst; None for the whole image."""
        free = free_bytes(self._net.device)
        count, _, height, width = size[0][1]
        if free is None or count * height * width * _SURELY_SMALL <= free or self._strides is None:
            return None

        def fits(rows: int, columns: int) -> bool:
            assert self._strides is not None
            given = {name: (*shape[:2], rows, columns) for name, shape in size}
            return self._strides.bytes_alive(given) * _OVER_BLOBS <= free * _OF_FREE

        if fits(height, width):
            return None
        smaller = [side for side in _SIDES if side < max(height, width)]
        return next((side for side in smaller if fits(*self._cut(size).piece(side))), smaller[-1] if smaller else None)

    def _cut(self, size: Size) -> Cutting:
        if size not in self._cuttings:
            assert self._strides is not None
            self._cuttings.clear()  # the latest alone: photographs come in few sizes, and a new one costs little
            self._cuttings[size] = self._strides.cutting(dict(size))
        return self._cuttings[size]


def _size_of(values: Mapping[str, Tensor]) -> Size:
    return tuple((name, tuple(value.shape)) for name, value in values.items())


class WholeScores:
    """The scores of a blob for all images of a batch, put together."""

    def __init__(self, size: Sequence[int]) -> None:
        self._size, self.scores = tuple(size), torch.empty(0)

    def put(self, part: Part) -> None:
        """Take in a part of the positions."""
        images, classes, rows, columns = part.scores.shape
        if not self.scores.numel():
            self.scores = part.scores.new_empty(images, classes, *self._size)
        self.scores[:, :, part.top : part.top + rows, part.left : part.left + columns] = part.scores


class Labels:
    """The labels of a blob for all images of a batch, put together, and the probabilities where asked for."""

    def __init__(self, size: Sequence[int], probabilities: bool) -> None:
        self._probabilities = WholeScores(size) if probabilities else None
        self._labels = WholeScores(size)
        self.classes, self.finite = 0, torch.empty(0)

    def put(self, part: Part) -> None:
        """Take in a part of the positions."""
        self.classes = part.scores.shape[1]
        finite = torch.isfinite(part.scores).flatten(1).all(1)
        self.finite = self.finite & finite if self.finite.numel() else finite
        self._labels.put(part._replace(scores=part.scores.argmax(1, keepdim=True).to(torch.uint8)))
        if self._probabilities is not None:
            self._probabilities.put(part._replace(scores=torch.softmax(part.scores.float(), 1)))

    def of(self, image: int) -> tuple[Tensor, Tensor | None]:
        """An image's labels (height, width), and its probabilities (classes, height, width)."""
        probabilities = None if self._probabilities is None else self._probabilities.scores[image]
        return self._labels.scores[image, 0], probabilities
