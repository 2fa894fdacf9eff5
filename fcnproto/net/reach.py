"""Which pixels of the data a position of a blob depends on: the receptive field of one position, as a box.

Goes back layer by layer from the blob, with the windows of convolutions, deconvolutions and poolings and the offsets of
crops; several ways to the data give the box around all of theirs. Where a layer's reach isn't known (an inner product,
a resizing by the blob's size), everything is in reach.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fcnproto.errors import GraphError
from fcnproto.graph.graph import Blob, Node
from fcnproto.layers.base import Layer
from fcnproto.layers.convolution import Convolution, Deconvolution
from fcnproto.layers.normalisation import LRN
from fcnproto.layers.pooling import Pooling
from fcnproto.layers.shaping import Crop
from fcnproto.net.net import Net

Span = tuple[float, float]
"""First and last position along an axis, both within; -inf and inf where everything is."""
ALL: Span = (-math.inf, math.inf)


@dataclass(frozen=True)
class Box:
    """Rows and columns, both ends within; they may lie outside the image, in its padding."""

    rows: Span
    columns: Span

    def around(self, other: Box) -> Box:
        """The smallest box that holds both."""
        pairs = zip((self.rows, self.columns), (other.rows, other.columns), strict=True)
        rows, columns = ((min(a[0], b[0]), max(a[1], b[1])) for a, b in pairs)
        return Box(rows, columns)


def reach(net: Net, blob: str, row: int, column: int) -> dict[str, Box]:
    """For each top of a data layer that position (`row`, `column`) of `blob` depends on: the box in that top.

    Raises `GraphError` for an unknown blob.
    """
    boxes = needed(net, {net.graph.blob(blob): Box((row, row), (column, column))})
    return {found.name: box for found, box in boxes.items() if found.producer.is_data}


def needed(net: Net, wanted: Mapping[Blob, Box]) -> dict[Blob, Box]:
    """For each blob that the positions `wanted` of some blobs depend on: the box of its positions that they need."""
    boxes = dict(wanted)
    for node, layer in reversed(list(zip(net.graph.nodes, net.layers, strict=True))):
        tops = [top for top in node.tops if top in boxes]
        if not tops or node.is_data:
            continue
        box = boxes[tops[0]]
        for top in tops[1:]:
            box = box.around(boxes[top])
        for place, bottom in enumerate(node.bottoms):
            if place in node.facts.size_bottoms:
                continue
            below = _below(node, layer, box)
            boxes[bottom] = below.around(boxes[bottom]) if bottom in boxes else below
    return boxes


def _below(node: Node, layer: Layer, box: Box) -> Box:
    """What a layer reads of its bottoms for the positions in `box`."""
    rows, columns = (_span(node, layer, axis, span) for axis, span in enumerate((box.rows, box.columns)))
    return Box(rows, columns)


def _span(node: Node, layer: Layer, axis: int, span: Span) -> Span:
    if span == ALL:
        return ALL
    if isinstance(layer, (Convolution, Deconvolution)):
        window = layer.window
        if window.same or len(window.kernel) != 2:
            return ALL
        step, pad, extent = window.stride[axis], window.pad[axis], window.extent[axis]
        if isinstance(layer, Deconvolution):
            return -(-(int(span[0]) + pad - extent + 1) // step), (int(span[1]) + pad) // step
        return span[0] * step - pad, span[1] * step - pad + extent - 1
    if isinstance(layer, Pooling):
        return _pooled(layer, axis, span)
    if isinstance(layer, Crop):
        offset = dict(layer.offsets((1, 1, 1, 1))).get(2 + axis, 0)
        return span[0] + offset, span[1] + offset
    if isinstance(layer, LRN) and layer.config.norm_region == layer.config.WITHIN_CHANNEL:
        half = layer.config.local_size // 2
        return span[0] - half, span[1] + half
    return span if _keeps_positions(node) else ALL


def _pooled(layer: Pooling, axis: int, span: Span) -> Span:
    windows = layer.windows
    if layer.config.global_pooling or windows is None or windows.same:
        return ALL
    step, pad = windows.stride[axis], windows.pad[axis]
    return span[0] * step - pad, span[1] * step - pad + windows.kernel[axis] - 1


def _keeps_positions(node: Node) -> bool:
    """Whether each position of the top is made of the same position of the bottoms."""
    try:
        found = node.facts.coordinates(node.param)
    except GraphError:
        return False
    return found is not None and not found.windowed and not any(found.shift) and all(s == 1 for s in found.scale)


def within(box: Box, size: Sequence[int]) -> tuple[int, int, int, int] | None:
    """The box's part inside an image of `size` (height, width) as (top, left, bottom, right), the last two without;
    None where it lies outside."""
    ends = []
    for (first, last), length in zip((box.rows, box.columns), size, strict=True):
        ends.append((int(max(0, first)), int(min(length - 1, last)) + 1))
    (top, bottom), (left, right) = ends
    return (top, left, bottom, right) if top < bottom and left < right else None
