"""The shapes of blobs: of data layers' tops as far as they are known, and of all that is computed from them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fcnproto.errors import GraphError, first_line
from fcnproto.graph import Blob, Graph
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.source import SourceLayer
from fcnproto.net.calling import is_own
from fcnproto.schema.blobs import MOST_AXES

PartialShape = tuple[int | None, ...]
"""A shape whose None entries are known only once data is read."""

GUESSES = ((1, 3, 256, 320), (1, 4, 288, 384))
"""Extents assumed for what only the data know, by axis: batch, channels, height, width. Two of them show whether a
parameter's shape depends on it."""

# Some more than any machine has; torch's own sums of sizes don't overflow below it.
_MOST_ADDRESSED = 1 << 56


def source_shapes(
    graph: Graph, layers: Sequence[Layer], given: Mapping[str, Sequence[int]], *, look: bool
) -> dict[Blob, PartialShape | None]:
    """The shapes of the data layers' tops as far as they are known, with `look` also by opening what they read."""
    sources: dict[Blob, PartialShape | None] = {}
    for node, layer in zip(graph.nodes, layers, strict=True):
        if not node.is_data:
            continue
        shapes: Sequence[PartialShape | None] | None
        if isinstance(layer, SourceLayer) and not look:
            shapes = layer.declared_shapes()
        else:
            shapes = layer.top_shapes([])
        for j, blob in enumerate(node.tops):
            shape = given[blob.name] if blob.name in given else None if shapes is None else shapes[j]
            sources[blob] = None if shape is None else _checked_shape(layer, blob.name, shape)
    unknown = set(given) - {blob.name for blob in sources}
    if unknown:
        known = ", ".join(repr(blob.name) for blob in sources) or "none"
        raise GraphError(f"{graph.title}: a shape for {min(unknown)!r}, which is no data top; they are {known}")
    return sources


def _checked_shape(layer: Layer, name: str, shape: Sequence[int | None]) -> PartialShape:
    """A top's shape as a tuple, if it is one that Caffe's blobs can have."""
    try:
        known = [extent for extent in shape if extent is not None]
    except TypeError:
        layer.fail(f"top {name!r} can't have the shape {shape!r}; give a sequence of extents")
    if not all(isinstance(extent, (int, np.integer)) and extent >= 0 for extent in known):
        layer.fail(f"top {name!r} can't have the shape {tuple(shape)}; extents are whole numbers from 0 on")
    if len(shape) > MOST_AXES or math.prod(known) > _MOST_ADDRESSED:
        layer.fail(f"top {name!r} can't have the shape {tuple(shape)}; no tensor is that large")
    return tuple(None if extent is None else int(extent) for extent in shape)


def assume(
    sources: Mapping[Blob, PartialShape | None], guess: Sequence[int], channels: Mapping[Blob, int] | None = None
) -> dict[Blob, Shape]:
    """Whole shapes by a guess, but for the tops whose `channels` are taken for known."""
    result: dict[Blob, Shape] = {}
    for blob, shape in sources.items():
        own = (guess[0], (channels or {}).get(blob, guess[1]), *guess[2:])
        result[blob] = own if shape is None else tuple(own[min(i, 3)] if n is None else n for i, n in enumerate(shape))
    return result


def assumed_shapes(known: Mapping[str, PartialShape | None], graph: Graph) -> dict[Blob, Shape]:
    """Whole shapes of data tops from what is `known` of them by name; one image of 256 x 320 where nothing is."""
    tops = {blob: known.get(blob.name) for node in graph.nodes if node.is_data for blob in node.tops}
    return assume(tops, GUESSES[0])


def blob_shapes(
    graph: Graph, layers: Sequence[Layer], sources: Mapping[Blob, Shape], *, partial: bool = False
) -> dict[Blob, Shape]:
    """The shapes of all blob versions of a net that is set up, from those of its data tops.

    Blobs behind layers that can't be computed for now are left out. With `partial` data tops may be missing, and blobs
    that need them are left out, too. `LayerError` where a layer can't work on the shapes that it gets.
    """
    shapes: dict[Blob, Shape] = dict(sources)
    partial = partial or any(node.held for node in graph.nodes)
    for node, layer in zip(graph.nodes, layers, strict=True):
        if node.is_data or node.held or (partial and any(blob not in shapes for blob in node.bottoms)):
            continue
        tops = layer_shapes(layer, [shapes[blob] for blob in node.bottoms])
        shapes.update(zip(node.tops, tops, strict=True))
    return shapes


def layer_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    """The shapes of a layer's tops: as it says them, else by running a twin of it on the meta device."""
    said = layer.top_shapes(bottoms)
    if said is not None:
        return [tuple(shape) for shape in said]
    blobs = [*layer.parameters(), *layer.buffers()]
    memo: dict[int, object] = {id(blob): torch.empty_like(blob, device="meta") for blob in blobs}  # not copied
    try:
        twin = copy.deepcopy(layer, memo).to("meta")
        with torch.no_grad():
            result = twin(*(torch.empty(shape, dtype=torch.float32, device="meta") for shape in bottoms))
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        if not (isinstance(error, RuntimeError) or is_own(layer)):
            raise
        shapes = ", ".join(map(str, bottoms)) or "(none)"
        layer.fail(f"can't work on bottoms of shape {shapes}: {first_line(error)}")
    tops = result if isinstance(result, (tuple, list)) else (result,)
    return [tuple(top.shape) for top in tops]
