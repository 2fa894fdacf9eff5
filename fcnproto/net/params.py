"""The parameter blobs of a net's layers: sharing by name, memory, first values; and the names of modules and indices.

Internal to `fcnproto.net`. Parameters are made on the meta device (see `net/shapes.py`), shared, and only then given
memory, so that loading weights touches each value once.
"""

from __future__ import annotations

import keyword
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fcnproto.errors import GraphError
from fcnproto.graph import Blob, Graph
from fcnproto.layers.base import Layer
from fcnproto.layers.fillers import fill
from fcnproto.net.memory import uninitialised
from fcnproto.schema import caffe_pb2


@dataclass(frozen=True)
class ParamRef:
    """One parameter blob of a net: the owning layer's index, the blob's index, and its training multipliers."""

    layer: int
    index: int
    lr_mult: float
    decay_mult: float


@dataclass(frozen=True)
class LearnableParam:
    """One parameter blob that a solver sees, with its training multipliers (Caffe: ParamSpec)."""

    layer: str
    index: int
    tensor: Tensor
    lr_mult: float
    decay_mult: float


def share_params(
    graph: Graph, layers: Sequence[Layer]
) -> tuple[list[ParamRef], dict[tuple[int, int], tuple[int, int]]]:
    """Find owners and sharers of parameter blobs (Caffe: ParamSpec.name).

    Returns the owned blobs in Caffe's order of learnable parameters, with merged multipliers, and a map
    (layer, blob) of each sharer -> (layer, blob) of its owner. Raises `GraphError` where shapes (STRICT) or counts
    (PERMISSIVE) differ, where two layers give different multipliers, or where a layer has too many param entries.
    """
    owners: dict[str, tuple[int, int]] = {}
    specs: dict[tuple[int, int], caffe_pb2.ParamSpec] = {}
    shared: dict[tuple[int, int], tuple[int, int]] = {}
    for i, layer in enumerate(layers):
        if graph.nodes[i].held and not layer.blob_names:
            continue
        if len(layer.param.param) > len(layer.blob_names) and not layer.fork:
            layer.fail(f"{len(layer.param.param)} param entries for {len(layer.blob_names)} parameter blobs")
        if layer.param.blobs and len(layer.param.blobs) != len(layer.blob_names):
            layer.fail(f"{len(layer.param.blobs)} blobs in the prototxt, expected {len(layer.blob_names)}")
        for k in range(len(layer.blob_names)):
            spec = caffe_pb2.ParamSpec()
            if k < len(layer.param.param):
                spec.CopyFrom(layer.param.param[k])
                if spec.HasField("share_mode") and not spec.name:
                    layer.warn("param.share_mode has no effect without a name")
            if spec.name and spec.name in owners:
                owner = owners[spec.name]
                _check_sharing(layers[owner[0]], owner[1], layer, k, spec)
                _merge_multipliers(specs[owner], spec, layer)
                shared[i, k] = owner
                continue
            if spec.name:
                owners[spec.name] = (i, k)
            specs[i, k] = spec
    return [ParamRef(i, k, spec.lr_mult, spec.decay_mult) for (i, k), spec in specs.items()], shared


def _check_sharing(owner: Layer, j: int, layer: Layer, k: int, spec: caffe_pb2.ParamSpec) -> None:
    mine, theirs = layer.blob_shapes[k], owner.blob_shapes[j]
    if spec.share_mode == caffe_pb2.ParamSpec.PERMISSIVE:
        if np.prod(mine, dtype=np.int64) != np.prod(theirs, dtype=np.int64):
            layer.fail(
                f"shares parameter {spec.name!r} of shape {mine} with layer {owner.name!r}, whose shape is {theirs}: "
                "PERMISSIVE sharing needs equal counts"
            )
    elif mine != theirs:
        layer.fail(
            f"shares parameter {spec.name!r} of shape {mine} with layer {owner.name!r}, whose shape is {theirs}: "
            "shapes must be equal (share_mode PERMISSIVE asks for equal counts alone)"
        )


def _merge_multipliers(owner: caffe_pb2.ParamSpec, spec: caffe_pb2.ParamSpec, layer: Layer) -> None:
    for name in ("lr_mult", "decay_mult"):
        if not spec.HasField(name):
            continue
        if owner.HasField(name) and getattr(owner, name) != getattr(spec, name):
            layer.fail(
                f"shared parameter {spec.name!r} has {name} {getattr(owner, name):g} at its owner and "
                f"{getattr(spec, name):g} here; give the same or one of them only"
            )
        setattr(owner, name, getattr(spec, name))


def set_blob(layer: Layer, index: int, tensor: Tensor) -> None:
    """Put `tensor` (a Parameter or a buffer) in the place of the layer's blob `index`, of either kind before."""
    name = layer.blob_names[index]
    now: dict[str, Any] = layer._parameters if isinstance(tensor, nn.Parameter) else layer._buffers
    before: dict[str, Any] = layer._buffers if isinstance(tensor, nn.Parameter) else layer._parameters
    before.pop(name, None)
    now[name] = tensor


def give_memory(layers: Sequence[Layer], refs: Sequence[ParamRef], force_backward: bool) -> None:
    """Replace the meta blobs of all owners by uninitialised memory on the CPU. `LayerError` where there is none."""
    for ref in refs:
        layer = layers[ref.layer]
        tensor = getattr(layer, layer.blob_names[ref.index])
        try:
            memory = uninitialised(tensor.shape)
        except RuntimeError:
            name = layer.blob_names[ref.index]
            layer.fail(f"no memory for its {name}, {4 * tensor.numel() / 1e9:.1f} GB of shape {tuple(tensor.shape)}")
        if isinstance(tensor, nn.Parameter):
            memory = nn.Parameter(memory, requires_grad=force_backward or ref.lr_mult != 0)
        set_blob(layer, ref.index, memory)


def move_blob(layer: Layer, index: int, device: torch.device, dtype: torch.dtype) -> None:
    """Put a blob on a device and into a dtype, whichever kind it is."""
    tensor = getattr(layer, layer.blob_names[index])
    moved = tensor.detach().to(device, dtype)
    kept = nn.Parameter(moved, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved
    set_blob(layer, index, kept)


def fill_blob(layer: Layer, index: int) -> None:
    """Give a blob its first values: those in the prototxt's `blobs`, else its filler's."""
    tensor: Tensor = getattr(layer, layer.blob_names[index])
    if layer.param.blobs:
        values = layer.param.blobs[index].data or layer.param.blobs[index].double_data
        if len(values) != tensor.numel():
            layer.fail(f"blob {index} has {len(values)} values in the prototxt, expected {tensor.numel()}")
        with torch.no_grad():
            tensor.copy_(torch.tensor(list(values), device="cpu").reshape(tensor.shape))
        return
    try:
        fill(tensor, layer.blob_fillers[index])
    except GraphError as error:
        layer.fail(f"blob {index} ({layer.blob_names[index]}): {error}")


_NOT_IN_NAMES = frozenset("./\\\"'")


def module_names(layers: Sequence[Layer], taken: Callable[[str], bool]) -> list[str]:
    """A module name for each layer: the layer's own, with dots, slashes, quotes and what is not printable
    replaced by underscores, and underscores added where the name is taken or a word of the Python language.

    Letters that Python takes for others in names of variables (ligatures and their like) become those."""
    names: list[str] = []
    seen: set[str] = set()
    for i, layer in enumerate(layers):
        name = module_stem(layer.name) or f"layer{i}"
        stem, tries = name, 0
        while taken(name) or name in seen or keyword.iskeyword(name):
            tries += 1
            name += "_"
            if tries > _MOST_UNDERSCORES:
                name = f"{stem}_{i}" + "_" * (tries - _MOST_UNDERSCORES - 1)
        seen.add(name)
        names.append(name)
    return names


def module_stem(name: str) -> str:
    """A layer's name as its module's begins, with what can't stand there replaced."""
    signs = unicodedata.normalize("NFKC", name)
    return "".join("_" if sign in _NOT_IN_NAMES or not sign.isprintable() else sign for sign in signs)


_MOST_UNDERSCORES = 16
"""Of more layers with one name each gets its number: thousands of underscores would take time and memory."""


def index_inputs(graph: Graph, layers: Sequence[Layer]) -> set[str]:
    """The data tops that layers read as class numbers or indices, perhaps through layers that only cut and reshape."""
    found = set()
    for node, layer in zip(graph.nodes, layers, strict=True):
        for index in layer.index_bottoms:
            source = moved_from(node.bottoms[index]) if index < len(node.bottoms) else None
            if source is not None and source.producer.is_data:
                found.add(source.name)
    return found


def moved_from(blob: Blob) -> Blob:
    """The blob whose values this one has, behind layers that only cut, copy and reshape."""
    while blob.producer.facts.moves_values:
        blob = blob.producer.bottoms[0]
    return blob
