"""The nets of a solver: where the file says they are, in which state each is built, and sharing of their weights.

Not for the training itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcnproto.data.paths import resolve
from fcnproto.errors import DataError, GraphError, SolverError
from fcnproto.layers.base import Layer
from fcnproto.net import Net
from fcnproto.net import params as net_params
from fcnproto.net.stored_shapes import StoredShapes
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import read_net

_TRAIN_FIELDS = ("net", "net_param", "train_net", "train_net_param")


@dataclass(frozen=True)
class NetSource:
    """One net to build: the definition, its state, the folder from which its file names are looked up, and its file
    (None where it stands in the solver itself)."""

    param: caffe_pb2.NetParameter
    phase: int
    level: int
    stages: tuple[str, ...]
    base_dir: Path | None
    file: str | None = None

    def build(
        self,
        weights: list[str],
        *,
        allow_python: bool,
        net_type: type[Net] = Net,
        shapes: Mapping[str, Sequence[int]] | None = None,
        **reading: Any,
    ) -> Net:
        """The net with the values of `weights` (later files overwrite), and fillers' values where they have none.

        `shapes`: those of data tops, by name; others of the solver's nets may be among them. `reading`: `crop`,
        `dialect`, `strict` and `caffe_exact`, as for `Net`.
        """
        tops = {*self.param.input, *(top for layer in (*self.param.layer, *self.param.layers) for top in layer.top)}
        try:
            net = net_type(
                self.param,
                self.phase,
                level=self.level,
                stages=self.stages,
                allow_python=allow_python,
                allow_writes=True,
                base_dir=self.base_dir,
                file=self.file,
                fill=False,
                sized_by=weights,
                shapes={name: shape for name, shape in (shapes or {}).items() if name in tops},
                **reading,
            )
        except (GraphError, DataError) as error:
            if self.file is not None:
                error.args = (f"{self.file}: {error}",)
            raise
        for path in weights:
            net.copy_from(path)
        net.fill_params()
        return net


def net_sources(param: caffe_pb2.SolverParameter, base_dir: Path | None) -> tuple[NetSource, list[NetSource]]:
    """The train net and the test nets that a solver names, in Caffe's order.

    Raises `SolverError` where there is none or more than one train net, or the numbers of test nets, `test_iter` and
    `test_state` don't agree; `DataError` for a missing net file.
    """
    train = _train_source(param, base_dir)
    tests = _test_definitions(param, base_dir)
    if tests and param.test_interval <= 0:
        raise SolverError(f"the solver has {len(tests)} test nets, but no test_interval; give one above 0")
    states: list[caffe_pb2.NetState | None] = list(param.test_state) or [None] * len(tests)
    if len(states) != len(tests):
        raise SolverError(f"{len(states)} test_state entries for {len(tests)} test nets; give none or one for each")
    sources = [_source(*found, caffe_pb2.TEST, state) for found, state in zip(tests, states, strict=True)]
    return train, sources


def _train_source(param: caffe_pb2.SolverParameter, base_dir: Path | None) -> NetSource:
    given = [name for name in _TRAIN_FIELDS if param.HasField(name)]
    if len(given) != 1:
        found = f"has {' and '.join(given)}" if given else "names no net to train"
        raise SolverError(f"the solver {found}; give exactly one of {', '.join(_TRAIN_FIELDS)}")
    state = param.train_state if param.HasField("train_state") else None
    if given[0].endswith("param"):
        return _source(getattr(param, given[0]), base_dir, None, caffe_pb2.TRAIN, state)
    return _source(*_read(getattr(param, given[0]), base_dir), caffe_pb2.TRAIN, state)


_Definition = tuple[caffe_pb2.NetParameter, Path | None, str | None]
"""A net's definition, the folder of its file names, and its file."""


def _test_definitions(param: caffe_pb2.SolverParameter, base_dir: Path | None) -> list[_Definition]:
    named = len(param.test_net_param) + len(param.test_net)
    generic = param.HasField("net") or param.HasField("net_param")
    count = len(param.test_iter)
    if count < named or (count > named and not generic):
        raise SolverError(f"{count} test_iter entries for {named} test nets; give one for each")
    tests: list[_Definition] = [(net, base_dir, None) for net in param.test_net_param]
    tests += [_read(name, base_dir) for name in param.test_net]
    if count > named:
        rest = _read(param.net, base_dir) if param.HasField("net") else (param.net_param, base_dir, None)
        tests += [rest] * (count - named)
    return tests


def _read(name: str, base_dir: Path | None) -> _Definition:
    path = Path(resolve(name, None if base_dir is None else str(base_dir), "net of the solver"))
    return read_net(path, quiet=True), path.resolve().parent, str(path)


def _source(
    net: caffe_pb2.NetParameter,
    folder: Path | None,
    file: str | None,
    phase: int,
    state: caffe_pb2.NetState | None,
) -> NetSource:
    """Caffe's merge of states: the phase by default, then the net's own, then the solver's; stages add up."""
    merged = caffe_pb2.NetState(phase=phase)
    merged.MergeFrom(net.state)
    stages: tuple[str, ...] = ()
    if state is not None:
        merged.MergeFrom(state)
        stages = tuple(state.stage)  # the net appends these to its file's own
    return NetSource(net, merged.phase, merged.level, stages, folder, file)


def weight_files(param: caffe_pb2.SolverParameter, base_dir: Path | None) -> list[str]:
    """The files of the solver's `weights` field: entries may hold several, separated by commas, blanks ignored."""
    names = [name.strip() for entry in param.weights for name in entry.split(",")]
    folder = None if base_dir is None else str(base_dir)
    return [resolve(name, folder, "weight file of the solver") for name in names if name]


def share_weights(source: Net, target: Net) -> None:
    """Make `target`'s parameters those of the layers of the same name in `source`: from then on they are one.

    Caffe's ShareTrainedLayersWith: layers that only one net has are passed over. Raises `SolverError` where numbers or
    shapes of blobs differ.
    """
    target.take_sizes(StoredShapes.of_layers(source.layers))
    targets = {layer.name: layer for layer in reversed(target.layers)}
    for layer in source.layers:
        twin = targets.get(layer.name)
        if twin is None:
            continue
        check_shareable(layer, twin)
        for index, name in enumerate(layer.blob_names):
            net_params.set_blob(twin, index, getattr(layer, name))


def check_shareable(source: Layer, target: Layer) -> None:
    """Raise `SolverError` where two layers of one name can't share their parameters."""
    if [tuple(s) for s in source.blob_shapes] != [tuple(s) for s in target.blob_shapes]:
        raise SolverError(
            f"layer {source.name!r} has parameters of shapes {source.blob_shapes} in the train net, "
            f"{target.blob_shapes} in the test net; a solver's nets must share them"
        )


def snapshot_prefix(param: caffe_pb2.SolverParameter, solver_file: Path | None) -> str:
    """The prefix of snapshots, in a folder that can be written to, or made.

    Caffe's rule: as given; without one the solver file's path less its extension; where it is a folder, the solver
    file's stem in it. A relative one counts from the working directory, else (if its folder is there) from the
    solver's. Caffe stops where the folder is missing; here the first snapshot makes it.
    Raises `SolverError` where there is no prefix or its folder can't be written to.
    """
    prefix = param.snapshot_prefix
    if "\0" in prefix:
        raise SolverError(f"snapshot_prefix {prefix!r}: a NUL can't stand in a file's name")
    if not prefix:
        if solver_file is None:
            raise SolverError("the solver has no snapshot_prefix; give one to write snapshots")
        prefix = str(solver_file.with_suffix(""))
    candidates = [prefix]
    if solver_file is not None and not os.path.isabs(prefix):
        candidates.append(str(solver_file.resolve().parent / prefix))
    chosen = next((path for path in candidates if os.path.isdir(os.path.dirname(path) or ".")), prefix)
    if os.path.isdir(chosen) and solver_file is not None:
        chosen = os.path.join(chosen, solver_file.stem)
    folder = Path(chosen).parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise SolverError(f"snapshot_prefix {prefix!r}: {folder} is no folder that can be written to")
    return chosen
