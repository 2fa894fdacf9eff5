"""Segmenting images with a net: from image files to label maps, overlays and probabilities in a folder.

`Segmenter` runs a net on images; `segment` does so for files and folders and writes the results, one image after the
other, going on where one fails. Works with any net that gives maps of class scores; reading and preparing images is in
`images.py`, drawing in `pictures.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fcnproto.errors import DataError, Error, GraphError, LayerError, UsageError
from fcnproto.files import atomic_write
from fcnproto.graph import Blob
from fcnproto.images import Preprocessing, find_images, limit_side, read_depth, read_image, resize, to_blob
from fcnproto.inference import image_inputs, run_with
from fcnproto.net import Net
from fcnproto.pictures import beside, label_image, legend, overlay
from fcnproto.recognise import background_labels, class_names, preprocessing_of
from fcnproto.zoo import ModelInfo, palette

Array = npt.NDArray[Any]
PathLike = str | os.PathLike[str]

_MOST_CLASSES = 256


@dataclass(frozen=True)
class Segmentation:
    """What one score blob says of an image.

    `labels` is (height, width) uint8, the class with the highest score (the lowest of equals); `probabilities`
    (classes, height, width) float32, the softmax over the classes, or None where it wasn't asked for; both in the size
    of the image. `names` are the classes' names if known.
    """

    blob: str
    labels: Array
    names: tuple[str, ...] | None
    probabilities: Array | None = None

    def name(self, label: int) -> str:
        """The name of a class, or "class 7"."""
        return self.names[label] if self.names is not None else f"class {label}"

    def shares(self) -> dict[str, float]:
        """The classes that occur with their shares of the image's pixels (0..1), the largest first."""
        counts = np.bincount(self.labels.ravel(), minlength=_MOST_CLASSES)
        order = sorted(np.flatnonzero(counts), key=lambda label: (-counts[label], label))
        return {self.name(int(label)): float(counts[label] / self.labels.size) for label in order}


@dataclass(frozen=True)
class Result:
    """One image of `segment`: `files` written and the `segmentations`, or the `error` that prevented it.

    It is image `index` (from 0) of `total`.
    """

    source: Path
    index: int
    total: int
    files: tuple[Path, ...] = ()
    segmentations: tuple[Segmentation, ...] = ()
    error: str | None = None


@dataclass
class Segmenter:
    """A net made ready for images.

    Attributes:
        net: the net; it is put into no other state than it is in.
        blobs: the score blobs; by default those that `score_blobs` finds.
        preprocessing: for each input blob how images become it; what is missing is found out (`recognise.py`).
        classes: names of the classes for every score blob with so many; by default found out.
        record: what the zoo says of the net, for these defaults.
        longest_side: larger images are shrunk for the net (None: never); results have the image's own size.
        fixed_size: (height, width) to which every image is scaled for the net instead.
        probabilities: compute the probabilities as well.
    """

    net: Net
    blobs: Sequence[str] = ()
    preprocessing: Mapping[str, Preprocessing] = field(default_factory=dict)
    classes: Sequence[str] | None = None
    record: ModelInfo | None = None
    longest_side: int | None = None
    fixed_size: tuple[int, int] | None = None
    probabilities: bool = False

    def __post_init__(self) -> None:
        self._given_blobs = bool(self.blobs)
        self.blobs = list(self.blobs) or score_blobs(self.net)
        self.inputs = image_inputs(self.net, self.blobs)
        unknown = [name for name in self.preprocessing if name not in self.inputs]
        if unknown:
            raise UsageError(f"{unknown[0]!r} is no image input; these are {', '.join(map(repr, self.inputs))}")
        self.preprocessing = {
            name: self.preprocessing.get(name) or preprocessing_of(self.net, name, self.record) for name in self.inputs
        }

    def read(self, paths: Mapping[str, PathLike]) -> dict[str, Image.Image]:
        """The image of each input blob from its file. Raises `DataError`."""
        readers = {name: read_depth if how.kind == "depth" else read_image for name, how in self.preprocessing.items()}
        return {name: readers[name](path) for name, path in paths.items()}

    def __call__(self, images: Mapping[str, Image.Image] | Image.Image) -> list[Segmentation]:
        """Segment one image (or the images of all inputs, of one size); one result for each score blob.

        Raises `DataError` where this image can't be worked on and `UsageError` where the net gives no maps of scores.
        """
        if isinstance(images, Image.Image):
            images = {self.inputs[0]: images}
        missing = [name for name in self.inputs if name not in images]
        if missing:
            raise UsageError(f"the net needs an image for its input {missing[0]!r} too")
        sizes = {name: (image.height, image.width) for name, image in images.items()}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name} {width}x{height}" for name, (height, width) in sizes.items())
            raise DataError(f"the images of one scene differ in size: {listed}")
        size = next(iter(sizes.values()))
        with torch.no_grad():
            outputs = self._run(images, size)
            maps = {blob: scores for blob, scores in outputs.items() if self._is_map(blob, scores)}
            if not maps:
                shapes = ", ".join(f"{blob!r} {tuple(scores.shape)}" for blob, scores in outputs.items())
                raise UsageError(f"the net gives no map of class scores ({shapes}); `fcnproto run` shows what it gives")
            return [self._segmentation(blob, scores, size) for blob, scores in maps.items()]

    def _run(self, images: Mapping[str, Image.Image], size: tuple[int, int]) -> dict[str, Tensor]:
        height, width = self.fixed_size or limit_side(size, self.longest_side)
        values = {}
        for name in self.inputs:
            blob = to_blob(resize(images[name], height, width), self.preprocessing[name])
            values[name] = torch.from_numpy(blob)[None].to(self.net.device, self.net.dtype)
        try:
            outputs = run_with(self.net, values, self.blobs)
        except (LayerError, RuntimeError, MemoryError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            if is_out_of_memory(error):
                raise DataError(f"{width}x{height} pixels are too many for the memory ({reason})") from error
            raise DataError(f"the net can't work on {width}x{height} pixels: {reason}") from error
        return {name: outputs[name] for name in self.blobs}

    def _is_map(self, blob: str, scores: Tensor) -> bool:
        fits = scores.ndim == 4 and scores.shape[0] == 1 and 2 <= scores.shape[1] <= _MOST_CLASSES
        if not fits and self._given_blobs:
            raise UsageError(
                f"blob {blob!r} has shape {tuple(scores.shape)}; a map of class scores has shape (1, 2..256, h, w)"
            )
        return fits

    def _segmentation(self, blob: str, scores: Tensor, size: tuple[int, int]) -> Segmentation:
        if not torch.isfinite(scores).all():
            raise DataError(f"blob {blob!r} holds values that are no numbers; are the weights those of this net?")
        count = scores.shape[1]
        if tuple(scores.shape[2:]) != size:
            scores = functional.interpolate(scores.float(), size=size, mode="bilinear", align_corners=False)
        labels = scores.argmax(1)[0].to("cpu", torch.uint8).numpy()
        probabilities = functional.softmax(scores.float(), 1)[0].cpu().numpy() if self.probabilities else None
        return Segmentation(blob, labels, self.names(blob, count), probabilities)

    def names(self, blob: str, count: int) -> tuple[str, ...] | None:
        """The names of the classes of a score blob. UsageError where those given are too few or too many for all."""
        if self.classes is None:
            return class_names(blob, count, self.record)
        if len(self.classes) == count:
            return tuple(self.classes)
        if len(self.blobs) > 1:
            return class_names(blob, count, self.record)
        raise UsageError(f"{len(self.classes)} class names are given, but blob {blob!r} has {count} classes")


def score_blobs(net: Net) -> list[str]:
    """The blobs that may hold class scores: what losses and accuracies are taken of, and the net's other outputs.

    Of a Softmax or ArgMax over the channels, what it reads. `GraphError` if there is none.
    """
    found: dict[str, None] = {}
    for node, layer in zip(net.graph.nodes, net.layers, strict=True):
        if (layer.is_loss or node.type == "Accuracy") and node.bottoms:
            found[_scores_of(node.bottoms[0]).name] = None
    for name in net.outputs:
        producer = net.graph.blobs[name].producer
        judged = producer.type == "Accuracy" or net.layer(producer.name).is_loss
        if not judged and not producer.is_data:
            found[_scores_of(net.graph.blobs[name]).name] = None
    candidates = [name for name in found if not net.graph.blobs[name].producer.is_data]
    if not candidates:
        raise GraphError(f"net {net.graph.name!r}: no blob of class scores found; name it with blobs= or --blob")
    return candidates


def _scores_of(blob: Blob) -> Blob:
    """The blob before splits and before the layers that only rank or normalise scores."""
    while blob.producer.bottoms:
        node = blob.producer
        over_channels = (node.type == "Softmax" and node.param.softmax_param.axis in (1, -3)) or (
            node.type == "ArgMax" and node.param.argmax_param.axis in (1, -3)
        )
        if node.type != "Split" and not over_channels:
            break
        blob = node.bottoms[0]
    return blob


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch says that memory did not suffice."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "not enough memory" in str(error)


def segment(
    net: Net | Segmenter,
    images: PathLike | Sequence[PathLike],
    out_dir: PathLike,
    *,
    inputs: Mapping[str, PathLike] | None = None,
    with_legend: bool = True,
    recursive: bool = False,
) -> Iterator[Result]:
    """Segment image files and folders, write the results to `out_dir`, and give a `Result` for each image.

    For an image "cat.jpg" and each score blob: `cat_labels.png` (a palette image whose pixels are the labels, in VOC's
    colours), `cat_overlay.png` (the labels' colours over the image, with a legend beside it), and `cat_probs.npz` if
    the segmenter computes probabilities ("probs": float32, 4 bytes for each pixel and class; "classes": their names).
    Where the net has several score blobs their names are in between: `cat_score_geo_labels.png`. Files that exist are
    replaced, but never an image that is read. An image that fails gives a Result with `error`; the rest go on.

    Args:
        net: a net, or a `Segmenter` for other than its defaults.
        images: files and folders; see `images.find_images`. They feed the first of the net's image inputs that is
            not in `inputs`.
        inputs: for every further input a file, or a folder with an image of the same stem for each one.
        with_legend: draw the legend beside the overlay.
        recursive: look into subfolders; results go to subfolders of the same names.

    Raises:
        UsageError: the options don't fit the net, or there are no images. Raised before anything is done, or
            with the first image where only running the net can tell.
    """
    segmenter = net if isinstance(net, Segmenter) else Segmenter(net)
    main, further = _sources(segmenter, inputs or {})
    given = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    files = find_images(given, recursive)
    folder = Path(out_dir)
    _check_folder(folder, given)
    if not files:
        raise UsageError(f"no images in {', '.join(map(str, given)) or 'an empty list'}")
    return _segment_all(segmenter, main, further, files, folder, with_legend)


def _segment_all(
    segmenter: Segmenter,
    main: str,
    further: Mapping[str, Path],
    files: Sequence[tuple[Path, str]],
    folder: Path,
    with_legend: bool,
) -> Iterator[Result]:
    kept = {os.path.realpath(path) for path, _ in files}
    partners = {blob: _Partners(place) for blob, place in further.items()}
    for index, (path, name) in enumerate(files):
        try:
            paths = {main: path} | {blob: found.of(path) for blob, found in partners.items()}
            images = segmenter.read(paths)
            segmentations = segmenter(images)
            written = _write(segmenter, images[main], segmentations, folder / name, with_legend, kept)
            yield Result(path, index, len(files), tuple(written), tuple(segmentations))
        except UsageError:
            raise
        except (Error, OSError) as error:
            message = str(error)
            if os.fspath(path) not in message:
                message = f"{path}: {message}"
            yield Result(path, index, len(files), error=message)


def _sources(segmenter: Segmenter, inputs: Mapping[str, PathLike]) -> tuple[str, dict[str, Path]]:
    for name, place in inputs.items():
        if name not in segmenter.inputs:
            raise UsageError(f"{name!r} is no image input; these are {', '.join(map(repr, segmenter.inputs))}")
        if not os.path.exists(place):
            raise UsageError(f"input {name!r}: {os.fspath(place)} does not exist")
    open_inputs = [name for name in segmenter.inputs if name not in inputs]
    if len(open_inputs) != 1:
        wanted = ", ".join(f"--input {name}=FOLDER" for name in (open_inputs or segmenter.inputs)[1:])
        what = "needs images for" if open_inputs else "has all its images from --input; leave one to the images given:"
        raise UsageError(f"the net {what} {', '.join(segmenter.inputs)}; expected {wanted}")
    return open_inputs[0], {name: Path(place) for name, place in inputs.items()}


class _Partners:
    """The images of a further input: those of a folder by their stems, or one file for every image."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.by_stem: dict[str, list[Path]] = {}
        for file, _ in find_images([place]):
            self.by_stem.setdefault(file.stem, []).append(file)

    def of(self, path: Path) -> Path:
        """The image that goes with `path`. Raises `DataError` where there is none or more than one."""
        if not self.place.is_dir():
            return self.place
        same = self.by_stem.get(path.stem, [])
        if len(same) != 1:
            what = f"{len(same)} images" if same else "no image"
            raise DataError(f"{path}: {what} called {path.stem!r} in {self.place}")
        return same[0]


def _check_folder(folder: Path, given: Sequence[PathLike]) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; the results go to a folder")
    for place in given:
        if os.path.isdir(place) and os.path.realpath(place) == os.path.realpath(folder):
            raise UsageError(f"{folder} holds the images to be read; write the results to another folder")


def _write(
    segmenter: Segmenter,
    image: Image.Image,
    segmentations: Sequence[Segmentation],
    stem: Path,
    with_legend: bool,
    kept: set[str],
) -> list[Path]:
    stem.parent.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for found in segmentations:
        part = "" if len(segmentations) == 1 else "_" + found.blob.replace("/", "_")
        pictures = {
            "labels": label_image(found.labels),
            "overlay": _overlay(image, found, with_legend),
        }
        paths = {what: stem.with_name(f"{stem.name}{part}_{what}.png") for what in pictures}
        for what, picture in pictures.items():
            _refuse(paths[what], kept)
            with atomic_write(paths[what]) as file:
                picture.save(file, format="PNG")
        written += paths.values()
        if found.probabilities is not None:
            path = stem.with_name(f"{stem.name}{part}_probs.npz")
            count = found.probabilities.shape[0]
            with atomic_write(path) as file:
                np.savez(file, probs=found.probabilities, classes=np.array([found.name(k) for k in range(count)]))
            written.append(path)
    return written


def _refuse(path: Path, kept: set[str]) -> None:
    if os.path.realpath(path) in kept:
        raise DataError(f"{path} is one of the images to be read; write the results to another folder")


def _overlay(image: Image.Image, found: Segmentation, with_legend: bool) -> Image.Image:
    if image.mode == "F":  # a depth map
        depths = np.asarray(image)
        depths = depths - depths.min()
        image = Image.fromarray(np.uint8(255 * depths / max(depths.max(), 1)))
    bare = background_labels(found.names)
    picture = overlay(image, found.labels, bare=bare)
    shown = [int(label) for label in np.unique(found.labels) if label not in bare]
    if not with_legend or not shown:
        return picture
    colours = palette()
    return beside(picture, legend([(found.name(label), colours[label]) for label in shown], picture.height))
