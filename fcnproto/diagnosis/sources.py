"""Rules about data layers: what they do to images, whether they stay together, whether their sources are there.

Of the sources only lists, counts and the sizes of first items are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import combinations

import numpy as np

from fcnproto.checking.alignment import apart
from fcnproto.checking.findings import Finding, listed, some
from fcnproto.checking.kinds import found
from fcnproto.data.database import Data
from fcnproto.data.folder_layer import ImageMaskLayer
from fcnproto.data.hdf5 import HDF5Data
from fcnproto.data.image_data import ImageData, read_image_list
from fcnproto.data.paths import find, read_list
from fcnproto.data.published import PublishedLayer
from fcnproto.data.records import open_records
from fcnproto.data.window_data import WindowData
from fcnproto.diagnosis.places import located, places_in
from fcnproto.diagnosis.subject import Subject
from fcnproto.errors import DataError, WeightsError
from fcnproto.graph import Blob, Node
from fcnproto.layers.base import Layer
from fcnproto.layers.source import SourceLayer
from fcnproto.net.roles import unsplit
from fcnproto.schema import caffe_pb2
from fcnproto.schema.weights import read_blob

_BGR = (104.0, 117.0, 123.0)
"""About ImageNet's mean as blue, green, red; by it the order of a mean is known."""
_SMALL_SCALE, _LARGE_SHIFT = 0.1, -20.0
_IMPOSSIBLE = -160.0
"""Below this is no pixel of 0..255 from which a usual mean was taken once."""
_FEWEST_IMAGES, _LOOKED_AT, _MOST_ALIKE, _FARTHER = 8, 32, 0.9, 8.0
"""By how many images the order of a database is told, of how many, and by how much their channels must differ: red is
the brightest channel of most photographs, blue the darkest."""
_LISTED_FILES = 2000
_VOID = 255


def source_rules(subject: Subject) -> Iterator[Finding]:
    """What is wrong with the data layers of a net, and of its solver's test nets where files are missing."""
    nodes = dict(zip(subject.net.graph.nodes, subject.net.layers, strict=True))
    layers = [(node, layer) for node, layer in nodes.items() if node.is_data]
    for node, layer in layers:
        yield from _values(subject, node, layer)
        yield from _files(layer)
    yield from apart(subject.net, subject.shapes)
    yield from _databases([layer for _, layer in layers if isinstance(layer, (Data, ImageData))])
    yield from _void(nodes)
    if subject.solver is not None:
        yield from _unfed(subject)
    for net in subject.tests:
        for layer in net.data_layers():
            yield from located(_files(layer), places_in(layer.prototxt))


# What is done to the images.


def readers(blob: Blob) -> Iterator[Node]:
    """The layers that read a blob, through Splits."""
    node = blob.consumer
    if node is None:
        return
    if node.type == "Split":
        for top in node.tops:
            yield from readers(top)
    else:
        yield node


def _values(subject: Subject, node: Node, layer: Layer) -> Iterator[Finding]:
    if not node.tops:
        return
    mean, scale = _mean(layer), _scale(layer)
    below = list(readers(node.tops[0]))
    changes = [(one, *_change(subject, one)) for one in below]
    shifts = [(one, by) for one, _, by in changes if by < _LARGE_SHIFT]
    scales = [(one, factor) for one, factor, _ in changes if 0 < abs(factor) < _SMALL_SCALE]
    if mean and shifts:
        yield found(
            "mean-twice",
            [layer.name, shifts[0][0].name],
            f"{layer.name!r} takes off {mean}, and {shifts[0][0].name!r} ({shifts[0][0].type}) {-shifts[0][1]:.4g}",
        )
    elif mean and (lowest := _lowest(layer)) < _IMPOSSIBLE:
        yield found(
            "mean-twice", [layer.name], f"{layer.name!r} takes off {mean}, and gives values down to {lowest:.4g} then"
        )
    if abs(scale) < _SMALL_SCALE and scales:
        again, factor = scales[0]
        seen = f"{layer.name!r} scales by {scale:g}, and {again.name!r} ({again.type}) by {factor:.4g}"
        yield found("scale-twice", [layer.name, again.name], seen)
    values = _channel_means(layer)
    if len(values) == 3 and _is_reversed(values):
        shown = ", ".join(f"{value:.4g}" for value in values)
        yield found("channel-order", [layer.name], f"mean {shown} for images that are read as blue, green, red")
    elif len(values) == 3 and isinstance(layer, Data):
        yield from _stored_order(layer, values)
    plain = not mean and scale == 1 and bool(below) and all(one.type == "Convolution" for one in below)
    if plain and _is_colour(subject, node, layer):
        yield found("no-mean", [layer.name], "values go from 0 to 255 into " + some([one.name for one in below]))


def _change(subject: Subject, node: Node) -> tuple[float, float]:
    """By what a layer that isn't learned multiplies its bottom, and what it adds before that, in the bottom's own scale
    (on the mean of the channels): 1 and 0 of layers that do nothing of the kind."""
    if node.type == "Power":
        config = node.param.power_param
        return float(config.scale), float(config.shift) / (float(config.scale) or 1.0)
    if node.type not in ("Bias", "Scale") or len(node.bottoms) > 1:
        return 1.0, 0.0
    known = [float(blob.detach().mean()) for blob in subject.net.params[node.name]]
    learned = [place >= len(node.param.param) or node.param.param[place].lr_mult != 0 for place in range(len(known))]
    factor = known[0] if node.type == "Scale" and not learned[0] else 1.0
    shift = known[-1] if not learned[-1] and (node.type == "Bias" or len(known) > 1) else 0.0
    return factor, shift / (factor or 1.0)


def _lowest(layer: Layer) -> float:
    """The smallest value of the next batch of a database, at whose place the layer stays; 0 where there is none."""
    if not isinstance(layer, Data) or find(layer.config.source, layer.base_dir) is None:
        return 0.0
    position = layer.get_position()
    try:
        lowest = float(layer()[0].min())
        layer.set_position(position)
    except DataError:
        return 0.0
    return lowest / float(layer.param.transform_param.scale or 1)


def _mean(layer: Layer) -> str:
    """The mean that a data layer takes off its images, in words; empty without one."""
    transform = layer.param.transform_param
    if isinstance(layer, (Data, ImageData, WindowData)) and transform.mean_file:
        return transform.mean_file
    values = _mean_values(layer)
    return ", ".join(f"{value:g}" for value in values) if any(values) else ""


def _mean_values(layer: Layer) -> list[float]:
    if isinstance(layer, (Data, ImageData, WindowData)):
        return list(layer.param.transform_param.mean_value)
    if isinstance(layer, ImageMaskLayer):
        one = layer.inputs[0].preprocessing
        return [] if one.mean is None or one.kind != "bgr" else [float(value) for value in one.mean.reshape(-1)[:3]]
    if isinstance(layer, PublishedLayer):
        mean = layer.options.get("mean", getattr(layer, "mean", None))
        return [float(value) for value in mean] if isinstance(mean, (list, tuple)) else [1.0] if mean else []
    return []


def _channel_means(layer: Layer) -> list[float]:
    """The mean of each channel that a data layer takes off, be it of a file."""
    transform = layer.param.transform_param
    if not isinstance(layer, (Data, ImageData, WindowData)) or not transform.mean_file:
        return _mean_values(layer)
    path = find(transform.mean_file, layer.base_dir)
    try:
        blob = None if path is None else read_blob(path)
    except WeightsError:
        return []
    if blob is None or blob.ndim < 3:
        return []
    return [float(value) for value in blob.reshape(blob.shape[-3], -1).mean(1)]


def _scale(layer: Layer) -> float:
    reads = isinstance(layer, (Data, ImageData, WindowData))
    return float(layer.param.transform_param.scale) if reads else 1.0


def _is_reversed(values: list[float]) -> bool:
    def off(order: tuple[float, ...]) -> float:
        return max(abs(have - want) for have, want in zip(values, order, strict=True))

    return off(_BGR[::-1]) < 5 and off(_BGR) > 5


def _is_colour(subject: Subject, node: Node, layer: Layer) -> bool:
    if isinstance(layer, ImageData):
        return bool(layer.config.is_color)
    shape = subject.sources.get(node.tops[0].name)
    return isinstance(layer, (Data, WindowData)) and shape is not None and len(shape) == 4 and shape[1] == 3


def _stored_order(layer: Data, mean: list[float]) -> Iterator[Finding]:
    """Databases whose images have the order RGB under a mean in the order BGR, as far as the images' own means tell."""
    if not mean[0] < mean[2] or find(layer.config.source, layer.base_dir) is None:
        return
    try:
        items = _items(layer)
    except DataError:
        return
    means = np.array([item.reshape(3, -1).mean(1) for item in items if item.shape[0] == 3])
    if len(means) < _FEWEST_IMAGES:
        return
    red_first = float((means[:, 0] > means[:, 2]).mean())
    first, last = float(means[:, 0].mean()), float(means[:, 2].mean())
    if red_first >= _MOST_ALIKE and first - last > _FARTHER:
        seen = f"channel 0 is brighter than channel 2 in {red_first:.2f} of {len(means)} images (means {first:.3g} and"
        yield found(
            "channel-order",
            [layer.name],
            f"{seen} {last:.3g}), where the mean says {mean[0]:g} and {mean[2]:g}",
            why="the images may be stored as red, green, blue, and what the weights take for blue is red",
            remedy="write the database in the order BGR (`fcnproto convert-imageset` does), or turn conv1's channels",
        )


def _items(layer: Data) -> list[np.ndarray]:
    """The first items of a database as they are stored (channels, height, width)."""
    twin = _plain_twin(layer)
    assert isinstance(twin, Data)
    twin.config.batch_size = 1
    try:
        twin.setup([])
        first = twin()[0][0].numpy()  # opens the database
        count = twin.records.count() if twin.records is not None else 1
        return [first, *(twin()[0][0].numpy() for _ in range(min(count, _LOOKED_AT) - 1))]
    finally:
        twin.close()


def _plain_twin(layer: Data | ImageData) -> SourceLayer:
    """The same layer without what it does to its images."""
    param = caffe_pb2.LayerParameter()
    param.CopyFrom(layer.param)
    param.ClearField("transform_param")
    twin = type(layer)(param)
    twin.base_dir = layer.base_dir
    return twin


# Whether the sources are there, and fit.


def _files(layer: Layer) -> Iterator[Finding]:
    config = layer.config if layer.config_field else None
    source = getattr(config, "source", "") if isinstance(layer, SourceLayer) else ""
    if isinstance(layer, PublishedLayer):
        yield from _published(layer)
        return
    if not source:
        return
    path = find(source, layer.base_dir)
    if path is None:
        yield found("missing-files", [layer.name], f"source {source!r} is not there", level="note")
    elif os.path.isfile(path):
        yield from _bom(layer, path)
        yield from _listed(layer, path)
    if isinstance(layer, (Data, ImageData)) and path is not None:
        yield from _crop(layer)


def _published(layer: PublishedLayer) -> Iterator[Finding]:
    try:
        path = layer.split_file()
    except DataError as error:
        yield found("missing-files", [layer.name], str(error).partition(": ")[2] or str(error), level="note")
        return
    if not os.path.isfile(path):
        yield found("missing-files", [layer.name], f"{path} is not there", level="note")
        return
    yield from _bom(layer, path)
    try:
        files = [file for id in layer.read_ids()[:_LISTED_FILES] for file in layer.paths(id)]
    except DataError as error:
        yield found("missing-files", [layer.name], str(error))
        return
    missing = [file for file in files if not os.path.exists(file)]
    if missing:  # all of them: the data set is elsewhere
        seen = f"{len(missing)} of {len(files)} files of {path} are missing, first {missing[0]}"
        yield found("missing-files", [layer.name], seen, level="note" if len(missing) == len(files) else "suspect")


def _bom(layer: Layer, path: str) -> Iterator[Finding]:
    with open(path, "rb") as file:
        if file.read(3) == b"\xef\xbb\xbf":
            yield found("list-bom", [layer.name], f"{path} begins with the bytes EF BB BF")


def _listed(layer: Layer, path: str) -> Iterator[Finding]:
    """Files that a list of images or of HDF5 files names, and that aren't there."""
    if not isinstance(layer, (ImageData, HDF5Data)):
        return
    try:
        if isinstance(layer, HDF5Data):
            names = read_list(path, "list of files").split()
        else:
            names = [layer.config.root_folder + name for name, _ in read_image_list(path)]
    except DataError as error:
        yield found("missing-files", [layer.name], str(error))
        return
    missing = [name for name in names[:_LISTED_FILES] if find(name, layer.base_dir) is None]
    if missing:
        seen = f"{len(missing)} of {len(names)} files of {path} are missing, first {missing[0]!r}"
        yield found("missing-files", [layer.name], seen)


def _crop(layer: Data | ImageData) -> Iterator[Finding]:
    crop = layer.param.transform_param.crop_size
    size = _item_size(layer) if crop else None
    if size is not None and min(size) < crop:
        yield found("crop-larger", [layer.name], f"crop_size {crop}, but the first image is {size[1]}x{size[0]}")


def _item_size(layer: Data | ImageData) -> tuple[int, int] | None:
    """(height, width) of the first item before it is cropped; None where it can't be read."""
    twin = _plain_twin(layer)
    try:
        twin.setup([])
        shape = twin.top_shapes([])[0]
    except DataError:
        return None
    finally:
        twin.close()
    return None if shape is None or not shape[2] or not shape[3] else (shape[2], shape[3])


def _databases(layers: list[Data | ImageData]) -> Iterator[Finding]:
    """Sources that are read together, but hold different numbers of items or items of different sizes."""
    known = []
    for layer in layers:
        path = find(layer.config.source, layer.base_dir)
        if path is None:
            continue
        try:
            known.append((layer, _length(layer, path), _item_size(layer)))
        except DataError:
            continue
    for (first, count, size), (second, other, size_there) in combinations(known, 2):
        names = [first.name, second.name]
        if count != other:
            yield found(
                "database-size", names, f"{first.config.source} has {count} items, {second.config.source} {other}"
            )
        elif size and size_there and size != size_there and min(size_there) > 1 and min(size) > 1:
            shown = [f"{width}x{height}" for height, width in (size, size_there)]
            yield found("database-size", names, f"the first items are {shown[0]} and {shown[1]}")


def _length(layer: Data | ImageData, path: str) -> int:
    if isinstance(layer, ImageData):
        return len(read_image_list(path))
    records = open_records(path, layer.config.backend)
    try:
        return records.count()
    finally:
        records.close()


def _unfed(subject: Subject) -> Iterator[Finding]:
    """Input layers in the net of a solver, which nobody fills unless a script does."""
    names = [node.name for node in subject.net.graph.nodes if node.type == "Input"]
    if names:
        yield found("unfed-input", names, f"{listed(names)}: Input in the phase TRAIN, where data come from layers")


def _void(nodes: dict[Node, Layer]) -> Iterator[Finding]:
    """Losses without ignore_label over labels of the published data sets, whose void is 255."""
    for node, layer in nodes.items():
        if node.type not in ("SoftmaxWithLoss", "InfogainLoss") or len(node.bottoms) < 2:
            continue
        source = nodes[unsplit(node.bottoms[1]).producer]
        if isinstance(source, PublishedLayer) and not isinstance(source, ImageMaskLayer):
            ignored = getattr(layer, "ignore_label", None)
            if ignored != _VOID:
                said = "no ignore_label" if ignored is None else f"ignore_label {ignored}"
                yield found(
                    "void-not-ignored", [node.name], f"{said}, and {source.name!r} gives {_VOID} where nothing is known"
                )
