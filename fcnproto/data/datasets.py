"""Segmentation data sets as torch Datasets, prepared for Caffe nets: BGR less the mean, labels shifted as published.

An item is a dict of tensors by what they hold: `data` (3, height, width) and `label` (1, height, width), both float32,
void 255; other data sets have further keys (`depth`, `hha`, `sem`, `geo`). With a batch size of 1, a DataLoader's
batches are a net's inputs: `net(**batch)`. The published sets are read by the code of the published data layers
(`published.py`), so both give the same numbers. `VOC`, `SBD`, `NYUD`, `SIFTFlow`, `PASCALContext`; `ImageFolder` is for
anybody's images and masks, `ImageFolders` for several of each.

Every item is checked: image and labels of one size, labels among the classes; a `DataError` names the file.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fcnproto.data import published
from fcnproto.data.mask_sources import ENDINGS, open_masks
from fcnproto.data.masks import Colour
from fcnproto.errors import DataError, UsageError
from fcnproto.image_files import find_images
from fcnproto.images import Picture, Preprocessing, as_image, to_blob
from fcnproto.schema import caffe_pb2

PathLike = str | os.PathLike[str]
Item = dict[str, Tensor]

VOID = 255
MEAN = (104.00699, 116.66877, 122.67892)
"""The published VOC nets' mean, BGR."""


class SegmentationDataset(Dataset[Item]):
    """What the data sets share: `ids` in the order of the split, and `classes`, the number of classes by label key."""

    ids: list[str]
    classes: dict[str, int]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Item:
        """The item's tensors by key. Raises `DataError` naming the file that is missing, damaged or doesn't fit."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        return self.load(self.ids[index])

    def load(self, id: str) -> Item:
        """The item of that id."""
        raise NotImplementedError

    def check(self, item: Mapping[str, np.ndarray], paths: Mapping[str, str]) -> None:
        """Raise `DataError` where sizes differ or a label is not among the classes; `paths` are the files by key."""
        first = next(iter(item))
        for key, values in item.items():
            if values.shape[-2:] != item[first].shape[-2:]:
                sizes = [f"{shape[-1]}x{shape[-2]}" for shape in (values.shape, item[first].shape)]
                raise DataError(
                    f"{paths[key]}: is {sizes[0]}, but {paths[first]} is {sizes[1]}; they must be of one size"
                )
            if key in self.classes:
                wrong = values[(values != VOID) & ((values < 0) | (values >= self.classes[key]))]
                if wrong.size:
                    allowed = f"0 to {self.classes[key] - 1}, or {VOID} for void"
                    raise DataError(f"{paths[key]}: has label {wrong.flat[0]:g}, expected {allowed}")


class PublishedDataset(SegmentationDataset):
    """A data set read by one of the published data layers."""

    layer: ClassVar[type[published.PublishedLayer]]
    keys: ClassVar[dict[str, str]] = {"color": "data", "label": "label"}
    """What the layer's kinds are called in an item."""
    counts: ClassVar[dict[str, int]]

    def __init__(self, **options: Any) -> None:
        keys = options.pop("keys", self.keys)
        module, name = self.layer.__module__.rpartition(".")[2], self.layer.__name__
        param = caffe_pb2.LayerParameter(name=name, type="Python", top=list(keys.values()))
        param.python_param.module, param.python_param.layer = module, name
        param.python_param.param_str = repr(options)
        self.kinds: dict[str, str] = dict(keys)
        self.classes = {key: count for key, count in self.counts.items() if key in self.kinds.values()}
        self._source = self.layer(param)
        self._source.setup([])
        try:
            self.ids = list(self._source.read_ids())
        except DataError as error:
            raise DataError(str(error).partition(": ")[2]) from None

    def load(self, id: str) -> Item:
        arrays = {key: self._source.load(kind, id) for kind, key in self.kinds.items()}
        self.check(arrays, {key: self._source.path(kind, id) for kind, key in self.kinds.items()})
        return {key: torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32)) for key, value in arrays.items()}


class VOC(PublishedDataset):
    """PASCAL VOC 2007 to 2012: `root` is a year's folder (VOC2012) or the one that holds VOC<year>; 21 classes."""

    layer = published.VOCSegDataLayer
    counts: ClassVar[dict[str, int]] = {"label": 21}
    years = range(2007, 2013)

    def __init__(self, root: PathLike, split: str, year: int = 2012, mean: Sequence[float] = MEAN) -> None:
        if year not in self.years:
            raise UsageError(f"VOC has segmentations of the years {self.years[0]} to {self.years[-1]}, not {year}")
        inside = os.path.join(os.fspath(root), f"VOC{year}")
        folder = inside if os.path.isdir(inside) else os.fspath(root)
        super().__init__(voc_dir=folder, split=split, mean=tuple(mean))


class SBD(PublishedDataset):
    """The Semantic Boundaries Dataset: `root` holds img, cls and the splits' lists; VOC's 21 classes."""

    layer = published.SBDDSegDataLayer
    counts: ClassVar[dict[str, int]] = {"label": 21}

    def __init__(self, root: PathLike, split: str, mean: Sequence[float] = MEAN) -> None:
        super().__init__(sbdd_dir=os.fspath(root), split=split, mean=tuple(mean))


class NYUD(PublishedDataset):
    """NYUDv2: what `tops` names of color, depth, hha and label, under these names; 40 classes.

    Depth is its logarithm less its mean, (1, height, width).
    """

    layer = published.NYUDSegDataLayer
    counts: ClassVar[dict[str, int]] = {"label": 40}

    def __init__(self, root: PathLike, split: str, tops: Sequence[str] = ("color", "label")) -> None:
        super().__init__(nyud_dir=os.fspath(root), split=split, tops=list(tops), keys={top: top for top in tops})


class SIFTFlow(PublishedDataset):
    """SIFT Flow: keys data, sem (33 classes) and geo (3)."""

    layer = published.SIFTFlowSegDataLayer
    keys: ClassVar[dict[str, str]] = {"color": "data", "semantic": "sem", "geometric": "geo"}
    counts: ClassVar[dict[str, int]] = {"sem": 33, "geo": 3}
    absent_in_test = (8, 10, 15)
    """Semantic classes (cow, desert, moon) that the test split lacks; published scores leave them out of the means."""

    def __init__(self, root: PathLike, split: str) -> None:
        super().__init__(siftflow_dir=os.fspath(root), split=split)


class PASCALContext(PublishedDataset):
    """PASCAL-Context, its 400 labels mapped to 59 and background; `voc` is the folder that holds VOC2010."""

    layer = published.PASCALContextSegDataLayer
    counts: ClassVar[dict[str, int]] = {"label": 60}

    def __init__(self, root: PathLike, voc: PathLike, split: str) -> None:
        super().__init__(context_dir=os.fspath(root), voc_dir=os.fspath(voc), split=split)


@dataclass(frozen=True)
class Images:
    """The images of one input: their folder (subfolders are looked into), and how they become the blob."""

    folder: PathLike
    preprocessing: Preprocessing


@dataclass(frozen=True)
class Masks:
    """The masks of one labelling, in a folder or a file (`mask_sources.open_masks`): pixels are 0 .. classes - 1, or
    255 where void; `colours` gives the label of each RGB colour where colours stand for classes (`masks.read_colours`);
    `binary`: values 0 and 255 are the labels 0 and 1; `names` are the classes', for files that name them."""

    folder: PathLike
    classes: int
    colours: Mapping[Colour, int] | None = None
    binary: bool = False
    names: tuple[str, ...] = ()


Scene = tuple[dict[str, Picture], dict[str, np.ndarray]]
"""The images and the masks (height, width) uint8 of an item, by key."""


class ImageFolders(SegmentationDataset):
    """Images and their masks in folders, whose files are called the same but for the suffixes (and "_mask").

    Args:
        images: one folder or several (colour and HHA) by key; the first one says which items there are.
        masks: one folder or several (two labellings) by key. Every image must have each.
        ids: the items' names (stems, with folders in between) where not all are wanted, in this order.
        augment: changes the images and masks each time they are read, before the mean is taken off.
    """

    def __init__(
        self,
        images: Mapping[str, Images],
        masks: Mapping[str, Masks],
        *,
        ids: Sequence[str] | None = None,
        augment: Callable[[Scene], Scene] | None = None,
    ) -> None:
        self.images, self.masks, self.augment = dict(images), dict(masks), augment
        self._files = {
            key: _without_masks(_by_name(one.folder, one.preprocessing.kind == "bands")) for key, one in images.items()
        }
        self.mask_sources = {
            key: open_masks(one.folder, one.names, one.colours, one.binary) for key, one in self.masks.items()
        }
        first = next(iter(self.images))
        found = self._files[first]
        for key, files in self._files.items():
            self._check_names(found, [name for name in found if name not in files], "image", self.images[key].folder)
        for key, source in self.mask_sources.items():
            missing = [name for name in found if source.path(name) is None]
            self._check_names(found, missing, "mask", self.masks[key].folder)
        for name in ids or ():
            if name not in found:
                raise DataError(f"{os.fspath(self.images[first].folder)}: no image called {name!r}")
        self.ids = list(found) if ids is None else list(ids)
        self.classes = {key: one.classes for key, one in self.masks.items()}

    @staticmethod
    def _check_names(found: Mapping[str, Path], missing: Sequence[str], what: str, place: PathLike) -> None:
        if missing:
            raise DataError(
                f"{found[missing[0]]}: has no {what} called {missing[0]!r} in {os.fspath(place)} "
                f"({len(missing)} of {len(found)} images have none)"
            )

    def paths(self, id: str) -> dict[str, Path]:
        """The files of an item by key."""
        masks = {key: source.path(id) or source.place for key, source in self.mask_sources.items()}
        return {key: files[id] for key, files in self._files.items()} | masks

    def scene(self, id: str) -> Scene:
        """The images (RGB; depth as in its file) and labels of an item as they are, checked."""
        paths = self.paths(id)
        images = {}
        for key, one in self.images.items():
            images[key] = as_image(paths[key], one.preprocessing.kind, one.preprocessing.bands)
        first = next(iter(images.values()))
        masks = {key: source.read(id, (first.height, first.width)) for key, source in self.mask_sources.items()}
        pixels = {key: np.empty((0, image.height, image.width)) for key, image in images.items()}
        self.check(pixels | masks, {key: str(path) for key, path in paths.items()})
        return images, masks

    def load(self, id: str) -> Item:
        images, masks = self.scene(id) if self.augment is None else self.augment(self.scene(id))
        item = {}
        for key, image in images.items():
            try:
                item[key] = torch.from_numpy(to_blob(image, self.images[key].preprocessing))
            except DataError as error:
                raise DataError(f"{self.paths(id)[key]}: {error}") from None
        return item | {key: torch.from_numpy(mask.astype(np.float32)[None]) for key, mask in masks.items()}


Augment = Callable[[Picture, np.ndarray], tuple[Picture, np.ndarray]]


class ImageFolder(ImageFolders):
    """`ImageFolders` of one colour image and one labelling: the keys are `data` and `label`.

    Args:
        images, masks, classes, colours, binary, names: as in `Images` and `Masks`.
        mean: BGR, taken off after the channels are turned.
        preprocessing: in place of `mean`, for images that become blobs in another way.
        ids, augment: as in `ImageFolders`; `augment` changes one image and its mask.
    """

    def __init__(
        self,
        images: PathLike,
        masks: PathLike,
        classes: int,
        *,
        colours: Mapping[Colour, int] | None = None,
        binary: bool = False,
        names: Sequence[str] = (),
        mean: Sequence[float] = MEAN,
        preprocessing: Preprocessing | None = None,
        ids: Sequence[str] | None = None,
        augment: Augment | None = None,
    ) -> None:
        how = preprocessing or Preprocessing("bgr", np.array(mean, dtype=np.float64))
        super().__init__(
            {"data": Images(images, how)},
            {"label": Masks(masks, classes, colours, binary, tuple(names))},
            ids=ids,
            augment=None if augment is None else functools.partial(_one_of_each, augment),
        )

    def read(self, id: str) -> tuple[Picture, np.ndarray]:
        """The image (RGB) and its labels (height, width) uint8 as they are, checked."""
        images, masks = self.scene(id)
        return images["data"], masks["label"]


def _one_of_each(augment: Augment, scene: Scene) -> Scene:
    image, mask = augment(scene[0]["data"], scene[1]["label"])
    return {"data": image}, {"label": mask}


def _without_masks(files: Mapping[str, Path]) -> dict[str, Path]:
    """The images of a folder without those that are masks of others in it: cat_mask.png beside cat.jpg."""
    masks = {name + ending for name in files for ending in ENDINGS}
    return {name: path for name, path in files.items() if name not in masks}


def _by_name(folder: PathLike, arrays: bool = False) -> dict[str, Path]:
    """The images of a folder (`arrays`: .npy files too) by their path in it without suffix, in order. `DataError` if
    there are none."""
    if not os.path.isdir(folder):
        raise DataError(f"{os.fspath(folder)}: no such folder")
    found: dict[str, Path] = {}
    for path, _ in find_images([folder], recursive=True, arrays=arrays):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise DataError(f"{path}: has the same name as {found[name]}; remove one of them")
        found[name] = path
    if not found:
        raise DataError(f"{os.fspath(folder)}: holds no images")
    return found
