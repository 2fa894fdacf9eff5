"""Setting up a net's layers by the shapes of their bottoms, as far as loading needs them.

Internal to `fcnproto.net`. What data layers read is not opened, unless the shape of a parameter depends on what the
prototxt leaves open. What becomes of the parameters is in `net/params.py`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence

from fcnproto.errors import FcnprotoWarning, GraphError, LayerError
from fcnproto.graph import Blob, Graph
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.placeholder import PlaceHolder
from fcnproto.net.making import tell, warn_fillers
from fcnproto.net.shapes import GUESSES, PartialShape, assume, layer_shapes, source_shapes
from fcnproto.net.stored_shapes import StoredShapes
from fcnproto.net.waiting import fitting, replacement, sources_of, twin_of, why_waiting
from fcnproto.schema import caffe_pb2
from fcnproto.schema.unknown import unknown_fields

# A third guess beside `GUESSES` shows whether a parameter's shape depends on the size of a batch. Where nobody can say
# the number of channels, it is taken to be 3, as of colour, and that is said.
_OTHER_BATCH = (2, 3, 256, 320)
_COLOUR = 3


def set_up(
    graph: Graph, layers: list[Layer], given: Mapping[str, Sequence[int]], stored: StoredShapes | None = None
) -> tuple[dict[Blob, PartialShape | None], str]:
    """Call every layer's `setup` with its bottoms' shapes; returns the shapes of the data layers' tops.

    `given` overrides the shapes of data tops by name. Extents that only the data know are looked up in them only where
    the shape of a parameter depends on them; where they can't be, channels and parameters' shapes are taken from the
    `stored` weights. Layers whose parameters depend on what nobody knows wait (`Node.held`), except that channels
    are taken to be 3; what that concerns is returned, too, for the errors that may follow.
    """
    notes: list[tuple[Layer, str]] = []
    for layer in layers:
        layer.notes = notes
    try:
        for node, layer in zip(graph.nodes, layers, strict=True):
            if node.is_data:
                layer.setup([])
        shapes = _Shapes(graph, layers, given, stored or StoredShapes(()))
        sources = shapes.run()
    finally:
        for layer in layers:
            layer.notes = None
        tell(notes)
    warn_fillers(layers)
    return sources, shapes.assumed


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
        self.open: set[Blob] = set()
        """The blobs whose shapes depend on what only data know."""
        self.named: dict[str, Shape] = {}
        """The shapes of parameter blobs that have names, by the first layers of those whose bottoms are open."""
        self.channels: dict[Blob, int] = {}
        """The channels of data tops that weights say, or that are taken to be those of colour."""
        self.colour: list[Blob] = []
        """Those that are taken to be of colour."""
        self._start(source_shapes(graph, layers, given, look=False))

    def _start(self, sources: dict[Blob, PartialShape | None]) -> None:
        self.sources = sources
        guesses = GUESSES if _unknown(sources) else GUESSES[:1]
        self.guessed = [assume(sources, guess, self.channels) for guess in guesses]
        self.other_batch = assume(sources, _OTHER_BATCH, self.channels) if _unknown(sources) else None

    @property
    def assumed(self) -> str:
        """What is assumed of tops whose channels nobody knows, for people; empty where nothing is."""
        return _colour(", ".join(repr(blob.name) for blob in self.colour)) if self.colour else ""

    def run(self) -> dict[Blob, PartialShape | None]:
        """Set up all layers that can be; returns the shapes of the data layers' tops."""
        self.open = {blob for blob, shape in self.sources.items() if shape is None or None in shape}
        for index, node in enumerate(self.graph.nodes):
            if node.is_data:
                continue
            if any(blob in self.open for blob in node.bottoms) or self.layers[index].holds_place:
                self.open.update(node.tops)
            if not self.layers[index].holds_place:
                self._go_on(index)
        if self.assumed:
            warnings.warn(
                f"{self.graph.title}: {self.assumed}",
                FcnprotoWarning,
                stacklevel=2,
            )
        return self.sources

    def _go_on(self, index: int) -> None:
        """Set up one layer, by whatever says its bottoms' shapes, or have it wait."""
        if self._lacks(index, self.guessed[0]):
            if not self._fit_stored(index):
                self._hold(index)
            return
        try:
            self._set_up(index)
            error = self._second_guess(index)
        except LayerError as failure:
            if not (self._look(index) or self._take_stored(index)):
                if self._is_about_size(index, failure):
                    if not self._fit_stored(index):
                        self._hold(index)
                    return
                if self._is_another_forks(index, failure):
                    return
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
        if error is not None and self._fit_stored(index):
            return
        if error is not None:
            error = self._assume_colour(index, error)
        layer = self.layers[index]
        is_open = any(blob in self.open for blob in self.graph.nodes[index].bottoms)
        empty = is_open and any(0 in shape for shape in layer.blob_shapes)
        if (error is not None and layer.blob_names) or empty or (is_open and self._contradicts_sharing(layer)):
            self._hold(index)

    def _is_another_forks(self, index: int, failure: LayerError) -> bool:
        """Have a layer hold its place that can't be set up, is of a fork's type, and has settings that only another
        fork's layer of the name can have. False for any other."""
        node, layer = self.graph.nodes[index], self.layers[index]
        others = unknown_fields(layer.param)
        if not (layer.fork and others):
            return False
        which = f"{', '.join(others)} may tell of another fork's layer of that name, which nothing here computes"
        layer.warn(f"holds its place ({failure}): {which}")
        place = PlaceHolder(node.param, len(node.tops), f"{failure}; {which}")
        place.base_dir, place.prototxt, place.notes = layer.base_dir, layer.prototxt, layer.notes
        place.train(layer.training)
        self.layers[index], node.held = place, place.held
        self.open.update(node.tops)
        return True

    def _contradicts_sharing(self, layer: Layer) -> bool:
        """Whether a layer's blobs have other shapes, by what is assumed, than those of their names in layers before."""
        contradicts = False
        for spec, shape in zip(layer.param.param, layer.blob_shapes, strict=False):
            if spec.name and spec.share_mode == caffe_pb2.ParamSpec.STRICT:
                contradicts |= self.named.setdefault(spec.name, shape) != shape
        return contradicts

    def _lacks(self, index: int, shapes: Mapping[Blob, Shape]) -> bool:
        """Whether the shape of one of a layer's bottoms is missing in a guess."""
        return any(blob not in shapes for blob in self.graph.nodes[index].bottoms)

    def _is_about_size(self, index: int, failure: LayerError) -> bool:
        """Whether a layer that can't be set up could be for bottoms of other shapes, or would complain otherwise."""
        node = self.graph.nodes[index]
        if not any(blob in self.open for blob in node.bottoms):
            return False
        first = [self.guessed[0][blob] for blob in node.bottoms]
        tries = [
            [shapes[blob] for blob in node.bottoms] for shapes in self.guessed[1:] if not self._lacks(index, shapes)
        ]
        tries += [[(*shape[:1], channels, *shape[2:]) for shape in first] for channels in (4, 12, 64)]
        for bottoms in tries:
            try:
                self._twin(index, bottoms)
                return True
            except LayerError as error:
                if str(error) != str(failure):
                    return True
        return False

    def _hold(self, index: int) -> None:
        """Have a layer wait; its tops are those that it would have by the guesses, where it works under them."""
        node = self.graph.nodes[index]
        self.layers[index] = replacement(self.graph, node, self.layers[index])
        node.held = why_waiting(node, self.sources, self.open)
        self.layers[index].follows = self._lacks(index, self.guessed[0]) and not self._has_blobs(index)
        for shapes in self.guessed:
            for blob in node.tops:
                shapes.pop(blob, None)
            with contextlib.suppress(GraphError):
                self._pass(index, shapes)
        self.other_batch = None

    def _has_blobs(self, index: int) -> bool:
        """Whether a layer of which no bottom's shape is known has parameters, on bottoms of a usual shape."""
        bottoms = [self.guessed[0].get(blob, GUESSES[0]) for blob in self.graph.nodes[index].bottoms]
        try:
            return bool(self._twin(index, bottoms).blob_names)
        except GraphError:
            return False

    def _fit_stored(self, index: int) -> bool:
        """Set a layer up by the shapes of its stored blobs alone. False if there are none, or none that fit."""
        node, old = self.graph.nodes[index], self.layers[index]
        for guess, shapes in zip(GUESSES, self.guessed, strict=False):
            found = fitting(self.graph, node, old, self.stored, shapes, guess)
            if found is None:
                return False
            if shapes is self.guessed[0]:
                self.layers[index] = found[0]
            shapes.update(zip(node.tops, layer_shapes(found[0], found[1]), strict=True))
        self.other_batch = None
        return True

    def _set_up(self, index: int) -> None:
        shapes, node, layer = self.guessed[0], self.graph.nodes[index], self.layers[index]
        layer.setup([shapes[blob] for blob in node.bottoms])
        self._pass(index, shapes)

    def _second_guess(self, index: int) -> GraphError | None:
        """What goes wrong, or becomes another, where the layer, set up by the first guess, meets the other ones."""
        try:
            for shapes in self.guessed[1:]:
                if self._lacks(index, shapes):
                    if self.layers[index].blob_names:
                        return _OtherBlobs(f"layer {self.layers[index].name!r}: what it reads has no known size")
                    continue
                self._pass(index, shapes)
                self._compare_blobs(index, shapes)
        except GraphError as error:
            return error
        if self.other_batch is None or self._lacks(index, self.other_batch):
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
        return self._twin(index, [shapes[blob] for blob in self.graph.nodes[index].bottoms])

    def _twin(self, index: int, bottoms: Sequence[Shape]) -> Layer:
        return twin_of(self.graph, self.graph.nodes[index], self.layers[index], bottoms)

    def _pass(self, index: int, shapes: dict[Blob, Shape]) -> None:
        """Add the shapes of a layer's tops."""
        node, layer = self.graph.nodes[index], self.layers[index]
        if layer.holds_place or self._lacks(index, shapes):
            return
        bottoms = [shapes[blob] for blob in node.bottoms]
        tops = layer_shapes(self._twin(index, bottoms) if node.held else layer, bottoms)
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
        self.layers[index] = replacement(self.graph, self.graph.nodes[index], self.layers[index])
        for shapes in self.guessed:
            self._pass_earlier(index, shapes)
        if self.other_batch is not None:
            self._pass_earlier(index, self.other_batch)
        return True

    def _take_stored(self, index: int) -> bool:
        """Take the number of channels from the weights for layer `index`. False if they don't say it."""
        tops = self._open_channels(index)
        if not tops or len(self.guessed) < 2:
            return False
        for channels in self.stored.channels(self.layers[index]):
            try:
                guess = assume(self.sources, GUESSES[0], {**self.channels, **dict.fromkeys(tops, channels)})
                self._pass_earlier(index, guess)
                if not self.stored.fit(self._made_anew(index, guess)):
                    continue
                self._guess_channels(index, tops, channels)
            except GraphError:
                continue
            self.layers[index] = replacement(self.graph, self.graph.nodes[index], self.layers[index])
            return True
        return False

    def _assume_colour(self, index: int, error: GraphError) -> GraphError | None:
        """Take the channels of what layer `index` reads for those of colour, unless that goes wrong. Returns what still
        goes wrong, at first `error`; None if nothing does."""
        tops = self._open_channels(index)
        if not tops or len(self.guessed) < 2:
            return error
        before = self.guessed, self.other_batch, self.channels
        try:
            self._guess_channels(index, tops, _COLOUR)
            self._pass(index, self.guessed[0])
            left = self._second_guess(index)
        except GraphError as failure:  # a layer before can't work on colour
            left = failure
        if left is None:
            self.colour += tops
        else:
            self.guessed, self.other_batch, self.channels = before
        return left

    def _open_channels(self, index: int) -> list[Blob]:
        """The data tops behind layer `index` whose number of channels is unknown."""
        shapes = {blob: self.sources[blob] for blob in sources_of(self.graph.nodes[index], self.sources)}
        return [
            blob
            for blob, shape in shapes.items()
            if blob not in self.channels and (shape is None or (len(shape) > 1 and shape[1] is None))
        ]

    def _guess_channels(self, index: int, tops: Sequence[Blob], channels: int) -> None:
        """Take the number of channels of data tops for known, in all guesses, up to layer `index`. `GraphError` where
        a layer before that isn't waiting can't work on it; nothing is changed then."""
        known = {**self.channels, **dict.fromkeys(tops, channels)}
        guessed = [assume(self.sources, guess, known) for guess in GUESSES[: len(self.guessed)]]
        other_batch = None if self.other_batch is None else assume(self.sources, _OTHER_BATCH, known)
        for shapes in guessed if other_batch is None else [*guessed, other_batch]:
            self._pass_earlier(index, shapes)
        self.guessed, self.other_batch, self.channels = guessed, other_batch, known

    def _pass_earlier(self, index: int, shapes: dict[Blob, Shape]) -> None:
        for earlier in range(index):
            node = self.graph.nodes[earlier]
            if not node.is_data:
                with contextlib.suppress(GraphError) if node.held else contextlib.nullcontext():
                    self._pass(earlier, shapes)

    def _without_source(self, error: LayerError) -> GraphError:
        """The error of a layer that can't be set up, with what to do if the reason may be a missing source."""
        unknown = _unknown(self.sources, wholly=True)
        if not unknown:
            names = ", ".join(
                repr(blob.name)
                for blob, shape in self.sources.items()
                if shape is not None and len(shape) > 1 and shape[1] is None
            )
            return GraphError(f"{error}; {_colour(names)}") if names else error
        return GraphError(
            f"{error}; the shape of {unknown} is unknown because its data source is missing: make it available or say "
            "the shape with load(..., shapes={name: shape})"
        )
