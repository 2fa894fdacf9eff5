"""Coordinate maps: where a position of one blob lies in another, and the Crop that aligns the two.

A map says `position in to = scale * position in from + shift` per spatial axis, for positions at the centres of
receptive fields. The rules and the refusals are those of pycaffe's coordinate maps, computed exactly in fractions;
beyond it, maps pass through a Concat of channels, so that nets of inception modules have one.
Works on everything that knows its producing layer: the builder's tops, the blobs of a `Graph`, and, through
`link`, the plain layer list of an upgraded NetParameter. Says nothing about sizes: whether a crop fits depends on the
image.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol, TypeVar

from fcnproto.errors import GraphError
from fcnproto.schema import caffe_pb2

_WINDOWS = {"Convolution", "Deconvolution", "Im2col", "Pooling"}
# Each position of the top depends on the same position of the bottom.
# fmt: off
_POINTWISE = {
    "AbsVal", "BNLL", "BatchNorm", "Bias", "Dropout", "ELU", "Eltwise", "Exp", "LRN", "Log", "MVN", "PReLU", "Power",
    "ReLU", "Scale", "Sigmoid", "Split", "TanH", "Threshold",
}
# fmt: on


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


@dataclass(frozen=True)
class CoordMap:
    """`scale` and `shift` per spatial axis (one value stands for all), counted from axis `axis` + 1 of the blob.

    `axis` is Caffe's channel axis (1 for images), None where no layer in between has one. `windowed` tells
    whether any convolution or pooling took part; without one there is nothing to derive a crop from.
    """

    axis: int | None = None
    scale: tuple[Fraction, ...] = (Fraction(1),)
    shift: tuple[Fraction, ...] = (Fraction(0),)
    windowed: bool = False

    def compose(self, inner: CoordMap) -> CoordMap:
        """The map that applies `inner` first. `GraphError` where both name an axis and the two differ."""
        if self.axis is not None and inner.axis is not None and self.axis != inner.axis:
            raise GraphError(
                f"coordinate maps count from different axes ({self.axis} and {inner.axis}); "
                "give the layers in between the same `axis`"
            )
        axis = inner.axis if self.axis is None else self.axis
        scale = tuple(a * c for a, c in _together(self.scale, inner.scale))
        moved = tuple(a * d for a, d in _together(self.scale, inner.shift))
        shift = tuple(m + b for m, b in _together(moved, self.shift))
        return CoordMap(axis, scale, shift, self.windowed or inner.windowed)

    def inverse(self) -> CoordMap:
        """The map back."""
        shift = tuple(-b / a for a, b in _together(self.scale, self.shift))
        return CoordMap(self.axis, tuple(1 / a for a in self.scale), shift, self.windowed)


def layer_map(param: caffe_pb2.LayerParameter) -> CoordMap | None:
    """The map of one layer, from its (first) bottom to its top; None for a type that has no such map.

    Raises `GraphError` for a window given by `*_h`/`*_w` fields, or without `kernel_size`.
    """
    if param.type in _POINTWISE or (param.type == "Concat" and param.concat_param.axis == 1):
        return CoordMap()
    if param.type == "Crop":
        offset = tuple(Fraction(-value) for value in param.crop_param.offset) or (Fraction(0),)
        return CoordMap(param.crop_param.axis - 1, shift=offset)
    if param.type in _WINDOWS:
        return _window_map(param)
    return None


def _window_map(param: caffe_pb2.LayerParameter) -> CoordMap:
    message = param.pooling_param if param.type == "Pooling" else param.convolution_param
    where = f"{param.type} layer {param.name!r}" if param.name else f"a {param.type} layer"
    for name in ("kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w"):
        if message.HasField(name):
            raise GraphError(f"{where} uses {name}; coordinate maps need kernel_size, stride and pad")
    dilation = [] if param.type == "Pooling" else message.dilation
    kernel, stride = _values(message.kernel_size, 0), _values(message.stride, 1)
    pad, dilation = _values(message.pad, 0), _values(dilation, 1)
    if 0 in kernel or 0 in stride:
        raise GraphError(f"{where} has no kernel_size or a stride of 0, so no coordinate map; give kernel_size")
    extent = tuple((k - 1) * d + 1 for k, d in _together(kernel, dilation))
    shift = tuple(p - (k - 1) / 2 for p, k in _together(pad, extent))
    axis = 1 if param.type == "Pooling" else message.axis
    if param.type == "Deconvolution":
        return CoordMap(axis, stride, tuple(-b for b in shift), windowed=True)
    inverse = tuple(1 / s for s in stride)
    return CoordMap(axis, inverse, tuple(b / s for b, s in _together(shift, stride)), windowed=True)


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
        # The reference of a Crop lends its size, not its values.
        bottoms = producer.bottoms[:1] if producer.param.type == "Crop" else producer.bottoms
        step = layer_map(producer.param) if bottoms else None
        if step is None:
            continue
        for bottom in bottoms:
            if bottom not in maps:
                maps[bottom] = maps[blob].compose(step)
                frontier.append(bottom)


_Value = TypeVar("_Value")


def _together(left: Sequence[Fraction], right: Sequence[Fraction]) -> Iterator[tuple[Fraction, Fraction]]:
    """Pairs of two per-axis lists, of which either may hold one value for all axes."""
    count = max(len(left), len(right))
    if {len(left), len(right)} - {1, count}:
        raise GraphError(f"layers with {len(left)} and {len(right)} spatial axes can't be mapped on each other")
    yield from zip(_spread(left, count), _spread(right, count), strict=True)


def _spread(values: Sequence[_Value], count: int) -> Sequence[_Value]:
    return list(values) * count if len(values) == 1 else values


def _values(field_value: int | Sequence[int], default: int) -> tuple[Fraction, ...]:
    """A window setting as fractions: Pooling's fields hold one number, the convolutions' fields are repeated."""
    values = [field_value] if isinstance(field_value, int) else list(field_value)
    return tuple(Fraction(value) for value in values or [default])


def _listed(values: Sequence[Fraction] | Iterator[Fraction]) -> str:
    return ", ".join(f"{float(value):g}" for value in values)


def _title(blob: Located) -> str:
    name = getattr(blob, "name", "") or blob.producer.param.name
    return f"blob {name!r}" if name else f"the top of an unnamed {blob.producer.param.type} layer"
