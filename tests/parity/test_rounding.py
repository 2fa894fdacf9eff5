"""Departures that are the reference's own float32 rounding are told from those that are not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

import fcnproto
from fcnproto.cli._main import main
from fcnproto.net import Net
from fcnproto.parity import Recording, compare
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

LOSS = """
layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 1 dim: 5 dim: {side} dim: {side} }} }} }}
layer {{ name: "t" type: "Input" top: "t" input_param {{ shape {{ dim: 1 dim: {labels} dim: {side} dim: {side} }} }} }}
layer {{ name: "l" type: "{type}" bottom: "x" bottom: "t" top: "l" loss_param {{ {settings} }} }}
"""
SIDE = 400


def one_by_one(terms: npt.NDArray[np.float64]) -> np.float32:
    """Caffe's sum: float32, one term after the other."""
    return np.add.accumulate(terms.astype(np.float32).reshape(-1), dtype=np.float32)[-1]


def loss_net(kind: str, settings: str = "", labels: int = 1) -> Net:
    text = LOSS.format(type=kind, settings=settings, labels=labels, side=SIDE)
    return fcnproto.load(parse(text, caffe_pb2.NetParameter))


def softmax_case(confidence: float) -> tuple[dict[str, npt.NDArray[np.float32]], np.float32, int]:
    """Scores and labels, Caffe's sum for them, and how many labels count."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 5, (1, 1, SIDE, SIDE))
    scores = draw.standard_normal((1, 5, SIDE, SIDE)).astype(np.float32) * 1e-6
    np.put_along_axis(scores, labels, np.float32(confidence), 1)
    labels[:, :, :10] = 255
    wide = scores.astype(np.float64)
    chosen = np.take_along_axis(wide, np.where(labels == 255, 0, labels), 1) - np.log(
        np.exp(wide).sum(1, keepdims=True)
    )
    terms = -np.log(np.exp(chosen).astype(np.float32).astype(np.float64))[labels != 255]
    return {"x": scores, "t": labels.astype(np.float32)}, one_by_one(terms), int((labels != 255).sum())


@pytest.mark.parametrize(("settings", "divides"), [("", True), ("normalization: NONE", False)])
def test_the_sum_of_softmax_losses(settings: str, divides: bool, tmp_path: Path) -> None:
    inputs, total, count = softmax_case(5.0)
    value = np.float32(total / (count if divides else 1))
    net = loss_net("SoftmaxWithLoss", f"ignore_label: 255 {settings}")
    report = compare(net, Recording("Caffe", inputs=inputs, blobs={"l": np.asarray(value)}))
    (entry,) = report.entries
    assert entry.deviation > 2e-5 and entry.is_rounding and report.agrees and report.worst == 0
    assert entry.judgement is not None
    assert entry.judgement.ours < 1e-6 and entry.judgement.reference == pytest.approx(entry.deviation, rel=0.02)
    assert json.loads(json.dumps(report.to_dict()))["entries"][0]["judgement"]["is_rounding"]


@pytest.mark.parametrize("factor", [1 + 5e-4, 1 - 5e-4, 1 + 1e-4, 1.01, 0.5, 255.0, np.nan])
def test_a_wrong_loss_stays_a_departure(factor: float) -> None:
    inputs, total, count = softmax_case(5.0)
    net = loss_net("SoftmaxWithLoss", "ignore_label: 255")
    exact = float(net(**{name: torch.from_numpy(value) for name, value in inputs.items()})["l"].double())
    for right in (exact, float(total) / count):
        wrong = np.asarray(np.float32(right * factor))
        report = compare(net, Recording("Caffe", inputs=inputs, blobs={"l": wrong}))
        assert not report.agrees and report.departure is not None and not report.entries[0].is_rounding


def test_our_own_fault_is_no_rounding_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, total, count = softmax_case(5.0)
    net = loss_net("SoftmaxWithLoss", "ignore_label: 255")
    forward = net.layers[-1].forward
    monkeypatch.setattr(net.layers[-1], "forward", lambda *bottoms: forward(*bottoms) * 1.001)
    recording = Recording("Caffe", inputs=inputs, blobs={"l": np.asarray(total / count, np.float32)})
    assert not compare(net, recording).agrees


def test_the_sum_of_sigmoid_losses() -> None:
    draw = np.random.default_rng(0)
    scores = np.where(draw.random((1, 5, SIDE, SIDE)) < 0.5, -1, 1).astype(np.float32)
    targets = (draw.random(scores.shape) < 0.5).astype(np.float32)
    wide = scores.astype(np.float64)
    total = one_by_one(np.log1p(np.exp(-np.abs(wide))) + np.maximum(wide, 0) - wide * targets)
    net = loss_net("SigmoidCrossEntropyLoss", labels=5)
    recording = Recording("Caffe", inputs={"x": scores, "t": targets}, blobs={"l": np.asarray(total)})
    (entry,) = compare(net, recording).entries
    assert entry.deviation > 1e-4 and entry.is_rounding
    recording.blobs["l"] = np.asarray(total * np.float32(1.0002))
    assert not compare(net, recording).agrees


def test_products_that_cancel() -> None:
    text = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 4096 } } }
    layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 8 bias_term: false } }
    """
    net = fcnproto.load(parse(text, caffe_pb2.NetParameter))
    draw = np.random.default_rng(0)
    half = draw.standard_normal((8, 2048), dtype=np.float32)
    with torch.no_grad():
        net.params["ip"][0].copy_(torch.from_numpy(np.hstack([half, -half * np.float32(1 + 1e-4)])))
    value = draw.standard_normal((2, 2048), dtype=np.float32)
    value = np.hstack([value, value])
    weight = net.params["ip"][0].detach().numpy()
    products = (value[:, None] * weight[None]).astype(np.float32)
    made = np.add.accumulate(products, axis=2, dtype=np.float32)[:, :, -1]
    (entry,) = compare(net, Recording("another's sums", inputs={"x": value}, blobs={"y": made})).entries
    assert entry.deviation > 1e-5 and entry.is_rounding
    made[1, 3] += 0.01
    assert not compare(net, Recording("another's sums", inputs={"x": value}, blobs={"y": made})).agrees


def test_what_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs, total, count = softmax_case(5.0)
    model = tmp_path / "loss.prototxt"
    model.write_text(LOSS.format(type="SoftmaxWithLoss", settings="ignore_label: 255", labels=1, side=SIDE))
    arrays = {f"in.{name}": value for name, value in inputs.items()}
    np.savez(tmp_path / "golden.npz", **arrays, **{"out.l": np.float32(total / count)})
    page = tmp_path / "page.html"
    assert main(["parity", str(model), "--golden", str(tmp_path / "golden.npz"), "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert "'l': rounding alone: the reference's own " in out and ", ours " in out and "agrees with" in out
    assert "by rounding alone" in page.read_text()
    np.savez(tmp_path / "golden.npz", **arrays, **{"out.l": np.float32(1.001 * total / count)})
    assert main(["parity", str(model), "--golden", str(tmp_path / "golden.npz")]) == 1
    out = capsys.readouterr().out
    assert "the cause is in it (the reference's own 0.001" in out
