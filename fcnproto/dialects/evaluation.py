"""SSD's DetectionEvaluate: which detections hit an object."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fcnproto.dialects.boxes import area
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.files import named_file
from fcnproto.layers.registry import register
from fcnproto.schema import caffe_pb2

_Resize = caffe_pb2.ResizeParameter


def clip(boxes: Tensor, height: float = 1, width: float = 1) -> Tensor:
    """The parts of boxes (N, 4) within an image."""
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))


def project(boxes: Tensor, source: Sequence[float]) -> Tensor:
    """Boxes (N, 4) as fractions of the box `source`, clipped; those that don't meet it stay as they are."""
    xmin, ymin, xmax, ymax = source
    apart = (boxes[:, 0] >= xmax) | (boxes[:, 2] <= xmin) | (boxes[:, 1] >= ymax) | (boxes[:, 3] <= ymin)
    low, size = boxes.new_tensor([xmin, ymin] * 2), boxes.new_tensor([xmax - xmin, ymax - ymin] * 2)
    return torch.where(apart[:, None], boxes, clip((boxes - low) / size))


def to_image(boxes: Tensor, height: int, width: int, resize: caffe_pb2.ResizeParameter | None) -> tuple[Tensor, Tensor]:
    """Boxes (N, 4) in fractions of a net's input as pixels of the image it was made of, and their areas.

    `resize` is how the input was made; None for the image stretched. Areas count the last pixel, except those of boxes
    scaled by height_scale and width_scale (SSD's rule).
    """
    if (
        resize is not None
        and resize.resize_mode == _Resize.FIT_SMALL_SIZE
        and resize.height_scale
        and resize.width_scale
    ):
        scale = boxes.new_tensor([resize.width_scale, resize.height_scale] * 2)
        found = clip(boxes * scale, height, width)
        return found, area(found)
    if resize is not None and resize.resize_mode == _Resize.FIT_LARGE_SIZE_AND_PAD:
        aspect, sides = width / height, (resize.width, resize.height)
        if aspect > sides[0] / sides[1]:
            border = (sides[1] - sides[0] / aspect) / 2 / sides[1]
            boxes = project(boxes, (0, border, 1, 1 - border))
        else:
            border = (sides[0] - sides[1] * aspect) / 2 / sides[0]
            boxes = project(boxes, (border, 0, 1 - border, 1))
    found = clip(boxes) * boxes.new_tensor([width, height] * 2)
    return found, area(found, 1 if max(height, width) > 1 else 0)


def overlaps(a: Tensor, areas_a: Tensor, b: Tensor, areas_b: Tensor, one: float) -> Tensor:
    """Intersection over union of boxes (N, 4) and (M, 4), with SSD's rule that boxes apart from each other share a box
    from 0 to 0: nothing, or with `one` 1 a single pixel."""
    apart = (b[None, :, :2] > a[:, None, 2:]) | (b[None, :, 2:] < a[:, None, :2])
    extent = torch.minimum(a[:, None, 2:], b[None, :, 2:]) - torch.maximum(a[:, None, :2], b[None, :, :2])
    extent = extent.masked_fill(apart.any(2, keepdim=True), 0) + one
    shared = torch.where((extent > 0).all(2), extent.prod(2), 0)
    return torch.where(shared > 0, shared / (areas_a[:, None] + areas_b[None] - shared), 0)


@register("DetectionEvaluate")
class DetectionEvaluate(Layer):
    """Detections (1, 1, K, 7) and the truth (1, 1, G, 8) to rows image, label, score, right, wrong: a top (1, 1, R, 5).

    First a row -1, label, number of objects, -1, -1 for each class but the background. Then each image's detections by
    class: right 1 for the best one that overlaps an object by `overlap_threshold`, wrong 1 for others, both 0 on an
    object that is difficult where `evaluate_difficult_gt` is false. Where a `name_size_file` lists the images' sizes
    (lines name, height, width, in the order of the test data), boxes are compared in pixels. The solver makes the mean
    average precision of the rows (`eval_type: "detection"`).
    """

    fork = "SSD"
    kind = "loss"
    config_field = "detection_evaluate_param"
    bottoms = (2, 2)
    in_place = False
    force_backward_refuses = (0, 1)
    differences = "detections of equal score keep their order."

    def keeps_images_apart(self) -> bool:
        return False

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        if config.num_classes < 1:
            self.fail("num_classes is missing")
        if not config.overlap_threshold > 0:
            self.fail(f"overlap_threshold must be above 0, got {config.overlap_threshold:g}")
        if config.HasField("resize_param") and not (config.resize_param.height and config.resize_param.width):
            self.fail("resize_param needs a height and a width")
        self._check(shapes)
        self.classes = [c for c in range(config.num_classes) if c != config.background_label_id]
        self.image = 0
        self.sizes: list[tuple[int, int]] | None = None

    def _check(self, shapes: Sequence[Sequence[int]]) -> None:
        for shape, width, what in zip(shapes, (7, 8), ("detections", "truth"), strict=True):
            if len(shape) != 4 or tuple(shape[:2]) != (1, 1) or shape[3] != width:
                self.fail(f"needs {what} of shape (1, 1, rows, {width}), got {tuple(shape)}")

    def _read_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each image, from lines name, height, width."""
        path = named_file(self, self.config.name_size_file, "name_size_file")
        words = path.read_text(encoding="utf-8", errors="surrogateescape").split()
        numbers = [word for place, word in enumerate(words) if place % 3]
        if len(words) % 3 or not all(word.isdecimal() for word in numbers):
            self.fail(f"name_size_file {path}: expected lines of name, height, width")
        return [(int(h), int(w)) for h, w in zip(numbers[::2], numbers[1::2], strict=True)]

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(1, 1, len(self.classes) + shapes[0][2], 5)]

    @torch.no_grad()
    def forward(self, detections: Tensor, truth: Tensor) -> Tensor:
        self._check([detections.shape, truth.shape])
        if self.sizes is None:
            self.sizes = self._read_sizes() if self.config.HasField("name_size_file") else []
        found, objects = detections.detach().cpu()[0, 0], truth.detach().cpu()[0, 0]
        ended = (objects[:, 0].trunc() == -1).nonzero().flatten()
        objects = objects[: int(ended[0])] if len(ended) else objects
        background = self.config.background_label_id
        if bool((objects[:, 1].trunc() == background).any()):
            self.fail(f"the truth holds the background label, {background}")
        counted = objects[:, 1] if self.config.evaluate_difficult_gt else objects[objects[:, 7] == 0, 1]
        rows = [found.new_tensor([[-1, c, int((counted.trunc() == c).sum()), -1, -1]]) for c in self.classes]
        images = found[:, 0].trunc()
        shown = (images != -1) & (found[:, 1].trunc() != -1)
        if bool((found[shown, 1].trunc() == background).any()):
            self.fail(f"detections have the background label, {background}")
        for number in images[images != -1].unique().tolist():
            own = found[(images == number) & shown]
            for label in own[:, 1].trunc().unique().tolist():
                of_class = (objects[:, 0].trunc() == number) & (objects[:, 1].trunc() == label)
                rows.append(self._judge(own[own[:, 1].trunc() == label], objects[of_class]))
            if self.sizes:
                self.image = (self.image + 1) % len(self.sizes)
        # Rows for detections without an image stay zero.
        rows.append(found.new_zeros(int(((images == -1) & (found[:, 1] != -1)).sum()), 5))
        return torch.cat(rows)[None, None].to(detections.device)

    def _judge(self, found: Tensor, objects: Tensor) -> Tensor:
        """The rows (D, 5) of one image's detections (D, 7) of one class, whose objects are rows of 8."""
        result = torch.cat([found[:, :2].trunc(), found[:, 2:3], found.new_zeros(len(found), 2)], 1).to(found.dtype)
        if not len(objects):
            result[:, 4] = 1
            return result
        result = result[found[:, 2].argsort(descending=True, stable=True)]
        found = found[found[:, 2].argsort(descending=True, stable=True)]
        if self.sizes:
            height, width = self.sizes[self.image]
            resize = self.config.resize_param if self.config.HasField("resize_param") else None
            sides = (*to_image(found[:, 3:], height, width, resize), *to_image(objects[:, 3:7], height, width, resize))
        else:
            sides = (found[:, 3:], area(found[:, 3:]), objects[:, 3:7], area(objects[:, 3:7]))
        best, nearest = overlaps(*sides, one=1 if self.sizes else 0).max(1)
        taken: set[int] = set()
        for row, (overlap, target) in enumerate(zip(best.tolist(), nearest.tolist(), strict=True)):
            if overlap < self.config.overlap_threshold:
                result[row, 4] = 1
            elif self.config.evaluate_difficult_gt or not objects[target, 7]:
                result[row, 4 if target in taken else 3] = 1
                taken.add(target)
        return result
