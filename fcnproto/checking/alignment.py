"""Rules about data layers that belong together: whether images and label maps of separate layers stay together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

from fcnproto.checking.findings import Finding
from fcnproto.checking.kinds import found
from fcnproto.data.database import Data
from fcnproto.data.hdf5 import HDF5Data
from fcnproto.data.image_data import ImageData
from fcnproto.errors import DataError, LayerError
from fcnproto.graph import Blob, Node
from fcnproto.layers.base import Layer, Shape
from fcnproto.net import Net
from fcnproto.net.roles import judges
from fcnproto.net.shapes import assumed_shapes, blob_shapes


def apart(net: Net, shapes: Mapping[Blob, Shape] | None = None) -> Iterator[Finding]:
    """Losses whose scores come from one data layer and whose label maps from another, either drawing at random.

    `shapes` are the blobs'; without, they are found where they matter, for which sources may be looked into.
    """
    layers = dict(zip(net.graph.nodes, net.layers, strict=True))
    told: set[frozenset[str]] = set()
    for node in net.graph.nodes:
        if not judges(node) or len(node.bottoms) < 2:
            continue
        labels = _origins(node.bottoms[1])
        for image, label in product(_origins(node.bottoms[0]) - labels, labels):
            pair = [layers[image], layers[label]]
            reasons = [f"{one.name!r} {what}" for one in pair for what in _random(one)]
            names = frozenset(one.name for one in pair)
            if not reasons or names in told:
                continue
            shapes = _shapes(net) if shapes is None else shapes
            scores = shapes.get(node.bottoms[0], ())
            if len(scores) == 4 and scores[2] * scores[3] > 1:
                told.add(names)
                yield found("unaligned-random", [one.name for one in pair], f"{', '.join(reasons)} by itself")


def _shapes(net: Net) -> Mapping[Blob, Shape]:
    try:
        return blob_shapes(net.graph, net.layers, assumed_shapes(net.source_shapes, net.graph), partial=True)
    except (DataError, LayerError):
        return {}


def _origins(blob: Blob) -> set[Node]:
    """The data layers that a blob's values come from."""
    stack, seen, result = [blob.producer], set[Node](), set[Node]()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.is_data:
            result.add(node)
        lent = node.facts.size_bottoms
        stack += [bottom.producer for place, bottom in enumerate(node.bottoms) if place not in lent]
    return result


def _random(layer: Layer) -> Iterator[str]:
    """What a data layer draws by itself in TRAIN."""
    transform = layer.param.transform_param
    if isinstance(layer, (Data, ImageData)):
        if transform.mirror:
            yield "mirrors"
        if transform.crop_size:
            yield f"crops {transform.crop_size} x {transform.crop_size}"
    if (isinstance(layer, (ImageData, HDF5Data)) and layer.config.shuffle) or (
        isinstance(layer, Data) and layer.shuffles
    ):
        yield "shuffles"
    if isinstance(layer, (Data, ImageData)) and layer.config.rand_skip:
        yield "skips at random"
