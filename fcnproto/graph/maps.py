"""Coordinate maps of single layers: where a position of a layer's bottom lies in its top.

A `CoordMap` and the rules that give one from a layer's settings, for layer types to name as theirs
(`coordinates = staticmethod(maps.same)`). How maps compose along a net is in `coord_map.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from fcnproto.errors import GraphError
from fcnproto.graph.windows import WindowError, dilations, is_same, pads_by_side
from fcnproto.schema import caffe_pb2


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


def nowhere(param: caffe_pb2.LayerParameter) -> CoordMap | None:
    """A layer whose top has no positions that are its bottom's."""
    return None


def same(param: caffe_pb2.LayerParameter) -> CoordMap | None:
    """Each position of the top depends on the same position of the bottom, or on windows with it in the middle."""
    return CoordMap()


def concat(param: caffe_pb2.LayerParameter) -> CoordMap | None:
    """Caffe's Concat: channels joined keep their positions."""
    config = param.concat_param
    axis = config.concat_dim if config.HasField("concat_dim") else config.axis
    return CoordMap() if axis == 1 and not config.per_fla_fuse else None


def slices(param: caffe_pb2.LayerParameter) -> CoordMap | None:
    """Caffe's Slice: channels cut apart keep their positions."""
    config = param.slice_param
    axis = config.slice_dim if config.HasField("slice_dim") else config.axis
    return CoordMap() if axis == 1 else None


def softmax(param: caffe_pb2.LayerParameter) -> CoordMap | None:
    """Caffe's Softmax: one over the channels keeps positions apart."""
    return CoordMap() if param.softmax_param.axis == 1 else None


def crop(param: caffe_pb2.LayerParameter) -> CoordMap | None:
    """Caffe's Crop, an offset of 0 where none is given."""
    offset = tuple(Fraction(-value) for value in param.crop_param.offset) or (Fraction(0),)
    return CoordMap(param.crop_param.axis - 1, shift=offset)


def interp(param: caffe_pb2.LayerParameter) -> CoordMap | None:
    """The forks' Interp where its map does not depend on the size: a zoom alone, corners on corners."""
    config = param.interp_param
    others = ("height", "width", "shrink_factor")
    if len(param.bottom) > 1 or any(config.HasField(name) for name in others) or not config.HasField("zoom_factor"):
        return None
    zoom = Fraction(config.zoom_factor)
    return CoordMap(1, (zoom,), (zoom * config.pad_beg,), windowed=True)


def convolution(param: caffe_pb2.LayerParameter) -> CoordMap | None:
    """A window that slides over its bottom, as `convolution_param` says it.

    Raises `GraphError` for a window given by `*_h`/`*_w` fields, or without `kernel_size`.
    """
    config = param.convolution_param
    return _window(param, config, config.axis)


def deconvolution(param: caffe_pb2.LayerParameter) -> CoordMap | None:
    """The way back of `convolution` with the same settings."""
    found = convolution(param)
    return None if found is None else found.inverse()


def pooling(param: caffe_pb2.LayerParameter) -> CoordMap | None:
    """A window as `pooling_param` says it; `GraphError` as in `convolution`."""
    return _window(param, param.pooling_param, 1)


def _window(
    param: caffe_pb2.LayerParameter,
    message: caffe_pb2.ConvolutionParameter | caffe_pb2.PoolingParameter,
    axis: int,
) -> CoordMap:
    where = f"{param.type} layer {param.name!r}" if param.name else f"a {param.type} layer"
    for name in ("kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w"):
        if message.HasField(name):
            raise GraphError(f"{where} uses {name}; coordinate maps need kernel_size, stride and pad")
    kernel, stride = _values(message.kernel_size, 0), _values(message.stride, 1)
    try:
        pad, dilation = _pads(message, kernel, stride), _values(_dilations(message), 1)
    except WindowError as error:
        raise GraphError(f"{where}: {error}") from error
    if pad is None:
        raise GraphError(f"{where} pads by SAME with a stride, which depends on the size, so no coordinate map")
    if 0 in kernel or 0 in stride:
        raise GraphError(f"{where} has no kernel_size or a stride of 0, so no coordinate map; give kernel_size")
    extent = tuple((k - 1) * d + 1 for k, d in _together(kernel, dilation))
    shift = tuple(p - (k - 1) / 2 for p, k in _together(pad, extent))
    inverse = tuple(1 / s for s in stride)
    return CoordMap(axis, inverse, tuple(b / s for b, s in _together(shift, stride)), windowed=True)


def _dilations(message: caffe_pb2.ConvolutionParameter | caffe_pb2.PoolingParameter) -> Sequence[int]:
    return dilations(message) if isinstance(message, caffe_pb2.ConvolutionParameter) else ()


def _pads(
    message: caffe_pb2.ConvolutionParameter | caffe_pb2.PoolingParameter,
    kernel: Sequence[Fraction],
    stride: Sequence[Fraction],
) -> tuple[Fraction, ...] | None:
    """The padding before the first position; None where the bottom's size decides it."""
    if is_same(message):
        return None if any(step != 1 for step in stride) else tuple(Fraction((k - 1) // 2) for k in kernel)
    sides = pads_by_side(message)
    return _values(message.pad if sides is None else sides[0], 0)


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
