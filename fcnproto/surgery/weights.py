"""Moving weights between nets that differ: the operations with which the FCN papers make their nets' first values.

Each works on a net in memory and takes values from another net or a weight file (`sources.Source`), checks everything
before it writes anything, and gives a `Report`. Definitions are changed in `nets.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from torch import Tensor

from fcnproto.errors import UsageError, WeightsError
from fcnproto.net import Net
from fcnproto.surgery.report import Report
from fcnproto.surgery.sources import Array, Shape, Source, SourceBlob, SourceLayer, find, opened, relation, store, title

_ADVICE = "name it in leave_out (--leave-out) to go on without it"


def transplant(
    net: Net,
    source: Source,
    suffix: str = "",
    *,
    leave_out: Collection[str] = (),
    renamed: Mapping[str, str] | None = None,
) -> Report:
    """Copy the source's layers into the layers of `net` called the same, or the name plus `suffix`.

    The weights of an inner product fit the convolution that computes the same (fc6 (4096, 25088) -> (4096, 512, 7, 7))
    and the other way round; layers that the net lacks and blobs that its layers lack are dropped.

    Args:
        leave_out: layers of the source that are not to be copied.
        renamed: names in the net for layers of the source that are called differently there (`suffix` is not added).

    Raises:
        WeightsError: a shape that doesn't fit (both are named; nothing was written), or no layer that fits.
    """
    report, plan, names = Report(), [], renamed or {}
    with opened(source) as layers:
        for name in [*leave_out, *names]:
            find(layers, name, source)
        for layer in layers:
            target = names.get(layer.name, layer.name + suffix)
            if layer.name in leave_out:
                report.add("dropped", layer.name, "left out as asked")
            elif target not in net.params:
                report.add("dropped", layer.name, f"the net has no layer {target!r}")
            else:
                plan += _match(net, target, layer, source, report)
        if not plan:
            raise WeightsError(
                f"{title(source)}: none of its layers ({_some(layers)}) is in {net.graph.title}"
                + (f" with the suffix {suffix!r}" if suffix else "")
            )
        for tensor, blob in plan:
            store(tensor, blob.read())
    filled = set(report.layers("copied")) | set(report.layers("coerced"))
    for name in net.params:
        if name not in filled and (not suffix or name.endswith(suffix)):
            report.add("kept", name, "nothing for it in the source; keeps its values")
    return report


def _match(
    net: Net, target: str, layer: SourceLayer, source: Source, report: Report
) -> list[tuple[Tensor, SourceBlob]]:
    """The net's tensors with the source's blobs for them."""
    tensors = net.params[target]
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
    coerced = []
    for index, (tensor, blob) in enumerate(zip(tensors, layer.blobs, strict=False)):
        how = relation(blob.shape, tuple(tensor.shape))
        if how is None:
            raise WeightsError(
                f"{title(source)}: layer {layer.name!r}, blob {index} has shape {blob.shape}, the net's {target!r} "
                f"{tuple(tensor.shape)}; {_ADVICE}"
            )
        if how == "coerced":
            coerced.append(f"blob {index} {blob.shape} -> {tuple(tensor.shape)}")
    origin = "" if target == layer.name else f"from {layer.name}, "
    if coerced:
        report.add("coerced", target, origin + "; ".join(coerced))
    else:
        report.add("copied", target, origin + shapes)
    for index in range(len(tensors), len(layer.blobs)):
        report.add("dropped", layer.name, f"blob {index} {layer.blobs[index].shape}: the net's layer has no such blob")
    for index in range(len(layer.blobs), len(tensors)):
        report.add("kept", target, f"blob {index} {tuple(tensors[index].shape)}: the source's layer has no such blob")
    return list(zip(tensors, layer.blobs, strict=False))


def bilinear_filter(size: int) -> Array:
    """The (size, size) float64 kernel that enlarges by floor((size + 1) / 2) when it is a Deconvolution's.

    w(y, x) = (1 - |y - c| / f) * (1 - |x - c| / f), f = floor((size + 1) / 2), c = f - 1 for odd sizes, else f - 0.5.
    """
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    row = 1 - np.abs(np.arange(size) - centre) / factor
    kernel: Array = row[:, None] * row
    return kernel


def interpolate(net: Net, layers: Sequence[str] | None = None) -> Report:
    """Make Deconvolution layers interpolate: every class is enlarged bilinearly by itself.

    `layers` are by default those whose name contains "up". Weights (C, C, k, k) get the filter on their diagonal and
    zeros elsewhere, weights (C, 1, k, k) (one group per class) get it everywhere. Raises `UsageError` for a layer that
    is no Deconvolution, or of another shape.
    """
    if layers is None:
        layers = [layer.name for layer in net.layers if layer.type == "Deconvolution" and "up" in layer.name]
    report, plan = Report(), []
    for name in layers:
        layer = net.layer(name)
        shape: Shape = tuple(layer.blob_shapes[0]) if layer.blob_shapes else ()
        if layer.type != "Deconvolution" or len(shape) != 4:
            raise UsageError(f"layer {name!r} is no Deconvolution of images, so there is nothing to interpolate")
        if shape[2] != shape[3] or shape[1] not in (1, shape[0]):
            raise UsageError(
                f"layer {name!r}: weights of shape {shape}; interpolation needs square kernels and as many outputs as "
                "inputs"
            )
        weights = np.zeros(shape)
        rows = np.arange(shape[0])
        weights[rows, rows if shape[1] == shape[0] else 0] = bilinear_filter(shape[2])
        plan.append((net.params[name][0], weights))
        report.add("made", name, f"bilinear interpolation, kernel {shape[2]}x{shape[3]}")
    for tensor, weights in plan:
        store(tensor, weights)
    return report


def expand_score(net: Net, layer: str, source: Source, source_layer: str | None = None) -> Report:
    """Copy a score layer into one with more classes: the old classes are the first ones, the new keep their values."""
    with opened(source) as layers:
        old = find(layers, source_layer or layer, source).blobs[0].shape[0]
    new = _score_blobs(net, layer)[0].shape[0]
    if new < old:
        raise WeightsError(f"{title(source)}: layer {source_layer or layer!r} has {old} classes, the net's only {new}")
    return transfer_classes(net, layer, source, {index: index for index in range(old)}, source_layer)


def transfer_classes(
    net: Net, layer: str, source: Source, classes: Mapping[int, int], source_layer: str | None = None
) -> Report:
    """Give classes of a score layer the weights of classes of another one: `classes` maps new numbers to old ones.

    Both layers must read the same number of channels with the same kernel. The other new classes keep their values.
    Raises `WeightsError`, naming both shapes, where they don't fit.
    """
    name = source_layer or layer
    tensors = _score_blobs(net, layer)
    with opened(source) as layers:
        blobs = find(layers, name, source).blobs
        if len(blobs) != len(tensors):
            raise WeightsError(
                f"{title(source)}: layer {name!r} has {len(blobs)} blobs, the net's {layer!r} {len(tensors)}"
            )
        values = [blob.read() for blob in blobs]
    values[-1] = values[-1].reshape(-1) if len(values) > 1 else values[-1]
    count, shape = tensors[0].shape[0], tuple(tensors[0].shape[1:])
    if tuple(values[0].shape[1:]) != shape:
        raise WeightsError(
            f"{title(source)}: layer {name!r} has weights of shape {tuple(values[0].shape)}, the net's {layer!r} "
            f"{(count, *shape)}; they must differ in the number of classes alone"
        )
    for new, old in classes.items():
        if not 0 <= new < count or not 0 <= old < values[0].shape[0]:
            raise UsageError(f"class {old} -> {new}: the layers have {values[0].shape[0]} and {count} classes")
    for tensor, value in zip(tensors, values, strict=True):
        result = tensor.detach().cpu().numpy().copy()
        result[list(classes)] = value[list(classes.values())]
        store(tensor, result)
    report = Report()
    report.add("copied", layer, f"{len(classes)} of {count} classes from {name} ({values[0].shape[0]} classes)")
    if len(classes) < count:
        report.add("kept", layer, f"the values of {count - len(classes)} new classes")
    return report


def _score_blobs(net: Net, layer: str) -> list[Tensor]:
    if layer not in net.params:
        raise UsageError(f"{net.graph.title} has no layer {layer!r} with weights")
    return net.params[layer]


def widen_input(net: Net, layer: str, source: Source, source_layer: str) -> Report:
    """Fill a first layer that reads more channels than the source's: each further channel gets the mean over the old.

    So conv1_1_bgrd (64, 4, 3, 3) from conv1_1 (64, 3, 3, 3); the bias is copied. Raises `WeightsError`.
    """
    tensors = _score_blobs(net, layer)
    with opened(source) as layers:
        blobs = find(layers, source_layer, source).blobs
        old, new = blobs[0].shape, tuple(tensors[0].shape)
        fits = len(old) == len(new) == 4 and old[0] == new[0] and old[2:] == new[2:] and old[1] <= new[1]
        if not fits or len(blobs) != len(tensors):
            raise WeightsError(
                f"{title(source)}: layer {source_layer!r} with {len(blobs)} blobs, weights {old}, can't fill the net's "
                f"{layer!r} with {len(tensors)}, weights {new}; only the number of channels may be larger"
            )
        values = [blob.read() for blob in blobs]
    extra = np.repeat(values[0].mean(axis=1, keepdims=True), new[1] - old[1], axis=1)
    store(tensors[0], np.concatenate([values[0], extra], axis=1))
    for tensor, value in zip(tensors[1:], values[1:], strict=True):
        store(tensor, value)
    report = Report()
    detail = f"{old} -> {new}, channels {old[1]}..{new[1] - 1} are the mean over the first {old[1]}"
    report.add("made", layer, f"from {source_layer}, {detail}")
    return report


def early_fusion(net: Net, source: Source, layer: str | None = None, source_layer: str | None = None) -> Report:
    """Fill a net whose first layer sees further channels (colour and depth joined) from one that sees fewer.

    The first layer goes by `widen_input`, the others by `transplant`, the enlarging ones by `interpolate`. First layers
    are the first with four-axis weights, unless they are named.
    """
    with opened(source) as layers:
        first = source_layer or next((one.name for one in layers if len(one.blobs[0].shape) == 4), layers[0].name)
    target = layer or next((name for name, blobs in net.params.items() if blobs[0].ndim == 4), "")
    report = widen_input(net, target, source, first)
    moved = transplant(net, source, leave_out=[first])
    report.steps += [step for step in moved.steps if step.layer not in (target, first)]
    return with_interpolation(net, report)


def late_fusion(net: Net, streams: Mapping[str, Source]) -> Report:
    """Fill a net of several streams, each by `transplant` from the source of its suffix: {"color": a, "hha": b}."""
    report = Report()
    for suffix, source in streams.items():
        report += transplant(net, source, suffix)
    return with_interpolation(net, report)


def with_interpolation(net: Net, report: Report) -> Report:
    """`interpolate` after another operation: one report, in which the interpolating layers aren't "kept"."""
    made = interpolate(net)
    done = set(made.layers("made"))
    return Report([step for step in report.steps if not (step.action == "kept" and step.layer in done)]) + made


def _some(layers: Sequence[SourceLayer]) -> str:
    return ", ".join(layer.name for layer in layers[:4]) + (", ..." if len(layers) > 4 else "")
