"""What a folder holds: nets, their weights, recordings of their blobs; and which belong together."""

from __future__ import annotations

import difflib
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fcnproto.errors import Error, FcnprotoWarning, first_line
from fcnproto.parity import Recording, read_recording
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import read_net_or_solver
from fcnproto.schema.weights import open_weights

_TEXTS = (".prototxt", ".pbtxt", ".prototext")
_LEAST_SHARE = 0.5
"""Of a weight file's layers so many must be the net's for the two to be tried together."""


@dataclass(frozen=True)
class Weights:
    """A weight file with the names of the layers that it fills."""

    path: Path
    layers: frozenset[str]


@dataclass
class Candidate:
    """A net of the folder. `weights` are the files that may be its own, the likeliest first; `recordings` those whose
    inputs and blobs are the net's. `error` says why its text can't be read."""

    path: Path
    layers: frozenset[str] = frozenset()
    blobs: frozenset[str] = frozenset()
    weights: list[Weights] = field(default_factory=list)
    recordings: list[Path] = field(default_factory=list)
    error: str = ""


def find(folder: Path, leave_out: Path) -> list[Candidate]:
    """The nets in a folder and all below it (but for `leave_out`), in the order of their names."""
    files = sorted(_files(folder, leave_out))
    nets = [net for path in files if path.suffix.lower() in _TEXTS if (net := _net(path)) is not None]
    weights = [stored for path in files if (stored := _weights(path)) is not None]
    recordings = [(path, found) for path in files if (found := _recording(path)) is not None]
    for net in nets:
        net.weights = _ranked(net, weights)
    for path, recording in recordings:
        for net in _owners(path, [net for net in nets if _is_of(net, recording)]):
            net.recordings.append(path)
    return nets


def _owners(recording: Path, fitting: Sequence[Candidate]) -> list[Candidate]:
    """Of the nets that a recording fits, the nearest; of those in one folder the ones whose name is in its, if any."""
    if not fitting:
        return []
    nearest = min(_way(recording, net.path) for net in fitting)
    near = [net for net in fitting if _way(recording, net.path) == nearest]
    named = [net for net in near if net.path.stem in recording.stem or recording.stem in net.path.stem]
    return named or near


def _way(start: Path, end: Path) -> int:
    """How many folders lie between two files; 0 in one folder."""
    way = os.path.relpath(end.parent, start.parent)
    return 0 if way == "." else len(way.split(os.sep))


def _files(folder: Path, leave_out: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        here = Path(place)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not (leave_out.exists() and (here / name).samefile(leave_out))
        ]
        yield from (here / name for name in names if not name.startswith(".") and (here / name).is_file())


def _net(path: Path) -> Candidate | None:
    """The net in a text; None for a solver's text and for one that holds no layer."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FcnprotoWarning)  # they are told of the net when it is loaded
            definition = read_net_or_solver(path, quiet=True)
    except Error as error:
        return Candidate(path, error=first_line(error))
    if isinstance(definition, caffe_pb2.SolverParameter) or not definition.layer:
        return None
    return Candidate(path, frozenset(layer.name for layer in definition.layer), _blobs(definition))


def _blobs(definition: caffe_pb2.NetParameter) -> frozenset[str]:
    tops = {name for layer in definition.layer for name in layer.top}
    return frozenset(tops | set(definition.input))


def _weights(path: Path) -> Weights | None:
    name = path.name.lower()
    if not name.endswith((".caffemodel", ".caffemodel.h5")):
        return None
    try:
        with open_weights(path) as opened:
            return Weights(path, frozenset(layer.name for layer in opened.layers if layer.blobs))
    except Error:
        return Weights(path, frozenset())


def _recording(path: Path) -> Recording | None:
    if path.suffix.lower() not in (".npz", ".h5", ".hdf5") or path.name.lower().endswith(
        (".caffemodel.h5", "state.h5")
    ):
        return None
    try:
        return read_recording(path)
    except Error:
        return None


def _is_of(net: Candidate, recording: Recording) -> bool:
    """Whether a recording may be one of this net: it has all its inputs, and most of its blobs."""
    if not recording.inputs or not net.blobs.issuperset(recording.inputs):
        return False
    return 2 * len(net.blobs & recording.blobs.keys()) > len(recording.blobs)


def _ranked(net: Candidate, weights: Sequence[Weights]) -> list[Weights]:
    """The weights that share enough layers with the net: first those that share most, then the nearest, the most like
    in name, the latest."""

    def order(found: Weights) -> tuple[float, int, float, int, str]:
        shared = len(net.layers & found.layers)
        share = shared / max(len(found.layers | {name for name in net.layers if name in known}), 1)
        likeness = difflib.SequenceMatcher(None, net.path.stem.lower(), found.path.name.lower()).ratio()
        return -share, _way(net.path, found.path), -likeness, -_iteration(found.path), str(found.path)

    known = frozenset(name for found in weights for name in found.layers)
    fitting = [one for one in weights if one.layers and len(one.layers & net.layers) >= _LEAST_SHARE * len(one.layers)]
    return sorted(fitting, key=order)


def _iteration(path: Path) -> int:
    found = re.search(r"_iter_(\d+)", path.name)
    return int(found[1]) if found else 0
