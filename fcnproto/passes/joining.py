"""The pass `onednn` of `optimize`: convolutions and inner products by oneDNN's fused operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from fcnproto.layers.base import Layer
from fcnproto.layers.eltwise import Eltwise
from fcnproto.layers.inner_product import InnerProduct
from fcnproto.passes.fused import FusedConvolution, FusedProduct, Ready
from fcnproto.passes.kernels import FastConvolution, FastPooling
from fcnproto.passes.normalising import FastNorm

if TYPE_CHECKING:
    from fcnproto.passes.rewriting import Rewriter


def join(rewriter: Rewriter) -> None:
    """Have every `FastConvolution` and InnerProduct run by oneDNN with what follows it; see `Rewriter.onednn`."""
    graph = rewriter.trace.graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if not inputs:
        return
    doubtful = _doubtful(rewriter)
    ready, call = Ready(rewriter.watch), None
    for node in list(graph.nodes):
        module = rewriter.module(node)
        if not isinstance(module, FastConvolution | InnerProduct) or len(node.all_input_nodes) != 1:
            continue
        if call is None:
            call = rewriter.put(inputs[-1].next, ready, inputs)
        if isinstance(module, FastConvolution):
            ready.add(module)
            _fuse_convolution(rewriter, node, module, call, doubtful)
        else:
            _fuse_product(rewriter, node, module, call, doubtful)
    for node in graph.nodes:
        module = rewriter.module(node)
        if isinstance(module, FastNorm):
            ready.add(module)
    rewriter.drop_unread()


def _doubtful(rewriter: Rewriter) -> set[fx.Node]:
    """The nodes whose values may be infinite or NaN though inputs and what `Ready` looks at are finite."""
    found: set[fx.Node] = set()
    for node in rewriter.trace.graph.nodes:
        module = rewriter.module(node)
        keeps = (
            module.keeps_finite()
            if isinstance(module, Layer)
            else module is None or isinstance(module, FastConvolution | FastNorm | FastPooling)
        )
        if not keeps or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _fuse_convolution(
    rewriter: Rewriter, node: fx.Node, fast: FastConvolution, ready: fx.Node, doubtful: set[fx.Node]
) -> None:
    following: list[Layer] = []
    last, first = node, True
    bottoms = list(node.all_input_nodes)
    found = None if fast.relu else rewriter.only_reader(node)
    if found and isinstance(found[1], Eltwise) and found[1].is_plain_sum() and len(found[0].all_input_nodes) == 2:
        last, first = found[0], found[0].args[0] is node
        bottoms += [other for other in last.all_input_nodes if other is not node]
        following.append(found[1])
        found = rewriter.only_reader(last)
    if found and _is_activation(found[1]):
        last = found[0]
        following.append(found[1])
    doubts = not doubtful.isdisjoint(bottoms)
    fused = FusedConvolution(fast, following, first=first, doubtful=doubts, tuning=rewriter.tuning)
    rewriter.note("onednn", [*rewriter.layers_of(node), *following], fused)
    call = rewriter.put(last, fused, [*bottoms, ready])
    if doubts:
        doubtful.add(call)
    rewriter.replace(last, call)


def _fuse_product(
    rewriter: Rewriter, node: fx.Node, layer: InnerProduct, ready: fx.Node, doubtful: set[fx.Node]
) -> None:
    if layer.num_tops != 1 or layer.config.transpose:
        return
    found = rewriter.only_reader(node)
    last, behind = found if found and _is_activation(found[1]) else (node, None)
    fused = FusedProduct(layer, behind)
    rewriter.note("onednn", [layer] if behind is None else [layer, behind], fused)
    call = rewriter.put(last, fused, [*node.all_input_nodes, ready])
    doubtful.add(call)  # its weights are not looked at
    rewriter.replace(last, call)


def _is_activation(layer: Layer) -> bool:
    return layer.num_tops == 1 and len(layer.param.bottom) == 1 and layer.activation() is not None
