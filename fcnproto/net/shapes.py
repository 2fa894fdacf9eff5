"""Turning the nodes of a graph into layers that are set up: the shapes of all blobs, as far as loading needs them.

Internal to `fcnproto.net`. What data layers read is not opened, unless the shape of a parameter depends on what the
prototxt leaves open. What becomes of the parameters is in `net/params.py`.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fcnproto.errors import FcnprotoWarning, GraphError, LayerError
from fcnproto.graph import Blob, Graph, Node
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.source import SourceLayer
from fcnproto.net.calling import first_line, is_own
from fcnproto.net.making import make_layer, warn_fillers
from fcnproto.net.stored_shapes import StoredShapes
from fcnproto.schema.blobs import MOST_AXES

PartialShape = tuple[int | None, ...]
"""A shape whose None entries are known only once data is read."""

# Extents assumed for what only the data know, by axis: batch, channels, height, width. Two guesses show whether a
# parameter's shape depends on them, a third one whether it depends on the size of a batch. Where nobody can say the
# number of channels, it is taken to be 3, as of colour, and that is said.
_GUESSES = ((1, 3, 256, 320), (1, 4, 288, 384))
_OTHER_BATCH = (2, 3, 256, 320)
_COLOUR = 3

# Some more than any machine has; torch's own sums of sizes don't overflow below it.
_MOST_ADDRESSED = 1 << 56


def set_up(
    graph: Graph, layers: list[Layer], given: Mapping[str, Sequence[int]], stored: StoredShapes | None = None
) -> tuple[dict[Blob, PartialShape | None], str]:
    """Call every layer's `setup` with its bottoms' shapes; returns the shapes of the data layers' tops.

    `given` overrides the shapes of data tops by name. Extents that only the data know are looked up in them only where
    the shape of a parameter depends on them; where they can't be, channels are taken from the `stored` weights. Raises
    `GraphError` where a parameter depends on what nobody knows, except that channels are taken to be 3 then; what that
    concerns is returned, too, for the errors that may follow.
    """
    for node, layer in zip(graph.nodes, layers, strict=True):
        if node.is_data:
            layer.setup([])
    shapes = _Shapes(graph, layers, given, stored or StoredShapes(()))
    sources = shapes.run()
    warn_fillers(layers)
    return sources, shapes.assumed


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


def _colour(names: str) -> str:
    """What is said of tops whose channels nobody knows."""
    return (
        f"nobody says how many channels {names} has; taken to be {_COLOUR}, as of colour images (say it with "
        "load(..., shapes={name: shape}))"
    )


def assumed_shapes(known: Mapping[str, PartialShape | None], graph: Graph) -> dict[Blob, Shape]:
    """Whole shapes of data tops from what is `known` of them by name; one image of 256 x 320 where nothing is."""
    tops = {blob: known.get(blob.name) for node in graph.nodes if node.is_data for blob in node.tops}
    return _assume(tops, _GUESSES[0])


class _OtherBlobs(LayerError):
    """A layer's parameter blobs depend on what is guessed."""


class _Shapes:
    """Goes through a net's layers with the shapes of their bottoms, and sets them up.

    Unknown extents are guessed twice. A layer that can be set up under one guess and then doesn't work under the other
    has a parameter, or a limit, that depends on them.
    """

    def __init__(
        self, graph: Graph, layers: list[Layer], given: Mapping[str, Sequence[int]], stored: StoredShapes
    ) -> None:
        self.graph, self.layers, self.given, self.stored = graph, layers, given, stored
        self.looked = False
        self.assumed = ""
        """What is assumed of tops whose channels nobody knows, for people."""
        self._start(source_shapes(graph, layers, given, look=False))

    def _start(self, sources: dict[Blob, PartialShape | None]) -> None:
        self.sources = sources
        guesses = _GUESSES if _unknown(sources) else _GUESSES[:1]
        self.guessed = [_assume(sources, guess) for guess in guesses]
        self.other_batch = _assume(sources, _OTHER_BATCH) if _unknown(sources) else None

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
                if not (self._look(index) or self._take_stored(index)):
                    named = self._without_source(failure)
                    if named is failure:
                        raise
                    raise named from failure
                self._set_up(index)
                error = self._second_guess(index)
            for known in (self._look, self._take_stored):
                if error is not None and known(index):
                    self._set_up(index)
                    error = self._second_guess(index)
            if error is not None and self._assume_colour(index):
                error = self._second_guess(index)
            if error is not None:
                depends = depends or error
                del self.guessed[1:]
                self.other_batch = None
        if depends is not None and any(layer.blob_names for layer in self.layers):
            raise GraphError(
                f"net {self.graph.name!r}: the shapes of parameters depend on the size of {_unknown(self.sources)}, "
                "which only its data knows; say it with load(..., shapes={name: shape}) or make the data source "
                f"available ({depends})"
            ) from depends
        if self.assumed:
            warnings.warn(
                f"net {self.graph.name!r}: {self.assumed}",
                FcnprotoWarning,
                stacklevel=2,
            )
        return self.sources

    def _set_up(self, index: int) -> None:
        shapes, node, layer = self.guessed[0], self.graph.nodes[index], self.layers[index]
        layer.setup([shapes[blob] for blob in node.bottoms])
        self._pass(index, shapes)

    def _second_guess(self, index: int) -> GraphError | None:
        """What goes wrong, or becomes another, where the layer, set up by the first guess, meets the other ones."""
        try:
            for shapes in self.guessed[1:]:
                self._pass(index, shapes)
                self._compare_blobs(index, shapes)
        except GraphError as error:
            return error
        if self.other_batch is None:
            return None
        try:
            self._compare_blobs(index, self.other_batch)
        except _OtherBlobs as error:
            return error
        except GraphError:
            self.other_batch = None  # made for one size of batch, which its data will have
            return None
        try:
            self._pass(index, self.other_batch)
        except GraphError:
            self.other_batch = None
        return None

    def _compare_blobs(self, index: int, shapes: Mapping[Blob, Shape]) -> None:
        """`_OtherBlobs` where the layer would have other blobs for bottoms of these shapes."""
        layer = self.layers[index]
        if not layer.blob_names:
            return
        twin = self._made_anew(index, shapes)
        if twin.blob_shapes != layer.blob_shapes:
            pairs = zip(layer.blob_names, layer.blob_shapes, twin.blob_shapes, strict=True)
            name, mine, other = next(pair for pair in pairs if pair[1] != pair[2])
            raise _OtherBlobs(f"layer {layer.name!r} ({layer.type}): its {name} would be of shape {mine} or {other}")

    def _made_anew(self, index: int, shapes: Mapping[Blob, Shape]) -> Layer:
        """Another layer for the node, set up silently for bottoms of these shapes."""
        node, old = self.graph.nodes[index], self.layers[index]
        twin = self._replacement(old, node)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            twin.setup([shapes[blob] for blob in node.bottoms])
        return twin

    def _replacement(self, old: Layer, node: Node) -> Layer:
        made = make_layer(self.graph, node, old.base_dir, old.allow_python)
        made.prototxt, made.allow_writes, made.dialect = old.prototxt, old.allow_writes, old.dialect
        return made

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
        self.layers[index] = self._replacement(self.layers[index], self.graph.nodes[index])
        for shapes in self.guessed:
            self._pass_earlier(index, shapes)
        if self.other_batch is not None:
            self._pass_earlier(index, self.other_batch)
        return True

    def _take_stored(self, index: int) -> bool:
        """Take the number of channels from the weights for layer `index`. False if they don't say it."""
        if not self._open_channels() or len(self.guessed) < 2:
            return False
        for channels in self.stored.channels(self.layers[index]):
            try:
                guess = self._with_channels(channels, 0)
                self._pass_earlier(index, guess)
                if not self.stored.fit(self._made_anew(index, guess)):
                    continue
            except GraphError:
                continue
            self.layers[index] = self._replacement(self.layers[index], self.graph.nodes[index])
            self._guess_channels(index, channels)
            return True
        return False

    def _assume_colour(self, index: int) -> bool:
        """Guess the number of channels alike in all guesses up to layer `index`. False if it is known or was done."""
        open_channels = self._open_channels()
        if self.assumed or not open_channels or len(self.guessed) < 2:
            return False
        names = ", ".join(open_channels)
        self.assumed = _colour(names)
        self._guess_channels(index, _COLOUR)
        return True

    def _open_channels(self) -> list[str]:
        """The tops whose number of channels is unknown."""
        return [
            repr(blob.name)
            for blob, shape in self.sources.items()
            if shape is None or (len(shape) > 1 and shape[1] is None)
        ]

    def _with_channels(self, channels: int, number: int) -> dict[Blob, Shape]:
        """Guess `number` with another number of channels where that is unknown."""
        guess = _GUESSES[number]
        return _assume(self.sources, (guess[0], channels, *guess[2:]))

    def _guess_channels(self, index: int, channels: int) -> None:
        """Take a number of channels for known, in all guesses, up to layer `index`."""
        self.guessed = [self._with_channels(channels, number) for number in range(len(self.guessed))]
        for shapes in self.guessed:
            self._pass_earlier(index, shapes)
        if self.other_batch is not None:
            self.other_batch = _assume(self.sources, (_OTHER_BATCH[0], channels, *_OTHER_BATCH[2:]))
            self._pass_earlier(index, self.other_batch)

    def _pass_earlier(self, index: int, shapes: dict[Blob, Shape]) -> None:
        for earlier in range(index):
            if not self.graph.nodes[earlier].is_data:
                self._pass(earlier, shapes)

    def _without_source(self, error: LayerError) -> GraphError:
        """The error of a layer that can't be set up, with what to do if the reason may be a missing source."""
        unknown, open_channels = _unknown(self.sources, wholly=True), ", ".join(self._open_channels())
        if not unknown:
            return GraphError(f"{error}; {_colour(open_channels)}") if open_channels else error
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
