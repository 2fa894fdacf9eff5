"""Data layers that draw what they give: scenes with labels, and single objects, from `fcnproto.scenes.scenes`.

`python_param { module: "fcnproto_layers" layer: "DrawnSceneLayer" param_str: "{'seed': 1, 'batch': 8}" }`. They come
with the package, so that the nets that are trained on drawn images train from their prototxt alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fcnproto.data.folder_layer import MODULE
from fcnproto.data.published import literal_options
from fcnproto.data.python_layer import register_python_layer
from fcnproto.layers.base import Shape
from fcnproto.layers.source import PartialShape, SourceLayer
from fcnproto.scenes.scenes import OBJECT_SIZE, SIZE, DrawnObject, Scene, draw_object, draw_scene

Drawing = Scene | DrawnObject

_FIRST_OPTIONS: dict[str, Any] = {
    "seed": None,
    "batch": None,
    "count": 0,
    "fresh": 0,
    "memory": 1000,
    "mean": (112.0, 112.0, 112.0),
    "size": 0,
}
_SHIFT = 24


class _DrawnLayer(SourceLayer):
    """What both layers share. Tops: images (batch, 3, height, width), BGR in 0..255 minus `mean`, and labels.

    Options: `seed` and `batch` (both needed); `count`, the number of images to go round in order, 0 for ever new ones;
    `fresh`, how many of a batch are newly drawn (0: all), the rest being variations (`vary`) of the latest `memory`
    images; `mean`; `size`, the side of an image, 0 for the usual. A batch depends on the options and the number of
    batches before it alone, so that a resumed training sees what it would have seen.
    """

    type: ClassVar[str] = "Python"  # type: ignore[assignment]
    config_field = "python_param"
    tops = (2, 2)
    position_fields = ("step",)
    handles: ClassVar[tuple[str, ...]] = ("recent",)
    usual_size: ClassVar[int] = 0

    def __init__(self, param: Any, num_tops: int | None = None) -> None:
        super().__init__(param, num_tops)
        self.options = dict(_FIRST_OPTIONS)
        self.step = 0
        self.recent: dict[int, Drawing] | None = None

    def setup(self, shapes: Sequence[Shape]) -> None:
        _, given = literal_options(self)
        unknown = sorted(map(repr, set(given) - set(_FIRST_OPTIONS)))
        if unknown:
            self.fail(f"param_str: {', '.join(unknown)} is unknown; there are {', '.join(_FIRST_OPTIONS)}")
        self.options = _FIRST_OPTIONS | given
        for name, least in (("seed", 0), ("batch", 1), ("count", 0), ("fresh", 0), ("memory", 1), ("size", 0)):
            value = self.options[name]
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                self.fail(f"param_str: {name!r} must be a whole number of {least} or more, not {value!r}")
        mean = self.options["mean"]
        if not isinstance(mean, (list, tuple)) or len(mean) != 3:
            self.fail(f"param_str: 'mean' must be three numbers (BGR), not {mean!r}")

    @property
    def size(self) -> int:
        """The side of an image."""
        size: int = self.options["size"] or self.usual_size
        return size

    def forward(self) -> tuple[Tensor, ...]:
        drawings = self.in_order() if self.options["count"] else self.endless()
        self.step += 1
        mean = np.asarray(self.options["mean"], np.float32)
        images = np.stack([drawing.image[:, :, ::-1].astype(np.float32) - mean for drawing in drawings])
        labels = np.stack([np.asarray(drawing.label, np.float32) for drawing in drawings])
        return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))), torch.from_numpy(labels[:, None])

    def draw(self, index: int) -> Drawing:
        """Image `index` of the seed's series."""
        raise NotImplementedError

    def in_order(self) -> list[Drawing]:
        """The next batch of a series of `count` images, wrapping around."""
        rank, workers = self.share()
        first = self.step * self.options["batch"]
        return [
            self.draw(((first + item) * workers + rank) % self.options["count"])
            for item in range(self.options["batch"])
        ]

    def endless(self) -> list[Drawing]:
        """The next batch of new images and variations of recent ones."""
        rank, workers = self.share()
        batch, memory = self.options["batch"], self.options["memory"]
        fresh = min(self.options["fresh"] or batch, batch)
        after = fresh * (self.step + 1)
        wanted = range(max(0, after - memory), after) if fresh < batch else range(after - fresh, after)
        kept = self.recent or {}
        self.recent = {index: kept.get(index) or self.draw(index * workers + rank) for index in wanted}
        drawings = [self.recent[index] for index in range(after - fresh, after)]
        rng = np.random.default_rng((self.options["seed"], self.step, rank))
        for _ in range(batch - fresh):
            drawings.append(vary(rng, self.recent[int(rng.integers(wanted.start, wanted.stop))]))
        return drawings


@register_python_layer(MODULE, "DrawnSceneLayer")
class DrawnSceneLayer(_DrawnLayer):
    """Drawn scenes: images (batch, 3, 256, 256), label maps (batch, 1, 256, 256). Options: see `_DrawnLayer`."""

    usual_size = SIZE

    def top_shapes(self, shapes: Sequence[Shape]) -> list[PartialShape]:
        batch = self.options["batch"]
        return [(batch, 3, self.size, self.size), (batch, 1, self.size, self.size)]

    def draw(self, index: int) -> Scene:
        return draw_scene((self.options["seed"], index), self.size)


@register_python_layer(MODULE, "DrawnObjectLayer")
class DrawnObjectLayer(_DrawnLayer):
    """Single drawn objects: images (batch, 3, 224, 224) and labels (batch, 1). Options: see `_DrawnLayer`."""

    usual_size = OBJECT_SIZE

    def top_shapes(self, shapes: Sequence[Shape]) -> list[PartialShape]:
        batch = self.options["batch"]
        return [(batch, 3, self.size, self.size), (batch, 1)]

    def draw(self, index: int) -> DrawnObject:
        return draw_object((self.options["seed"], index), self.size)


def vary(rng: np.random.Generator, drawing: Drawing) -> Drawing:
    """The drawing mirrored or not, shifted, its colour channels swapped, brighter or darker by channel."""
    mirrored = rng.random() < 0.5
    offset = rng.integers(0, 2 * _SHIFT + 1, 2)

    def move(array: np.ndarray) -> np.ndarray:
        height, width = array.shape[:2]
        padded = np.pad(array, ((_SHIFT, _SHIFT), (_SHIFT, _SHIFT), *((0, 0),) * (array.ndim - 2)), mode="reflect")
        moved: np.ndarray = padded[offset[0] : offset[0] + height, offset[1] : offset[1] + width]
        return moved[:, ::-1] if mirrored else moved

    gain = rng.uniform(0.75, 1.25, 3).astype(np.float32)
    shift = rng.uniform(-20, 20, 3).astype(np.float32)
    coloured = move(drawing.image)[:, :, rng.permutation(3)] * gain + shift
    image = np.clip(coloured, 0, 255).astype(np.uint8)
    if isinstance(drawing, DrawnObject):
        return DrawnObject(image, drawing.label)
    return Scene(image, move(drawing.label))
