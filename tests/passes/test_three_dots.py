"""Three TF32 products in one kernel: chosen where it is right and faster; its numbers by Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import golden_cases
import pytest
import torch
import torch.nn.functional as F
from golden_cases import deviation
from torch import Tensor

import fcnproto
from fcnproto.passes import kernels, splitting

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


class StandIn:
    """Stands for the module `three_dots`."""

    def __init__(self, error: float = 0.0, fails: Exception | None = None) -> None:
        self.error, self.fails, self.calls = error, fails, 0

    def suits(self, x: Tensor, outputs: int, size: Sequence[int], groups: int) -> bool:
        assert groups == 1
        return x.shape[1] >= 16

    def arranged(self, weight: Tensor) -> Tensor:
        return weight.clone()

    def convolve(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        kernel: Any,
        size: Any,
        stride: Any,
        pad: Any,
        dilation: Any,
    ) -> Tensor:
        self.calls += 1
        if self.fails is not None:
            raise self.fails
        y = F.conv2d(x, weight, bias, tuple(stride), tuple(pad), tuple(dilation))
        assert y.shape[2:] == tuple(size) and weight.shape[2:] == tuple(kernel)
        return y * (1 + self.error)


@torch.no_grad()
@pytest.mark.parametrize(
    ("stand_in", "times", "taken"),
    [
        (StandIn(), (1.0, 2.0), True),
        (StandIn(), (2.0, 1.0), False),
        (StandIn(error=1e-3), (1.0, 2.0), False),
        (StandIn(fails=AttributeError("no such operator")), (1.0, 2.0), False),
    ],
    ids=["better", "slower", "wrong", "failing"],
)
def test_taken_where_it_is_better(
    stand_in: StandIn, times: tuple[float, float], taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_in_three_products", lambda x, dtype: True)
    monkeypatch.setattr(splitting, "kernel", lambda: stand_in)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    turns = [0]

    def milliseconds(call: Any, device: torch.device) -> float:
        turns[0] += 1
        return times[(turns[0] - 1) % 2]

    monkeypatch.setattr(splitting, "milliseconds", milliseconds)
    net = golden_cases.load("fcn", "voc_fcn8s_forward").net()
    fast = fcnproto.optimize(net, precision="tf32x3")
    x = torch.randn(1, 3, 40, 56, generator=torch.Generator().manual_seed(0)) * 50
    expected = net(data=x)["score"]
    for _ in range(2):
        assert deviation(fast(data=x)["score"], expected) <= 1e-5
    before, tried = stand_in.calls, turns[0]
    fast(data=x)
    assert (stand_in.calls > before) == taken and turns[0] == tried  # chosen once


def test_memory_that_runs_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    def exhaust() -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        splitting.is_better(exhaust, exhaust)


@pytest.mark.parametrize(
    ("shape", "outputs", "kernel", "stride", "pad", "dilation", "bias"),
    [
        ((1, 16, 9, 11), 20, (3, 3), (1, 1), (1, 1), (1, 1), True),
        ((2, 40, 8, 7), 70, (3, 2), (2, 2), (1, 0), (1, 2), False),
        ((1, 20, 12, 12), 8, (1, 1), (1, 1), (0, 0), (1, 1), True),
    ],
)
def test_numbers(
    shape: tuple[int, ...], outputs: int, kernel: Any, stride: Any, pad: Any, dilation: Any, bias: bool
) -> None:
    pytest.importorskip("triton.language")
    three_dots = splitting.kernel()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last).to(device)
    weight = torch.randn(outputs, shape[1], *kernel, generator=generator).to(device)
    added = torch.randn(outputs, generator=generator).to(device) if bias else None
    double = None if added is None else added.double()
    exact = F.conv2d(x.double(), weight.double(), double, stride, pad, dilation)
    size = exact.shape[2:]
    assert three_dots.suits(x, outputs, size, 1) and not three_dots.suits(x, outputs, size, 2)
    found = three_dots.convolve(x, three_dots.arranged(weight), added, kernel, size, stride, pad, dilation)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert deviation(found.cpu(), exact.float().cpu()) <= 1e-6
