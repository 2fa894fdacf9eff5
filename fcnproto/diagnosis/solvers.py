"""Rules about a solver: rates, tests, snapshots. Nothing of it is run."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from fcnproto.checking.findings import Finding, listed
from fcnproto.checking.kinds import found
from fcnproto.checking.losses import Term, terms
from fcnproto.data.database import Data
from fcnproto.data.hdf5 import HDF5Data
from fcnproto.data.image_data import ImageData, read_image_list
from fcnproto.data.paths import resolve
from fcnproto.data.records import open_records
from fcnproto.diagnosis.subject import Subject
from fcnproto.errors import DataError, SolverError
from fcnproto.layers.base import Layer
from fcnproto.net import Net
from fcnproto.schema import caffe_pb2
from fcnproto.scoring.scoring import own_length
from fcnproto.solver.nets import snapshot_prefix
from fcnproto.solver.policies import LearningRatePolicy

_STILL, _HARDLY = 5e-4, 4e-3
"""Rate x summed pixels x iterations / (1 - momentum), how far a parameter can go: at most this moves nothing, or hardly
anything. The published 1e-14 over 1.7e5 pixels and 1e5 iterations at momentum 0.99 is 1.7e-2."""
_STILL_ADAPTIVE = 1e-4
"""The same for solvers that divide by the gradients' size: rate x iterations."""
_TINY_MEAN = 1e-6
"""Rate / (1 - momentum) of a mean loss below which it was made for a summed one."""
_HOT, _WARM = 1.0, 0.3
"""Rate x summed pixels / (1 - momentum), the same of a summed loss: what explodes, and what is likely to."""
_MANY_PLACES = 100
_ADAPTIVE = ("Adam", "AdaGrad", "RMSProp", "AdaDelta")
_SAMPLES = 64


def solver_rules(subject: Subject) -> Iterator[Finding]:
    """What is wrong with the solver of a net, if it has one."""
    param = subject.solver
    if param is None:
        return
    where = str(subject.solver_file or "solver")
    if subject.whole and subject.net.graph.weighted():
        yield from _rates(param, subject, where)
    yield from _iter_size(param, subject.net, where)
    yield from _steps(param, where)
    yield from _tests(param, subject.tests, where)
    yield from _snapshots(param, subject.solver_file, where)
    cpu = caffe_pb2.SolverParameter.CPU
    if param.HasField("solver_mode") and param.solver_mode != cpu and not torch.cuda.is_available():
        yield found("no-gpu", where, "solver_mode: GPU, and torch finds no GPU")


def _rates(param: caffe_pb2.SolverParameter, subject: Subject, where: str) -> Iterator[Finding]:
    losses = terms(subject.net, subject.shapes)
    pixels = max((term.weight * term.pixels for term in losses), default=1.0)
    gain = 1 / max(1 - param.momentum, 1e-3)
    largest = max((ref.lr_mult for ref in subject.net.parameter_places()), default=1.0) or 1.0
    rate = param.base_lr * largest
    if param.type in _ADAPTIVE:
        reach = rate * param.max_iter * _mean_factor(param)
        if param.max_iter and param.type != "AdaDelta" and reach < _STILL_ADAPTIVE:
            seen = f"{param.type}, base_lr {param.base_lr:g} x {param.max_iter} iterations move a weight by {reach:.2g}"
            yield found("rate-too-small", where, seen)
        return
    normal = list(_normalisation(param, losses, rate, gain, where))
    yield from normal
    reach = rate * pixels * gain * param.max_iter * _mean_factor(param)
    if param.HasField("max_iter") and param.max_iter > 0 and reach < _HARDLY:
        yield found(
            "rate-too-small",
            where,
            f"base_lr {param.base_lr:g} x {pixels:g} summed losses x {param.max_iter} iterations / (1 - momentum "
            f"{param.momentum:g}) = {reach:.2g}",
            level="fault" if reach < _STILL else "suspect",
        )
    means = losses and all(term.pixels == 1 and term.places >= _MANY_PLACES for term in losses)
    if means and param.momentum >= 0.99 and not normal:
        yield found("momentum", where, f"momentum {param.momentum:g} with {losses[0].node.name!r}, a mean over pixels")


def _normalisation(
    param: caffe_pb2.SolverParameter, losses: list[Term], rate: float, gain: float, where: str
) -> Iterator[Finding]:
    """Rates that belong to the other way of adding up a loss."""
    for term in losses:
        if term.places < _MANY_PLACES:
            continue
        step = rate * term.weight * term.pixels * gain
        text = f"base_lr {param.base_lr:g}, momentum {param.momentum:g}, {term.node.name!r} is "
        names = [term.node.name]
        if term.pixels == 1 and 0 < step < _TINY_MEAN:
            seen = f"{text}a mean over {term.places} labels an image"
            remedy = "`loss_param { normalize: false }` if this rate is meant, else base_lr: 1e-4"
            yield found("loss-normalisation", where, seen, remedy=remedy, layers=names)
        elif term.pixels > 1 and step > _WARM:
            yield found(
                "loss-normalisation",
                where,
                f"{text}the sum over {term.places} labels an image",
                level="fault" if step > _HOT else "suspect",
                remedy="base_lr: 1e-10 for a summed loss, or `loss_param { normalize: true }`",
                layers=names,
            )


def _mean_factor(param: caffe_pb2.SolverParameter) -> float:
    """The mean rate over all iterations in units of base_lr, from some of them."""
    if not param.base_lr or not param.max_iter:
        return 1.0
    try:
        policy = LearningRatePolicy(param)
        rates = [policy(param.max_iter * index // _SAMPLES) for index in range(_SAMPLES)]
    except SolverError:
        return 1.0
    finite = [rate for rate in rates if math.isfinite(rate)]
    return sum(finite) / len(finite) / param.base_lr if finite else 1.0


def _iter_size(param: caffe_pb2.SolverParameter, net: Net, where: str) -> Iterator[Finding]:
    if param.iter_size < 1:
        yield found("iter-size", where, f"iter_size {param.iter_size}: no batch is read")
    elif param.iter_size > 1:
        names = [layer.name for layer in net.layers if _by_batch(layer)]
        if names:
            seen = f"iter_size {param.iter_size}, but the statistics of {listed(names)} are those of one batch each"
            yield found("iter-size", where, seen, layers=names)


def _by_batch(layer: Layer) -> bool:
    if layer.type != "BatchNorm":
        return False
    config = layer.config
    return not (bool(config.use_global_stats) if config.HasField("use_global_stats") else False)


def _steps(param: caffe_pb2.SolverParameter, where: str) -> Iterator[Finding]:
    if not param.max_iter:
        return
    if param.lr_policy == "step" and param.stepsize >= param.max_iter:
        yield found("steps-beyond", where, f"stepsize {param.stepsize} for max_iter {param.max_iter}")
    late = [value for value in param.stepvalue if value > param.max_iter or min(param.stepvalue) >= param.max_iter]
    if param.lr_policy == "multistep" and late:  # a last one at max_iter itself marks the end, and does no harm
        yield found("steps-beyond", where, f"stepvalue {', '.join(map(str, late))} for max_iter {param.max_iter}")


def _tests(param: caffe_pb2.SolverParameter, tests: list[Net], where: str) -> Iterator[Finding]:
    for index, (net, iterations) in enumerate(zip(tests, param.test_iter, strict=False)):
        for count, batch in _items(net):
            if iterations * batch < count:
                yield found(
                    "test-leaves-out",
                    where,
                    f"test_iter {iterations} x batch_size {batch} = {iterations * batch} of {count} images "
                    f"(test net #{index})",
                    remedy=f"test_iter: {-(-count // batch)}",
                )


def _items(net: Net) -> Iterator[tuple[int, int]]:
    """(how many items there are, how many a batch has) of the data layers of a test net whose sources are there."""
    try:
        length = own_length(net)
        if length is not None:
            yield length, 1
        for layer in net.data_layers():
            if isinstance(layer, ImageData):
                yield len(read_image_list(resolve(layer.config.source, layer.base_dir))), layer.config.batch_size
            elif isinstance(layer, HDF5Data):
                yield layer.count_rows(), layer.config.batch_size
            elif isinstance(layer, Data):
                records = open_records(resolve(layer.config.source, layer.base_dir), layer.config.backend)
                try:
                    yield records.count(), layer.config.batch_size
                finally:
                    records.close()
    except DataError:
        return


def _snapshots(param: caffe_pb2.SolverParameter, file: Path | None, where: str) -> Iterator[Finding]:
    if not (param.snapshot or param.snapshot_after_train) or (file is None and not param.snapshot_prefix):
        return
    try:
        folder = os.path.dirname(snapshot_prefix(param, file)) or "."
    except SolverError as error:
        yield found("snapshot-folder", where, str(error), level="fault", why="no snapshot can be written")
        return
    if not os.path.isdir(folder):
        yield found("snapshot-folder", where, f"snapshot_prefix {param.snapshot_prefix!r}: there is no folder {folder}")
