"""Label maps in files: palette and grey PNGs, whose pixels are the labels, colour-coded ones with a table, and arrays
(.npy, .mat)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import numpy as np

from fcnproto.data.images import FAULTS, open_image
from fcnproto.data.matlab import load_variable, variable_names
from fcnproto.errors import DataError
from fcnproto.schema.arrays import read_npy

Colour = tuple[int, int, int]
PathLike = str | os.PathLike[str]

ARRAYS = (".npy", ".mat")
"""The suffixes of masks that are arrays."""
_MAT_NAMES = ("LabelMap", "S", "Segmentation", "segmentation", "labels", "label", "masks", "mask", "gt")
"""What .mat files of published data sets, and people, call a label map."""


def read_mask(
    path: PathLike, colours: Mapping[Colour, int] | None = None, binary: bool = False, content: bytes | None = None
) -> np.ndarray:
    """The labels (height, width) uint8 in an image file, or in an array: an .npy file, or the label map of a .mat file
    (SBD's GTcls.Segmentation, one of a usual name, or the only matrix in it).

    Without `colours` the pixels of a palette, grey (8 or 16 bits, up to 255) or one-bit image; with it those that the
    table gives for the pixels' RGB colours. With `binary` black and white (0 and 255) are the labels 0 and 1; an image
    of 0 and 1 has these labels already. With `content` that is the file's. Raises `DataError` naming the file for other
    images and for a colour (and where it is) that the table lacks.
    """
    name = os.fspath(path)
    if os.path.splitext(name)[1].lower() in ARRAYS:
        return _of_array(_array(name), colours, binary, name)
    image = open_image(name if content is None else content, name)
    try:
        image.load()
    except FAULTS as error:
        raise DataError(f"{name}: not a readable image ({error})") from error
    if colours is not None:
        return _decode(np.asarray(image.convert("RGB")), colours, name)
    if binary:
        return _black_and_white(np.asarray(image.convert("RGB") if image.mode == "RGBA" else image), name)
    if image.mode not in ("P", "L", "1", "I", "I;16"):
        raise DataError(
            f"{name}: a mask's pixels are labels (a palette or grey image), this image's mode is {image.mode}; "
            "give a table of colours if its colours stand for classes"
        )
    return _as_labels(np.asarray(image), name)


def _as_labels(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype != np.uint8 and values.dtype != bool and (values.min() < 0 or values.max() > 255):
        raise DataError(f"{name}: has labels {values.min():g} to {values.max():g}; 0 to 255 can be used")
    return values.astype(np.uint8)


def _array(name: str) -> np.ndarray:
    if name.lower().endswith(".npy"):
        return read_npy(name)
    known = variable_names(name)
    if "GTcls" in known:
        return load_variable(name, "GTcls", "Segmentation")
    chosen = next((one for one in _MAT_NAMES if one in known), None)
    if chosen is None and len(known) != 1:
        raise DataError(
            f"{name}: has the variables {', '.join(map(repr, known)) or '(none)'}; a mask is the only one, or is "
            f"called {' or '.join(_MAT_NAMES)}"
        )
    return load_variable(name, chosen or known[0])


def _of_array(values: np.ndarray, colours: Mapping[Colour, int] | None, binary: bool, name: str) -> np.ndarray:
    while values.ndim > 2 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if colours is not None and values.ndim == 3 and values.shape[2] == 3 and values.dtype == np.uint8:
        return _decode(values, colours, name)
    whole = values.dtype.kind in "iub" or (values.dtype.kind == "f" and bool((values == np.rint(values)).all()))
    if values.ndim != 2 or not whole or not values.size:
        raise DataError(f"{name}: a mask is a matrix of whole numbers, this array's shape is {values.shape}")
    return _black_and_white(values, name) if binary else _as_labels(values, name)


def _black_and_white(values: np.ndarray, name: str) -> np.ndarray:
    if values.ndim == 3 and (values == values[:, :, :1]).all():
        values = values[:, :, 0]
    found = np.unique(values).tolist()
    if values.ndim != 2 or not (set(found) <= {0, 255} or set(found) <= {0, 1}):
        shown = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
        what = f"its values are {shown}" if values.ndim == 2 else "it has colours"
        raise DataError(f"{name}: a binary mask's values are 0 and 255, for the labels 0 and 1; {what}")
    return (values > 0).astype(np.uint8)


def _decode(pixels: np.ndarray, colours: Mapping[Colour, int], name: str) -> np.ndarray:
    codes = pixels.astype(np.int64) @ np.array([65536, 256, 1])
    found, inverse = np.unique(codes, return_inverse=True)
    table = {(red << 16) + (green << 8) + blue: label for (red, green, blue), label in colours.items()}
    for code in found:
        if int(code) not in table:
            row, column = np.argwhere(codes == code)[0]
            colour = (int(code) >> 16, int(code) >> 8 & 255, int(code) & 255)
            raise DataError(f"{name}: colour {colour} at row {row}, column {column} is not in the table of colours")
    labels = np.array([table[int(code)] for code in found], dtype=np.uint8)
    return labels[inverse].reshape(codes.shape)


def read_colours(path: PathLike, ignore_label: int = 255) -> tuple[dict[Colour, int], tuple[str, ...]]:
    """A table of colours from a text file: labels by RGB colour, and the classes' names.

    One class a line, in the order of the labels: `name red green blue` or `name #rrggbb`; the names "void", "ignore"
    and "unlabelled" stand for the ignored label and take no number; several lines of one name are one class. Lines that
    begin with "//" are comments. Raises `DataError` naming the line.
    """
    name = os.fspath(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name}: can't read the table of colours: {error}") from error
    table: dict[Colour, int] = {}
    classes: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("//"):
            continue
        title, colour = _parse_line(line, f"{name}:{number}")
        if colour in table:
            raise DataError(f"{name}:{number}: colour {colour} stands for two classes")
        if title.lower() in ("void", "ignore", "unlabelled", "unlabeled"):
            table[colour] = ignore_label
            continue
        if title not in classes:
            classes.append(title)
        table[colour] = classes.index(title)
    if len(classes) < 2:
        raise DataError(f"{name}: a table of colours needs two classes or more, it has {len(classes)}")
    return table, tuple(classes)


def _parse_line(line: str, where: str) -> tuple[str, Colour]:
    words = re.split(r"[,;\s]+", line.strip().strip(",;"))
    if re.fullmatch(r"#[0-9a-fA-F]{6}", words[-1]):
        code = int(words.pop()[1:], 16)
        colour = (code >> 16, code >> 8 & 255, code & 255)
    elif len(words) > 3 and all(word.isdecimal() and int(word) < 256 for word in words[-3:]):
        colour = (int(words[-3]), int(words[-2]), int(words[-1]))
        del words[-3:]
    else:
        raise DataError(f"{where}: expected `name red green blue` (0 to 255) or `name #rrggbb`, not {line!r}")
    if words and re.fullmatch(r"\d+:", words[0]):
        del words[0]
    if not words:
        raise DataError(f"{where}: the class of {line!r} has no name")
    return " ".join(words), colour
