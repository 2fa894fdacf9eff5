"""Shapes that people draw (polygons, boxes, circles) and run lengths, as pixels, by the rules of their own tools.

labelme and COCO fill the same polygon a little differently; each file is read as its own tool reads it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from fcnproto.errors import DataError, UsageError

Points = Sequence[tuple[float, float]]
Size = tuple[int, int]
"""Height and width."""

LINE_WIDTH, POINT_RADIUS = 10, 5
"""What labelme makes of lines and points."""
_FARTHEST = 4
"""So many times the image's size a point may lie from its corner."""


def drawn(kind: str, points: Points, size: Size) -> np.ndarray:
    """The pixels (height, width) bool of a labelme shape: its outline and what is inside, pixels being points.

    Kinds: polygon, rectangle (two corners), circle (centre and a point of the rim), line, linestrip, point, points.
    Raises `DataError` for others and for too few points.
    """
    _check(points, size)
    canvas = Image.new("1", (size[1], size[0]))
    draw = ImageDraw.Draw(canvas)
    needed = {"polygon": 3, "rectangle": 2, "circle": 2, "line": 2, "linestrip": 2, "point": 1, "points": 1}
    if kind not in needed:
        raise DataError(f"has a shape of type {kind!r}; known are {', '.join(needed)} and mask")
    if len(points) < needed[kind]:
        raise DataError(f"has a {kind} of {len(points)} points, {needed[kind]} are needed")
    if kind == "polygon":
        draw.polygon(list(points), fill=1, outline=1)
    elif kind == "rectangle":
        (left, right), (top, bottom) = (sorted(values) for values in zip(*points[:2], strict=True))
        draw.rectangle((left, top, right, bottom), fill=1, outline=1)
    elif kind == "circle":
        (x, y), rim = points[:2]
        radius = math.dist((x, y), rim)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1, outline=1)
    elif kind in ("line", "linestrip"):
        draw.line(list(points), fill=1, width=LINE_WIDTH)
    else:
        for x, y in points:
            draw.ellipse((x - POINT_RADIUS, y - POINT_RADIUS, x + POINT_RADIUS, y + POINT_RADIUS), fill=1, outline=1)
    return np.array(canvas)


def polygons(outlines: Sequence[Points], size: Size) -> np.ndarray:
    """The pixels (height, width) bool inside one of several polygons, by COCO's rule: pixels are squares, corners of
    the image's first one are (0, 0) and (1, 1).

    Raises `DataError` for polygons that are none, `UsageError` where pycocotools is missing.
    """
    for outline in outlines:
        _check(outline, size)
        if len(outline) < 3:
            raise DataError(f"has a polygon of {len(outline)} points, 3 are needed")
    try:
        from pycocotools import mask
    except ImportError:
        raise UsageError(
            "polygons of COCO and CVAT files need pycocotools; install it with: pip install 'fcnproto[coco]'"
        ) from None
    inside = np.zeros(size, dtype=bool)
    for found in mask.frPyObjects([[float(x) for point in one for x in point] for one in outlines], *size):
        inside |= run_lengths(found["counts"], size)
    return inside


def run_lengths(counts: bytes | str | Sequence[int], size: Size) -> np.ndarray:
    """The pixels (height, width) bool that COCO's run lengths stand for: columns from left to right, zeros first.

    `counts` are numbers, or COCO's text of them. Raises `DataError` where they don't cover the image.
    """
    numbers = _unpacked(counts) if isinstance(counts, bytes | str) else list(counts)
    if not all(isinstance(number, int) and number >= 0 for number in numbers) or sum(numbers) != size[0] * size[1]:
        raise DataError(f"has run lengths that don't make up the {size[0]} x {size[1]} pixels of the image")
    values = np.arange(len(numbers)) % 2 == 1
    return np.repeat(values, np.array(numbers, dtype=np.int64)).reshape(size[1], size[0]).T


def _unpacked(text: bytes | str) -> list[int]:
    """The run lengths in COCO's text: five bits a character; from the third on it is the difference to the last but
    one."""
    codes = (text if isinstance(text, bytes) else text.encode("ascii", "replace")) or b""
    numbers: list[int] = []
    value = shift = 0
    for code in codes:
        digit = code - 48
        if not 0 <= digit < 64 or shift > 60:
            raise DataError("has run lengths in a text that is none of COCO's")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
        value = shift = 0
    if shift:
        raise DataError("has run lengths whose text is cut off")
    return numbers


def box_corners(
    left: float, top: float, right: float, bottom: float, degrees: float = 0.0
) -> list[tuple[float, float]]:
    """The corners of a box, turned clockwise around its middle."""
    x, y, angle = (left + right) / 2, (top + bottom) / 2, math.radians(degrees)
    corners = ((left, top), (right, top), (right, bottom), (left, bottom))
    cosine, sine = math.cos(angle), math.sin(angle)
    return [
        (x + (a - x) * cosine - (b - y) * sine, y + (a - x) * sine + (b - y) * cosine) for a, b in corners
    ]  # fmt: skip


def ellipse_points(x: float, y: float, across: float, down: float, degrees: float = 0.0) -> list[tuple[float, float]]:
    """An ellipse with these radii as a polygon, turned clockwise around its middle."""
    count = max(16, min(720, round(2 * math.pi * max(across, down))))
    turn = math.radians(degrees)
    cosine, sine = math.cos(turn), math.sin(turn)
    steps = [2 * math.pi * k / count for k in range(count)]
    pairs = [(across * math.cos(step), down * math.sin(step)) for step in steps]
    return [(x + a * cosine - b * sine, y + a * sine + b * cosine) for a, b in pairs]


def _check(points: Any, size: Size) -> None:
    """`DataError` for points that are none, or so far out that no tool drew them."""
    for point in points:
        fits = len(point) == 2 and all(isinstance(value, int | float) and math.isfinite(value) for value in point)
        if not fits or any(abs(value) > _FARTHEST * (max(size) + 100) for value in point):
            raise DataError(f"has a point {tuple(point)!r} that is none of an image of {size[1]}x{size[0]}")
