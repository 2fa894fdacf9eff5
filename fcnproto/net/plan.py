"""Execution plans: for one set of inputs and wanted blobs, the layers to run as a `torch.fx.GraphModule`.

Internal to `fcnproto.net`; a plan prints, compiles and exports like any fx graph. Values are dropped by the
generated code as soon as their last reader has run.

Tensors are never overwritten here, but Caffe's blobs are: what in-place layers do to memory that several blobs share
is followed by `_Memory`.
"""

from __future__ import annotations

import keyword
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from fcnproto.errors import GraphError
from fcnproto.graph import Blob, Graph, Node
from fcnproto.layers.backward import Cell, run_as_caffe, without_gradient
from fcnproto.net.caffe_memory import Place, bottom_in_memory


@dataclass(frozen=True)
class Plan:
    """A compiled set of layers.

    `module` takes the inputs in the order of `inputs` and returns a tuple of values; `keys` maps blob names to
    positions in it; `weighted` lists (position, loss weight, whether the gradient starts there). `left_out` are the
    net's outputs that can't be computed for a layer's sake, with why.
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]
    keys: dict[str, int]
    weighted: tuple[tuple[int, float, bool], ...]
    left_out: Mapping[str, str] = field(default_factory=dict)


def source_blob(graph: Graph, name: str) -> Blob:
    """The top of a data layer called `name`, before any in-place layer; `GraphError` for every other name."""
    for node in graph.nodes:
        if node.is_data:
            for blob in node.tops:
                if blob.name == name:
                    return blob
    known = [blob.name for node in graph.nodes if node.is_data for blob in node.tops]
    what = "an inner blob, not an input" if name in graph.blobs else "not a blob of this net"
    raise GraphError(f"{graph.title}: {name!r} is {what}; the inputs are {', '.join(map(repr, known)) or 'none'}")


def runnable(graph: Graph, inputs: Sequence[str]) -> dict[Blob, bool]:
    """For every blob version whether it can be computed from the inputs named; nothing passes a layer that is held."""
    given = {source_blob(graph, name) for name in inputs}
    known: dict[Blob, bool] = {}
    for node in graph.nodes:
        if node.is_data:
            known.update((blob, blob in given) for blob in node.tops)
        else:
            ready = not node.held and all(known[blob] for blob in node.bottoms)
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


def obstacles(graph: Graph, target: Blob, known: Mapping[Blob, bool]) -> list[Node]:
    """The layers that `target` depends on and that can't be computed for now, in the net's order; those whose tops are
    given don't count."""
    behind, stack = {target.producer}, [target]
    while stack:
        for bottom in stack.pop().producer.bottoms:
            if not known[bottom]:
                behind.add(bottom.producer)
                stack.append(bottom)
    return [node for node in graph.nodes if node.held and node in behind and not (node.is_data and known[node.tops[0]])]


def why_missing(graph: Graph, target: Blob, known: Mapping[Blob, bool]) -> str:
    """Why a blob can't be computed, as a clause: the first layer that is held, with what to do, or missing inputs."""
    held = obstacles(graph, target, known)
    inner = [node for node in held if not node.is_data]
    if inner:
        return inner[0].held
    return _missing(missing_inputs(graph, target, known), held)


def _missing(names: Sequence[str], held: Sequence[Node]) -> str:
    """That inputs are missing, with why the layers that would give them don't."""
    reasons = "; ".join(dict.fromkeys(node.held for node in held if node.is_data and node.held))
    return f"input {', '.join(map(repr, names))} is missing" + (f" ({reasons})" if reasons else "")


def make_plan(
    root: nn.Module,
    targets: Mapping[Node, str],
    graph: Graph,
    inputs: Sequence[str],
    blobs: Sequence[str],
    places: Mapping[int, Place] | None = None,
) -> Plan:
    """Compile the layers that can be run with `inputs`, giving the net's outputs and the extra `blobs`.

    `targets` maps nodes to module names in `root`; `places` are the layers (by index) whose gradient is to be Caffe's
    where that is not the derivative. Where none of the net's outputs can be computed and no `blobs` are asked for, the
    blobs that no computed layer reads stand in for them (a train net without its label gives its scores). Raises
    `GraphError` where an extra blob, or everything, needs an input that is missing.
    """
    known = runnable(graph, inputs)
    wanted = _wanted(graph, known, blobs)
    trace = fx.Graph()
    memory = _Memory(trace)
    for name in inputs:
        memory.put(source_blob(graph, name), _placeholder(trace, name))
    weighted: list[tuple[fx.Node, float, bool]] = []
    for index, node in enumerate(graph.nodes):
        runs = not node.is_data and not node.held and not node.facts.idle
        if runs and all(known[blob] for blob in node.bottoms):
            place = (places or {}).get(index)
            _add_node(trace, node, targets[node], memory, graph.force_backward, place)
        # Taken here: Caffe adds up the loss as the layers run.
        for blob, weight in zip(node.tops, node.loss_weights, strict=True):
            if weight != 0 and known[blob]:
                weighted.append((memory.values[blob], weight, blob.consumer is None))
    memory.close()
    positions: dict[fx.Node, int] = {}
    keys = {name: positions.setdefault(memory.kept(graph.blobs[name]), len(positions)) for name in wanted}
    terms = tuple((positions.setdefault(value, len(positions)), *how) for value, *how in weighted)
    trace.output(tuple(positions))
    left_out = {
        name: f"{graph.title}: blob {name!r} can't be computed: {why_missing(graph, graph.blobs[name], known)}"
        for name in graph.outputs
        if not known[graph.blobs[name]] and obstacles(graph, graph.blobs[name], known)
    }
    return Plan(fx.GraphModule(root, trace, "Plan"), tuple(inputs), keys, terms, left_out)  # type: ignore[arg-type]


def _wanted(graph: Graph, known: Mapping[Blob, bool], blobs: Sequence[str]) -> list[str]:
    """The names of the blobs that a plan gives, each once."""
    wanted = [name for name in graph.outputs if known[graph.blobs[name]]]
    for name in blobs:
        blob = graph.blob(name)
        if not known[blob]:
            raise GraphError(f"{graph.title}: blob {name!r} can't be computed: {why_missing(graph, blob, known)}")
        if name not in wanted:
            wanted.append(name)
    if not wanted:
        lost = [graph.blobs[name] for name in graph.outputs]
        held = [node for blob in lost for node in obstacles(graph, blob, known) if not node.is_data]
        decisive = [node for node in held if not (node.facts.is_loss or any(node.loss_weights))]
        if decisive:  # where losses alone are held, what they would judge is given
            raise GraphError(f"{graph.title}: no output can be computed: {decisive[0].held}")
        wanted = _ends(graph, known)
    if graph.outputs and not wanted:
        absent = sorted({name for top in graph.outputs for name in missing_inputs(graph, graph.blobs[top], known)})
        sources = [node for node in graph.nodes if node.is_data and any(blob.name in absent for blob in node.tops)]
        raise GraphError(f"{graph.title}: no output can be computed: {_missing(absent, sources)}")
    return wanted


def _ends(graph: Graph, known: Mapping[Blob, bool]) -> list[str]:
    """The computed blobs that no computed layer reads, by Caffe's order of outputs; automatic Splits don't count."""
    read: set[Blob] = set()
    for node in graph.nodes:
        if not node.automatic and not node.held and all(known[blob] for blob in node.bottoms):
            for blob in node.bottoms:
                read.add(blob)
                while blob.producer.automatic:
                    blob = blob.producer.bottoms[0]
                    read.add(blob)
    ends = (
        name
        for name, blob in graph.blobs.items()
        if known[blob] and blob not in read and not blob.producer.is_data and not blob.producer.automatic
    )
    return sorted(ends, key=lambda name: name.encode())


class _Memory:
    """What Caffe's blobs hold while the layers run.

    The tops of Split, Flatten and Reshape (and of Slice with one top, Concat with one bottom) are their bottom's memory
    in Caffe. A layer that works in place on one such blob changes them all: those that are read later, and those
    that are looked at after the pass.
    """

    def __init__(self, trace: fx.Graph) -> None:
        self.trace = trace
        self.values: dict[Blob, fx.Node] = {}
        self._owner: dict[Blob, Blob] = {}
        self._writer: dict[Blob, Blob] = {}
        self._seen: dict[Blob, Blob | None] = {}
        self._cells: dict[Blob, fx.Node] = {}

    def put(self, blob: Blob, value: fx.Node) -> None:
        """Note the value that a layer gives to its top."""
        bottom = bottom_in_memory(blob)
        owner = blob if bottom is None else self._owner[bottom]
        if bottom is not None and bottom.name == blob.name:
            self._writer[owner] = blob
        self.values[blob], self._owner[blob], self._seen[blob] = value, owner, self._writer.get(owner)

    def read(self, blob: Blob) -> fx.Node:
        """The value that a layer finds in its bottom."""
        writer = self._writer.get(self._owner[blob])
        if writer is not None and writer is not self._seen[blob]:
            self.values[blob] = self.trace.call_function(overwritten, (self.values[blob], self.values[writer]))
            self._seen[blob] = writer
        return self.values[blob]

    def kept(self, blob: Blob) -> fx.Node:
        """The value that the blob has after the pass."""
        writer = self._writer.get(self._owner[blob])
        if blob.consumer is None or writer is None or writer is self._seen[blob]:
            return self.read(blob)
        # Its gradient, in Caffe shared like the value, comes through the layers that read the blob.
        return self.trace.call_method("reshape_as", (self.values[writer], self.values[blob]))

    def cell(self, blob: Blob) -> fx.Node:
        """What will tell, after the pass, what a blob's memory holds; a top's may be asked for before `put`."""
        bottom = bottom_in_memory(blob)
        owner = self._owner[blob] if blob in self._owner else blob if bottom is None else self._owner[bottom]
        if owner not in self._cells:
            self._cells[owner] = self.trace.call_function(Cell)
        return self._cells[owner]

    def close(self) -> None:
        """Have the cells filled with what the last in-place layers leave."""
        for owner, cell in self._cells.items():
            if owner in self._writer:
                self.trace.call_method("keep", (cell, self.values[self._writer[owner]]))


class _Overwritten(torch.autograd.Function):
    """See `overwritten`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, memory: Tensor) -> Tensor:
        return memory.reshape(value.shape).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def overwritten(value: Tensor, memory: Tensor) -> Tensor:
    """`value` after another blob's in-place layer left `memory` in the memory that both share.

    The gradient goes to `value`: behind a Split, Caffe's blobs share their values, not their gradients.
    """
    result: Tensor = _Overwritten.apply(value, memory)
    return result


def _add_node(
    trace: fx.Graph, node: Node, target: str, memory: _Memory, force_backward: bool, place: Place | None
) -> None:
    bottoms = [memory.read(blob) for blob in node.bottoms]
    if not force_backward and node.param.propagate_down:
        bottoms = [
            value if wanted else trace.call_method("detach", (value,))
            for value, wanted in zip(bottoms, node.param.propagate_down, strict=True)
        ]
    silent = () if place is None else place.silent
    if node.type == "Split":
        for blob in node.tops:
            memory.put(blob, _silenced(trace, bottoms[0], blob.top in silent))
        return
    if place is not None and place.is_rerun:
        result = _add_as_caffe(trace, node, target, memory, bottoms, place)
    else:
        options: dict[str, Any] = {"overwrite": True} if _may_overwrite(node) else {}
        result = trace.create_node("call_module", target, tuple(bottoms), options, name=_identifier(target, "layer"))
    for j, blob in enumerate(node.tops):
        value = result if len(node.tops) == 1 else trace.call_function(operator.getitem, (result, j))
        memory.put(blob, _silenced(trace, value, j in silent))


def _silenced(trace: fx.Graph, value: fx.Node, silent: bool) -> fx.Node:
    return trace.call_function(without_gradient, (value,)) if silent else value


def _add_as_caffe(
    trace: fx.Graph, node: Node, target: str, memory: _Memory, bottoms: Sequence[fx.Node], place: Place
) -> fx.Node:
    """A layer with Caffe's gradient; the memory that it reads is known only after the pass."""
    cells = [memory.cell(node.bottoms[i]) for i in place.bottoms] + [memory.cell(node.tops[j]) for j in place.tops]
    manner = (place.bottoms, place.tops, place.in_place, place.mixes, place.overwrites, place.lost)
    layer = trace.get_attr(target)
    return trace.call_function(run_as_caffe, (layer, manner, tuple(cells), *bottoms))


def _may_overwrite(node: Node) -> bool:
    """Whether a layer may write over its bottom's memory: in place in the prototxt, so that nobody can ask for what was
    there before, and after a layer such as a convolution, whose gradient does not need its output."""
    return (
        node.facts.may_overwrite
        and node.bottoms[0].name == node.tops[0].name
        and not node.bottoms[0].producer.facts.gradient_reads_top
    )


def _placeholder(trace: fx.Graph, name: str) -> fx.Node:
    """An argument of the plan's module, called like the blob as far as Python allows."""
    node = trace.placeholder(_identifier(name, "input"))
    node.target = node.name  # made unique by fx, which takes the target for the argument's name
    return node


def _identifier(name: str, prefix: str) -> str:
    """A name for a variable of the module's code; names that begin with no letter get the prefix."""
    cleaned = re.sub("[^0-9a-zA-Z_]", "_", name)
    if not cleaned[:1].isalpha():
        cleaned = f"{prefix}_{cleaned}"
    return f"{cleaned}_" if keyword.iskeyword(cleaned) or cleaned == "self" else cleaned
