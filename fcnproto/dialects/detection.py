"""SSD's layers that make boxes: PriorBox, in the forms of five forks, and DetectionOutput."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcnproto.dialects import boxes as box
from fcnproto.errors import LayerError
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.examples import Draw, positive
from fcnproto.layers.registry import register

Offset = tuple[float, float, float, float]

# FaceBoxes sets boxes of these sizes more densely: the steps to both sides in pixels.
_DENSE = {32: (-16, -8, 0, 8), 64: (-16, 0)}


def _single(value: float) -> float:
    """The float32 next to a number."""
    return float(np.float32(value))


@register("PriorBox")
class PriorBox(Layer):
    """The boxes that a detector starts from, one set at each position of bottom 0, in fractions of bottom 1's size: a
    top (1, 2, H * W * P * 4) with the boxes in its first channel and their variances in the second.

    SSD: for each `min_size` a square, one of sqrt(min * max) where there is a `max_size`, and for each other
    `aspect_ratio` a box of the same area; sizes are cut to whole numbers. By dialect: "faceboxes" repeats small boxes
    and takes a pixel off their size, "sstd" stretches one side, "textboxes" doubles every box half a step down (as
    `denser_prior_boxes` of "textboxes++" does).
    """

    fork = "SSD; FaceBoxes, SSTD, TextBoxes, TextBoxes++"
    kind = "data"
    config_field = "prior_box_param"
    bottoms = (2, 2)
    size_bottoms = (0, 1)
    in_place = False
    force_backward_refuses = (0, 1)

    def keeps_images_apart(self) -> bool:
        return False

    def withheld(self) -> str:
        unknown = [name for name in ("faceboxes", "box_width", "tf", "yx_order", "keras") if self._given(name)]
        which = f"{', '.join(unknown)} of Synopsys' PriorBox can't be computed here"
        return f"layer {self.name!r} ({self.type}): {which}" if unknown else ""

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        if self.withheld():
            raise LayerError(self.withheld())
        if any(len(shape) != 4 for shape in shapes):
            self.fail(f"needs maps (N, C, H, W), got {', '.join(str(tuple(shape)) for shape in shapes)}")
        if not config.min_size:
            self.fail("min_size is missing")
        if min(config.min_size) <= 0 or (config.max_size and min(config.max_size) <= 0):
            self.fail("sizes must be positive")
        if config.max_size and len(config.max_size) != len(config.min_size):
            self.fail(f"{len(config.max_size)} max_size for {len(config.min_size)} min_size; give one for each or none")
        if any(high <= low for low, high in zip(config.min_size, config.max_size, strict=False)):
            self.fail("each max_size must be above its min_size")
        if len(config.variance) not in (0, 1, 4) or (config.variance and min(config.variance) <= 0):
            self.fail(f"variance takes 1 or 4 positive values, got {list(config.variance)}")
        if config.HasField("img_size") and (config.HasField("img_h") or config.HasField("img_w")):
            self.fail("give either img_size or img_h and img_w")
        if config.HasField("step") and (config.HasField("step_h") or config.HasField("step_w")):
            self.fail("give either step or step_h and step_w")
        self.half_sizes = self._half_sizes()

    def _given(self, name: str) -> bool:
        value = getattr(self.config, name)
        return bool(len(value)) if name == "box_width" else bool(value)

    def ratios(self) -> list[float]:
        """The aspect ratios in order: 1, then each given one that is new, with `flip` its inverse behind it."""
        found = [1.0]
        for ratio in self.config.aspect_ratio:
            if any(abs(ratio - known) < 1e-6 for known in found):
                continue
            found.append(ratio)
            if self.config.flip and self.dialect != "sstd":
                found.append(_single(1 / ratio))
        return found

    def _half_sizes(self) -> list[tuple[float, float, float, float]]:
        """The boxes of one position: (shift right, shift down, half width, half height) in pixels."""
        config = self.config
        found: list[Offset] = []
        for index, size in enumerate(config.min_size):
            small = float(size) if self.dialect in ("sstd", "textboxes") else float(int(size))
            found += self._squares(small)
            if config.max_size:
                large = config.max_size[index] if self.dialect == "textboxes" else int(config.max_size[index])
                side = _single(math.sqrt(small * large))
                found.append((0, 0, side / 2, side / 2))
            others = [ratio for ratio in self.ratios() if abs(ratio - 1) >= 1e-6]
            if self.dialect == "sstd":
                found += [(0, 0, _single(small * ratio) / 2, small / 2) for ratio in others]
                found += [(0, 0, small / 2, _single(small * ratio) / 2) for ratio in others if config.flip]
                continue
            roots = [_single(math.sqrt(ratio)) for ratio in others]
            found += [(0, 0, _single(small * root) / 2, _single(small / root) / 2) for root in roots]
        return found

    def _squares(self, size: float) -> list[Offset]:
        if self.dialect != "faceboxes":
            return [(0, 0, size / 2, size / 2)]
        half, steps = (size - 1) / 2, _DENSE.get(int(size), (0,))
        return [(right, down, half, half) for down in steps for right in steps]

    @property
    def _doubled(self) -> bool:
        """Whether every box comes a second time, a half step further down."""
        return self.dialect == "textboxes" or bool(self.config.denser_prior_boxes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        count = len(self.half_sizes) * (2 if self._doubled else 1)
        return [(1, 2, shapes[0][2] * shapes[0][3] * count * 4)]

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        config = self.config
        height, width = x.shape[2:]
        image_height, image_width = config.img_size or config.img_h, config.img_size or config.img_w
        if not (image_height and image_width):
            image_height, image_width = image.shape[2:]
        step_down, step_right = config.step or config.step_h, config.step or config.step_w
        if not (step_down and step_right) or self.dialect == "textboxes":
            step_down, step_right = image_height / height, image_width / width
        options: dict[str, Any] = {"dtype": torch.float64, "device": x.device}
        shape = torch.tensor(self.half_sizes, **options)
        offset = 0.5 if self.dialect == "textboxes" else config.offset
        step_down, step_right = _single(step_down), _single(step_right)
        # SSD keeps centres and sizes in float32: of priors with the same overlap the last bit decides.
        down, right = (
            ((torch.arange(count, **options) + offset).float().double() * step).float().double()
            for count, step in ((height, step_down), (width, step_right))
        )
        second = ((torch.arange(height, **options) + 1) * step_down).float().double()
        rows = [down, second] if self._doubled else [down]
        placed = torch.stack([self._placed(row, right, shape) for row in rows], 3)
        scaled = placed / placed.new_tensor([image_width, image_height] * 2)
        clips = config.clip or (self.dialect == "textboxes" and not config.HasField("clip"))
        scaled = scaled.clamp(0, 1) if clips else scaled
        variances = list(config.variance) or [0.1]
        spread = scaled.new_tensor(variances * (4 // len(variances))).expand(scaled.shape)
        return torch.stack([scaled.flatten(), spread.flatten()]).unsqueeze(0).to(x.dtype)

    @staticmethod
    def _placed(down: Tensor, right: Tensor, shape: Tensor) -> Tensor:
        """Boxes (H, W, P, 4) in pixels for centres at `down` and `right`."""
        y = down.view(-1, 1, 1) + shape[:, 1]
        x = right.view(1, -1, 1) + shape[:, 0]
        y, x = torch.broadcast_tensors(y, x)
        return torch.stack([x - shape[:, 2], y - shape[:, 3], x + shape[:, 2], y + shape[:, 3]], 3)


@register("PriorBoxClustered")
class PriorBoxClustered(PriorBox):
    """The boxes that a detector starts from: of each `width` and `height` in pixels one at each position of bottom 0,
    in fractions of bottom 1's size: a top (1, 2, H * W * P * 4) with the boxes and their variances."""

    fork = "Intel (OpenVINO)"
    differences = "recorded from no fork; it agrees with OpenCV's."

    def withheld(self) -> str:
        return ""

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        if any(len(shape) != 4 for shape in shapes):
            self.fail(f"needs maps (N, C, H, W), got {', '.join(str(tuple(shape)) for shape in shapes)}")
        if not config.width or len(config.width) != len(config.height) or min(*config.width, *config.height) <= 0:
            self.fail("needs as many of width as of height, all positive")
        if len(config.variance) not in (0, 1, 4) or (config.variance and min(config.variance) <= 0):
            self.fail(f"variance takes 1 or 4 positive values, got {list(config.variance)}")
        self.half_sizes = [(0, 0, w / 2, h / 2) for w, h in zip(config.width, config.height, strict=True)]

    @property
    def _doubled(self) -> bool:
        return False


@register("DetectionOutput")
class DetectionOutput(Layer):
    """Predicted locations (N, P * L * 4), confidences (N, P * classes) and priors (1, 2, P * 4) as detections: a top
    (1, 1, K, 7) of rows image, label, score, xmin, ymin, xmax, ymax.

    For each image and class but the background: the boxes with a score above `confidence_threshold`, best first, at
    most `top_k`, suppressed; of all together the `keep_top_k` best, by label. Where nothing is found in any image, one
    row of -1 for each, with the image's number first. With bottoms 4 and 5 (RefineDet) these are the objectness and
    the first locations of the priors: the priors move first, and those of little objectness score 0. A fourth alone,
    with `visualize`, is the picture, which takes no part.

    TextBoxes++: `use_polygon` tells of 8 more values for each location, the corners of a quadrilateral, or (false) 5,
    two corners and the height of a turned rectangle; the rows have them behind the boxes, 15 or 12 values in all.
    Synopsys: 2 * `nbottom` + 1 bottoms are the confidences of each map, their locations, and the priors of all; with
    `no_permute` they are (N, classes, boxes of a place, H * W) and (N, boxes * L * 4, H, W), by box first.
    """

    fork = "SSD, RefineDet, TextBoxes++, Synopsys"
    kind = "other"
    config_field = "detection_output_param"
    bottoms = (3, None)
    in_place = False
    force_backward_refuses = (0, 1, 2, 3, 4)
    differences = (
        "files and pictures of detections are not made; a warning says so. Equal scores keep the order of priors."
    )

    def keeps_images_apart(self) -> bool:
        return False

    def withheld(self) -> str:
        config, count = self.config, len(self.param.bottom)
        others = [
            name for name in ("ratio_permute", "arm_conf_no_concat", "arm_loc_no_concat") if getattr(config, name)
        ]
        if others:
            return f"layer {self.name!r} ({self.type}): Synopsys' {', '.join(others)} can't be computed here"
        if self._outlined() and (config.code_type != box.CENTER_SIZE or config.variance_encoded_in_target):
            return (
                f"layer {self.name!r} ({self.type}): use_polygon goes with code_type CENTER_SIZE, without "
                "variance_encoded_in_target"
            )
        if count in (3, 5) or (count == 4 and config.visualize) or self._by_map(count):
            return ""
        return (
            f"layer {self.name!r} ({self.type}): takes 3 bottoms, 5 with the objectness and first locations of "
            f"RefineDet, or {2 * config.nbottom + 1} of {config.nbottom} maps (nbottom), got {count}"
        )

    def _outlined(self) -> bool:
        """Whether locations have outlines beside their boxes (TextBoxes++)."""
        return bool(self.config.HasField("use_polygon") or self.dialect == "textboxes++")

    def _by_map(self, count: int) -> bool:
        """Whether so many bottoms are those of single maps."""
        return self.config.nbottom > 2 and count == 2 * self.config.nbottom + 1

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        if self._by_map(len(self.param.bottom)):
            return positive if bottom < self.config.nbottom else None
        return positive if bottom in (1, 3) else None

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        if config.num_classes < 1:
            self.fail("num_classes is missing")
        if self.withheld():
            raise LayerError(self.withheld())
        self.more = 0 if not self._outlined() else 8 if config.use_polygon else 5
        if config.nms_param.nms_threshold < 0 or not 0 < config.nms_param.eta <= 1:
            self.fail("nms_threshold must not be negative, and eta must be above 0 and at most 1")
        self.warn_unread(("save_output_param", "visualize", "save_file"), "detections are only given as a blob")
        if config.share_location and config.background_label_id == -1:
            self.warn("background_label_id -1 with share_location: every class is an object (SSD's program ends here)")
        if self._by_map(len(shapes)):
            self._joined_shapes(shapes)
        else:
            self._count(shapes if len(shapes) != 4 else shapes[:3])

    def _joined_shapes(self, shapes: Sequence[Sequence[int]]) -> int:
        """The number of priors of bottoms by map, checked."""
        config, maps_count = self.config, self.config.nbottom
        locations = 1 if config.share_location else config.num_classes
        total = 0
        for scores, values in zip(shapes[:maps_count], shapes[maps_count : 2 * maps_count], strict=True):
            count = math.prod(values[1:]) // (4 * locations)
            total += count
            if math.prod(scores[1:]) != count * config.num_classes or scores[0] != values[0]:
                self.fail(
                    f"scores {tuple(scores)} and locations {tuple(values)} of a map are of other numbers of boxes"
                )
            boxes = values[1] // (4 * locations)
            wanted = (values[0], config.num_classes, boxes, math.prod(values[2:]))
            if config.no_permute and (len(values) != 4 or tuple(scores) != wanted):
                self.fail(f"no_permute: locations {tuple(values)} need scores {wanted}, got {tuple(scores)}")
        if shapes[-1][2] != 4 * total:
            self.fail(f"the maps have {total} boxes, the priors are {tuple(shapes[-1])}")
        return total

    def _joined(self, bottoms: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Locations, scores and priors of all maps."""
        config, maps_count = self.config, self.config.nbottom
        total = self._joined_shapes([bottom.shape for bottom in bottoms])
        scores, values, priors = bottoms[:maps_count], bottoms[maps_count:-1], bottoms[-1].reshape(2, total, 4)
        if not config.no_permute:
            return torch.cat([x.flatten(1) for x in values], 1), torch.cat([x.flatten(1) for x in scores], 1), priors
        found: list[list[Tensor]] = [[], [], []]
        begun = 0
        for score, value in zip(scores, values, strict=True):
            boxes, places = score.shape[2:]
            found[0].append(value.reshape(len(value), boxes, -1, places).transpose(2, 3).flatten(1))
            found[1].append(score.flatten(2).transpose(1, 2).flatten(1))
            own = priors[:, begun : begun + boxes * places].reshape(2, places, boxes, 4)
            found[2].append(own.transpose(1, 2).flatten(1, 2))
            begun += boxes * places
        return torch.cat(found[0], 1), torch.cat(found[1], 1), torch.cat(found[2], 1)

    def _count(self, shapes: Sequence[Sequence[int]]) -> int:
        """The number of priors, checked against all bottoms."""
        config, priors = self.config, shapes[2]
        locations = 1 if config.share_location else config.num_classes
        count = priors[-1] // 4 if len(priors) == 3 else math.prod(priors[2:]) // 4
        items = shapes[0][0]
        wanted = [items * count * locations * (4 + self.more), items * count * config.num_classes]
        wanted += [items * count * 2, items * count * 4][: len(shapes) - 3]
        others = [shapes[0], shapes[1], *shapes[3:]]
        for shape, values in zip(others, wanted, strict=True):
            if math.prod(shape) != values:
                self.fail(
                    f"{count} priors, {config.num_classes} classes and {locations} locations each don't go with "
                    f"bottoms of shapes {', '.join(str(tuple(s)) for s in shapes)}"
                )
        return count

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(1, 1, 1, 7 + self.more)]

    @torch.no_grad()
    def forward(self, locations: Tensor, confidences: Tensor, priors: Tensor, *first: Tensor) -> Tensor:
        config = self.config
        if self._by_map(3 + len(first)):
            locations, confidences, priors = self._joined([locations, confidences, priors, *first])
            priors = priors.reshape(1, 2, -1)
            first = ()
        first = first if len(first) == 2 else ()
        count = self._count([t.shape for t in (locations, confidences, priors, *first)])
        items = locations.shape[0]
        flat = priors.reshape(2, count, 4)
        anchors, variances = flat[0].unsqueeze(0), flat[1].unsqueeze(0)
        used = None if config.variance_encoded_in_target else variances
        scores = confidences.reshape(items, count, config.num_classes)
        if first:
            anchors = box.decode(config.code_type, anchors, used, first[1].reshape(items, count, 4))
            scores = scores * (first[0].reshape(items, count, 2)[..., 1:] >= config.objectness_score)
        values = locations.reshape(items, count, -1, 4 + self.more)
        used = None if used is None else used.unsqueeze(2)
        found = box.decode(config.code_type, anchors.unsqueeze(2), used, values[..., :4])
        if self.more and used is not None:
            found = torch.cat([found, box.outlines(anchors.unsqueeze(2), used, values[..., 4:])], -1)
        rows = [row for item in range(items) for row in self._detections(item, found[item], scores[item])]
        if not rows:
            empty = locations.new_full((items, 7 + self.more), -1)
            empty[:, 0] = torch.arange(items, device=empty.device)
            return empty.view(1, 1, items, -1)
        return torch.cat(rows).view(1, 1, -1, 7 + self.more)

    def _detections(self, item: int, found: Tensor, scores: Tensor) -> list[Tensor]:
        """The rows of one image; `found` are boxes (P, L, 4 and more), `scores` (P, classes)."""
        config = self.config
        labels, kept = [], []
        for number in range(config.num_classes):
            if number == config.background_label_id:
                continue
            chosen = self._class(found[..., :4][:, 0 if config.share_location else number], scores[:, number])
            labels.append(torch.full_like(chosen, number))
            kept.append(chosen)
        if not labels:
            return []
        label, index = torch.cat(labels), torch.cat(kept)
        best = scores[index, label]
        if -1 < config.keep_top_k < len(index):
            order = best.argsort(descending=True, stable=True)[: config.keep_top_k]
            order = order[label[order].argsort(stable=True)]
            label, index, best = label[order], index[order], best[order]
        boxes = found[index, 0 if config.share_location else label]
        image = torch.full_like(best, item)
        return [torch.cat([torch.stack([image, label.to(best.dtype), best], 1), boxes], 1)] if len(index) else []

    def _class(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """The indices of the boxes of one class that remain, best first."""
        config, nms = self.config, self.config.nms_param
        if config.HasField("confidence_threshold"):
            candidates = (scores > config.confidence_threshold).nonzero().flatten()
        else:
            candidates = torch.arange(len(scores), device=scores.device)
        order = candidates[scores[candidates].argsort(descending=True, stable=True)]
        if nms.HasField("top_k") and nms.top_k > -1:
            order = order[: nms.top_k]
        return order[box.suppress(boxes[order], nms.nms_threshold, nms.eta).to(order.device)]
