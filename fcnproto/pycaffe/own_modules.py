"""The modules that a net's Python layers name, where there are files of these names."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fcnproto.data.python_layer import PythonLayer, register_python_layer
from fcnproto.data.python_modules import import_python_module
from fcnproto.graph.rules import is_kept, net_state
from fcnproto.schema import caffe_pb2


def prefer_own_modules(
    param: caffe_pb2.NetParameter, phase: int, level: int, stages: Sequence[str], folder: Path | None
) -> None:
    """Import the modules that a net's Python layers name where there are such files, and take their classes before the
    package's own of the same name: a script's `voc_layers.py` may be another than the published one."""
    state = net_state(param, phase, level, tuple(stages))
    for layer in param.layer:
        if layer.type != "Python" or not is_kept(layer, state):
            continue
        name, title = layer.python_param.module, layer.python_param.layer
        base = None if folder is None else str(folder)
        try:
            module = sys.modules.get(name) or import_python_module(name, base)
        except ModuleNotFoundError as error:
            if error.name == name:
                continue  # perhaps one that the package knows; the engine says if not
            raise
        except Exception:
            continue  # the engine says what is wrong, with the layer's name
        found = getattr(module, title, None)
        if isinstance(found, type) and issubclass(found, PythonLayer):
            register_python_layer(name, title)(found)
