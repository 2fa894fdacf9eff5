"""SSD's AnnotatedData: batches of images with the boxes of their objects, out of a database of AnnotatedDatum."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, suppress

import numpy as np
import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from fcnproto.data import colour
from fcnproto.data.annotations import WHOLE, Annotations, Window, sample_windows, sampler_problem
from fcnproto.data.database import Data
from fcnproto.data.noise import add_noise
from fcnproto.data.records import Record
from fcnproto.data.resizing import apply_resize, resized_shape
from fcnproto.errors import DataError
from fcnproto.layers.base import Shape
from fcnproto.layers.registry import register
from fcnproto.layers.source import PartialShape
from fcnproto.schema import caffe_pb2, unknown
from fcnproto.schema.text import parse

_BBOX = caffe_pb2.AnnotatedDatum.BBOX
_PROBABILITY_OFF = 0.01
_BATCHES_OF_A_SIZE = 10
_MOST_OBJECTS = 300
"""Rows for an image's objects in MobileNet-YOLO's labels."""


@register("AnnotatedData")
class AnnotatedData(Data):
    """SSD's AnnotatedData: records in the order of their keys, wrapping around, each an image with its objects.

    Tops: data (batch, channels, height, width), and optionally label (1, 1, G, 8) with a row item, label, instance,
    xmin, ymin, xmax, ymax, difficult for each object of the batch, or a single row of -1; where neither records nor
    `anno_type` say that there are boxes, label (batch,). An image goes through, as far as they are given,
    `distort_param` (colours), `expand_param` (a larger field of the mean's colour around it), a `batch_sampler`'s
    windows, of which one is drawn, and in `transform_param` resize_param, noise_param, a crop, mean, scale and mirror.
    Boxes go along; those outside a crop, or (`emit_constraint`) with their centre outside, are left out.

    As MobileNet-YOLO has it, with `yolo_data_type` 1 the label is (batch, 1, 300, 5): of each image rows label - 1, x,
    y, width, height, its objects in order, then zeros; with `train_diffcult` false without difficult ones. Of several
    resize_param one is drawn by their `prob` for ten batches each; where there is no batch_sampler, a window is drawn
    by `yolo_data_jitter`, whose sides are up to that much shorter than the image.
    """

    fork = "SSD, MobileNet-YOLO"
    differences = (
        "decoding is Pillow's, and between the steps images aren't packed as JPEG. Records of raw pixels are treated "
        "like encoded ones, where SSD leaves distort_param, resize_param and noise_param out; expand_param fills with "
        "mean_value, not with a mean_file. noise_param needs OpenCV. label_map_file isn't read, nor is it in SSD. "
        "MobileNet-YOLO's third top (labels of segmentation) and difficult_label_warmup are not here."
    )
    also_reads = ("transform_param", "annotated_data_param")
    fork_fields = (
        *Data.fork_fields,
        *("transform_param.resize_param", "transform_param.noise_param", "transform_param.emit_constraint"),
        *("transform_param.distort_param", "transform_param.expand_param"),
    )

    def __init__(self, param: caffe_pb2.LayerParameter, num_tops: int | None = None) -> None:
        super().__init__(param, num_tops)
        settings = self.transform.param
        self.policies = [settings.resize_param] if settings.HasField("resize_param") else []
        self.policies += [parse(text, caffe_pb2.ResizeParameter) for text in unknown.further(settings, "resize_param")]
        self.batches = 0
        """Batches given, where there are several sizes."""
        self.policy = 0
        if len(self.policies) > 1:
            self.position_fields = (*self.position_fields, "batches", "policy")  # type: ignore[misc]

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        if self.param.annotated_data_param.difficult_label_warmup:
            self.warn("annotated_data_param.difficult_label_warmup has no effect; the layer doesn't know the iteration")
        problem = self._problem()
        if problem:
            self.fail(problem)

    def _problem(self) -> str | None:
        """What is contradictory in the settings, or None."""
        settings = self.transform.param
        expand = settings.expand_param
        for resize in self.policies:
            if not (resize.height and resize.width):
                return "resize_param needs a height and a width"
            if resize.resize_mode == resize.FIT_SMALL_SIZE and self.config.batch_size != 1:
                return "resize_param: FIT_SMALL_SIZE gives images of several sizes; use batch_size 1"
        total = sum(resize.prob for resize in self.policies)
        if len(self.policies) > 1 and abs(total - 1) > _PROBABILITY_OFF:
            return f"the prob of all {len(self.policies)} resize_param must make 1 together, got {total:g}"
        if settings.HasField("expand_param"):
            if expand.max_expand_ratio <= 1:
                return f"expand_param: max_expand_ratio must be above 1, got {expand.max_expand_ratio:g}"
            if settings.HasField("mean_file"):
                return "expand_param fills with mean_value; a mean_file has one size only"
        for sampler in self.param.annotated_data_param.batch_sampler:
            problem = sampler_problem(sampler.sampler)
            if problem:
                return f"batch_sampler: {problem}"
        return colour.problem(settings.distort_param)

    @property
    def _given(self) -> frozenset[str]:
        return frozenset(field.name for field, _ in self.transform.param.ListFields())

    def _is_random(self) -> bool:
        return (
            self.transform.is_random(self.training)
            or bool(self._given & {"distort_param", "expand_param", "noise_param"})
            or any(len(resize.interp_mode) > 1 for resize in self.policies)
            or len(self.policies) > 1
            or bool(self.param.annotated_data_param.batch_sampler)
            or self.jitter > 0
        )

    @property
    def jitter(self) -> float:
        """By how much windows may be shorter than the image, where that is MobileNet-YOLO's layer."""
        settings = self.param.annotated_data_param
        theirs = self.dialect == "yolo" or settings.HasField("yolo_data_type") or settings.HasField("yolo_data_jitter")
        return settings.yolo_data_jitter if theirs and not settings.batch_sampler else 0

    @property
    def _as_yolo(self) -> bool:
        return bool(self.param.annotated_data_param.yolo_data_type == 1)

    @property
    def resize(self) -> caffe_pb2.ResizeParameter | None:
        """How images of the batch are resized, None where they keep their size."""
        return self.policies[self.policy] if self.policies else None

    def declared_shapes(self) -> list[PartialShape]:
        """From crop and resize_param, and the number of mean values where it is that of the channels."""
        channels = len(self.transform.param.mean_value)
        rows, columns = self.transform.crop
        if not rows and len(self.policies) == 1 and self.policies[0].resize_mode != self.policies[0].FIT_SMALL_SIZE:
            rows, columns = self.policies[0].height, self.policies[0].width
        return self._tops((channels if channels > 1 else None, rows or None, columns or None))

    def top_shapes(self, shapes: Sequence[Shape]) -> list[PartialShape]:
        """From the first record, where the database is there."""
        with suppress(DataError), closing(self._open()) as records:  # said when the first batch is asked for
            first = records.seek(None)
            datum = self._annotated(first)
            channels, height, width = self._pixels(datum.datum, self._name(first)).shape
            if self.resize is not None:
                height, width = resized_shape(height, width, self.resize)
            shape = self.transform.output_shape(channels, height, width)
            tops = self._tops(shape if len(self.policies) < 2 else (shape[0], *self._one_size()))
            return tops if self._has_boxes(datum) or len(tops) < 2 else [tops[0], (self.config.batch_size,)]
        return self.declared_shapes()

    def _one_size(self) -> tuple[int | None, int | None]:
        """Height and width where several sizes are drawn: those of the crop, or nothing."""
        rows, columns = self.transform.crop
        return rows or None, columns or None

    def _tops(self, item: tuple[int | None, ...]) -> list[PartialShape]:
        count = self.config.batch_size
        label: PartialShape = (count, 1, _MOST_OBJECTS, 5) if self._as_yolo else (1, 1, None, 8)
        tops: list[PartialShape] = [(count, *item), label]
        return tops[: self.num_tops]

    def _annotated(self, record: Record) -> caffe_pb2.AnnotatedDatum:
        try:
            datum = caffe_pb2.AnnotatedDatum.FromString(record[1])
        except DecodeError as error:
            raise DataError(f"{self._name(record)}: not an AnnotatedDatum ({error})") from error
        if not datum.HasField("datum"):
            raise DataError(f"{self._name(record)}: not an AnnotatedDatum (no image in it; is it a Datum for Data?)")
        return datum

    def _has_boxes(self, datum: caffe_pb2.AnnotatedDatum) -> bool:
        return datum.HasField("type") or self.param.annotated_data_param.HasField("anno_type")

    def forward(self) -> tuple[Tensor, ...]:
        before = self.policy
        if len(self.policies) > 1 and self.batches % _BATCHES_OF_A_SIZE == 0:
            shares = np.array([resize.prob for resize in self.policies])
            self.policy = int(self.generator.choice(len(shares), p=shares / shares.sum()))
        try:
            tops = super().forward()
        except DataError:
            self.policy = before
            raise
        self.batches += 1
        return tops

    def _batch(self, records: Sequence[Record]) -> tuple[Tensor, ...]:
        items: list[np.ndarray] = []
        rows: list[np.ndarray] = []
        labels: list[int] = []
        boxed = self._has_boxes(self._annotated(records[0]))
        for number, record in enumerate(records):
            datum = self._annotated(record)
            if boxed and not self._has_boxes(datum) and self.num_tops > 1:
                raise DataError(f"{self._name(record)} has no type of annotation, others have; set anno_type")
            item, objects = self._changed(self._pixels(datum.datum, self._name(record)), Annotations.of(datum))
            items.append(item)
            self._check_size(items, record)
            image = np.full((len(objects.boxes), 1), number, dtype=np.float32)
            rows.append(
                self._yolo_rows(objects)
                if self._as_yolo
                else np.hstack([image, objects.marks[:, :2], objects.boxes, objects.marks[:, 2:]])
            )
            labels.append(datum.datum.label)
        data = torch.from_numpy(np.stack(items))
        if not boxed:
            return data, torch.tensor(labels, dtype=torch.float32, device="cpu")
        if self._as_yolo:
            return data, torch.from_numpy(np.stack(rows))[:, None]
        label = np.concatenate(rows).astype(np.float32)
        label = label if len(label) else np.full((1, 8), -1, dtype=np.float32)
        return data, torch.from_numpy(label)[None, None]

    def _yolo_rows(self, objects: Annotations) -> np.ndarray:
        """An image's objects (300, 5) as label - 1, x, y, width, height, then zeros."""
        marks, boxes = objects.marks, objects.boxes
        if not self.param.annotated_data_param.train_diffcult:
            marks, boxes = marks[objects.marks[:, 2] == 0], boxes[objects.marks[:, 2] == 0]
        found = np.hstack([marks[:, :1] - 1, (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]])
        if len(found) > _MOST_OBJECTS:
            self.warn(f"an image has {len(found)} objects; the first {_MOST_OBJECTS} are taken")
        rows = np.zeros((_MOST_OBJECTS, 5), np.float32)
        rows[: len(found)] = found[:_MOST_OBJECTS]
        return rows

    def _changed(self, item: np.ndarray, objects: Annotations) -> tuple[np.ndarray, Annotations]:
        """An item (channels, height, width) as the settings change it, and its objects."""
        settings, given = self.transform.param, self._given
        emit = settings.emit_constraint if "emit_constraint" in given else None
        samplers = list(self.param.annotated_data_param.batch_sampler)
        changes = given & {"distort_param", "expand_param", "resize_param", "noise_param"}
        if (samplers or changes or self.jitter) and item.dtype != np.uint8:
            raise DataError("images are changed as 8-bit ones; a record holds float_data")
        generator = self.generator if self._is_random() else None
        image = item.transpose(1, 2, 0)
        if generator is not None and "distort_param" in given:
            image = colour.distort(image, settings.distort_param, generator)
        if generator is not None and "expand_param" in given:
            image, window = self._expanded(image, generator)
            objects = objects if window == WHOLE else objects.within(window, emit)
        if generator is not None and (samplers or self.jitter):
            windows = sample_windows(samplers, objects.boxes, generator) if samplers else [self._jittered(generator)]
            if windows:
                window = Window(*np.clip(windows[int(generator.integers(len(windows)))], 0, 1).tolist())
                image, objects = _cropped(image, window), objects.within(window, emit)
        height, width = image.shape[:2]
        if self.resize is not None:
            image = apply_resize(image, self.resize, generator)
            objects = objects.resized(height, width, self.resize)
        if generator is not None and "noise_param" in given:
            image = add_noise(image, settings.noise_param, generator)
        item = image.transpose(2, 0, 1)
        at = self.transform.place(item.shape, self.training, generator)
        _, rows, columns = item.shape
        window = Window(at.left / columns, at.top / rows, (at.left + at.columns) / columns, (at.top + at.rows) / rows)
        objects = objects.within(window, emit)
        objects = objects.mirrored() if at.mirror else objects
        if self.resize is not None:
            objects = objects.extrapolated(height, width, window, self.resize)
        return self.transform.apply(item, at), objects

    def _jittered(self, generator: np.random.Generator) -> Window:
        """MobileNet-YOLO's window: in a fifth of cases the whole image, in a fifth by half of the jitter."""
        kind = int(generator.choice(3, p=[0.2, 0.2, 0.6]))
        if kind == 0:
            return WHOLE
        least = 1 - self.jitter / (2 if kind == 1 else 1)
        width = generator.uniform(least, 1)
        keeps = self.resize is not None and self.resize.resize_mode == self.resize.FIT_LARGE_SIZE_AND_PAD
        height = width if keeps else generator.uniform(least, 1)
        left, top = generator.uniform(0, 1 - width), generator.uniform(0, 1 - height)
        return Window(left, top, left + width, top + height)

    def _expanded(self, image: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, Window]:
        """An image in a larger field at a random place, and that field in fractions of the image."""
        settings, means = self.transform.param.expand_param, list(self.transform.param.mean_value) or [0.0]
        if generator.uniform() > settings.prob or abs(settings.max_expand_ratio - 1) < 1e-2:
            return image, WHOLE
        rows, columns, channels = image.shape
        if len(means) not in (1, channels):
            raise DataError(f"{len(means)} mean_values for {channels} channels; give one, or one for each channel")
        ratio = generator.uniform(1, settings.max_expand_ratio)
        height, width = int(rows * ratio), int(columns * ratio)
        top, left = int(generator.uniform(0, height - rows)), int(generator.uniform(0, width - columns))
        field = np.empty((height, width, channels), np.uint8)
        field[:] = np.rint(means).clip(0, 255).astype(np.uint8)
        field[top : top + rows, left : left + columns] = image
        return field, Window(-left / columns, -top / rows, (width - left) / columns, (height - top) / rows)


def _cropped(image: np.ndarray, window: Window) -> np.ndarray:
    """The pixels of a window within the image, at least one."""
    rows, columns = image.shape[:2]
    top, left = min(int(window.ymin * rows), rows - 1), min(int(window.xmin * columns), columns - 1)
    height, width = int((window.ymax - window.ymin) * rows), int((window.xmax - window.xmin) * columns)
    return image[top : top + max(height, 1), left : left + max(width, 1)]
