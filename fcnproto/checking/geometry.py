"""Rules about places: where upsampling, crops, padding and strides put things."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fcnproto.checking.findings import Finding
from fcnproto.checking.kinds import found
from fcnproto.errors import GraphError
from fcnproto.graph import Blob, Node, coord_map
from fcnproto.graph.maps import CoordMap
from fcnproto.layers.base import Shape
from fcnproto.layers.source import PartialShape
from fcnproto.net import Net
from fcnproto.net.roles import judges, unsplit
from fcnproto.schema import caffe_pb2

_GAIN_OFF, _LEARNED_OFF = 0.02, 0.25
"""How far from 1 the gain of an upsampling may be: one that stays as it is, and one that is learned."""
_CROP_OFF = 0.5
"""Pixels: half a pixel is the best that whole offsets can do."""


def upsampling_gain(net: Net) -> Iterator[Finding]:
    """Deconvolutions that enlarge each channel by itself, by a filter without negative values, but not by 1."""
    rates = {(net.layers[ref.layer].name, ref.index): ref.lr_mult for ref in net.parameter_places()}
    for layer in net.layers:
        if layer.type != "Deconvolution" or not layer.blob_names or max(_strides(layer.config)) < 2:
            continue
        filters = _own_filters(layer.blob(0).detach(), layer.config.group)
        if filters is None:
            continue
        low, high = gains(filters, _strides(layer.config))
        frozen = rates.get((layer.name, 0), 0.0) == 0
        if max(abs(low - 1), abs(high - 1)) > (_GAIN_OFF if frozen else _LEARNED_OFF):
            size = "x".join(map(str, filters.shape[-2:]))
            stride = "x".join(map(str, _strides(layer.config)))
            gain = f"{low:.4g}" if high - low < 1e-3 else f"{low:.4g} to {high:.4g}, by place"
            yield found(
                "upsampling-gain",
                [layer.name],
                f"kernel {size} and stride {stride} enlarge a constant 1 to {gain}",
                level="fault" if frozen else "suspect",
            )


def _strides(config: object) -> tuple[int, int]:
    stride = list(getattr(config, "stride", ())) or [1]
    height = getattr(config, "stride_h", 0) or stride[0]
    return height, getattr(config, "stride_w", 0) or stride[-1]


def _own_filters(weight: Tensor, groups: int) -> Tensor | None:
    """The filter of each channel (C, kernel height, kernel width) of weights (in, out / group, kernel) that keep the
    channels apart and have no negative values; None for others."""
    if weight.dim() != 4 or not bool(weight.any()) or bool((weight < 0).any()):
        return None
    if weight.shape[1] == 1 and groups == weight.shape[0]:
        return weight[:, 0]
    if groups != 1 or weight.shape[0] != weight.shape[1]:
        return None
    own = weight.diagonal(dim1=0, dim2=1).permute(2, 0, 1)
    return own if int((weight != 0).sum()) == int((own != 0).sum()) else None


def gains(filters: Tensor, strides: tuple[int, int]) -> tuple[float, float]:
    """The smallest and the largest value that filters (C, height, width) make of a constant 1, away from the edges.

    Reckoned from the filters' own values: a place of the top gets the sum of every stride-th of them.
    """
    sums = [
        filters[:, row :: strides[0], column :: strides[1]].sum((1, 2))
        for row in range(strides[0])
        for column in range(strides[1])
    ]
    found = torch.stack(sums)
    return float(found.min()), float(found.max())


def crop_offset(net: Net, sources: Mapping[str, PartialShape]) -> Iterator[Finding]:
    """Crops that begin elsewhere than the coordinate map says. `sources`: the shapes of data tops, by blob."""
    for node in net.graph.nodes:
        if node.type != "Crop" or len(node.bottoms) != 2:
            continue
        between = _between(node.bottoms[0], node.bottoms[1], sources)
        if between is None or not between.windowed or any(scale != 1 for scale in between.scale):
            continue
        wanted = [float(-shift) for shift in between.shift]
        wanted = wanted * 2 if len(wanted) == 1 else wanted
        given = _offsets(node.param.crop_param)
        off = [have - want for have, want in zip(given, wanted, strict=True)]
        if max(map(abs, off)) > _CROP_OFF:
            by = f"{off[0]:+g}" if len(set(off)) == 1 else ", ".join(f"{value:+g}" for value in off)
            right = " ".join(f"offset: {round(value)}" for value in (wanted if len(set(wanted)) > 1 else wanted[:1]))
            yield found(
                "crop-offset",
                [node.name],
                f"offset {_shown(given)}, but {unsplit(node.bottoms[1]).name!r} begins at {_shown(wanted)}: "
                f"off by {by} pixels",
                level="fault" if max(map(abs, off)) >= 1 else "suspect",
                remedy=f"crop_param {{ axis: 2 {right} }}, or --crop aligned where none is given",
            )


def _shown(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else ", ".join(f"{value:g}" for value in values)


def _offsets(config: caffe_pb2.CropParameter) -> list[float]:
    """Where a Crop of maps begins, down and to the right: one offset for all its axes, or one for each."""
    axis = config.axis % 4
    given = [float(offset) for offset in config.offset] or [0.0]
    given = given * (4 - axis) if len(given) == 1 else given
    return [given[place - axis] if 0 <= place - axis < len(given) else 0.0 for place in (2, 3)]


def _between(start: Blob, reference: Blob, sources: Mapping[str, PartialShape]) -> CoordMap | None:
    """The coordinate map of a Crop. A label map lies as the images of its data layer do that have its size."""
    origin = unsplit(reference)
    images = [reference]
    if origin.producer.is_data and len(own := sources.get(origin.name) or ()) == 4:
        images += [top for top in origin.producer.tops if (sources.get(top.name) or ())[2:] == own[2:]]
    for image in images:
        try:
            return coord_map.coord_map_from_to(start, image)
        except GraphError:
            continue
    return None


def padding(net: Net, known: Mapping[str, tuple[int, int]]) -> Iterator[Finding]:
    """Windows over the net's own images whose padding is larger than the image. `known`: sizes of images by blob; what
    only changes values on the way (a Power layer) is looked through."""
    sizes = {
        blob: known[blob.name] for node in net.graph.nodes if node.is_data for blob in node.tops if blob.name in known
    }
    for node, layer in zip(net.graph.nodes, net.layers, strict=True):
        size = sizes.get(node.bottoms[0]) if node.bottoms else None
        if size is None:
            continue
        if _keeps_places(node):
            sizes.update(dict.fromkeys(node.tops, size))
        if layer.type not in ("Convolution", "Pooling"):
            continue
        pads = _pads(layer.config)
        if any(2 * pad >= extent for pad, extent in zip(pads, size, strict=True)):
            shown = f"{pads[0]}" if pads[0] == pads[1] else f"{pads[0]} and {pads[1]}"
            yield found("padding", [node.name], f"pad {shown} on each side of images of {size[1]}x{size[0]}")


def _keeps_places(node: Node) -> bool:
    """Whether a layer has no windows and moves nothing."""
    try:
        return coord_map.layer_map(node.param) == CoordMap()
    except GraphError:
        return False


def _pads(config: Any) -> tuple[int, int]:
    """Rows and columns that a window's padding adds on each side."""
    pad = [config.pad] if isinstance(config.pad, int) else list(config.pad) or [0]
    return config.pad_h or pad[0], config.pad_w or pad[-1]


def score_stride(net: Net, shapes: Mapping[Blob, Shape]) -> Iterator[Finding]:
    """Losses whose scores and labels are maps of different sizes."""
    for node in net.graph.nodes:
        if not judges(node) or len(node.bottoms) < 2:
            continue
        yield from sizes_differ(node, shapes.get(node.bottoms[0]), shapes.get(node.bottoms[1]))


def sizes_differ(node: Node, scores: Shape | None, labels: Shape | None) -> Iterator[Finding]:
    """A finding where scores (N, C, H, W) and a label map (N, 1, H, W) or (N, H, W) differ in size; not for losses of
    forks, whose labels may be lists of boxes."""
    if node.facts.fork or scores is None or labels is None or len(scores) != 4 or len(labels) < 3:
        return
    if tuple(scores[2:]) != tuple(labels[-2:]):
        ratio = labels[-2] / max(scores[2], 1)
        yield found(
            "score-stride",
            [node.name],
            f"scores {unsplit(node.bottoms[0]).name!r} are {scores[3]}x{scores[2]}, "
            f"labels {unsplit(node.bottoms[1]).name!r} {labels[-1]}x{labels[-2]} ({ratio:.3g} times as high)",
        )


def receptive_field(net: Net, blob: Blob) -> int | None:
    """How many pixels of its data, a side, a value of `blob` depends on: the largest way; None where nobody knows."""
    sizes: dict[Blob, tuple[int, int] | None] = {}
    for node in net.graph.nodes:
        if node.is_data:
            sizes.update(dict.fromkeys(node.tops, (1, 1)))
            continue
        bottoms = [
            sizes.get(bottom) for place, bottom in enumerate(node.bottoms) if place not in node.facts.size_bottoms
        ]
        sizes.update(dict.fromkeys(node.tops, _grown(node, bottoms)))
    found = sizes.get(blob)
    return None if found is None else found[0]


def _grown(node: Node, bottoms: list[tuple[int, int] | None]) -> tuple[int, int] | None:
    """(receptive field, stride) behind a layer from those of its bottoms. Upsampling divides the stride."""
    known = [one for one in bottoms if one is not None]
    if not known or len(known) < len(bottoms):
        return None
    field, stride = max(known)
    if node.type in ("Convolution", "Deconvolution", "Pooling"):
        config = node.param.pooling_param if node.type == "Pooling" else node.param.convolution_param
        kernels, dilations = config.kernel_size, getattr(config, "dilation", ())
        kernel = kernels if isinstance(kernels, int) else (list(kernels) or [config.kernel_h])[0]
        spread = (list(dilations) or [1])[0]
        step = max(_strides_of(config))
        if node.type == "Pooling" and config.global_pooling:
            return None
        if node.type == "Deconvolution":
            reach = -(-((kernel - 1) * spread + 1) // step)
            return field + (reach - 1) * stride, max(stride // step, 1)
        return field + (kernel - 1) * spread * stride, stride * step
    try:
        return (field, stride) if coord_map.layer_map(node.param) is not None else None
    except GraphError:
        return None


def _strides_of(config: object) -> tuple[int, int]:
    stride = getattr(config, "stride", 1)
    if isinstance(stride, int):
        return getattr(config, "stride_h", 0) or stride, getattr(config, "stride_w", 0) or stride
    return _strides(config)
