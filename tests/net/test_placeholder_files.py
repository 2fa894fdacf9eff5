"""Place-holders and layers that wait take their blobs' shapes from every kind of weight file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fcnproto
from fcnproto.errors import FcnprotoWarning

NET = (
    'layer { name: "d" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 } } }\n'
    'layer { name: "ip/1" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 4 } }\n'
    'layer { name: "w" type: "Warp" bottom: "ip" top: "w" }\n'
)


@pytest.mark.parametrize("suffix", ["caffemodel", "caffemodel.h5", "safetensors"])
def test_values_of_place_holders_and_waiting_layers_survive(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "net.prototxt").write_text(NET.replace("ip/1", "ip1"))
    values = {"ip1.weight": torch.rand(4, 3), "ip1.bias": torch.rand(4), "w.blob_0": torch.rand(2, 5)}
    save_file(values, tmp_path / "first.safetensors")
    with pytest.warns(FcnprotoWarning, match="Warp"):
        net = fcnproto.load(tmp_path / "net.prototxt", tmp_path / "first.safetensors")
    assert torch.equal(net.params["w"][0], values["w.blob_0"])
    net.save(tmp_path / f"w.{suffix}")
    waiting = NET.replace("ip/1", "ip1").replace("input_param { shape { dim: 2 dim: 3 } }", "")
    (tmp_path / "open.prototxt").write_text(waiting)
    with pytest.warns(FcnprotoWarning, match="Warp"):
        again = fcnproto.load(tmp_path / "open.prototxt", tmp_path / f"w.{suffix}")
    with pytest.warns(FcnprotoWarning, match="Warp"):
        late = fcnproto.load(tmp_path / "open.prototxt")
    late.copy_from(tmp_path / f"w.{suffix}")
    for other in (again, late):
        assert other.unknown == [("w", "Warp")]
        assert torch.equal(other.params["w"][0], values["w.blob_0"])
        assert torch.equal(other.params["ip1"][1], values["ip1.bias"])
        assert other(data=torch.ones(1, 3), blobs=["ip"])["ip"].shape == (1, 4)


def test_names_of_blobs_and_of_modules(tmp_path: Path) -> None:
    """A file of a net whose Warp was registered, with names of its own; and a layer whose module has another name."""
    (tmp_path / "net.prototxt").write_text(NET.replace("input_param { shape { dim: 2 dim: 3 } }", ""))
    values = {
        "ip_1.weight": torch.rand(4, 3),
        "ip_1.bias": torch.rand(4),
        "w.bias": torch.rand(3),
        "w.grid": torch.rand(9),
    }
    save_file(values, tmp_path / "w.safetensors")
    with pytest.warns(FcnprotoWarning, match="Warp"):
        net = fcnproto.load(tmp_path / "net.prototxt", tmp_path / "w.safetensors")
    assert [tuple(blob.shape) for blob in net.params["w"]] == [(9,), (3,)]
    assert torch.equal(net.params["w"][1], values["w.bias"]) and torch.equal(
        net.params["ip/1"][0], values["ip_1.weight"]
    )
