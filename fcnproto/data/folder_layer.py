"""A data layer for anybody's images and masks, in the manner of the published ones.

`python_param { module: "fcnproto_layers" layer: "ImageMaskLayer" param_str: "{...}" }` with two tops, the image and the
labels, or with several of each. It comes with the package, so that nets that are fine-tuned here train from their
prototxt alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, get_args

import numpy as np

from fcnproto.data.augmentation import Augmentation, from_dict
from fcnproto.data.datasets import ImageFolders, Images, Masks
from fcnproto.data.paths import resolve
from fcnproto.data.published import PublishedLayer
from fcnproto.data.python_layer import register_python_layer
from fcnproto.errors import DataError, UsageError
from fcnproto.images import Kind, Preprocessing, to_blob
from fcnproto.layers.base import Shape
from fcnproto.layers.source import PartialShape

MODULE, LAYER = "fcnproto_layers", "ImageMaskLayer"


@register_python_layer(MODULE, LAYER)
class ImageMaskLayer(PublishedLayer):
    """One image of a folder a call, whole, with the mask of the same name; 255 is void.

    Options: `images` and `masks`, folders; `split`, a text file of the images' names without suffix; `classes`, their
    number; `mean` (BGR); `colours`, pairs of an RGB colour and its label where masks are colour-coded; `binary`, True
    where masks of 0 and 255 mean the labels 0 and 1; `names`, the classes' names where `masks` are annotation files
    (labelme, COCO, CVAT, VOC); `randomize` (False: in order) and `seed`; `augment`, a dict of
    what `Augmentation` takes.

    For several images or labellings `images` is a list of dicts with `folder`, `kind` ("bgr", "rgb", "grey", "depth",
    "bands"), `mean`, `scale` (a number, or one for each channel) and `bands` (their number), and `masks` one of dicts
    with `folder`, `classes`, `colours`, `binary` and `names`; tops are the images, then the labels.
    """

    required = ("images", "masks", "split")
    optional = ("classes", "mean", "scale", "randomize", "seed", "colours", "binary", "names", "augment")
    handles: ClassVar[tuple[str, ...]] = ("ids", "data")

    def __init__(self, param: Any, num_tops: int | None = None) -> None:
        super().__init__(param, num_tops)
        self.data: ImageFolders | None = None
        self.inputs: list[Images] = []
        self.labellings: list[Masks] = []
        self.augmentation = Augmentation()

    def _parse_options(self) -> dict[str, Any]:
        options = super()._parse_options()
        single = {
            "folder": options["images"],
            "kind": "bgr",
            "mean": options.get("mean"),
            "scale": options.get("scale", 1.0),
            "bands": 0,
        }
        task = {
            "folder": options["masks"],
            **{key: options.get(key) for key in ("classes", "colours", "binary", "names")},
        }
        if "mean" not in options and isinstance(options["images"], str):
            self.fail("param_str lacks 'mean'")
        self.inputs = [self._images(one) for one in self._dicts("images", options["images"], single)]
        self.labellings = [self._masks(one) for one in self._dicts("masks", options["masks"], task)]
        try:
            self.augmentation = from_dict(options.get("augment", {}))
        except UsageError as error:
            self.fail(str(error))
        return options

    def _dicts(self, name: str, value: Any, single: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The dicts of a list of them, or the one that a folder alone stands for."""
        if isinstance(value, str):
            return [single]
        dicts = value if isinstance(value, (list, tuple)) else ()
        for one in dicts:
            if not isinstance(one, dict) or not isinstance(one.get("folder"), str) or set(one) - set(single):
                self.fail(f"param_str: {name!r} has {one!r}, expected a dict with {', '.join(map(repr, single))}")
        if not dicts:
            self.fail(f"param_str: {name!r} must be a folder or a list of dicts, not {value!r}")
        return list(dicts)

    def _images(self, one: Mapping[str, Any]) -> Images:
        kind, mean = one.get("kind", "bgr"), one.get("mean")
        if kind not in get_args(Kind):
            self.fail(f"param_str: 'kind' must be one of {', '.join(get_args(Kind))}, not {kind!r}")
        bands, scale = one.get("bands", 0), one.get("scale", 1.0)
        if (kind == "bands") != bool(bands) or not isinstance(bands, int) or bands < 0:
            self.fail(f"param_str: 'bands' must be the number of bands where 'kind' is 'bands', not {bands!r}")
        channels = Preprocessing(kind, bands=bands).channels
        factors = scale if isinstance(scale, (list, tuple)) else [scale] * channels
        if len(factors) != channels or not all(isinstance(factor, (int, float)) for factor in factors):
            self.fail(f"param_str: 'scale' must be a number, or {channels} of them for {kind} images, not {scale!r}")
        if mean is not None and (not isinstance(mean, (list, tuple)) or len(mean) != channels):
            self.fail(f"param_str: 'mean' must be {channels} numbers for {kind} images, not {mean!r}")
        values = None if mean is None else np.array(mean, dtype=np.float64)
        scale = tuple(map(float, scale)) if isinstance(scale, (list, tuple)) else float(scale)
        return Images(one["folder"], Preprocessing(kind, values, scale, f"from layer {self.name!r}", bands))

    def _masks(self, one: Mapping[str, Any]) -> Masks:
        classes, colours = one.get("classes"), one.get("colours")
        if not isinstance(classes, int) or not 2 <= classes <= 255:
            self.fail(f"param_str: 'classes' must be a number from 2 to 255, not {classes!r}")
        table = None if colours is None else {tuple(colour): label for colour, label in colours}
        names = one.get("names") or ()
        if not isinstance(names, (list, tuple)) or (names and len(names) != classes):
            self.fail(f"param_str: 'names' must be {classes} names of classes, not {names!r}")
        return Masks(one["folder"], classes, table, bool(one.get("binary")), tuple(map(str, names)))

    def top_kinds(self) -> list[str]:
        return [one.preprocessing.kind for one in self.inputs] + ["label"] * len(self.labellings)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[PartialShape]:
        channels = [one.preprocessing.channels for one in self.inputs] + [1] * len(self.labellings)
        return [(1, count, None, None) for count in channels]

    def split_file(self) -> str:
        return resolve(self.options["split"], self.base_dir, "list of images (split)")

    def _draws(self) -> bool:
        return bool(self.options.get("randomize", False))

    def paths(self, id: str) -> list[str]:
        return list(map(str, self.image_folders().paths(id).values()))

    def load_all(self, id: str) -> list[np.ndarray]:
        folders = self.image_folders()
        scene, labels = folders.scene(id)
        images, masks = list(scene.values()), list(labels.values())
        if self.augmentation:
            images, masks = self.augmentation.apply_all(images, masks, self.random_numbers())
        blobs = []
        for image, key in zip(images, scene, strict=True):
            try:
                blobs.append(to_blob(image, folders.images[key].preprocessing))
            except DataError as error:
                raise DataError(f"{folders.paths(id)[key]}: {error}") from None
        return blobs + [mask[None] for mask in masks]

    def image_folders(self) -> ImageFolders:
        """The images and masks, by the tops' names."""
        if self.data is None:
            tops, count = list(self.param.top), len(self.inputs)
            images = {
                top: Images(self._resolved(one.folder), one.preprocessing)
                for top, one in zip(tops[:count], self.inputs, strict=True)
            }
            masks = {
                top: replace(one, folder=self._resolved(one.folder))
                for top, one in zip(tops[count:], self.labellings, strict=True)
            }
            self.data = ImageFolders(images, masks, ids=self.read_ids())
        return self.data

    def _resolved(self, folder: Any) -> str:
        try:
            return resolve(str(folder), self.base_dir, "folder of images")
        except DataError as error:
            self.data_error(str(error))
