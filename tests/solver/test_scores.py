"""Mean IU of test nets while a solver trains: right, beside Caffe's lines, which stay as they are."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import fcnproto
from fcnproto.cli._main import main
from fcnproto.errors import FcnprotoWarning
from fcnproto.scoring.metrics import confusion_matrix, metrics

h5py = pytest.importorskip("h5py")

NET = """
layer { name: "d" type: "HDF5Data" top: "data" top: "label" hdf5_data_param { source: "list.txt" batch_size: 2 } }
layer { name: "score" type: "Convolution" bottom: "data" top: "score"
  convolution_param { num_output: 3 kernel_size: 1 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss"
  loss_param { ignore_label: 255 } }
"""
SOLVER = """
net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 2 test_iter: 3 test_interval: 2 display: 1
snapshot_after_train: false solver_mode: CPU random_seed: 3
"""


def write(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, (6, 1, 5, 4))
    data = draw.normal(size=(6, 2, 5, 4)).astype(np.float32)
    data[:, :1] += labels
    labels[:, :, 0] = 255
    with h5py.File(folder / "rows.h5", "w") as file:
        file["data"], file["label"] = data, labels.astype(np.float32)
    (folder / "list.txt").write_text("rows.h5\n")
    (folder / "net.prototxt").write_text(NET)
    (folder / "solver.prototxt").write_text(SOLVER)
    return data, labels


def test_mean_iu_of_the_test_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data, labels = write(tmp_path)
    solver = fcnproto.Solver("solver.prototxt")
    plain = solver.test()[0]
    solver.score_tests = True
    (scored,) = solver.test()
    assert set(scored) - set(plain) == {"mean IU"}
    assert {name: scored[name] for name in plain} == plain  # all else is as without
    net = solver.net
    with torch.no_grad():
        prediction = net(data=torch.from_numpy(data), blobs=["score"])["score"].argmax(1).numpy()
    expected = metrics(confusion_matrix(labels[:, 0], prediction, 3, 255)).mean_iu
    assert solver.test()[0]["mean IU"] == [pytest.approx(expected)]


def test_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    logs = []
    for flags in ([], ["--score"]):
        assert main(["train", "--solver", "solver.prototxt", "--no-progress", "--no-plot", *flags]) == 0
        logs.append([line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()])
    added = [line for line in logs[1] if "Test score" in line]
    hidden = [re.sub(r"\(.* iter/s.*\)", "", line) for line in logs[1] if line not in added]
    assert hidden == [re.sub(r"\(.* iter/s.*\)", "", line) for line in logs[0]]
    assert len(added) == 2 * 4 and re.fullmatch(
        r"    Test score: score mean IU [\d.]+, pixel accuracy [\d.]+", added[0]
    )
    assert added[3].startswith("    Test score: score class 2 IU 0.")
    assert not any(re.search(r"net output #|Iteration \d+|loss", line) for line in added)


def test_where_there_is_nothing_to_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    Path("solver.prototxt").write_text(SOLVER.replace("test_iter: 3 test_interval: 2", ""))
    with pytest.warns(FcnprotoWarning, match="nothing to score"):
        fcnproto_main(["train", "--solver", "solver.prototxt", "--no-progress", "--no-plot", "--score"])


def fcnproto_main(arguments: list[str]) -> None:
    """The command's own function, whose warnings are not turned into lines."""
    from fcnproto.cli.train import command

    command.main(arguments[1:], standalone_mode=False)
