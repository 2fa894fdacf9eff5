"""What a person sees of a training run: a live line on a terminal, CSV and TensorBoard files, and the data of the plot.

All of it listens to a solver; nothing here changes a run. Caffe's log lines are in `log`, the picture is in `chart`.
"""

from __future__ import annotations

import csv
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fcnproto.atomic import atomic_write
from fcnproto.errors import DataError, FcnprotoWarning
from fcnproto.escaping import csv_cell, printable
from fcnproto.pictures.chart import Curves
from fcnproto.solver import distributed
from fcnproto.solver.listeners import Listener
from fcnproto.solver.log import LONGEST_NAME, figure

if TYPE_CHECKING:
    from fcnproto.solver.solver import Solver


class LiveLine(Listener):
    """One line on a terminal: iteration, smoothed loss, rate, images per second, time left; events stand above it.

    A run of several calls of the solver's `step` gives its last iteration as `end`; one bar then stays for all of it.
    """

    def __init__(self, console: Console, end: int | None = None) -> None:
        self._console, self._end = console, end
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._speed: float | None = None
        self._last = 0.0

    def started(self, solver: Solver, end: int) -> None:
        self._last = time.perf_counter()
        if self._progress is not None:
            return
        end = self._end or end
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}", markup=False),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=end, completed=solver.iter)
        self._progress.start()

    def iterated(self, solver: Solver, iteration: int, loss: float, smoothed: float) -> None:
        now = time.perf_counter()
        images = solver.engine.images * solver.param.iter_size * distributed.world_size()
        speed = images / max(now - self._last, 1e-9)
        # The mean over some tens of iterations, so that the figure can be read.
        self._speed = speed if self._speed is None else self._speed + (speed - self._speed) * 0.05
        self._last = now
        if self._progress is not None and self._task is not None:
            text = f"loss {figure(smoothed)}  lr {figure(solver.lr)}  {self._speed:.3g} images/s"
            self._progress.update(self._task, completed=iteration + 1, description=text)

    def tested(self, solver: Solver, index: int, scores: Mapping[str, list[float]]) -> None:
        texts = (f"{printable(name, LONGEST_NAME)} = {' '.join(map(figure, v[:8]))}" for name, v in scores.items())
        self._say(f"iteration {solver.iter}, test net {index}: {', '.join(texts)}")
        self._last = time.perf_counter()

    def snapshotted(self, solver: Solver, path: str) -> None:
        self._say(f"iteration {solver.iter}: wrote {path}")
        self._last = time.perf_counter()

    def finished(self, solver: Solver, error: BaseException | None) -> None:
        if self._end is not None and solver.iter < self._end and error is None:
            return
        self.close()
        if solver.losses and self._end is None:
            self._say(f"iteration {solver.iter}: last loss {figure(solver.losses[-1])}")

    def close(self) -> None:
        """Take the line away, where it is still there."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _say(self, text: str) -> None:
        self._console.print(printable(text), markup=False, emoji=False)


class Recorder(Listener):
    """Keeps what the loss plot shows."""

    def __init__(self) -> None:
        self.curves = Curves()

    def iterated(self, solver: Solver, iteration: int, loss: float, smoothed: float) -> None:
        self.curves.iterations.append(iteration)
        self.curves.losses.append(loss)
        self.curves.smoothed.append(smoothed)

    def tested(self, solver: Solver, index: int, scores: Mapping[str, list[float]]) -> None:
        for name, values in scores.items():
            if len(values) == 1:
                label = f"test net {index}: {name}" if len(solver.test_nets) > 1 else f"test: {name}"
                self.curves.tests.setdefault(label, []).append((solver.iter, values[0]))


_TRAIN_COLUMNS = ("iteration", "seconds", "lr", "loss", "smoothed_loss")
_TEST_COLUMNS = ("iteration", "seconds", "net", "output", "index", "value")


class LogFolder(Listener):
    """Writes `train.csv` and `test.csv` into a folder (unless `with_tables` is False), and TensorBoard's events where
    tensorboard is installed (unless `with_board` is False).

    A resumed run goes on in the same files; rows from its iteration on, of a run that went further, are dropped.
    """

    with_tables: ClassVar[bool] = True
    with_board: ClassVar[bool] = True

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._begun = False
        self._start = time.perf_counter()
        self._files: list[Any] = []
        self._train: Any = None
        self._test: Any = None
        self._board: Any = None
        self._flushed = 0.0

    def started(self, solver: Solver, end: int) -> None:
        if self._begun:
            return
        self._begun = True
        if self.with_tables:
            self._train = self._open("train.csv", _TRAIN_COLUMNS, solver.iter)
            self._test = self._open("test.csv", _TEST_COLUMNS, solver.iter)
        if self.with_board:
            self._board = self._make_board(solver)

    def iterated(self, solver: Solver, iteration: int, loss: float, smoothed: float) -> None:
        if self._train is not None:
            self._train.writerow([iteration, self._seconds(), figure(solver.lr), repr(loss), repr(smoothed)])
        if self._board is not None:
            for name, value in (("train/loss", loss), ("train/smoothed_loss", smoothed), ("train/lr", solver.lr)):
                self._board.add_scalar(name, value, iteration)
        if time.perf_counter() - self._flushed > 1:
            self.flush()

    def tested(self, solver: Solver, index: int, scores: Mapping[str, list[float]]) -> None:
        for name, values in scores.items():
            for place, value in enumerate(values if self._test is not None else ()):
                self._test.writerow([solver.iter, self._seconds(), index, csv_cell(name), place, repr(value)])
            if self._board is not None and len(values) == 1:
                self._board.add_scalar(f"test{index}/{printable(name, LONGEST_NAME)}", values[0], solver.iter)
        self.flush()

    def snapshotted(self, solver: Solver, path: str) -> None:
        self.flush()

    def finished(self, solver: Solver, error: BaseException | None) -> None:
        self.flush()

    def flush(self) -> None:
        """Bring what was written so far to the files."""
        self._flushed = time.perf_counter()
        for file in self._files:
            if not file.closed:
                file.flush()
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Close the files; nothing may be written afterwards."""
        self.flush()
        for file in self._files:
            file.close()
        if self._board is not None:
            self._board.close()

    def _make_board(self, solver: Solver) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            warnings.warn(
                f"{self.folder}: gets CSV files, but nothing for TensorBoard, whose package isn't installed "
                "(pip install tensorboard)",
                FcnprotoWarning,
                stacklevel=2,
            )
            return None
        return SummaryWriter(str(self.folder), purge_step=solver.iter or None)

    def _seconds(self) -> str:
        return f"{time.perf_counter() - self._start:.3f}"

    def _open(self, name: str, columns: Iterable[str], iteration: int) -> Any:
        path = self.folder / name
        kept: list[list[str]] = []
        if iteration and path.exists():
            try:
                with path.open(newline="", encoding="utf-8", errors="replace") as file:
                    rows = list(csv.reader(file))[1:]
            except csv.Error as error:
                raise DataError(f"{path}: is no log of a training ({error}); choose another folder") from None
            kept = [row for row in rows if row and row[0].isdecimal() and int(row[0]) < iteration]
        with atomic_write(path, "w") as whole:  # the rows of before are there, whatever happens now
            csv.writer(whole).writerows([columns, *kept])
        file = path.open("a", newline="", encoding="utf-8")
        self._files.append(file)
        return csv.writer(file)
