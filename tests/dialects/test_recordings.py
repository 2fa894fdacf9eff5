"""Every recorded case of Caffe's forks: blobs and gradients of our layers against the fork's own."""

from __future__ import annotations

from pathlib import Path

import golden_cases
import numpy as np
import pytest
import torch
from golden_cases import Case, assert_close
from golden_runs import backward, forward

TOLERANCE = 1e-5
# Through whole nets: blobs and gradients.
NET_TOLERANCE, NET_GRADIENT_TOLERANCE = 1e-4, 1e-3
# Cases by a looser tolerance, with the reason.
LOOSER: dict[str, float] = {}

# Nets some of whose gradients are 0 but for rounding, in the fork too, with what is taken for that. BN takes off the
# biases before it; and of a batch of two positions it makes -1 and 1, whatever they are, so that nothing passes back.
VANISHING = {"net_deconvnet": 1e-4, "net_segnet_train": 1e-7}

# Recordings of a fork whose blobs have four axes, losses too.
FOUR_AXES = ("net_deeplab_largefov",)

# Families whose layers are still to be written.
PENDING = ()
NAMES = [name for name in golden_cases.names("dialects") if not name.startswith(PENDING)]


def load(name: str) -> tuple[Case, dict[str, str]]:
    """A case and the options that its text can't say."""
    case = golden_cases.load("dialects", name)
    return case, {"dialect": case.facts["dialect"]} if case.facts["needs_dialect"] else {}


def untied(rows: torch.Tensor | np.ndarray, like: np.ndarray) -> torch.Tensor:
    """Detections (1, 1, K, 7) with runs of rows sorted by their boxes where `like`, the recorded ones, have one image,
    one label and scores that are the same to rounding: their order is that of the last bit."""
    result = torch.as_tensor(rows).detach().clone()[0, 0]
    recorded = like[0, 0].astype(np.float64)
    if result.shape != recorded.shape:
        return result[None, None]
    splits = np.flatnonzero((np.diff(recorded[:, :2], axis=0) != 0).any(1) | (np.diff(recorded[:, 2]) < -1e-6)) + 1
    for run in np.split(np.arange(len(recorded)), splits):
        result[run] = result[run][result[run, 3].argsort()]
    return result[None, None]


def is_net(name: str) -> bool:
    return name.startswith("net_")


def check_gradient(name: str, gradient: torch.Tensor, value: np.ndarray, what: str) -> None:
    nothing = VANISHING.get(name, 0)
    if np.abs(value).max(initial=0) < nothing:
        assert float(gradient.abs().max()) < nothing, what
    else:
        assert_close(gradient, value, LOOSER.get(name, NET_GRADIENT_TOLERANCE if is_net(name) else TOLERANCE), what)


@pytest.mark.parametrize("optimized", [False, True], ids=["plain", "optimized"])
@pytest.mark.parametrize("name", NAMES)
def test_case(name: str, optimized: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    case, options = load(name)
    tolerance = LOOSER.get(name, NET_TOLERANCE if is_net(name) else TOLERANCE)
    net, inputs, out = forward(case, optimized, **options)
    for blob, value in case.keys("out").items():
        if name in FOUR_AXES and out[blob].numel() == 1:
            value = value.reshape(out[blob].shape)
        if blob == "detection_out":
            assert_close(untied(out[blob], value), untied(value, value).numpy(), tolerance, f"blob {blob}")
        else:
            assert_close(out[blob], value, tolerance, f"blob {blob}")
    assert net.outputs == case.facts["outputs"]
    assert sorted(net.inputs) == sorted(case.facts["inputs"])
    assert_close(net.loss(out), np.float32(case.facts["loss"]), 2e-5, "loss")
    for key, value in case.keys("param_after").items():
        layer, index = key.rsplit(".", 1)
        assert_close(net.params[layer][int(index)], value, tolerance, f"parameter {key} after forward")
    if not case.facts["backward"]:
        return
    backward(case, net, out)
    for blob, value in case.keys("gin").items():
        gradient = inputs[blob].grad
        check_gradient(name, torch.zeros(value.shape) if gradient is None else gradient, value, f"gradient of {blob}")
    for key, value in case.keys("gparam").items():
        layer, index = key.rsplit(".", 1)
        parameter = net.params[layer][int(index)]
        gradient = torch.zeros(parameter.shape) if parameter.grad is None else parameter.grad
        check_gradient(name, gradient.reshape(value.shape), value, f"gradient of parameter {key}")
