"""Objects of an image as boxes in fractions of its size, and what cropping, resizing and sampling does to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fcnproto.schema import caffe_pb2

_Resize = caffe_pb2.ResizeParameter


class Window(NamedTuple):
    """A part of an image, or a field around it, in fractions of its size."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


WHOLE = Window(0, 0, 1, 1)


def _single(values: Sequence[float]) -> np.ndarray:
    return np.array(values, dtype=np.float32)


@dataclass
class Annotations:
    """The objects of one image, G of them."""

    boxes: np.ndarray
    """(G, 4) float32: xmin, ymin, xmax, ymax in fractions of the image."""
    marks: np.ndarray
    """(G, 3) float32: label, instance, difficult."""

    @classmethod
    def of(cls, datum: caffe_pb2.AnnotatedDatum) -> Annotations:
        """The objects in a record, by groups."""
        rows = [
            (*(a.bbox.xmin, a.bbox.ymin, a.bbox.xmax, a.bbox.ymax), group.group_label, a.instance_id, a.bbox.difficult)
            for group in datum.annotation_group
            for a in group.annotation
        ]
        values = np.array(rows, dtype=np.float32).reshape(-1, 7)
        return cls(values[:, :4], values[:, 4:])

    def within(self, window: Window, emit: caffe_pb2.EmitConstraint | None) -> Annotations:
        """The objects that show in a window, clipped, in fractions of it; with `emit`, only those with their centre in
        it or more than `emit_overlap` of their area."""
        boxes = self.boxes
        keeps = np.ones(len(boxes), dtype=bool)
        if emit is not None and emit.emit_type == caffe_pb2.EmitConstraint.CENTER:
            centre = (boxes[:, :2] + boxes[:, 2:]) / 2
            keeps = ((centre >= _single(window[:2])) & (centre <= _single(window[2:]))).all(1)
        elif emit is not None:
            keeps = coverage(boxes, window) > emit.emit_overlap
        keeps &= ((boxes[:, :2] < _single(window[2:])) & (boxes[:, 2:] > _single(window[:2]))).all(1)
        low, size = _single(window[:2] * 2), _single([window[2] - window[0], window[3] - window[1]] * 2)
        found = ((boxes - low) / size).clip(0, 1)
        keeps &= area(found) > 0
        return Annotations(found[keeps], self.marks[keeps])

    def mirrored(self) -> Annotations:
        """With left and right exchanged."""
        boxes = self.boxes.copy()
        boxes[:, [0, 2]] = 1 - self.boxes[:, [2, 0]]
        return Annotations(boxes, self.marks)

    def resized(self, height: int, width: int, settings: caffe_pb2.ResizeParameter) -> Annotations:
        """After the image of this size was resized as `resizing.apply_resize` does it."""
        new_height, new_width, aspect = float(settings.height), float(settings.width), width / height
        border = [0.0, 0.0]
        if settings.resize_mode == _Resize.FIT_LARGE_SIZE_AND_PAD:
            if aspect > new_width / new_height:
                border[1] = (new_height - new_width / aspect) / 2
            else:
                border[0] = (new_width - aspect * new_height) / 2
        sizes = _single([new_width, new_height] * 2)
        borders = _single(border * 2)
        inner = self.boxes * (sizes - 2 * borders)
        inner[:, :2] = np.maximum(inner[:, :2], 0)
        inner[:, 2:] = np.minimum(inner[:, 2:], sizes[2:])
        return Annotations((borders + inner) / sizes, self.marks)

    def extrapolated(self, height: int, width: int, crop: Window, settings: caffe_pb2.ResizeParameter) -> Annotations:
        """SSD's rule for FIT_SMALL_SIZE with height_scale and width_scale: boxes in units of these sizes."""
        if settings.resize_mode != _Resize.FIT_SMALL_SIZE or not (settings.height_scale and settings.width_scale):
            return self
        aspect, sides = width / height, [float(settings.width), float(settings.height)]
        if aspect < sides[0] / sides[1]:
            sides[1] = sides[0] / aspect
        else:
            sides[0] = sides[1] * aspect
        factors = [sides[0] * (crop.xmax - crop.xmin) / settings.width_scale]
        factors += [sides[1] * (crop.ymax - crop.ymin) / settings.height_scale]
        return Annotations(self.boxes * _single(factors * 2), self.marks)


def area(boxes: np.ndarray) -> np.ndarray:
    """Areas of boxes (..., 4), 0 where one ends before it begins."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return np.where((sides < 0).any(-1), 0, sides.prod(-1))


def shared_area(boxes: np.ndarray, window: Window) -> np.ndarray:
    """The area that boxes (G, 4) have in common with a window."""
    other = _single(window)
    low, high = np.maximum(boxes[:, :2], other[:2]), np.minimum(boxes[:, 2:], other[2:])
    return area(np.concatenate([low, high], 1))


def coverage(boxes: np.ndarray, window: Window) -> np.ndarray:
    """The part of each box (G, 4) that lies in a window."""
    shared = shared_area(boxes, window)
    return np.where(shared > 0, shared / np.where(shared > 0, area(boxes), 1), 0)


def meets(window: Window, boxes: np.ndarray, rule: caffe_pb2.SampleConstraint) -> bool:
    """Whether some box (G, 4) lies to the window as the constraint says; without constraints any window does.

    Of the overlap, the window's coverage and the box's, the first one that is given decides alone: SSD goes through
    them in this order, and takes the window as soon as a box passed the first.
    """
    shared, own = shared_area(boxes, window), float(area(_single(window)))
    measures = {
        "jaccard_overlap": shared / np.maximum(area(boxes) + own - shared, np.finfo(np.float32).tiny),
        "sample_coverage": shared / max(own, np.finfo(np.float32).tiny),
        "object_coverage": coverage(boxes, window),
    }
    for name, values in measures.items():
        low, high = f"min_{name}", f"max_{name}"
        if rule.HasField(low) or rule.HasField(high):
            fits = np.ones(len(boxes), dtype=bool)
            fits &= values >= getattr(rule, low) if rule.HasField(low) else True
            fits &= values <= getattr(rule, high) if rule.HasField(high) else True
            return bool(fits.any())
    return True


def sample_window(settings: caffe_pb2.Sampler, generator: np.random.Generator) -> Window:
    """A window of random scale and aspect ratio at a random place in the image."""
    scale = generator.uniform(settings.min_scale, settings.max_scale)
    ratio = generator.uniform(settings.min_aspect_ratio, settings.max_aspect_ratio)
    ratio = min(max(ratio, scale**2), 1 / scale**2)
    width, height = min(scale * ratio**0.5, 1), min(scale / ratio**0.5, 1)
    left, top = generator.uniform(0, 1 - width), generator.uniform(0, 1 - height)
    return Window(left, top, left + width, top + height)


def sample_windows(
    samplers: list[caffe_pb2.BatchSampler], boxes: np.ndarray, generator: np.random.Generator
) -> list[Window]:
    """Windows by each sampler, at most its `max_sample`, that lie to the objects' boxes as its constraint says."""
    found: list[Window] = []
    for sampler in samplers:
        if not sampler.use_original_image:
            continue
        count = 0
        for _ in range(sampler.max_trials):
            if sampler.HasField("max_sample") and count >= sampler.max_sample:
                break
            window = sample_window(sampler.sampler, generator)
            if meets(window, boxes, sampler.sample_constraint):
                found.append(window)
                count += 1
    return found


def sampler_problem(settings: caffe_pb2.Sampler) -> str | None:
    """What is wrong with a sampler's settings, or None."""
    if not 0 < settings.min_scale <= settings.max_scale <= 1:
        return f"min_scale {settings.min_scale:g} and max_scale {settings.max_scale:g} must be in order, within 0..1"
    if not 0 < settings.min_aspect_ratio <= settings.max_aspect_ratio < np.inf:
        low, high = settings.min_aspect_ratio, settings.max_aspect_ratio
        return f"min_aspect_ratio {low:g} and max_aspect_ratio {high:g} must be positive and in order"
    return None
