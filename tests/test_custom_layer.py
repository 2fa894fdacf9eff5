"""The guide to layers of one's own: its module is run as it stands, from outside the package, through every verb."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import fcnproto
from fcnproto.cli._main import main
from fcnproto.drawing.diagram import kind_of
from fcnproto.export import convert
from fcnproto.graph import coord_map
from fcnproto.inspect.summary import summarise
from fcnproto.layers import registry
from fcnproto.net.examples import draw_inputs
from fcnproto.net.roles import images_stay_apart
from fcnproto.passes.folding import FoldedChain
from fcnproto.schema.definition import net_definition
from fcnproto.schema.text import format_message, parse, read_net
from fcnproto.surgery import rarefy, shift_and_stitch

GUIDE = (Path(__file__).parents[1] / "docs" / "custom-layers.md").read_text()
NET = """name: "own"
layer { name: "x" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 20 dim: 20 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 4 kernel_size: 3 pad: 12 weight_filler { type: "xavier" } } }
ACT
layer { name: "pool" type: "Pooling" bottom: "act" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool" top: "conv2"
        convolution_param { num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
MIX
layer { name: "score" type: "Convolution" bottom: "mix" top: "coarse"
        convolution_param { num_output: 2 kernel_size: 1 weight_filler { type: "xavier" } } }
layer { name: "up" type: "Deconvolution" bottom: "coarse" top: "up"
        convolution_param { num_output: 2 group: 2 kernel_size: 4 stride: 2 bias_term: false weight_filler { type: "bilinear" } } }
layer { name: "crop" type: "Crop" bottom: "up" bottom: "data" top: "score" crop_param { axis: 2 offset: 12 } }
"""
LOSS = """
layer { name: "t" type: "Input" top: "label" input_param { shape { dim: 1 dim: 1 dim: 20 dim: 20 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" }
"""


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)
    assert found
    return found[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guide's files as a user has them, with a net that uses the layers."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_layers.py").write_text(block("python"))
    (folder / "blend.proto").write_text(block("proto"))
    act, mix = block("protobuf").split("\n", 1)
    net = NET.replace("ACT", act).replace("MIX", mix)
    (folder / "net.prototxt").write_text(net)
    (folder / "train.prototxt").write_text(net + LOSS)
    return folder


@pytest.fixture
def registered(folder: Path) -> Iterator[None]:
    before = dict(registry._LAYERS)
    spec = importlib.util.spec_from_file_location("own_layers", folder / "own_layers.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["own_layers"] = module
    spec.loader.exec_module(module)
    yield
    registry._LAYERS.clear()
    registry._LAYERS.update(before)
    del sys.modules["own_layers"]


@pytest.fixture
def net(registered: None, folder: Path) -> fcnproto.Net:
    torch.manual_seed(1)
    return fcnproto.load(folder / "net.prototxt")


@pytest.fixture
def image() -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, (1, 3, 20, 20))).float()


def test_without_registration_the_error_is_the_guides(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(
        'layer { name: "x" type: "Input" top: "conv1" }' + block("protobuf").split("\n", 1)[0]
    )
    with pytest.raises(fcnproto.UnsupportedLayerError) as caught:
        fcnproto.load(tmp_path / "net.prototxt", strict=True)
    with pytest.warns(fcnproto.FcnprotoWarning, match="SoftSign"):
        net = fcnproto.load(tmp_path / "net.prototxt")
    with pytest.raises(fcnproto.GraphError, match="unknown layer type 'SoftSign'"):
        net(conv1=torch.zeros(1, 1, 1, 1))
    assert str(caught.value).startswith(f"{tmp_path}/" + block("text").strip().removesuffix("...").strip())
    assert "fcnproto.register_layer('SoftSign')" in str(caught.value)


def test_loads_and_computes(net: fcnproto.Net, image: Tensor) -> None:
    out = net(data=image, blobs=["conv1", "act", "conv2", "pool", "mix"])
    assert torch.allclose(out["act"], torch.nn.functional.softsign(out["conv1"]), atol=1e-6)
    assert torch.allclose(out["mix"], 0.75 * out["conv2"] + 0.25 * out["pool"], atol=1e-6)
    assert [p.lr_mult for p in net.learnable if p.layer == "mix"] == [10.0]
    assert "mix.weight" in net.state_dict()


def test_text_and_caffemodel_come_back(net: fcnproto.Net, folder: Path, tmp_path: Path) -> None:
    definition = read_net(folder / "net.prototxt")
    assert parse(format_message(definition), type(definition)) == definition
    with torch.no_grad():
        net.params["mix"][0].fill_(0.25)
    net.save(tmp_path / "w.caffemodel")
    carried = net_definition(tmp_path / "w.caffemodel")
    assert next(layer for layer in carried.layer if layer.type == "Blend").blend_param.ratio == 0.75
    again = fcnproto.load(carried, tmp_path / "w.caffemodel")
    assert torch.equal(again.params["mix"][0], torch.full((4,), 0.25))


def test_trains(registered: None, folder: Path, image: Tensor) -> None:
    (folder / "solver.prototxt").write_text(
        'net: "train.prototxt" base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 snapshot_after_train: false random_seed: 3\n'
    )
    solver = fcnproto.Solver(folder / "solver.prototxt", device="cpu")
    before = solver.net.params["mix"][0].clone()
    label = torch.zeros(1, 1, 20, 20)
    label[:, :, 5:15, 5:15] = 1
    solver.step(25, data=image + 2 * label - 1, label=label)
    assert solver.losses[-1] < 0.8 * solver.losses[0]
    assert not torch.equal(solver.net.params["mix"][0], before)


def test_gradients_are_those_of_differences(net: fcnproto.Net) -> None:
    double = net.double()
    x = torch.rand(1, 3, 20, 20, dtype=torch.float64)[:, :, :4, :4].requires_grad_()
    layer = double.layer("mix")
    a, b = (torch.rand(1, 4, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(layer, (a, b))
    assert torch.autograd.gradcheck(lambda x: double(data=x, blobs=["mix"])["mix"], (x,))


def test_coordinate_maps_pass_through(net: fcnproto.Net) -> None:
    found = coord_map.crop(net.graph.blob("up"), net.graph.blob("data"))
    assert list(found.offset) == [12]


def test_padding_is_folded_around_it(net: fcnproto.Net, image: Tensor) -> None:
    fast = fcnproto.optimize(net)
    with torch.no_grad():
        for x in (image, image[:, :, :14, :18]):
            for blob in ("mix", "score"):
                assert torch.allclose(fast(data=x, blobs=[blob])[blob], net(data=x, blobs=[blob])[blob], atol=1e-6)
    chains = [
        m for plan in fast._fast_plans._values.values() for m in plan[0].module.modules() if isinstance(m, FoldedChain)
    ]
    assert chains and {"act"} <= {step.layer.name for chain in chains for step in chain._steps}


def test_images_are_taken_together(net: fcnproto.Net) -> None:
    assert images_stay_apart(net, ["score"])


def test_is_made_dense(net: fcnproto.Net, folder: Path, image: Tensor) -> None:
    dense, _ = rarefy(read_net(folder / "net.prototxt"), "coarse")
    assert {layer.type for layer in dense.layer} >= {"SoftSign", "Blend"}
    made = fcnproto.load(dense)
    made.load_state_dict(net.state_dict(), strict=False)
    stitched = shift_and_stitch(net, image, "coarse")
    scores = made(data=image)["coarse"]
    height, width = (min(a, b) for a, b in zip(scores.shape[2:], stitched.scores.shape[2:], strict=True))
    assert torch.allclose(scores[:, :, :height, :width], stitched.scores[:, :, :height, :width], atol=1e-5)


def test_summary_and_drawing(registered: None, folder: Path, tmp_path: Path) -> None:
    rows = {layer.name: layer for layer in summarise(read_net(folder / "net.prototxt")).layers}
    assert rows["mix"].parameters == 4 and rows["mix"].tops["mix"] == (1, 4, 21, 21)
    assert kind_of("SoftSign") == kind_of("ReLU") == "activation"
    assert main(["draw", str(folder / "net.prototxt"), "-o", str(tmp_path / "net.svg")]) == 0
    words = " ".join(ElementTree.parse(tmp_path / "net.svg").getroot().itertext())
    assert "Blend ratio 0.75" in words and "SoftSign" in words


def test_parity_compares_it(
    net: fcnproto.Net, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert draw_inputs(net, {"data": (1, 3, 20, 20)})["data"].shape == (1, 3, 20, 20)
    net.save(tmp_path / "w.caffemodel")
    model, weights = str(folder / "net.prototxt"), str(tmp_path / "w.caffemodel")
    assert main(["parity", model, weights, "--reference", "float64", "--backward", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "mix" in printed and "act" in printed


@pytest.mark.parametrize("ending", ["py", "pt2", "onnx"])
def test_is_exported(net: fcnproto.Net, image: Tensor, tmp_path: Path, ending: str) -> None:
    if ending == "onnx":
        pytest.importorskip("onnxscript", reason="the ONNX packages are not installed")
    with torch.no_grad():
        net.params["mix"][0].copy_(torch.tensor([0.5, 1, 1.5, 2]))
    done = convert(net, tmp_path / f"own_net.{ending}")
    assert done.files[0].stat().st_size > 500 and "compared" in done.checked
    if ending == "py":
        code = "import sys, torch; sys.modules['fcnproto'] = None; import own_net; x = torch.load('x.pt'); "
        code += "y = own_net.load()(x); torch.save(y['score'] if isinstance(y, dict) else y, 'y.pt')"
        torch.save(image, tmp_path / "x.pt")
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
        torch.testing.assert_close(torch.load(tmp_path / "y.pt"), net(data=image)["score"], atol=1e-5, rtol=1e-5)


def test_segments(net: fcnproto.Net) -> None:
    (result,) = fcnproto.segment.Segmenter(net)(Image.fromarray(np.full((20, 20, 3), 90, np.uint8)))
    assert result.labels.shape == (20, 20)


@pytest.mark.usefixtures("registered")
def test_its_errors_name_the_layer(folder: Path, tmp_path: Path) -> None:
    text = (folder / "net.prototxt").read_text()
    (tmp_path / "net.prototxt").write_text(text.replace("ratio: 0.75", "rato: 1"))
    with pytest.raises(fcnproto.PrototxtError, match=r'BlendParameter has no field "rato"; did you mean "ratio"'):
        fcnproto.load(tmp_path / "net.prototxt")
    (tmp_path / "net.prototxt").write_text(
        text.replace('bottom: "conv2" bottom: "pool"', 'bottom: "conv2" bottom: "data"')
    )
    with pytest.raises(fcnproto.LayerError, match=r"layer 'mix' \(Blend\): bottoms must have one shape"):
        fcnproto.load(tmp_path / "net.prototxt")


def test_a_type_from_outside_stays_where_the_package_has_one_of_the_name() -> None:
    """The package's own are registered when a net is first loaded, perhaps after it."""
    code = (
        "import fcnproto, torch\n"
        "@fcnproto.register_layer('Mish')\n"
        "class Mish(fcnproto.Pointwise):\n"
        "    def forward(self, x): return x + 7\n"
        'net = fcnproto.schema.text.parse(\'input: "x" input_shape { dim: 2 } '
        'layer { name: "m" type: "Mish" bottom: "x" top: "y" }\', fcnproto.schema.caffe_pb2.NetParameter)\n'
        "import fcnproto.schema.upgrade as upgrade; upgrade.upgrade_net(net)\n"
        "assert fcnproto.Net(net)(x=torch.zeros(2))['y'].tolist() == [7, 7]\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
