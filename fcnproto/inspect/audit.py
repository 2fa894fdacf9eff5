"""What a net from elsewhere would touch: files, Python modules, memory, work, and names that are odd.

Nothing of the net is run, and none of its data is opened but text lists of files (regular ones, up to 4 MB) and the
nets that a solver names. Whether a file is outside is judged by the net's own folder, links followed.
"""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from fcnproto.data.paths import find, read_list
from fcnproto.data.python_layer import registered_python_layer
from fcnproto.errors import Error, FcnprotoWarning, PrototxtError
from fcnproto.graph import build_graph
from fcnproto.inspect.summary import NetSummary, summarise
from fcnproto.layers.registry import lookup
from fcnproto.layers.source import SourceLayer
from fcnproto.net.net import type_facts
from fcnproto.schema import caffe_pb2
from fcnproto.schema.definition import net_definition
from fcnproto.schema.fields import fields_of
from fcnproto.schema.kinds import HEAD_BYTES, is_hdf5, looks_binary
from fcnproto.schema.text import read_net, read_net_or_solver
from fcnproto.schema.weights import open_weights

# Fields that name what is read or written, in whatever message they stand.
_READS = re.compile(
    r"source|mean_?file|root_folder|label_map_file|name_size_file|\w+_list_path|\w+_dir|video_file|weights"
)
_READ_ALSO = {("RegionLossParameter", "softmax_tree"), ("RegionLossParameter", "class_map")}
_READ_ALSO |= {("SoftmaxWithLossParameter", "weight_source"), ("SolverParameter", "net")}
_READ_ALSO |= {("SolverParameter", "train_net"), ("SolverParameter", "test_net")}
_WRITES = {("HDF5OutputParameter", "file_name"), ("SaveOutputParameter", "output_directory")}
_WRITES |= {("DetectionOutputParameter", "save_file"), ("SolverParameter", "snapshot_prefix")}
_LISTS = ("HDF5DataParameter", "ImageDataParameter", "WindowDataParameter", "DenseImageDataParameter")
_is_number = re.compile(r"[+-]?\d+").fullmatch
_LARGEST_LIST = 4 << 20
_MOST_LISTED = 10_000
_LONGEST_NAME = 200
_GUESS = (1, 3, 500, 500)


@dataclass(frozen=True)
class Access:
    """One file, folder or module: how it is used, by what of the net, its name as written, where that leads, whether
    something is there and whether that is outside of the net's folder."""

    use: str
    by: str
    name: str
    path: str
    exists: bool
    outside: bool


@dataclass(frozen=True)
class OddName:
    """A name or text that looks like an attack or breaks tools: what it is, the text, and what is odd about it."""

    what: str
    text: str
    why: tuple[str, ...]


@dataclass
class Audit:
    """What a net's file asks for. `parameters` and `multiply_adds` are counts, `parameter_bytes` and `blob_bytes` (all
    blobs together) float32; None, with the reason in `refused`, where they can't be found out without running it."""

    file: str
    kind: str
    folder: str
    accesses: list[Access] = field(default_factory=list)
    odd: list[OddName] = field(default_factory=list)
    parameters: int | None = None
    multiply_adds: int | None = None
    parameter_bytes: int | None = None
    blob_bytes: int | None = None
    refused: list[str] = field(default_factory=list)

    @property
    def outside(self) -> list[Access]:
        """What is outside of the net's own folder."""
        return [access for access in self.accesses if access.outside]

    def as_dict(self) -> dict[str, Any]:
        """The same in dicts, lists, texts and numbers, for JSON."""
        return {**asdict(self), "outside": len(self.outside)}


def audit(
    file: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    **reading: Any,
) -> Audit:
    """Audit a net's prototxt, a solver's, or a caffemodel with the definition in it; `weights` are looked through too.

    Memory and work are those of inputs and data layers' tops of these `shapes` where given; `reading` are further
    arguments of `load` that say how the definition is meant (`crop`, `dialect`, `strict`, `caffe_proto`).

    Raises `PrototxtError` or `WeightsError` where the file itself can't be read.
    """
    path = Path(file)
    folder = os.path.realpath(path.resolve().parent)
    kind, message = _read(path)
    result = Audit(str(path), kind, folder)
    _Auditor(result, shapes or {}, reading).look(message, str(path))
    for stored in [weights] if weights is not None else [path] if kind == "caffemodel" else []:
        _look_at_weights(result, Path(stored))
    result.accesses = list(dict.fromkeys(result.accesses))
    result.odd = list(dict.fromkeys(result.odd))
    return result


def _read(path: Path) -> tuple[str, Message]:
    try:
        with path.open("rb") as opened:
            head = opened.read(HEAD_BYTES)
    except OSError as error:
        raise PrototxtError(f"can't be read: {error.strerror or error}", str(path)) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FcnprotoWarning)
        if looks_binary(head) and not is_hdf5(head):
            return "caffemodel", net_definition(path)
        message = read_net_or_solver(path)
    return "solver" if isinstance(message, caffe_pb2.SolverParameter) else "net", message


class _Auditor:
    """Fills an `Audit` from the messages of a file and of the nets that it names."""

    def __init__(self, result: Audit, shapes: Mapping[str, Sequence[int]], reading: dict[str, Any]) -> None:
        self.result, self.shapes, self.reading = result, shapes, reading
        self.seen: set[str] = set()

    def look(self, message: Message, origin: str) -> None:
        """Go through one message: a net, or a solver with its nets."""
        for owner, what, inner, name, text in _texts(message, ""):
            self._text(origin, owner, what, inner, name, text)
        if isinstance(message, caffe_pb2.SolverParameter):
            nets = [message.net_param, message.train_net_param, *message.test_net_param]
            for net in nets:
                self._modules(net)
                if net.ByteSize():
                    self._cost(net)
            for name in filter(None, [message.net, message.train_net, *message.test_net]):
                self._named_net(name)
        elif isinstance(message, caffe_pb2.NetParameter):
            self._modules(message)
            self._cost(message)

    def _text(self, origin: str, owner: str, what: str, message: str, name: str, text: str) -> None:
        by = owner or os.path.basename(origin)
        why = oddities(text)
        is_file = _READS.fullmatch(name) or (message, name) in _READ_ALSO
        writes = (message, name) in _WRITES
        if why and not (is_file or writes) and name != "param_str":
            self.result.odd.append(OddName(f"{what} ({by})", text, tuple(why)))
        elif control := [reason for reason in why if reason not in _USUAL_IN_PATHS]:
            self.result.odd.append(OddName(f"{what} ({by})", text, tuple(control)))
        if name == "param_str":
            for part in re.findall(r"""['"]([^'"]*/[^'"]*)['"]""", text):
                self._file("reads", by, part)
        elif writes:
            self._file("writes", by, text)
        elif is_file:
            for part in text.split(",") if (message, name) == ("SolverParameter", "weights") else [text]:
                found = self._file("reads", by, part.strip())
                if found is not None and message in _LISTS and name == "source":
                    self._list(message, by, found)

    def _file(self, use: str, by: str, name: str, base: str | None = None) -> str | None:
        """Add a file that is named; its path where it is there."""
        if not name:
            return None
        folder = self.result.folder
        found = find(name, base or folder) if use == "reads" else name if os.path.lexists(name) else None
        if found is not None:
            path = os.path.realpath(found)
            outside = not _within(path, folder)
        else:
            path = os.path.normpath(os.path.join(folder, name))
            outside = not _within(os.path.realpath(path), folder)
        self.result.accesses.append(Access(use, by, name, path, found is not None, outside))
        return found

    def _list(self, message: str, by: str, path: str) -> None:
        """Add what a text list of files names."""
        if not os.path.isfile(path) or os.path.getsize(path) > _LARGEST_LIST:
            self.result.refused.append(f"{path}: no text list of up to {_LARGEST_LIST >> 20} MB, not looked into")
            return
        lines = read_list(path, "list of files").split("\n")
        if message == "HDF5DataParameter":
            names = [word for line in lines for word in line.split()]
        elif message == "WindowDataParameter":
            names = [after.strip() for mark, after in pairwise(lines) if mark.startswith("#")]
        else:
            parts = [line.strip().rpartition(" ") for line in lines if line.strip()]
            # A path and a number, or the paths of an image and its labels.
            names = [name.strip() for first, _, last in parts for name in (first, *[last][: not _is_number(last)])]
        for name in names[:_MOST_LISTED]:
            self._file("reads", f"{by}, listed in {os.path.basename(path)}", name)
        if len(names) > _MOST_LISTED:
            self.result.refused.append(f"{path}: lists {len(names):,} files, the first {_MOST_LISTED:,} are looked at")

    def _modules(self, net: caffe_pb2.NetParameter) -> None:
        """Add the Python modules; the published data layers come with the package, and run nothing of the net's."""
        for layer in net.layer:
            if not layer.HasField("python_param"):
                continue
            by, name = f"layer {layer.name!r}", layer.python_param.module
            if registered_python_layer(name, layer.python_param.layer) is None:
                self._module(by, name)
            else:
                self.result.accesses.append(Access("uses", by, name, "(comes with fcnproto)", True, False))

    def _module(self, by: str, name: str) -> None:
        beside = os.path.join(self.result.folder, *name.split("."))
        places = [place for place in (beside + ".py", os.path.join(beside, "__init__.py")) if os.path.exists(place)]
        path = os.path.realpath(places[0]) if places else ""
        outside = not places or not _within(path, self.result.folder)
        self.result.accesses.append(Access("imports", by, name, path or "(from Python's path)", bool(places), outside))

    def _named_net(self, name: str) -> None:
        """The nets of a solver are text of its own: looked through as well."""
        path = find(name, self.result.folder)
        if path is None or not os.path.isfile(path) or os.path.realpath(path) in self.seen:
            return
        self.seen.add(os.path.realpath(path))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FcnprotoWarning)
                self.look(read_net(path), path)
        except Error as error:
            self.result.refused.append(str(error))

    def _cost(self, net: caffe_pb2.NetParameter) -> None:
        """Add up parameters, blobs and work, the data's shapes guessed where only the data know them."""
        result, problems = self.result, []
        plain = _without_files(net)
        for phase in ("test", "train"):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", FcnprotoWarning)
                    guessed = _data_shapes(plain, phase)
                    self._add_cost(summarise(plain, shapes=guessed | {**self.shapes}, phase=phase, **self.reading))
            except Error as error:
                problems.append(str(error))
            except (MemoryError, RuntimeError, OverflowError, ValueError) as error:
                problems.append(" ".join(str(error).split())[:200])
        if len(problems) == 2:
            result.refused.append(f"memory and work can't be told: {problems[0]}")

    def _add_cost(self, summary: NetSummary) -> None:
        """The largest of several nets and phases counts."""
        result = self.result
        result.parameters = max(result.parameters or 0, summary.parameters)
        result.multiply_adds = max(result.multiply_adds or 0, summary.multiply_adds)
        result.parameter_bytes = max(result.parameter_bytes or 0, summary.parameter_bytes)
        result.blob_bytes = max(result.blob_bytes or 0, summary.blob_bytes)


def _without_files(net: caffe_pb2.NetParameter) -> caffe_pb2.NetParameter:
    """The net without the layers that read a file when they are made."""
    kept = caffe_pb2.NetParameter()
    kept.CopyFrom(net)
    kept.ClearField("layer")
    read = {bottom for layer in net.layer for bottom in layer.bottom}
    kept.layer.extend(
        layer for layer in net.layer if layer.type != "InfogainLoss" or any(top in read for top in layer.top)
    )
    return kept


def _data_shapes(net: caffe_pb2.NetParameter, phase: str) -> dict[str, tuple[int, ...]]:
    """A shape for each top of a data layer, of what the layer declares and a guess for the rest: no data is opened."""
    shapes: dict[str, tuple[int, ...]] = {}
    for node in build_graph(net, type_facts, phase).nodes:
        if not node.is_data:
            continue
        layer = lookup(node.type, node.name)(node.param, len(node.tops))
        if isinstance(layer, SourceLayer):
            for blob, shape in zip(node.tops, layer.declared_shapes(), strict=False):
                extents = _GUESS if shape is None else shape
                shapes[blob.name] = tuple(_GUESS[min(k, 3)] if n is None else n for k, n in enumerate(extents))
    return shapes


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _texts(message: Message, owner: str) -> Iterator[tuple[str, str, str, str, str]]:
    """All texts of a message: the layer that it belongs to, what it is, message and field, the text."""
    table = fields_of(message.DESCRIPTOR)
    if table.name == "LayerParameter":
        owner = f"layer {message.name!r}"  # type: ignore[attr-defined]
    for descriptor, content in message.ListFields():
        known = table.by_name[descriptor.name]
        for value in content if known.repeated else [content]:
            if known.kind == "message":
                yield from _texts(value, owner)
            elif known.kind == "string":
                yield owner, f"{table.name}.{known.name}", table.name, known.name, str(value)


_USUAL_IN_PATHS = ("looks like a path out of its folder", "has a path's slashes first")


def oddities(text: str) -> list[str]:
    """What is odd about a name: control characters, marks of direction, markup, paths, and lengths beyond 200."""
    found = []
    kinds = {unicodedata.category(character) for character in text}
    if kinds & {"Cc", "Zl", "Zp"}:
        found.append("has control characters")
    if kinds & {"Cf", "Cs", "Co", "Cn"}:
        found.append("has invisible characters or marks of direction")
    if re.search(r"<[a-zA-Z/!]|\[/?[a-z]+[\]=]|&#?\w+;|\{\{|\"\"\"|'''", text):
        found.append("has markup or quotes")
    if re.search(r"(^|[\\/])\.\.([\\/]|$)", text):
        found.append(_USUAL_IN_PATHS[0])
    if re.match(r"[\\/~]|[A-Za-z]:[\\/]|\w+://", text):
        found.append(_USUAL_IN_PATHS[1])
    if len(text) > _LONGEST_NAME:
        found.append(f"is {len(text):,} characters long")
    return found


def _look_at_weights(result: Audit, path: Path) -> None:
    """Add a weight file's names, and what its blobs take; no values are read."""
    result.accesses.append(Access("reads", "weights", str(path), os.path.realpath(path), path.exists(), False))
    with open_weights(path) as stored:
        total = 0
        for layer in stored.layers:
            if why := oddities(layer.name):
                result.odd.append(OddName("layer of the weights", layer.name, tuple(why)))
            for blob in layer.blobs:
                if blob is not None:
                    try:
                        blob.check()
                    except Error as error:
                        result.refused.append(str(error))
                    else:
                        total += 4 * blob.count
    result.parameter_bytes = max(result.parameter_bytes or 0, total)
