"""Execution plans: for one set of inputs and wanted blobs, the layers to run as a `torch.fx.GraphModule`.

Internal to `fcnproto.net`; a plan prints, compiles and exports like any fx graph. Values are dropped by the
generated code as soon as their last reader has run.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx, nn

from fcnproto.errors import GraphError
from fcnproto.graph import Blob, Graph, Node

_SILENT = ("Silence",)


@dataclass(frozen=True)
class Plan:
    """A compiled set of layers.

    `module` takes the inputs in the order of `inputs` and returns a tuple of values; `keys` maps blob names to
    positions in it; `weighted` lists (position, loss weight, whether the gradient starts there).
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]
    keys: dict[str, int]
    weighted: tuple[tuple[int, float, bool], ...]


def source_blob(graph: Graph, name: str) -> Blob:
    """The top of a data layer called `name`, before any in-place layer; `GraphError` for every other name."""
    for node in graph.nodes:
        if node.is_data:
            for blob in node.tops:
                if blob.name == name:
                    return blob
    known = [blob.name for node in graph.nodes if node.is_data for blob in node.tops]
    what = "an inner blob, not an input" if name in graph.blobs else "not a blob of this net"
    raise GraphError(f"net {graph.name!r}: {name!r} is {what}; the inputs are {', '.join(map(repr, known)) or 'none'}")


def runnable(graph: Graph, inputs: Sequence[str]) -> dict[Blob, bool]:
    """For every blob version whether it can be computed from the inputs named."""
    given = {source_blob(graph, name) for name in inputs}
    known: dict[Blob, bool] = {}
    for node in graph.nodes:
        if node.is_data:
            known.update((blob, blob in given) for blob in node.tops)
        else:
            ready = all(known[blob] for blob in node.bottoms)
            known.update((blob, ready) for blob in node.tops)
    return known


def missing_inputs(graph: Graph, target: Blob, known: Mapping[Blob, bool]) -> list[str]:
    """The data tops that `target` depends on and that are not given."""
    names: list[str] = []
    stack, seen = [target], {target}
    while stack:
        blob = stack.pop()
        if blob.producer.is_data and not known[blob] and blob.name not in names:
            names.append(blob.name)
        for bottom in blob.producer.bottoms:
            if bottom not in seen:
                seen.add(bottom)
                stack.append(bottom)
    return sorted(names)


def make_plan(
    root: nn.Module, targets: Mapping[Node, str], graph: Graph, inputs: Sequence[str], blobs: Sequence[str]
) -> Plan:
    """Compile the layers that can be run with `inputs`, giving the net's outputs and the extra `blobs`.

    `targets` maps nodes to module names in `root`. Raises `GraphError` where an extra blob, or every output,
    needs an input that is missing.
    """
    known = runnable(graph, inputs)
    wanted = [name for name in graph.outputs if known[graph.blobs[name]]]
    for name in blobs:
        blob = graph.blob(name)
        if not known[blob]:
            missing = ", ".join(map(repr, missing_inputs(graph, blob, known)))
            raise GraphError(f"net {graph.name!r}: blob {name!r} can't be computed: input {missing} is missing")
        if name not in wanted:
            wanted.append(name)
    if graph.outputs and not wanted:
        absent = sorted({name for top in graph.outputs for name in missing_inputs(graph, graph.blobs[top], known)})
        names = ", ".join(map(repr, absent))
        raise GraphError(f"net {graph.name!r}: no output can be computed: input {names} is missing")
    trace = fx.Graph()
    values: dict[Blob, fx.Node] = {}
    for name in inputs:
        values[source_blob(graph, name)] = trace.placeholder(_identifier(name))
    for node in graph.nodes:
        if not node.is_data and all(known[blob] for blob in node.bottoms) and node.type not in _SILENT:
            _add_node(trace, node, targets[node], values, graph.force_backward)
    positions: dict[Blob, int] = {}
    keys = {name: positions.setdefault(graph.blobs[name], len(positions)) for name in wanted}
    weighted = tuple(
        (positions.setdefault(blob, len(positions)), weight, blob.consumer is None)
        for blob, weight in graph.weighted()
        if known[blob]
    )
    trace.output(tuple(values[blob] for blob in positions))
    return Plan(fx.GraphModule(root, trace, "Plan"), tuple(inputs), keys, weighted)


def _add_node(trace: fx.Graph, node: Node, target: str, values: dict[Blob, fx.Node], force_backward: bool) -> None:
    bottoms = [values[blob] for blob in node.bottoms]
    if not force_backward and node.param.propagate_down:
        bottoms = [
            value if wanted else trace.call_method("detach", (value,))
            for value, wanted in zip(bottoms, node.param.propagate_down, strict=True)
        ]
    if node.type == "Split":
        values.update((blob, bottoms[0]) for blob in node.tops)
        return
    result = trace.call_module(target, tuple(bottoms))
    if len(node.tops) == 1:
        values[node.tops[0]] = result
    else:
        for j, blob in enumerate(node.tops):
            values[blob] = trace.call_function(operator.getitem, (result, j))


def _identifier(name: str) -> str:
    cleaned = "".join(c if c.isalnum() or c == "_" else "_" for c in name)
    return cleaned if cleaned[:1].isalpha() else f"input_{cleaned}"
