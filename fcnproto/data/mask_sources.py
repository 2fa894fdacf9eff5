"""Where masks come from: a folder of label images, arrays and annotation files, or one file for all images.

`open_masks` looks what a place holds; the result gives each image's labels by the image's name, which is its path
within its folder without the suffix.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from fcnproto.data.label_files import (
    Drawn,
    is_coco,
    is_labelme,
    paint,
    read_coco,
    read_cvat,
    read_json,
    read_labelme,
    read_voc,
    read_xml,
)
from fcnproto.data.masks import ARRAYS, Colour, read_mask
from fcnproto.data.shapes import Size
from fcnproto.errors import DataError, UsageError
from fcnproto.image_files import SUFFIXES

PathLike = str | os.PathLike[str]
File = TypeVar("File", str, Path)

ENDINGS = ("_mask", "_labels", "_label")
"""What a mask's name may have more than its image's."""
_MASKS = {*SUFFIXES, *ARRAYS, ".json", ".xml"}


class MaskSource(ABC):
    """Masks by the names of their images. `place` is the folder or file that they are in."""

    def __init__(self, place: Path) -> None:
        self.place = place

    @abstractmethod
    def names(self) -> list[str]:
        """The names of all that has a mask."""

    @abstractmethod
    def path(self, name: str) -> Path | None:
        """The file that has an image's mask; None where there is none."""

    @abstractmethod
    def read(self, name: str, size: Size | None = None) -> np.ndarray:
        """The labels (height, width) uint8 for an image, of `size` where that is known. Raises `DataError`."""


class _Files(MaskSource):
    """A file for each image, called as the image, or with one of `ENDINGS` more."""

    def __init__(
        self,
        place: Path,
        files: Mapping[str, Path],
        names: Sequence[str],
        colours: Mapping[Colour, int] | None,
        binary: bool,
    ) -> None:
        super().__init__(place)
        self.files = without_images(files)
        self.classes, self.colours, self.binary = names, colours, binary

    def names(self) -> list[str]:
        return list(self.files)

    def path(self, name: str) -> Path | None:
        return file_of(name, self.files)

    def read(self, name: str, size: Size | None = None) -> np.ndarray:
        path = self.path(name)
        if path is None:
            raise DataError(f"{self.place}: holds no mask called {name!r}")
        return read_file(path, self.classes, self.colours, self.binary, size)


class ListedMasks(MaskSource):
    """One file for all images, which lists them by their file names."""

    def __init__(self, file: Path, drawn: Mapping[str, Drawn], names: Sequence[str]) -> None:
        super().__init__(file)
        self.classes = names
        self.drawn = {os.path.splitext(name.replace("\\", "/"))[0]: one for name, one in drawn.items()}
        self.short: dict[str, list[str]] = {}
        for name in self.drawn:
            self.short.setdefault(name.rpartition("/")[2], []).append(name)

    def names(self) -> list[str]:
        return list(self.drawn)

    def _key(self, name: str) -> str | None:
        """The listed name of an image: its own, or the only one that ends like it."""
        if name in self.drawn:
            return name
        alike = self.short.get(name.rpartition("/")[2], [])
        return alike[0] if len(alike) == 1 else None

    def path(self, name: str) -> Path | None:
        return self.place if self._key(name) is not None else None

    def read(self, name: str, size: Size | None = None) -> np.ndarray:
        key = self._key(name)
        if key is None:
            raise DataError(f"{self.place}: lists no image called {name!r}")
        return paint(self.drawn[key], _needed(self.classes, self.place), size)


def without_images(files: Mapping[str, File]) -> dict[str, File]:
    """Files by name without the images among them: beside cat_mask.png a file called cat is the image."""
    return {
        name: file
        for name, file in files.items()
        if os.path.splitext(file)[1].lower() not in SUFFIXES or not any(name + ending in files for ending in ENDINGS)
    }


def file_of(name: str, files: Mapping[str, File]) -> File | None:
    """The one of `files` that has the mask of an image of that name; None where there is none."""
    return next((files[key] for key in (name, *(name + ending for ending in ENDINGS)) if key in files), None)


def read_file(
    path: PathLike,
    names: Sequence[str],
    colours: Mapping[Colour, int] | None = None,
    binary: bool = False,
    size: Size | None = None,
    content: bytes | None = None,
) -> np.ndarray:
    """The labels in a file for one image; see `open_masks`. An image of labels may be given by its `content` alone."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in (".json", ".xml"):
        return read_mask(path, colours, binary, content)
    drawn = read_labelme(path) if suffix == ".json" else read_voc(read_xml(path), os.fspath(path))
    return paint(drawn, _needed(names, path), size)


def _needed(names: Sequence[str], path: PathLike) -> Sequence[str]:
    if not names:
        raise UsageError(f"{path}: names its classes; say with --classes which labels they are")
    return names


def open_masks(
    place: PathLike,
    names: Sequence[str] = (),
    colours: Mapping[Colour, int] | None = None,
    binary: bool = False,
) -> MaskSource:
    """The masks in a folder, or in a file of COCO's or CVAT's.

    A folder holds a file for each image (PNG and other label images, .npy, .mat, labelme's .json, Pascal VOC's .xml),
    or one .json of COCO's or .xml of CVAT's for all. Where a folder has images as well as annotation files of the same
    names, the latter are the masks.

    Args:
        names: the classes, for files that name them; label 0 first.
        colours, binary: how label images are read; see `masks.read_mask`.

    Raises `DataError` for places without masks and for files of other kinds.
    """
    path = Path(place)
    if path.is_file():
        return _listed(path, names)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    files = [one for one in sorted(path.rglob("*")) if one.suffix.lower() in _MASKS and _shown(one, path)]
    annotations = [one for one in files if one.suffix.lower() in (".json", ".xml")]
    if len(annotations) == 1 and (source := _listed_if_so(annotations[0], names)) is not None:
        return source
    if not files:
        raise DataError(f"{path}: holds no masks (images of labels, .npy, .mat, labelme's .json, VOC's .xml)")
    found = _by_name(path, files)
    first = annotations[0] if annotations else None
    if first is not None and first.suffix.lower() == ".json" and not is_labelme(read_json(first)):
        raise DataError(f"{first}: is no file of labelme's; masks of COCO's are one .json, to be named itself")
    return _Files(path, found, names, colours, binary)


def names_classes(place: PathLike) -> bool:
    """Whether masks at a place are annotation files, which call the classes by their names."""
    path = Path(place)
    return path.is_file() or any(
        one.suffix.lower() in (".json", ".xml") and _shown(one, path) for one in path.rglob("*")
    )


def _shown(path: Path, folder: Path) -> bool:
    return path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)


def _by_name(folder: Path, files: Iterable[Path]) -> dict[str, Path]:
    """Files by name. Of two of one name an annotation file counts, then an array, then an image of labels.

    `DataError` where two of one kind have one name."""
    found: dict[str, Path] = {}
    for path in files:
        name = path.relative_to(folder).with_suffix("").as_posix()
        other = found.get(name)
        if other is not None and _rank(other) == _rank(path):
            raise DataError(f"{path}: has the same name as {other}; remove one of them")
        if other is None or _rank(path) < _rank(other):
            found[name] = path
    return found


def _rank(path: Path) -> int:
    suffix = path.suffix.lower()
    return 0 if suffix in (".json", ".xml") else 1 if suffix in ARRAYS else 2


def _listed(path: Path, names: Sequence[str]) -> MaskSource:
    source = _listed_if_so(path, names)
    if source is None:
        raise DataError(f"{path}: is neither a folder of masks nor one .json of COCO's or .xml of CVAT's")
    return source


def _listed_if_so(path: Path, names: Sequence[str]) -> MaskSource | None:
    """The masks in a file for many images; None where it is of one image."""
    if path.suffix.lower() == ".json":
        if not is_coco(read_json(path)):
            return None
        return ListedMasks(path, read_coco(path), names)
    if path.suffix.lower() == ".xml":
        root = read_xml(path)
        return ListedMasks(path, read_cvat(root, os.fspath(path)), names) if root.find("image") is not None else None
    return None
