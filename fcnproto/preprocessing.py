"""What a net wants of its images and what its scores mean: said by the net itself, known of published nets, or assumed.

Class names and preprocessing are no part of a prototxt, except where its data layers say something. Not for the
choice of blobs to compute: see `segment/segmenter.py`.
"""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from fcnproto import zoo
from fcnproto.data.database import Data
from fcnproto.data.folder_layer import ImageMaskLayer
from fcnproto.data.image_data import ImageData
from fcnproto.data.paths import resolve
from fcnproto.data.published import NYUDSegDataLayer, PublishedLayer
from fcnproto.data.window_data import WindowData
from fcnproto.errors import DataError, FcnprotoWarning
from fcnproto.graph import Graph, Node, build_graph
from fcnproto.images import Kind, Preprocessing, read_mean
from fcnproto.layers.base import Layer
from fcnproto.net import Net
from fcnproto.net.net import type_facts
from fcnproto.schema.text import read_net
from fcnproto.zoo import ModelInfo

# The mean of ImageNet and VOC in the order BGR: what almost every Caffe net was trained with.
_ASSUMED_MEAN = (104.00699, 116.66877, 122.67892)
_KINDS: dict[str, Kind] = {"BGR": "bgr", "RGB": "rgb", "HHA": "rgb", "D": "depth"}


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


def known_net(
    net: Net, model: str | os.PathLike[str], weights: str | os.PathLike[str] | None = None
) -> ModelInfo | None:
    """The net of the zoo that `net`, read from these files, certainly is: what it was trained on names its classes.

    It is one if the prototxt or the weights are the zoo's own file; or if it has that net's layers, and the weights
    (without weights the prototxt) are called as the published ones. A net of one's own with as many classes is none.
    """
    own = zoo.owner(model) or (None if weights is None else zoo.owner(weights))
    if own is not None:
        return zoo.info(own)
    if weights is None:
        found = zoo_record(model)
    else:
        found = next((one for one in map(zoo.info, zoo.names()) if _is_called(weights, one)), None)
    return found if found is not None and has_layers_of(net, found) else None


def own_record(net: Net) -> ModelInfo | None:
    """The net of the zoo whose own prototxt `net` was loaded from; None for other nets."""
    file = net.layers[0].prototxt if net.layers else None
    owner = None if file is None else zoo.owner(file)
    return None if owner is None else zoo.info(owner)


def similar_record(net: Net) -> ModelInfo | None:
    """The net of the zoo whose layers the net has, be it with other classes; what its images need is needed here too.

    None where there is none, or several that want different images (colour and HHA) and as many classes.
    """
    records = [zoo.info(name) for name in zoo.names()]
    found = [record for record in records if has_layers_of(net, record, any_classes=True)]
    exact = [record for record in found if has_layers_of(net, record)] or found
    return exact[0] if exact and all(record.inputs == exact[0].inputs for record in exact) else None


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


def preprocessing_of(net: Net, blob: str, record: ModelInfo | None) -> Preprocessing:
    """How images become the input `blob`: as the net's data layer says, else its record, else that of the zoo's net
    with the same layers, else the usual way.

    The usual way is BGR with ImageNet's mean for three channels, grey without a mean for one; `why` says which it was.
    """
    for layer in net.data_layers():
        if blob in layer.param.top:
            found = _of_published(layer, list(layer.param.top).index(blob)) or _of_transform(net, layer, blob)
            if found is not None:
                return found
    known = record or similar_record(net)
    for entry in known.inputs if known is not None else ():
        if entry.blob == blob and entry.channels in _KINDS and known is not None:
            why = f"known of {known.name}" if record is not None else f"its layers are those of {known.name}"
            return Preprocessing(_KINDS[entry.channels], np.array(entry.mean), why=why)
    if _channels(net, blob) == 1:
        return Preprocessing("grey", why="assumed")
    return Preprocessing("bgr", np.array(_ASSUMED_MEAN), why="assumed")


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


def _of_transform(net: Net, layer: Layer, blob: str) -> Preprocessing | None:
    """What a data layer does to its images, which is nothing where it has no `transform_param`."""
    transform, scale = layer.param.transform_param, layer.param.transform_param.scale
    if not isinstance(layer, (Data, ImageData, WindowData)) or list(layer.param.top).index(blob) != 0:
        return None
    if isinstance(layer, WindowData):
        scale = layer.config.scale  # Caffe reads this one there
    mean = np.array(list(transform.mean_value)) if transform.mean_value else None
    if transform.mean_file:
        mean = read_mean(resolve(transform.mean_file, layer.base_dir, f"mean file of layer {layer.name!r}"))
    if transform.crop_size:
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


def class_names(blob: str, count: int, record: ModelInfo | None) -> tuple[str, ...] | None:
    """The names of the `count` classes of score blob `blob` from the net's record; None where it says none.

    How many classes there are says nothing: nets of 21 classes are not all VOC's.
    """
    fitting = [output for output in record.outputs if len(output.classes) == count] if record is not None else []
    # The output with the blob's name comes first: two may have equally many classes.
    fitting.sort(key=lambda output: output.blob != blob)
    return fitting[0].classes if fitting else None


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
