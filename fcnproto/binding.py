"""Turning the nodes of a graph into layers: shapes, parameter blobs, sharing by name, first values.

Internal to `fcnproto.net`. Parameters are made on the meta device from the bottoms' shapes, shared, and only then
given memory, so that loading weights touches each value once.
"""

from __future__ import annotations

import copy
import keyword
import math
import re
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fcnproto.calling import first_line, is_own
from fcnproto.errors import FcnprotoWarning, GraphError, LayerError
from fcnproto.graph import Blob, Graph
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.fillers import fill
from fcnproto.layers.registry import lookup
from fcnproto.schema import caffe_pb2
from fcnproto.schema.blobs import MOST_AXES

PartialShape = tuple[int | None, ...]
"""A shape whose None entries are known only once data is read."""

# Extents assumed for what only the data knows, by axis: batch, channels, height, width. Two guesses show whether
# a parameter's shape depends on them.
_GUESSES = ((1, 3, 256, 320), (1, 3, 288, 384))

# Some more than any machine has; torch's own sums of sizes don't overflow below it.
_MOST_ADDRESSED = 1 << 56

# Layers whose tops hold the values of their first bottom.
_MOVING = ("Split", "Slice", "Flatten", "Reshape", "Crop", "Tile", "Concat")


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


def make_layers(graph: Graph, base_dir: Path | None, allow_python: bool) -> list[Layer]:
    """One layer object for each node, not yet set up."""
    layers = []
    for node in graph.nodes:
        layer = lookup(node.type, node.name)(node.param, len(node.tops))
        layer.base_dir = None if base_dir is None else str(base_dir)
        layer.allow_python = allow_python
        warn_unread_settings(layer)
        layer.train(graph.state.phase == caffe_pb2.TRAIN)
        layers.append(layer)
    _warn_engines(layers)
    return layers


def _warn_engines(layers: Sequence[Layer]) -> None:
    """Warn, once for all layers, of fields that choose one of Caffe's implementations."""
    chosen: dict[str, list[str]] = {}
    for layer in layers:
        if layer.config_field is not None:
            for field, value in layer.config.ListFields():
                if field.name in ("engine", "force_nd_im2col") and value:
                    chosen.setdefault(field.name, []).append(layer.name)
    for field_name, names in chosen.items():
        first = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
        message = f"{field_name} has no effect ({first}): torch chooses how to compute, the results are the same"
        warnings.warn(message, FcnprotoWarning, stacklevel=2)


def warn_unread_settings(layer: Layer) -> None:
    """Warn of type-specific settings in the prototxt that belong to another layer type."""
    for field, _ in layer.param.ListFields():
        if field.name.endswith("_param") and field.name != layer.config_field and field.name not in layer.also_reads:
            warnings.warn(
                f"layer {layer.name!r} ({layer.type}): {field.name} has no effect on this layer type",
                FcnprotoWarning,
                stacklevel=2,
            )


def set_up(
    graph: Graph, layers: Sequence[Layer], given: Mapping[str, Sequence[int]]
) -> dict[Blob, PartialShape | None]:
    """Call every layer's `setup` with its bottoms' shapes; returns the shapes of the data layers' tops.

    `given` overrides the shapes of data tops by name. Raises `GraphError` where a parameter's shape depends on
    an extent that nobody knows.
    """
    sources = _source_shapes(graph, layers, given)
    known = all(shape is not None and None not in shape for shape in sources.values())
    _propagate(graph, layers, _assume(sources, _GUESSES[0]), run_setup=True, sources=sources)
    if not known and any(layer.blob_names for layer in layers):
        try:
            _propagate(graph, layers, _assume(sources, _GUESSES[1]), run_setup=False, sources=sources)
        except GraphError as error:
            unknown = ", ".join(repr(blob.name) for blob, shape in sources.items() if shape is None or None in shape)
            raise GraphError(
                f"net {graph.name!r}: the shapes of parameters depend on the size of {unknown}, which only its data "
                f"knows; say it with load(..., shapes={{name: shape}}) or make the data source available ({error})"
            ) from error
    return sources


def _source_shapes(
    graph: Graph, layers: Sequence[Layer], given: Mapping[str, Sequence[int]]
) -> dict[Blob, PartialShape | None]:
    sources: dict[Blob, PartialShape | None] = {}
    for node, layer in zip(graph.nodes, layers, strict=True):
        if not node.is_data:
            continue
        layer.setup([])
        shapes: Sequence[PartialShape | None] | None = layer.top_shapes([])
        for j, blob in enumerate(node.tops):
            shape = given[blob.name] if blob.name in given else None if shapes is None else shapes[j]
            sources[blob] = None if shape is None else _checked_shape(layer, blob.name, shape)
    unknown = set(given) - {blob.name for blob in sources}
    if unknown:
        known = ", ".join(repr(blob.name) for blob in sources) or "none"
        raise GraphError(f"net {graph.name!r}: a shape for {min(unknown)!r}, which is no data top; they are {known}")
    return sources


def _checked_shape(layer: Layer, name: str, shape: Sequence[int | None]) -> PartialShape:
    """A top's shape as a tuple, if it is one that Caffe's blobs can have."""
    try:
        known = [extent for extent in shape if extent is not None]
    except TypeError:
        layer.fail(f"top {name!r} can't have the shape {shape!r}; give a sequence of extents")
    if not all(isinstance(extent, (int, np.integer)) and extent >= 0 for extent in known):
        layer.fail(f"top {name!r} can't have the shape {tuple(shape)}; extents are whole numbers from 0 on")
    if len(shape) > MOST_AXES or math.prod(known) > _MOST_ADDRESSED:
        layer.fail(f"top {name!r} can't have the shape {tuple(shape)}; no tensor is that large")
    return tuple(None if extent is None else int(extent) for extent in shape)


def _assume(sources: Mapping[Blob, PartialShape | None], guess: Sequence[int]) -> dict[Blob, Shape]:
    return {
        blob: tuple(guess)
        if shape is None
        else tuple(guess[min(i, 3)] if n is None else n for i, n in enumerate(shape))
        for blob, shape in sources.items()
    }


def _propagate(
    graph: Graph,
    layers: Sequence[Layer],
    start: Mapping[Blob, Shape],
    run_setup: bool,
    sources: Mapping[Blob, PartialShape | None],
) -> dict[Blob, Shape]:
    shapes: dict[Blob, Shape] = dict(start)
    for node, layer in zip(graph.nodes, layers, strict=True):
        if node.is_data:
            continue
        bottoms = [shapes[blob] for blob in node.bottoms]
        try:
            if run_setup:
                layer.setup(bottoms)
            tops = layer.top_shapes(bottoms)
            if tops is None:
                tops = _meta_shapes(layer, bottoms)
        except LayerError as error:
            wholly_unknown = [blob.name for blob, shape in sources.items() if shape is None]
            if wholly_unknown:
                raise GraphError(
                    f"{error}; the shape of {', '.join(map(repr, wholly_unknown))} is unknown because its data source "
                    "is missing: make it available or say the shape with load(..., shapes={name: shape})"
                ) from error
            raise
        if len(tops) != len(node.tops):
            layer.fail(f"makes {len(tops)} tops, but the net names {len(node.tops)}")
        shapes.update(zip(node.tops, tops, strict=True))
    return shapes


def _meta_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    """The tops' shapes by running the layer on the meta device; the layer itself is left as it is."""
    twin = copy.deepcopy(layer).to("meta")
    try:
        with torch.no_grad():
            result = twin(*(torch.empty(shape, dtype=torch.float32, device="meta") for shape in bottoms))
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        if not (isinstance(error, RuntimeError) or is_own(layer)):
            raise
        shapes = ", ".join(map(str, bottoms)) or "(none)"
        layer.fail(f"can't work on bottoms of shape {shapes}: {first_line(error)}")
    tops = result if isinstance(result, (tuple, list)) else (result,)
    return [tuple(top.shape) for top in tops]


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
        if len(layer.param.param) > len(layer.blob_names):
            layer.fail(f"{len(layer.param.param)} param entries for {len(layer.blob_names)} parameter blobs")
        if layer.param.blobs and len(layer.param.blobs) != len(layer.blob_names):
            layer.fail(f"{len(layer.param.blobs)} blobs in the prototxt, expected {len(layer.blob_names)}")
        for k in range(len(layer.blob_names)):
            spec = caffe_pb2.ParamSpec()
            if k < len(layer.param.param):
                spec.CopyFrom(layer.param.param[k])
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
    """Replace the meta blobs of all owners by uninitialised memory on the CPU."""
    for ref in refs:
        layer = layers[ref.layer]
        tensor = getattr(layer, layer.blob_names[ref.index])
        memory = torch.empty(tensor.shape, dtype=torch.float32)
        if isinstance(tensor, nn.Parameter):
            memory = nn.Parameter(memory, requires_grad=force_backward or ref.lr_mult != 0)
        set_blob(layer, ref.index, memory)


def fill_blob(layer: Layer, index: int) -> None:
    """Give a blob its first values: those in the prototxt's `blobs`, else its filler's."""
    tensor: Tensor = getattr(layer, layer.blob_names[index])
    if layer.param.blobs:
        values = layer.param.blobs[index].data or layer.param.blobs[index].double_data
        if len(values) != tensor.numel():
            layer.fail(f"blob {index} has {len(values)} values in the prototxt, expected {tensor.numel()}")
        with torch.no_grad():
            tensor.copy_(torch.tensor(list(values)).reshape(tensor.shape))
        return
    try:
        fill(tensor, layer.blob_fillers[index])
    except GraphError as error:
        layer.fail(f"blob {index} ({layer.blob_names[index]}): {error}")


def module_names(layers: Sequence[Layer], taken: Callable[[str], bool]) -> list[str]:
    """A module name for each layer: the layer's own, with dots, slashes, quotes and control characters replaced by
    underscores, and underscores added where the name is taken or a word of the Python language.

    Letters that Python takes for others in names of variables (ligatures and their like) become those."""
    names: list[str] = []
    seen: set[str] = set()
    for i, layer in enumerate(layers):
        name = re.sub(r"[./\\\"'\x00-\x1f\x7f]", "_", unicodedata.normalize("NFKC", layer.name)) or f"layer{i}"
        while taken(name) or name in seen or keyword.iskeyword(name):
            name += "_"
        seen.add(name)
        names.append(name)
    return names


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
    while blob.producer.type in _MOVING:
        blob = blob.producer.bottoms[0]
    return blob
