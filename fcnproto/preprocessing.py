"""What a net wants of its images and what its scores mean: said by the net itself, known of published nets, or assumed.

Class names and preprocessing are no part of a prototxt, except where its data layers say something. Not for the
choice of blobs to compute: see `segment/segmenter.py`.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from fcnproto import zoo
from fcnproto.data.folder_layer import ImageMaskLayer
from fcnproto.data.paths import resolve
from fcnproto.data.published import NYUDSegDataLayer, PublishedLayer
from fcnproto.errors import DataError, FcnprotoWarning
from fcnproto.images import Kind, Preprocessing, read_mean
from fcnproto.layers.base import Layer
from fcnproto.net import Net
from fcnproto.zoo import ModelInfo

# The mean of ImageNet and VOC in the order BGR: what almost every Caffe net was trained with.
_ASSUMED_MEAN = (104.00699, 116.66877, 122.67892)
_KINDS: dict[str, Kind] = {"BGR": "bgr", "RGB": "rgb", "HHA": "rgb", "D": "depth"}


def zoo_record(model: str | os.PathLike[str], weights: str | os.PathLike[str] | None = None) -> ModelInfo | None:
    """What the zoo knows of the shipped or published net that these files are, by their names; None for other nets.

    A net is known by its folder's name (`voc-fcn8s/deploy.prototxt`), by its own (`voc-fcn8s.prototxt`), or by that of
    its weights (`fcn8s-heavy-pascal.caffemodel`).
    """
    path = Path(os.path.abspath(model))
    weights_name = None if weights is None else Path(weights).name
    records = [zoo.info(name) for name in zoo.names()]
    for record in records:
        published = Path(urlsplit(record.weights_url or "").path).name
        if weights_name in (published, f"{record.name}.caffemodel"):
            return record
    return next((record for record in records if record.name in (path.parent.name, path.stem)), None)


def preprocessing_of(net: Net, blob: str, record: ModelInfo | None) -> Preprocessing:
    """How images become the input `blob`: as the net's data layer says, else its record, else the usual way.

    The usual way is BGR with ImageNet's mean for three channels, grey without a mean for one; `why` says which it was.
    """
    for layer in net.data_layers():
        if blob in layer.param.top:
            found = _of_published(layer, list(layer.param.top).index(blob)) or _of_transform(net, layer, blob)
            if found is not None:
                return found
    for entry in record.inputs if record is not None else ():
        if entry.blob == blob and entry.channels in _KINDS and record is not None:
            return Preprocessing(_KINDS[entry.channels], np.array(entry.mean), why=f"known of {record.name}")
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
    transform = layer.param.transform_param
    if not layer.param.HasField("transform_param") or list(layer.param.top).index(blob) != 0:
        return None
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
    return Preprocessing("grey" if one_channel else "bgr", mean, transform.scale, f"from layer {layer.name!r}")


def _channels(net: Net, blob: str) -> int | None:
    shape = net.source_shapes.get(blob)
    return shape[1] if shape is not None and len(shape) == 4 else None


def class_names(blob: str, count: int, record: ModelInfo | None) -> tuple[str, ...] | None:
    """The names of the `count` classes of score blob `blob`: from the net's record, else those of the data set with
    so many classes that published nets learn; None where there is none."""
    outputs = list(record.outputs) if record is not None else []
    outputs += [output for name in zoo.names() for output in zoo.info(name).outputs if len(output.classes) > 3]
    fitting = [output for output in outputs if len(output.classes) == count]
    # Of the net's own outputs the one with the blob's name comes first: two may have equally many classes.
    fitting.sort(key=lambda output: (output not in (record.outputs if record else ()), output.blob != blob))
    return fitting[0].classes if fitting else None


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
