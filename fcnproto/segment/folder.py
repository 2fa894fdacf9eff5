"""The files around segmenting: which images belong to a net's inputs, and whether the folder suits the results.

Internal to `segment/files.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fcnproto.errors import DataError, UsageError
from fcnproto.image_files import find_images

if TYPE_CHECKING:
    from fcnproto.segment.segmenter import Segmenter

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

    def __init__(self, place: Path, arrays: bool = False) -> None:
        self.place = place
        self.by_stem: dict[str, list[Path]] = {}
        for file, _ in find_images([place], arrays=arrays):
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
