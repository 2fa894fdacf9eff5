"""Coordinate maps: where a position of one blob lies in another, and the Crop that aligns the two.

A map says `position in to = scale * position in from + shift` per spatial axis, for positions at the centres of
receptive fields. The rules and the refusals are those of pycaffe's coordinate maps, computed exactly in fractions;
beyond it, maps pass through a Concat of channels, so that nets of inception modules have one, and through every
pointwise layer. Each layer type says its own rule (`maps.py`, `facts.py`).
Works on everything that knows its producing layer: the builder's tops, the blobs of a `Graph`, and, through
`link`, the plain layer list of an upgraded NetParameter. Says nothing about sizes: whether a crop fits depends on the
image.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

from fcnproto.errors import GraphError
from fcnproto.graph import facts
from fcnproto.graph.maps import CoordMap
from fcnproto.schema import caffe_pb2


class Producer(Protocol):
    """A layer with its inputs, as the walk needs it."""

    @property
    def param(self) -> caffe_pb2.LayerParameter: ...

    @property
    def bottoms(self) -> Sequence[Located]: ...


class Located(Hashable, Protocol):
    """A blob that knows which layer wrote it."""

    @property
    def producer(self) -> Producer: ...


def layer_map(param: caffe_pb2.LayerParameter) -> CoordMap | None:
    """The map of one layer, from its (first) bottom to its top; None for a type that has no such map.

    Raises `GraphError` for a window given by `*_h`/`*_w` fields, or without `kernel_size`.
    """
    return facts.coordinates(param)


def coord_map_from_to(start: Located, end: Located) -> CoordMap:
    """The map from positions in `start` to positions in `end`, through their nearest common ancestor.

    Raises `GraphError` where no chain of spatial layers connects the two.
    """
    from_maps = dict(_ancestors(start))
    for blob, to_map in _ancestors(end):
        if blob in from_maps:
            return to_map.compose(from_maps[blob].inverse())
    raise GraphError(
        f"no coordinate map between {_title(start)} and {_title(end)}: no chain of spatial layers connects them to "
        "a common blob"
    )


def crop(start: Located, reference: Located) -> caffe_pb2.CropParameter:
    """The axis and the offsets of the Crop that lays `start` over `reference`.

    Raises `GraphError` unless the two have the same resolution and differ by a whole, non-negative number of positions
    per axis.
    """
    found = coord_map_from_to(start, reference)
    where = f"can't crop {_title(start)} to {_title(reference)}"
    if not found.windowed or found.axis is None:
        raise GraphError(f"{where}: no convolution or pooling lies between them, there is nothing to align")
    if any(a != 1 for a in found.scale):
        raise GraphError(
            f"{where}: their resolutions differ by {_listed(found.scale)}; upsample to the same resolution"
        )
    if any(b > 0 for b in found.shift):
        raise GraphError(f"{where}: it would begin outside, at {_listed(-b for b in found.shift)}; pad more")
    if any(b.denominator != 1 for b in found.shift):
        raise GraphError(
            f"{where}: the offset {_listed(-b for b in found.shift)} is not a whole number; change a kernel or a pad"
        )
    return caffe_pb2.CropParameter(axis=found.axis + 1, offset=[int(-b) for b in found.shift])


@dataclass(eq=False)
class LinkedBlob:
    """One version of a blob of a linked NetParameter."""

    name: str
    producer: LinkedLayer


@dataclass(eq=False)
class LinkedLayer:
    """A layer message with the blobs that it reads."""

    param: caffe_pb2.LayerParameter
    bottoms: list[LinkedBlob] = field(default_factory=list)


def link(net: caffe_pb2.NetParameter) -> dict[str, LinkedBlob]:
    """The blobs of an upgraded net by name, each in its last version (after in-place layers).

    Takes the layers as they stand, without regard to phases, and needs no layer types to be known. Raises
    `GraphError` for a bottom that no earlier layer writes.
    """
    blobs: dict[str, LinkedBlob] = {}
    for param in net.layer:
        for name in param.bottom:
            if name not in blobs:
                raise GraphError(f"layer {param.name!r} ({param.type}): no earlier layer writes its bottom {name!r}")
        layer = LinkedLayer(param, [blobs[name] for name in param.bottom])
        for name in param.top:
            blobs[name] = LinkedBlob(name, layer)
    return blobs


def _ancestors(start: Located) -> Iterator[tuple[Located, CoordMap]]:
    """`start` and the blobs it comes from, nearest first, each with the map from its positions to `start`'s."""
    maps: dict[Located, CoordMap] = {start: CoordMap()}
    frontier = deque([start])
    while frontier:
        blob = frontier.popleft()
        yield blob, maps[blob]
        producer = blob.producer
        lent = facts.size_bottoms(producer.param.type)
        bottoms = [bottom for i, bottom in enumerate(producer.bottoms) if i not in lent]
        step = layer_map(producer.param) if bottoms else None
        if step is None:
            continue
        for bottom in bottoms:
            if bottom not in maps:
                maps[bottom] = maps[blob].compose(step)
                frontier.append(bottom)


def _listed(values: Sequence[Fraction] | Iterator[Fraction]) -> str:
    return ", ".join(f"{float(value):g}" for value in values)


def _title(blob: Located) -> str:
    name = getattr(blob, "name", "") or blob.producer.param.name
    return f"blob {name!r}" if name else f"the top of an unnamed {blob.producer.param.type} layer"
