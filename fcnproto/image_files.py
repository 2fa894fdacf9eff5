"""Finding images in folders: which files are images, by which names they go, what is left out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from fcnproto.errors import FcnprotoWarning
from fcnproto.images import UNREADABLE, PathLike, pixel_count

_NAMES = (
    ".avif .bmp .dib .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .jpx "  # AVIF needs Pillow 11.3 or newer
    ".pbm .pcx .pgm .png .pnm .ppm .tga .tif .tiff .webp"
)


SUFFIXES = frozenset(_NAMES.split())
"""The file names in a folder that are taken for images."""

_MOST_NAMED, _MOST_LOOKED_AT = 5, 1000


def find_images(
    paths: Sequence[PathLike], recursive: bool = False, leave_out: PathLike | None = None, arrays: bool = False
) -> list[tuple[Path, str]]:
    """The image files among `paths`, folders opened, each with a name for its results.

    A folder gives its files with a usual suffix of images in alphabetical order (those of its subfolders too if
    `recursive`), hidden ones left out; a file given twice counts once. The name is the path within the given folder
    without its suffix, or the file's stem; where two would be the same (or differ by case alone), they get their
    suffix ("cat_jpg") or the folders above ("night_cat") added. Paths that don't exist are kept: reading them gives
    the error. A folder `leave_out` (of results) below a given one is not searched. A warning names files of a folder
    that are images, but not by their names. `arrays`: .npy files of a folder are images, too.
    """
    suffixes = SUFFIXES | {".npy"} if arrays else SUFFIXES
    out = None if leave_out is None else Path(os.path.realpath(leave_out))
    found: dict[str, tuple[Path, str]] = {}
    for given in map(Path, paths):
        if given.is_dir():
            inside = sorted(given.rglob("*") if recursive else given.iterdir())
            if out is not None and Path(os.path.realpath(given)) in out.parents:
                inside = [path for path in inside if not Path(os.path.realpath(path)).is_relative_to(out)]
            files = [
                (path, path.relative_to(given))
                for path in inside
                if path.suffix.lower() in suffixes and _is_shown(path, given)
            ]
            _tell_left_out(given, [path for path in inside if path.suffix.lower() not in SUFFIXES])
        else:
            files = [(given, Path(given.name))]
        for path, relative in files:
            found.setdefault(os.path.realpath(path), (path, relative.as_posix()))
    return _name(list(found.values()))


def _is_shown(path: Path, folder: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(folder).parts) and path.is_file()


def _tell_left_out(folder: Path, others: Sequence[Path]) -> None:
    """Warn of the images among files whose names aren't those of images."""
    looked_at = [path for path in others if _is_shown(path, folder)][:_MOST_LOOKED_AT]
    found = [path for path in looked_at if path.suffix.lower() in UNREADABLE or pixel_count(path)]
    if found:
        listed = ", ".join(path.relative_to(folder).as_posix() for path in found[:_MOST_NAMED])
        more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
        warnings.warn(
            f"{folder}: left out are files that are images, but not by their names: {listed}{more} (name them singly, "
            "or give them the suffix of their kind)",
            FcnprotoWarning,
            stacklevel=3,
        )


def _name(files: Sequence[tuple[Path, str]]) -> list[tuple[Path, str]]:
    """A name for each (path, path within its folder): stems where they differ, longer ones where they don't."""
    names = [os.path.splitext(relative)[0] for _, relative in files]
    for members in _clashes(names):
        suffixes = [os.path.splitext(files[index][1])[1] for index in members]
        if len(set(map(str.casefold, suffixes))) > 1:
            for index, suffix in zip(members, suffixes, strict=True):
                names[index] += suffix.replace(".", "_")
    plain = list(names)
    above = [os.path.realpath(path).split(os.sep)[: -len(relative.split("/"))] for path, relative in files]
    for depth in range(1, max(map(len, above), default=0)):
        for members in _clashes(names):
            for index in members:
                names[index] = "_".join([*above[index][-depth:], plain[index]])
    for members in _clashes(names):
        for number, index in enumerate(members, 1):
            names[index] += f"_{number}"
    return [(path, name) for (path, _), name in zip(files, names, strict=True)]


def _clashes(names: Sequence[str]) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(name.casefold(), []).append(index)
    return [members for members in groups.values() if len(members) > 1]
