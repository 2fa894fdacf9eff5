"""Caffe's contract of layers over live blobs: forward reads the bottoms' memory and writes the tops', backward reads
the tops' gradients, and the values as they are now, and writes those of the bottoms.

The arithmetic is that of the layer classes, gradients are autograd's of one layer at a time (or the layer's own formula
where Caffe reads what memory holds, see `fcnproto.layers.backward`). Where a backward pass is likely to follow, forward
keeps the layer's own graph, which costs little more than the blobs; where values have changed since, or there was no
forward pass, the layer is run again on what the blobs hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fcnproto import precision
from fcnproto.data.python import Python
from fcnproto.errors import LayerError, first_line
from fcnproto.layers.backward import Found, rerun
from fcnproto.layers.base import Layer
from fcnproto.layers.input import DummyData
from fcnproto.layers.recurrent import RecurrentLayer
from fcnproto.net import Net as EngineNet
from fcnproto.net.caffe_memory import Place, is_in_place
from fcnproto.net.calling import layer_error
from fcnproto.net.shapes import layer_shapes
from fcnproto.pycaffe.blob import Blob
from fcnproto.pycaffe.needs import Needs, find_needs

_PLAIN = Place()
_FILLED_ONCE = ("", "constant")
"""The fillers whose values DummyData never writes again."""


@dataclass
class _Record:
    """What a layer's forward pass left for its backward pass.

    `bottoms` are the tensors it read, `tops` those it made; with `has_graph` autograd knows how. `marks` say what the
    memories held then.
    """

    bottoms: list[Tensor]
    tops: list[Tensor]
    has_graph: bool
    marks: list[tuple[Any, int]] = field(default_factory=list)

    def holds(self) -> bool:
        """Whether nothing has been written since, and nobody holds an array through which it could have been."""
        return self.has_graph and all(_mark(thing) == mark and not _is_held(thing) for thing, mark in self.marks)


def _mark(thing: Any) -> int:
    return int(thing._version) if isinstance(thing, Tensor) else int(thing.version)


def _is_held(thing: Any) -> bool:
    return not isinstance(thing, Tensor) and bool(thing.held)


class Layerwise:
    """Runs an engine's layers one by one over blobs.

    `bottoms[i]` and `tops[i]` are the blobs of layer i, `parameters[i]` its parameter blobs.
    """

    def __init__(
        self,
        engine: EngineNet,
        bottoms: Sequence[Sequence[Blob]],
        tops: Sequence[Sequence[Blob]],
        parameters: Sequence[Sequence[Blob]],
    ) -> None:
        self.engine, self.bottoms, self.tops, self.parameters = engine, bottoms, tops, parameters
        self.layers: list[Layer] = engine.layers
        self.nodes = engine.graph.nodes
        self.needs: list[Needs] = find_needs(engine.graph, self.layers)
        self.places: dict[int, Place] = engine.caffe_places
        self._training = engine.phase == "train"
        self._records: dict[int, _Record] = {}
        for index, (node, layer) in enumerate(zip(self.nodes, self.layers, strict=True)):
            if node.facts.gradient_memory == "bottom" and node.facts.shares_memory(node.param):
                self._share_slopes(index)
            if isinstance(layer, DummyData):
                for blob, values in zip(tops[index], layer(), strict=True):
                    blob.put(values, True)

    # Forward.

    def forward(self, index: int, device: torch.device) -> float:
        """Run one layer; returns its weighted loss."""
        node, layer = self.nodes[index], self.layers[index]
        self._records.pop(index, None)
        with self._named(layer):
            if node.is_data:
                self._read(index, device)
            elif isinstance(layer, Python):
                layer.run_live()
            elif node.facts.shares_memory(node.param):
                self._share(index, device)
            elif not node.facts.idle:
                self._compute(index, device)
        loss = 0.0
        for blob, weight in zip(self.tops[index], node.loss_weights, strict=True):
            if weight:
                loss += float((blob.tensor(device) * blob.slope(device)).sum())
        return loss

    def reshape(self, index: int, device: torch.device) -> None:
        """Give a layer's tops the shapes that follow from its bottoms'."""
        node, layer = self.nodes[index], self.layers[index]
        if node.is_data and not isinstance(layer, Python):
            return
        shapes = layer_shapes(layer, [blob.shape for blob in self.bottoms[index]])
        shares = node.facts.shares_memory(node.param)
        for blob, shape in zip(self.tops[index], shapes, strict=True):
            if shares:
                blob.share_values(self.bottoms[index][0], shape)
            elif blob.shape != shape:
                blob.reshape(*shape)
        if shares and node.facts.gradient_memory == "bottom":
            self._share_slopes(index)

    def _read(self, index: int, device: torch.device) -> None:
        layer, tops = self.layers[index], self.tops[index]
        if layer.type == "Input":
            return
        if isinstance(layer, Python):
            layer.run_live()
            return
        kept = [False] * len(tops)
        if isinstance(layer, DummyData):
            kept = [filler.type in _FILLED_ONCE for filler in layer.fillers()]
        for blob, values, keep in zip(tops, layer(), kept, strict=True):
            if not keep:
                blob.put(values.to(device), True)

    def _share(self, index: int, device: torch.device) -> None:
        """Tops that are the bottom's memory: only their shapes are worked out."""
        node, source = self.nodes[index], self.bottoms[index][0]
        with torch.no_grad():
            result = self.layers[index](*(blob.tensor(device) for blob in self.bottoms[index]))
        for blob, top in zip(self.tops[index], _tuple(result), strict=True):
            blob.share_values(source, tuple(top.shape))
        if node.facts.gradient_memory == "bottom":
            self._share_slopes(index)

    def _share_slopes(self, index: int) -> None:
        for blob in self.tops[index]:
            blob.slopes = self.bottoms[index][0].slopes

    def _compute(self, index: int, device: torch.device) -> None:
        node, layer = self.nodes[index], self.layers[index]
        for blob in self.parameters[index]:
            blob.values.on(device)
        values = [blob.tensor(device) for blob in self.bottoms[index]]
        place, in_place = self.places.get(index, _PLAIN), is_in_place(node)
        overwrites = in_place and node.facts.may_overwrite
        departs = bool(place.mixes or place.bottoms or place.tops)  # then the graph has another gradient than Caffe
        keeps = self._keeps_graph(index) and not overwrites and not departs
        if keeps:
            values = [value.requires_grad_(want) for value, want in zip(values, self.needs[index].bottoms, strict=True)]
        with torch.set_grad_enabled(keeps):
            if place.mixes:
                result = layer.forward_in_place(*values)
            else:
                result = layer(*values, **({"overwrite": True} if overwrites else {}))
        tops = list(_tuple(result))
        self._put(index, values, tops)
        if keeps or (in_place and not overwrites):
            self._remember(index, _Record(values, tops, keeps))

    def _keeps_graph(self, index: int) -> bool:
        """Whether the forward pass keeps a graph: in TRAIN, and where running again would give something else."""
        layer = self.layers[index]
        again_differs = layer.draws_numbers() or isinstance(layer, RecurrentLayer)
        return self.needs[index].layer and (self._training or again_differs)

    def _put(self, index: int, values: Sequence[Tensor], tops: Sequence[Tensor]) -> None:
        """Write the tops; results that lie in memory of others are copied, those that lie in place already are not."""
        taken = {value.untyped_storage().data_ptr() for value in values if value.numel()}
        taken |= {blob.untyped_storage().data_ptr() for blob in self._own(index) if blob.numel()}
        for blob, top in zip(self.tops[index], tops, strict=True):
            memory = blob.values
            if any(
                blob is bottom and top.data_ptr() == value.data_ptr() for bottom, value in self._pairs(index, values)
            ):
                memory.touched()
                continue
            blob.put(top, _is_whole(top, taken))

    def _pairs(self, index: int, values: Sequence[Tensor]) -> Iterator[tuple[Blob, Tensor]]:
        return zip(self.bottoms[index], values, strict=True)

    def _own(self, index: int) -> list[Tensor]:
        layer = self.layers[index]
        return [getattr(layer, name) for name in layer.blob_names]

    def _remember(self, index: int, record: _Record) -> None:
        if record.has_graph:
            reads = self.layers[index].backward_reads(is_in_place(self.nodes[index]))
            read = [blobs[k].values for blobs, numbers in self._reads(index, reads) for k in numbers if k < len(blobs)]
            read += [blob.values for blob in self.parameters[index]]
            things: list[Any] = [*read, *self._own(index), *record.bottoms, *record.tops]
            record.marks = [(thing, _mark(thing)) for thing in things]
        self._records[index] = record

    def _reads(self, index: int, reads: Any) -> Iterator[tuple[Sequence[Blob], Sequence[int]]]:
        yield self.bottoms[index], (*reads.bottoms, *reads.signs)
        yield self.tops[index], reads.tops

    # Backward.

    def backward(self, index: int, device: torch.device) -> None:
        """Run one layer backward, if it takes part in the backward pass."""
        needs, node, layer = self.needs[index], self.nodes[index], self.layers[index]
        if not needs.layer:
            return
        with self._named(layer):
            if isinstance(layer, Python):
                layer.run_live_backward(needs.bottoms)
            elif node.facts.gradient_memory == "handed back" and node.facts.shares_memory(node.param):
                self.bottoms[index][0].slopes = self.tops[index][0].slopes
            elif node.facts.gradient_memory == "bottom" and node.facts.shares_memory(node.param):
                pass  # one memory
            elif not node.is_data or self.parameters[index]:
                self._differentiate(index, device)

    def _differentiate(self, index: int, device: torch.device) -> None:
        node, needs, place = self.nodes[index], self.needs[index], self.places.get(index, _PLAIN)
        for blob in self.parameters[index]:
            blob.values.on(device)
        slopes = [
            torch.zeros_like(blob.tensor(device)) if j in place.silent else blob.slope(device)
            for j, blob in enumerate(self.tops[index])
        ]
        own = self._own(index)
        wanted = [*needs.bottoms, *(blob.requires_grad for blob in own)]
        if not any(wanted):
            return
        gradients = self._gradients(index, slopes, wanted, device)
        taken = {slope.untyped_storage().data_ptr() for slope in slopes if slope.numel()}
        taken |= {
            blob.values.on(device).untyped_storage().data_ptr() for blob in (*self.bottoms[index], *self.tops[index])
        }
        count = len(needs.bottoms)
        for i, blob in enumerate(self.bottoms[index]):
            if not needs.bottoms[i] or i in node.facts.size_bottoms:
                continue
            gradient = gradients[i]
            if gradient is None:
                blob.put_slope(torch.zeros(blob.shape, device=device), True)
                continue
            owned = _is_whole(gradient, taken)
            taken.add(gradient.untyped_storage().data_ptr())
            blob.put_slope(gradient, owned)
        for k, blob in enumerate(self.parameters[index]):
            gradient = gradients[count + k]
            if gradient is not None:
                self._add(index, k, blob, gradient, place, device)

    def _add(self, index: int, k: int, blob: Blob, gradient: Tensor, place: Place, device: torch.device) -> None:
        """Add to a parameter's gradient, or overwrite it where Caffe's layer does."""
        same = not self.bottoms[index] or self.bottoms[index][0].count == blob.count
        memory = blob.slopes.on(device)
        with torch.no_grad():
            if k in place.overwrites and same:
                memory.copy_(gradient.reshape(-1))
            else:
                memory.add_(gradient.reshape(-1))
        blob.slopes.touched()

    def _gradients(
        self, index: int, slopes: list[Tensor], wanted: Sequence[bool], device: torch.device
    ) -> list[Tensor | None]:
        """The gradients of bottoms and parameters, None where they are not wanted."""
        layer, record = self.layers[index], self._records.get(index)
        once = layer.draws_numbers() or isinstance(layer, RecurrentLayer) or _counts(layer)
        if record is not None and record.has_graph and (once or record.holds()):
            return _from_graph(record, self._own(index), slopes, wanted)
        in_place = is_in_place(self.nodes[index])
        reads = layer.backward_reads(in_place)
        now = [blob.tensor(device) for blob in self.bottoms[index]]
        before = list(now)
        if record is not None and in_place:
            before[0] = record.bottoms[0].detach()
        found_bottoms = [now[i] if i in (*reads.bottoms, *reads.signs) else before[i] for i in range(len(now))]
        tops = [blob.tensor(device) for blob in self.tops[index]]
        found = Found(tuple(before), tuple(found_bottoms), tuple(tops), tuple(slopes), in_place)
        own = layer.caffe_gradients(found)
        if own is None:
            return rerun(layer, found, wanted)
        gradients: list[Tensor | None] = [*own, *[None] * (len(wanted) - len(own))]
        return [gradient if want else None for gradient, want in zip(gradients, wanted, strict=True)]

    @contextmanager
    def _named(self, layer: Layer) -> Iterator[None]:
        """Errors of torch name the layer that they come from."""
        try:
            yield
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            known = layer_error(error)
            if known is not None:
                raise known from error
            if isinstance(error, torch.OutOfMemoryError) or not isinstance(error, RuntimeError):
                raise
            raise LayerError(f"layer {layer.name!r} ({layer.type}): {first_line(error)}") from error


def prepare_device(engine: EngineNet, device: torch.device) -> None:
    """Move a net's parameters to where it is to compute now."""
    if engine.device != device:
        engine.to(device)
    if device.type == "cuda":
        precision.apply()


def _tuple(result: Any) -> tuple[Tensor, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def _is_whole(tensor: Tensor, taken: set[int]) -> bool:
    """Whether a tensor is all of its memory, in order, and that belongs to nobody else."""
    storage = tensor.untyped_storage()
    return (
        tensor.is_contiguous()
        and tensor.dtype == torch.float32
        and storage.nbytes() == 4 * tensor.numel()
        and storage.data_ptr() not in taken
    )


def _counts(layer: Layer) -> bool:
    """Whether a second forward pass would count the batch twice (BatchNorm's sums)."""
    return layer.training and any(True for _ in layer.buffers())


def _from_graph(
    record: _Record, own: Sequence[Tensor], slopes: Sequence[Tensor], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients by the graph of the layer's forward pass, which stays for another backward pass."""
    chosen = [source for source, want in zip([*record.bottoms, *own], wanted, strict=True) if want]
    pairs = [(top, slope) for top, slope in zip(record.tops, slopes, strict=True) if top.requires_grad]
    if not pairs:
        return [None] * len(wanted)
    tops, gradients_of_tops = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(tops, chosen, gradients_of_tops, allow_unused=True, retain_graph=True))
    return [next(found) if want else None for want in wanted]
