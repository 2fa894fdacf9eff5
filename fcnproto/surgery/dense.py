"""Scores for every pixel from a net of coarse output, without interpolation: section 3.2 of the CVPR paper, both ways.

`shift_and_stitch` runs the net on all shifts of the image within its stride and interlaces what comes out. `rarefy`
rewrites the definition so that one pass computes the same: strides are removed and later windows spread out instead
(filter rarefaction, "a trous"); weights stay as they are. The two agree everywhere in nets that pad nothing but their
first layer; padding further inside is nearer to the image in the rewritten net, so they differ at its border.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fcnproto.errors import GraphError, UsageError, net_title
from fcnproto.graph import coord_map
from fcnproto.graph.windows import DILATION_FIELDS, WindowMessage, dilations, is_same, pads_by_side
from fcnproto.layers.placeholder import class_for
from fcnproto.net import Net
from fcnproto.schema import caffe_pb2
from fcnproto.surgery.report import Report

_MAX, _AVERAGE = caffe_pb2.PoolingParameter.MAX, caffe_pb2.PoolingParameter.AVE


@dataclass(frozen=True)
class Dense:
    """`scores` (N, classes, height, width) at stride 1; the one at position p is that of the pixel p + `offset`."""

    scores: Tensor
    offset: tuple[float, float]

    def per_pixel(self, height: int, width: int) -> Tensor:
        """The scores of the pixels of an image, (N, classes, height, width).

        An offset between two pixels counts as the lower one. Raises `UsageError` where there are none for some pixels,
        because the net pads too little.
        """
        first = [-int(value // 1) for value in self.offset]
        ends = first[0] + height, first[1] + width
        if min(first) < 0 or ends[0] > self.scores.shape[2] or ends[1] > self.scores.shape[3]:
            raise UsageError(
                f"scores of {self.scores.shape[3]}x{self.scores.shape[2]} positions don't cover the image of "
                f"{width}x{height}; give the first layer more padding"
            )
        return self.scores[:, :, first[0] : ends[0], first[1] : ends[1]]


def shift_and_stitch(net: Net, data: Tensor, blob: str | None = None) -> Dense:
    """Scores at every position by f * f passes over shifted images, f being the stride of `blob` (the net's output).

    The image is moved right and down by 0 to f - 1 pixels, zeros coming in; `data` is (N, channels, height, width).
    Raises `GraphError` for a net with several inputs or outputs that are not named, or without a whole stride,
    `UsageError` for an image that is too small for the net.
    """
    name = blob or _only(net.outputs, "output", net)
    source = _only(list(net.source_shapes), "input", net)
    found = coord_map.coord_map_from_to(net.graph.blob(name), net.graph.blob(source))
    strides = [int(scale) for scale in (found.scale * 2)[:2]]
    if any(scale.denominator != 1 or scale < 1 for scale in found.scale):
        raise GraphError(f"blob {name!r} has the stride {', '.join(map(str, found.scale))}, a whole number is needed")
    passes = {}
    with torch.no_grad():
        for down, across in itertools.product(range(strides[0]), range(strides[1])):
            moved = torch.nn.functional.pad(data, (across, 0, down, 0))
            passes[down, across] = net({source: moved}, blobs=[name])[name]
    shift = (found.shift * 2)[:2]
    # Position i of the pass that is moved by s belongs at f * i - s; beyond the image's last pixel nothing is of use.
    height = min(strides[0] * scores.shape[2] - down for (down, _), scores in passes.items())
    width = min(strides[1] * scores.shape[3] - across for (_, across), scores in passes.items())
    height, width = min(height, data.shape[2] - shift[0] // 1), min(width, data.shape[3] - shift[1] // 1)
    if height < 1 or width < 1:
        raise UsageError(
            f"blob {name!r} has no positions for an image of {data.shape[3]}x{data.shape[2]}; it is too small"
        )
    first = passes[0, 0]
    stitched = first.new_empty(*first.shape[:2], height, width)
    for (down, across), scores in passes.items():
        row, column = -down % strides[0], -across % strides[1]
        begin = (down + row) // strides[0], (across + column) // strides[1]
        part = stitched[:, :, row :: strides[0], column :: strides[1]]
        part.copy_(scores[:, :, begin[0] : begin[0] + part.shape[2], begin[1] : begin[1] + part.shape[3]])
    return Dense(stitched, (float(shift[0]), float(shift[1])))


def _only(names: Sequence[str], what: str, net: Net) -> str:
    if len(names) != 1:
        raise GraphError(f"{net.graph.title} has the {what}s {', '.join(names) or '(none)'}; one is needed")
    return names[0]


def rarefy(net: caffe_pb2.NetParameter, blob: str | None = None) -> tuple[caffe_pb2.NetParameter, Report]:
    """The net up to `blob` (by default all of it) with every stride removed and later windows spread out.

    Convolutions get a dilation; poolings, which have none in Caffe, become the maximum (or mean) of shifted crops.
    Weights fit unchanged. Raises `GraphError` for layers that are neither windows nor pointwise, such as
    Deconvolution (name the blob before it), and for padded poolings behind a stride.
    """
    result = caffe_pb2.NetParameter(name=net.name)
    work = _Rarefaction(result)
    for layer in _needed(net, blob):
        work.add(layer)
    return result, work.report


def _needed(net: caffe_pb2.NetParameter, blob: str | None) -> list[caffe_pb2.LayerParameter]:
    """The layers that `blob` needs, in order."""
    if blob is None:
        return list(net.layer)
    if not any(blob in layer.top for layer in net.layer):
        raise GraphError(f"{net_title(net.name)} has no blob {blob!r}")
    wanted, kept = {blob}, []
    for layer in reversed(net.layer):
        if not wanted.isdisjoint(layer.top):
            wanted.update(layer.bottom)
            kept.append(layer)
    return kept[::-1]


@dataclass
class _Rarefaction:
    """The new net, and by blob how far apart neighbouring positions of the old net lie in the new one."""

    net: caffe_pb2.NetParameter
    report: Report = field(default_factory=Report)
    spread: dict[str, int] = field(default_factory=dict)

    def add(self, layer: caffe_pb2.LayerParameter) -> None:
        """Take over one layer, rewritten where it has a stride or lies behind one."""
        spreads = {self.spread[name] for name in layer.bottom}
        if len(spreads) > 1:
            raise GraphError(f"layer {layer.name!r} ({layer.type}) joins blobs of different strides")
        spread = spreads.pop() if spreads else 1
        stride = 1
        if layer.type == "Convolution":
            stride = self._convolution(layer, spread)
        elif layer.type == "Pooling":
            stride = self._pooling(layer, spread)
        else:
            # Values that depend on their own position alone stay the same, whatever lies between it and the next.
            if layer.bottom and not class_for(layer.type, layer.name).is_pointwise(layer):
                raise GraphError(f"layer {layer.name!r} ({layer.type}) can't be made dense; name a blob before it")
            self.net.layer.add().CopyFrom(layer)
        self.spread.update(dict.fromkeys(layer.top, spread * stride))

    def _convolution(self, layer: caffe_pb2.LayerParameter, spread: int) -> int:
        new = self.net.layer.add()
        new.CopyFrom(layer)
        settings = new.convolution_param
        if any(settings.HasField(f"{name}_{axis}") for name in ("stride", "pad") for axis in "hw"):
            raise GraphError(f"layer {layer.name!r} (Convolution): give stride and pad once, not by _h and _w")
        self._refuse_uneven(layer, settings)
        stride = _single(settings.stride, 1, layer)
        del settings.stride[:]
        if spread > 1:
            dilation, pads = [spread * value for value in dilations(settings) or [1]], list(settings.pad)
            for name in ("dilation", "pad", *DILATION_FIELDS):
                settings.ClearField(name)
            settings.dilation.extend(dilation)
            settings.pad.extend(spread * value for value in pads)
        if spread > 1 or stride > 1:
            self.report.add("changed", layer.name, f"stride {stride} -> 1, dilation x{spread}")
        return stride

    def _refuse_uneven(self, layer: caffe_pb2.LayerParameter, settings: WindowMessage) -> None:
        if is_same(settings) or pads_by_side(settings):
            raise GraphError(f"layer {layer.name!r} ({layer.type}): needs one pad for all sides, not pad_type or pad_l")

    def _pooling(self, layer: caffe_pb2.LayerParameter, spread: int) -> int:
        settings = layer.pooling_param
        self._refuse_uneven(layer, settings)
        names = ("kernel", "stride", "pad")
        if settings.global_pooling or any(settings.HasField(f"{name}_{axis}") for name in names for axis in "hw"):
            raise GraphError(f"layer {layer.name!r} (Pooling): needs one kernel_size, stride and pad for both axes")
        if spread == 1:
            new = self.net.layer.add()
            new.CopyFrom(layer)
            new.pooling_param.ClearField("stride")
        elif settings.pad:
            raise GraphError(f"layer {layer.name!r} (Pooling): padding behind a stride can't be spread out")
        elif settings.kernel_size == 1:
            self._identity(layer)
        else:
            self._spread_pooling(layer, spread)
        if spread > 1 or settings.stride > 1:
            self.report.add("changed", layer.name, f"stride {settings.stride} -> 1, window spread x{spread}")
        return int(settings.stride)

    def _identity(self, layer: caffe_pb2.LayerParameter) -> None:
        new = self.net.layer.add(name=layer.name, type="Pooling", bottom=layer.bottom, top=layer.top)
        new.pooling_param.kernel_size = 1

    def _spread_pooling(self, layer: caffe_pb2.LayerParameter, spread: int) -> None:
        """The maximum or mean over crops of the blob, each moved by a multiple of `spread`.

        A pooling with a window as large as the spread one serves as the reference of the crops: it has their size.
        """
        settings, bottom = layer.pooling_param, layer.bottom[0]
        kernel = settings.kernel_size
        if settings.pool not in (_MAX, _AVERAGE):
            raise GraphError(f"layer {layer.name!r} (Pooling): only MAX and AVE can be spread out")
        size = self.net.layer.add(
            name=f"{layer.name}_size", type="Pooling", bottom=[bottom], top=[f"{layer.name}_size"]
        )
        size.pooling_param.kernel_size = (kernel - 1) * spread + 1
        crops = []
        for down, across in itertools.product(range(kernel), repeat=2):
            name = f"{layer.name}_{down}_{across}"
            crop = self.net.layer.add(name=name, type="Crop", bottom=[bottom, f"{layer.name}_size"], top=[name])
            crop.crop_param.axis = 2
            crop.crop_param.offset.extend([down * spread, across * spread])
            crops.append(name)
        joined = self.net.layer.add(name=layer.name, type="Eltwise", bottom=crops, top=layer.top)
        if settings.pool == _MAX:
            joined.eltwise_param.operation = caffe_pb2.EltwiseParameter.MAX
        else:
            joined.eltwise_param.operation = caffe_pb2.EltwiseParameter.SUM
            joined.eltwise_param.coeff.extend([1 / len(crops)] * len(crops))


def _single(values: Sequence[int], default: int, layer: caffe_pb2.LayerParameter) -> int:
    if len(set(values)) > 1:
        raise GraphError(f"layer {layer.name!r} ({layer.type}): strides that differ by axis can't be removed")
    return int(values[0]) if values else default
