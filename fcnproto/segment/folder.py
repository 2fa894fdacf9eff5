"""The files around segmenting: which images belong to a net's inputs, and the results of each in a folder.

Internal to `segment/segmenter.py`, which also says what the files are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from fcnproto.atomic import atomic_write
from fcnproto.errors import DataError, UsageError
from fcnproto.escaping import file_name
from fcnproto.images import find_images
from fcnproto.pictures.labels import beside, label_image, legend, overlay
from fcnproto.preprocessing import background_labels
from fcnproto.zoo import palette

if TYPE_CHECKING:
    from fcnproto.segment.segmenter import Segmentation, Segmenter

PathLike = str | os.PathLike[str]


def sources(segmenter: Segmenter, inputs: Mapping[str, PathLike]) -> tuple[str, dict[str, Path]]:
    for name, place in inputs.items():
        if name not in segmenter.inputs:
            raise UsageError(f"{name!r} is no image input; these are {', '.join(map(repr, segmenter.inputs))}")
        if not os.path.exists(place):
            raise UsageError(f"input {name!r}: {os.fspath(place)} does not exist")
    open_inputs = [name for name in segmenter.inputs if name not in inputs]
    if len(open_inputs) != 1:
        wanted = ", ".join(f"--image {name}=FOLDER" for name in (open_inputs or segmenter.inputs)[1:])
        what = "needs images for" if open_inputs else "has all its images from --image; leave one to the images given:"
        raise UsageError(f"the net {what} {', '.join(segmenter.inputs)}; expected {wanted}")
    return open_inputs[0], {name: Path(place) for name, place in inputs.items()}


class Partners:
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


def check_folder(folder: Path, given: Sequence[PathLike]) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; the results go to a folder")
    for place in given:
        if os.path.isdir(place) and os.path.realpath(place) == os.path.realpath(folder):
            raise UsageError(f"{folder} holds the images to be read; write the results to another folder")


def write(
    image: Image.Image,
    segmentations: Sequence[Segmentation],
    stem: Path,
    with_legend: bool,
    kept: set[str],
) -> list[Path]:
    stem.parent.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    taken: set[str] = set()
    for found in segmentations:
        part = "" if len(segmentations) == 1 else "_" + file_name(found.blob, taken)
        taken.add(part[1:].lower())
        pictures = {
            "labels": label_image(found.labels),
            "overlay": _overlay(image, found, with_legend),
        }
        paths = {what: stem.with_name(f"{stem.name}{part}_{what}.png") for what in pictures}
        for what, picture in pictures.items():
            _refuse(paths[what], kept)
            with atomic_write(paths[what]) as file:
                picture.save(file, format="PNG", compress_level=3)  # a third of the time, a tenth more bytes
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
