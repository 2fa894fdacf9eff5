"""The slim FCN family against the original Caffe: every recorded blob, loss and parameter gradient, plain and optimized."""

from __future__ import annotations

from typing import Any

import golden_cases
import numpy as np
import pytest
import torch
from golden_cases import Case, assert_close
from golden_runs import DEVICES

import fcnproto

BLOB_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4

# Gradients beyond the tolerance, each with its cause.
NEAR_TIES: dict[tuple[str, str], float] = {}


def _sums(values: torch.Tensor) -> tuple[float, float]:
    exact = values.detach().double()
    return float(exact.sum()), float((exact * exact).sum())


def _forward(case: Case, optimized: bool, device: str) -> tuple[Any, dict[str, torch.Tensor]]:
    net = case.net().to(device)
    net = fcnproto.optimize(net) if optimized else net
    wanted = [*case.keys("out"), *case.facts["skipped_blobs"]]
    inputs = {key: torch.from_numpy(value).to(device) for key, value in case.keys("in").items()}
    return net, net(inputs, blobs=wanted)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optimized", [False, True], ids=["plain", "optimized"])
@pytest.mark.parametrize("name", golden_cases.names("fcn"))
def test_fcn_case(name: str, optimized: bool, device: str) -> None:
    case = golden_cases.load("fcn", name)
    net, out = _forward(case, optimized, device)
    for blob, value in case.keys("out").items():
        assert_close(out[blob], value, BLOB_TOLERANCE, f"blob {blob}")
    for blob, (total, squares) in case.facts["facts"]["skipped_blob_sums"].items():
        ours = _sums(out[blob])
        scale = np.sqrt(squares * out[blob].numel())  # bounds the sum of absolute values
        assert abs(ours[0] - total) <= BLOB_TOLERANCE * scale, f"sum of {blob}"
        assert abs(ours[1] - squares) <= BLOB_TOLERANCE * squares, f"sum of squares of {blob}"
    assert net.outputs == case.facts["outputs"]
    assert_close(net.loss(out), np.float32(case.facts["loss"]), 2e-5, "loss")
    if not name.endswith("_train"):
        return
    net.loss(out).backward()
    untouched = set(case.facts["zero_gparams"])
    for key, value in case.keys("gparam").items():
        layer, index = key.rsplit(".", 1)
        gradient = net.params[layer][int(index)].grad
        if key in untouched:
            assert gradient is None or not gradient.any()
            continue
        assert gradient is not None, f"no gradient for {key}"
        assert_close(gradient, value, NEAR_TIES.get((name, key), GRADIENT_TOLERANCE), f"gradient of {key}")
    for key, sampled in case.facts["sampled_gparams"].items():
        layer, index = key.rsplit(".", 1)
        gradient = net.params[layer][int(index)].grad.flatten()
        assert_close(
            gradient[:: sampled["stride"]],
            case.arrays[f"gparam_sample.{key}"],
            GRADIENT_TOLERANCE,
            f"gradient of {key}",
        )
        squares = _sums(gradient)[1]
        assert abs(squares - sampled["sumsq"]) <= 2 * GRADIENT_TOLERANCE * sampled["sumsq"], f"sum of squares of {key}"
