"""What a drawing of a net shows: boxes for layers, arrows for blobs with their shapes; no positions yet.

In-place layers are named in the box of the layer whose blob they change, Split layers are left out, and groups of
layers that repeat one after the other, with branches or without, are folded into one box with a count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fcnproto.escaping import printable
from fcnproto.graph.rules import is_kept, net_state
from fcnproto.inspect.summary import LayerSummary, NetSummary
from fcnproto.layers.registry import find
from fcnproto.schema import caffe_pb2

Shape = tuple[int, ...]
Edge = tuple[int, int, str, Shape]
"""(number of the part that writes, of the one that reads, blob, its shape)"""

_LONGEST_GROUP = 24
_LONGEST_NAME = 60


@dataclass(frozen=True)
class Box:
    """One box: `lines` of printable text, the title first, `layers` the Caffe layers in it, `count` the repeats."""

    lines: tuple[str, ...]
    kind: str
    layers: tuple[str, ...]
    count: int = 1


@dataclass(frozen=True)
class Arrow:
    """A blob from box `tail` to box `head` (numbers of boxes), with its shape as `label`."""

    tail: int
    head: int
    label: str
    blob: str


@dataclass
class Diagram:
    """Boxes in the order of layers, and the arrows between them."""

    name: str
    boxes: list[Box] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)


@dataclass
class _Part:
    """A box in the making: a layer with its in-place followers."""

    layers: list[LayerSummary]
    settings: list[str]
    tops: Shape

    @property
    def signature(self) -> tuple[object, ...]:
        return tuple(layer.type for layer in self.layers), tuple(self.settings), self.tops


def layer_params(param: caffe_pb2.NetParameter, phase: str, **state: object) -> dict[str, caffe_pb2.LayerParameter]:
    """The layers of a definition that a phase keeps, by name (of those with one name the first)."""
    wanted = net_state(param, phase, **state)  # type: ignore[arg-type]
    kept: dict[str, caffe_pb2.LayerParameter] = {}
    for layer in param.layer:
        if is_kept(layer, wanted):
            kept.setdefault(layer.name, layer)
    return kept


def make_diagram(summary: NetSummary, params: Mapping[str, caffe_pb2.LayerParameter], *, fold: bool = True) -> Diagram:
    """The diagram of a net. `params` are its layers' messages by name; without `fold` every layer shows."""
    parts: list[_Part] = []
    writer: dict[str, int] = {}
    edges: list[Edge] = []
    for layer in summary.layers:
        param = params.get(layer.name, caffe_pb2.LayerParameter())
        in_place = len(layer.bottoms) == 1 and list(layer.bottoms) == list(layer.tops)
        if in_place and next(iter(layer.bottoms)) in writer:
            part = parts[writer[next(iter(layer.bottoms))]]
            part.layers.append(layer)
            part.settings.append(settings_text(param))
            continue
        number = len(parts)
        tops = next(iter(layer.tops.values()), ())
        parts.append(_Part([layer], [settings_text(param)], tops))
        edges += [(writer[name], number, name, shape) for name, shape in layer.bottoms.items() if name in writer]
        writer.update(dict.fromkeys(layer.tops, number))
    groups = _groups(parts, edges) if fold else [[[number]] for number in range(len(parts))]
    return _assemble(summary.name, parts, edges, groups)


def _groups(parts: Sequence[_Part], edges: Sequence[Edge]) -> list[list[list[int]]]:
    """The parts in groups of repeats: each group is a list of repeats, each of them a run of parts in a row."""
    runs = _Runs(parts, edges)
    groups: list[list[list[int]]] = []
    start = 0
    while start < len(parts):
        length, count = runs.best(start)
        groups.append([list(range(start + r * length, start + (r + 1) * length)) for r in range(count)])
        start += length * count
    return groups


class _Runs:
    """Finds runs of parts that repeat.

    A run may branch within itself, as residual blocks do. What it reads from outside comes from one part, that right
    before it unless it is the first; what is read of it outside is its last part alone, by the next run alone unless
    it is the last.
    """

    def __init__(self, parts: Sequence[_Part], edges: Sequence[Edge]) -> None:
        self.parts = parts
        self.inward: dict[int, list[int]] = {}
        self.outward: dict[int, list[int]] = {}
        for tail, head, _, _ in edges:
            self.inward.setdefault(head, []).append(tail)
            self.outward.setdefault(tail, []).append(head)

    def best(self, start: int) -> tuple[int, int]:
        """The (length, count) of the equal runs from `start` on that cover most parts; (1, 1) where nothing repeats."""
        best = (1, 1)
        for length in range(1, min(_LONGEST_GROUP, (len(self.parts) - start) // 2) + 1):
            if not self._is_whole(start, length):
                continue
            count, first = 1, self._look(start, length)
            while self._goes_on(start + count * length, length) and first == self._look(start + count * length, length):
                count += 1
            if count > 1 and count * length > best[0] * best[1]:
                best = (length, count)
        return best

    def _entries(self, start: int, length: int) -> set[int]:
        inside = range(start, start + length)
        return {tail for number in inside for tail in self.inward.get(number, ()) if tail < start}

    def _is_whole(self, start: int, length: int) -> bool:
        """Whether one part leads in and only the last one leads out."""
        end = start + length
        early = (head for number in range(start, end - 1) for head in self.outward.get(number, ()))
        return len(self._entries(start, length)) == 1 and all(head < end for head in early)

    def _goes_on(self, start: int, length: int) -> bool:
        """Whether a run from `start` on would follow the one before it."""
        if start + length > len(self.parts) or not self._is_whole(start, length):
            return False
        readers = self.outward.get(start - 1, ())
        return self._entries(start, length) == {start - 1} and all(head < start + length for head in readers)

    def _look(self, start: int, length: int) -> list[object]:
        """A run's parts, and where each reads from, counted from the start (-1: outside)."""
        return [
            (self.parts[number].signature, sorted(max(tail - start, -1) for tail in self.inward.get(number, ())))
            for number in range(start, start + length)
        ]


def _assemble(
    name: str,
    parts: Sequence[_Part],
    edges: Sequence[Edge],
    groups: Sequence[Sequence[Sequence[int]]],
) -> Diagram:
    diagram = Diagram(name)
    place: dict[int, int] = {}
    for group in groups:
        members = [number for repeat in group for number in repeat]
        place.update(dict.fromkeys(members, len(diagram.boxes)))
        boxes = [_box(parts[number]) for number in group[0]]
        layers = tuple(layer.name for number in members for layer in parts[number].layers)
        if len(boxes) == 1:
            box = replace(boxes[0], layers=layers, count=len(group))
            if len(group) > 1:
                last = _shown(parts[group[-1][0]].layers[0].name)
                box = replace(box, lines=(f"{box.lines[0]} … {last}", *box.lines[1:]))
        else:
            lines = tuple(" · ".join(part.lines) for part in boxes)
            box = Box((f"{len(boxes)} layers, {len(group)} times", *lines), boxes[0].kind, layers, len(group))
        diagram.boxes.append(box)
    readers: dict[tuple[int, str], int] = {}
    for tail, head, blob, shape in edges:
        # One arrow for a blob that several layers of a folded group read.
        if place[tail] != place[head] and readers.setdefault((place[head], blob), head) == head:
            diagram.arrows.append(Arrow(place[tail], place[head], shape_text(shape), blob))
    return diagram


def _box(part: _Part) -> Box:
    first = part.layers[0]
    texts = [
        f"{_shown(layer.type)} {settings}".strip() for layer, settings in zip(part.layers, part.settings, strict=True)
    ]
    return Box((_shown(first.name), *texts), kind_of(first.type), tuple(layer.name for layer in part.layers))


def _shown(name: str) -> str:
    """A name as it stands in a box, which it must not stretch beyond measure."""
    return printable(name, _LONGEST_NAME)


def kind_of(type_name: str) -> str:
    """The family of a layer type, which its colour stands for."""
    known = find(type_name)
    return "other" if known is None else known.kind


def shape_text(shape: Sequence[int]) -> str:
    """A blob's shape, the batch left out where it is 1."""
    shown = shape[1:] if len(shape) > 1 and shape[0] == 1 else shape
    return "×".join(map(str, shown)) or "scalar"


def settings_text(param: caffe_pb2.LayerParameter) -> str:
    """A layer's settings in a few words: "64 of 3×3, pad 1"."""
    known = find(param.type)
    return "" if known is None else known.settings_text(param)
