"""Running a recorded case of layers: forward as recorded, and backward from the loss and the recorded seeds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_cases import Case

import fcnproto

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
    ),
]
"""Where the recorded cases run."""


def forward(
    case: Case, optimized: bool = False, device: str = "cpu", **options: Any
) -> tuple[Any, dict[str, torch.Tensor], Any]:
    """The net, its inputs (with gradients) and the outputs, after the recorded earlier forwards."""
    net = case.net(**options).to(device)
    net = fcnproto.optimize(net) if optimized else net
    if memory := case.keys("memory"):
        net.set_input_arrays(memory["data"], memory["label"])
    for step in range(case.facts.get("pre_steps", 0)):
        net(**{key: torch.from_numpy(value).to(device) for key, value in case.keys(f"pre.{step}").items()})
    inputs = {key: torch.from_numpy(value).to(device).requires_grad_() for key, value in case.keys("in").items()}
    produced = {blob.name for node in net.graph.nodes for blob in node.tops}
    wanted = [name for name in case.keys("out") if name in produced]
    return net, inputs, net(inputs, blobs=wanted)


def backward(case: Case, net: Any, out: Any) -> None:
    """Gradients of the loss and of the recorded seeds of outputs."""
    total = net.loss(out)
    for name, value in case.keys("gout").items():
        if out[name].requires_grad:
            total = total + (out[name] * torch.from_numpy(value).to(out[name].device)).sum()
    if total.requires_grad:
        total.backward()
