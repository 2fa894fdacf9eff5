"""fcnproto reads Caffe's own files and gives back PyTorch modules that compute what Caffe computed.

The names below are loaded on first use, so that parts which need no torch (`fcnproto.schema`) stay light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from fcnproto.layers.base import Layer
    from fcnproto.layers.registry import register as register_layer
    from fcnproto.net import Net, load
    from fcnproto.passes import optimize
    from fcnproto.solver import Solver

__version__ = "0.1.0"

_LAZY = {
    "Layer": "fcnproto.layers.base",
    "Net": "fcnproto.net",
    "Solver": "fcnproto.solver",
    "load": "fcnproto.net",
    "optimize": "fcnproto.passes",
    "register_layer": "fcnproto.layers.registry",
}
# fmt: off
_MODULES = (
    "data", "finetune", "graph", "layers", "netspec", "passes", "precision", "schema",
    "score", "scoring", "segment", "solver", "surgery", "zoo",
)
# fmt: on

__all__ = [
    "DataError",
    "Error",
    "FcnprotoWarning",
    "GraphError",
    "Layer",
    "LayerError",
    "Net",
    "PrototxtError",
    "Solver",
    "SolverError",
    "UnsupportedLayerError",
    "UsageError",
    "WeightsError",
    "__version__",
    "load",
    "optimize",
    "register_layer",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        attribute = "register" if name == "register_layer" else name
        value = getattr(importlib.import_module(_LAZY[name]), attribute)
    elif name in _MODULES:
        value = importlib.import_module(f"fcnproto.{name}")
    else:
        raise AttributeError(f"module 'fcnproto' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_MODULES})
