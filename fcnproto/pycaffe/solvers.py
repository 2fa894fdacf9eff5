"""pycaffe's solvers: `fcnproto.Solver` over nets with live blobs, so that scripts can write into them between steps."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from fcnproto.net import Net as EngineNet
from fcnproto.pycaffe import mode
from fcnproto.pycaffe.failures import MissingFileError, as_pycaffe_raised
from fcnproto.pycaffe.net import LiveNet, Net
from fcnproto.pycaffe.own_modules import prefer_own_modules
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import read_solver
from fcnproto.solver import Solver as EngineSolver
from fcnproto.solver.engine import Engine, Options
from fcnproto.solver.nets import net_sources


class _LiveEngine(Engine):
    """The passes of the train net, layer by layer over its blobs."""

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Add this pass's gradients to those of the parameters' blobs."""
        net = _live(self.net)
        net._backward(len(net.layers) - 1, 0)


class _Driver(EngineSolver):
    """The package's solver, with the nets' blobs for memory."""

    net_type = LiveNet

    def __init__(self, param: caffe_pb2.SolverParameter, path: Path) -> None:
        super().__init__(param, device=mode.device(), allow_python=True, path=path, caffe_exact=True)
        for net in (self.net, *self.test_nets):
            Net.around(cast("LiveNet", net))
        self.engine = _LiveEngine(self.net, Options())
        self.optimizer.keep_updates()

    def clear_gradients(self) -> None:
        """Begin an iteration without the gradients of the last one, in the blobs' own memory."""
        _live(self.net).clear_param_diffs()

    def apply_update(self) -> None:
        """Change the parameters by the gradients in their blobs, whose `diff` is what was taken off them afterwards."""
        net = _live(self.net)
        net.bind_gradients()
        super().apply_update()
        net.put_updates(self.optimizer.last_update)
        net._parameters_changed()

    def share_weights(self, net: EngineNet) -> None:
        """Make a test net's parameters those of the train net."""
        _live(net).share_with(_live(self.net))

    def snapshot(self) -> str:
        """Write model and state; what Python wrote into parameters is in them."""
        _live(self.net)._bring_home()
        return super().snapshot()

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on from a solver state and its model."""
        super().restore(path)
        _live(self.net)._parameters_changed()


def _live(engine: EngineNet) -> Net:
    net = cast("LiveNet", engine).live
    assert net is not None
    return net


class Solver:
    """A Caffe solver from a solver.prototxt. Where it computes says the process's mode, not the file's `solver_mode`.

    Attributes: `net` and `test_nets` (a list), whose blobs live; `iter`; `param`, the file's fields.
    Raises `fcnproto.Error`; RuntimeError too where the file is missing.
    """

    type_name: ClassVar[str | None] = None
    """The solver's type, whatever the file says; None: the file's own."""

    def __init__(self, solver_file: str | os.PathLike[str]) -> None:
        if not os.path.isfile(solver_file):
            raise MissingFileError(f"{os.fspath(solver_file)}: no such file (looked for in {os.getcwd()})")
        param = read_solver(solver_file)
        if self.type_name is not None:
            param.type = self.type_name
        path = Path(solver_file)
        train, tests = net_sources(param, path.resolve().parent)
        for source in (train, *tests):
            prefer_own_modules(source.param, source.phase, source.level, source.stages, source.base_dir)
        with as_pycaffe_raised():
            self._driver = _Driver(param, path)
        self.net: Net = _live(self._driver.net)
        self.test_nets: list[Net] = [_live(net) for net in self._driver.test_nets]

    @property
    def iter(self) -> int:
        """The number of updates done."""
        return self._driver.iter

    @property
    def param(self) -> caffe_pb2.SolverParameter:
        """The fields of the solver's file."""
        return self._driver.param

    def step(self, iterations: int) -> None:
        """Do so many iterations, whatever max_iter says."""
        with self._followed():
            self._driver.step(int(iterations))

    def solve(self, resume_file: str | os.PathLike[str] | None = None) -> None:
        """Train to max_iter, from a solver state if one is given."""
        with self._followed():
            self._driver.solve(resume_file)

    def restore(self, resume_file: str | os.PathLike[str]) -> None:
        """Go on from a solver state and its model."""
        self._driver.restore(resume_file)

    def snapshot(self) -> None:
        """Write the model and the state under the solver's snapshot_prefix; a missing folder is made."""
        self._driver.snapshot()

    def apply_update(self) -> None:
        """Change the parameters by the gradients in their blobs' `diff`; counts as an iteration."""
        with self._followed():
            self._driver.apply_update()

    def add_callback(self, on_start: Callable[[], Any], on_gradients_ready: Callable[[], Any]) -> None:
        """Call the two in each iteration: before the first forward, and between the last backward and the update."""
        self._driver.add_callback(on_start, on_gradients_ready)

    def share_weights(self, net: Net) -> None:
        """Make `net`'s parameters those of the train net, for layers of the same name."""
        net.share_with(self.net)

    def _followed(self) -> Any:
        """What runs under the mode that the process has now."""
        device = mode.device()
        if self._driver.net.device != device:
            for net in (self._driver.net, *self._driver.test_nets):
                net.to(device)
            for state in self._driver.optimizer.state.values():
                state.update({name: value.to(device) for name, value in state.items() if torch.is_tensor(value)})
        return as_pycaffe_raised()


class SGDSolver(Solver):
    """Stochastic gradient descent with momentum."""

    type_name = "SGD"


class NesterovSolver(Solver):
    """Nesterov's accelerated gradient."""

    type_name = "Nesterov"


class AdaGradSolver(Solver):
    """Rates that fall with each parameter's gradients so far."""

    type_name = "AdaGrad"


class RMSPropSolver(Solver):
    """Rates by a running mean of squared gradients."""

    type_name = "RMSProp"


class AdaDeltaSolver(Solver):
    """Steps by the ratio of running means."""

    type_name = "AdaDelta"


class AdamSolver(Solver):
    """Moments with bias correction."""

    type_name = "Adam"


_SOLVERS = {
    str(kind.type_name): kind
    for kind in (SGDSolver, NesterovSolver, AdaGradSolver, RMSPropSolver, AdaDeltaSolver, AdamSolver)
}


def get_solver(solver_file: str | os.PathLike[str]) -> Solver:
    """A solver of the type that the file names."""
    if not os.path.isfile(solver_file):
        raise MissingFileError(f"{os.fspath(solver_file)}: no such file (looked for in {os.getcwd()})")
    return _SOLVERS.get(read_solver(solver_file).type, Solver)(solver_file)
