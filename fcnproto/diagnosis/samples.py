"""What is looked at of the data: images with their label maps, from folders or from the net's own data layers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fcnproto.checking.findings import Finding
from fcnproto.checking.kinds import found
from fcnproto.data.database import Data
from fcnproto.data.datasets import Masks
from fcnproto.data.folder_layer import ImageMaskLayer
from fcnproto.data.image_data import ImageData
from fcnproto.data.images import FAULTS, open_image
from fcnproto.data.mask_sources import ENDINGS, MaskSource, open_masks
from fcnproto.data.masks import read_mask
from fcnproto.data.paths import find
from fcnproto.data.published import PublishedLayer
from fcnproto.diagnosis.subject import Subject
from fcnproto.errors import DataError, GraphError, LayerError
from fcnproto.image_files import SUFFIXES, find_images
from fcnproto.images import read_image
from fcnproto.layers.source import SourceLayer
from fcnproto.net import Net
from fcnproto.net.roles import judged_blobs, score_blobs, unsplit

Array = np.ndarray

_MOST_FILES, _MOST_ITEMS = 500, 50
"""Images that are looked at: of folders, and of a net's own data layers."""
_BLACK = 16
"""No value of a nearly black image, of 255, is as large."""


@dataclass
class Sample:
    """One image with its labels: `pixels` (height, width, 3) uint8 where it is a picture, `labels` (height, width)
    int64, `faults` what can't be used of it, by code."""

    name: str
    pixels: Array | None = None
    labels: Array | None = None
    file: str | None = None
    faults: dict[str, str] = field(default_factory=dict)


@dataclass
class Labelling:
    """The samples of one label blob.

    Attributes:
        blob: the label blob.
        classes: the number of classes, None where nobody knows.
        ignored: the label that the loss leaves out; None without one.
        judged: whether the net has a loss for it.
        standard: whether the samples come from one of the published data sets, whose classes are known to be there.
        complete: whether all images were looked at.
        names: the classes' names, where they are known.
        again: whether another labelling has the same images.
    """

    blob: str
    where: str
    classes: int | None
    ignored: int | None = None
    judged: bool = False
    standard: bool = False
    complete: bool = True
    names: Sequence[str] = ()
    samples: list[Sample] = field(default_factory=list)
    layers: tuple[str, ...] = ()
    maps: bool = True
    again: bool = False

    def title(self, label: int) -> str:
        """A class for people."""
        return f"{self.names[label]!r} (label {label})" if label < len(self.names) else f"label {label}"


def labels_of(net: Net) -> dict[str, tuple[str, ...]]:
    """The blobs that masks may be given for, with the other names that each goes by: the labels that the net judges
    scores by, or its scores where it judges none."""
    judged = judged_blobs(net)
    if judged:
        return {label: tuple(score for score in judged if judged[score] == label) for label in judged.values()}
    try:
        return dict.fromkeys(score_blobs(net), ())
    except GraphError:
        return {"label": ()}


def of_folders(
    subject: Subject, blob: str, images: str, masks: str, names: Sequence[str], binary: bool
) -> tuple[Labelling, list[Finding]]:
    """The images of a folder with the masks of the same names for one of `labels_of`, and what is wrong with the
    folders."""
    score = next(iter(labels_of(subject.net).get(blob, ())), None)
    classes = len(names) or _channels(subject, score or blob)
    ignored = ignored_label(subject.net, blob) if score else None
    labelling = Labelling(blob, masks, classes, ignored, score is not None, names=names)
    source = open_masks(masks, names, binary=binary)
    pairs, findings = _pairs(images, source)
    labelling.complete = len(pairs) <= _MOST_FILES
    for name, image, mask in _some(pairs, _MOST_FILES):
        labelling.samples.append(read_sample(name, image, mask, Masks(masks, classes or 255, binary=binary), source))
    return labelling, findings


def _channels(subject: Subject, blob: str) -> int | None:
    shapes = {one.name: shape for one, shape in subject.shapes.items()}
    shape = shapes.get(blob, ())
    return shape[1] if len(shape) > 1 else None


def ignored_label(net: Net, label: str) -> int | None:
    """The value of a label blob that its loss leaves out; None without one."""
    for node, layer in zip(net.graph.nodes, net.layers, strict=True):
        if node.facts.is_loss and len(node.bottoms) > 1 and unsplit(node.bottoms[1]).name == label:
            ignored: int | None = getattr(layer, "ignore_label", None)
            return ignored
    return None


def _pairs(images: str, masks: MaskSource) -> tuple[list[tuple[str, str, str]], list[Finding]]:
    """(name, image, mask) of all images that have a mask, and a finding for those that have none."""
    found_images = {_key(path, images): str(path) for path in _files(images)}
    found_images = {name: path for name, path in found_images.items() if not _is_mask(name, found_images)}
    pairs = [(name, path, str(masks.path(name))) for name, path in found_images.items() if masks.path(name)]
    missing = [path for name, path in found_images.items() if not masks.path(name)]
    if not pairs:
        raise DataError(f"{masks.place}: has no mask for any image of {images}; masks are called as their images")
    if missing:
        seen = f"{len(missing)} of {len(found_images)} images have no mask, first {missing[0]}"
        return pairs, [found("missing-files", str(masks.place), seen, remedy="add the masks, or leave the images out")]
    return pairs, []


def _files(folder: str) -> list[Path]:
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: no such folder")
    files = [path for path, _ in find_images([folder], recursive=True)]
    if not files:
        raise DataError(f"{folder}: holds no images")
    return files


def _is_mask(name: str, others: Mapping[str, str]) -> bool:
    """Whether an image is the mask of another beside it: cat_mask.png of cat.jpg."""
    return any(name.removesuffix(ending) in others for ending in ENDINGS if name.endswith(ending))


def _key(path: Path, folder: str) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _some(items: Sequence[tuple[str, str, str]], most: int) -> Sequence[tuple[str, str, str]]:
    """So many of the items, evenly spread."""
    step = max(1, -(-len(items) // most))
    return items[::step]


def read_sample(name: str, image: str, mask: str, how: Masks, source: MaskSource) -> Sample:
    """An image and its mask (in the file `mask` of `source`) as they are; what can't be read or used is in `faults`."""
    sample = Sample(name, file=image)
    try:
        sample.pixels = np.asarray(read_image(image))
        if dark := _dark(image, sample.pixels):
            sample.faults["dark-images"] = dark
    except DataError as error:
        sample.faults["unreadable"] = str(error)
    try:
        if Path(mask).suffix.lower() in SUFFIXES:
            sample.labels = _labels(mask, how, sample)
        else:
            sample.labels = source.read(name, None if sample.pixels is None else sample.pixels.shape[:2])
    except DataError as error:
        sample.faults.setdefault("unreadable", str(error))
    if sample.pixels is not None and sample.labels is not None and sample.pixels.shape[:2] != sample.labels.shape:
        sizes = [f"{shape[1]}x{shape[0]}" for shape in (sample.pixels.shape, sample.labels.shape)]
        sample.faults["size-mismatch"] = f"{image} is {sizes[0]}, its mask {sizes[1]}"
    return sample


def _labels(mask: str, how: Masks, sample: Sample) -> Array | None:
    """A mask's labels; None (and a fault) where its colours stand for classes and no table says which."""
    if how.colours is not None or how.binary:
        return read_mask(mask, how.colours, how.binary).astype(np.int64)
    with open_image(mask) as image:
        try:
            values = np.asarray(image.convert("RGB") if image.mode in ("RGBA", "LA", "CMYK", "YCbCr") else image)
        except FAULTS as error:
            raise DataError(f"{mask}: not a readable image ({error})") from error
    if values.ndim == 3:
        if not (values == values[:, :, :1]).all():
            colours = len(np.unique(values.reshape(-1, values.shape[2]), axis=0))
            sample.faults["colour-masks"] = f"{mask} has {colours} colours"
            return None
        values = values[:, :, 0]
    return values.astype(np.int64)


def _dark(file: str, pixels: Array) -> str:
    """What is said of an image that is nearly black."""
    if pixels.max() >= _BLACK:
        return ""
    with open_image(file) as image:
        if image.mode.startswith("I"):
            top = int(np.asarray(image).max())
            return f"{file} has 16 bits, but no value above {top}; its upper eight bits go to {int(pixels.max())}"
    return ""


# The net's own data.


def own_labellings(subject: Subject, most: int = _MOST_FILES) -> Iterator[Labelling]:
    """What the net's own data layers give, as far as their sources are there, by label blob; of folders so many images
    at most."""
    for score, label in judged_blobs(subject.net).items():
        node = subject.net.graph.blob(label).producer
        layer = dict(zip(subject.net.graph.nodes, subject.net.layers, strict=True))[node]
        if not isinstance(layer, SourceLayer) or node.type == "Input" or node.facts.makes_data:
            continue
        labelling = Labelling(label, layer.name, _channels(subject, score), ignored_label(subject.net, label), True)
        labelling.layers = (layer.name,)
        try:
            if isinstance(layer, ImageMaskLayer):
                _of_folder_layer(layer, label, labelling, most)
            elif isinstance(layer, PublishedLayer):
                _of_published(layer, label, labelling)
            else:
                _of_batches(subject, layer, label, labelling)
        except (DataError, LayerError) as error:
            if not _is_missing(layer):
                labelling.samples.append(Sample(layer.name, faults={"unreadable": str(error)}))
        if labelling.samples:
            yield labelling


def _is_missing(layer: SourceLayer) -> bool:
    """Whether the source as a whole isn't there, which is said elsewhere."""
    try:
        if isinstance(layer, PublishedLayer):
            return not os.path.isfile(layer.split_file()) or not any(
                os.path.exists(path) for id in layer.read_ids()[:1] for path in layer.paths(id)
            )
        return find(getattr(layer.config, "source", ""), layer.base_dir) is None
    except DataError:
        return True


def _of_folder_layer(layer: ImageMaskLayer, label: str, labelling: Labelling, most: int) -> None:
    tops = list(layer.param.top)
    place, inputs = tops.index(label), len(layer.inputs)
    masks = layer.labellings[place - inputs]
    ids, source = layer.read_ids(), layer.image_folders().mask_sources[label]
    labelling.complete, labelling.where = len(ids) <= most, str(masks.folder)
    for id, _, _ in _some([(id, "", "") for id in ids], most):
        paths = layer.paths(id)
        labelling.samples.append(read_sample(id, paths[0], paths[place], masks, source))


def _of_published(layer: PublishedLayer, label: str, labelling: Labelling) -> None:
    labelling.standard, kind = True, layer.top_kinds()[list(layer.param.top).index(label)]
    ids = layer.read_ids()
    labelling.complete = len(ids) <= _MOST_ITEMS
    for id, _, _ in _some([(id, "", "") for id in ids], _MOST_ITEMS):
        if not all(os.path.exists(path) for path in layer.paths(id)):
            continue  # said elsewhere
        sample = Sample(id)
        labels = layer.load(kind, id)[0].astype(np.int64)
        sizes = [layer.load(one, id).shape[-2:] for one in layer.top_kinds()[:1]]
        sample.labels = labels
        if sizes[0] != labels.shape:
            shown = [f"{shape[1]}x{shape[0]}" for shape in (sizes[0], labels.shape)]
            sample.faults["size-mismatch"] = f"{id}: the image is {shown[0]}, its labels {shown[1]}"
        labelling.samples.append(sample)


def _of_batches(subject: Subject, layer: SourceLayer, label: str, labelling: Labelling) -> None:
    """Batches of Data, ImageData, HDF5Data and their like. The layer's position is put back."""
    position, seen = layer.get_position(), 0
    place = list(layer.param.top).index(label)
    labelling.complete = False
    count = _count(layer)
    try:
        while seen < min(_MOST_ITEMS, count or _MOST_ITEMS):
            batch = layer()[place].numpy()
            labelling.maps = batch.ndim >= 3 and batch[0].size > 1
            for row in batch:
                values = row.reshape(row.shape[-2:]) if labelling.maps else row.reshape(1, -1)
                labelling.samples.append(Sample(f"item {seen} of {layer.name!r}", labels=values.astype(np.int64)))
                seen += 1
        labelling.complete = count is not None and seen >= count
    finally:
        layer.set_position(position)


def _count(layer: SourceLayer) -> int | None:
    """How many items a source has, where that is quickly known."""
    if isinstance(layer, Data):
        layer()
        return layer.records.count() if layer.records is not None else None
    if isinstance(layer, ImageData):
        layer()
        return len(layer.entries) if layer.entries is not None else None
    return None


def value_counts(samples: Sequence[Sample]) -> dict[int, int]:
    """How many pixels have each label."""
    counts: dict[int, int] = {}
    for sample in samples:
        if sample.labels is not None:
            values, numbers = np.unique(sample.labels, return_counts=True)
            for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
                counts[value] = counts.get(value, 0) + number
    return counts


def first_with(samples: Sequence[Sample], value: int) -> str:
    """The first sample in which a label occurs."""
    return next((one.name for one in samples if one.labels is not None and (one.labels == value).any()), "")
