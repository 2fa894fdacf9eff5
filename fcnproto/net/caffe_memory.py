"""Where in a net Caffe's gradient is not the derivative, because layers share memory.

Caffe's blobs are memory that in-place layers overwrite and that Split, Reshape, Flatten, Slice with one top and Concat
with one bottom hand on. Its backward pass runs after the whole forward pass, reads what the blobs hold then, and moves
gradients through memory that is shared, too. `find_places` follows both through a graph, without computing anything:

* values: a layer reads a bottom or a top that an in-place layer has overwritten since;
* gradients: Reshape gives its top the memory of its bottom's gradient, Flatten gives its bottom that of its top's, and
  LSTM reads its top's from memory inside of it. Where a Flatten follows one of the others, the gradient is written to
  other memory than it is read from, and what is read is 0;
* parameters: Scale's gradient of a factor as large as its bottom, and Parameter's, overwrites what was gathered before;
  LSTM and RNN compute gradients of frozen blobs, too; and their recurrent blobs, shared by name in TRAIN, are shared
  for the first time step alone.

Internal to `fcnproto.net`, but for `find_places`, which `fcnproto.checking.caffe` says as findings;
`fcnproto.layers.backward` has the arithmetic.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fcnproto.graph import Blob, Graph, Node
from fcnproto.layers.backward import Reads
from fcnproto.layers.base import Layer
from fcnproto.layers.recurrent import RecurrentLayer
from fcnproto.net.params import ParamRef

Param = tuple[int, int]
"""A parameter blob: the layer's index and the blob's."""

_MOST_SAID = 6


@dataclass
class Place:
    """A layer whose gradient is another in Caffe.

    `bottoms` and `tops` are those that its backward pass reads after they were overwritten, `silent` the tops whose
    gradient doesn't reach it. `overwrites`, `lost`: see `fcnproto.layers.backward.Manner`. `reason` says it in words.
    `own_steps` are blobs shared for the first time step alone, `thawed` frozen ones that have a gradient all the same.
    `counts`: whether a loss depends on the layer, and anything learns by its gradient.
    """

    bottoms: tuple[int, ...] = ()
    tops: tuple[int, ...] = ()
    in_place: bool = False
    mixes: bool = False
    own_steps: tuple[int, ...] = ()
    thawed: tuple[int, ...] = ()
    silent: tuple[int, ...] = ()
    overwrites: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()
    reasons: list[str] = field(default_factory=list)
    counts: bool = True

    @property
    def is_rerun(self) -> bool:
        """Whether the layer's own gradient is another function, not only one that doesn't arrive."""
        return bool(self.bottoms or self.tops or self.mixes or self.overwrites or self.lost)


def bottom_in_memory(blob: Blob) -> Blob | None:
    """The bottom of the producing layer whose memory a top is: in place, or shared by Caffe's layer; else None."""
    node = blob.producer
    if blob.top < len(node.bottoms) and node.bottoms[blob.top].name == blob.name:
        return node.bottoms[blob.top]
    return node.bottoms[0] if node.facts.shares_memory(node.param) else None


def is_in_place(node: Node) -> bool:
    """Whether a layer's top 0 has the name of its bottom 0."""
    return bool(node.bottoms and node.tops and node.bottoms[0].name == node.tops[0].name)


def find_places(
    graph: Graph, layers: Sequence[Layer], refs: Sequence[ParamRef], shared: Mapping[Param, Param]
) -> dict[int, Place]:
    """The layers of a net whose gradient is another in Caffe, by index, in order; found in a few sweeps."""
    found: dict[Node, Place] = {}
    _overwritten_values(graph, layers, found)
    _gradients_that_do_not_arrive(graph, found)
    _overwritten_parameters(graph, layers, shared, found)
    _recurrent_blobs(graph, layers, refs, shared, found)
    needed, wanted = _needed(graph, layers, refs, shared), _contributing(graph)
    for node, place in found.items():
        place.counts = node in needed and node in wanted
    return {index: found[node] for index, node in enumerate(graph.nodes) if node in found}


def _overwritten_values(graph: Graph, layers: Sequence[Layer], found: dict[Node, Place]) -> None:
    owner: dict[Blob, Blob] = {}
    writers: dict[Blob, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        for blob in node.tops:
            bottom = bottom_in_memory(blob)
            owner[blob] = blob if bottom is None else owner[bottom]
            if bottom is not None and bottom.name == blob.name:
                writers.setdefault(owner[blob], []).append(index)
    kept = [layer.in_place_keeps() for layer in layers]
    last = {memory: _LastWriters(places, kept) for memory, places in writers.items()}
    for index, (node, layer) in enumerate(zip(graph.nodes, layers, strict=True)):
        if node.is_data:
            continue
        in_place = is_in_place(node)
        reads = layer.backward_reads(in_place)
        changed = {
            (side, number): writer
            for side, number, blob, signs in _read(node, reads)
            if owner[blob] in last
            and (writer := last[owner[blob]].after(index - (side == "bottom"), signs)) is not None
        }
        if not changed and not (reads.mixes and in_place):
            continue
        place = found.setdefault(node, Place())
        place.bottoms = tuple(number for side, number in changed if side == "bottom")
        place.tops = tuple(number for side, number in changed if side == "top")
        place.in_place, place.mixes = in_place, reads.mixes and in_place
        place.reasons.append(_overwriters(graph, index, set(changed.values())))


def _overwriters(graph: Graph, index: int, writers: set[int]) -> str:
    others = [repr(graph.nodes[writer].name) for writer in sorted(writers) if writer != index]
    return f"reads what {', '.join(others)} overwrites" if others else "reads what it overwrites itself"


def _read(node: Node, reads: Reads) -> list[tuple[str, int, Blob, bool]]:
    """The blobs that a layer's backward pass reads: side, number, blob, and whether only signs matter."""
    sides = (
        ("bottom", reads.bottoms, node.bottoms, False),
        ("bottom", reads.signs, node.bottoms, True),
        ("top", reads.tops, node.tops, False),
    )
    return [
        (side, number, blobs[number], signs)
        for side, numbers, blobs, signs in sides
        for number in numbers
        if number < len(blobs)
    ]


class _LastWriters:
    """The in-place layers that write to one memory, by their indices."""

    def __init__(self, writers: list[int], kept: Sequence[str]) -> None:
        self._any = next((w for w in reversed(writers) if kept[w] != "values"), -1)
        self._signs = next((w for w in reversed(writers) if not kept[w]), -1)

    def after(self, index: int, signs_only: bool) -> int | None:
        """The last layer after `index` that changes what is in the memory (or, with `signs_only`, its signs)."""
        last = self._signs if signs_only else self._any
        return last if last > index else None


def _gradients_that_do_not_arrive(graph: Graph, found: dict[Node, Place]) -> None:
    """Follow the memory of gradients: a number for each, and what was written to it last."""
    numbers, memory, inner = itertools.count(), dict[str, int](), dict[Node, int]()
    for node in graph.nodes:
        for top in node.tops:
            if top.name not in memory:
                memory[top.name] = memory[node.bottoms[0].name] if _passes_on(node) == "bottom" else next(numbers)
        if node.facts.gradient_memory == "inner":
            inner[node] = memory[node.tops[0].name]
    content: dict[int, tuple[object, int]] = {}
    for node in graph.nodes:
        content.update((memory[top.name], (top, -1)) for top in node.tops if top.consumer is None)
    for node in reversed(graph.nodes):
        if _passes_on(node) == "handed back":
            memory[node.bottoms[0].name] = memory[node.tops[0].name]
        if _passes_on(node) or (node.is_data and node not in inner):
            continue
        places = [inner.get(node, memory[top.name]) if top.top == 0 else memory[top.name] for top in node.tops]
        silent = tuple(j for j, top in enumerate(node.tops) if content.get(places[j]) != _writer(top))
        if silent:
            place = found.setdefault(node, Place())
            place.silent = silent
            names = ", ".join(repr(node.tops[j].name) for j in silent)
            place.reasons.append(f"the gradient of {names} is written to other memory than it is read from, and is 0")
        for i, bottom in enumerate(node.bottoms):
            content[memory[bottom.name]] = (node, i)


def _passes_on(node: Node) -> str:
    """How a layer that moves no gradient, only its memory, does so; empty for others."""
    kind = node.facts.gradient_memory
    return kind if kind == "handed back" or (kind == "bottom" and node.facts.shares_memory(node.param)) else ""


def _writer(blob: Blob) -> tuple[object, int]:
    """The layer and the bottom that a blob's gradient comes from, behind layers that only pass its memory on."""
    while blob.consumer is not None and _passes_on(blob.consumer):
        blob = blob.consumer.tops[0]
    return (blob, -1) if blob.consumer is None else (blob.consumer, blob.bottom)


def _overwritten_parameters(
    graph: Graph, layers: Sequence[Layer], shared: Mapping[Param, Param], found: dict[Node, Place]
) -> None:
    first: dict[Param, str] = {}
    for index, (node, layer) in enumerate(zip(graph.nodes, layers, strict=True)):
        users = [shared.get((index, k), (index, k)) for k in range(len(layer.blob_names))]
        lost = tuple(k for k, owner in enumerate(users) if owner in first)
        if lost:
            place = found.setdefault(node, Place())
            place.lost = lost
            place.reasons.append(
                f"{first[users[lost[0]]]!r}, with which it shares a parameter, overwrites its gradient"
            )
        overwrites = layer.overwrites_gradients()
        if overwrites:
            place = found.setdefault(node, Place())
            place.overwrites = overwrites
            place.reasons.append("overwrites the gradient of earlier passes (iter_size) instead of adding to it")
            for k in overwrites:
                first.setdefault(users[k], node.name)


def _recurrent_blobs(
    graph: Graph,
    layers: Sequence[Layer],
    refs: Sequence[ParamRef],
    shared: Mapping[Param, Param],
    found: dict[Node, Place],
) -> None:
    frozen = {(ref.layer, ref.index) for ref in refs if ref.lr_mult == 0}
    for index, (node, layer) in enumerate(zip(graph.nodes, layers, strict=True)):
        if not isinstance(layer, RecurrentLayer):
            continue
        own = tuple(k for k in layer.step_blobs() if layer.training and (index, k) in shared)
        users = [shared.get((index, k), (index, k)) for k in range(len(layer.blob_names))]
        thawed = () if graph.force_backward else tuple(k for k, owner in enumerate(users) if owner in frozen)
        if not own and not thawed:
            continue
        place = found.setdefault(node, Place())
        place.own_steps, place.thawed = own, thawed
        if own:
            place.reasons.append("shares its recurrent blobs for the first time step alone; the others keep their own")
        if thawed:
            place.reasons.append("has a gradient of frozen blobs, too, which counts for clip_gradients")


def _needed(
    graph: Graph, layers: Sequence[Layer], refs: Sequence[ParamRef], shared: Mapping[Param, Param]
) -> set[Node]:
    """The layers that compute a gradient: something before them, or their own blobs, can learn."""
    learns = {(ref.layer, ref.index) for ref in refs if ref.lr_mult != 0 or graph.force_backward}
    needed: set[Node] = set()
    for index, (node, layer) in enumerate(zip(graph.nodes, layers, strict=True)):
        own = any(shared.get((index, k), (index, k)) in learns for k in range(len(layer.blob_names)))
        if own or any(blob.producer in needed or graph.force_backward for blob in node.bottoms):
            needed.add(node)
    return needed


def _contributing(graph: Graph) -> set[Node]:
    """The layers that a loss depends on."""
    wanted: set[Node] = set()
    for node in reversed(graph.nodes):
        if any(node.loss_weights) or any(top.consumer in wanted for top in node.tops):
            wanted.add(node)
    return wanted


def prepare(layers: Sequence[Layer], places: Mapping[int, Place]) -> None:
    """Make recurrent layers compute as Caffe's do: the blobs that Caffe doesn't share, and gradients of frozen ones.

    Called when the parameters have memory, before they have values. What a layer keeps for itself has its filler's
    values for good: no weights are loaded into it and nothing learns it, as in Caffe.
    """
    for index, place in places.items():
        layer = layers[index]
        if isinstance(layer, RecurrentLayer):
            layer.keep_steps(place.own_steps)
        for k in place.thawed:
            getattr(layer, layer.blob_names[k]).requires_grad_(True)


def warning(graph: Graph, places: Mapping[int, Place]) -> str:
    """What is said of a net with such places, once; empty where nothing learns by them."""
    said = [
        f"{graph.nodes[index].name!r} ({graph.nodes[index].type}) {'; '.join(place.reasons)}"
        for index, place in places.items()
        if place.counts
    ]
    if not said:
        return ""
    more = f"; and {len(said) - _MOST_SAID} more" if len(said) > _MOST_SAID else ""
    return (
        f"{graph.title}: Caffe's gradient differs here, because its layers share memory: "
        f"{'; '.join(said[:_MOST_SAID])}{more}. "
        "Here it is the true one; caffe_exact=True (train --caffe-exact) copies Caffe's"
    )
