"""A data layer for anybody's images and masks, in the manner of the published ones.

`python_param { module: "fcnproto_layers" layer: "ImageMaskLayer" param_str: "{...}" }` with two tops, the image and the
labels. It comes with the package, so that nets that are fine-tuned here train from their prototxt alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from fcnproto.data.augmentation import Augmentation, from_dict
from fcnproto.data.datasets import ImageFolder
from fcnproto.data.paths import resolve
from fcnproto.data.published import PublishedLayer
from fcnproto.data.python_layer import register_python_layer
from fcnproto.errors import UsageError
from fcnproto.images import to_blob
from fcnproto.layers.base import Shape

MODULE, LAYER = "fcnproto_layers", "ImageMaskLayer"


@register_python_layer(MODULE, LAYER)
class ImageMaskLayer(PublishedLayer):
    """One image of a folder a call, whole, with the mask of the same name; 255 is void.

    Options: `images` and `masks`, folders; `split`, a text file of the images' names without suffix; `classes`, their
    number; `mean` (BGR); `colours`, pairs of an RGB colour and its label where masks are colour-coded; `randomize`
    (False: in order) and `seed`; `augment`, a dict of what `Augmentation` takes.
    """

    folders = ("images", "masks")
    required = ("split", "classes", "mean")
    optional = ("randomize", "seed", "colours", "augment")
    handles: ClassVar[tuple[str, ...]] = ("ids", "data")

    def __init__(self, param: Any, num_tops: int | None = None) -> None:
        super().__init__(param, num_tops)
        self.data: ImageFolder | None = None
        self.augmentation = Augmentation()

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        classes, mean = self.options["classes"], self.options["mean"]
        if not isinstance(classes, int) or not 2 <= classes <= 255:
            self.fail(f"param_str: 'classes' must be a number from 2 to 255, not {classes!r}")
        if not isinstance(mean, (list, tuple)) or len(mean) != 3:
            self.fail(f"param_str: 'mean' must be three numbers, not {mean!r}")
        try:
            self.augmentation = from_dict(self.options.get("augment", {}))
        except UsageError as error:
            self.fail(str(error))

    def split_file(self) -> str:
        return resolve(self.options["split"], self.base_dir, "list of images (split)")

    def _draws(self) -> bool:
        return bool(self.options.get("randomize", False))

    def path(self, kind: str, id: str) -> str:
        return str(self._folder().paths(id)[kind])

    def load_all(self, id: str) -> list[np.ndarray]:
        folder = self._folder()
        image, mask = folder.read(id)
        if self.augmentation:
            image, mask = self.augmentation.apply(image, mask, self.random_numbers())
        return [to_blob(image, folder.preprocessing), mask[None]]

    def _folder(self) -> ImageFolder:
        if self.data is None:
            colours = self.options.get("colours")
            self.data = ImageFolder(
                self.folder("images"),
                self.folder("masks"),
                self.options["classes"],
                colours=None if colours is None else {tuple(colour): label for colour, label in colours},
                mean=self.options["mean"],
                ids=self.read_ids(),
            )
        return self.data
