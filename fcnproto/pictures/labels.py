"""Pictures of label maps: palette PNGs, overlays on the image, legends with class names.

Only draws; it knows neither nets nor files. Colours are VOC's unless others are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fcnproto import zoo
from fcnproto.escaping import file_name, printable

Array = npt.NDArray[Any]

_LONGEST_NAME = 60


def _colours(palette: Sequence[Sequence[int]] | None) -> Array:
    """(256, 3) uint8: the palette, VOC's by default, black after its end."""
    colours = np.zeros((256, 3), dtype=np.uint8)
    given = zoo.palette() if palette is None else palette
    colours[: len(given)] = given
    return colours


def label_image(labels: Array, palette: Sequence[Sequence[int]] | None = None) -> Image.Image:
    """A label map (height, width) of 0..255 as a palette image: its pixel values are the labels."""
    image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
    image.putpalette(_colours(palette).tobytes())
    return image


def overlay(
    image: Image.Image,
    labels: Array,
    palette: Sequence[Sequence[int]] | None = None,
    bare: Sequence[int] = (0,),
    opacity: float = 0.6,
) -> Image.Image:
    """The image with each label's colour laid over it; the labels in `bare` leave it as it is. Sizes must agree."""
    colours = _colours(palette)
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    strength = np.full(256, opacity, dtype=np.float32)
    strength[list(bare)] = 0
    weight = strength[labels][:, :, None]
    mixed = pixels * (1 - weight) + colours[labels] * weight
    return Image.fromarray(np.rint(_with_edges(mixed, labels)).astype(np.uint8))


def _with_edges(pixels: Array, labels: Array) -> Array:
    """Light lines along the borders of regions, so that neighbours of similar colours can be told apart."""
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:, :] |= labels[1:, :] != labels[:-1, :]
    pixels[edge] = pixels[edge] * 0.3 + 255 * 0.7
    return pixels


def legend(entries: Sequence[tuple[str, Sequence[int]]], height: int, text_size: int | None = None) -> Image.Image:
    """A white strip at least `height` pixels high with a coloured square and a name for each entry, in columns.

    Names are shown printable, long ones shortened.
    """
    entries = [(printable(name, _LONGEST_NAME), colour) for name, colour in entries]
    size = text_size or max(12, min(28, height // 24))
    font = ImageFont.load_default(size)
    step, margin = round(size * 1.6), size // 2
    rows = max(1, (height - 2 * margin) // step)
    columns = [entries[start : start + rows] for start in range(0, len(entries), rows)]
    widths = [round(max(font.getlength(name) for name, _ in column)) + size + 3 * margin for column in columns]
    strip = Image.new("RGB", (max(1, sum(widths)), max(height, step + 2 * margin)), "white")
    draw = ImageDraw.Draw(strip)
    left = 0
    for column, width in zip(columns, widths, strict=True):
        for row, (name, colour) in enumerate(column):
            top = margin + row * step
            box = (left + margin, top, left + margin + size, top + size)
            draw.rectangle(box, fill=tuple(int(value) for value in colour), outline="grey")
            draw.text((left + size + 2 * margin, top + size / 2), name, fill="black", font=font, anchor="lm")
        left += width
    return strip


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two images side by side on white, their upper edges level."""
    joined = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), "white")
    joined.paste(left, (0, 0))
    joined.paste(right, (left.width, 0))
    return joined


def parts(blobs: Sequence[str]) -> list[str]:
    """What the names of the files of each score blob have after the image's name: nothing where there is one."""
    if len(blobs) == 1:
        return [""]
    taken: set[str] = set()
    names = []
    for blob in blobs:
        names.append("_" + file_name(blob, taken))
        taken.add(names[-1][1:].lower())
    return names


def save_png(picture: Image.Image, file: IO[bytes]) -> None:
    """Write a picture as PNG in a third of the time, with a tenth more bytes, than by default."""
    picture.save(file, format="PNG", compress_level=3)
