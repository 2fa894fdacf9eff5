"""fcnproto reads Caffe's own files and gives back PyTorch modules that compute what Caffe computed.

The names below are loaded on first use, so that parts which need no torch (`fcnproto.schema`) stay light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcnproto.errors import (
    DataError,
    Error,
    FcnprotoWarning,
    GraphError,
    LayerError,
    PrototxtError,
    SolverError,
    UnsupportedLayerError,
    UsageError,
    WeightsError,
)
from fcnproto.lazy import lazily

if TYPE_CHECKING:
    from fcnproto.diagnosis import check
    from fcnproto.finetune.creating import create_model
    from fcnproto.layers.base import Layer, Pointwise
    from fcnproto.layers.registry import register as register_layer
    from fcnproto.net import Net, load
    from fcnproto.passes import optimize
    from fcnproto.solver import Solver
    from fcnproto.zoo import names as list_models

__version__ = "0.1.0"

_MODULES = (
    "cluster",
    "data",
    "finetune",
    "graph",
    "layers",
    "netspec",
    "passes",
    "precision",
    "scenes",
    "schema",
    "scoring",
    "segment",
    "solver",
    "surgery",
    "zoo",
)

__all__ = [
    "DataError",
    "Error",
    "FcnprotoWarning",
    "GraphError",
    "Layer",
    "LayerError",
    "Net",
    "Pointwise",
    "PrototxtError",
    "Solver",
    "SolverError",
    "UnsupportedLayerError",
    "UsageError",
    "WeightsError",
    "__version__",
    "check",
    "create_model",
    "list_models",
    "load",
    "optimize",
    "register_layer",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Layer": "fcnproto.layers.base",
        "Net": "fcnproto.net",
        "Pointwise": "fcnproto.layers.base",
        "Solver": "fcnproto.solver",
        "check": "fcnproto.diagnosis",
        "create_model": "fcnproto.finetune.creating",
        "list_models": "fcnproto.zoo:names",
        "load": "fcnproto.net",
        "optimize": "fcnproto.passes",
        "register_layer": "fcnproto.layers.registry:register",
        "score": "fcnproto.scoring.metrics:",
    }
    | {module: f"fcnproto.{module}:" for module in _MODULES},
)
