"""The guide to layers of one's own: its example is run as it stands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fcnproto
from fcnproto.layers import registry

GUIDE = (Path(__file__).parents[1] / "docs" / "custom-layers.md").read_text()
NET = """
layer { name: "x" type: "Input" top: "conv1" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 4 } } }
%s
layer { name: "label" type: "Input" top: "t" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 4 } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "gate" bottom: "t" top: "loss" }
"""


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
def registered() -> Iterator[None]:
    exec(compile(block("python"), "custom-layers.md", "exec"), {})
    yield
    del registry._LAYERS["Gate"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "net.prototxt").write_text(NET % block("protobuf"))
    return tmp_path / "net.prototxt"


@pytest.mark.usefixtures("registered")
def test_the_guides_layer_loads_computes_trains_and_saves(path: Path, tmp_path: Path) -> None:
    net = fcnproto.load(path)
    (weight,) = net.params["gate"]
    assert torch.equal(weight, torch.full((3,), 2.0))
    x = torch.randn(2, 3, 4, 4)
    out = net(conv1=x, t=torch.zeros_like(x), blobs=["gate"])
    assert torch.allclose(out["gate"], x * torch.sigmoid(torch.tensor(2.0)))
    net.loss(out).backward()
    assert weight.grad is not None
    assert weight.grad.any()
    assert [p.lr_mult for p in net.learnable] == [10.0]
    assert list(net.state_dict()) == ["gate.weight"]
    with torch.no_grad():
        weight.fill_(0.25)
    net.save(tmp_path / "w.caffemodel")
    assert torch.equal(fcnproto.load(path, tmp_path / "w.caffemodel").params["gate"][0], weight)


def test_without_registration_the_error_is_the_guides(path: Path) -> None:
    with pytest.raises(fcnproto.UnsupportedLayerError) as caught:
        fcnproto.load(path)
    assert str(caught.value).removeprefix(f"{path.parent}/") == block("text").strip()


@pytest.mark.usefixtures("registered")
def test_its_own_errors_name_the_layer(path: Path) -> None:
    path.write_text(path.read_text().replace("dim: 2 dim: 3 dim: 4 dim: 4", "dim: 2", 1))
    with pytest.raises(fcnproto.LayerError, match=r"layer 'gate' \(Gate\): needs a channel axis"):
        fcnproto.load(path)
