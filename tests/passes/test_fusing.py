"""Convolution, bias and ReLU in one launch, with a stand-in for cuDNN's operator: where it is taken, and its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import golden_cases
import pytest
import torch
import torch.nn.functional as F
from golden_cases import deviation
from torch import Tensor

import fcnproto
from fcnproto.passes import fusing, onednn
from fcnproto.passes.fusing import is_offered
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse


class Operator:
    """Stands for `torch.cudnn_convolution_relu`; notes what it is given."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls: list[tuple[torch.dtype, bool]] = []

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Tensor:
        assert x.dtype == weight.dtype and (bias is None or bias.dtype == x.dtype)
        assert not torch.is_grad_enabled()
        self.calls.append((x.dtype, torch.backends.cudnn.allow_tf32))
        if self.error is not None:
            raise self.error
        return F.conv2d(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups).relu()


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> Operator:
    found = Operator()
    monkeypatch.setattr(torch, "cudnn_convolution_relu", found)
    monkeypatch.setattr(fusing, "is_offered", lambda device, dtype: not torch.is_grad_enabled())
    monkeypatch.setattr(onednn, "works", lambda: False)  # as on a GPU
    return found


def fcn() -> fcnproto.Net:
    return golden_cases.load("fcn", "voc_fcn8s_forward").net()


def image(height: int = 40, width: int = 56) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0)) * 50


def test_numbers_are_those_of_the_plain_net(operator: Operator) -> None:
    net = fcn()
    fast = fcnproto.optimize(net)
    with torch.no_grad():
        for size in ((40, 56), (33, 70)):
            expected = net(data=image(*size), blobs=["pool3", "fc7"])
            found = fast(data=image(*size), blobs=["pool3", "fc7"])
            assert all(deviation(found[name], expected[name]) <= 1e-5 for name in expected)
    assert len(operator.calls) >= 2 * 14  # all but the three that score and what a folded chain ends with
    count = len(operator.calls)
    fast(data=image())["score"].sum().backward()  # type: ignore[no-untyped-call]
    assert len(operator.calls) == count


@torch.no_grad()
def test_in_bfloat16(operator: Operator) -> None:
    net = fcn()
    fast = fcnproto.optimize(net, precision="bf16")
    fast(data=image())  # what lies around the image is computed once, in float32
    operator.calls.clear()
    assert deviation(fast(data=image())["score"], net(data=image())["score"]) <= 3e-2
    assert {dtype for dtype, _ in operator.calls} == {torch.bfloat16}


@torch.no_grad()
def test_where_cudnn_has_no_such_kernel(operator: Operator) -> None:
    net = fcn()
    operator.error = RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED")
    fast = fcnproto.optimize(net)
    for _ in range(2):
        assert deviation(fast(data=image())["score"], net(data=image())["score"]) <= 1e-5
    layers = {layer.name for layer in net.layers if layer.type == "Convolution"}
    assert len(operator.calls) <= len(layers)  # each once
    operator.error = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        fcnproto.optimize(fcn())(data=image())


@torch.no_grad()
def test_settings_of_the_layer_are_handed_on(operator: Operator) -> None:
    text = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4 dim: 9 dim: 11 } } }
layer { name: "c" type: "Convolution" bottom: "x" top: "y" convolution_param { num_output: 6 kernel_h: 3 kernel_w: 2
  stride: 2 pad_h: 1 dilation: 2 group: 2 bias_term: false weight_filler { type: "msra" } } }
layer { name: "r" type: "ReLU" bottom: "y" top: "y" }"""
    net = fcnproto.load(parse(text, caffe_pb2.NetParameter))
    x = torch.randn(2, 4, 9, 11)
    assert deviation(fcnproto.optimize(net)(x=x)["y"], net(x=x)["y"]) <= 1e-6
    assert len(operator.calls) == 1


def test_offered_only_where_cudnn_is(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: False)
    with torch.no_grad():
        assert not is_offered(gpu, torch.float32)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    assert not is_offered(gpu, torch.float32)  # gradients
    with torch.no_grad():
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            assert is_offered(gpu, dtype) and not is_offered(torch.device("cpu"), dtype)
        assert not is_offered(gpu, torch.float64)
        for name, value in (("enabled", False), ("deterministic", True)):
            with torch.backends.cudnn.flags(**{name: value}):
                assert is_offered(gpu, torch.float32) is False


@torch.no_grad()
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("tf32", True), ("tf32x3", None)])
def test_strict_on_a_gpu(precision: str, allowed: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator follows torch's switch, so that must be set; three products have a switch of their own."""
    operator: Any = Operator()
    monkeypatch.setattr(torch, "cudnn_convolution_relu", operator)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    net = fcn().to("cuda")
    fast = fcnproto.optimize(net, precision=precision)
    limit = 1e-2 if precision == "tf32" else 1e-5
    assert deviation(fast(data=image().cuda())["score"].cpu(), net(data=image().cuda())["score"].cpu()) <= limit
    assert {tf32 for _, tf32 in operator.calls} == (set() if allowed is None else {allowed})
