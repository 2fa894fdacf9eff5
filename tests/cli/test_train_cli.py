"""The train, test and time commands, with Caffe's flags in Caffe's spelling."""

from __future__ import annotations

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
