"""A small module `caffe`, put in place while layers written for pycaffe are imported and run.

It has what such layers use: `caffe.Layer`, TRAIN and TEST, `caffe.io`, `caffe.proto.caffe_pb2`, and the calls that
choose a device, which do nothing. Not a replacement of pycaffe: no nets, no solvers. Where a real `caffe` can be
imported, that one is used and this one stays away.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from fcnproto.data.python_layer import PythonBlob, PythonLayer

_NAME = "caffe"


def _ignore(*args: Any) -> None:
    """Choosing a device or a seed: the net that runs the layer has done it."""


def _make() -> dict[str, ModuleType]:
    """The stand-in's modules by their full names."""
    import fcnproto.data.io as io
    from fcnproto.schema import caffe_pb2

    caffe = ModuleType(_NAME, __doc__)
    proto = ModuleType("caffe.proto", "Caffe's messages.")
    proto.caffe_pb2 = caffe_pb2  # type: ignore[attr-defined]
    members: dict[str, Any] = {
        "Layer": PythonLayer,
        "Blob": PythonBlob,
        "TRAIN": caffe_pb2.TRAIN,
        "TEST": caffe_pb2.TEST,
        "io": io,
        "proto": proto,
        "__path__": [],
    }
    ignored = ("set_mode_cpu", "set_mode_gpu", "set_device", "set_random_seed")
    caffe.__dict__.update(members, **dict.fromkeys(ignored, _ignore))
    return {_NAME: caffe, "caffe.proto": proto, "caffe.proto.caffe_pb2": caffe_pb2, "caffe.io": io}


def real_caffe() -> bool:
    """Whether a real `caffe` is imported or could be (a mere folder of that name does not count)."""
    if _NAME in sys.modules:
        return True
    spec = importlib.util.find_spec(_NAME)
    return spec is not None and spec.origin is not None


_modules: dict[str, ModuleType] = {}


@contextmanager
def caffe_importable() -> Iterator[None]:
    """Within the block `import caffe` works: the real one, or else this stand-in, which is gone afterwards."""
    if real_caffe():
        yield
        return
    if not _modules:
        _modules.update(_make())
    sys.modules.update(_modules)
    try:
        yield
    finally:
        for name, module in _modules.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
