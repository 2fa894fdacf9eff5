"""What a net wants of its images and what its scores mean: said by the net itself, known of published nets, or assumed.

Class names and preprocessing are no part of a prototxt, except where its data layers say something. Not for the
choice of blobs to compute: see `segment/segmenter.py`.
"""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor

from fcnproto import zoo
from fcnproto.data.database import Data
from fcnproto.data.folder_layer import ImageMaskLayer
from fcnproto.data.image_data import ImageData
from fcnproto.data.paths import resolve
from fcnproto.data.published import NYUDSegDataLayer, PublishedLayer
from fcnproto.data.window_data import WindowData
from fcnproto.errors import DataError, FcnprotoWarning, GraphError, LayerError, UsageError
from fcnproto.graph import Graph, Node, build_graph
from fcnproto.images import Kind, Preprocessing, as_image, parse_mean, parse_scale, read_mean, resize, to_blob
from fcnproto.layers.base import Layer
from fcnproto.meta import ByBlob, ImageInput, Meta, ScoreOutput, of_record
from fcnproto.net import Net
from fcnproto.net.net import type_facts
from fcnproto.net.roles import fixed_image_size, image_inputs, score_blobs
from fcnproto.net.shapes import assumed_shapes, blob_shapes
from fcnproto.schema.text import read_net
from fcnproto.zoo import ModelInfo

# The mean of ImageNet and VOC in the order BGR: what almost every Caffe net was trained with.
_ASSUMED_MEAN = (104.00699, 116.66877, 122.67892)
_MOST_CLASSES = 65536


def zoo_record(model: str | os.PathLike[str], weights: str | os.PathLike[str] | None = None) -> ModelInfo | None:
    """The shipped or published net that these files are called as; None for other nets. For figures to show beside.

    A net is called by its weights (`fcn8s-heavy-pascal.caffemodel`, `voc-fcn8s.caffemodel`), by its folder
    (`voc-fcn8s/deploy.prototxt`) or by its own name (`voc-fcn8s.prototxt`).
    """
    path = Path(os.path.abspath(model))
    records = [zoo.info(name) for name in zoo.names()]
    by_weights = next((one for one in records if weights is not None and _is_called(weights, one)), None)
    return by_weights or next((one for one in records if one.name in (path.parent.name, path.stem)), None)


def _is_called(weights: str | os.PathLike[str], record: ModelInfo) -> bool:
    name = Path(weights).name
    return name in (Path(urlsplit(record.weights_url or "").path).name, f"{record.name}.caffemodel")


def record_of(net: Net) -> ModelInfo | None:
    """The net of the zoo that this one certainly is: loaded from the zoo's own prototxt, or holding weights that are,
    byte by byte, those of a net of the zoo with its layers. Never by the names of files or the number of classes."""
    return _recognised(net)[0]


def _recognised(net: Net) -> tuple[ModelInfo | None, str]:
    """`record_of`, and how it was recognised."""
    for weights in reversed(net._copied):
        name = zoo.weights_of(weights)
        if name is not None and has_layers_of(net, zoo.info(name)):
            return zoo.info(name), f"its weights are {name}'s, byte by byte"
    file = net.layers[0].prototxt if net.layers else None
    owner = None if file is None else zoo.owner(file)
    return (None, "") if owner is None else (zoo.info(owner), f"loaded as the zoo's {owner}")


def meta_of(net: Net) -> Meta:
    """What belongs to a net: what `Net.meta` says it is, found out."""
    record, why = _recognised(net)
    told = [*_said(net), *([] if record is None else [of_record(record, why)])]
    try:
        scores = score_blobs(net)
        images = image_inputs(net, scores)
    except GraphError:
        scores, images = [], net.inputs
    inputs = [entry for blob in images if _is_image(net, blob) and (entry := _input(net, blob)) is not None]
    outputs = [_output(blob, count, told) for blob, count in _counts(net, scores, images).items()]
    own = any(_names_from(one, output.blob, len(output.classes)) for one in told for output in outputs)
    called = next((one.name for one in told if one.name and (own or one is net._given)), "")
    published = told[0].scores if own and told else ()
    return Meta(called or net.graph.name, ByBlob(inputs), ByBlob(outputs), published)


def _is_image(net: Net, blob: str) -> bool:
    shape = net.source_shapes.get(blob)
    return shape is None or len(shape) == 4


def _input(net: Net, blob: str) -> ImageInput | None:
    """What is known of an image input; None where a mean file can't be read that its data layer names."""
    try:
        how = preprocessing_of(net, blob, quiet=True)
    except DataError:
        return None
    order = ""
    for one in _all_said(net):
        order = next((entry.order for entry in one.inputs if entry.blob == blob), order)
    return ImageInput.of(blob, how, order if order == "HHA" and how.kind == "rgb" else "")


def _counts(net: Net, scores: Sequence[str], images: Sequence[str]) -> dict[str, int]:
    """How many classes each score blob has, as far as the layers tell."""
    try:
        found = blob_shapes(net.graph, net.layers, assumed_shapes(net.source_shapes, net.graph), partial=True)
    except LayerError:
        return {}
    sizes = {blob: found.get(net.graph.blobs[blob], ()) for blob in scores}
    return {blob: shape[1] for blob, shape in sizes.items() if len(shape) > 1 and 1 < shape[1] <= _MOST_CLASSES}


def _names_from(meta: Meta, blob: str, count: int) -> ScoreOutput | None:
    """What a meta says of a score blob of so many classes: of that blob, else of one with as many."""
    fitting = [output for output in meta.outputs if output.named and len(output.classes) == count]
    fitting.sort(key=lambda output: output.blob != blob)
    return fitting[0] if fitting else None


def _output(blob: str, count: int, told: Sequence[Meta]) -> ScoreOutput:
    for one in told:
        found = _names_from(one, blob, count)
        if found is not None:
            return replace(found, blob=blob)
    alike = published_with(count)
    why = "nobody says the names of its classes"
    why += f" (it has as many as {alike}, but isn't known to be a net for it)" if alike else ""
    return ScoreOutput(blob, tuple(f"class {label}" for label in range(count)), False, why=why)


def _said(net: Net) -> list[Meta]:
    """What was set, and what the files say that the net was read from."""
    return [*([] if net._given is None else [net._given]), *net._told]


def _all_said(net: Net) -> Iterator[Meta]:
    """The same, and what the zoo says of the net, or of one with the same layers."""
    yield from _said(net)
    record = record_of(net)
    if record is not None:
        yield of_record(record, f"known of {record.name}")
    record = similar_record(net)
    if record is not None:
        yield of_record(record, f"its layers are those of {record.name}")


def prepared(net: Net, images: Any) -> dict[str, Tensor]:
    """The inputs for an image, or for the images of all inputs, of one size: see `Net.preprocess`."""
    blobs = [entry.blob for entry in net.meta.inputs] or [blob for blob in net.inputs if _is_image(net, blob)]
    if not blobs:
        raise UsageError(f"{net.graph.title}: has no input for images")
    given = images if isinstance(images, Mapping) else {blobs[0]: images}
    if set(given) != set(blobs):
        listed = ", ".join(map(repr, blobs))
        raise UsageError(f"{net.graph.title}: give an image for each of its inputs: {listed}")
    hows = {blob: preprocessing_of(net, blob) for blob in blobs}
    opened = {blob: as_image(given[blob], how.kind, how.bands) for blob, how in hows.items()}
    if len({image.size for image in opened.values()}) > 1:
        listed = ", ".join(f"{blob} {image.width}x{image.height}" for blob, image in opened.items())
        raise DataError(f"the images of one scene differ in size: {listed}")
    values = {}
    for blob, image in opened.items():
        size = fixed_image_size(net, blob)
        array = to_blob(image if size is None else resize(image, *size), hows[blob])
        values[blob] = torch.from_numpy(array)[None].to(net.device)
    return values


def similar_record(net: Net) -> ModelInfo | None:
    """The net of the zoo whose layers the net has, be it with other classes; what its images need is needed here too.

    None where there is none, or several that want different images (colour and HHA) and as many classes.
    """
    found = similar_records(net)
    return found[0] if found and all(record.inputs == found[0].inputs for record in found) else None


def similar_records(net: Net) -> list[ModelInfo]:
    """The nets of the zoo whose layers the net has: with as many classes if there are such, else with others."""
    records = [zoo.info(name) for name in zoo.names()]
    found = [record for record in records if has_layers_of(net, record, any_classes=True)]
    return [record for record in found if has_layers_of(net, record)] or found


def has_layers_of(net: Net, record: ModelInfo, any_classes: bool = False) -> bool:
    """Whether the layers of a net are those of a net of the zoo, whatever feeds and judges them.

    With `any_classes` the layers that make scores may have another number of outputs.
    """
    graph = net.graph
    if not all(output.blob in graph.blobs for output in record.outputs):
        return False
    return _structure(graph, any_classes) == _zoo_structure(record.name, any_classes)


@functools.cache
def _zoo_structure(name: str, any_classes: bool) -> list[Any]:
    return _structure(build_graph(read_net(zoo.path(name, "deploy")), type_facts, "test"), any_classes)


def _structure(graph: Graph, any_classes: bool) -> list[Any]:
    """What computes in a graph: each layer's type, settings and the places of the layers it reads."""
    places: dict[str, int] = {}
    rows: list[Any] = []
    for node in graph.nodes:
        facts = node.facts
        if node.is_data or facts.is_loss:
            continue
        read = [places.get(blob.name, -1) for blob in node.bottoms]
        if facts.judges or facts.passes_on or facts.idle or facts.ranks(node.param):  # makes no other net of it
            places.update({blob.name: read[0] if read else -1 for blob in node.tops})
            continue
        settings = _settings(node, any_classes)
        places.update({blob.name: len(rows) for blob in node.tops})
        rows.append((node.type, settings, read))
    return rows


def _settings(node: Node, any_classes: bool) -> list[tuple[str, str]]:
    """A layer's settings as text, without what only training reads; the sizes of score layers if they count."""
    found = []
    for field, value in node.param.ListFields():
        if not field.name.endswith("_param") or field.message_type is None:
            continue
        copied = type(value)()
        copied.CopyFrom(value)
        for name in ("weight_filler", "bias_filler", "engine"):
            if name in copied.DESCRIPTOR.fields_by_name:
                copied.ClearField(name)
        if any_classes and "score" in node.name and "num_output" in copied.DESCRIPTOR.fields_by_name:
            for name in {"num_output", "group"} & set(copied.DESCRIPTOR.fields_by_name):
                copied.ClearField(name)
        found.append((field.name, str(copied)))
    return found


def preprocessing_of(net: Net, blob: str, quiet: bool = False) -> Preprocessing:
    """How images become the input `blob`: as was set (`net.meta`), else as the net's data layer says, else the files
    that it was read from, else the zoo, of its own nets and of those with the same layers; else the usual way.

    The usual way is BGR with ImageNet's mean for three channels, grey without a mean for one, the bands as they are for
    other numbers; `why` says which it was. Warns of a data layer's crop that is not applied, unless `quiet`.
    """
    if net._given is not None and any(entry.blob == blob for entry in net._given.inputs):
        return net._given.inputs[blob].preprocessing
    for layer in net.data_layers():
        if blob in layer.param.top:
            found = _of_published(layer, list(layer.param.top).index(blob)) or _of_transform(net, layer, blob, quiet)
            if found is not None:
                return found
    channels = _channels(net, blob)
    for one in _all_said(net):
        for entry in one.inputs:
            if entry.blob == blob and channels in (None, entry.channels):
                return entry.preprocessing
    if channels == 1:
        return Preprocessing("grey", why="assumed")
    if channels not in (None, 3):
        return Preprocessing("bands", bands=channels, why="assumed")
    return Preprocessing("bgr", np.array(_ASSUMED_MEAN), why="assumed")


@dataclass(frozen=True)
class Chosen:
    """What a user says of how images become inputs, as texts VALUE (of the first input) or BLOB=VALUE.

    `kinds`: bgr, rgb, grey, depth, bands. `means` and `scales`: a number for each channel (104,117,123) or a file
    (.binaryproto, .npy; .json of image-mean, whose scale counts as well); a mean may be "none".
    """

    kinds: tuple[str, ...] = ()
    means: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.kinds or self.means or self.scales)

    def apply(self, how: Preprocessing, name: str, inputs: Sequence[str], bands: int = 0) -> Preprocessing:
        """The preprocessing of input `name` with what is said; `bands` is the number of bands where the kind becomes
        "bands" (0: as many as there were channels). UsageError for values that make no sense."""
        kind, mean, scale = (_setting(texts, name, inputs) for texts in (self.kinds, self.means, self.scales))
        if kind is not None:
            how = _of_kind(how, kind, bands)
        if mean is not None:
            how = replace(how, mean=parse_mean(mean), why="")
            if how.mean is not None and len(how.mean) not in (1, how.channels):
                raise UsageError(f"--mean {mean}: has {len(how.mean)} channels, input {name!r} has {how.channels}")
            if scale is None and mean.lower().endswith(".json"):
                scale = mean
        if scale is not None:
            try:
                how = replace(how, scale=parse_scale(scale), why="")
            except ValueError:
                raise UsageError(f"--scale {scale}: not a number, nor numbers with commas between them") from None
            if isinstance(how.scale, tuple) and len(how.scale) != how.channels:
                raise UsageError(f"--scale {scale}: {len(how.scale)} factors for {how.channels} channels")
        return how


def _of_kind(how: Preprocessing, kind: str, bands: int) -> Preprocessing:
    if kind not in get_args(Kind):
        raise UsageError(f"--channels {kind}: expected one of {', '.join(get_args(Kind))}")
    known = how.mean
    if known is not None and {kind, how.kind} == {"bgr", "rgb"}:
        known = known[::-1]
    elif kind != how.kind:
        known = None
    count = (bands or how.channels) if kind == "bands" else 0
    return replace(how, kind=cast("Kind", kind), mean=known, why="", bands=count)


def _setting(texts: Sequence[str], name: str, inputs: Sequence[str]) -> str | None:
    """The value for input `name` among texts VALUE (for the first input) and BLOB=VALUE."""
    chosen = None
    for text in texts:
        blob, sign, value = text.partition("=")
        if not sign or blob not in inputs:
            blob, value = inputs[0], text
        if blob == name:
            chosen = value
    return chosen


def _of_published(layer: Layer, top: int) -> Preprocessing | None:
    if not isinstance(layer, PublishedLayer):
        return None
    if isinstance(layer, ImageMaskLayer):
        return layer.inputs[top].preprocessing if top < len(layer.inputs) else None
    what, why = layer.top_kinds()[top], f"from layer {layer.name!r}"
    if what == "hha" and isinstance(layer, NYUDSegDataLayer):
        return Preprocessing("rgb", np.array(layer.hha_mean), why=why)
    if what == "depth" and isinstance(layer, NYUDSegDataLayer):
        return Preprocessing("depth", np.array([layer.log_depth_mean]), why=why)
    mean = layer.options.get("mean", getattr(layer, "mean", None))
    return Preprocessing("bgr", None if mean is None else np.array(mean, dtype=np.float64).reshape(-1), why=why)


def _of_transform(net: Net, layer: Layer, blob: str, quiet: bool) -> Preprocessing | None:
    """What a data layer does to its images, which is nothing where it has no `transform_param`."""
    transform, scale = layer.param.transform_param, layer.param.transform_param.scale
    if not isinstance(layer, (Data, ImageData, WindowData)) or list(layer.param.top).index(blob) != 0:
        return None
    if isinstance(layer, WindowData):
        scale = layer.config.scale  # Caffe reads this one there
    mean = np.array(list(transform.mean_value)) if transform.mean_value else None
    if transform.mean_file:
        mean = read_mean(resolve(transform.mean_file, layer.base_dir, f"mean file of layer {layer.name!r}"))
    if transform.crop_size and not quiet:
        warnings.warn(
            f"layer {layer.name!r}: its crop_size {transform.crop_size} is not applied to images that are given; "
            "they count as a whole",
            FcnprotoWarning,
            stacklevel=3,
        )
    one_channel = transform.force_gray or _channels(net, blob) == 1
    return Preprocessing("grey" if one_channel else "bgr", mean, scale, f"from layer {layer.name!r}")


def _channels(net: Net, blob: str) -> int | None:
    shape = net.source_shapes.get(blob)
    return shape[1] if shape is not None and len(shape) == 4 else None


def class_names(blob: str, count: int, meta: Meta) -> tuple[str, ...] | None:
    """The names of the `count` classes of score blob `blob` from what is known of its net; None where nobody says them.

    How many classes there are says nothing: nets of 21 classes are not all VOC's.
    """
    found = _names_from(meta, blob, count)
    return None if found is None else found.classes


def published_with(count: int) -> str | None:
    """The data set of a net of the zoo with so many classes (more than three), for a word about nets that aren't it."""
    for record in map(zoo.info, zoo.names()):
        if any(len(output.classes) == count > 3 for output in record.outputs):
            return record.dataset
    return None


def read_class_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The class names in a text file, one a line in the order of the labels; numbers such as "3:" before them are cut.

    Raises `DataError` if there are none.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{os.fspath(path)}: can't read the class names: {error}") from error
    names = tuple(re.sub(r"^\d+\s*:\s*", "", line.strip()) for line in re.split(r"\r\n|\r|\n", text) if line.strip())
    if not names:
        raise DataError(f"{os.fspath(path)}: no class names in it; expected one a line")
    return names


def background_labels(names: Sequence[str] | None) -> tuple[int, ...]:
    """The labels that an overlay leaves bare: those called background; label 0 where names aren't known."""
    if names is None:
        return (0,)
    return tuple(label for label, name in enumerate(names) if name.lower() in ("background", "void", "unlabelled"))
