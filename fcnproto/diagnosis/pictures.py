"""Rules about images and their label maps: which labels occur, and whether both lie on each other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing

import numpy as np

from fcnproto.checking.findings import Finding, some
from fcnproto.checking.geometry import receptive_field
from fcnproto.checking.kinds import found
from fcnproto.data.database import Data
from fcnproto.data.folder_layer import ImageMaskLayer
from fcnproto.data.image_data import ImageData, read_image_list
from fcnproto.data.paths import find
from fcnproto.data.records import open_records
from fcnproto.diagnosis.samples import Array, Labelling, first_with, value_counts
from fcnproto.diagnosis.subject import Subject
from fcnproto.errors import DataError
from fcnproto.layers.base import Layer
from fcnproto.net.roles import judged_blobs
from fcnproto.schema import caffe_pb2
from fcnproto.zoo import palette

VOID = 255
_RARE = 1e-3
_BETWEEN, _FEWEST_EDGES, _STRIP = 0.5, 40, 8
"""Share of the edges along which strips of so many pixels at most hold labels between the two, from so many edges on:
masks resized with interpolation."""
_NOISY = 0.25
"""Edges for each place in maps that show no objects at all."""
_REACH, _BETTER, _FEWEST_POINTS = 8, 1.3, 50
"""Shifts tried, how many times better the edges must fit, and from how many points of edges on."""
_MOST_POINTS = 4000
_OBJECT, _FIELD_SHARE = 32, 0.25
"""Pixels: objects from this size on must not be four times the receptive field."""
_MOST_MAPS, _MOST_IMAGES = 50, 500


def labelling_rules(subject: Subject, labelling: Labelling, allow_empty: bool = False) -> Iterator[Finding]:
    """What is wrong with the images and label maps of one labelling."""
    yield from _of_samples(labelling)
    counts = value_counts(labelling.samples)
    if labelling.maps and not labelling.standard:
        yield from _interpolated(labelling)
        yield from _shifted(labelling)
        yield from _objects(subject, labelling)
    if labelling.classes is not None and counts:
        yield from _values(labelling, counts, labelling.classes, allow_empty)
    if not labelling.standard and not labelling.again:
        yield from _same_in(labelling)


def _of_samples(labelling: Labelling) -> Iterator[Finding]:
    """One finding for each kind of fault of single images."""
    of_images = () if labelling.again else ("dark-images",)
    for code in ("unreadable", "size-mismatch", "colour-masks", *of_images):
        bad = [sample for sample in labelling.samples if code in sample.faults]
        if bad:
            more = f" ({len(bad)} of {len(labelling.samples)} images)" if len(bad) > 1 else ""
            where = f"{labelling.where}: {bad[0].name}"
            yield found(code, where, bad[0].faults[code] + more, layers=labelling.layers)


def _values(labelling: Labelling, counts: Mapping[int, int], classes: int, allow_empty: bool) -> Iterator[Finding]:
    where, layers = labelling.where, labelling.layers
    known = {value: number for value, number in counts.items() if value != labelling.ignored and value != VOID}
    total = sum(counts.values())
    void = counts.get(VOID, 0) if classes <= VOID else 0
    greys = _grey_levels()
    if classes == 2 and set(counts) <= {0, VOID} and void:
        share = void / total
        yield found("binary-masks", where, f"values 0 and 255 alone, {share:.3g} of the pixels are 255", layers=layers)
        return
    wrong = sorted(value for value in known if not 0 <= value < classes)
    inner = [value for value in known if value]
    if wrong and len(inner) < 64 and set(inner) <= greys and min(inner) >= classes:
        seen = f"labels {some([str(value) for value in inner])}, which are the greys of the usual colours of classes"
        yield found("colour-masks", where, seen, layers=layers)
        return
    if wrong:
        share = sum(known[value] for value in wrong) / total
        name = first_with(labelling.samples, wrong[0])
        seen = f"labels {_listed(wrong)} ({share:.2g} of the pixels) for {classes} classes, first in {name}"
        yield found("label-out-of-range", f"{where}: {name}", seen, layers=layers)
    if void and labelling.judged and labelling.ignored != VOID:
        name = first_with(labelling.samples, VOID)
        said = "no ignore_label" if labelling.ignored is None else f"ignore_label {labelling.ignored}"
        seen = f"{void / total:.2g} of the pixels are 255, and the loss has {said}"
        yield found("void-not-ignored", f"{where}: {name}", seen, layers=layers)
    if labelling.maps and not labelling.standard and not allow_empty:
        yield from _missing(labelling, known, classes)


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")


def _missing(labelling: Labelling, known: Mapping[int, int], classes: int) -> Iterator[Finding]:
    """Classes that never occur, or hardly."""
    total = sum(number for value, number in known.items() if 0 <= value < classes)
    absent = [label for label in range(classes) if not known.get(label)]
    if absent and (labelling.complete or len(labelling.samples) >= _MOST_MAPS):
        names = ", ".join(labelling.title(label) for label in absent[:5]) + (", ..." if len(absent) > 5 else "")
        yield found(
            "class-never-occurs",
            labelling.where,
            f"none of {len(labelling.samples)} masks holds {names}",
            level="fault" if labelling.complete else "suspect",
            why=None if labelling.complete else "of the masks that were looked at none teaches it",
            layers=labelling.layers,
        )
    rare = [label for label in range(classes) if 0 < known.get(label, 0) < _RARE * total]
    if rare:
        shares = ", ".join(f"{labelling.title(label)} {known[label] / total:.2g}" for label in rare[:5])
        yield found("rare-class", labelling.where, f"of the pixels: {shares}", layers=labelling.layers)


def _grey_levels() -> set[int]:
    """The greys that the usual colours of classes become, rounded either way."""
    levels = (0.299 * red + 0.587 * green + 0.114 * blue for red, green, blue in palette(64)[1:])
    return {value for level in levels for value in (int(level), int(level + 0.5))}


def _interpolated(labelling: Labelling) -> Iterator[Finding]:
    """Masks with labels between two others along their edges, in both directions: what only lies between two classes in
    one of them may be a thing of its own (a kerb between road and wall)."""
    edges, strips, places = np.zeros(2, int), np.zeros(2, int), 0
    worst: tuple[float, str, Array] = (0.0, "", np.empty(0))
    for sample in labelling.samples[:_MOST_MAPS]:
        if sample.labels is None or min(sample.labels.shape) < 3:
            continue
        both = [_between(turned) for turned in (sample.labels, sample.labels.T)]
        counted, inner = (np.array([one[k] for one in both]) for k in (0, 1))
        edges, strips, places = edges + counted, strips + inner, places + sample.labels.size
        if counted.sum() and inner.sum() / counted.sum() > worst[0]:
            worst = inner.sum() / counted.sum(), sample.name, np.unique(np.concatenate([one[2] for one in both]))
    if _FEWEST_EDGES <= edges.sum() < _NOISY * places and (strips > _BETWEEN * edges).all():
        share = strips.sum() / edges.sum()
        seen = f"{share:.2f} of the edges between labels that aren't neighbours have strips of others between"
        shown = ", ".join(map(str, worst[2][:5].tolist()))
        yield found(
            "interpolated-masks", f"{labelling.where}: {worst[1]}", f"{seen} ({shown}, ...)", layers=labelling.layers
        )


def _between(labels: Array) -> tuple[int, int, Array]:
    """Along the rows: how often two labels that are not neighbours meet; how often others lie between them there, in
    strips as narrow as those of an interpolation; these others."""
    lines = np.arange(labels.shape[0])[:, None].repeat(labels.shape[1], 1).ravel()
    flat = labels.ravel()
    starts = np.flatnonzero(np.r_[True, (flat[1:] != flat[:-1]) | (lines[1:] != lines[:-1])])
    runs, row, lengths = flat[starts], lines[starts], np.diff(np.r_[starts, flat.size])
    step = np.where(row[1:] == row[:-1], np.diff(runs), 0)
    strip = np.zeros(len(runs), bool)
    strip[1:-1] = (step[1:] * step[:-1] > 0) & (lengths[1:-1] <= _STRIP)
    strips = int((strip[1:] & ~strip[:-1]).sum())
    jumps = int(((abs(step) > 1) & ~strip[1:] & ~strip[:-1]).sum())
    return jumps + strips, strips, np.unique(runs[strip])


def _shifted(labelling: Labelling) -> Iterator[Finding]:
    """Masks whose edges fit those of the images better when shifted: all of them the same way."""
    scores, points = np.zeros((2 * _REACH + 1, 2 * _REACH + 1)), 0
    for sample in labelling.samples[:_MOST_MAPS]:
        if sample.pixels is None or sample.labels is None or sample.pixels.shape[:2] != sample.labels.shape:
            continue
        found_scores, count = _edge_scores(sample.pixels, sample.labels)
        scores, points = scores + found_scores, points + count
    if points < _FEWEST_POINTS:
        return
    row, column = np.unravel_index(int(scores.argmax()), scores.shape)
    down, right = int(row) - _REACH, int(column) - _REACH
    here, best = scores[_REACH, _REACH], scores[row, column]
    if max(abs(down), abs(right)) > 1 and best > _BETTER * here and best > _BETTER * np.median(scores):
        seen = f"edges of the masks fit those of the images {best / max(here, 1e-9):.2g} times better when the masks"
        text = f"{seen} are moved by {right:+d} pixels to the right and {down:+d} down"
        yield found("shifted-masks", labelling.where, text, layers=labelling.layers)


def _edge_scores(pixels: Array, labels: Array) -> tuple[Array, int]:
    """For each shift (down, right) the image's mean change at the mask's edges, times their number; and that number."""
    grey = pixels.astype(np.float64).mean(2)
    change = np.zeros_like(grey)
    change[:, 1:] += np.abs(np.diff(grey, axis=1))
    change[1:] += np.abs(np.diff(grey, axis=0))
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    edge[: _REACH + 1], edge[-_REACH:], edge[:, : _REACH + 1], edge[:, -_REACH:] = False, False, False, False
    rows, columns = np.nonzero(edge)
    step = max(1, len(rows) // _MOST_POINTS)
    rows, columns = rows[::step], columns[::step]
    scores = np.zeros((2 * _REACH + 1, 2 * _REACH + 1))
    for down in range(-_REACH, _REACH + 1):
        for right in range(-_REACH, _REACH + 1):
            scores[down + _REACH, right + _REACH] = change[rows + down, columns + right].sum()
    return scores, len(rows)


def _objects(subject: Subject, labelling: Labelling) -> Iterator[Finding]:
    """Objects that are much larger than what a score sees."""
    scores = [score for score, label in judged_blobs(subject.net).items() if label == labelling.blob]
    field = receptive_field(subject.net, subject.net.graph.blob(scores[0])) if scores else None
    if field is None:
        return
    sizes = []
    for sample in labelling.samples[:_MOST_MAPS]:
        if sample.labels is None:
            continue
        for label in np.unique(sample.labels):
            if label not in (0, VOID):
                rows, columns = np.nonzero(sample.labels == label)
                sizes.append(float(np.sqrt((np.ptp(rows) + 1) * (np.ptp(columns) + 1))))
    middle = float(np.median(sizes)) if sizes else 0.0
    if middle >= _OBJECT and field < _FIELD_SHARE * middle:
        seen = f"a score sees {field} x {field} pixels, half of the objects are larger than {middle:.0f}"
        yield found("small-receptive-field", f"blob {scores[0]!r}", seen)


# The same image twice.


def _same_in(labelling: Labelling) -> Iterator[Finding]:
    """Images of one folder that are the same: one may be trained on and the other validate."""
    seen: dict[bytes, str] = {}
    twins = []
    for sample in labelling.samples:
        if sample.pixels is not None and sample.pixels.std() > 0:
            key = _digest(sample.pixels.tobytes())
            if key in seen:
                twins.append((seen[key], sample.name))
            seen.setdefault(key, sample.name)
    if twins:
        text = f"{twins[0][0]} and {twins[0][1]} are the same image" + (
            f", {len(twins)} pairs" if len(twins) > 1 else ""
        )
        yield found(
            "duplicates",
            labelling.where,
            text,
            why="where one is trained on, the other one validates what is known by heart",
            layers=labelling.layers,
        )


def shared_images(subject: Subject) -> Iterator[Finding]:
    """Images that a solver's train net and one of its test nets both read, by their bytes."""
    trained = {digest: name for layer in subject.net.data_layers() for digest, name in _images(layer)}
    sources = {layer.config.source for layer in subject.net.data_layers() if isinstance(layer, Data)}
    for net in subject.tests if trained else []:
        labels = set(judged_blobs(net).values())
        for layer in net.data_layers():
            if layer.param.top[0] in labels or (isinstance(layer, Data) and layer.config.source in sources):
                continue  # label maps may well be alike, and one database for both is meant
            same = [(name, trained[digest]) for digest, name in _images(layer) if digest in trained]
            if same:
                seen = f"{len(same)} images are trained on, too, first {same[0][0]} ({same[0][1]})"
                yield found("duplicates", [layer.name], seen)


def _images(layer: Layer) -> Iterator[tuple[bytes, str]]:
    """The images that a data layer reads, the first few hundred: digests and names; nothing of the published sets."""
    try:
        if isinstance(layer, Data):
            yield from _records(layer)
        for path in _image_files(layer):
            with open(path, "rb") as file:
                yield _digest(file.read()), path
    except (DataError, OSError):
        return


def _records(layer: Data) -> Iterator[tuple[bytes, str]]:
    path = find(layer.config.source, layer.base_dir)
    if path is None:
        return
    with closing(open_records(path, layer.config.backend)) as records:
        key, value = records.seek(None)
        for _ in range(min(records.count(), _MOST_IMAGES)):
            pixels = caffe_pb2.Datum.FromString(value).data
            if len(set(pixels[:_MOST_POINTS])) > 1:
                yield _digest(pixels), f"{key.decode(errors='replace')} of {layer.config.source}"
            key, value = records.next()


def _image_files(layer: Layer) -> list[str]:
    if isinstance(layer, ImageMaskLayer):
        return [layer.paths(id)[0] for id in layer.read_ids()[:_MOST_IMAGES]]
    if isinstance(layer, ImageData) and (source := find(layer.config.source, layer.base_dir)):
        names = [layer.config.root_folder + name for name, _ in read_image_list(source)[:_MOST_IMAGES]]
        return [path for name in names if (path := find(name, layer.base_dir))]
    return []


def _digest(content: bytes) -> bytes:
    return hashlib.sha1(content, usedforsecurity=False).digest()
