"""Checks a solver's fields: what Caffe refuses is an error, what has no effect is a warning; nothing passes silently.

Also makes the optimizer that the fields describe. Not for the nets (`nets`) or the rates (`policies`).
"""

from __future__ import annotations

import dataclasses
import random
import warnings

import numpy as np
import torch
from torch import nn

from fcnproto.errors import FcnprotoWarning, SolverError
from fcnproto.net import Net
from fcnproto.schema import caffe_pb2
from fcnproto.solver import policies
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
_ANY_POLICY = ("gamma", "power", "stepsize", "stepvalue")


def check(param: caffe_pb2.SolverParameter) -> None:
    """Raise `SolverError` for what can't be trained with, warn of fields that have no effect."""
    if param.type not in TYPES:
        raise SolverError(f"type {param.type!r} is unknown; choose one of {', '.join(TYPES)}")
    if param.average_loss < 1:
        raise SolverError(f"average_loss must be at least 1, not {param.average_loss}")
    for name in ("display", "snapshot", "test_interval", "max_iter"):
        if getattr(param, name) < 0:
            raise SolverError(f"{name} must not be negative, not {getattr(param, name)}")
    idle = [name for name in _ANY_TYPE if name not in _TYPE_FIELDS[param.type] and param.HasField(name)]
    _warn(idle, f"by type {param.type}")
    if param.lr_policy in policies.FIELDS:
        used = policies.FIELDS[param.lr_policy]
        given = {field.name for field, _ in param.ListFields()}
        _warn([name for name in _ANY_POLICY if name in given and name not in used], f"by lr_policy {param.lr_policy!r}")
    if param.HasField("regularization_type") and not param.weight_decay:
        _warn(["regularization_type"], "without weight_decay")
    if param.HasField("layer_wise_reduce") and not param.layer_wise_reduce:
        message = "layer_wise_reduce: false has no effect: workers' gradients are averaged while backward runs"
        warnings.warn(message, FcnprotoWarning, stacklevel=4)


def _warn(fields: list[str], why: str) -> None:
    if fields:
        warnings.warn(f"solver: {', '.join(fields)} not used {why}", FcnprotoWarning, stacklevel=5)


# What torch's generator is seeded with before anybody seeds it.
_UNSEEDED = torch.Generator().initial_seed()


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
    """The GPU that `solver_mode: GPU` (the schema's default) and `device_id` name, where there is one; else the CPU."""
    if param.solver_mode == caffe_pb2.SolverParameter.CPU or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", param.device_id if param.device_id < torch.cuda.device_count() else 0)


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
