"""YOLO's third version in training: the loss Yolov3."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fcnproto.dialects.yolo import COORDINATES, as_map, by_anchor, count_of, covered, objects, overlap_of, places
from fcnproto.layers.base import Shape
from fcnproto.layers.dtypes import at_least_float32
from fcnproto.layers.examples import Draw
from fcnproto.layers.loss import LossLayer
from fcnproto.layers.plain import Piece, Request, Unsayable
from fcnproto.layers.registry import register
from fcnproto.schema import caffe_pb2


@register("Yolov3")
class Yolov3(LossLayer):
    """YOLOv3's loss of a map (N, num * (5 + classes), H, W) against labels (N, ..., T, 5) of objects: class, x, y, w, h
    in fractions of the image, those behind the first with x or w of 0 left out. The map's `num` boxes have the anchors
    of `biases`, in pixels of an image `anchors_scale` times as large as the map, that `mask` names.

    Every box is to be none, but those that overlap an object by more than `thresh`. Each object is to be found at its
    place by the anchor that fits its size best, if that is the map's, and by others of the map that it overlaps by more
    than `iou_thresh`; of several objects for one box the last counts, of their classes all. The differences d are those
    of x and y (sigmoids), w and h (logarithms, times `coord_scale` * (2 - w * h)), the object, and the classes, whose
    aims are `label_smooth_eps` / 2 off 0 and 1, times `class_scale`. The loss is the sum of d^2 over N, its gradient d
    over N; `use_logic_gradient` multiplies d by the sigmoid's slope there, and the object's by `object_scale`.
    """

    fork = "MobileNet-YOLO"
    config_field = "yolov3_param"
    differences = (
        "a layer with another iou_loss than MSE holds its place. The anchor that was taken is told from those still to "
        "be tried by its number in the mask, as in the fork."
    )

    def withheld(self) -> str:
        if self.config.iou_loss == caffe_pb2.Yolov3Parameter.MSE:
            return ""
        name = caffe_pb2.Yolov3Parameter.IOU_LOSS.Name(self.config.iou_loss)
        return f"layer {self.name!r} (Yolov3): iou_loss {name} can't be computed here, only MSE"

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return objects if bottom == 1 else None

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        config = self.config
        x, labels = shapes
        channels = config.num * (COORDINATES + config.num_class)
        if len(x) != 4 or x[1] != channels:
            self.fail(f"needs a map (N, {channels}, H, W), got {tuple(x)}")
        if not labels or labels[0] != x[0] or count_of(labels[1:]) % 5:
            self.fail(f"needs labels (N, ..., T, 5), got {tuple(labels)}")
        self.mask = list(config.mask)[: config.num]
        if len(self.mask) < config.num or 2 * max(self.mask) + 1 >= len(config.biases):
            self.fail(f"needs a mask of {config.num} numbers of anchors, of which biases has {len(config.biases) // 2}")
        self.warn_unread(("side", "noobject_scale"), "the fork's loss doesn't use it")

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [()]

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        values = at_least_float32(x)
        count = max(x.shape[0], 1)
        with torch.no_grad():
            by_box = by_anchor(values, self.config.num)
            wanted = self.differences_of(by_box, at_least_float32(labels).reshape(x.shape[0], -1, 5))
            steps = wanted
            if self.config.use_logic_gradient:
                share = by_box.sigmoid()
                slope = share * (1 - share)
                slope[..., 2:4] = 1
                steps = wanted * slope
        passed = (values * as_map(steps, x)).sum() / count
        return wanted.square().sum() / count + (passed - passed.detach())

    def plain(self, request: Request) -> Piece:
        raise Unsayable("it is a loss to train a detector with")

    def differences_of(self, values: Tensor, labels: Tensor) -> Tensor:
        """d of the boxes (N, H, W, num, 5 + classes)."""
        config = self.config
        shares = values.sigmoid()
        grid = values.new_tensor([values.shape[2], values.shape[1]])
        sizes = values.new_tensor(list(config.biases)[: len(config.biases) // 2 * 2]).view(-1, 2)
        sizes = sizes / (grid * config.anchors_scale)
        centre = (shares[..., :2] + places(values)) / grid
        extent = values[..., 2:4].exp() * sizes[self.mask]
        result = torch.zeros_like(values)
        result[..., 4] = torch.where(covered(centre, extent, labels, config.thresh), 0, shares[..., 4])
        image, which = ((labels[..., 3] != 0).cumprod(1) > 0).nonzero(as_tuple=True)
        truth = labels[image, which]
        at = (truth[:, 1:3] * grid).long()
        if bool(((at < 0) | (at >= grid)).any()):
            self.fail("an object's centre lies outside of the image")
        none = torch.zeros_like(sizes)
        fits = overlap_of(none, sizes, none[:1], truth[:, 3:5].unsqueeze(1))
        for number, boxes in enumerate(self._boxes_for(fits)):
            column, row = at[number].tolist()
            for box in boxes:
                place = (int(image[number]), row, column, box)
                self._aim(result[place], values[place], shares[place], truth[number], grid, sizes[self.mask[box]])
        return result

    def _boxes_for(self, fits: Tensor) -> list[list[int]]:
        """Which of the map's boxes are to find each object, from its overlaps with all anchors (M, K)."""
        found = []
        for row in fits.tolist():
            best = row.index(max(row)) if max(row) > 0 else -1
            own = self.mask.index(best) if best in self.mask else -1
            boxes, taken = ([own], own) if own >= 0 else ([], best)
            if self.config.iou_thresh < 1:
                others = [n for n in range(len(row)) if n in self.mask and n != taken]
                boxes += [self.mask.index(n) for n in others if row[n] > self.config.iou_thresh]
            found.append(boxes)
        return found

    def _aim(self, d: Tensor, values: Tensor, shares: Tensor, truth: Tensor, grid: Tensor, size: Tensor) -> None:
        """Write into `d` (5 + classes) what an object asks of a box."""
        config = self.config
        weight = config.coord_scale * (2 - truth[3] * truth[4])
        inside = truth[1:3] * grid - (truth[1:3] * grid).long()
        d[:2] = weight * (shares[:2] - inside)
        d[2:4] = weight * (values[2:4] - (truth[3:5] / size).log())
        d[4] = (shares[4] - 1) * (config.object_scale if config.use_logic_gradient else 1)
        label, classes = int(truth[0]), shares[COORDINATES:]
        if not 0 <= label < len(classes):
            self.fail(f"an object is of class {label}, of {len(classes)}")
        aims = torch.zeros_like(classes)
        aims[label] = 1
        eps = config.label_smooth_eps
        smooth = aims * (1 - eps) + 0.5 * eps
        if d[COORDINATES + label] != 0:
            d[COORDINATES + label] = config.class_scale * (classes[label] - smooth[label])
        elif config.use_focal_loss:
            p = classes[label] + 1e-15
            focus = -0.5 * (1 - p) * (2 * p * p.log() + p - 1)
            d[COORDINATES:] = config.class_scale * (classes - aims) * focus
        else:
            d[COORDINATES:] = config.class_scale * (classes - smooth)
