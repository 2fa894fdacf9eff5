"""Turning the nodes of a graph into layers that are set up: the shapes of all blobs, as far as loading needs them.

Internal to `fcnproto.net`. What data layers read is not opened, unless the shape of a parameter depends on what the
prototxt leaves open. What becomes of the parameters is in `net/params.py`.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from fcnproto.errors import FcnprotoWarning, GraphError, LayerError
from fcnproto.graph import Blob, Graph, Node
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.fillers import unread_fields
from fcnproto.layers.registry import lookup
from fcnproto.layers.source import SourceLayer
from fcnproto.net.calling import first_line, is_own
from fcnproto.schema import caffe_pb2
from fcnproto.schema.blobs import MOST_AXES
from fcnproto.schema.fields import FIRST_ADDED

PartialShape = tuple[int | None, ...]
"""A shape whose None entries are known only once data is read."""

# Extents assumed for what only the data know, by axis: batch, channels, height, width. Two guesses show whether a
# parameter's shape depends on them; where nobody can say the number of channels, it is taken to be 3, as of colour.
_GUESSES = ((1, 3, 256, 320), (1, 4, 288, 384))
_COLOUR_GUESS = (1, 3, 288, 384)

# Some more than any machine has; torch's own sums of sizes don't overflow below it.
_MOST_ADDRESSED = 1 << 56


def make_layers(
    graph: Graph,
    base_dir: Path | None,
    allow_python: bool,
    file: str | None = None,
    allow_writes: bool = False,
    dialect: str | None = None,
) -> list[Layer]:
    """One layer object for each node, not yet set up."""
    folder = None if base_dir is None else str(base_dir)
    layers = [_make_layer(graph, node, folder, allow_python) for node in graph.nodes]
    for layer in layers:
        layer.prototxt = file
        layer.allow_writes = allow_writes
        layer.dialect = dialect
        warn_unread_settings(layer)
    _warn_engines(layers)
    _warn_deprecated(layers)
    if not allow_writes:
        _warn_writers(layers)
    return layers


def _warn_writers(layers: Sequence[Layer]) -> None:
    """Warn, once for all layers, of files that won't be written."""
    writers = [layer for layer in layers if layer.files_written()]
    if writers:
        files = _some([file for layer in writers for file in layer.files_written()])
        warnings.warn(
            f"{files} would be written by {_some([layer.name for layer in writers])}: left out, as outside training "
            "and testing a net writes nothing unless allow_writes=True (--allow-writes) is given",
            FcnprotoWarning,
            stacklevel=2,
        )


def _make_layer(graph: Graph, node: Node, base_dir: str | None, allow_python: bool) -> Layer:
    layer = lookup(node.type, node.name)(node.param, len(node.tops))
    layer.base_dir = base_dir
    layer.allow_python = allow_python
    layer.train(graph.state.phase == caffe_pb2.TRAIN)
    return layer


def _warn_engines(layers: Sequence[Layer]) -> None:
    """Warn, once for all layers, of fields that choose one of Caffe's implementations."""
    chosen: dict[str, list[str]] = {}
    for layer in layers:
        if layer.config_field is not None:
            for field, value in layer.config.ListFields():
                if field.name in ("engine", "force_nd_im2col") and value:
                    chosen.setdefault(field.name, []).append(layer.name)
    for field_name, names in chosen.items():
        message = f"{field_name} has no effect ({_some(names)}): torch chooses how to compute, the results are the same"
        warnings.warn(message, FcnprotoWarning, stacklevel=2)


def _warn_deprecated(layers: Sequence[Layer]) -> None:
    """Warn, once for all layers, of fields that others have replaced; they work as they did."""
    used: dict[tuple[str, str, str], list[str]] = {}
    for layer in layers:
        for old, new in layer.replaced_fields.items():
            if any(field.name == old for field, _ in layer.config.ListFields()):
                used.setdefault((str(layer.config_field), old, new), []).append(layer.name)
    for (message_name, old, new), names in used.items():
        message = f"{message_name}.{old} is deprecated ({_some(names)}); use {new}"
        warnings.warn(message, FcnprotoWarning, stacklevel=2)


def _warn_fillers(layers: Sequence[Layer]) -> None:
    """Warn, once for all layers, of settings that a filler's type doesn't read."""
    unread: dict[tuple[str, str], list[str]] = {}
    for layer in layers:
        for filler in layer.blob_fillers:
            for name in unread_fields(filler):
                unread.setdefault((filler.type, name), []).append(layer.name)
    for (type_name, name), names in unread.items():
        message = f"{name} has no effect on fillers of type {type_name!r} ({_some(list(dict.fromkeys(names)))})"
        warnings.warn(message, FcnprotoWarning, stacklevel=2)


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")


def warn_unread_settings(layer: Layer) -> None:
    """Warn of type-specific settings in the prototxt that belong to another layer type, or only to one of a fork."""
    for field, value in layer.param.ListFields():
        if not field.name.endswith("_param"):
            continue
        unread: list[str] = []
        if field.name != layer.config_field and field.name not in layer.also_reads:
            unread = [field.name]
        elif field.number < FIRST_ADDED:
            added = [inner.name for inner, _ in value.ListFields() if inner.number >= FIRST_ADDED]
            unread = [f"{field.name}.{name}" for name in added if f"{field.name}.{name}" not in layer.fork_fields]
        for name in unread:
            warnings.warn(
                f"layer {layer.name!r} ({layer.type}): {name} has no effect on this layer type",
                FcnprotoWarning,
                stacklevel=2,
            )


def set_up(graph: Graph, layers: list[Layer], given: Mapping[str, Sequence[int]]) -> dict[Blob, PartialShape | None]:
    """Call every layer's `setup` with its bottoms' shapes; returns the shapes of the data layers' tops.

    `given` overrides the shapes of data tops by name. Extents that only the data know are looked up in them only where
    the shape of a parameter depends on them. Raises `GraphError` where it does and nobody knows.
    """
    for node, layer in zip(graph.nodes, layers, strict=True):
        if node.is_data:
            layer.setup([])
    sources = _Shapes(graph, layers, given).run()
    _warn_fillers(layers)
    return sources


def source_shapes(
    graph: Graph, layers: Sequence[Layer], given: Mapping[str, Sequence[int]], *, look: bool
) -> dict[Blob, PartialShape | None]:
    """The shapes of the data layers' tops as far as they are known, with `look` also by opening what they read."""
    sources: dict[Blob, PartialShape | None] = {}
    for node, layer in zip(graph.nodes, layers, strict=True):
        if not node.is_data:
            continue
        shapes: Sequence[PartialShape | None] | None
        if isinstance(layer, SourceLayer) and not look:
            shapes = layer.declared_shapes()
        else:
            shapes = layer.top_shapes([])
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


def _unknown(sources: Mapping[Blob, PartialShape | None], wholly: bool = False) -> str:
    """The names of the tops of which some extents, or all, are unknown; empty if there are none."""
    return ", ".join(
        repr(blob.name) for blob, shape in sources.items() if shape is None or (not wholly and None in shape)
    )


class _Shapes:
    """Goes through a net's layers with the shapes of their bottoms, and sets them up.

    Unknown extents are guessed twice. A layer that can be set up under one guess and then doesn't work under the other
    has a parameter, or a limit, that depends on them.
    """

    def __init__(self, graph: Graph, layers: list[Layer], given: Mapping[str, Sequence[int]]) -> None:
        self.graph, self.layers, self.given = graph, layers, given
        self.looked = False
        self.assumed = ""
        """The tops whose channels are assumed to be those of colour images."""
        self._start(source_shapes(graph, layers, given, look=False))

    def _start(self, sources: dict[Blob, PartialShape | None]) -> None:
        self.sources = sources
        guesses = _GUESSES if _unknown(sources) else _GUESSES[:1]
        self.guessed = [_assume(sources, guess) for guess in guesses]

    def run(self) -> dict[Blob, PartialShape | None]:
        """Set up all layers; returns the shapes of the data layers' tops."""
        depends: GraphError | None = None
        for index, node in enumerate(self.graph.nodes):
            if node.is_data:
                continue
            try:
                self._set_up(index)
                error = self._second_guess(index)
            except LayerError as failure:
                if not self._look(index):
                    raise self._without_source(failure) from failure
                self._set_up(index)
                error = self._second_guess(index)
            if error is not None and self._look(index):
                self._set_up(index)
                error = self._second_guess(index)
            if error is not None and self._assume_colour(index):
                error = self._second_guess(index)
            if error is not None:
                depends = depends or error
                del self.guessed[1:]
        if depends is not None and any(layer.blob_names for layer in self.layers):
            raise GraphError(
                f"net {self.graph.name!r}: the shapes of parameters depend on the size of {_unknown(self.sources)}, "
                "which only its data knows; say it with load(..., shapes={name: shape}) or make the data source "
                f"available ({depends})"
            ) from depends
        if self.assumed:
            warnings.warn(
                f"net {self.graph.name!r}: nobody says how many channels {self.assumed} has; taken to be 3, as of "
                "colour images (say it with load(..., shapes={name: shape}))",
                FcnprotoWarning,
                stacklevel=2,
            )
        return self.sources

    def _set_up(self, index: int) -> None:
        shapes, node, layer = self.guessed[0], self.graph.nodes[index], self.layers[index]
        layer.setup([shapes[blob] for blob in node.bottoms])
        self._pass(index, shapes)

    def _second_guess(self, index: int) -> GraphError | None:
        """Whether the layer, set up by the first guess, works under the second one, if there is one."""
        try:
            for shapes in self.guessed[1:]:
                self._pass(index, shapes)
        except GraphError as error:
            return error
        return None

    def _pass(self, index: int, shapes: dict[Blob, Shape]) -> None:
        """Add the shapes of a layer's tops."""
        node, layer = self.graph.nodes[index], self.layers[index]
        tops = layer_shapes(layer, [shapes[blob] for blob in node.bottoms])
        if len(tops) != len(node.tops):
            layer.fail(f"makes {len(tops)} tops, but the net names {len(node.tops)}")
        shapes.update(zip(node.tops, tops, strict=True))

    def _look(self, index: int) -> bool:
        """Ask the data for what is unknown, once, and go on from before layer `index`. False if nothing is gained."""
        if self.looked or not _unknown(self.sources):
            return False
        self.looked = True
        found = source_shapes(self.graph, self.layers, self.given, look=True)
        if found == self.sources:
            return False
        self._start(found)
        old = self.layers[index]
        made = _make_layer(self.graph, self.graph.nodes[index], old.base_dir, old.allow_python)
        made.prototxt, made.allow_writes = old.prototxt, old.allow_writes
        self.layers[index] = made
        for shapes in self.guessed:
            self._pass_earlier(index, shapes)
        return True

    def _assume_colour(self, index: int) -> bool:
        """Guess the number of channels alike in both guesses up to layer `index`. False if it is known or was done."""
        open_channels = [
            repr(blob.name)
            for blob, shape in self.sources.items()
            if shape is None or (len(shape) > 1 and shape[1] is None)
        ]
        if self.assumed or not open_channels or len(self.guessed) < 2:
            return False
        self.assumed = ", ".join(open_channels)
        self.guessed[1] = _assume(self.sources, _COLOUR_GUESS)
        self._pass_earlier(index, self.guessed[1])
        return True

    def _pass_earlier(self, index: int, shapes: dict[Blob, Shape]) -> None:
        for earlier in range(index):
            if not self.graph.nodes[earlier].is_data:
                self._pass(earlier, shapes)

    def _without_source(self, error: LayerError) -> GraphError:
        """The error of a layer that can't be set up, with what to do if the reason may be a missing source."""
        unknown = _unknown(self.sources, wholly=True)
        if not unknown:
            return error
        return GraphError(
            f"{error}; the shape of {unknown} is unknown because its data source is missing: make it available or say "
            "the shape with load(..., shapes={name: shape})"
        )


def blob_shapes(
    graph: Graph, layers: Sequence[Layer], sources: Mapping[Blob, Shape], *, partial: bool = False
) -> dict[Blob, Shape]:
    """The shapes of all blob versions of a net that is set up, from those of its data tops.

    With `partial` data tops may be missing, and blobs that need them are left out. `LayerError` where a layer can't
    work on the shapes that it gets.
    """
    shapes: dict[Blob, Shape] = dict(sources)
    for node, layer in zip(graph.nodes, layers, strict=True):
        if node.is_data or (partial and any(blob not in shapes for blob in node.bottoms)):
            continue
        tops = layer_shapes(layer, [shapes[blob] for blob in node.bottoms])
        shapes.update(zip(node.tops, tops, strict=True))
    return shapes


def layer_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    """The shapes of a layer's tops: as it says them, else by running a twin of it on the meta device."""
    said = layer.top_shapes(bottoms)
    if said is not None:
        return [tuple(shape) for shape in said]
    blobs = [*layer.parameters(), *layer.buffers()]
    memo: dict[int, object] = {id(blob): torch.empty_like(blob, device="meta") for blob in blobs}  # not copied
    try:
        twin = copy.deepcopy(layer, memo).to("meta")
        with torch.no_grad():
            result = twin(*(torch.empty(shape, dtype=torch.float32, device="meta") for shape in bottoms))
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        if not (isinstance(error, RuntimeError) or is_own(layer)):
            raise
        shapes = ", ".join(map(str, bottoms)) or "(none)"
        layer.fail(f"can't work on bottoms of shape {shapes}: {first_line(error)}")
    tops = result if isinstance(result, (tuple, list)) else (result,)
    return [tuple(top.shape) for top in tops]
