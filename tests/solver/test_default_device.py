"""A default device that a user's script has set changes nothing: what isn't given stays where the net is.

Torch's meta device stands for a GPU: a tensor that is made without a place of its own lands there, and can't be mixed
with others.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import solver_toy as toy
import torch
from PIL import Image

import fcnproto
from fcnproto import zoo
from fcnproto.export import convert
from fcnproto.parity.references import float64_reference
from fcnproto.segment import Segmenter
from fcnproto.solver import Solver
from fcnproto.solver.sampling import LossSampling


@pytest.fixture(autouse=True)
def _elsewhere() -> Iterator[None]:
    with torch.device("meta"):
        yield


def mini() -> fcnproto.net.Net:
    return fcnproto.load(zoo.path("fcn-mini", "deploy"), zoo.path("fcn-mini", "weights"))


@torch.no_grad()
def test_a_net_and_its_optimised_forms() -> None:
    net, image = mini(), torch.randn(1, 3, 64, 48, device="cpu")
    expected = net(data=image)["score"]
    for form in (fcnproto.optimize(net), fcnproto.optimize(net, passes=["deconvolutions"])):
        assert torch.allclose(form(data=image)["score"], expected, atol=1e-3)
    assert float64_reference(net, {"data": image.numpy()}).blobs
    picture = Image.fromarray(np.zeros((40, 30, 3), np.uint8))
    assert Segmenter(net)(picture)[0].labels.shape == (40, 30)


@pytest.mark.parametrize("suffix", [".py", ".pt2", ".safetensors"])
def test_converting(suffix: str, tmp_path: Path) -> None:
    text = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }'
    text += (
        'layer { name: "up" type: "Deconvolution" bottom: "data" top: "up" convolution_param { num_output: 3 group: 3'
    )
    text += ' kernel_size: 4 stride: 2 weight_filler { type: "bilinear" } } }'
    (tmp_path / "n.prototxt").write_text(text)
    assert convert(fcnproto.load(tmp_path / "n.prototxt"), tmp_path / f"n{suffix}").checked


def test_training(tmp_path: Path) -> None:
    path = toy.write(tmp_path, extra='layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" }')
    assert LossSampling(0.5).mask(torch.Size((2, 1, 40, 40))).device.type == "cpu"
    solver = Solver(path, device="cpu")
    solver.step(2)
    again = Solver(path, device="cpu")
    again.restore(solver.snapshot())
    again.step(1)
    assert np.isfinite(again.losses).all()
