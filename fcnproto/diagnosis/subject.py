"""What is examined: a net in TRAIN with its weights, and the solver that trains it, read from files.

Whatever can be found out although a file is wrong is found out: a net whose loss can't be built is examined without
the loss, and weights that don't fit are left out; both become findings.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcnproto import zoo
from fcnproto.checking.findings import Finding, listed
from fcnproto.checking.geometry import sizes_differ
from fcnproto.checking.kinds import found
from fcnproto.checking.losses import matrix_differs
from fcnproto.data.paths import find
from fcnproto.diagnosis.places import Places, places_in
from fcnproto.errors import DataError, FcnprotoWarning, GraphError, LayerError, WeightsError
from fcnproto.graph import Blob, build_graph
from fcnproto.layers.base import Shape
from fcnproto.layers.registry import lookup
from fcnproto.net import Net
from fcnproto.net.net import type_facts
from fcnproto.net.roles import unsplit
from fcnproto.net.shapes import assumed_shapes, blob_shapes
from fcnproto.net.weights import CopyReport, MisfitError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import read_net_or_solver
from fcnproto.schema.weights import read_blob
from fcnproto.solver import Solver
from fcnproto.solver.nets import NetSource, net_sources, weight_files

PathLike = str | os.PathLike[str]


@dataclass
class Subject:
    """A net to examine, with all that is known of it.

    Attributes:
        title: what it was read from.
        net: the net, in TRAIN unless it was given as it is.
        solver: the solver's fields, None where a net was given alone.
        solver_file: where they stand.
        tests: the solver's test nets, as far as they can be built.
        reports: what the weight files filled.
        has_weights: whether values came from files.
        whole: whether the net's losses could be built; rules about what is learned need them.
        findings: what reading it showed.
    """

    title: str
    net: Net
    solver: caffe_pb2.SolverParameter | None = None
    solver_file: Path | None = None
    tests: list[Net] = field(default_factory=list)
    reports: list[tuple[str, CopyReport]] = field(default_factory=list)
    has_weights: bool = False
    whole: bool = True
    findings: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.places: Places = places_in(next((layer.prototxt for layer in self.net.layers if layer.prototxt), None))
        try:
            self.sources: dict[str, Any] = self.net.source_shapes
        except DataError:
            self.sources = {}
        self.shapes: dict[Blob, Shape] = shapes_of(self.net, self.sources)

    @property
    def file(self) -> tuple[str, str] | None:
        """What the net is called, and its file; None for one in memory."""
        file = next((layer.prototxt for layer in self.net.layers if layer.prototxt), None)
        return None if file is None else (self.net.graph.title, str(file))

    @property
    def is_deploy(self) -> bool:
        """Whether the net is for use alone: given without a solver, and without a loss."""
        return self.solver is None and self.whole and not self.net.graph.weighted()

    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """(height, width) of the data tops that have one for certain, by blob."""
        return {
            name: (shape[2], shape[3])
            for name, shape in self.sources.items()
            if shape is not None and len(shape) == 4 and shape[2] and shape[3]
        }


def shapes_of(net: Net, sources: Mapping[str, Any]) -> dict[Blob, Shape]:
    """The shapes of a net's blobs; of images of a usual size where nobody knows it. Empty where a layer can't work."""
    try:
        return blob_shapes(net.graph, net.layers, assumed_shapes(sources, net.graph), partial=True)
    except LayerError:
        return {}


def read_subject(
    given: PathLike | Net | Solver,
    weights: Sequence[PathLike] = (),
    *,
    level: int = 0,
    stages: Sequence[str] = (),
    **reading: Any,
) -> Subject:
    """What `given` (a net's or a solver's prototxt, a net, a solver) is, with the values of `weights`.

    `level` and `stages` are of a net without a solver. `reading`: `shapes`, `allow_python`, `crop`, `dialect`, `strict`
    and `caffe_proto`, as for `load`. Raises what reading the files raises, but for what becomes findings.
    """
    files = [os.fspath(zoo.located(path, "weights")) for path in weights]
    if isinstance(given, Solver):
        return Subject("solver", given.net, given.param, None, list(given.test_nets), has_weights=True)
    if isinstance(given, Net):
        reports = [(path, given.copy_from(path)) for path in files]
        return Subject(given.graph.name or "net", given, reports=reports, has_weights=True)
    path = Path(zoo.located(given))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", FcnprotoWarning)
        subject = _read(path, files, (level, tuple(stages)), reading)
    subject.findings += _said(heard)
    return subject


def _read(path: Path, files: list[str], rules: tuple[int, tuple[str, ...]], reading: dict[str, Any]) -> Subject:
    definition = read_net_or_solver(path)
    if isinstance(definition, caffe_pb2.SolverParameter):
        base_dir = path.resolve().parent
        train, tests = net_sources(definition, base_dir)
        files = files or weight_files(definition, base_dir)
        subject = _made(train, files, reading)
        subject.title, subject.solver, subject.solver_file = str(path), definition, path
        for source in tests:
            try:
                subject.tests.append(_net(source.param, source, [], reading))
            except GraphError as failure:
                subject.findings.append(
                    found("warned", source.file or str(path), f"a test net can't be built: {failure}")
                )
        return subject
    source = NetSource(definition, caffe_pb2.TRAIN, *rules, path.resolve().parent, str(path))
    subject = _made(source, files, reading)
    subject.title = str(path)
    return subject


def _made(source: NetSource, files: list[str], reading: dict[str, Any]) -> Subject:
    try:
        net, whole, findings = _net(source.param, source, files, reading), True, []
    except LayerError as error:
        bare = _without_losses(source.param)
        net, whole = _net(bare, source, files, reading), False
        findings = list(_why_no_loss(net, source))
        if not findings:
            raise error
    reports = []
    for file in files:
        try:
            report, misfits = _copied(net, file)
            findings += misfits
            reports.append((file, report))
        except WeightsError as error:
            if "fills no layer" not in str(error):
                raise
            findings.append(found("few-weights", file, str(error).removeprefix(f"{file}: ")))
    net.fill_params()
    return Subject(str(source.file), net, reports=reports, has_weights=bool(files), whole=whole, findings=findings)


def _copied(net: Net, file: str) -> tuple[CopyReport, list[Finding]]:
    """What a file fills of a net; the layers that don't fit are left out and said."""
    try:
        return net.copy_from(file), []
    except MisfitError as error:
        misfits, first = [error], str(error).removeprefix(f"{file}: ")
    rest = set(range(len(net.layers)))
    while True:
        rest.discard(misfits[-1].index)
        try:
            report = net.copy_from(file, only=rest)
            break
        except MisfitError as error:
            misfits.append(error)
    names = [net.layers[misfit.index].name for misfit in misfits]
    more = f" ({listed(names[1:])}: neither)" if len(names) > 1 else ""
    return report, [found("old-classes", file, first + more, layers=names)]


def _net(param: caffe_pb2.NetParameter, source: NetSource, files: list[str], reading: dict[str, Any]) -> Net:
    try:
        return Net(
            param,
            source.phase,
            level=source.level,
            stages=source.stages,
            base_dir=source.base_dir,
            file=source.file,
            fill=False,
            sized_by=files,
            **reading,
        )
    except GraphError as error:
        if source.file is not None and not str(error).startswith(source.file):
            error.args = (f"{source.file}: {error}",)
        raise


def _without_losses(param: caffe_pb2.NetParameter) -> caffe_pb2.NetParameter:
    bare = caffe_pb2.NetParameter()
    bare.CopyFrom(param)
    del bare.layer[:]
    for layer in param.layer:
        facts = lookup(layer.type, layer.name)
        if not (facts.is_loss or facts.judges):
            bare.layer.add().CopyFrom(layer)
    return bare


def _why_no_loss(bare: Net, source: NetSource) -> Iterator[Finding]:
    """Why the losses of a net can't be built, from the shapes of all that is before them."""
    graph = build_graph(source.param, type_facts, source.phase, source.level, source.stages)
    shapes = {blob.name: shape for blob, shape in shapes_of(bare, bare.source_shapes).items()}
    for node in graph.nodes:
        if not node.facts.judges or len(node.bottoms) < 2:
            continue
        scores, labels = (shapes.get(_plain_name(blob)) for blob in node.bottoms[:2])
        yield from sizes_differ(node, scores, labels)
        if node.type == "InfogainLoss" and scores is not None and len(scores) > 1:
            drawn = shapes.get(_plain_name(node.bottoms[2])) if len(node.bottoms) > 2 else None
            count = _matrix(node.param, source.base_dir) if drawn is None else math.prod(drawn)
            yield from () if count is None else matrix_differs(node.name, count, scores[1])


def _plain_name(blob: Blob) -> str:
    return unsplit(blob).name


def _matrix(param: caffe_pb2.LayerParameter, base_dir: Path | None) -> int | None:
    """How many values the matrix in an InfogainLoss's file has, where it is there."""
    path = find(param.infogain_loss_param.source, None if base_dir is None else str(base_dir))
    return None if path is None else math.prod(read_blob(path).shape)


_TOLD_OTHERWISE = (
    "each draws its own",
    "solver_mode: GPU",
    "Crop layers without an offset",
    "Caffe's gradient",
    "has no values for",
    "writes nothing",
)
"""Warnings about what rules say, too."""


def _said(heard: Sequence[warnings.WarningMessage]) -> Iterator[Finding]:
    """What was warned of while reading, but for what rules say, too."""
    for text in dict.fromkeys(str(one.message) for one in heard):
        if not any(known in text for known in _TOLD_OTHERWISE):
            yield found("warned", "reading", text)
