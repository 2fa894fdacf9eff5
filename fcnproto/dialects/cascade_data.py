"""The sources of images, labels by place and objects that mscnn and cascade-rcnn train and test with.

They read lists and images of their authors' own layout, cut, scaled and labelled in ways of their own, which is not
done here: what their tops are is known, so that nets load and are sized, and their values are to be given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from fcnproto.layers.base import Shape
from fcnproto.layers.registry import register
from fcnproto.layers.source import PartialShape, SourceLayer

_COLOURS = 3
_LABELS = 6
"""Class, box (four numbers) and overlap of a place."""


class _Boxes(SourceLayer):
    """What the three share."""

    differences = "files are not read: its tops are to be given at the call."

    def setup(self, shapes: Sequence[Shape]) -> None:
        if self.config.batch_size < 1:
            self.fail("batch_size must be given and positive")

    def forward(self) -> tuple[Tensor, ...]:
        self.data_error(f"reads lists of its authors' own layout; give {', '.join(self.param.top)} at the call")

    def given(self, size: tuple[int | None, int | None], strides: Sequence[int], objects: int) -> list[PartialShape]:
        """Images of a size (height, width), labels of places so many pixels apart, and objects of so many numbers."""
        count = self.config.batch_size
        shapes: list[PartialShape] = [(count, _COLOURS, *size)]
        for stride in strides:
            height, width = (None if side is None else math.floor(side / stride + 0.5) for side in size)
            shapes.append((count, _LABELS, height, width))
        if objects:
            shapes.append((None, objects, 1, 1))
        if len(shapes) != self.num_tops:
            self.fail(f"gives {len(shapes)} tops by its settings, has {self.num_tops}")
        return shapes

    def size(self) -> tuple[int | None, int | None]:
        """Height and width of the images, as far as the settings say them."""
        config = self.config
        if config.crop_height and config.crop_width:
            return config.crop_height, config.crop_width
        if config.resize_height and config.resize_width:
            return config.resize_height, config.resize_width
        return None, None


@register("DetectionData")
class DetectionData(_Boxes):
    """cascade-rcnn's training images: tops data (N, 3, H, W), labels (N, 6, H / stride, W / stride) for each `stride`
    (see `fields.py`), and with `output_gt_boxes` objects (G, 8): image, x1, y1, x2, y2, class, ignored, difficult."""

    fork = "cascade-rcnn"
    config_field = "detection_data_param"
    also_reads = ("transform_param",)

    def size(self) -> tuple[int | None, int | None]:
        return (None, None) if self.config.template_ratio else super().size()

    def top_shapes(self, shapes: Sequence[Shape]) -> list[PartialShape]:
        return self.given(self.size(), self.config.stride, 8 if self.config.output_gt_boxes else 0)


@register("ImageGtData")
class ImageGtData(_Boxes):
    """mscnn's images: tops data (N, 3, H, W), labels (N, 6, H / rate, W / rate) for each `downsample_rate` (see
    `fields.py`), and with `output_gt_boxes` objects (G, 7): image, x1, y1, x2, y2, class, ignored."""

    fork = "mscnn"
    config_field = "image_gt_data_param"
    also_reads = ("transform_param",)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[PartialShape]:
        return self.given(self.size(), self.config.downsample_rate, 7 if self.config.output_gt_boxes else 0)


@register("EvalData")
class EvalData(_Boxes):
    """cascade-rcnn's images to test on: tops data (N, 3, H, W), objects (G, 8): image, x1, y1, x2, y2, class, ignored,
    difficult, and the images' height and width (N, 2). Sides are multiples of 32."""

    fork = "cascade-rcnn"
    config_field = "eval_data_param"
    also_reads = ("transform_param",)
    tops = (2, 3)

    def size(self) -> tuple[int | None, int | None]:
        config = self.config
        if not (config.resize_height and config.resize_width):
            return None, None
        height, width = (math.floor(side / 32 + 0.5) * 32 for side in (config.resize_height, config.resize_width))
        return height, width

    def top_shapes(self, shapes: Sequence[Shape]) -> list[PartialShape]:
        count = self.config.batch_size
        every: list[PartialShape] = [(count, _COLOURS, *self.size()), (None, 8, 1, 1), (count, 2, 1, 1)]
        return every[: self.num_tops]
