"""Label maps as polygons, for annotation tools: regions traced along their pixels' edges, files of labelme and COCO.

The polygons give the label map back to the pixel when they are filled by the rule of the tool that the file is for. A
region with holes is cut into pieces without, since neither tool has holes. Reading such files is in
`data/label_files.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fcnproto.atomic import atomic_write
from fcnproto.data.label_files import VOID, is_background_name
from fcnproto.escaping import json_text
from fcnproto.pictures.labels import parts
from fcnproto.segment.results import Segmentation

Array = np.ndarray
Point = tuple[int, int]
_RIGHT, _DOWN, _LEFT, _UP = range(4)
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
_LABELME_VERSION = "5.5.0"


@dataclass
class Region:
    """One connected region of a class: its `label`, `area` in pixels, `box` (left, top, width, height), and its pieces
    without holes, each as the corners (x, y) along its edge, clockwise."""

    label: int
    area: int
    box: tuple[int, int, int, int]
    outlines: list[list[Point]]


def regions(labels: Array, leave_out: Sequence[int] = ()) -> Iterator[Region]:
    """The connected regions (by edges, not corners) of a label map (height, width), in the order of their first pixels,
    but for those of some labels."""
    for left, top, mask, label in _components(labels):
        if label in leave_out:
            continue
        outlines = [[(x + left, y + top) for x, y in outline] for outline in _pieces(mask)]
        height, width = mask.shape
        yield Region(label, int(mask.sum()), (left, top, width, height), outlines)


def _components(labels: Array) -> list[tuple[int, int, Array, int]]:
    """(left, top, its pixels within its box, label) of each region."""
    rows, starts, ends, values = _runs(labels)
    parents = list(range(len(rows)))

    def root(k: int) -> int:
        while parents[k] != k:
            parents[k] = parents[parents[k]]
            k = parents[k]
        return k

    first = np.searchsorted(rows, np.arange(labels.shape[0] + 1)).tolist()
    for row in range(1, labels.shape[0]):
        above, here = first[row - 1], first[row]
        while above < first[row] and here < first[row + 1]:
            if values[above] == values[here] and starts[above] < ends[here] and starts[here] < ends[above]:
                a, b = root(above), root(here)
                parents[max(a, b)] = min(a, b)
            if ends[above] <= ends[here]:
                above += 1
            else:
                here += 1
    members: dict[int, list[int]] = {}
    for k in range(len(rows)):
        members.setdefault(root(k), []).append(k)
    found = []
    for runs in members.values():
        left, right = min(starts[k] for k in runs), max(ends[k] for k in runs)
        top, bottom = rows[runs[0]], rows[runs[-1]] + 1
        mask = np.zeros((bottom - top, right - left), dtype=bool)
        for k in runs:
            mask[rows[k] - top, starts[k] - left : ends[k] - left] = True
        found.append((left, top, mask, values[runs[0]]))
    return found


def _runs(labels: Array) -> tuple[list[int], list[int], list[int], list[int]]:
    """Row, first column, column after the last and label of all runs of one label, row by row."""
    height, width = labels.shape
    begins = np.ones((height, width), dtype=bool)
    begins[:, 1:] = labels[:, 1:] != labels[:, :-1]
    rows, starts = np.nonzero(begins)
    places = rows * width + starts
    ends = np.append(places[1:], height * width) - rows * width
    return rows.tolist(), starts.tolist(), ends.tolist(), labels[rows, starts].tolist()


def _pieces(mask: Array) -> Iterator[list[Point]]:
    """The outlines of a connected region's pieces without holes."""
    loops = _loops(mask)
    outer = loops.pop(0)
    if not loops:
        yield outer
        return
    columns = [x for x, _ in loops[0]]
    cut = (min(columns) + max(columns)) // 2
    cut = min(max(cut, 1), mask.shape[1] - 1)
    for offset, part in ((0, mask[:, :cut]), (cut, mask[:, cut:])):
        for left, top, piece, value in _components(part.astype(np.uint8)):
            if value:
                for outline in _pieces(piece):
                    yield [(x + left + offset, y + top) for x, y in outline]


def _loops(mask: Array) -> list[list[Point]]:
    """The closed paths along the edges of a connected region, what is inside on their right; the outer one first.

    Pixels that touch by corners alone are apart. Corners only: points between two in a line are left out."""
    padded = np.pad(mask, 1)
    edges: dict[tuple[Point, int], Point] = {}
    inside = padded[1:-1, 1:-1]
    for direction, other, shift in (
        (_RIGHT, padded[:-2, 1:-1], (0, 0)),
        (_DOWN, padded[1:-1, 2:], (1, 0)),
        (_LEFT, padded[2:, 1:-1], (1, 1)),
        (_UP, padded[1:-1, :-2], (0, 1)),
    ):
        for y, x in np.argwhere(inside & ~other).tolist():
            start = (x + shift[0], y + shift[1])
            edges[start, direction] = (start[0] + _STEPS[direction][0], start[1] + _STEPS[direction][1])
    loops = []
    left = dict.fromkeys(sorted(edges, key=lambda edge: (edge[1] != _RIGHT, edge[0][1], edge[0][0])))
    while left:
        first = next(iter(left))
        loop, (point, direction) = list[Point](), first
        while True:
            del left[point, direction]
            end = edges[point, direction]
            turns = ((direction + 1) % 4, direction, (direction + 3) % 4)
            following = next(turn for turn in turns if (end, turn) in edges)
            if following != direction:
                loop.append(end)
            point, direction = end, following
            if (point, direction) == first:
                break
        loops.append(loop)
    return loops


def centres(outline: Sequence[Point]) -> list[Point]:
    """The path through the middles of a piece's outermost pixels, for tools that take pixels for points: what labelme
    draws along it and within are the piece's pixels. `outline` is as in `Region`; three points at least come back."""
    count = len(outline)
    sides = [_side(outline[k], outline[(k + 1) % count]) for k in range(count)]
    path = list[Point]()
    for k, (direction, begin, end) in enumerate(sides):
        points = [begin, end]
        if sides[(k + 1) % count][0] == (direction + 3) % 4:  # around a notch, by the pixel in its corner
            points.append((end[0] + _STEPS[direction][0], end[1] + _STEPS[direction][1]))
        for point in points:
            if not path or path[-1] != point:
                path.append(point)
    while len(path) > 1 and path[-1] == path[0]:
        path.pop()
    return path + [path[-1]] * max(0, 3 - len(path))


def _side(start: Point, end: Point) -> tuple[int, Point, Point]:
    """The direction of a side between two corners, and the first and last pixel on its right."""
    (x, y), (u, v) = start, end
    direction = _RIGHT if u > x else _DOWN if v > y else _LEFT if u < x else _UP
    dx, dy = ((0, 0), (-1, 0), (-1, -1), (0, -1))[direction]
    step, length = _STEPS[direction], max(abs(u - x), abs(v - y)) - 1
    begin = (x + dx, y + dy)
    return direction, begin, (begin[0] + length * step[0], begin[1] + length * step[1])


def labelme_content(found: Segmentation, image: str) -> dict[str, Any]:
    """A segmentation as labelme's file for an image file of that name. Pixels of a first class called background are
    left as they are, unlabelled; so are void ones."""
    height, width = found.labels.shape
    shapes = [
        {
            "label": found.name(region.label),
            "points": [list(point) for point in centres(outline)],
            "group_id": number,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
        }
        for number, region in enumerate(regions(found.labels, _bare(found)))
        for outline in region.outlines
    ]
    return {
        "version": _LABELME_VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _bare(found: Segmentation) -> tuple[int, ...]:
    """The labels that stand in no file: void, and background where files without a word mean it."""
    is_background = found.names is not None and bool(found.names) and is_background_name(found.names[0])
    return (VOID, 0) if is_background else (VOID,)


@dataclass
class CocoFile:
    """COCO's file of the images of one score blob; its instances are the connected regions of each class."""

    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)

    def add(self, found: Segmentation, image: str) -> None:
        """Add a segmentation of an image file of that name."""
        height, width = found.labels.shape
        number = len(self.images) + 1
        self.images.append({"id": number, "file_name": image, "height": height, "width": width})
        if found.names is not None:
            self.names |= dict(enumerate(found.names))
        for region in regions(found.labels, _bare(found)):
            self.names.setdefault(region.label, found.name(region.label))
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": number,
                    "category_id": region.label + 1,
                    "segmentation": [[value for point in one for value in point] for one in region.outlines],
                    "area": region.area,
                    "bbox": list(region.box),
                    "iscrowd": 0,
                }
            )

    def content(self) -> dict[str, Any]:
        """For JSON. Categories are numbered from 1, as COCO's are: label 0 is category 1."""
        categories = [{"id": label + 1, "name": name} for label, name in sorted(self.names.items())]
        return {"images": self.images, "annotations": self.annotations, "categories": categories}


@dataclass
class PolygonFiles:
    """The polygons of a run over many images: labelme's file beside each result, COCO's for all at the end.

    `kinds` are "labelme" and "coco"; `folder` is that of the results.
    """

    folder: Path
    kinds: Sequence[str]
    coco: dict[str, CocoFile] = field(default_factory=dict)

    def add(self, source: Path, stem: Path, segmentations: Sequence[Segmentation]) -> list[Path]:
        """Write, or keep for the end, what is there of an image; `stem` is the results' path without endings."""
        written = []
        for found, part in zip(segmentations, parts([one.blob for one in segmentations]), strict=True):
            if "coco" in self.kinds:
                self.coco.setdefault(part, CocoFile()).add(found, source.name)
            if "labelme" in self.kinds:
                path = stem.with_name(f"{stem.name}{part}.json")
                image = os.path.relpath(source, path.parent)
                _write(path, labelme_content(found, Path(image).as_posix()))
                written.append(path)
        return written

    def finish(self) -> list[Path]:
        """Write COCO's files: annotations.coco.json, with the score blob's name where there are several."""
        written = []
        for part, found in self.coco.items():
            path = self.folder / f"annotations{part}.coco.json"
            _write(path, found.content())
            written.append(path)
        return written


def _write(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path, "w") as file:
        file.write(json_text(content) + "\n")
