"""`optimize`: the same outputs as the plain net, for every net of the family, size, batch and request."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import golden_cases
import pytest
import torch
from golden_cases import assert_close, deviation

import fcnproto
from fcnproto.passes.folding import FoldedChain

FORWARD = [name for name in golden_cases.names("fcn") if name.endswith("_forward")]


def chains(net: fcnproto.Net) -> list[FoldedChain]:
    return [
        m for plan, _ in net._fast_plans._values.values() for m in plan.module.modules() if isinstance(m, FoldedChain)
    ]


@pytest.mark.parametrize("name", FORWARD)
def test_recorded_blobs(name: str) -> None:
    case = golden_cases.load("fcn", name)
    fast = fcnproto.optimize(case.net())
    inputs = {key: torch.from_numpy(value) for key, value in case.keys("in").items()}
    with torch.no_grad():
        out = fast(inputs, blobs=list(case.keys("out")))
        for blob, value in case.keys("out").items():
            assert_close(out[blob], value, 1e-5, blob)
        slim = fast(inputs)
        for blob, value in slim.items():
            assert_close(value, out[blob], 1e-5, blob)
    assert chains(fast)


@pytest.mark.parametrize("name", FORWARD)
def test_other_sizes_and_batches(name: str) -> None:
    net = golden_cases.load("fcn", name).net()
    fast = fcnproto.optimize(net)
    shapes = {key: shape for key, shape in net.source_shapes.items() if key in net.inputs}
    for seed, (batch, height, width) in enumerate([(2, 33, 48), (1, 16, 81), (1, 1, 1)]):
        torch.manual_seed(seed)
        inputs = {key: torch.randn(batch, shape[1], height, width) * 50 for key, shape in shapes.items()}
        with torch.no_grad():
            plain, ours = net(inputs), fast(inputs)
            assert list(ours) == list(plain)
            for blob, value in plain.items():
                assert deviation(ours[blob], value) <= 1e-5, (blob, height, width)


@pytest.fixture
def net() -> fcnproto.Net:
    return golden_cases.load("fcn", "voc_fcn8s_forward").net()


def image(height: int = 40, width: int = 56, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 50


@torch.no_grad()
def test_changed_weights_are_noticed(net: fcnproto.Net) -> None:
    fast = fcnproto.optimize(net)
    fast(data=image())
    for layer in ("conv1_1", "conv3_2", "fc6", "upscore8", "score_pool3"):
        net.params[layer][0].mul_(1.5)
        assert deviation(fast(data=image())["score"], net(data=image())["score"]) <= 1e-5, layer


@torch.no_grad()
def test_weights_are_shared_both_ways(net: fcnproto.Net) -> None:
    fast = fcnproto.optimize(net)
    assert fast.params["conv1_1"][0] is net.params["conv1_1"][0]
    fast.params["score_fr"][1].add_(3)
    assert deviation(fast(data=image())["score"], net(data=image())["score"]) <= 1e-5
    assert list(fast.state_dict()) == list(net.state_dict())


@pytest.mark.parametrize("name", [name for name in golden_cases.names("fcn") if name.endswith("_train")])
def test_gradients_are_those_of_the_plain_net(name: str) -> None:
    case = golden_cases.load("fcn", name)
    net = case.net().double()
    fast = fcnproto.optimize(net)
    inputs = {key: torch.from_numpy(value) for key, value in case.keys("in").items()}
    net.loss(net(inputs)).backward()
    plain = [p.tensor.grad for p in net.learnable]
    net.zero_grad()
    fast.loss(fast(inputs)).backward()
    assert chains(fast)
    for parameter, expected in zip(net.learnable, plain, strict=True):
        what = f"{parameter.layer}.{parameter.index}"
        if expected is None:
            assert parameter.tensor.grad is None, what
        else:
            assert deviation(parameter.tensor.grad, expected) <= 1e-12, what


def test_gradients_at_the_kink_are_those_of_the_plain_net(net: fcnproto.Net) -> None:
    """Biases of zero: far from the image every ReLU's input is exactly at its threshold."""
    net = net.double()
    with torch.no_grad():
        for name, blobs in net.params.items():
            if name.startswith("conv"):
                blobs[1].zero_()
    fast = fcnproto.optimize(net)
    net(data=image())["score"].square().sum().backward()
    plain = {name: [p.grad for p in blobs] for name, blobs in net.params.items()}
    net.zero_grad()
    fast(data=image())["score"].square().sum().backward()
    for name in ("conv1_1", "conv2_2", "conv4_3"):
        for k in range(2):
            assert deviation(net.params[name][k].grad, plain[name][k]) <= 1e-12, name


def test_gradient_of_the_image(net: fcnproto.Net) -> None:
    net = net.double()
    x, y = (image().double().requires_grad_() for _ in range(2))
    net(data=x)["score"].square().sum().backward()
    fcnproto.optimize(net)(data=y)["score"].square().sum().backward()
    assert deviation(y.grad, x.grad) <= 1e-12


def test_dropout_stays_in_training(net: fcnproto.Net) -> None:
    fast = fcnproto.optimize(golden_cases.load("fcn", "voc_fcn8s_train").net())
    x = image()
    fast.train()
    torch.manual_seed(0)
    first, second = (fast(data=x, blobs=["fc7"])["fc7"] for _ in range(2))
    assert not torch.equal(first, second)
    fast.eval()
    assert torch.equal(fast(data=x, blobs=["fc7"])["fc7"], fast(data=x, blobs=["fc7"])["fc7"])


@torch.no_grad()
def test_what_is_kept_per_size_is_bounded(net: fcnproto.Net) -> None:
    fast = fcnproto.optimize(net)
    for size in range(20, 60, 3):
        fast(data=image(size, size + 1))
    (chain,) = chains(fast)
    assert len(chain._sizes) <= 8


@torch.no_grad()
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_values_that_are_no_numbers(net: fcnproto.Net, value: float) -> None:
    """Max pooling passes over NaN and minus infinity, as in Caffe; everything else takes them on."""
    net = net.double()  # windows without a number give Caffe's lowest, -3e38, with which float32 overflows
    fast, x = fcnproto.optimize(net), image().double()
    x[0, 1, 20, 30] = value
    blobs = ["conv1_1", "pool1", "pool2", "pool5", "score"]
    plain, ours = net(data=x, blobs=blobs), fast(data=x, blobs=blobs)
    for name in blobs:
        finite = plain[name].isfinite()
        assert torch.equal(ours[name].isnan(), plain[name].isnan()), name
        assert torch.equal(ours[name].isposinf(), plain[name].isposinf()), name
        assert deviation(ours[name][finite], plain[name][finite]) <= 1e-5, name


@torch.no_grad()
def test_copies(net: fcnproto.Net) -> None:
    fast = fcnproto.optimize(net)
    expected = fast(data=image())["score"]
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(twin(data=image())["score"], expected)
    assert deviation(copy.deepcopy(fast).double()(data=image())["score"], expected) <= 1e-5


@torch.no_grad()
def test_inputs_are_not_changed(net: fcnproto.Net) -> None:
    fast, x = fcnproto.optimize(net), image()
    before = x.clone()
    fast(data=x, blobs=["conv1_1", "pool1"])
    assert torch.equal(x, before)


NETS = {
    "no padding": """
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 dim: 30 dim: 30 } } }
        layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 6 kernel_size: 3
          weight_filler { type: "xavier" } } }
        layer { name: "r" type: "ReLU" bottom: "c" top: "c" relu_param { negative_slope: 0.1 } }
        layer { name: "p" type: "Pooling" bottom: "c" top: "p" pooling_param { kernel_size: 3 stride: 2 } }
        layer { name: "i" type: "InnerProduct" bottom: "p" top: "i" inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
    """,
    "normalised convolutions": """
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 9 } } }
        layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 6 kernel_size: 3 pad: 1
          weight_filler { type: "xavier" } } }
        layer { name: "b" type: "BatchNorm" bottom: "c" top: "c" }
        layer { name: "s" type: "Scale" bottom: "c" top: "c" scale_param { bias_term: true filler { type: "gaussian" } bias_filler { type: "gaussian" } } }
        layer { name: "r" type: "ReLU" bottom: "c" top: "c" }
        layer { name: "d" type: "Convolution" bottom: "c" top: "d" convolution_param { num_output: 6 kernel_size: 3 group: 3 bias_term: false
          weight_filler { type: "xavier" } } }
        layer { name: "b2" type: "BatchNorm" bottom: "d" top: "n" }
    """,
    "branches from a padded chain": """
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 dim: 30 dim: 30 } } }
        layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 6 kernel_size: 5 pad: 40
          weight_filler { type: "xavier" } bias_filler { type: "gaussian" } } }
        layer { name: "b" type: "BatchNorm" bottom: "c" top: "b" }
        layer { name: "s" type: "Scale" bottom: "b" top: "s" scale_param { bias_term: true filler { type: "gaussian" } bias_filler { type: "gaussian" } } }
        layer { name: "e" type: "PReLU" bottom: "s" top: "e" }
        layer { name: "p" type: "Pooling" bottom: "e" top: "p" pooling_param { kernel_size: 2 stride: 2 } }
        layer { name: "d1" type: "Convolution" bottom: "p" top: "d1" convolution_param { num_output: 4 kernel_size: 3 pad: 1 group: 2
          weight_filler { type: "xavier" } bias_filler { type: "gaussian" } } }
        layer { name: "q" type: "Pooling" bottom: "d1" top: "q" pooling_param { kernel_size: 3 stride: 3 pool: MAX } }
        layer { name: "one" type: "Convolution" bottom: "p" top: "one" convolution_param { num_output: 4 kernel_size: 1
          weight_filler { type: "xavier" } } }
        layer { name: "a" type: "Pooling" bottom: "p" top: "a" pooling_param { pool: AVE kernel_size: 2 stride: 2 } }
    """,
    "two paths with windows": """
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 dim: 30 dim: 30 } } }
        layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 4 kernel_size: 3 pad: 20 dilation: 2
          weight_filler { type: "xavier" } bias_filler { type: "gaussian" } } }
        layer { name: "r" type: "ReLU" bottom: "c" top: "c" }
        layer { name: "u" type: "Convolution" bottom: "c" top: "u" convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
        layer { name: "v" type: "Pooling" bottom: "c" top: "v" pooling_param { kernel_size: 2 stride: 2 } }
        layer { name: "z" type: "Deconvolution" bottom: "v" top: "z" convolution_param { num_output: 3 kernel_size: 4 stride: 2 pad: 1
          weight_filler { type: "gaussian" } bias_filler { type: "gaussian" } } }
        layer { name: "k" type: "Crop" bottom: "z" bottom: "x" top: "k" crop_param { axis: 2 offset: 5 offset: 7 } }
    """,
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("text", NETS.values(), ids=list(NETS))
def test_other_nets(text: str, tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(text)
    torch.manual_seed(0)
    net = fcnproto.load(tmp_path / "net.prototxt")
    for name in ("b", "b2"):
        for tensor, value in zip(net.params.get(name, ()), (0.3, 1.7, 2.0), strict=False):
            tensor.fill_(value)
    fast = fcnproto.optimize(net)
    x = torch.randn(net.source_shapes["x"])
    every = [blob for blob in net.graph.blobs if not blob.endswith(("_0", "_1"))]
    for blobs in ([], every):
        plain, ours = net(x, blobs=blobs), fast(x, blobs=blobs)
        for blob, value in plain.items():
            assert deviation(ours[blob], value) <= 1e-5, blob


@torch.no_grad()
def test_batch_norm_in_training_keeps_its_sums(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(NETS["normalised convolutions"])
    net = fcnproto.load(tmp_path / "net.prototxt", phase="train")
    twin = copy.deepcopy(net)
    x = torch.randn(2, 3, 9, 9)
    ours, plain = fcnproto.optimize(net)(x), twin(x)
    assert deviation(ours["n"], plain["n"]) <= 1e-5
    assert float(net.params["b"][2]) == 1
    assert deviation(net.params["b"][1], twin.params["b"][1]) <= 1e-5


@torch.no_grad()
def test_layers_that_nobody_reads_still_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.prototxt").write_text(
        NETS["no padding"]
        + """
        layer { name: "l" type: "Input" top: "l" input_param { shape { dim: 1 dim: 1 dim: 1 dim: 1 } } }
        layer { name: "o" type: "HDF5Output" bottom: "i" bottom: "l" hdf5_output_param { file_name: "o.h5" } }
        """
    )
    net = fcnproto.load(tmp_path / "net.prototxt", allow_writes=True)
    fcnproto.optimize(net)(x=torch.randn(1, 3, 30, 30), l=torch.zeros(1, 1, 1, 1))
    assert (tmp_path / "o.h5").exists()


@torch.no_grad()
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(net: fcnproto.Net) -> None:
    expected = net(data=image())["score"]
    fast = fcnproto.optimize(net.to("cuda"))
    assert deviation(fast(data=image().cuda())["score"], expected) <= 1e-5
