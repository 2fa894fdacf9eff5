"""YOLO: the detections of its second and third versions, and RegionLoss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fcnproto.dialects import boxes as box
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.dtypes import at_least_float32
from fcnproto.layers.examples import Array, Draw
from fcnproto.layers.loss import LossLayer
from fcnproto.layers.plain import Piece, Request, Unsayable
from fcnproto.layers.registry import register

COORDINATES = 5
"""x, y, w, h and how sure it is that an object is there, before the classes of an anchor."""


def by_anchor(x: Tensor, count: int) -> Tensor:
    """A map (N, count * L, H, W) as (N, H, W, count, L)."""
    items, _, height, width = x.shape
    return x.reshape(items, count, -1, height, width).permute(0, 3, 4, 1, 2)


def places(x: Tensor) -> Tensor:
    """Column and row of each place of (N, H, W, A, L): (H, W, 1, 2)."""
    options: dict[str, Any] = {"dtype": x.dtype, "device": x.device}
    row, column = torch.meshgrid(
        torch.arange(x.shape[1], **options), torch.arange(x.shape[2], **options), indexing="ij"
    )
    return torch.stack([column, row], 2).unsqueeze(2)


def corners(centre: Tensor, size: Tensor) -> Tensor:
    """xmin, ymin, xmax, ymax of boxes by centre and size."""
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def overlap_of(centre: Tensor, size: Tensor, other_centre: Tensor, other_size: Tensor) -> Tensor:
    """Intersection over union of boxes that broadcast with each other, 0 where they don't meet."""
    low = torch.maximum(centre - size / 2, other_centre - other_size / 2)
    high = torch.minimum(centre + size / 2, other_centre + other_size / 2)
    extent = (high - low).clamp(min=0)
    shared = extent[..., 0] * extent[..., 1]
    union = size[..., 0] * size[..., 1] + other_size[..., 0] * other_size[..., 1] - shared
    return torch.where(shared > 0, shared / union, 0)


def as_map(values: Tensor, x: Tensor) -> Tensor:
    """What `by_anchor` made of a map, as a map like `x` again."""
    return values.permute(0, 3, 4, 1, 2).reshape(x.shape)


def covered(centre: Tensor, size: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Which boxes (N, H, W, A) overlap one of the objects (N, T, 5) before the first with x of 0 by more than that."""
    counts = (labels[..., 1] != 0).cumprod(1)
    best = torch.zeros(centre.shape[:-1], dtype=centre.dtype, device=centre.device)
    for number in range(int(counts.sum(1).max()) if len(counts) else 0):  # one object of each image at a time
        truth = labels[:, number].view(-1, 1, 1, 1, 5)
        found = overlap_of(centre, size, truth[..., 1:3], truth[..., 3:5])
        best = torch.maximum(best, found * counts[:, number].view(-1, 1, 1, 1))
    return best > threshold


class _Detections(Layer):
    """What both layers share: candidates of all images, classes and scales are suppressed together; the top
    (1, 1, K, 7) has rows 0, label from 1 on, score, xmin, ymin, xmax, ymax in fractions of the image."""

    kind = "other"
    in_place = False

    def keeps_images_apart(self) -> bool:
        return False

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(1, 1, 1, 7)]

    def check_maps(self, shapes: Sequence[Sequence[int]], length: int) -> None:
        """`length` values for each of the boxes of a place."""
        channels = self.config.num_box * length
        if any(len(shape) != 4 or shape[0] != shapes[0][0] or shape[1] != channels for shape in shapes):
            self.fail(
                f"{self.config.num_box} boxes of {length} values need maps (N, {channels}, H, W), "
                f"got {', '.join(str(tuple(shape)) for shape in shapes)}"
            )

    def kept(self, boxes: Tensor, labels: Tensor, scores: Tensor, images: int) -> Tensor:
        """The top of candidates: boxes (M, 4), labels and scores (M,)."""
        order = scores.argsort(descending=True, stable=True)
        chosen = order[box.suppress(boxes[order], self.config.nms_threshold, strict=True).to(order.device)]
        if len(chosen):
            label = labels[chosen].to(boxes.dtype)
            rows = torch.cat([torch.stack([0 * label, label + 1, scores[chosen]], 1), boxes[chosen]], 1)
        else:
            rows = boxes.new_full((images, 7), -1)
            rows[:, 0] = torch.arange(images)
        return rows.view(1, 1, -1, 7)


@register("Yolov3DetectionOutput")
class Yolov3DetectionOutput(_Detections):
    """Detections of YOLOv3 from maps (N, num_box * (5 + classes), H, W) of one scale each, with the anchors `biases`
    that `mask` gives to each, in pixels of an image `anchors_scale` times as large as the map.

    A box is a candidate for each class that scores above `confidence_threshold`, its sigmoid times that of the object.
    Candidates of all classes, maps and images are suppressed together, best first, where they overlap a better one by
    `nms_threshold` or more. Rows image (always 0), label from 1 on, score, xmin, ymin, xmax, ymax, in fractions of the
    image; where there is none, one of -1 for each image, with its number first.

    With `gaussian_box` each of x, y, w, h has its uncertainty behind it, and the object's score is multiplied by 1 less
    their mean.
    """

    fork = "MobileNet-YOLO"
    config_field = "yolov3_detection_output_param"
    bottoms = (1, None)
    differences = (
        "with gaussian_box the object's and the classes' scores are read where the training layer has them (the fork "
        "reads each class's where the one before stands). Equal scores keep the order of places."
    )

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        if not config.HasField("num_classes") or config.num_classes < 1:
            self.fail("num_classes is missing")
        if len(shapes) != config.mask_group_num:
            self.fail(f"mask_group_num {config.mask_group_num} is not the number of bottoms, {len(shapes)}")
        if len(config.anchors_scale) < len(shapes):
            self.fail(f"give anchors_scale for each of the {len(shapes)} bottoms")
        group = len(config.mask) // config.mask_group_num
        self.masks = [list(config.mask[i * group : i * group + config.num_box]) for i in range(len(shapes))]
        if any(len(mask) < config.num_box for mask in self.masks):
            self.fail(f"{len(config.mask)} of mask are too few for {len(shapes)} maps of {config.num_box} boxes")
        if 2 * max(map(max, self.masks)) + 1 >= len(config.biases):
            self.fail(f"mask asks for anchor {max(map(max, self.masks))}; biases has {len(config.biases) // 2} anchors")
        self.check_maps(shapes, (9 if config.gaussian_box else COORDINATES) + config.num_classes)

    @torch.no_grad()
    def forward(self, *maps: Tensor) -> Tensor:
        config = self.config
        self.check_maps([x.shape for x in maps], (9 if config.gaussian_box else COORDINATES) + config.num_classes)
        biases = list(zip(config.biases[::2], config.biases[1::2], strict=False))
        boxes, labels, scores = [], [], []
        for x, mask, scale in zip(maps, self.masks, config.anchors_scale, strict=False):
            values = by_anchor(at_least_float32(x), config.num_box)
            extent = values.new_tensor([x.shape[3], x.shape[2]])
            anchors = values.new_tensor([biases[i] for i in mask])
            if config.gaussian_box:
                position, extents, rest = values[..., [0, 2]], values[..., [4, 6]], values[..., 8:].sigmoid()
                rest[..., 0] *= (4 - values[..., [1, 3, 5, 7]].sigmoid().sum(-1)) / 4
            else:
                position, extents, rest = values[..., :2], values[..., 2:4], values[..., 4:].sigmoid()
            score = rest[..., 1:] * rest[..., :1]
            at = (score > config.confidence_threshold).nonzero(as_tuple=True)
            centre = ((position.sigmoid() + places(values)) / extent)[at[:4]]
            size = (extents.exp() * anchors / (extent * scale))[at[:4]]
            boxes.append(corners(centre, size))
            labels.append(at[4])
            scores.append(score[at])
        return self.kept(torch.cat(boxes), torch.cat(labels), torch.cat(scores), maps[0].shape[0])


@register("YoloDetectionOutput")
class YoloDetectionOutput(_Detections):
    """Detections of YOLOv2 from one or two square maps (N, num_box * (5 + classes), S, S), with the anchors `biases` in
    places of the map.

    A box scores its best class's share of the softmax times the object's sigmoid and counts from `confidence_threshold`
    on; the rest is as for Yolov3DetectionOutput.
    """

    fork = "MobileNet-YOLO"
    config_field = "yolo_detection_output_param"
    bottoms = (1, 2)
    differences = "maps that are not square are refused (the fork reads them by their width alone)."

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        if not config.HasField("num_classes") or config.num_classes < 1:
            self.fail("num_classes is missing")
        if len(config.biases) < 2 * config.num_box:
            self.fail(f"{config.num_box} boxes need {2 * config.num_box} biases, got {len(config.biases)}")
        self.warn_unread(("label_map_file",), "labels are numbers")
        self.check_maps(shapes, COORDINATES + config.num_classes)

    def check_maps(self, shapes: Sequence[Sequence[int]], length: int) -> None:
        super().check_maps(shapes, length)
        for shape in shapes:
            if shape[2] != shape[3]:
                self.fail(f"takes square maps, got {tuple(shape)}")

    @torch.no_grad()
    def forward(self, *maps: Tensor) -> Tensor:
        config = self.config
        self.check_maps([x.shape for x in maps], COORDINATES + config.num_classes)
        boxes, labels, scores = [], [], []
        for x in maps:
            values = by_anchor(at_least_float32(x), config.num_box)
            anchors = values.new_tensor(list(config.biases)[: 2 * config.num_box]).view(-1, 2)
            best, label = values[..., COORDINATES:].softmax(-1).max(-1)
            score = best * values[..., 4].sigmoid()
            keep = score >= config.confidence_threshold
            centre = (values[..., :2].sigmoid() + places(values)) / x.shape[3]
            boxes.append(corners(centre[keep], (values[..., 2:4].exp() * anchors / x.shape[3])[keep]))
            labels.append(label[keep])
            scores.append(score[keep])
        return self.kept(torch.cat(boxes), torch.cat(labels), torch.cat(scores), maps[0].shape[0])


def objects(draw: Any, shape: Sequence[int]) -> Array:
    """Two objects for each image of labels (N, ..., T * 5), of class 0, and zeros behind them."""
    rows = draw.uniform(0, 0, (shape[0], -(-count_of(shape[1:]) // 5), 5))
    rows[:, :2, 1:] = draw.uniform(0.2, 0.6, rows[:, :2, 1:].shape)
    return rows.reshape(shape[0], -1)[:, : count_of(shape[1:])].reshape(tuple(shape))


def count_of(shape: Sequence[int]) -> int:
    """The number of values of a shape."""
    total = 1
    for extent in shape:
        total *= extent
    return total


@register("RegionLoss")
class RegionLoss(LossLayer):
    """YOLOv2's loss of a square map (N, num * (5 + classes), S, S) against labels (N, ..., T, 5) of objects: class, x,
    y, w, h in fractions of the image, those behind the first with x or w of 0 left out.

    Every box is to be none, but those that overlap an object by more than `thresh`; each object is to be found by
    the anchor of `biases` (in places of the map) that fits it best, at its place: by size with `bias_match`, else as
    predicted. darknet's differences d are made for x and y (through the sigmoid), w and h (as logarithms), the object
    (with `rescore` the overlap, else 1) and the classes (softmax), times the `_scale`s. The loss is the sum of d^2 over
    N, its gradient d over N. Where two objects have one box, the later counts.
    """

    fork = "MobileNet-YOLO"
    config_field = "region_loss_param"
    differences = "maps that are not square, and too few biases, are refused; the fork reads what is not there."

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return objects if bottom == 1 else None

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        config = self.config
        x, labels = shapes
        channels = config.num * (COORDINATES + config.num_class)
        if len(x) != 4 or x[1] != channels or x[2] != x[3]:
            self.fail(f"needs a square map (N, {channels}, S, S), got {tuple(x)}")
        if not labels or labels[0] != x[0] or count_of(labels[1:]) % 5:
            self.fail(f"needs labels (N, ..., T, 5), got {tuple(labels)}")
        if len(config.biases) < 2 * config.num:
            self.fail(f"{config.num} anchors need {2 * config.num} biases, got {len(config.biases)}")
        self.warn_unread(("softmax_tree", "class_map"), "the fork's loss doesn't use it")

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [()]

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        values = at_least_float32(x)
        with torch.no_grad():
            wanted = self.differences_of(values, at_least_float32(labels).reshape(x.shape[0], -1, 5))
        count = max(x.shape[0], 1)
        slope = (values * wanted).sum() / count
        return wanted.square().sum() / count + (slope - slope.detach())

    def plain(self, request: Request) -> Piece:
        raise Unsayable("it is a loss to train a detector with")

    def differences_of(self, x: Tensor, labels: Tensor) -> Tensor:
        """d in the map's shape."""
        config = self.config
        side = x.shape[3]
        values = by_anchor(x, config.num)
        anchors = values.new_tensor(list(config.biases)[: 2 * config.num]).view(-1, 2)
        centre = (values[..., :2].sigmoid() + places(values)) / side
        size = values[..., 2:4].exp() * anchors / side
        sure, classes = values[..., 4].sigmoid(), values[..., COORDINATES:].softmax(-1)
        result = torch.zeros_like(values)
        background = config.noobject_scale * sure * (1 - sure) * sure
        result[..., 4] = torch.where(covered(centre, size, labels, config.thresh), 0, background)
        image, which = ((labels[..., 3] != 0).cumprod(1) > 0).nonzero(as_tuple=True)
        if not len(image):
            return as_map(result, x)
        truth = labels[image, which]
        position, extent = truth[:, 1:3], truth[:, 3:5]
        column, row = (position * side).long().unbind(1)
        if bool(((row < 0) | (row >= side) | (column < 0) | (column >= side)).any()):
            self.fail("an object's centre lies outside of the image")
        found = anchors.expand(len(image), -1, -1) / side if config.bias_match else size[image, row, column]
        none = torch.zeros_like(found)
        anchor = overlap_of(none, found, none, extent.unsqueeze(1)).argmax(1)
        at = (image, row, column, anchor)
        overlap = overlap_of(centre[at], size[at], position, extent)
        scale = config.coord_scale * (1 if config.rescore else 2 - extent.prod(1, keepdim=True))
        place, inside = values[at], values[at][:, :2].sigmoid()
        target = position * side - torch.stack([column, row], 1)
        aim = overlap if config.rescore else torch.ones_like(overlap)
        onehot = (truth[:, :1].long() == torch.arange(config.num_class, device=x.device)).to(values.dtype)
        rows = torch.cat(
            [
                scale * (inside - target) * inside * (1 - inside),
                scale * (place[:, 2:4] - (extent * side / anchors[anchor]).log()),
                (config.object_scale * (sure[at] - aim) * sure[at] * (1 - sure[at])).unsqueeze(1),
                config.class_scale * (classes[at] - onehot),
            ],
            1,
        )
        last = _last_of_each(torch.stack(at, 1), result.shape[:4])
        result[tuple(index[last] for index in at)] = rows[last]
        return as_map(result, x)


def _last_of_each(at: Tensor, extents: Sequence[int]) -> Tensor:
    """Of rows of indices (M, 4), which are the last of their kind."""
    flat = torch.zeros(len(at), dtype=torch.int64, device=at.device)
    for index, extent in zip(at.unbind(1), extents, strict=True):
        flat = flat * extent + index
    number = torch.arange(len(at), device=at.device)
    last = torch.full((count_of(extents),), -1, dtype=torch.int64, device=at.device)
    last = last.scatter_reduce(0, flat, number, "amax")
    return last[flat] == number
