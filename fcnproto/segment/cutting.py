"""Maps of scores in tiles, equal to those of the whole image: where each tile begins and ends, and what is kept of it.

A net of windows and pointwise layers commutes with shifts by its stride. A tile that begins a multiple of the stride
after the image's edge, and ends a multiple before the other, is computed as the whole image is, except near the edges
that the image hasn't got. What is kept of a tile depends on nothing there: in each blob the positions that it needs
(the receptive field, layer by layer) lie within those that the tile has, or at an edge that is the image's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from torch import Tensor

from fcnproto.errors import DataError, UsageError
from fcnproto.graph.graph import Blob, Node
from fcnproto.inspect.summary import blob_bytes
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.convolution import Convolution, Deconvolution
from fcnproto.layers.normalisation import LRN
from fcnproto.layers.pooling import Pooling
from fcnproto.layers.shaping import Crop
from fcnproto.net import Net
from fcnproto.net.reach import Box, needed
from fcnproto.net.shapes import blob_shapes

Rate = tuple[Fraction, Fraction]
"""Positions of a blob for each pixel of the image, down and across."""


class Cut(NamedTuple):
    """A tile along one axis: its pixels, from `start` up to `stop`, and for each blob the positions kept of it."""

    start: int
    stop: int
    kept: dict[str, tuple[int, int]]


class Part(NamedTuple):
    """Scores (N, C, height, width) of some positions of a blob; `top` and `left` say where the first one lies."""

    blob: str
    top: int
    left: int
    scores: Tensor


@dataclass(frozen=True)
class Strides:
    """How a net's blobs lie over its image: what can be said of it without knowing the image's size.

    Raises:
        UsageError: by `of`, where a layer behind the blobs doesn't commute with shifts, or where blobs meet that lie
            otherwise over the image.
    """

    net: Net
    blobs: tuple[str, ...]
    rates: Mapping[Blob, Rate]

    @classmethod
    def of(cls, net: Net, blobs: Sequence[str]) -> Strides:
        """Those of a net, for the score blobs."""
        behind = _behind(net, blobs)
        rates: dict[Blob, Rate] = {}
        for node, layer in zip(net.graph.nodes, net.layers, strict=True):
            if not any(top in behind for top in node.tops):
                continue
            rate = _rate(node, layer, [rates[bottom] for bottom in node.bottoms], behind)
            rates |= dict.fromkeys(node.tops, rate)
        return cls(net, tuple(blobs), rates)

    @property
    def steps(self) -> tuple[int, int]:
        """The fewest rows and columns by which an image may be shifted so that every blob is shifted by whole
        positions."""
        down, across = (math.lcm(*(rate[axis].denominator for rate in self.rates.values())) for axis in (0, 1))
        return down, across

    def cutting(self, shapes: Mapping[str, Shape]) -> Cutting:
        """How images of these shapes, by input, are cut. `UsageError` where the score blobs are no maps."""
        found = self.shapes(shapes)
        for blob in self.rates:
            if len(found.get(blob, ())) != 4:
                raise UsageError(f"tiles need maps (N, C, height, width); blob {blob.name!r} is none")
        return Cutting(self, found, tuple(next(iter(shapes.values()))[2:]))

    def shapes(self, given: Mapping[str, Shape]) -> dict[Blob, Shape]:
        """The shapes of all blobs from those of the inputs."""
        tops = (top for node in self.net.graph.nodes if node.is_data for top in node.tops)
        sources = {top: tuple(given[top.name]) for top in tops if top.name in given}
        return blob_shapes(self.net.graph, self.net.layers, sources, partial=True)

    def bytes_alive(self, given: Mapping[str, Shape]) -> int:
        """The most bytes of blobs alive at one time where images of these shapes go through the net."""
        return blob_bytes(self.net.graph.nodes, self.shapes(given))[1]


def _behind(net: Net, blobs: Sequence[str]) -> set[Blob]:
    """The blobs that these depend on, also by their size alone, and themselves."""
    stack, found = [net.graph.blob(name) for name in blobs], set[Blob]()
    while stack:
        blob = stack.pop()
        if blob not in found:
            found.add(blob)
            stack += blob.producer.bottoms
    return found


def _rate(node: Node, layer: Layer, bottoms: Sequence[Rate], behind: set[Blob]) -> Rate:
    """The rate of a layer's tops from those of its bottoms."""
    if node.is_data and not node.facts.makes_data:
        return Fraction(1), Fraction(1)
    if not bottoms:
        _refuse(node, "makes values of a size of its own")
    if len(set(bottoms)) > 1:
        _refuse(node, "joins blobs of different strides")
    down, across = bottoms[0]
    if isinstance(layer, (Convolution, Deconvolution)):
        window = layer.window
        if window.same or len(window.kernel) != 2:
            _refuse(node, "pads by SAME or has other than two axes")
        if isinstance(layer, Deconvolution):
            return down * window.stride[0], across * window.stride[1]
        return down / window.stride[0], across / window.stride[1]
    if isinstance(layer, Pooling):
        windows = layer.windows
        if layer.config.global_pooling or windows is None or windows.same:
            _refuse(node, "looks at the whole image or pads by SAME")
        if any(top in behind for top in node.tops[1:]):
            _refuse(node, "says places within the whole image")
        return down / windows.stride[0], across / windows.stride[1]
    within = isinstance(layer, LRN) and layer.config.norm_region == layer.config.WITHIN_CHANNEL
    if not (within or isinstance(layer, Crop) or layer.is_pointwise(node.param, layer.training)):
        _refuse(node, "isn't known to compute every part of an image alike")
    return down, across


def _refuse(node: Node, why: str) -> None:
    raise UsageError(
        f"layer {node.name!r} ({node.type}) {why}, so the net can't be computed in tiles; leave them off (--tile off)"
    )


class Cutting:
    """How images of one size are cut into tiles for a net."""

    def __init__(self, strides: Strides, shapes: Mapping[Blob, Shape], size: tuple[int, ...]) -> None:
        self.strides, self.size = strides, size
        self._extents = {blob: shapes[blob][2:] for blob in strides.rates}

    def piece(self, side: int) -> tuple[int, int]:
        """Height and width of what goes through the net for tiles of `side` pixels."""
        down, across = (self.cuts(axis, side)[0] for axis in (0, 1))
        return down.stop - down.start, across.stop - across.start

    def cuts(self, axis: int, side: int) -> list[Cut]:
        """The tiles along an axis (0 down, 1 across), all of one length, for results of `side` pixels (made a multiple
        of the stride) at a time."""
        length, step = self.size[axis], self.strides.steps[axis]
        count = -(-length // max(-(-side // step) * step, step))
        core = -(-length // (count * step)) * step
        firsts = range(0, length, core)
        found = [self._cut(axis, first, first + core, first + core >= length) for first in firsts]
        longest = max(cut.stop - cut.start for cut in found)
        starts = [min(cut.start, length - longest) for cut in found]
        return [Cut(start, start + longest, cut.kept) for start, cut in zip(starts, found, strict=True)]

    def _cut(self, axis: int, first: int, last: int, ends: bool) -> Cut:
        """The tile for the pixels from `first` up to `last`; with `ends` up to the end of every blob."""
        kept, wanted = {}, {}
        for name in self.strides.blobs:
            blob = self.strides.net.graph.blob(name)
            extent, rate = self._extents[blob][axis], self.strides.rates[blob][axis]
            begin, end = min(int(first * rate), extent), extent if ends else min(int(last * rate), extent)
            kept[name] = begin, end
            if begin < end:
                wanted[blob] = Box((begin, end - 1), (begin, end - 1))
        before = after = self.size[axis]
        for blob, box in needed(self.strides.net, wanted).items():
            low, high = box.columns if axis else box.rows
            extent, rate = self._extents[blob][axis], self.strides.rates[blob][axis]
            before = min(before, math.floor(max(low, 0) / rate))
            after = min(after, math.floor(max(extent - 1 - high, 0) / rate))
        step = self.strides.steps[axis]
        return Cut(before // step * step, self.size[axis] - after // step * step, kept)

    def run(
        self, values: Mapping[str, Tensor], side: int, compute: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
    ) -> Iterator[Part]:
        """All scores of the images `values` by input (N, C, height, width), part by part. `compute` gives the blobs of
        a tile. Raises `DataError` where these have another size than a tile's."""
        for down in self.cuts(0, side):
            for across in self.cuts(1, side):
                window = slice(down.start, down.stop), slice(across.start, across.stop)
                scores = compute({name: value[:, :, window[0], window[1]] for name, value in values.items()})
                for name, found in scores.items():
                    rows, columns = (self._own(name, axis, cut, found) for axis, cut in enumerate((down, across)))
                    if rows.start < rows.stop and columns.start < columns.stop:
                        part = found[:, :, rows, columns]
                        yield Part(name, down.kept[name][0], across.kept[name][0], part)

    def extents(self, name: str) -> tuple[int, ...]:
        """Height and width of a score blob of the whole image."""
        return tuple(self._extents[self.strides.net.graph.blob(name)])

    def _own(self, name: str, axis: int, cut: Cut, found: Tensor) -> slice:
        """The positions of a tile's blob that are kept."""
        blob = self.strides.net.graph.blob(name)
        rate, extent = self.strides.rates[blob][axis], self._extents[blob][axis]
        expected = extent - (self.size[axis] - (cut.stop - cut.start)) * rate
        if found.shape[2 + axis] != expected:
            raise DataError(
                f"blob {name!r} of a tile has {found.shape[2 + axis]} positions along an axis where {expected} belong; "
                "leave tiles off (--tile off)"
            )
        begin, end = cut.kept[name]
        return slice(begin - int(cut.start * rate), end - int(cut.start * rate))
