"""Folding batch normalisation into the convolutions before it: a net with fewer layers that computes the same.

What BatchNorm and Scale do in the TEST phase is a factor and an offset for each channel, which the convolution's own
weights and bias can do. Nets that learn with batch normalisation become plain ones that way, to be transplanted from.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from fcnproto.errors import GraphError, net_title
from fcnproto.layers.arithmetic import Scale
from fcnproto.layers.batch_norm import BatchNorm
from fcnproto.layers.convolution import Convolution
from fcnproto.net import Net, load
from fcnproto.passes.kernels import folded_weights
from fcnproto.schema import caffe_pb2
from fcnproto.surgery.report import Report

Values = tuple[Tensor, Tensor | None]


def fold_normalisation(
    net: caffe_pb2.NetParameter, weights: str | os.PathLike[str]
) -> tuple[caffe_pb2.NetParameter, Net, Report]:
    """The net without the BatchNorm layers (and the Scale layers after them) that directly follow a Convolution.

    Returns the new definition, the loaded net of its TEST phase with the folded weights, and what was done. A layer
    stays where another layer reads the value in between, where the convolution's weights are shared by name, or where
    the BatchNorm says `use_global_stats: false`.

    Raises:
        GraphError: nothing can be folded.
        WeightsError: the weights can't be read or don't fit.
    """
    source, report = load(net, weights), Report()
    result = caffe_pb2.NetParameter()
    result.CopyFrom(net)
    folded: dict[str, Values] = {}
    for layer in list(result.layer):
        if layer.type == "Convolution" and not any(param.name for param in layer.param):
            _fold(result, layer, source, folded, report)
    if not folded:
        raise GraphError(f"{net_title(net.name)}: no BatchNorm directly follows a convolution")
    made = load(result)
    with torch.no_grad():
        for name, blobs in made.params.items():
            values = folded[name] if name in folded else source.params[name]
            for blob, value in zip(blobs, values, strict=True):
                assert value is not None
                blob.copy_(value)
    return result, made, report


def _fold(
    net: caffe_pb2.NetParameter,
    layer: caffe_pb2.LayerParameter,
    source: Net,
    folded: dict[str, Values],
    report: Report,
) -> None:
    """Fold what follows one convolution of `net` into it, and remember what its weights are made from."""
    norm, convolution = _only_reader(net, layer), source.layer(layer.name)
    if norm is None or not isinstance(convolution, Convolution) or convolution.blob(0).ndim != 4:
        return
    normalisation = source.layer(norm.name)
    if not isinstance(normalisation, BatchNorm) or not normalisation.is_plain():
        return
    if norm.batch_norm_param.HasField("use_global_stats") and not norm.batch_norm_param.use_global_stats:
        return
    gone = [norm]
    scale = _only_reader(net, norm)
    scaling = None if scale is None else source.layer(scale.name)
    if scale is not None and isinstance(scaling, Scale) and _is_per_channel(scale):
        gone.append(scale)
    else:
        scaling = None
    folded[layer.name] = folded_weights(convolution, normalisation, scaling)
    layer.top[0] = gone[-1].top[0]
    layer.convolution_param.bias_term = True
    for fewer in gone:
        report.add("dropped", fewer.name, f"{fewer.type}: folded into {layer.name!r}")
        net.layer.remove(fewer)
    report.add("changed", layer.name, "weights and bias hold its normalisation")


def _only_reader(net: caffe_pb2.NetParameter, layer: caffe_pb2.LayerParameter) -> caffe_pb2.LayerParameter | None:
    """The layer that alone reads a layer's top: a later reader of an in-place result doesn't count."""
    layers = list(net.layer)
    top, found = layer.top[0], None
    for other in layers[layers.index(layer) + 1 :]:
        if top not in other.bottom:
            if top in other.top:
                break
            continue
        if found is not None:
            return None
        found = other
        if top in other.top:
            break
    if found is None or len(found.bottom) != 1 or found.include or found.exclude:
        return None
    return found


def _is_per_channel(layer: caffe_pb2.LayerParameter) -> bool:
    return layer.scale_param.axis in (1, -3) and layer.scale_param.num_axes == 1
