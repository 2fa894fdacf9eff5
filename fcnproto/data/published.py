"""The data layers of the published FCN nets, known by the module and class names in their prototxts.

Each gives one image a call, whole and unscaled, with its labels. They are registered, so that the published train and
val nets load without importing anybody's code; files are opened at the first forward only. `param_str` is a Python
dict literal. Options of all: `split`, `randomize` (True), `seed` (None).
"""

from __future__ import annotations

import ast
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fcnproto.data.images import FAULTS, open_image
from fcnproto.data.matlab import load_variable
from fcnproto.data.paths import read_list, resolve
from fcnproto.data.python_layer import register_python_layer
from fcnproto.errors import DataError
from fcnproto.layers.base import Shape
from fcnproto.layers.source import (
    PartialShape,
    SourceLayer,
    fresh_seed,
    python_random_state,
    set_python_random_state,
    worker,
)

_CHANNELS = {"color": 3, "hha": 3, "depth": 1, "label": 1, "semantic": 1, "geometric": 1}


def literal_options(layer: SourceLayer) -> tuple[str, dict[str, Any]]:
    """A layer's `param_str`, a Python dict literal that is read and never run, after how errors begin that speak of it.

    Raises `LayerError` where it is anything else.
    """
    where = f"{layer.config.module}.{layer.config.layer}: param_str"
    try:
        options = ast.literal_eval(layer.config.param_str)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        options = None
    if not isinstance(options, dict):
        layer.fail(f"{where} is not a Python dict literal: {layer.config.param_str!r}")
    return where, options


class PublishedLayer(SourceLayer):
    """What the published layers share: options, the split's list of ids, and which comes next.

    With `randomize` and "train" somewhere in the split's name, ids are drawn with replacement by a generator of the
    layer's own, seeded with `seed` plus the worker's rank (the original shared Python's global one); else they come in
    order, wrapping around.
    """

    type: ClassVar[str] = "Python"  # type: ignore[assignment]
    config_field = "python_param"
    kinds: ClassVar[tuple[str, ...]] = ("color", "label")
    """What the tops hold, in order."""
    folders: ClassVar[tuple[str, ...]] = ()
    """Options that name folders and must be given."""
    required: ClassVar[tuple[str, ...]] = ("split",)
    """The other options that must be given."""
    optional: ClassVar[tuple[str, ...]] = ("randomize", "seed", "mean")
    handles: ClassVar[tuple[str, ...]] = ("ids",)

    def __init__(self, param: Any, num_tops: int | None = None) -> None:
        super().__init__(param, num_tops)
        self.options: dict[str, Any] = {}
        self.ids: list[str] | None = None
        self.index: int | None = None
        self.sampler: random.Random | None = None
        self.last: str | None = None

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.options = self._parse_options()
        kinds = self.top_kinds()
        if len(kinds) != self.num_tops:
            self.fail(f"has {self.num_tops} tops, expected {len(kinds)} ({', '.join(kinds)})")

    def _parse_options(self) -> dict[str, Any]:
        where, options = literal_options(self)
        missing = [name for name in (*self.folders, *self.required) if name not in options]
        if missing:
            self.fail(f"{where} lacks {', '.join(map(repr, missing))}")
        unread = sorted(map(repr, set(options) - {*self.folders, *self.required, *self.optional}))
        if unread:
            self.warn(f"{where}: {', '.join(unread)} has no effect on this layer")
        for name in (*self.folders, "split"):
            if not isinstance(options[name], str):
                self.fail(f"{where}: {name!r} must be a text, not {options[name]!r}")
        mean, seed = options.get("mean", 0), options.get("seed")
        if not _is_mean(mean):
            self.fail(f"{where}: 'mean' must be one number or three (BGR), not {mean!r}")
        if seed is not None and not isinstance(seed, int):
            self.fail(f"{where}: 'seed' must be a whole number, not {seed!r}")
        return options

    def top_kinds(self) -> list[str]:
        """What each top holds: keys of the table of channels."""
        return list(self.kinds)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[PartialShape]:
        return [(1, _CHANNELS[kind], None, None) for kind in self.top_kinds()]

    # What subclasses say.

    def split_file(self) -> str:
        """The path of the split's list of ids."""
        return os.path.join(self.folder(self.folders[0]), f"{self.options['split']}.txt")

    def path(self, kind: str, id: str) -> str:
        """The path of the file that a top of this kind comes from."""
        raise NotImplementedError

    def load(self, kind: str, id: str) -> np.ndarray:
        """What a top of this kind holds for an image: an array (channels, height, width)."""
        raise NotImplementedError

    def paths(self, id: str) -> list[str]:
        """The files that the tops come from for an image, in their order."""
        return [self.path(kind, id) for kind in self.top_kinds()]

    def load_all(self, id: str) -> list[np.ndarray]:
        """What the tops hold for an image, in their order."""
        return [self.load(kind, id) for kind in self.top_kinds()]

    # Running.

    def folder(self, option: str) -> str:
        """The path of the folder that an option names."""
        try:
            return resolve(self.options[option], self.base_dir, f"folder ({option})")
        except DataError as error:
            self.data_error(str(error))

    def read_ids(self) -> list[str]:
        """The ids of the split, read at the first call."""
        if self.ids is None:
            path = self.split_file()
            try:
                lines = read_list(path, "list of images").split("\n")
            except DataError as error:
                self.data_error(str(error))
            self.ids = [line.strip() for line in lines if line.strip()]
        if not self.ids:
            self.data_error(f"the list of images {self.split_file()} is empty")
        return self.ids

    def _draws(self) -> bool:
        return bool(self.options.get("randomize", True)) and "train" in self.options["split"]

    def random_numbers(self) -> random.Random:
        """The layer's random numbers, seeded at the first call."""
        if self.sampler is None:
            seed = self.options.get("seed")
            self.sampler = random.Random((fresh_seed() if seed is None else int(seed)) + worker()[0])
        return self.sampler

    def _draw(self, count: int) -> int:
        return self.random_numbers().randint(0, count - 1)

    def forward(self) -> tuple[Tensor, ...]:
        ids = self.read_ids()
        rank, workers = self.share()
        if self.index is None:
            self.index = self._draw(len(ids)) if self._draws() else rank
        id = ids[self.index % len(ids)]
        try:
            arrays = self.load_all(id)
        except DataError as error:
            self.data_error(f"image {id!r}: {error}")
        self.last = id
        for path, array in zip(self.paths(id), arrays, strict=True):
            if array.shape[-2:] != arrays[0].shape[-2:]:
                sizes = [f"{one.shape[-1]}x{one.shape[-2]}" for one in (array, arrays[0])]
                self.data_error(f"image {id!r}: {path} is {sizes[0]}, but {self.paths(id)[0]} is {sizes[1]}")
        self.index = self._draw(len(ids)) if self._draws() else (self.index + workers) % len(ids)
        return tuple(torch.from_numpy(np.ascontiguousarray(array[None], dtype=np.float32)) for array in arrays)

    def origin(self) -> str:
        return "" if self.last is None else f"image {self.last!r} ({', '.join(self.paths(self.last))})"

    def get_position(self) -> dict[str, Any]:
        sampler = None if self.sampler is None else python_random_state(self.sampler)
        return {"index": self.index, "sampler": sampler}

    def set_position(self, position: Mapping[str, Any]) -> None:
        if set(position) != {"index", "sampler"}:
            self.data_error(f"a position with {sorted(position)} is not this layer's; expected index and sampler")
        self.index, self.sampler = position["index"], None
        if position["sampler"] is not None:
            self.sampler = random.Random()
            set_python_random_state(self.sampler, position["sampler"])


def _is_mean(value: Any) -> bool:
    values = value if isinstance(value, (list, tuple)) else [value]
    return len(values) in (1, 3) and all(isinstance(one, (int, float)) for one in values)


def _open_image(path: str) -> Image.Image:
    image = open_image(path)
    try:
        image.load()
    except FAULTS as error:
        raise DataError(f"{path}: not a readable image ({error})") from error
    return image


def load_color(path: str, mean: Sequence[float], reverse: bool = True) -> np.ndarray:
    """(3, height, width): the image in 0..255, channels in the order BGR (RGB without `reverse`), minus `mean`."""
    image = np.array(_open_image(path).convert("RGB"), dtype=np.float32)
    image = image[:, :, ::-1] if reverse else image
    image -= np.asarray(mean, dtype=np.float64)
    return image.transpose(2, 0, 1)


def load_palette(path: str) -> np.ndarray:
    """(1, height, width): the indices of a palette (or grey) image, 0..255."""
    image = _open_image(path)
    if image.mode not in ("P", "L", "1"):
        raise DataError(f"{path}: a label image has palette indices, but this one's mode is {image.mode}")
    return np.array(image, dtype=np.uint8)[None]


def _minus_one(label: np.ndarray) -> np.ndarray:
    """uint8 labels with 0 (void) turned into 255 and the classes counted from 0."""
    shifted: np.ndarray = label.astype(np.uint8) - np.uint8(1)
    return shifted[None]


@register_python_layer("voc_layers", "SBDDSegDataLayer")
class SBDDSegDataLayer(PublishedLayer):
    """SBD: `<sbdd_dir>/<split>.txt`, `img/<id>.jpg`, `cls/<id>.mat` (GTcls.Segmentation; 0 background .. 20)."""

    folders = ("sbdd_dir",)
    required = ("split", "mean")

    def path(self, kind: str, id: str) -> str:
        folder = self.folder("sbdd_dir")
        return os.path.join(folder, *(("img", f"{id}.jpg") if kind == "color" else ("cls", f"{id}.mat")))

    def load(self, kind: str, id: str) -> np.ndarray:
        path = self.path(kind, id)
        if kind == "color":
            return load_color(path, self.options["mean"])
        return load_variable(path, "GTcls", "Segmentation").astype(np.uint8)[None]


@register_python_layer("voc_layers", "VOCSegDataLayer")
class VOCSegDataLayer(PublishedLayer):
    """PASCAL VOC as distributed, from `voc_dir`: ImageSets/Segmentation, JPEGImages, SegmentationClass (255 void)."""

    folders = ("voc_dir",)
    required = ("split", "mean")

    def split_file(self) -> str:
        folder = self.folder("voc_dir")
        return os.path.join(folder, "ImageSets", "Segmentation", f"{self.options['split']}.txt")

    def path(self, kind: str, id: str) -> str:
        name = ("JPEGImages", f"{id}.jpg") if kind == "color" else ("SegmentationClass", f"{id}.png")
        return os.path.join(self.folder("voc_dir"), *name)

    def load(self, kind: str, id: str) -> np.ndarray:
        path = self.path(kind, id)
        return load_color(path, self.options["mean"]) if kind == "color" else load_palette(path)


@register_python_layer("pascalcontext_layers", "PASCALContextSegDataLayer")
class PASCALContextSegDataLayer(PublishedLayer):
    """PASCAL-Context: images of `<voc_dir>/VOC2010`, labels `<context_dir>/trainval/<id>.mat` (LabelMap).

    Its some 400 labels are mapped to 60 classes: 0 background (all that is not among the 59), then the classes of
    `<context_dir>/59_labels.txt`, found by name in `<context_dir>/labels.txt`. Nothing is void.
    """

    folders = ("voc_dir", "context_dir")
    handles = ("ids", "classes")
    mean: ClassVar[tuple[float, ...]] = (104.007, 116.669, 122.679)
    renamed: ClassVar[dict[str, str]] = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}

    def __init__(self, param: Any, num_tops: int | None = None) -> None:
        super().__init__(param, num_tops)
        self.classes: np.ndarray | None = None

    def _voc(self) -> str:
        return os.path.join(self.folder("voc_dir"), "VOC2010")

    def split_file(self) -> str:
        return os.path.join(self._voc(), "ImageSets", "Main", f"{self.options['split']}.txt")

    def path(self, kind: str, id: str) -> str:
        if kind == "color":
            return os.path.join(self._voc(), "JPEGImages", f"{id}.jpg")
        return os.path.join(self.folder("context_dir"), "trainval", f"{id}.mat")

    def load(self, kind: str, id: str) -> np.ndarray:
        path = self.path(kind, id)
        if kind == "color":
            return load_color(path, self.options.get("mean", self.mean))
        label = load_variable(path, "LabelMap").astype(np.int64)
        if self.classes is None:
            self.classes = self._class_table(self.folder("context_dir"))
        inside = (label >= 0) & (label < len(self.classes))
        return np.where(inside, self.classes[np.where(inside, label, 0)], 0).astype(np.uint8)[None]

    def _class_table(self, folder: str) -> np.ndarray:
        """For each original label (from 1; 0 for none) its class."""
        names = self._label_names(os.path.join(folder, "labels.txt"))
        wanted = self._label_names(os.path.join(folder, "59_labels.txt"))
        table = np.zeros(len(names) + 1, dtype=np.uint8)
        for index, name in enumerate(wanted):
            name = self.renamed.get(name, name)
            if name not in names:
                raise DataError(f"{os.path.join(folder, 'labels.txt')}: has no label {name!r}")
            table[names.index(name) + 1] = index + 1
        return table

    @staticmethod
    def _label_names(path: str) -> list[str]:
        """The names in a file of lines "index: name", without blanks. A background entry (index 0) is left out."""
        pairs = [line.split(":", 1) for line in read_list(path, "list of labels").split("\n") if line.strip()]
        if any(len(pair) != 2 for pair in pairs):
            raise DataError(f"{path}: expected lines of the form 'index: name'")
        return [name.replace(" ", "").strip() for index, name in pairs if index.strip() != "0"]


@register_python_layer("siftflow_layers", "SIFTFlowSegDataLayer")
class SIFTFlowSegDataLayer(PublishedLayer):
    """SIFT Flow: 256x256 scenes with semantic (33) and geometric (3) classes, both 255 where void."""

    kinds = ("color", "semantic", "geometric")
    folders = ("siftflow_dir",)
    mean: ClassVar[tuple[float, ...]] = (114.578, 115.294, 108.353)
    scenes: ClassVar[str] = "spatial_envelope_256x256_static_8outdoorcategories"

    def path(self, kind: str, id: str) -> str:
        folder = {"color": "Images", "semantic": "SemanticLabels", "geometric": "GeoLabels"}[kind]
        suffix = "jpg" if kind == "color" else "mat"
        return os.path.join(self.folder("siftflow_dir"), folder, self.scenes, f"{id}.{suffix}")

    def load(self, kind: str, id: str) -> np.ndarray:
        path = self.path(kind, id)
        if kind == "color":
            return load_color(path, self.options.get("mean", self.mean))
        label = load_variable(path, "S")
        if kind == "geometric":
            label = np.where(label == -1, 0, label)
        return _minus_one(label)


@register_python_layer("nyud_layers", "NYUDSegDataLayer")
class NYUDSegDataLayer(PublishedLayer):
    """NYUDv2: what `tops` names of color, depth (its natural logarithm), hha and label (40 classes, 255 void)."""

    folders = ("nyud_dir",)
    required = ("split", "tops")
    mean: ClassVar[tuple[float, ...]] = (116.190, 97.203, 92.318)
    hha_mean: ClassVar[tuple[float, ...]] = (132.431, 94.076, 118.477)
    log_depth_mean: ClassVar[float] = 7.844

    def top_kinds(self) -> list[str]:
        tops = self.options["tops"]
        known = ("color", "depth", "hha", "label")
        if not isinstance(tops, (list, tuple)) or not tops or any(top not in known for top in tops):
            self.fail(f"param_str: 'tops' is {tops!r}, expected a list of {', '.join(known)}")
        return list(tops)

    def path(self, kind: str, id: str) -> str:
        folder = self.folder("nyud_dir")
        if kind == "label":
            return os.path.join(folder, "segmentation", f"img_{id}.mat")
        return os.path.join(folder, "data", {"color": "images"}.get(kind, kind), f"img_{id}.png")

    def load(self, kind: str, id: str) -> np.ndarray:
        path = self.path(kind, id)
        if kind == "label":
            return _minus_one(load_variable(path, "segmentation"))
        if kind == "color":
            return load_color(path, self.options.get("mean", self.mean))
        if kind == "hha":
            return load_color(path, self.hha_mean, reverse=False)
        depth = np.array(_open_image(path), dtype=np.float32)
        if depth.ndim != 2:
            raise DataError(f"{path}: a depth image has one channel, this one has shape {depth.shape}")
        if not (depth > 0).all():
            raise DataError(f"{path}: holds depths of 0, whose logarithm is minus infinity; fill the holes first")
        depth = np.log(depth)
        depth -= np.asarray(self.log_depth_mean, dtype=np.float64)
        return depth[None]
