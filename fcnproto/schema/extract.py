"""The net definition that a caffemodel carries, made into a prototxt that loads again.

A caffemodel holds the net as its program had built it: with Split layers, the phase written into every layer, and rules
that are spent. Reading the file is in `schema/definition.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from fcnproto.errors import UsageError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.splits import is_inserted, split_name


def loadable(
    stored: caffe_pb2.NetParameter, input_shapes: Mapping[str, Sequence[int]] | None = None
) -> tuple[caffe_pb2.NetParameter, list[str]]:
    """A copy of a caffemodel's definition without what only the built net has.

    Removed are the Split layers that Caffe inserts (their readers and loss weights go back to the blob), the phase that
    every layer inherited from the net (a layer that differs from most keeps its own), include and exclude rules, which
    have done their work, and blobs. Inputs that nothing writes (old files don't keep them) become an Input layer with
    the shapes given. So do the tops of a data layer if the shape of one is given: the layer itself goes.

    Returns the net and the names of the inputs whose shape nobody knows. UsageError for a shape of another blob.
    """
    net = caffe_pb2.NetParameter()
    net.CopyFrom(stored)
    _join_splits(net)
    phases = Counter(layer.phase for layer in net.layer if layer.HasField("phase"))
    inherited = phases.most_common(1)[0][0] if phases else None
    for layer in net.layer:
        for field in ("blobs", "include", "exclude"):
            layer.ClearField(field)
        if layer.HasField("phase") and layer.phase == inherited:
            layer.ClearField("phase")
    return net, _add_inputs(net, input_shapes or {})


def _join_splits(net: caffe_pb2.NetParameter) -> None:
    source: dict[str, str] = {}
    weights: dict[str, float] = {}
    writer: dict[str, tuple[str, int]] = {}
    kept = []
    for layer in net.layer:
        for k, bottom in enumerate(layer.bottom):
            layer.bottom[k] = source.get(bottom, bottom)
        if any(is_inserted(layer, *writer.get(bottom, ("", 0))) for bottom in layer.bottom):
            source.update((top, layer.bottom[0]) for top in layer.top)
            if layer.loss_weight and layer.loss_weight[0] != 0:
                weights[layer.name] = layer.loss_weight[0]
            continue
        kept.append(layer)
        writer.update((top, (layer.name, k)) for k, top in enumerate(layer.top))
    for layer in kept:
        found = [weights.get(split_name(top, layer.name, k), 0.0) for k, top in enumerate(layer.top)]
        if any(found):
            layer.ClearField("loss_weight")
            layer.loss_weight.extend(found)
    result = caffe_pb2.NetParameter(layer=kept)
    net.ClearField("layer")
    net.MergeFrom(result)


def _add_inputs(net: caffe_pb2.NetParameter, shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Replace layers without bottoms that write a blob in `shapes`, and complete what is read but not written."""
    replaced = [layer for layer in net.layer if not layer.bottom and any(top in shapes for top in layer.top)]
    layers = [layer for layer in net.layer if not any(layer is gone for gone in replaced)]
    inputs = [top for layer in replaced for top in layer.top]
    written = set(inputs)
    for layer in layers:
        inputs += [bottom for bottom in layer.bottom if bottom not in written and bottom not in inputs]
        written.update(layer.top)
    strange = [name for name in shapes if name not in inputs]
    if strange:
        raise UsageError(f"{strange[0]!r} is no input of this net{f'; inputs are {inputs}' if inputs else ''}")
    new = caffe_pb2.NetParameter()
    for name in inputs:
        layer = new.layer.add(name=name, type="Input", top=[name])
        if name in shapes:
            layer.input_param.shape.add(dim=shapes[name])
    new.layer.extend(layers)
    net.ClearField("layer")
    net.MergeFrom(new)
    shapeless = [layer for layer in net.layer if layer.type == "Input" and not layer.input_param.shape]
    return [top for layer in shapeless for top in layer.top]
