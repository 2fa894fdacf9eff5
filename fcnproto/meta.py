"""What belongs to a net beside its layers and weights: how images become its inputs, and what its scores mean.

`Meta` is plain data, and knows how it stands in files: in the header of a .safetensors file, in a JSON file beside a
caffemodel, in comments at the head of a prototxt. Where it comes from for a net is found in `preprocessing.py`. What is
read from a file is checked here, and never more than data. No path stands in what is written.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from fcnproto.atomic import atomic_write
from fcnproto.errors import DataError
from fcnproto.escaping import printable
from fcnproto.images import Kind, Preprocessing
from fcnproto.zoo import Colour, ModelInfo, Score, palette

PathLike = str | os.PathLike[str]

KEY = "fcnproto.meta"
"""The name of the entry in the header of a .safetensors file, and the "format" of a JSON file."""
LONGEST_FILE = 2**26  # longer ones are not read
_COMMENT = "#: "
_HEADLINE = "# What this net wants of its images, and what its scores mean (fcnproto reads the lines with #:)"
_LONGEST_NAME, _MOST = 1000, 65536
_ORDERS = {"bgr": "BGR", "rgb": "RGB", "grey": "grey", "depth": "D"}


@dataclass(frozen=True, eq=False)
class ImageInput:
    """An image blob of a net: the `preprocessing` that makes it, and the names of its channels in their `order`
    ("BGR", "RGB", "HHA", "grey", "D" for the logarithm of a depth)."""

    blob: str
    preprocessing: Preprocessing
    order: str

    @staticmethod
    def of(blob: str, how: Preprocessing, order: str = "") -> ImageInput:
        """The input that is made this way."""
        return ImageInput(blob, how, order or _ORDERS.get(how.kind, how.kind))

    @property
    def channels(self) -> int:
        """How many channels the blob has."""
        return self.preprocessing.channels

    @property
    def mean(self) -> tuple[float, ...] | npt.NDArray[Any] | None:
        """What is taken off the values 0..255: a number for each channel in the blob's order, a mean image (channels,
        height, width), or nothing."""
        found = self.preprocessing.mean
        return tuple(float(value) for value in found) if found is not None and found.ndim == 1 else found

    @property
    def scale(self) -> float | tuple[float, ...]:
        """The factor after the mean is taken off, or one for each channel."""
        return self.preprocessing.scale

    @property
    def why(self) -> str:
        """Where this is known from."""
        return self.preprocessing.why


@dataclass(frozen=True)
class ScoreOutput:
    """A blob of class scores: the names of its classes in order ("class 0", ... unless they are `named`), the blob of
    its labels in training and the label that does not count, where known."""

    blob: str
    classes: tuple[str, ...]
    named: bool
    label: str | None = None
    ignore_label: int | None = None
    why: str = ""


Entry = TypeVar("Entry", ImageInput, ScoreOutput)


class ByBlob(tuple[Entry, ...], Generic[Entry]):
    """Inputs or outputs in order; one may be asked for by its blob's name as well."""

    def __getitem__(self, key: Any) -> Any:
        """The entry at a place, some of them by a slice, or the one of a blob."""
        if not isinstance(key, str):
            return super().__getitem__(key)
        for entry in self:
            if entry.blob == key:
                return entry
        raise KeyError(key)


@dataclass(frozen=True, eq=False)
class Meta:
    """What belongs to a net.

    Attributes:
        name: what the net is called: a name of the zoo, or the net's own.
        inputs, outputs: its image inputs and its score blobs, by place or by blob name.
        scores: the published figures of exactly these weights' net.
    """

    name: str = ""
    inputs: ByBlob[ImageInput] = field(default_factory=ByBlob)
    outputs: ByBlob[ScoreOutput] = field(default_factory=ByBlob)
    scores: tuple[Score, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the first score blob's classes; "class 0", "class 1", ... where nobody says them."""
        return self.outputs[0].classes if self.outputs else ()

    @property
    def palette(self) -> list[Colour]:
        """An RGB colour for each class of the first score blob."""
        return palette(len(self.classes))

    @property
    def source(self) -> str:
        """Where all of this is known from, in words."""
        entries: list[ImageInput | ScoreOutput] = [*self.inputs, *self.outputs]
        said = [f"{entry.blob}: {entry.why}" for entry in entries if entry.why]
        return printable("; ".join(said))

    @property
    def known(self) -> Meta | None:
        """The part that is more than an assumption, as it goes into files; None where that is nothing."""
        inputs = ByBlob(entry for entry in self.inputs if entry.why != "assumed")
        outputs = ByBlob(entry for entry in self.outputs if entry.named)
        return replace(self, inputs=inputs, outputs=outputs) if inputs or outputs else None

    def with_classes(self, classes: Mapping[str, Sequence[str]]) -> Meta:
        """The same for other classes, by score blob; the published figures are no longer this net's."""
        outputs = [
            replace(entry, classes=tuple(classes[entry.blob]), named=True, why="given")
            if entry.blob in classes
            else entry
            for entry in self.outputs
        ]
        known = {entry.blob for entry in outputs}
        outputs += [
            ScoreOutput(blob, tuple(names), True, why="given") for blob, names in classes.items() if blob not in known
        ]
        return replace(self, outputs=ByBlob(outputs), scores=())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Meta) and self.as_dict() == other.as_dict()

    def __hash__(self) -> int:
        return hash((self.name, self.classes))

    def as_dict(self, images: bool = True) -> dict[str, Any]:
        """For JSON. Without `images` a mean image counts by its average in each channel."""
        return {
            "format": KEY,
            "version": 1,
            "name": self.name,
            "inputs": [
                {
                    "blob": entry.blob,
                    "kind": entry.preprocessing.kind,
                    "order": entry.order,
                    "mean": _mean_out(entry.preprocessing.mean, images),
                    "scale": list(entry.scale) if isinstance(entry.scale, tuple) else entry.scale,
                    **({"bands": entry.channels} if entry.preprocessing.kind == "bands" else {}),
                }
                for entry in self.inputs
            ],
            "outputs": [
                {
                    "blob": entry.blob,
                    "classes": list(entry.classes),
                    "label": entry.label,
                    "ignore_label": entry.ignore_label,
                }
                for entry in self.outputs
                if entry.named
            ],
            "scores": [asdict(score) for score in self.scores],
        }


def of_record(record: ModelInfo, why: str) -> Meta:
    """What is known of a net of the zoo."""
    kinds: dict[str, Kind] = {"BGR": "bgr", "RGB": "rgb", "HHA": "rgb", "D": "depth"}
    inputs = [
        ImageInput(
            entry.blob, Preprocessing(kinds[entry.channels], np.array(entry.mean), why=why), order=entry.channels
        )
        for entry in record.inputs
        if entry.channels in kinds
    ]
    outputs = [
        ScoreOutput(entry.blob, entry.classes, True, entry.label, entry.ignore_label, why) for entry in record.outputs
    ]
    return Meta(record.name, ByBlob(inputs), ByBlob(outputs), record.scores)


def to_text(meta: Meta, *, indent: int | None = None, images: bool = True) -> str:
    """JSON in ASCII, which has no line breaks within names."""
    return json.dumps(meta.as_dict(images), indent=indent)


def from_text(text: str | bytes, where: str) -> Meta | None:
    """What `to_text` wrote, found at `where` (a file's name); None for JSON of another kind.

    Raises `DataError` for what says that it is meta and is damaged."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is no readable JSON ({printable(str(error), 100)})") from None
    if not isinstance(found, dict) or found.get("format") != KEY:
        return None
    try:
        inputs = ByBlob(_input_in(entry, where) for entry in _rows(found, "inputs", 64))
        outputs = ByBlob(_output_in(entry, where) for entry in _rows(found, "outputs", 64))
        scores = tuple(_score_in(entry) for entry in _rows(found, "scores", 64))
        return Meta(_word(found.get("name", "")), inputs, outputs, scores)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: what it says of the net is damaged ({printable(str(error), 100)})") from None


def _rows(found: Mapping[str, Any], name: str, most: int) -> list[Mapping[str, Any]]:
    rows = found.get(name, [])
    if not isinstance(rows, list) or len(rows) > most or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{name!r} is no list of at most {most} entries")
    return rows


def _word(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_NAME:
        raise ValueError("a name is no text, or too long")
    value.encode("utf-8")  # no lone surrogates
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError("a number is none, or not finite")
    return float(value)


def _scale_in(value: Any) -> float | tuple[float, ...]:
    return tuple(map(_number, value)) if isinstance(value, list) else _number(value)


def _input_in(row: Mapping[str, Any], where: str) -> ImageInput:
    kind = row["kind"]
    if kind not in get_args(Kind):
        raise ValueError(f"unknown kind of image {kind!r}")
    bands = row.get("bands", 0)
    if (
        isinstance(bands, bool)
        or not isinstance(bands, int)
        or not 0 <= bands <= _MOST
        or (kind == "bands") != (bands > 0)
    ):
        raise ValueError("the number of bands is none")
    how = Preprocessing(kind, _mean_in(row.get("mean")), _scale_in(row.get("scale", 1.0)), f"said in {where}", bands)
    if isinstance(how.scale, tuple) and len(how.scale) != how.channels:
        raise ValueError("the scale has another number of channels than the input")
    if how.mean is not None and len(how.mean) not in (1, how.channels):
        raise ValueError("the mean has another number of channels than the input")
    return ImageInput(_word(row["blob"]), how, _word(row["order"]))


def _output_in(row: Mapping[str, Any], where: str) -> ScoreOutput:
    names, label, ignored = row["classes"], row.get("label"), row.get("ignore_label")
    if not isinstance(names, list) or not 0 < len(names) <= _MOST:
        raise ValueError("the classes are no list of names")
    if ignored is not None and (isinstance(ignored, bool) or not isinstance(ignored, int)):
        raise ValueError("ignore_label is no whole number")
    classes = tuple(map(_word, names))
    return ScoreOutput(
        _word(row["blob"]), classes, True, None if label is None else _word(label), ignored, f"said in {where}"
    )


def _score_in(row: Mapping[str, Any]) -> Score:
    metrics = row["metrics"]
    if not isinstance(metrics, dict) or len(metrics) > 64:
        raise ValueError("metrics are no table")
    figures = {_word(name): _number(value) for name, value in metrics.items()}
    return Score(_word(row["data"]), figures, _word(row["source"]), row["verified"] is True)


def _mean_out(mean: npt.NDArray[Any] | None, images: bool) -> Any:
    if mean is None:
        return None
    if mean.ndim == 1:
        return [float(value) for value in mean]
    if not images:
        return [float(value) for value in mean.mean(axis=(1, 2), dtype=np.float64)]
    values = np.ascontiguousarray(mean, dtype="<f4")
    return {"shape": list(mean.shape), "float32": base64.b64encode(values.tobytes()).decode("ascii")}


def _mean_in(found: Any) -> npt.NDArray[Any] | None:
    if found is None:
        return None
    if isinstance(found, list):
        if not 0 < len(found) <= _MOST:
            raise ValueError("the mean is empty or too long")
        return np.array([_number(value) for value in found], dtype=np.float64)
    shape = [int(_number(extent)) for extent in found["shape"]]
    values = np.frombuffer(base64.b64decode(found["float32"], validate=True), dtype="<f4")
    if len(shape) != 3 or min(shape) < 1 or math.prod(shape) != values.size or not np.isfinite(values).all():
        raise ValueError("the mean image is damaged")
    return values.reshape(shape).astype(np.float32)


# In files.


def beside(weights: PathLike) -> Path:
    """The JSON file that belongs to a file of weights."""
    return Path(f"{os.fspath(weights)}.json")


def write_beside(weights: PathLike, meta: Meta | None) -> None:
    """Write what is known of a net beside its weights; an older word of that kind goes where nothing is known now.

    A JSON file of another kind is left alone."""
    path = beside(weights)
    if path.exists() and not _is_ours(path):
        return
    if meta is None:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path, "w") as file:
        file.write(to_text(meta, indent=1) + "\n")


def _is_ours(path: Path) -> bool:
    try:
        return read_beside(path.with_name(path.name[: -len(".json")])) is not None
    except DataError:
        return False


def read_beside(weights: PathLike) -> Meta | None:
    """What the JSON file beside weights says; None where there is none, or one of another kind. Raises `DataError`."""
    path = beside(weights)
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > LONGEST_FILE:
            return None
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from error
    return from_text(content, path.name) if KEY.encode() in content else None


def comment(meta: Meta | None) -> str:
    """The comment for the head of a prototxt; nothing where nothing is known."""
    if meta is None:
        return ""
    lines = to_text(meta, indent=0, images=False).split("\n")
    return "\n".join([_HEADLINE, *_joined(f"{_COMMENT}{line}" for line in lines)]) + "\n"


def _joined(lines: Iterator[str]) -> Iterator[str]:
    """Short lines of JSON put together to lines of some hundred signs."""
    made = ""
    for line in lines:
        if made and len(made) + len(line) > 116:
            yield made
            made = line
        else:
            made = f"{made} {line[len(_COMMENT) :]}" if made else line
    yield made


def from_comment(path: PathLike) -> Meta | None:
    """What the comment at the head of a prototxt says; None where there is none. Raises `DataError`."""
    lines, length = [], 0
    try:
        with open(path, "rb") as file:
            for line in file:
                length += len(line)
                if not line.startswith(b"#") or length > LONGEST_FILE:
                    break
                if line.startswith(_COMMENT.encode()):
                    lines.append(line[len(_COMMENT) :])
    except OSError:
        return None
    return from_text(b" ".join(lines), Path(path).name) if lines else None
