"""Train a net with its solver, as Caffe does; snapshots, resumes, and runs on several workers with torchrun.

Flags follow `caffe train`. On a terminal one live line shows how it goes, elsewhere Caffe's log lines (on stderr).
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcnproto.cli import _files, _nets, _options, _output
from fcnproto.cli._caffe_flags import CaffeCommand
from fcnproto.errors import FcnprotoWarning, UsageError

if TYPE_CHECKING:
    from fcnproto.schema import caffe_pb2
    from fcnproto.solver import Solver
    from fcnproto.solver.sampling import LossSampling

_EFFECTS = click.Choice(["stop", "snapshot", "none"])


@click.command("train", cls=CaffeCommand, short_help="Train a net.")
@click.option(
    "--solver",
    "solver_file",
    type=_nets.SOLVER,
    required=True,
    help="The solver.prototxt, or a name of the zoo: its solver.prototxt.",
)
@click.option(
    "--weights", type=_nets.ZooWeights(), metavar="W[,W2]", help="Weights to begin with; in place of the solver's own."
)
@click.option(
    "--snapshot",
    "state",
    type=click.Path(path_type=Path),
    help="A .solverstate[.h5] to go on from, with its own weights; latest: the newest that is undamaged.",
)
@click.option("--iterations", type=click.IntRange(0), help="Stop (with a snapshot) after so many iterations.")
@click.option(
    "--caffe-exact",
    is_flag=True,
    help="Caffe's gradients also where shared memory makes them other than the true ones.",
)
@_nets.net_options(None, gpu=True, writes=True, device="by solver_mode")
@click.option("--sigint-effect", type=_EFFECTS, default="stop", show_default=True, help="What Ctrl-C does.")
@click.option("--sighup-effect", type=_EFFECTS, default="snapshot", show_default=True, help="What a hangup does.")
@_options.precision_option("Arithmetic of forward and backward; parameters stay float32.")
@click.option("--channels-last", is_flag=True, help="Keep images with channels innermost in memory.")
@click.option("--optimize", "optimizes", is_flag=True, help="Rewrite the net for speed (same numbers to rounding).")
@click.option("--compile", "compiles", is_flag=True, help="Run the layers through torch.compile.")
@click.option(
    "--sample-loss",
    metavar="P[:CELL]",
    help="Keep each cell of the loss (CELL pixels a side, 32 by default) with probability P; batches grow by 1/P.",
)
@click.option("--score", is_flag=True, help="Tests say mean IU too, and IU by class in the log.")
@click.option("--log-dir", type=_files.OutputFolder(), help="Folder for CSV and TensorBoard.")
@click.option("--plot", type=_files.OutputFile(), help="The loss plot (PNG).")
@click.option("--no-plot", is_flag=True, help="Draw no loss plot.")
@_options.json_option
@click.option("--progress/--no-progress", "live", default=None, help="Live line or log lines.  [default: by terminal]")
def command(
    solver_file: Path,
    weights: str | None,
    state: Path | None,
    iterations: int | None,
    nets: _nets.NetOptions,
    caffe_exact: bool,
    sigint_effect: str,
    sighup_effect: str,
    precision: str,
    channels_last: bool,
    optimizes: bool,
    compiles: bool,
    sample_loss: str | None,
    score: bool,
    log_dir: Path | None,
    plot: Path | None,
    no_plot: bool,
    as_json: bool,
    live: bool | None,
) -> None:
    """Train a net with its solver, as Caffe does.

    Several workers: torchrun --nproc-per-node N -m fcnproto train --solver S ...
    """
    if weights and state is not None:
        raise UsageError("--weights and --snapshot: the snapshot brings its own weights; give one of them")
    if os.environ.get("RANK", "0") != "0":  # workers would warn of the same
        warnings.simplefilter("ignore", FcnprotoWarning)
    wanted = nets.device_name
    from fcnproto.net.roles import judged_blobs
    from fcnproto.schema.text import read_solver
    from fcnproto.solver import Options, Request, Solver, distributed
    from fcnproto.solver.signals import SignalRequests

    param = read_solver(solver_file, strict=nets.strict and nets.caffe_proto is None)
    if wanted is None and param.solver_mode == param.CPU:
        wanted = "cpu"
    _adjust(param, nets.level, nets.stages, weights, state)
    if compiles and optimizes:
        raise UsageError("--compile and --optimize rewrite the net in two ways; give one of them")
    if caffe_exact and (compiles or optimizes):
        raise UsageError("--caffe-exact keeps the net as it is; leave out --compile and --optimize")
    options = Options(precision, channels_last, compiles, _sampling(sample_loss), optimizes)
    signals = SignalRequests(Request(sigint_effect), Request(sighup_effect))
    with distributed.worker_group(wanted) as own, signals, _display(live):
        solver = Solver(
            param,
            device=own,
            options=options,
            caffe_exact=caffe_exact,
            path=solver_file,
            shapes=nets.shapes,
            **nets.reading,
        )
        if distributed.rank() == 0:
            _output.say_faults(solver)
        solver.request, solver.score_tests = signals, score
        if score and not any(judged_blobs(net) for net in solver.test_nets):
            message = "--score: no test net has scores and labels, so there is nothing to score"
            warnings.warn(message, FcnprotoWarning, stacklevel=2)
        with _Shown(live, log_dir, plot, no_plot).around(solver):
            solver.solve(state, iterations)
        if as_json and distributed.rank() == 0:
            losses = solver.losses
            _output.print_json(
                {"iterations": solver.iter, "loss": losses[-1] if losses else None, "snapshot": solver.last_snapshot}
            )


def _sampling(text: str | None) -> LossSampling | None:
    """What `--sample-loss` says."""
    from fcnproto.solver.sampling import LossSampling

    if text is None:
        return None
    keep, _, cell = text.partition(":")
    try:
        return LossSampling(float(keep), int(cell or 32))
    except ValueError:
        raise UsageError(f"--sample-loss {text}: expected a probability, and the side of a cell: 0.25:32") from None


def _adjust(
    param: caffe_pb2.SolverParameter, level: int, stages: tuple[str, ...], weights: str | None, state: Path | None
) -> None:
    """Write the flags into the solver, as Caffe's tool does: without stages it adds an empty one."""
    if param.train_state.level not in (0, level):
        message = f"the solver's train_state.level {param.train_state.level} gives way to --level {level}, as in Caffe"
        warnings.warn(message, FcnprotoWarning, stacklevel=2)
    param.train_state.level = level
    param.train_state.stage.extend(stages or [""])
    if state is not None or weights:
        param.ClearField("weights")
    if weights:
        param.weights.append(weights)


def _is_live(live: bool | None) -> bool:
    return _output.stderr().is_terminal if live is None else live


@contextlib.contextmanager
def _display(live: bool | None) -> Iterator[None]:
    """Caffe's log lines on stderr, unless the live line is shown."""
    import logging

    from fcnproto.solver.log import LOGGER, log_to

    handler: logging.Handler = logging.NullHandler()
    if _is_live(live):
        LOGGER.addHandler(handler)
    else:
        handler = log_to()
    propagate, LOGGER.propagate = LOGGER.propagate, False
    try:
        yield
    finally:
        LOGGER.propagate = propagate
        LOGGER.removeHandler(handler)


@dataclass
class _Shown:
    """What the person at the terminal asked to see of the run."""

    live: bool | None
    log_dir: Path | None
    plot: Path | None
    no_plot: bool

    @contextlib.contextmanager
    def around(self, solver: Solver) -> Iterator[None]:
        """Listen to the solver for the length of the block; write the plot at its end, however it ends."""
        from fcnproto.pictures.chart import write_chart
        from fcnproto.solver import distributed
        from fcnproto.solver.progress import LiveLine, LogFolder, Recorder

        if distributed.rank() != 0:
            yield
            return
        recorder = Recorder()
        solver.listeners.append(recorder)
        if _is_live(self.live):
            solver.listeners.append(LiveLine(_output.stderr()))
        folder = None if self.log_dir is None else LogFolder(self.log_dir)
        if folder is not None:
            solver.listeners.append(folder)
        try:
            yield
        finally:
            if folder is not None:
                folder.close()
            path = self._plot_path(solver)
            if path is not None and recorder.curves.iterations:
                write_chart(path, recorder.curves, solver.net.graph.name or "net")
                _output.note(f"loss plot: {path}")

    def _plot_path(self, solver: Solver) -> Path | None:
        """As asked for, else in the log folder, else beside the run's snapshots."""
        if self.no_plot or self.plot is not None:
            return None if self.no_plot else self.plot
        if self.log_dir is not None:
            return self.log_dir / "loss.png"
        if solver.last_snapshot is None:
            return None
        stem = solver.last_snapshot.rpartition("_iter_")[0]
        return Path(f"{stem}_loss.png") if stem else None
