"""Every recorded layer case: blobs and gradients of our layers against the original Caffe's, plain and optimized."""

from __future__ import annotations

from pathlib import Path

import golden_cases
import numpy as np
import pytest
import torch
from golden_cases import assert_close
from golden_runs import DEVICES, backward, forward

TOLERANCE = 1e-5

# Pure cancellation: one value per channel minus its own mean, divided by sqrt(eps); the exact result is 0.
LOOSER = {"batchnorm_single_pixel_batch": 1e-3}
# Gradients whose terms cancel exactly, so that Caffe recorded nothing but rounding: compared on the scale of the
# gradient of the same layer's blob 0 (InfogainLoss and ContrastiveLoss don't change when all scores move together).
CANCELLING = {("net_siamese", "ca.1"), ("net_siamese", "cb.1")} | {
    (f"infogain_{kind}", "xs.1") for kind in ("axis", "bottom", "file", "full", "ignore", "none")
}
# In-place layers whose recorded gradient is wrong in Caffe itself (it reads the output for the input).
WRONG_GRADIENT_IN_CAFFE = {"power_inplace", "clip_inplace"}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optimized", [False, True], ids=["plain", "optimized"])
@pytest.mark.parametrize("name", [name for name in golden_cases.names("layers") if name != "dropout_train_contract"])
def test_layer_case(name: str, optimized: bool, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # HDF5Output writes there
    case = golden_cases.load("layers", name)
    tolerance = LOOSER.get(name, TOLERANCE)
    net, inputs, out = forward(case, optimized, device)
    for blob, value in case.keys("out").items():
        assert_close(out[blob], value, tolerance, f"blob {blob}")
    assert net.outputs == case.facts["outputs"]
    assert sorted(net.inputs) == sorted(case.facts["inputs"])
    assert_close(net.loss(out), np.float32(case.facts["loss"]), 2e-5, "loss")
    for key, value in case.keys("param_after").items():
        layer, index = key.rsplit(".", 1)
        assert_close(net.params[layer][int(index)], value, tolerance, f"parameter {key} after forward")
    if not case.facts.get("backward") or name in WRONG_GRADIENT_IN_CAFFE:
        return
    backward(case, net, out)
    for blob, value in case.keys("gin").items():
        gradient = inputs[blob].grad
        assert_close(
            torch.zeros(value.shape) if gradient is None else gradient, value, tolerance, f"gradient of {blob}"
        )
    for key, value in case.keys("gparam").items():
        layer, index = key.rsplit(".", 1)
        parameter = net.params[layer][int(index)]
        gradient = torch.zeros(parameter.shape) if parameter.grad is None else parameter.grad
        if (name, key) in CANCELLING:
            scale = np.abs(case.arrays[f"gparam.{layer}.0"]).max()
            assert float((gradient.cpu() - torch.from_numpy(value)).abs().max()) <= tolerance * scale, key
            continue
        assert_close(gradient.reshape(value.shape), value, tolerance, f"gradient of parameter {key}")


def test_dropout_follows_the_recorded_statistics() -> None:
    case = golden_cases.load("layers", "dropout_train_contract")
    facts = case.facts["facts"]
    net = case.net()
    torch.manual_seed(0)
    (top,) = net.outputs
    out = net(x=torch.ones(case.facts["blob_shapes"]["x"]))[top]
    assert out.numel() == facts["elements"]
    values = out.unique().tolist()
    assert values == pytest.approx(facts["distinct_outputs"])
    kept = float((out != 0).float().mean())
    spread = (facts["keep_probability"] * (1 - facts["keep_probability"]) / out.numel()) ** 0.5
    assert abs(kept - facts["keep_probability"]) < 5 * spread
