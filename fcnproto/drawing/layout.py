"""Where boxes and arrows of a diagram go: by Graphviz's `dot` if it is installed, else by a layered layout of our own.

Our own puts each box below all it reads (longest path), gives long arrows places in the ranks that they pass, orders
ranks by the mean of their neighbours, and moves boxes towards their neighbours as far as there is room.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

from fcnproto.drawing.diagram import Box, Diagram

Point = tuple[float, float]

FONT_SIZE, LINE_HEIGHT, MARGIN = 12, 16, 10
_CHARACTER = 6.7  # mean width at the font size
_WIDEST = 7.4  # the same of an arrow's text, which is smaller but all digits and crosses
_RANK_GAP, _BOX_GAP, _SWEEPS = 46.0, 28.0, 12
_POINTS_PER_INCH = 72.0
_DOT_SECONDS = 60


@dataclass
class Layout:
    """Places in pixels: `boxes` as (left, top, width, height), `paths` the points of each arrow, cubic Bézier curves
    (first point, then three for each piece), `labels` the left end (at half height) of each arrow's text."""

    width: float
    height: float
    boxes: list[tuple[float, float, float, float]]
    paths: list[list[Point]]
    labels: list[Point]


def box_size(box: Box) -> tuple[float, float]:
    """The (width, height) that a box's text needs."""
    longest = max(len(line) for line in box.lines) + (4 if box.count > 1 else 0)
    return max(70.0, longest * _CHARACTER + 2 * MARGIN), len(box.lines) * LINE_HEIGHT + MARGIN


def lay_out(diagram: Diagram, *, graphviz: bool | None = None) -> Layout:
    """Places for a diagram. `graphviz`: True insists on it (OSError if it is missing), False does without it."""
    if graphviz is not False:
        program = shutil.which("dot")
        if program is None and graphviz:
            raise FileNotFoundError("Graphviz's program dot is not installed")
        found = None if program is None else _by_graphviz(diagram, program)
        if found is not None:
            return found
        if graphviz:
            raise OSError("Graphviz's program dot failed")
    return _Layers(diagram).layout()


def _by_graphviz(diagram: Diagram, program: str) -> Layout | None:
    lines = ["digraph net {", "graph [rankdir=TB nodesep=0.35 ranksep=0.4];", "node [shape=box fixedsize=true];"]
    for number, box in enumerate(diagram.boxes):
        width, height = (size / _POINTS_PER_INCH for size in box_size(box))
        lines.append(f'n{number} [label="" width={width:.4f} height={height:.4f}];')
    for arrow in diagram.arrows:
        label = "M" * max(1, round(len(arrow.label) * 0.75))  # only its size matters here
        lines.append(f'n{arrow.tail} -> n{arrow.head} [label="{label}" fontsize=10 arrowhead=none];')
    try:
        done = subprocess.run(
            [program, "-Tplain"], input="\n".join([*lines, "}"]), capture_output=True, text=True, timeout=_DOT_SECONDS
        )
        return _read_plain(done.stdout, diagram) if done.returncode == 0 else None
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, IndexError):
        return None


def _read_plain(text: str, diagram: Diagram) -> Layout:
    """Graphviz's plain format: inches, the origin at the lower left."""
    rows = [line.split() for line in text.splitlines()]
    height = float(rows[0][3])
    width = float(rows[0][2])

    def place(x: str, y: str) -> Point:
        return float(x) * _POINTS_PER_INCH + MARGIN, (height - float(y)) * _POINTS_PER_INCH + MARGIN

    boxes = {}
    waiting: dict[tuple[int, int], list[int]] = {}
    for number, arrow in enumerate(diagram.arrows):
        waiting.setdefault((arrow.tail, arrow.head), []).append(number)
    paths: dict[int, list[Point]] = {}
    labels: dict[int, Point] = {}
    for row in rows:
        if row[0] == "node":
            number = int(row[1][1:])
            size = box_size(diagram.boxes[number])
            x, y = place(row[2], row[3])
            boxes[number] = (x - size[0] / 2, y - size[1] / 2, *size)
        elif row[0] == "edge":
            count = int(row[3])
            number = waiting[int(row[1][1:]), int(row[2][1:])].pop(0)
            paths[number] = [place(row[4 + 2 * k], row[5 + 2 * k]) for k in range(count)]
            middle = place(row[5 + 2 * count], row[6 + 2 * count])
            labels[number] = (middle[0] - len(diagram.arrows[number].label) * _CHARACTER * 0.45, middle[1])
    order, edges = range(len(diagram.boxes)), range(len(diagram.arrows))
    return Layout(
        width * _POINTS_PER_INCH + 2 * MARGIN,
        height * _POINTS_PER_INCH + 2 * MARGIN,
        [boxes[k] for k in order],
        [paths[k] for k in edges],
        [labels[k] for k in edges],
    )


@dataclass
class _Item:
    """A box, or a place that a long arrow passes."""

    rank: int
    width: float
    height: float = 0.0
    x: float = 0.0
    above: list[int] = field(default_factory=list)
    below: list[int] = field(default_factory=list)


class _Layers:
    """The layered layout of one diagram."""

    def __init__(self, diagram: Diagram) -> None:
        self.diagram = diagram
        ranks = [0] * len(diagram.boxes)
        for arrow in sorted(diagram.arrows, key=lambda arrow: arrow.head):
            ranks[arrow.head] = max(ranks[arrow.head], ranks[arrow.tail] + 1)
        for number in range(len(ranks)):  # sources stand right above their first reader
            readers = [arrow.head for arrow in diagram.arrows if arrow.tail == number]
            if readers and not any(arrow.head == number for arrow in diagram.arrows):
                ranks[number] = min(ranks[head] for head in readers) - 1
        self.items = [_Item(rank, *box_size(box)) for rank, box in zip(ranks, diagram.boxes, strict=True)]
        self.chains = [self._chain(arrow.tail, arrow.head, arrow.label) for arrow in diagram.arrows]
        self.rows: list[list[int]] = [[] for _ in range(max((item.rank for item in self.items), default=0) + 1)]
        for number, item in enumerate(self.items):
            self.rows[item.rank].append(number)

    def _chain(self, tail: int, head: int, label: str) -> list[int]:
        """The items of an arrow from box to box, with one in every rank between."""
        chain = [tail]
        for rank in range(self.items[tail].rank + 1, self.items[head].rank):
            self.items.append(_Item(rank, len(label) * _CHARACTER if rank == self.items[tail].rank + 1 else 4.0))
            chain.append(len(self.items) - 1)
        chain.append(head)
        for upper, lower in itertools.pairwise(chain):
            self.items[upper].below.append(lower)
            self.items[lower].above.append(upper)
        return chain

    def layout(self) -> Layout:
        self._order()
        self._spread()
        tops = self._heights()
        items = self.items
        boxes = [
            (
                item.x - item.width / 2,
                tops[item.rank][0] + (tops[item.rank][1] - item.height) / 2,
                item.width,
                item.height,
            )
            for item in items[: len(self.diagram.boxes)]
        ]
        paths, labels = [], []
        for chain in self.chains:
            path = self._path(chain, boxes, tops)
            paths.append(path)
            x0, y0 = path[0]
            x1, y1 = path[3] if len(path) > 3 else path[-1]
            # Where arrows lie apart: near the head, but where some meet there near the tail.
            meets = len(self.items[chain[-1]].above) > 1 and len(self.items[chain[0]].below) == 1
            along = (0.1, 0.3) if meets else (0.9, 0.7)
            labels.append((x0 + along[0] * (x1 - x0), y0 + along[1] * (y1 - y0)))
        width = max((item.x + item.width / 2 for item in items), default=0) + MARGIN
        width = max(
            [
                width,
                *(x + len(a.label) * _WIDEST + MARGIN for (x, _), a in zip(labels, self.diagram.arrows, strict=True)),
            ]
        )
        last = tops[-1] if tops else (0.0, 0.0)
        return Layout(width, last[0] + last[1] + MARGIN, boxes, paths, labels)

    def _order(self) -> None:
        """Order each rank by the mean place of the neighbours above, then below, and so on."""
        for sweep in range(_SWEEPS):
            downward = sweep % 2 == 0
            for row in self.rows if downward else reversed(self.rows):
                place = {number: index for row_ in self.rows for index, number in enumerate(row_)}

                def centre(number: int, downward: bool = downward, place: dict[int, int] = place) -> float:
                    item = self.items[number]
                    near = item.above if downward else item.below
                    return sum(place[other] for other in near) / len(near) if near else place[number]

                row.sort(key=centre)

    def _spread(self) -> None:
        """Horizontal places: packed, then moved towards the neighbours without overlap."""
        for row in self.rows:
            x = 0.0
            for number in row:
                item = self.items[number]
                item.x = x + item.width / 2
                x += item.width + _BOX_GAP
        for sweep in range(2 * _SWEEPS):
            for row in self.rows if sweep % 2 == 0 else reversed(self.rows):
                wanted = []
                for number in row:
                    near = self.items[number].above if sweep % 2 == 0 else self.items[number].below
                    near = near or [number]
                    wanted.append(sum(self.items[other].x for other in near) / len(near))
                self._place(row, wanted)
        left = min((item.x - item.width / 2 for item in self.items), default=0.0)
        for item in self.items:
            item.x += MARGIN - left

    def _place(self, row: Sequence[int], wanted: Sequence[float]) -> None:
        """Put a row's items near where they want to be, in order: clusters of touching items share their mean wish."""
        clusters: list[list[float]] = []  # [sum of wishes less offsets, count, total width]
        for number, wish in zip(row, wanted, strict=True):
            half = self.items[number].width / 2
            clusters.append([wish - half, 1.0, 2 * half + _BOX_GAP])
            while len(clusters) > 1:
                before, last = clusters[-2], clusters[-1]
                if before[0] / before[1] + before[2] <= last[0] / last[1]:
                    break
                clusters[-2:] = [[before[0] + last[0] - before[2] * last[1], before[1] + last[1], before[2] + last[2]]]
        numbers = iter(row)
        for total, count, _ in clusters:
            x = total / count
            for _ in range(int(count)):
                item = self.items[next(numbers)]
                item.x = x + item.width / 2
                x += item.width + _BOX_GAP

    def _heights(self) -> list[tuple[float, float]]:
        """(top, height) of each rank."""
        tops, y = [], float(MARGIN)
        for row in self.rows:
            height = max((self.items[number].height for number in row), default=0.0)
            tops.append((y, height))
            y += height + _RANK_GAP
        return tops

    def _path(
        self,
        chain: Sequence[int],
        boxes: Sequence[tuple[float, float, float, float]],
        tops: Sequence[tuple[float, float]],
    ) -> list[Point]:
        start, end = boxes[chain[0]], boxes[chain[-1]]
        points = [(start[0] + start[2] / 2, start[1] + start[3])]
        for number in chain[1:-1]:
            item = self.items[number]
            top, height = tops[item.rank]
            points += [(item.x, top), (item.x, top + height)]
        points.append((end[0] + end[2] / 2, end[1]))
        path = points[:1]
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            bend = (y1 - y0) / 2
            path += [(x0, y0 + bend), (x1, y1 - bend), (x1, y1)]
        return path
