"""What `optimize --explain` says of passes: which layers, what, and numbers counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from golden_cases import deviation

import fcnproto
from fcnproto.cli._main import main
from fcnproto.errors import UsageError
from fcnproto.passes.rewriting import PASSES

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 20 dim: 30 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param { num_output: 4 kernel_size: 3 pad: 40 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "relu1" }
layer { name: "pool1" type: "Pooling" bottom: "relu1" top: "pool1" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2" convolution_param { num_output: 5 kernel_size: 1 } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "drop" type: "Dropout" bottom: "conv2" top: "drop" }
layer { name: "norm" type: "MVN" bottom: "drop" top: "norm" }
layer { name: "pool3" type: "Pooling" bottom: "norm" top: "pool3" pooling_param { kernel_size: 3 stride: 3 } }
layer { name: "up" type: "Deconvolution" bottom: "pool3" top: "up" convolution_param { num_output: 5 group: 5 kernel_size: 4
  stride: 2 bias_term: false weight_filler { type: "gaussian" std: 1 } } }
layer { name: "crop" type: "Crop" bottom: "up" bottom: "data" top: "crop" crop_param { axis: 2 } }
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "net.prototxt").write_text(NET)
    return tmp_path / "net.prototxt"


def savings(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    assert main(["optimize", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["savings"]
    assert isinstance(found, list)
    return found


def test_each_pass_by_layer(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {tuple(each["layers"]): each for each in savings(capsys, str(path))}  # type: ignore[arg-type]
    assert {names: each["made_by"] for names, each in found.items()} == {
        ("drop",): "remove_dropout",
        ("conv1", "relu1"): "fold_padding",
        ("pool1",): "fold_padding",
        ("conv2", "relu2"): "fold_padding",
        ("pool3",): "pooling",
        ("up", "crop"): "deconvolutions",
    }
    # conv1 gives 98 x 108 positions, of which 22 x 32 (from 38 on: whole windows of the pooling) see the image, by 27
    # products in each of 4 channels.
    folded = found["conv1", "relu1"]
    assert folded["what"] == "22x32 of 98x108 positions"
    assert folded["multiply_adds"] == (98 * 108 - 22 * 32) * 27 * 4
    assert folded["bytes"] == 4 * 4 * (98 * 108 + 98 * 108 - 22 * 32)
    # pool3 gives 5 x 17 x 18 (and torch's positions 8 bytes each), up 36 x 38, of which crop keeps 20 x 30.
    assert found["pool3",]["bytes"] == 8 * 5 * 17 * 18
    assert found["up", "crop"]["what"] == "20x30 of 36x38 positions"
    assert found["up", "crop"]["bytes"] == 4 * 5 * 36 * 38


def test_lines(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["optimize", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*PASSES, "in"]
    assert "no layer" in lines[PASSES.index("convolutions")]
    assert main(["optimize", str(path), "--explain", "--passes", "convolutions,pooling"]) == 0
    table = capsys.readouterr().out
    assert "conv1, relu1" in table
    assert "ReLU along with it" in table
    assert "fold_padding" not in table


def test_in_the_train_phase_dropout_stays(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert all(each["made_by"] != "remove_dropout" for each in savings(capsys, str(path), "--phase", "train"))


def test_an_unknown_pass(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["optimize", str(path), "--passes", "pooling,fold_pading"]) == 2
    error = capsys.readouterr().err
    assert "pass 'fold_pading' is unknown; did you mean 'fold_padding'? the passes are remove_dropout, " in error
    assert error.count("\n") == 1
    net = fcnproto.load(path)
    with pytest.raises(UsageError, match="did you mean 'pooling'"):
        fcnproto.optimize(net, passes=["poolings"])
    with pytest.raises(UsageError, match="pass 'xyz' is unknown; the passes are"):
        fcnproto.optimize(net, passes="xyz")


@torch.no_grad()
def test_chosen_passes_alone_run(path: Path) -> None:
    net = fcnproto.load(path)
    x = torch.randn(1, 3, 20, 30)
    expected = net(data=x)["crop"]
    for passes in ([], ["pooling"], ["deconvolutions", "fold_padding"], list(PASSES), None):
        fast = fcnproto.optimize(net, passes=passes)
        assert deviation(fast(data=x)["crop"], expected) <= 1e-5
        kinds = {type(m).__name__ for m in fast._find_plan(("data",), ()).module.modules()}
        assert ("FoldedChain" in kinds) == (passes is None or "fold_padding" in passes)
        assert ("FastPooling" in kinds) == (passes is None or "pooling" in passes)
    assert fast.passes == PASSES


def test_a_published_net(capsys: pytest.CaptureFixture[str]) -> None:
    """FCN-8s at 334x500: of 136 thousand million multiply-adds a third is left by folding and Winograd's method."""
    model = str(fcnproto.zoo.path("voc-fcn8s", "deploy"))
    found = savings(capsys, model, "--input-size", "334x500")
    what = {str(each["layers"][0]): str(each["what"]) for each in found}  # type: ignore[index]
    assert what["pool1"].endswith(" of 266x349 positions")
    assert "Winograd" in what["conv3_2"]
    assert "Winograd" in what["conv5_3"]
    assert "Winograd" not in what["conv1_2"]
    assert what["fc6"].startswith("one matrix product")
    assert what["upscore8"].endswith("334x500 of 408x568 positions")
    assert sum(int(str(each["multiply_adds"])) for each in found) == pytest.approx(90e9, rel=0.02)
