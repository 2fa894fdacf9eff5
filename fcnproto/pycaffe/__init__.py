"""The module `caffe` for scripts written for it: pycaffe's names over the package's own layers, nets and solvers.

    fcnproto python solve.py 0                   # the script runs with `caffe` importable
    import fcnproto.pycaffe as caffe             # in code of one's own
    fcnproto.pycaffe.install()                   # from here on, `import caffe` is this module
    %load_ext fcnproto.pycaffe                   # the same in a notebook

Blobs live: `net.blobs["data"].data[...] = x` writes into the net. `docs/from-pycaffe.md` says what else there is.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from fcnproto.data import io
from fcnproto.data.python_layer import PythonLayer as Layer
from fcnproto.layers.registry import types as layer_type_list
from fcnproto.pycaffe import coord_map, draw, net_spec, proto
from fcnproto.pycaffe.blob import Blob, BlobVec
from fcnproto.pycaffe.classifier import Classifier, Detector
from fcnproto.pycaffe.mode import (
    NCCL,
    has_nccl,
    init_log,
    log,
    set_device,
    set_mode_cpu,
    set_mode_gpu,
    set_multiprocess,
    set_random_seed,
    set_solver_count,
    set_solver_rank,
    solver_count,
    solver_rank,
)
from fcnproto.pycaffe.net import Net
from fcnproto.pycaffe.net_spec import NetSpec, layers, params, to_proto
from fcnproto.pycaffe.solvers import (
    AdaDeltaSolver,
    AdaGradSolver,
    AdamSolver,
    NesterovSolver,
    RMSPropSolver,
    SGDSolver,
    Solver,
    get_solver,
)
from fcnproto.pycaffe.timer import Timer
from fcnproto.schema.caffe_pb2 import TEST, TRAIN

__version__ = "1.0.0"
"""The version of Caffe whose module this one stands for."""


def install() -> ModuleType:
    """Put this module under the name `caffe` for the process, before any other of that name; returns it."""
    from fcnproto.pycaffe.finder import install as put

    return put()


def load_ipython_extension(shell: Any) -> None:
    """What `%load_ext fcnproto.pycaffe` does: `import caffe` works, and cells and modules may be Python 2."""
    from fcnproto.pycaffe.prompt import Cells
    from fcnproto.pycaffe.python2 import translate_imports

    install()
    translate_imports()
    Cells().listen_to(shell)
