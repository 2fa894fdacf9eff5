"""What a person sees of a run: the live line, CSV files that a resumed run continues, and the plot."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import solver_toy as toy
from PIL import Image
from rich.console import Console

from fcnproto.pictures.chart import Curves, draw_chart, write_chart
from fcnproto.solver import Solver
from fcnproto.solver.health import LossWatch
from fcnproto.solver.log import LossWindow
from fcnproto.solver.progress import LiveLine, LogFolder, Recorder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_files_hold_every_iteration_and_test(tmp_path: Path) -> None:
    solver = Solver(toy.write(tmp_path, test_iter=[2], test_interval=4, average_loss=3))
    folder, recorder = LogFolder(tmp_path / "log"), Recorder()
    solver.listeners += [folder, recorder]
    solver.step(9)
    folder.close()
    train, test = rows(tmp_path / "log" / "train.csv"), rows(tmp_path / "log" / "test.csv")
    assert [int(row["iteration"]) for row in train] == list(range(9))
    assert [float(row["loss"]) for row in train] == solver.losses == recorder.curves.losses
    assert float(train[8]["smoothed_loss"]) == pytest.approx(np.mean(solver.losses[6:]), rel=1e-6)
    assert [(row["iteration"], row["output"]) for row in test] == [
        (iteration, name) for iteration in ("0", "4", "8") for name in ("accuracy", "loss")
    ]
    assert [iteration for iteration, _ in recorder.curves.tests["test: accuracy"]] == [0, 4, 8]


def test_a_resumed_run_continues_its_csv(tmp_path: Path) -> None:
    def run(steps: int, state: Path | None) -> Solver:
        solver = Solver(toy.write(tmp_path, snapshot=4))
        if state is not None:
            solver.restore(state)
        folder = LogFolder(tmp_path / "log")
        solver.listeners.append(folder)
        solver.step(steps)
        folder.close()
        return solver

    first = run(7, None)  # further than the snapshot: its last rows are done again
    second = run(5, tmp_path / "snap_iter_4.solverstate")
    found = rows(tmp_path / "log" / "train.csv")
    assert [int(row["iteration"]) for row in found] == list(range(9))
    assert [float(row["loss"]) for row in found] == first.losses[:4] + second.losses


def test_tensorboard_scalars(tmp_path: Path) -> None:
    reason = "needs tensorboard (the extra of that name)"
    pytest.importorskip("torch.utils.tensorboard", reason=reason, exc_type=ImportError)
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=reason)

    def run(steps: int, state: Path | None) -> Solver:
        solver = Solver(toy.write(tmp_path, snapshot=4, test_iter=[2], test_interval=4, average_loss=3))
        if state is not None:
            solver.restore(state)
        recorder, folder = Recorder(), LogFolder(tmp_path / "log")
        solver.listeners += [recorder, folder]
        solver.step(steps)
        folder.close()
        runs.append(recorder.curves)
        return solver

    runs: list[Curves] = []
    first = run(7, None)  # further than the snapshot: the resumed run's points take the place of its last ones
    second = run(5, tmp_path / "snap_iter_4.solverstate")
    board = reader.EventAccumulator(str(tmp_path / "log"))
    board.Reload()
    assert sorted(board.Tags()["scalars"]) == [
        *("test0/accuracy", "test0/loss", "train/loss", "train/lr", "train/smoothed_loss")
    ]
    points = {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
    losses = np.array(first.losses[:4] + second.losses, np.float32)
    assert points["train/loss"] == list(enumerate(losses.tolist()))
    smoothed = np.array(runs[0].smoothed[:4] + runs[1].smoothed, np.float32)
    assert points["train/smoothed_loss"] == list(enumerate(smoothed.tolist()))
    assert points["train/lr"] == [(iteration, float(np.float32(0.01))) for iteration in range(9)]
    tests = runs[0].tests["test: accuracy"][:1] + runs[1].tests["test: accuracy"]
    assert points["test0/accuracy"] == [(step, float(np.float32(value))) for step, value in tests]
    assert [step for step, _ in points["test0/loss"]] == [0, 4, 8]


def test_the_live_line_says_how_it_goes(tmp_path: Path) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=140, color_system=None)
    solver = Solver(toy.write(tmp_path, test_iter=[1], test_interval=3, snapshot=3))
    solver.listeners.append(LiveLine(console))
    solver.step(4)
    shown = text.getvalue()
    for part in ("4/4", "lr 0.01", "images/s", "test net 0: accuracy = ", "snap_iter_3.solverstate", "last loss"):
        assert part in shown, part


def curves(logarithmic: bool) -> Curves:
    losses = [(1000.0 if logarithmic else 2.0) / (i + 1) ** (2 if logarithmic else 0.1) for i in range(5000)]
    tests = {"test: accuracy": [(0, 0.1), (2500, 0.6), (5000, 0.9)], "test: constant": [(0, 1.0)]}
    return Curves(list(range(5000)), [*losses[:-1], float("nan")], losses, tests)


@pytest.mark.parametrize("logarithmic", [False, True])
def test_the_plot_is_drawn_without_matplotlib(
    logarithmic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    data = curves(logarithmic)
    assert data.is_logarithmic() is logarithmic
    write_chart(tmp_path / "loss.png", data, "net")
    image = np.asarray(Image.open(tmp_path / "loss.png").convert("RGB")).astype(int)
    blue = np.argwhere(np.abs(image - (31, 90, 160)).sum(axis=2) < 30)
    columns = blue[:, 1]
    assert columns.max() - columns.min() > 700  # the curve goes across the picture
    left, right = blue[columns < 150][:, 0].mean(), blue[columns > 850][:, 0].mean()
    assert left < right  # and falls


def test_a_plot_of_one_iteration_and_of_none(tmp_path: Path) -> None:
    draw_chart(Curves([0], [1.5], [1.5], {}), "net")
    draw_chart(Curves([3, 4], [float("nan"), float("inf")], [float("nan")] * 2, {}), "net")
    write_chart(tmp_path / "none.png", Curves(), "net")
    assert not (tmp_path / "none.png").exists()


def test_window_is_a_mean_and_then_a_ring() -> None:
    window, losses = LossWindow(3, 0), [4.0, 2.0, 6.0, 1.0, 8.0]
    found = [window.add(loss, iteration) for iteration, loss in enumerate(losses)]
    assert found == pytest.approx([4, 3, 4, 3, 5])


def test_watch_takes_no_offence_at_big_losses() -> None:
    watch = LossWatch()
    assert [watch.complaint(loss) for loss in (3e5, 6e6, 1e-4, *([1.0] * 20), 5e11)] == [None] * 24
    assert "exploded" in (watch.complaint(1e13) or "")
    assert watch.complaint(float("inf")) == "the loss is inf"
    assert LossWatch(0).complaint(1e30) is None


def test_rows_of_before_outlive_a_crash_at_the_start(tmp_path: Path) -> None:
    path = toy.write(tmp_path)
    solver = Solver(path)
    folder = LogFolder(tmp_path / "log")
    solver.listeners.append(folder)
    solver.step(3)
    folder.close()
    rows = (tmp_path / "log" / "train.csv").read_text()
    again = LogFolder(tmp_path / "log")
    again.started(solver, 5)  # and then nothing more: the process is killed
    assert (tmp_path / "log" / "train.csv").read_text() == rows
