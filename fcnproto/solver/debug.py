"""Caffe's debug_info: mean absolute values of every layer's data and gradients as log lines, and the norms of all.

Changes no result. Works by hooks, so it sees layers as they run (a compiled net shows nothing).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fcnproto.net import Net
from fcnproto.solver.log import figure


def _mean(value: Tensor | None) -> str:
    if value is None or not value.numel():
        return "0"
    return figure(float(value.detach().abs().mean(dtype=torch.float64)))


@contextmanager
def traced(net: Net, say: Callable[[str], None], active: bool = True) -> Iterator[Callable[[], None]]:
    """Log the forward passes of the block; call what it gives after the backward pass to log the gradients."""
    if not active:
        yield lambda: None
        return
    gradients: dict[int, tuple[Tensor | None, ...]] = {}

    def forward(layer: Any, arguments: Any, result: Any) -> None:
        tops = result if isinstance(result, (tuple, list)) else (result,)
        for top, value in zip(layer.param.top, tops, strict=False):
            say(f"    [Forward] Layer {layer.name}, top blob {top} data: {_mean(value)}")
        for index, name in enumerate(layer.blob_names):
            say(f"    [Forward] Layer {layer.name}, param blob {index} data: {_mean(getattr(layer, name))}")

    def backward(layer: Any, bottoms: tuple[Tensor | None, ...], tops: Any) -> None:
        gradients[id(layer)] = bottoms

    handles = [layer.register_forward_hook(forward) for layer in net.layers]
    if net.training and torch.is_grad_enabled():
        handles += [layer.register_full_backward_hook(backward) for layer in net.layers if not layer.is_data]
    try:
        with warnings.catch_warnings():
            # Layers next to the data have no gradient to give; torch warns that their hooks see less.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield lambda: _log_gradients(net, gradients, say)
    finally:
        for handle in handles:
            handle.remove()


def _log_gradients(net: Net, gradients: dict[int, tuple[Tensor | None, ...]], say: Callable[[str], None]) -> None:
    for node, layer in zip(reversed(net.graph.nodes), reversed(net.layers), strict=True):
        if id(layer) not in gradients:
            continue
        for blob, value in zip(node.bottoms, gradients[id(layer)], strict=False):
            if value is not None:
                say(f"    [Backward] Layer {layer.name}, bottom blob {blob.name} diff: {_mean(value)}")
        for index, name in enumerate(layer.blob_names):
            gradient = getattr(layer, name).grad
            if gradient is not None:
                say(f"    [Backward] Layer {layer.name}, param blob {index} diff: {_mean(gradient)}")
    tensors = [entry.tensor.detach() for entry in net.learnable]
    slopes = [tensor.grad for tensor in (entry.tensor for entry in net.learnable) if tensor.grad is not None]
    norms = ", ".join(
        f"L{order} norm = ({figure(_norm(tensors, order))}, {figure(_norm(slopes, order))})" for order in (1, 2)
    ).replace(", L2", "; L2")
    say(f"    [Backward] All net params (data, diff): {norms}")


def _norm(tensors: list[Tensor], order: int) -> float:
    total = sum(float(torch.linalg.vector_norm(t, order, dtype=torch.float64)) ** order for t in tensors)
    return float(total ** (1 / order))
