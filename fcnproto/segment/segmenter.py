"""Segmenting images with a net: from image files to label maps, overlays and probabilities in a folder.

`Segmenter` runs a net on images; `segment` does so for files and folders and writes the results, going on where one
fails. Works with any net that gives maps of class scores; reading and preparing images is in `images.py`, drawing in
`pictures/labels.py`, doing several things at once in `segment/pipeline.py`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from traceback import clear_frames
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from fcnproto.errors import DataError, FcnprotoWarning, LayerError, UsageError, first_line
from fcnproto.images import (
    Picture,
    Preprocessing,
    as_image,
    limit_side,
    resize,
    to_blob,
    visible,
)
from fcnproto.inspect.running import run_with
from fcnproto.net import Net
from fcnproto.net.arriving import Arriving, send
from fcnproto.net.roles import image_inputs, images_stay_apart, score_blobs
from fcnproto.passes import optimize
from fcnproto.precision import canonical, computing
from fcnproto.preprocessing import class_names, preprocessing_of, published_with
from fcnproto.segment import sending
from fcnproto.segment.crf import DenseCrf
from fcnproto.segment.fetching import Labelled, fetch
from fcnproto.segment.results import MOST_CLASSES, Segmentation
from fcnproto.segment.tiles import AUTO, Labels, Tiles, WholeScores

Array = npt.NDArray[Any]
PathLike = str | os.PathLike[str]

_BATCH_PIXELS, _MOST_IN_BATCH = 2**18, 16
AHEAD, PIXELS_AHEAD = 16, 2**24  # the groups of images in which batches are formed


@dataclass(frozen=True)
class Scene:
    """One scene made ready for a net: its images by input, their `size` (height, width), and the inputs' values.

    Values of inputs in `means` are the images' bytes, whose mean and order of channels the net's device sees to.
    """

    images: Mapping[str, Picture]
    size: tuple[int, int]
    values: Mapping[str, Tensor]
    compare: bool = False
    means: Mapping[str, Array | None] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Scenes whose values have one shape can go through a net together."""
        return tuple(next(iter(self.values.values())).shape)


@dataclass
class Segmenter:
    """A net made ready for images.

    Attributes:
        net: the net; it is put into no other state than it is in.
        blobs: the score blobs; by default those that `score_blobs` finds.
        preprocessing: for each input blob how images become it; what is missing is found out (`preprocessing.py`).
        classes: names of the classes for every score blob with so many; by default those of `net.meta`, if it has any.
        longest_side: larger images are shrunk for the net (None: never); results have the image's own size.
        fixed_size: (height, width) to which every image is scaled for the net instead.
        probabilities: compute the probabilities as well.
        precision: "fp32", "tf32x3" and "tf32" (CUDA), "bf16" or "fp16": what convolutions and matrix products are
            computed in; by default that of an optimised net. The labels of scenes that say so are compared with
            float32's.
        batch: the most images of one size that go through the net together; by default as many as have a quarter of
            a megapixel (on a GPU four) in all, at most 16. Always one where the net's layers mix the images of a batch.
        crf: a dense CRF on the image's pixels that sharpens probabilities and labels.
        tile: the pixels of a side of the tiles in which images are computed, each from the part of the image that it
            depends on, so that the result is the whole image's; "auto" does so where memory would not suffice for the
            whole, "off" never.
    """

    net: Net
    blobs: Sequence[str] = ()
    preprocessing: Mapping[str, Preprocessing] = field(default_factory=dict)
    classes: Sequence[str] | None = None
    longest_side: int | None = None
    fixed_size: tuple[int, int] | None = None
    probabilities: bool = False
    precision: str | None = None
    batch: int | None = None
    crf: DenseCrf | None = None
    tile: int | str = AUTO

    def __post_init__(self) -> None:
        self._given_blobs, self._told = bool(self.blobs), False
        self.blobs = list(self.blobs) or score_blobs(self.net)
        self.inputs = image_inputs(self.net, self.blobs)
        unknown = [name for name in self.preprocessing if name not in self.inputs]
        if unknown:
            raise UsageError(f"{unknown[0]!r} is no image input; these are {', '.join(map(repr, self.inputs))}")
        self.preprocessing = {
            name: self.preprocessing.get(name) or preprocessing_of(self.net, name) for name in self.inputs
        }
        own = getattr(self.net, "precision", "fp32")
        self.precision = canonical(self.precision or own)
        if own != "fp32":
            self.net = optimize(self.net, tuning=False)  # of the same weights; so that float32 can be computed too
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"batch must be 1 or more, not {self.batch}")
        self._means = sending.Means()
        self._may_batch = images_stay_apart(self.net, self.blobs)
        self._tiles = Tiles(self.net, self.blobs, self.tile)

    def most_at_once(self, scene: Scene) -> int:
        """How many scenes like this one may go through the net together."""
        if not self._may_batch:
            return 1
        if self.batch is not None:
            return self.batch
        height, width = scene.shape[2:]
        pixels = _BATCH_PIXELS * (16 if self.net.device.type == "cuda" else 1)
        return max(1, min(_MOST_IN_BATCH, pixels // (height * width)))

    def read(self, paths: Mapping[str, PathLike]) -> dict[str, Picture]:
        """The image of each input blob from its file. Raises `DataError`."""
        return {name: self._image(path, name) for name, path in paths.items()}

    def _image(self, given: Any, name: str) -> Picture:
        how = self.preprocessing[name]
        return as_image(given, how.kind, how.bands)

    def prepare(self, images: Mapping[str, Any], compare: bool = False) -> Scene:
        """The values of all inputs for the images of one scene (in any form that `images.as_image` takes).

        Raises `UsageError` where an input has no image, `DataError` where the images differ in size.
        """
        missing = [name for name in self.inputs if name not in images]
        if missing:
            raise UsageError(f"the net needs an image for its input {missing[0]!r} too")
        images = {name: self._image(images[name], name) for name in self.inputs}
        sizes = {name: (image.height, image.width) for name, image in images.items()}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name} {width}x{height}" for name, (height, width) in sizes.items())
            raise DataError(f"the images of one scene differ in size: {listed}")
        size = next(iter(sizes.values()))
        height, width = self.fixed_size or limit_side(size, self.longest_side)
        values, means = {}, {}
        for name, how in ((name, self.preprocessing[name]) for name in self.inputs):
            image = resize(images[name], height, width)
            if self._sends_bytes and sending.suits(how):
                values[name], means[name] = sending.pixels_of(image, how)
            else:
                values[name] = torch.from_numpy(to_blob(image, how))[None]
        return Scene(images, size, values, compare, means)

    @property
    def _sends_bytes(self) -> bool:
        """Whether the net's device is far away and quick, so that images go there as bytes."""
        return self.net.device.type == "cuda"

    def __call__(self, images: Mapping[str, Any] | Any, compare: bool = False) -> list[Segmentation]:
        """Segment one image (or the images of all inputs, of one size); one result for each score blob.

        An image is a path, a PIL image of any mode, or an array, (height, width, 3) of uint8 in RGB; see
        `images.as_image`: what the command `segment` makes of a file is made of it.

        `compare` fills `Segmentation.agreement`, at the price of a second run in float32. Raises `DataError` where
        this image can't be worked on and `UsageError` where the net gives no maps of scores.
        """
        if not isinstance(images, Mapping):
            images = {self.inputs[0]: images}
        scene = self.prepare(images, compare)
        (found,) = self.run([scene])
        if isinstance(found, Exception):
            raise found
        return [replace(one, image=visible(scene.images[self.inputs[0]])) for one in found]

    def run(self, scenes: Sequence[Scene]) -> list[list[Segmentation] | Exception]:
        """Segment scenes whose values have one shape together; a `DataError` in the place of each that fails.

        Scenes that fail together are tried one by one.
        """
        found = self._run_together(scenes)
        if len(scenes) > 1 and all(isinstance(result, Exception) for result in found):
            del found
            return [result for scene in scenes for result in self._run_together([scene])]
        return found

    def _run_together(self, scenes: Sequence[Scene]) -> list[list[Segmentation] | Exception]:
        try:
            found = [self._labels(scenes, self.precision or "fp32")]
            if self.precision != "fp32" and any(scene.compare for scene in scenes):
                found.append(self._labels(scenes, "fp32"))
            return self._segmentations(scenes, found)
        except DataError as error:
            return [_without_values(error)] * len(scenes)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return [_without_values(_too_large(scenes[0], error))] * len(scenes)

    def _segmentations(
        self, scenes: Sequence[Scene], found: Sequence[Sequence[Sequence[Labelled]]]
    ) -> list[list[Segmentation] | Exception]:
        """Each scene's results from its labels in this precision and, where asked for, in float32."""
        given = [
            [each for labels in found[: 2 if scene.compare else 1] for each in labels[k]]
            for k, scene in enumerate(scenes)
        ]
        fetch(label for labels in given for label in labels)
        return [self._results(labels, len(found[0][0])) for labels in given]

    def _results(self, labels: Sequence[Labelled], count: int) -> list[Segmentation] | Exception:
        """A scene's results: the first `count` are those asked for, the rest the same in float32."""
        for each in labels:
            if not each.finite:
                reason = "holds values that are no numbers; are the weights those of this net?"
                return DataError(f"blob {each.blob!r} {reason}")
        found = [
            Segmentation(each.blob, each.labels, self.names(each.blob, each.classes), each.probabilities)
            for each in labels[:count]
        ]
        return (
            [
                replace(ours, agreement=float((ours.labels == theirs.labels).mean()))
                for ours, theirs in zip(found, labels[count:], strict=True)
            ]
            if labels[count:]
            else found
        )

    @torch.no_grad()
    def _labels(self, scenes: Sequence[Scene], precision: str) -> list[list[Labelled]]:
        """For each scene its labels by every score blob; in smaller tiles where memory doesn't suffice for larger."""
        values = {name: self._value(name, scenes).to(self.net.dtype) for name in self.inputs}
        while True:
            try:
                return self._labels_of(values, scenes, precision)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not self._tiles.shrink(values):
                    raise
                _without_values(error)

    def _labels_of(self, values: dict[str, Tensor], scenes: Sequence[Scene], precision: str) -> list[list[Labelled]]:
        tiled = self._tiles.cutting(values)
        if tiled is None:
            maps = self._scores(values, precision)
            return [
                [self._labelled(blob, scores[k : k + 1], scene) for blob, scores in maps.items()]
                for k, scene in enumerate(scenes)
            ]
        cutting, side = tiled
        found: dict[str, WholeScores | Labels] = {}
        for part in cutting.run(values, side, lambda tile: self._scores(tile, precision)):
            if part.blob not in found:
                extents = cutting.extents(part.blob)
                at_once = self.crf is None and all(scene.size == extents for scene in scenes)
                found[part.blob] = Labels(extents, self.probabilities) if at_once else WholeScores(extents)
            found[part.blob].put(part)
        return [[self._put_together(blob, found[blob], scenes, k) for blob in found] for k in range(len(scenes))]

    def _put_together(self, blob: str, found: WholeScores | Labels, scenes: Sequence[Scene], k: int) -> Labelled:
        """What tiles have given for scene `k`."""
        if isinstance(found, WholeScores):
            return self._labelled(blob, found.scores[k : k + 1], scenes[k])
        labels, probabilities = found.of(k)
        arriving = None if probabilities is None else Arriving(probabilities)
        return Labelled(blob, found.classes, labels, found.finite[k], arriving)

    def _scores(self, values: dict[str, Tensor], precision: str) -> dict[str, Tensor]:
        """The maps of class scores of all scenes, by blob."""
        count, _, height, width = next(iter(values.values())).shape
        try:
            with computing(precision, self.net.device):
                outputs = run_with(self.net, values, self.blobs)
        except (LayerError, RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise
            raise DataError(f"the net can't work on {width}x{height} pixels: {first_line(error)}") from error
        maps = {blob: outputs[blob] for blob in self.blobs if self._is_map(blob, outputs[blob], count)}
        if not maps:
            shapes = ", ".join(f"{blob!r} {tuple(outputs[blob].shape)}" for blob in self.blobs)
            raise UsageError(f"the net gives no map of class scores ({shapes}); `fcnproto run` shows what it gives")
        return maps

    def _is_map(self, blob: str, scores: Tensor, count: int) -> bool:
        fits = scores.ndim == 4 and scores.shape[0] == count and 2 <= scores.shape[1] <= MOST_CLASSES
        if not fits and self._given_blobs:
            raise UsageError(
                f"blob {blob!r} has shape {tuple(scores.shape)}; a map of class scores has shape (1, 2..256, h, w)"
            )
        return fits

    def _value(self, name: str, scenes: Sequence[Scene]) -> Tensor:
        """An input's value for all scenes, on the net's device."""
        device, first = self.net.device, scenes[0]
        value = send(torch.cat([scene.values[name] for scene in scenes]), device)
        if name not in first.means:
            return value
        mean = first.means[name]
        on_device = None if mean is None else self._means.on(device, name, mean)
        return sending.to_blobs(value, self.preprocessing[name], on_device)

    def _labelled(self, blob: str, scores: Tensor, scene: Scene) -> Labelled:
        """The labels of one image's scores, and its probabilities where asked for, on the net's device still."""
        finite = torch.isfinite(scores).all()
        if tuple(scores.shape[2:]) != scene.size:
            scores = functional.interpolate(scores.float(), size=scene.size, mode="bilinear", align_corners=False)
        if self.crf is not None:
            pixels = np.array(visible(scene.images[self.inputs[0]]).convert("RGB"))
            refined = self.crf.refine(functional.softmax(scores.float(), 1)[0], torch.from_numpy(pixels))
            kept = Arriving(refined) if self.probabilities else None
            return Labelled(blob, scores.shape[1], refined.argmax(0).to(torch.uint8), finite, kept)
        probabilities = Arriving(functional.softmax(scores.float(), 1)[0]) if self.probabilities else None
        return Labelled(blob, scores.shape[1], scores.argmax(1)[0].to(torch.uint8), finite, probabilities)

    def names(self, blob: str, count: int) -> tuple[str, ...] | None:
        """The names of the classes of a score blob. UsageError where those given are too few or too many for all."""
        if self.classes is None:
            found = class_names(blob, count, self.net.meta)
            if found is None and not self._told and (alike := published_with(count)):
                self._told = True
                warnings.warn(
                    f"blob {blob!r} has {count} classes, as {alike} has, but this isn't known to be a net for it; they "
                    f"are called class 0 to class {count - 1} (classes=, --classes names them)",
                    FcnprotoWarning,
                    stacklevel=2,
                )
            return found
        if len(self.classes) == count:
            return tuple(self.classes)
        if len(self.blobs) > 1:
            return class_names(blob, count, self.net.meta)
        raise UsageError(f"{len(self.classes)} class names are given, but blob {blob!r} has {count} classes")


def segment_image(net: Net, images: Any, **options: Any) -> list[Segmentation]:
    """The segmentations of one image, or of the images of all inputs: see `Net.segment`."""
    return Segmenter(net, **options)(images)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch says that memory did not suffice."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "not enough memory" in str(error)


def _too_large(scene: Scene, error: BaseException) -> DataError:
    height, width = scene.shape[2:]
    failure = DataError(f"{width}x{height} pixels are too many for the memory ({first_line(error)})")
    failure.__cause__ = error
    return failure


def _without_values(error: Exception) -> Exception:
    """The error with its traceback and causes, but without the values that these hold: a net's blobs, which would take
    the memory that the next attempt needs."""
    found: BaseException | None = error
    while found is not None:
        clear_frames(found.__traceback__)
        found = found.__cause__ or found.__context__
    return error
