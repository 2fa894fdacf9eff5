"""A net writes nothing unasked: HDF5Output does its work in training and testing, or where it is allowed to."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import fcnproto
from fcnproto.cli._main import main
from fcnproto.errors import FcnprotoWarning

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 24 dim: 24 } } }
layer { name: "c" type: "Convolution" bottom: "data" top: "y" convolution_param { num_output: 8 kernel_size: 3 pad: 1
        weight_filler { type: "xavier" } } }
layer { name: "p" type: "ReLU" bottom: "y" top: "score" }
layer { name: "o" type: "HDF5Output" bottom: "y" bottom: "y" hdf5_output_param { file_name: "%s" } }
"""
PRECIOUS = b"precious"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "victim.txt").write_bytes(PRECIOUS)
    (tmp_path / "m.prototxt").write_text(NET % "victim.txt")
    Image.fromarray(np.zeros((24, 24, 3), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = fcnproto.load("m.prototxt")
        net.save("w.caffemodel")
        np.savez(
            "g.npz",
            **{
                "in.data": np.ones((1, 3, 24, 24), "f4"),
                "out.y": net(torch.ones(1, 3, 24, 24), blobs="y")["y"].detach(),
            },
        )
    return tmp_path


def test_a_loaded_net_writes_where_it_may_alone(folder: Path) -> None:
    with pytest.warns(FcnprotoWarning, match="'victim.txt' would be written by 'o': left out.*--allow-writes") as seen:
        net = fcnproto.load("m.prototxt", "w.caffemodel")
    assert len(seen) == 1
    x = torch.ones(1, 3, 24, 24)
    for each in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net)), fcnproto.optimize(net)):
        assert set(each(x)) == {"score"}
    assert (folder / "victim.txt").read_bytes() == PRECIOUS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        allowed = fcnproto.load("m.prototxt", "w.caffemodel", allow_writes=True)
    allowed(x)
    assert h5py.is_hdf5(folder / "victim.txt")


COMMANDS = {
    "segment": ["a.png", "-o", "out"],
    "run": ["--image", "a.png"],
    "features": ["a.png", "--blobs", "y", "-o", "f.npz"],
    "parity": ["--golden", "g.npz"],
    "pictures": ["--image", "a.png", "-o", "pics"],
    "convert": ["out.safetensors"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "m.prototxt", "w.caffemodel", *COMMANDS[command]]) == 0
    assert (folder / "victim.txt").read_bytes() == PRECIOUS
    assert capsys.readouterr().err.count("would be written by 'o'") == 1


def test_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["time", "--model", "m.prototxt", "--iterations", "1"]) == 0
    assert (folder / "victim.txt").read_bytes() == PRECIOUS
    assert main(["run", "m.prototxt", "w.caffemodel", "--image", "a.png", "--allow-writes"]) == 0
    assert h5py.is_hdf5(folder / "victim.txt")


def test_testing_and_training_write_as_caffe_does(folder: Path) -> None:
    source = 'layer { name: "data" type: "DummyData" top: "data" dummy_data_param { shape { dim: 1 dim: 3 dim: 24 dim: 24 } } }'
    Path("t.prototxt").write_text(source + (NET % "t.h5").split("\n", 2)[2])
    assert main(["test", "--model", "t.prototxt", "--weights", "w.caffemodel", "--iterations", "2"]) == 0
    with h5py.File("t.h5") as file:
        assert file["data"].shape == (2, 8, 24, 24)
    Path("t.h5").unlink()
    Path("s.prototxt").write_text(
        'net: "t.prototxt" base_lr: 0 lr_policy: "fixed" max_iter: 1 snapshot_after_train: false solver_mode: CPU'
    )
    fcnproto.Solver("s.prototxt").step(1)
    assert h5py.is_hdf5("t.h5")
