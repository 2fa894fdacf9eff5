"""Caffe's debug_info: mean absolute values of every layer's data and gradients as log lines, and the norms of all.

Changes no result. Works by hooks, so it sees layers as they run: a net that is compiled or rewritten shows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fcnproto.graph import Blob, Node
from fcnproto.net import Net
from fcnproto.solver.log import figure

Say = Callable[[str], None]


def _mean(value: Tensor) -> float:
    return float(value.detach().abs().mean(dtype=torch.float64)) if value.numel() else 0.0


@contextmanager
def traced(net: Net, say: Say, active: bool = True) -> Iterator[Callable[[], None]]:
    """Log the forward passes of the block; call what it gives after the backward pass to log the gradients."""
    if not active:
        yield lambda: None
        return
    trace = _Trace(net, say)
    handles = []
    for node, layer in zip(net.graph.nodes, net.layers, strict=True):
        if not node.is_data:
            handles.append(layer.register_forward_pre_hook(trace.watch_bottoms(node)))
        handles.append(layer.register_forward_hook(trace.log_forward(node)))
    try:
        yield trace.log_gradients
    finally:
        for handle in handles:
            handle.remove()


class _Trace:
    """The hooks of one pass, and the means of the gradients that they see."""

    def __init__(self, net: Net, say: Say) -> None:
        self._net, self._say = net, say
        self._splits = {node.bottoms[0]: node for node in net.graph.nodes if node.type == "Split"}
        # By reader and place of the bottom: in Caffe each reader of a blob has a gradient of its own.
        self._slopes: dict[tuple[Node, int], float] = {}

    def watch_bottoms(self, node: Node) -> Callable[..., Any]:
        """A hook that gives the layer copies of its bottoms, whose gradients are the layer's own share."""

        def hook(layer: Any, bottoms: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(
                self._watched(value.clone(), node, place)
                if isinstance(value, Tensor) and value.requires_grad
                else value
                for place, value in enumerate(bottoms)
            )

        return hook

    def _watched(self, value: Tensor, node: Node, place: int) -> Tensor:
        def keep(gradient: Tensor) -> None:
            self._slopes[node, place] = _mean(gradient)

        value.register_hook(keep)
        return value

    def log_forward(self, node: Node) -> Callable[..., None]:
        """A hook that logs the layer's tops and parameters, and the Split layers that follow it."""

        def hook(layer: Any, arguments: Any, result: Any) -> None:
            tops = result if isinstance(result, (tuple, list)) else (result,)
            for blob, value in zip(node.tops, tops, strict=False):
                self._say(f"    [Forward] Layer {node.name}, top blob {blob.name} data: {figure(_mean(value))}")
            for index, name in enumerate(layer.blob_names):
                mean = figure(_mean(getattr(layer, name)))
                self._say(f"    [Forward] Layer {node.name}, param blob {_param_name(node, index)} data: {mean}")
            for blob, value in zip(node.tops, tops, strict=False):
                if blob in self._splits:
                    self._log_split(blob, value)

        return hook

    def _log_split(self, blob: Blob, value: Tensor) -> None:
        """A Split runs no code here: its tops are the blob itself, its gradient is the sum of its readers'."""
        split = self._splits[blob]
        mean = figure(_mean(value))
        for top in split.tops:
            self._say(f"    [Forward] Layer {split.name}, top blob {top.name} data: {mean}")
        if value.requires_grad:
            self._watched(value, split, 0)

    def log_gradients(self) -> None:
        """Log what the backward pass left: from the last layer to the first, then the norms over all parameters."""
        for node, layer in zip(reversed(self._net.graph.nodes), reversed(self._net.layers), strict=True):
            for place, blob in enumerate(node.bottoms):
                if (node, place) in self._slopes:
                    slope = figure(self._slopes[node, place])
                    self._say(f"    [Backward] Layer {node.name}, bottom blob {blob.name} diff: {slope}")
            for index, name in enumerate(layer.blob_names):
                gradient = getattr(layer, name).grad
                if gradient is not None:
                    slope = figure(_mean(gradient))
                    self._say(f"    [Backward] Layer {node.name}, param blob {_param_name(node, index)} diff: {slope}")
        tensors = [entry.tensor.detach() for entry in self._net.learnable]
        slopes = [entry.tensor.grad for entry in self._net.learnable if entry.tensor.grad is not None]
        norms = "; ".join(
            f"L{order} norm = ({figure(_norm(tensors, order))}, {figure(_norm(slopes, order))})" for order in (1, 2)
        )
        self._say(f"    [Backward] All net params (data, diff): {norms}")


def _param_name(node: Node, index: int) -> str:
    """A parameter as Caffe shows it: by the name its `param` entry gives, else by its number."""
    specs = node.param.param
    return (specs[index].name if index < len(specs) else "") or str(index)


def _norm(tensors: list[Tensor], order: int) -> float:
    total = sum(float(torch.linalg.vector_norm(t, order, dtype=torch.float64)) ** order for t in tensors)
    return float(total ** (1 / order))
