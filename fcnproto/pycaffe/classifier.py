"""`Classifier` and `Detector`: nets that take images as arrays (height, width, channels) and do what prepares them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fcnproto.data import io
from fcnproto.errors import UsageError
from fcnproto.pycaffe.net import Net
from fcnproto.schema import caffe_pb2


class _ImageNet(Net):
    """A TEST net whose first input takes images through a `Transformer`."""

    def __init__(
        self,
        model_file: str | os.PathLike[str],
        pretrained_file: str | os.PathLike[str],
        mean: np.ndarray | None,
        input_scale: float | None,
        raw_scale: float | None,
        channel_swap: Sequence[int] | None,
    ) -> None:
        super().__init__(model_file, caffe_pb2.TEST, weights=pretrained_file)
        name = self.inputs[0]
        self.transformer = io.Transformer({name: self.blobs[name].shape})
        self.transformer.set_transpose(name, (2, 0, 1))
        if mean is not None:
            self.transformer.set_mean(name, mean)
        if input_scale is not None:
            self.transformer.set_input_scale(name, input_scale)
        if raw_scale is not None:
            self.transformer.set_raw_scale(name, raw_scale)
        if channel_swap is not None:
            self.transformer.set_channel_swap(name, channel_swap)

    def _scores(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """The first output for prepared images of the input's size, one row each."""
        name = self.inputs[0]
        stack = np.stack([self.transformer.preprocess(name, image) for image in images])
        arrays: dict[str, Any] = {name: stack}
        return self.forward_all(**arrays)[self.outputs[0]]


class Classifier(_ImageNet):
    """A net of classes; `image_dims` (height, width) is the size images are brought to before they are cropped."""

    def __init__(
        self,
        model_file: str | os.PathLike[str],
        pretrained_file: str | os.PathLike[str],
        image_dims: Sequence[int] | None = None,
        mean: np.ndarray | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model_file, pretrained_file, mean, input_scale, raw_scale, channel_swap)
        self.crop_dims = np.array(self.blobs[self.inputs[0]].shape[2:])
        given = self.crop_dims if image_dims is None or not len(image_dims) else image_dims
        self.image_dims = tuple(int(extent) for extent in given)

    def predict(self, inputs: Sequence[np.ndarray], oversample: bool = True) -> np.ndarray:
        """The class probabilities of images (N, classes): of the centre, or with `oversample` the mean over ten crops
        (corners, centre, mirrored)."""
        images = np.stack([io.resize_image(image, self.image_dims) for image in inputs])
        if oversample:
            crops = io.oversample(images, self.crop_dims.tolist())
        else:
            top, left = (int(a / 2.0 - b / 2.0) for a, b in zip(self.image_dims, self.crop_dims, strict=True))
            crops = images[:, top : top + self.crop_dims[0], left : left + self.crop_dims[1], :]
        scores = self._scores(crops)
        if not oversample:
            return scores
        means: np.ndarray = scores.reshape(len(inputs), -1, *scores.shape[1:]).mean(axis=1)
        return means


class Detector(_ImageNet):
    """A net of classes for windows of images; `context_pad` takes so many pixels of the input's border from around."""

    def __init__(
        self,
        model_file: str | os.PathLike[str],
        pretrained_file: str | os.PathLike[str],
        mean: np.ndarray | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
        context_pad: int | None = None,
    ) -> None:
        super().__init__(model_file, pretrained_file, mean, input_scale, raw_scale, channel_swap)
        self.configure_crop(context_pad)

    def configure_crop(self, context_pad: int | None) -> None:
        """Set how much context is taken; the border beyond an image is filled with the mean."""
        name = self.inputs[0]
        channels, height, width = self.blobs[name].shape[1:]
        self.crop_dims = np.array((height, width, channels))
        self.context_pad = context_pad or 0
        self.crop_mean = np.zeros(self.crop_dims, np.float32)
        mean = self.transformer.mean.get(name)
        if mean is not None:
            unswapped = np.broadcast_to(mean, (channels, height, width)).transpose(1, 2, 0).astype(np.float32)
            order = self.transformer.channel_swap.get(name)
            if order is not None:
                unswapped = unswapped[:, :, [list(order).index(i) for i in range(channels)]]
            self.crop_mean = unswapped / (self.transformer.raw_scale.get(name) or 1.0)

    def detect_windows(self, images_windows: Iterable[tuple[str, Iterable[Sequence[float]]]]) -> list[dict[str, Any]]:
        """Score windows (ymin, xmin, ymax, xmax) of image files: dicts of window, prediction and filename."""
        found, crops = [], []
        for filename, windows in images_windows:
            image = io.load_image(filename)
            for window in windows:
                crops.append(self.crop(image, np.asarray(window)))
                found.append({"window": window, "filename": filename})
        if not crops:
            return []
        height, width = self.crop_dims[:2]
        scores = self._scores(io.resize_image(crop, (int(height), int(width))) for crop in crops)
        return [{**entry, "prediction": scores[i]} for i, entry in enumerate(found)]

    def detect_selective_search(self, image_fnames: Sequence[str]) -> list[dict[str, Any]]:
        """Windows by selective search came from a program of MATLAB, which this package has no part of."""
        raise UsageError("selective search needs MATLAB; make the windows yourself and call detect_windows")

    def crop(self, im: np.ndarray, window: np.ndarray) -> np.ndarray:
        """A window of an image (height, width, channels); with context brought to the input's size."""
        top, left, bottom, right = (int(edge) for edge in window)
        if not self.context_pad:
            return im[top:bottom, left:right]
        size = int(self.crop_dims[1])
        scale = size / (size - 2.0 * self.context_pad)
        half = scale * (np.array((bottom - top, right - left)) + 1) / 2.0
        centre = np.array((top, left)) + (np.array((bottom - top, right - left)) + 1) / 2.0
        low, high = np.round(centre - half), np.round(centre + half)
        factor = size / (high - low + 1)
        offset = np.round(np.maximum(0, -low) * factor).astype(int)
        inside_low = np.clip(low, 0, im.shape[:2]).astype(int)
        inside_high = np.clip(high, 0, im.shape[:2]).astype(int)
        extent = np.round((inside_high - inside_low + 1) * factor).astype(int)
        extent = np.minimum(extent, size - offset)
        part = im[inside_low[0] : inside_high[0], inside_low[1] : inside_high[1]]
        result = np.array(np.broadcast_to(self.crop_mean, self.crop_dims), np.float32)
        rows, columns = (slice(o, o + e) for o, e in zip(offset, extent, strict=True))
        result[rows, columns] = io.resize_image(part, (int(extent[0]), int(extent[1])))
        return result
