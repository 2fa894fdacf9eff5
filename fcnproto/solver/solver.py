"""`Solver`: trains a net step by step as Caffe's solver does, from a solver.prototxt.

The order of things in an iteration is Caffe's. What computes (`engine`), updates (`optimizers`), writes (`snapshots`)
and shows (`log`, `progress`) stands in the modules beside this one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fcnproto import zoo
from fcnproto.errors import DataError, SolverError
from fcnproto.escaping import printable
from fcnproto.lazy import later
from fcnproto.net import Net
from fcnproto.net.arriving import Arriving
from fcnproto.net.stored_shapes import StoredShapes
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import read_solver
from fcnproto.schema.upgrade import upgrade_solver
from fcnproto.solver import debug, distributed, health, nets, resume, settings, snapshots
from fcnproto.solver.engine import Engine, Options
from fcnproto.solver.listeners import Listener, Request
from fcnproto.solver.log import LOGGER, LossWindow, Pace, figure, log_to, output_lines
from fcnproto.solver.loggers import as_listener
from fcnproto.solver.place import SnapshotPlace
from fcnproto.solver.policies import LearningRatePolicy
from fcnproto.solver.testing import loss_weights, run_test

PathLike = str | os.PathLike[str]

LATEST = "latest"
"""In the place of a solver state: the newest one that is all right."""


class Solver:
    """Caffe's solver.

    Args:
        solver: path of a solver.prototxt, the name of a net of the zoo, or a `SolverParameter` (which is copied and
            brought up to date).
        device: where to train; by default what `solver_mode` and `device_id` say, the CPU where there is no GPU.
        options: precision, memory layout and compiling; Caffe's arithmetic by default.
        allow_python: permit the import of modules that the nets' Python layers name.
        path: the file a `SolverParameter` came from: names in it are looked up from its folder, too.
        crop: how the nets' Crop layers without an offset are read, as for `load`.
        dialect: the fork of Caffe that the nets were written for, as for `load`.
        strict: refuse what nobody here knows in the solver and its nets, as for `load`.
        caffe_proto: the schema of the fork that the nets were written for, as for `load`.
        caffe_exact: train with Caffe's gradients also where they are not the true ones, as for `load`.
        shapes: shapes of data tops that nothing else tells, by name. Layers that wait for a size are told of; the first
            step sets them up by what it is given, or by the data.
        loggers: who is told of losses and tests: `Listener`s (`CSVLogger`, `TensorBoardLogger`, ...), and what is
            called as `wandb.log` is: a function of (values, step=iteration), or an object with such a method `log`.

    Attributes:
        net, test_nets: the nets. Test nets have weights of their own until the first test (as in Caffe).
        param: the solver's fields.
        iter: the number of updates done.
        losses: the raw weighted loss of every forward pass so far.
        listeners: objects told of what happens (`Listener`).
        request: asked after each iteration and between the batches of a test what to do: stop, snapshot or go on.
        last_snapshot: the solver state written or restored last.
        score_tests: whether tests say mean IU and IU by class, too, where a test net has maps of scores and labels.

    Raises:
        SolverError, PrototxtError, GraphError, WeightsError, DataError: whatever is wrong with the files named.
    """

    net_type: type[Net] = Net
    """The class of the nets, train and test."""

    def __init__(
        self,
        solver: PathLike | caffe_pb2.SolverParameter,
        *,
        device: str | torch.device | None = None,
        options: Options | None = None,
        allow_python: bool = False,
        path: PathLike | None = None,
        crop: str = "caffe",
        dialect: str | None = None,
        caffe_exact: bool = False,
        strict: bool = False,
        caffe_proto: PathLike | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
        loggers: Sequence[Any] = (),
    ) -> None:
        if isinstance(solver, caffe_pb2.SolverParameter):
            self.param, self._file = caffe_pb2.SolverParameter(), None if path is None else Path(path)
            self.param.CopyFrom(solver)
            upgrade_solver(self.param)
        else:
            self._file = Path(zoo.located(solver, "solver"))
            self.param = read_solver(self._file, strict=strict and caffe_proto is None)
        settings.check(self.param)
        if self.param.debug_info and options is not None and (options.compile or options.optimize):
            settings.warn("debug_info shows test nets only where the train net is compiled or rewritten")
        sampling = None if options is None else options.sampling
        if sampling is not None:
            self.param = sampling.adjusted(self.param)
        base_dir = None if self._file is None else self._file.resolve().parent
        train, tests = nets.net_sources(self.param, base_dir)
        weights = nets.weight_files(self.param, base_dir)
        self._leads = distributed.rank() == 0
        if self.param.display and self._leads and not LOGGER.hasHandlers():
            log_to()
        settings.seed(self.param, distributed.rank())
        target = settings.choose_device(self.param) if device is None else torch.device(device)
        reading: dict[str, Any] = {"crop": crop, "dialect": dialect, "caffe_exact": caffe_exact, "strict": strict}
        reading["caffe_proto"] = caffe_proto
        reading |= {"net_type": self.net_type, "shapes": shapes}
        self.net: Net = train.build(weights, allow_python=allow_python, **reading).to(target)
        if sampling is not None:
            sampling.install(self.net)
        self.test_nets: list[Net] = [
            source.build(weights, allow_python=allow_python, **reading).to(target) for source in tests
        ]
        settings.warn_of_waiting(self.net)
        self._policy = LearningRatePolicy(self.param) if self.param.lr_policy else None
        self.engine = Engine(self.net, options or Options())
        self._make_optimizer()
        self.iter = 0
        self._place = SnapshotPlace(self.param, self._file)
        if self.param.snapshot:
            self._place.check(self.net, self.iter)
        self.losses: list[float] = []
        self.score_tests = False
        self.listeners: list[Listener] = [as_listener(logger) for logger in loggers]
        self.request: Callable[[], Request] = lambda: Request.NONE
        self.last_snapshot: str | None = None
        self.stopping = False
        self._end = 0
        self._snapshot_wanted = False
        self._rate: float | None = None
        self._watch = health.LossWatch()
        self._window, self._keep_window = LossWindow(self.param.average_loss, 0), False
        self._pace = Pace(0)
        self._callbacks: list[tuple[Callable[[], Any], Callable[[], Any]]] = []
        self._examined = False

    # What a user asks.

    @property
    def lr(self) -> float:
        """The rate of the last update; before the first one, the rate it will have."""
        return self.policy.peek(self.iter) if self._rate is None else self._rate

    @property
    def policy(self) -> LearningRatePolicy:
        """The learning-rate policy. Raises `SolverError` where the solver names none."""
        if self._policy is None:
            self._policy = LearningRatePolicy(self.param)
        return self._policy

    def add_callback(self, on_start: Callable[[], Any], on_gradients_ready: Callable[[], Any]) -> None:
        """Call the two in each iteration: before the first forward, and between the last backward and the update."""
        self._callbacks.append((on_start, on_gradients_ready))

    def stop(self) -> None:
        """Make the `step` or `solve` that is running end after the current iteration."""
        self.stopping = True

    def share_weights(self, net: Net) -> None:
        """Make `net`'s parameters those of the train net, for layers of the same name."""
        nets.share_weights(self.net, net)

    def _repr_html_(self) -> str:
        """For notebooks: how far it is, and the curve of its losses."""
        return cast("str", later("fcnproto.notebook:of_solver")(self))

    # Training.

    def _make_optimizer(self) -> None:
        self.optimizer = settings.make_optimizer(self.param, self.net)
        if self.param.snapshot_diff:
            self.optimizer.keep_updates()

    def _give_sizes(self, inputs: Mapping[str, Tensor]) -> None:
        """Set up what waits for a size in the train net, before its parameters are counted."""
        if not any(node.held for node in self.net.graph.nodes):
            return
        before = len(self.net.learnable)
        try:
            waiting = self.net.give_sizes({name: tuple(value.shape) for name, value in inputs.items()})
        except DataError as error:
            (first, *_) = [node.held for node in self.net.graph.nodes if node.held]
            raise SolverError(f"{first} ({error})") from error
        if waiting:
            raise SolverError(waiting[0])
        if len(self.net.learnable) != before:
            self._make_optimizer()

    def step(self, iterations: int = 1, /, **inputs: Any) -> None:
        """Do so many iterations, whatever max_iter says.

        `inputs` are tensors (or arrays) for the net's inputs, the same in every forward pass of the call; naming the
        tops of a data layer bypasses it. The displayed loss is smoothed within one call only, as in Caffe.

        Raises:
            DivergedError: the loss is not finite or has exploded, or a snapshot would hold values that are not finite.
        """
        self.stopping = False
        if not self._keep_window:
            self._window = LossWindow(self.param.average_loss, self.iter)
        self._keep_window = False
        self._pace.restart(self.iter)
        values = {name: self._tensor(value) for name, value in inputs.items()}
        self._give_sizes(values)
        if iterations > 0 and not self._examined and self._leads:
            self._examined = True  # once, since the net's values are looked through
            settings.warn_of_vain_training(self.net)
        self._end = self.iter + iterations
        self._tell("started", self._end)
        error: BaseException | None = None
        try:
            while self.iter < self._end and not self.stopping:
                self._iterate(values)
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.engine.feeder.stand_back()
            self._tell("finished", error)

    def _iterate(self, inputs: Mapping[str, Tensor]) -> None:
        """One iteration, in Caffe's order."""
        param = self.param
        self.clear_gradients()
        if self._tests_at(self.iter):
            self.test(**inputs)
            if self.stopping:
                return
        for on_start, _ in self._callbacks:
            on_start()
        loss, outputs = self._forward_backward(inputs)
        smoothed = self._window.add(loss, self.iter)
        if self._displays():
            pace = self._pace.lap(self.iter, param.display)
            self.say(f"Iteration {self.iter} {pace}, loss = {figure(smoothed)}")
            shown = {name: value.value for name, value in outputs.items()}
            for line in output_lines("Train", shown, loss_weights(self.net)):
                self.say(line)
        for _, on_gradients_ready in self._callbacks:
            on_gradients_ready()
        self.policy.smoothed_loss = smoothed
        self.apply_update()
        self._tell("iterated", self.iter - 1, loss, smoothed)
        self.obey()
        if self._snapshot_wanted or self._snapshots_at(self.iter):
            self.snapshot()

    def _tests_at(self, iteration: int) -> bool:
        interval = self.param.test_interval
        return bool(interval) and iteration % interval == 0 and (iteration > 0 or self.param.test_initialization)

    def _snapshots_at(self, iteration: int) -> bool:
        return bool(self.param.snapshot) and iteration % self.param.snapshot == 0

    def _goes_on(self) -> bool:
        """Whether the next iteration comes right after this one, as far as can be known. One that is traced reads its
        data itself, so that it shows them."""
        after = self.iter + 1
        between = self._tests_at(after) or self._snapshots_at(after) or self.param.debug_info
        return after < self._end and not between and not self.stopping

    def clear_gradients(self) -> None:
        """Begin an iteration without the gradients of the last one."""
        self.optimizer.zero_grad(set_to_none=True)

    def solve(self, state: PathLike | None = None, iterations: int | None = None) -> None:
        """Train to max_iter, from a solver state if one is given; then snapshot and test as the solver says.

        With `iterations` no more than so many are done; if max_iter isn't reached by then, it ends as if stopped.
        Workers that `torchrun` has started again, since one was lost, go on from the newest snapshot, if there is one.
        """
        if self.param.snapshot_after_train:
            self._place.check(self.net, self.iter)
        if self.param.snapshot_after_train or self.param.snapshot:
            self._place.acquire()
        try:
            self._solve(state, iterations)
        finally:
            self._place.release()

    def _solve(self, state: PathLike | None, iterations: int | None) -> None:
        if not self.param.HasField("max_iter"):
            settings.warn("max_iter is not given, so solve() trains nothing")
        self.say(f"Solving {self.net.graph.name}")
        self.say(f"Learning Rate Policy: {self.param.lr_policy}")
        if distributed.restarted():
            state = self._place.newest() or state
        if state is not None:
            self.restore(state)
        left = max(0, self.param.max_iter - self.iter)
        todo = left if iterations is None else min(left, iterations)
        self.step(todo)
        if todo < left:
            self.stopping = True
        self._finish()

    def _finish(self) -> None:
        """After the last iteration: the snapshot, then (unless stopped) the loss and the tests of the final weights."""
        param = self.param
        if param.snapshot_after_train and (not param.snapshot or self.iter % param.snapshot != 0):
            self.snapshot()
        if self.stopping:
            self.say("Optimization stopped early.")
            return
        if self._displays():
            with torch.no_grad():
                loss = float(self.engine.forward({})[0])
            self.losses.append(loss)
            self.say(f"Iteration {self.iter}, loss = {figure(self._window.add(loss, self.iter))}")
        if param.test_interval and self.iter % param.test_interval == 0:
            self.test()
        self.say("Optimization Done.")

    def _forward_backward(self, inputs: Mapping[str, Tensor]) -> tuple[float, Mapping[str, Arriving]]:
        """`iter_size` passes, whose gradients add up; the mean of their losses, and the last one's outputs where they
        are displayed.

        A GPU is never waited for to the end: the loss comes over while the backward pass runs, and is read before the
        update, so that a loss that has gone wrong leaves the weights that it came from.
        """
        total, size = 0.0, self.param.iter_size
        outputs: dict[str, Arriving] = {}
        failure: health.DivergedError | None = None
        tracing = self.param.debug_info and self._displays()
        for index in range(size):
            last = index == size - 1
            self.engine.feeder.goes_on = not last or self._goes_on()
            with debug.traced(self.net, self.say, tracing) as log_gradients:
                loss, tops = self.engine.forward(inputs, last)
                value = Arriving(loss)
                if last and self._displays():
                    outputs = {name: Arriving(top) for name, top in tops.items()}
                self.engine.backward(loss, last)
                log_gradients()
            self.losses.append(float(value.value))
            total += self.losses[-1]
            failure = failure or self._failure(inputs)
            if failure is not None and distributed.world_size() == 1:
                raise failure
        distributed.raise_together(failure)
        self.engine.unscale(self.optimizer)
        return total / size, outputs

    def apply_update(self) -> None:
        """Change the parameters by the gradients that are there, at the rate of this iteration, which ends with it."""
        step = self.policy.current_step
        self._rate = self.policy(self.iter)
        if self.param.lr_policy == "multistep" and self.policy.current_step != step:
            self.say(f"MultiStep Status: Iteration {self.iter}, step = {self.policy.current_step}")
        if self._displays():
            self.say(f"Iteration {self.iter}, lr = {figure(self._rate)}")
        for group in self.optimizer.param_groups:
            group["lr"], group["iteration"] = self._rate, self.iter
        self.engine.update(self.optimizer)
        self.iter += 1

    def test(self, **inputs: Any) -> list[dict[str, list[float]]]:
        """Run every test net on its test_iter batches (rank 0 only); returns the means of their outputs."""
        results = []
        if self._leads:
            for index in range(len(self.test_nets)):
                scores = run_test(self, index, inputs)
                if scores is None:
                    break
                results.append(scores)
                self._tell("tested", index, scores)
        (self.stopping,) = distributed.any_of([self.stopping])
        return results

    def _failure(self, inputs: Mapping[str, Tensor]) -> health.DivergedError | None:
        """What went wrong where the last forward's loss shows that training has failed."""
        complaint = self._watch.complaint(self.losses[-1])
        if complaint is None:
            return None
        batch = self.engine.batch
        layer, blob = health.origin(self.net, lambda: self.engine.replay(inputs), inputs, batch)
        return health.DivergedError(complaint, self.iter, layer, blob, self.last_snapshot)

    # Snapshots.

    def snapshot(self) -> str:
        """Write the model and the solver state under the snapshot prefix; returns the path of the state.

        No other process may write under this prefix within `solve`, or until this solver is gone. Raises `SolverError`
        where one does, `DivergedError` where a parameter is not finite: the last good snapshot stays the last one.
        """
        self._snapshot_wanted = False
        self.engine.feeder.stand_back()
        fresh = self._place.acquire()
        try:
            return self._snapshot()
        except BaseException:
            if fresh:  # what was not written need not be kept from others
                self._place.release()
            raise

    def _snapshot(self) -> str:
        files = self._place.files(self.iter)
        broken = health.broken_parameter(self.net)
        if broken is not None:
            raise health.DivergedError("parameters are not finite", self.iter, *broken, self.last_snapshot)
        workers = distributed.gather(self._resume_state())
        failure: Exception | None = None
        if self._leads:
            kind = "HDF5" if files.state.suffix == ".h5" else "binary proto"
            self.say(f"Snapshotting to {kind} file {files.model}")
            self.say(f"Snapshotting solver state to {kind} file {files.state}")
            history = self.optimizer.history
            diff_of = self.optimizer.last_update if self.param.snapshot_diff else None
            try:
                snapshots.write(files, self.net, self.iter, self._current_step(), history, workers, diff_of)
            except Exception as error:
                failure = error
        distributed.raise_together(failure)
        self.last_snapshot = str(files.state)
        self._tell("snapshotted", self.last_snapshot)
        return self.last_snapshot

    def restore(self, path: PathLike) -> None:
        """Go on from a solver state, Caffe's or our own, and its model.

        "latest" is the newest snapshot under the solver's prefix that is all right; those passed over are told.

        Raises `WeightsError` where one is damaged or missing, `SolverError` where it is of another solver or net.
        """
        if os.fspath(path) == LATEST and not os.path.exists(path):
            path, passed_over = snapshots.latest(self._place.prefix)
            for reason in passed_over:
                settings.warn(f"snapshot passed over: {reason}")
        self.engine.feeder.stand_back()
        opened, model = snapshots.open_snapshot(Path(path))
        if self.net.unknown:
            self.net.take_sizes(StoredShapes([model]))
            self._make_optimizer()
        with opened as state:
            # All that can be wrong with the state shows before the first value is changed.
            self.optimizer.check_history(state.history)
            for blob in state.history:
                blob.check()
            self.say(f"Restoring iteration {state.iter} from {path} and {model}")
            self.net.copy_from(model)
            self.optimizer.load_history(state.history, snapshots.read_blob)
            self.iter, self._rate = state.iter, None
            if self._policy is not None:  # without one, the first step says that it is missing
                self._policy.current_step = state.current_step
        side = resume.path_beside(Path(path))
        worker = resume.read(side, self.iter, distributed.rank(), distributed.world_size())
        if worker is not None:
            before = self._resume_state()
            try:
                self._set_resume_state(worker)
            except Exception as error:  # the file may hold anything, and every layer has its own way to refuse it
                resume.warn_useless(side, " ".join(str(error).split()) or type(error).__name__)
                self._set_resume_state(before)
        self.last_snapshot = str(path)

    def _current_step(self) -> int:
        return 0 if self._policy is None else self._policy.current_step

    def _resume_state(self) -> dict[str, Any]:
        return {
            "random": resume.random_states(self.net.device),
            "net": resume.net_state(self.net),
            "test_nets": [resume.net_state(net) for net in self.test_nets],
            "window": self._window.state(),
            "policy": None if self._policy is None else self._policy.state(),
            "scaler": self.engine.scaler.state_dict(),
        }

    def _set_resume_state(self, state: dict[str, Any]) -> None:
        resume.set_net_state(self.net, state["net"])
        for net, stored in zip(self.test_nets, state["test_nets"], strict=False):
            resume.set_net_state(net, stored)
        if state["window"]["size"] == self.param.average_loss:
            self._window, self._keep_window = LossWindow(**state["window"]), True
        if state.get("policy") and self._policy is not None:
            _, self._policy.least_loss, self._policy.last_event = state["policy"]
        if state["scaler"]:
            self.engine.scaler.load_state_dict(state["scaler"])
        resume.set_random_states(state["random"], self.net.device)

    # Between the parts.

    def obey(self, testing: bool = False) -> None:
        """Ask for requests and do what they say; workers do the same at the same iteration."""
        request = self.request()
        stop = self.stopping or request is Request.STOP
        wanted = self._snapshot_wanted or request is Request.SNAPSHOT
        if not testing:
            stop, wanted = distributed.any_of([stop, wanted])
        self.stopping, self._snapshot_wanted = stop, wanted
        if testing and wanted and distributed.world_size() == 1:
            self.snapshot()

    def say(self, message: str) -> None:
        """Log a line, on rank 0."""
        if self._leads:
            LOGGER.info("%s", printable(message), stacklevel=2)

    def _tell(self, event: str, *values: Any) -> None:
        if self._leads:
            for listener in self.listeners:
                getattr(listener, event)(self, *values)

    def _displays(self) -> bool:
        return bool(self.param.display) and self.iter % self.param.display == 0

    def _tensor(self, value: Any) -> Tensor:
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        return tensor.to(self.net.device)
