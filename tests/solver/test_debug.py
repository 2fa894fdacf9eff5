"""Caffe's debug_info: the lines, their figures, and that tracing changes no result."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import solver_toy as toy
import torch
from solver_toy import equal, messages, values

import fcnproto
from fcnproto.solver import Options, Solver

IN_PLACE = """
  layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
  layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" }
  layer { name: "side" type: "InnerProduct" bottom: "conv" top: "side" param { name: "w" } param { lr_mult: 0 }
    inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
  layer { name: "mean" type: "Reduction" bottom: "side" top: "mean" loss_weight: 0.5 }
"""


def test_debug_info_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = Solver(toy.write(tmp_path, extra=IN_PLACE, iter_size=2, test_iter=[1], test_interval=2))
    plain.step(3)
    fields = {"debug_info": True, "display": 1, "iter_size": 2, "test_iter": [1], "test_interval": 2}
    solver = Solver(toy.write(tmp_path, extra=IN_PLACE, **fields))
    with caplog.at_level("INFO", logger="fcnproto.solver"):
        solver.step(3)
    assert equal(values(plain), values(solver))
    assert any("Layer accuracy, top blob accuracy data" in line for line in messages(caplog))


def test_debug_info_follows_caffes_layers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Layers in place, Split layers with their blobs' names, each reader's own gradient, parameters by their names."""
    solver = Solver(toy.write(tmp_path, extra=IN_PLACE, debug_info=True, display=2))
    before = values(solver)
    data, label = torch.ones(2, 2, 6, 6), torch.tensor([0.0, 2.0])
    with caplog.at_level("INFO", logger="fcnproto.solver"):
        solver.step(1, data=data, label=label)
    lines = [m.strip() for m in messages(caplog) if m.startswith("    [")]
    found = {line.rpartition(": ")[0]: line.rpartition(": ")[2] for line in lines[:-1]}
    split = "Layer conv_drop_0_split, "
    assert list(found) == [
        "[Forward] Layer conv, top blob conv data",
        "[Forward] Layer conv, param blob 0 data",
        "[Forward] Layer conv, param blob 1 data",
        "[Forward] Layer relu, top blob conv data",
        "[Forward] Layer drop, top blob conv data",
        f"[Forward] {split}top blob conv_drop_0_split_0 data",
        f"[Forward] {split}top blob conv_drop_0_split_1 data",
        "[Forward] Layer side, top blob side data",
        "[Forward] Layer side, param blob w data",
        "[Forward] Layer side, param blob 1 data",
        "[Forward] Layer mean, top blob mean data",
        "[Forward] Layer ip, top blob ip data",
        "[Forward] Layer ip, param blob 0 data",
        "[Forward] Layer ip, param blob 1 data",
        "[Forward] Layer loss, top blob loss data",
        "[Backward] Layer loss, bottom blob ip diff",
        "[Backward] Layer ip, bottom blob conv_drop_0_split_1 diff",
        "[Backward] Layer ip, param blob 0 diff",
        "[Backward] Layer ip, param blob 1 diff",
        "[Backward] Layer mean, bottom blob side diff",
        "[Backward] Layer side, bottom blob conv_drop_0_split_0 diff",
        "[Backward] Layer side, param blob w diff",
        f"[Backward] {split}bottom blob conv diff",
        "[Backward] Layer drop, bottom blob conv diff",
        "[Backward] Layer relu, bottom blob conv diff",
        "[Backward] Layer conv, param blob 0 diff",
        "[Backward] Layer conv, param blob 1 diff",
    ]
    figures = {name: float(value) for name, value in found.items()}
    assert figures["[Backward] Layer mean, bottom blob side diff"] == pytest.approx(0.5)
    weight = before[2].abs().mean(dim=0)  # side's own share: 0.5 through each of its two outputs
    assert figures["[Forward] Layer side, param blob w data"] == pytest.approx(float(weight.mean()), rel=1e-5)
    share = 0.5 * float(before[2].sum(dim=0).abs().mean())
    assert figures["[Backward] Layer side, bottom blob conv_drop_0_split_0 diff"] == pytest.approx(share, rel=1e-5)
    gradient = solver.net.params["conv"][0].grad
    assert figures["[Backward] Layer conv, param blob 0 diff"] == pytest.approx(float(gradient.abs().mean()), rel=1e-5)
    gradients = [entry.tensor.grad for entry in solver.net.learnable if entry.tensor.grad is not None]
    sums = [sum(float(t.abs().sum()) for t in tensors) for tensors in (before, gradients)]
    roots = [math.sqrt(sum(float((t * t).sum()) for t in tensors)) for tensors in (before, gradients)]
    norms = re.fullmatch(
        r"\[Backward\] All net params \(data, diff\): L1 norm = \((.+), (.+)\); L2 norm = \((.+), (.+)\)", lines[-1]
    )
    assert norms is not None
    assert [float(value) for value in norms.groups()] == pytest.approx([*sums, *roots], rel=1e-5)


def test_debug_info_of_a_rewritten_net_is_warned_of(tmp_path: Path) -> None:
    path = toy.write(tmp_path, debug_info=True, display=1)
    with pytest.warns(fcnproto.FcnprotoWarning, match="debug_info shows test nets only"):
        Solver(path, options=Options(optimize=True))
