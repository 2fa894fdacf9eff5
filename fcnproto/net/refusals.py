"""What the original Caffe refuses in a net that runs here, so that a net written here can be known to load there.

Only what it stops at is told, not where it computes something else. Internal to `fcnproto.net`, but for
`caffe_refusals`; `fcnproto.checking.caffe` says the same as findings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fcnproto.errors import LayerError
from fcnproto.graph import Node
from fcnproto.layers.base import Layer, Shape
from fcnproto.net.shapes import assumed_shapes, blob_shapes
from fcnproto.schema import caffe_pb2

if TYPE_CHECKING:
    from fcnproto.net.net import Net

Refusal = tuple[str, str]
"""The layer (or "net") that Caffe stops at, and why."""

# Types whose code reads a bottom as (N, C, H, W), which Caffe refuses of more axes.
_FOUR_AXES = ("EuclideanLoss", "HingeLoss", "MultinomialLogisticLoss", "ContrastiveLoss", "PReLU")
# The bottoms that a layer stops at when a gradient is asked for them; force_backward asks for all but labels.
_NO_GRADIENT = {"Accuracy": 0, "ArgMax": 0, "Threshold": 0, "Embed": 0, "BatchReindex": 1, "Filter": -1}
_OCTAL = re.compile(r"(?<![\w.+-])0[0-9]*[89][0-9]*(?![\w.])")


def caffe_refusals(net: Net) -> list[Refusal]:
    """What the original Caffe stops at in a net: while building it, in its forward or in its backward pass."""
    found = list(_spellings(net))
    try:
        shapes = blob_shapes(net.graph, net.layers, assumed_shapes(net.source_shapes, net.graph), partial=True)
    except LayerError:  # made for another size than the assumed one
        shapes = {}
    for node, layer in zip(net.graph.nodes, net.layers, strict=True):
        bottoms = [shapes.get(blob) for blob in node.bottoms]
        reasons = [*_of_type(layer), *_of_shapes(node, layer, bottoms), *_of_gradients(node, layer, net)]
        found += [(node.name, reason) for reason in reasons]
    return found


def _spellings(net: Net) -> Iterator[Refusal]:
    """Numbers in the prototxt that protobuf's parser takes for broken octal ones."""
    file = next((layer.prototxt for layer in net.layers if layer.prototxt), None)
    if file is None or not Path(file).is_file():
        return
    text = Path(file).read_bytes().decode("latin-1")
    text = re.sub(r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|#[^\n]*", lambda found: " " * len(found[0]), text)
    for match in _OCTAL.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield "net", f"line {line}: {match[0]} begins with 0, so it is read as an octal number, which has no 8 and 9"


def _of_type(layer: Layer) -> Iterator[str]:
    package = type(layer).__module__
    if layer.fork or not package.startswith(("fcnproto.layers.", "fcnproto.data.")):
        yield f"it has no layer type {layer.type}" + (f" (forks do: {layer.fork})" if layer.fork else "")
    for name, filler in zip(layer.blob_names, layer.blob_fillers, strict=True):
        if filler.type == "gaussian" and filler.std <= 0:
            yield f"the gaussian filler of its {name} has std {filler.std:g}, which must be above 0"
    if layer.type == "SoftmaxWithLoss" and layer.num_tops > 1:
        yield "its second top is refused"
    if layer.type == "SigmoidCrossEntropyLoss" and len(layer.param.bottom) > 2:
        yield "its third bottom is refused"
    if layer.type == "Pooling" and layer.config.pool == caffe_pb2.PoolingParameter.STOCHASTIC:
        yield "STOCHASTIC pooling runs on a GPU only"


def _of_shapes(node: Node, layer: Layer, bottoms: list[Shape | None]) -> Iterator[str]:
    first = bottoms[0] if bottoms else None
    if first is None:
        return
    if layer.type in _FOUR_AXES and len(first) > 4:
        yield f"its bottom has {len(first)} axes, at most 4 are taken"
    if layer.type == "Im2col" and len(first) < 3:
        yield f"its bottom of shape {first} has no axes behind the channels"
    if layer.type == "Slice" and layer.config.slice_point:
        axis = layer.config.slice_dim if layer.config.HasField("slice_dim") else layer.config.axis
        if len(node.tops) > first[axis]:
            yield f"it has {len(node.tops)} tops for an extent of {first[axis]}"
    if len(bottoms) < layer.bottoms[0]:
        yield f"it has {len(bottoms)} bottoms, at least {layer.bottoms[0]} are needed"
    if layer.config_field == "eltwise_param" and any(shape is not None and shape != first for shape in bottoms):
        yield "its bottoms have several shapes"
    if math.prod(first) > 2**31 - 1:
        yield f"its bottom of shape {first} has more than 2^31 - 1 values"


def _of_gradients(node: Node, layer: Layer, net: Net) -> Iterator[str]:
    refuses = {index for index in layer.force_backward_refuses if index < len(node.bottoms)}
    stops = {_NO_GRADIENT[layer.type] % len(node.bottoms)} if layer.type in _NO_GRADIENT else set[int]()
    if layer.type == "InfogainLoss" and len(node.bottoms) == 3:
        refuses, stops = refuses - {2}, stops | {2}
    asked = {index for index, wanted in enumerate(node.param.propagate_down) if wanted}
    for index in sorted((refuses | stops) & asked):
        yield f"propagate_down asks for a gradient of bottom {index}, which has none: the backward pass stops"
    if net.graph.force_backward:
        for index in sorted(stops - asked):
            yield f"force_backward asks for a gradient of bottom {index}, which has none: the backward pass stops"
