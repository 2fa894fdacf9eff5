"""Checks a solver's fields: what Caffe refuses is an error, what has no effect is a warning; nothing passes silently.

Also makes the optimizer that the fields describe. Not for the nets (`nets`) or the rates (`policies`).
"""

from __future__ import annotations

import dataclasses
import random
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import nn

from fcnproto.checking.alignment import apart
from fcnproto.checking.rules import before_training
from fcnproto.data.alignment import randomly_moved
from fcnproto.errors import FcnprotoWarning, SolverError
from fcnproto.net import Net
from fcnproto.schema import caffe_pb2
from fcnproto.schema.fields import suggestion
from fcnproto.solver import policies
from fcnproto.solver.detection import AP_VERSIONS
from fcnproto.solver.optimizers import TYPES, CaffeOptimizer, param_groups

# The fields that each type reads beside weight_decay, clip_gradients and their like, which all do.
_TYPE_FIELDS: dict[str, tuple[str, ...]] = {
    "SGD": ("momentum",),
    "Nesterov": ("momentum",),
    "AdaGrad": ("momentum", "delta"),  # momentum must be 0: the optimizer refuses it
    "RMSProp": ("momentum", "rms_decay", "delta"),
    "AdaDelta": ("momentum", "delta"),
    "Adam": ("momentum", "momentum2", "delta"),
}
_ANY_TYPE = ("momentum", "momentum2", "rms_decay", "delta")
_ANY_POLICY = ("gamma", "power", "stepsize", "stepvalue", "plateau_winsize", "stagelr", "stageiter")
_READ_AS_ZERO = ("gamma", "power", "stepvalue", "plateau_winsize")
_DETECTION = ("ap_version", "show_per_class_result")
_EVALUATIONS = ("classification", "detection")
_OTHER_EVALUATIONS = ("detection_segmentation", "segmentation")


def check(param: caffe_pb2.SolverParameter) -> None:
    """Raise `SolverError` for what can't be trained with, warn of fields that have no effect or are left at zero."""
    if param.type not in TYPES:
        raise SolverError(
            f"type {param.type!r} is unknown{suggestion(param.type, TYPES)}; choose one of {', '.join(TYPES)}"
        )
    if param.average_loss < 1:
        raise SolverError(f"average_loss must be at least 1, not {param.average_loss}")
    if param.eval_type in _OTHER_EVALUATIONS:
        warn(f"eval_type {param.eval_type!r}, another fork's, is not computed; tests give the means of all outputs")
    elif param.HasField("eval_type") and param.eval_type not in _EVALUATIONS:
        raise SolverError(f"eval_type {param.eval_type!r} is unknown; choose one of {', '.join(_EVALUATIONS)}")
    if param.HasField("ap_version") and param.ap_version not in AP_VERSIONS:
        raise SolverError(f"ap_version {param.ap_version!r} is unknown; choose one of {', '.join(AP_VERSIONS)}")
    for name in ("display", "snapshot", "test_interval", "max_iter"):
        if getattr(param, name) < 0:
            raise SolverError(f"{name} must not be negative, not {getattr(param, name)}")
    if any(count < 0 for count in param.test_iter):
        raise SolverError(f"test_iter must not be negative, not {min(param.test_iter)}")
    given = {field.name for field, _ in param.ListFields()}
    for fields, reason in _idle(param, given):
        if fields:
            warn(f"{', '.join(fields)} not used {reason}")
    if not param.base_lr and param.lr_policy != "multifixed":
        warn("base_lr is 0, so nothing is learned")
    read = policies.FIELDS.get(param.lr_policy, ())  # without stepsize or max_iter the policy refuses
    missing = [name for name in read if name in _READ_AS_ZERO and name not in given]
    if missing:
        warn(f"lr_policy {param.lr_policy!r} reads {', '.join(missing)}, not given: taken for 0 or none, as in Caffe")


def warn_of_waiting(net: Net) -> None:
    """Warn of layers that wait for a size that nobody has said yet."""
    pairs = zip(net.graph.nodes, net.layers, strict=True)
    held = [node.held for node, layer in pairs if node.held and not layer.holds_place and not layer.follows]
    if held:
        more = f" (and {len(held) - 1} more layers)" if len(held) > 1 else ""
        warn(held[0].replace("load(..., shapes=", "Solver(..., shapes=") + more)


def warn_of_vain_training(net: Net) -> None:
    """Warn of what keeps a net, as it is before its first iteration, from learning."""
    told = len(randomly_moved(net.layers)) > 1  # loading warned of two that draw
    for finding in [*before_training(net), *([] if told else apart(net))]:
        warn(str(finding))


def _idle(param: caffe_pb2.SolverParameter, given: set[str]) -> Iterator[tuple[list[str], str]]:
    """Fields that are given but of no effect, with the reason."""

    def among(names: Iterable[str]) -> list[str]:
        return [name for name in names if name in given]

    yield among(name for name in _ANY_TYPE if name not in _TYPE_FIELDS[param.type]), f"by type {param.type}"
    if param.lr_policy in policies.FIELDS:
        used = policies.FIELDS[param.lr_policy]
        yield among(name for name in _ANY_POLICY if name not in used), f"by lr_policy {param.lr_policy!r}"
    if param.lr_policy == "multifixed":
        yield among(["base_lr"]), "by lr_policy 'multifixed'"
    if param.eval_type != "detection":
        yield among(_DETECTION), 'without eval_type: "detection"'
    if not param.weight_decay:
        yield among(["regularization_type"]), "without weight_decay"
    tested = param.test_iter or param.test_net or param.test_net_param
    if not tested:
        yield (
            among(["test_interval", "test_initialization", "test_compute_loss", "eval_type"]),
            "without test nets (test_iter)",
        )
    if param.debug_info and not param.display and not tested:
        yield ["debug_info"], "without display: the train net is traced in the iterations that are displayed"
    if param.HasField("layer_wise_reduce") and not param.layer_wise_reduce:
        yield ["layer_wise_reduce: false"], "here: workers' gradients are averaged while backward runs"


def warn(message: str) -> None:
    """Warn of something in the solver file that can't be followed."""
    warnings.warn(f"solver: {message}", FcnprotoWarning, stacklevel=4)


# What torch's generator is seeded with before anybody seeds it.
_UNSEEDED = torch.Generator("cpu").initial_seed()


def seed(param: caffe_pb2.SolverParameter, rank: int) -> None:
    """Seed torch's, NumPy's and Python's generators with random_seed plus the worker's rank.

    Without a random_seed Caffe draws one from the system; so it is here, unless torch was seeded by the caller.
    """
    if param.random_seed >= 0:
        value = param.random_seed + rank
        torch.manual_seed(value)
        np.random.seed(value % 2**32)
        random.seed(value)
    elif torch.initial_seed() == _UNSEEDED:
        torch.seed()


def choose_device(param: caffe_pb2.SolverParameter) -> torch.device:
    """The GPU that `solver_mode: GPU` (the schema's default) and `device_id` name, where there is one; else the CPU.

    Warns where a field that the file gives can't be followed.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    on_cpu = param.solver_mode == caffe_pb2.SolverParameter.CPU
    if count == 0 and not on_cpu and param.HasField("solver_mode"):
        warn("solver_mode: GPU can't be followed, there is no GPU; training on the CPU")
    if on_cpu or count == 0:
        if param.device_id:
            warn(f"device_id {param.device_id} not used on the CPU")
        return torch.device("cpu")
    if not 0 <= param.device_id < count:
        warn(f"device_id {param.device_id} can't be followed, there are {count} GPUs; training on GPU 0")
        return torch.device("cuda", 0)
    return torch.device("cuda", param.device_id)


def make_optimizer(param: caffe_pb2.SolverParameter, net: Net) -> CaffeOptimizer:
    """The optimizer of the solver's type over the net's learnable parameters. Raises `SolverError`."""
    settings = {name: getattr(param, name) for name in _TYPE_FIELDS[param.type]}
    # BatchNorm's sums stand among the learnable blobs, but Caffe gives them a rate of 0 whatever the file says.
    learnable = [
        entry if isinstance(entry.tensor, nn.Parameter) else dataclasses.replace(entry, lr_mult=0.0)
        for entry in net.learnable
    ]
    return TYPES[param.type](
        param_groups(learnable),
        param.base_lr,
        weight_decay=param.weight_decay,
        regularization_type=param.regularization_type,
        clip_gradients=param.clip_gradients,
        iter_size=param.iter_size,
        **settings,
    )
