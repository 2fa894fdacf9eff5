"""How long each layer of a net takes, forward and backward: what `caffe time` measures.

Each layer runs alone, on its bottoms' values of a forward pass, and every layer's backward runs, whether training needs
it or not. On a GPU CUDA's own events are read, from when the layer's first piece of work can begin to the end of its
last one: where the GPU waits for the next piece to be launched, that counts. The total of a fused or compiled net can
be less than the sum: measure that as a whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fcnproto import precision
from fcnproto.errors import GraphError
from fcnproto.graph import Blob, Node
from fcnproto.layers.base import Layer
from fcnproto.net import Net


@dataclass
class LayerTime:
    """Mean milliseconds of one layer."""

    name: str
    type: str
    forward: float = 0.0
    backward: float = 0.0


def time_layers(net: Net, iterations: int, shapes: Mapping[str, Sequence[int]] | None = None) -> list[LayerTime]:
    """Mean forward and backward times of every layer over `iterations`, after one pass that is not counted.

    Data layers read their data; tops of Input layers, and those named in `shapes`, are random numbers of their shape
    (zero where a whole number is needed counts as one).
    Raises `GraphError` for an Input layer without a shape.
    """
    times = [LayerTime(node.name, node.type) for node in net.graph.nodes]
    with precision.in_force(net.device):
        _add_times(net, iterations, shapes or {}, times)
    return times


def _add_times(net: Net, iterations: int, shapes: Mapping[str, Sequence[int]], times: Sequence[LayerTime]) -> None:
    measure = partial(_on_gpu, net.device) if net.device.type == "cuda" else _on_cpu
    for iteration in range(iterations + 1):
        values: dict[Blob, Tensor] = {}
        for node, layer, entry in zip(net.graph.nodes, net.layers, times, strict=True):
            forward, backward = _time_layer(net, node, layer, values, shapes, measure)
            if iteration:
                entry.forward += forward / iterations
                entry.backward += backward / iterations


Measure = Callable[[Callable[[], Any]], tuple[float, Any]]


def _on_cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return (time.perf_counter() - start) * 1e3, result


def _on_gpu(device: torch.device, work: Callable[[], Any]) -> tuple[float, Any]:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    stream = torch.cuda.current_stream(device)  # without it, events are those of the current device
    start.record(stream)
    result = work()
    end.record(stream)
    end.synchronize()
    return start.elapsed_time(end), result


def _time_layer(
    net: Net,
    node: Node,
    layer: Layer,
    values: dict[Blob, Tensor],
    shapes: Mapping[str, Sequence[int]],
    measure: Measure,
) -> tuple[float, float]:
    """Milliseconds of one layer's forward and backward; its tops' values are put into `values`."""
    if node.is_data:
        milliseconds, tops = measure(lambda: _read(net, node, layer, shapes))
        values.update(zip(node.tops, tops, strict=True))
        return milliseconds, 0.0
    if node.type == "Split" or node.facts.idle:  # no work: a split's readers read the same tensor
        values.update((blob, values[node.bottoms[0]]) for blob in node.tops)
        return 0.0, 0.0
    bottoms = [values[blob].detach().requires_grad_(values[blob].is_floating_point()) for blob in node.bottoms]
    milliseconds, result = measure(lambda: layer(*bottoms))
    tops = tuple(result) if isinstance(result, (tuple, list)) else (result,)
    values.update((blob, top.detach()) for blob, top in zip(node.tops, tops, strict=True))
    sources = [tensor for tensor in (*bottoms, *layer.parameters()) if tensor.requires_grad]
    starts = [top for top in tops if top.requires_grad]
    if not starts or not sources:
        return milliseconds, 0.0
    slopes = [torch.ones_like(top) for top in starts]
    backward, _ = measure(lambda: torch.autograd.grad(starts, sources, slopes, allow_unused=True))
    return milliseconds, backward


def _read(net: Net, node: Node, layer: Layer, shapes: Mapping[str, Sequence[int]]) -> list[Tensor]:
    """A data layer's tops on the net's device: its data, or random numbers where it has none of its own."""
    if node.type != "Input" and not any(blob.name in shapes for blob in node.tops):
        return [top.to(net.device, net.dtype) for top in layer()]
    tops = []
    for blob in node.tops:
        shape = shapes.get(blob.name, net.source_shapes.get(blob.name))
        if shape is None or None in shape:
            raise GraphError(f"layer {node.name!r} ({node.type}): the shape of {blob.name!r} is unknown; say it")
        # Between 0 and 1: rounded towards zero these are good labels and indices as well.
        tops.append(torch.rand([int(extent or 0) for extent in shape], device=net.device, dtype=net.dtype))
    return tops
