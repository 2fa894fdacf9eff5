"""The train, test and time commands, with Caffe's flags in Caffe's spelling."""

from __future__ import annotations

import csv
import datetime
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "solver"))

import solver_toy as toy

from fcnproto.cli._main import main
from fcnproto.schema import caffe_pb2


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    toy.write(tmp_path, max_iter=4, display=2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_resume_test_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-solver", "solver.prototxt", "--sighup_effect=none", "--iterations", "3"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.search(r"^I\d{4} .*\] Iteration 2, lr = 0.01$", shown.err, re.MULTILINE)
    assert "Optimization stopped early." in shown.err
    assert (folder / "snap_loss.png").exists()
    assert main(["train", "--solver=solver.prototxt", "--snapshot=snap_iter_3.solverstate", "--no-plot"]) == 0
    assert "Optimization Done." in capsys.readouterr().err
    assert main(["test", "-model", "net.prototxt", "-weights", "snap_iter_4.caffemodel", "-iterations", "3"]) == 0
    shown = capsys.readouterr()
    assert re.search(r"^accuracy = [\d.]+$", shown.out, re.MULTILINE)
    loss = float(re.search(r"^Loss: ([\d.e-]+)$", shown.out, re.MULTILINE)[1])  # type: ignore[index]
    batches = [float(value) for value in re.findall(r"Batch \d, loss = ([\d.e-]+)", shown.err)]
    assert len(batches) == 3 and loss == pytest.approx(sum(batches) / 3, rel=1e-4)
    assert re.search(r"^loss = [\d.e-]+ \(\* 1 = [\d.e-]+ loss\)$", shown.out, re.MULTILINE)
    assert main(["time", "--model", "net.prototxt", "--iterations", "2", "--phase", "TRAIN"]) == 0
    shown = capsys.readouterr()
    for name in ("src", "conv", "drop", "ip", "loss"):
        forward = re.search(rf"^ *{name}\tforward: ([\d.e-]+) ms\.$", shown.out, re.MULTILINE)
        backward = re.search(rf"^ *{name}\tbackward: ([\d.e-]+) ms\.$", shown.out, re.MULTILINE)
        assert forward and float(forward[1]) > 0, name
        assert backward and (float(backward[1]) > 0 or name == "src"), name
    assert re.search(r"^Average Forward-Backward: [\d.]+ ms\.$", shown.out, re.MULTILINE)


def parsed(log: str) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Rows of training and of tests, read from a log by the rules of Caffe's own parser of logs.

    It takes the time at which the first line with "Solving" was written, then for every line the iteration last named,
    the line's time, the rate, and figures of outputs; lines that begin with no time are passed over.
    """

    def moment(line: str) -> datetime.datetime:
        date, clock = line.split()[:2]
        return datetime.datetime.strptime(f"2020{date[1:5]} {clock}", "%Y%m%d %H:%M:%S.%f")

    start = moment(next(line for line in log.splitlines() if "Solving" in line))
    iteration, rate, rows = -1.0, float("nan"), {"Train": [], "Test": []}  # type: ignore[var-annotated]
    for line in log.splitlines():
        if found := re.search(r"Iteration (\d+)", line):
            iteration = float(found[1])
        if iteration == -1:
            continue
        try:
            seconds = (moment(line) - start).total_seconds()
        except ValueError:
            continue
        if found := re.search(r"lr = ([-+]?[0-9]*\.?[0-9]+([eE]?[-+]?[0-9]+)?)", line):
            rate = float(found[1])
        for kind, lines in rows.items():
            if found := re.search(rf"{kind} net output #(\d+): (\S+) = ([\.\deE+-]+)", line):
                if not lines or lines[-1]["NumIters"] != iteration:
                    lines.append({"NumIters": iteration, "Seconds": seconds, "LearningRate": rate})
                lines[-1][found[2]] = float(found[3])
    return rows["Train"], rows["Test"]


def test_the_log_can_be_parsed_as_caffes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"lr_policy": "multistep", "gamma": 1e-6, "stepvalue": [3], "snapshot": 4, "max_iter": 9}
    toy.write(folder, display=2, test_iter=[3], test_interval=4, **fields)
    assert main(["train", "--solver", "solver.prototxt", "--log-dir", "log"]) == 0
    train, test = parsed(capsys.readouterr().err)
    with (folder / "log" / "train.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["NumIters"] for row in train] == [0, 2, 4, 6, 8]
    for row in train:
        assert row["loss"] == pytest.approx(float(written[int(row["NumIters"])]["loss"]), rel=1e-5)
        assert 0 <= row["Seconds"] < 1e5
    # The rate is logged after the outputs of its iteration, so the parser has the one displayed before.
    assert [row["LearningRate"] for row in train[1:]] == pytest.approx([0.01, 0.01, 1e-8, 1e-8])
    assert [row["NumIters"] for row in test] == [0, 4, 8]
    with (folder / "log" / "test.csv").open(newline="") as file:
        values = [(row["iteration"], row["output"], float(row["value"])) for row in csv.DictReader(file)]
    shown = [(f"{row['NumIters']:g}", name, row[name]) for row in test for name in ("accuracy", "loss")]
    assert [entry[:2] for entry in shown] == [entry[:2] for entry in values]
    assert [entry[2] for entry in shown] == pytest.approx([entry[2] for entry in values], rel=1e-5)


def test_time_needs_shapes_where_nobody_knows_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = 'layer { name: "in" type: "Input" top: "x" } layer { name: "r" type: "ReLU" bottom: "x" top: "y" }'
    (folder / "free.prototxt").write_text(net)
    assert main(["time", "--model", "free.prototxt", "--iterations", "1"]) == 1
    assert "the shape of 'x' is unknown" in capsys.readouterr().err
    assert main(["time", "--model", "free.prototxt", "--iterations", "1", "--shape", "x=1x3x8x8"]) == 0


def test_time_of_a_relu_in_place(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "relu.prototxt").write_text(
        'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 dim: 4 dim: 4 } } }'
        'layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 2 kernel_size: 1 } }'
        'layer { name: "r" type: "ReLU" bottom: "c" top: "c" }'
    )
    assert main(["time", "--model", "relu.prototxt", "--iterations", "1"]) == 0
    assert re.search(r"^ *r\tbackward: [\d.e-]+ ms\.$", capsys.readouterr().out, re.MULTILINE)


def test_stages_and_level_reach_the_train_net_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcnproto.solver

    states: list[caffe_pb2.SolverParameter] = []

    class Stop(Exception):
        pass

    def record(param: caffe_pb2.SolverParameter, **options: object) -> None:
        states.append(param)
        raise Stop

    monkeypatch.setattr(fcnproto.solver, "Solver", record)
    main(["train", "--solver", "solver.prototxt", "--level", "2", "--stage", "a,b", "--weights", "w1,w2"])
    main(["train", "--solver", "solver.prototxt"])
    assert (states[0].train_state.level, list(states[0].train_state.stage)) == (2, ["a", "b"])
    assert list(states[0].weights) == ["w1,w2"] and not states[0].test_state
    assert list(states[1].train_state.stage) == [""]  # Caffe's tool adds an empty stage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "w", "--snapshot", "s"], "give one of them"),
        (["--gpu", "0,1"], "torchrun --nproc-per-node 2"),
        (["--gpu", "all"], "torchrun"),
        (["--gpu", "0", "--device", "cpu"], "say the same"),
        (["--sigint_effect", "explode"], "explode"),
    ],
)
def test_wrong_usage(folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--solver", "solver.prototxt", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_diverged_run_ends_with_status_1_and_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy.write(folder, base_lr=1e30, max_iter=9, snapshot=1)
    assert main(["train", "--solver", "solver.prototxt", "--no-plot", "--no-progress"]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fcnproto: error:")]
    assert len(error) == 1
    assert re.search(r"iteration \d+: .*it began in .*\. Training stopped", error[0])
