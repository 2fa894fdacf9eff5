"""Fillers against the values and distributions recorded from Caffe, and what they refuse."""

from __future__ import annotations

import math

import golden_cases
import numpy as np
import pytest
import torch
from google.protobuf import text_format
from scipy import stats

import fcnproto
from fcnproto.errors import GraphError
from fcnproto.layers.fillers import fans, fill
from fcnproto.schema import caffe_pb2


def filler(text: str) -> caffe_pb2.FillerParameter:
    return text_format.Merge(text, caffe_pb2.FillerParameter())


def filled(text: str, *shape: int, seed: int = 0) -> torch.Tensor:
    tensor = torch.full(shape, math.nan)
    torch.manual_seed(seed)
    fill(tensor, filler(text))
    return tensor


@pytest.mark.parametrize("name", golden_cases.names("fillers"))
def test_recorded_case(name: str) -> None:
    """Exact values where the filler is not random; else the recorded distribution (Kolmogorov-Smirnov)."""
    case = golden_cases.load("fillers", name)
    facts = case.facts["facts"]
    torch.manual_seed(3)
    net = fcnproto.load(case.folder / "net.prototxt", phase=case.facts["phase"].lower())
    blob = net.params[facts["layer"]][facts["blob"]].detach()
    assert list(blob.shape) == facts["shape"]
    if facts["exact"]:
        golden_cases.assert_close(blob, case.arrays[f"param.{facts['layer']}.{facts['blob']}"], 1e-6, name)
        return
    assert fans(blob) == (facts["fan_in"], facts["fan_out"])
    expected, values = facts["expected"], blob.flatten().double().numpy()
    if "slice_sum" in expected:
        sums = blob.flatten(1).double().sum(1).numpy()
        np.testing.assert_allclose(sums, expected["slice_sum"], rtol=1e-5)
        assert values.min() >= 0 and values.std() == pytest.approx(facts["observed"]["std"], rel=0.1)
        return
    if "nonzero_probability" in expected:
        probability = expected["nonzero_probability"]
        spread = math.sqrt(probability * (1 - probability) / values.size)
        assert np.mean(values != 0) == pytest.approx(probability, abs=5 * spread)
        values = values[values != 0]
    if expected["distribution"] == "uniform":
        distribution = stats.uniform(expected["low"], expected["high"] - expected["low"])
    else:
        distribution = stats.norm(expected["mean"], expected["std"])
    assert stats.kstest(values, distribution.cdf).pvalue > 1e-3


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "positive_unitball", "xavier", "msra"])
def test_repeatable_from_the_seed(kind: str) -> None:
    text = f'type: "{kind}"'
    assert torch.equal(filled(text, 4, 5, seed=1), filled(text, 4, 5, seed=1))
    assert not torch.equal(filled(text, 4, 5, seed=1), filled(text, 4, 5, seed=2))


def test_generator_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    tensors = [torch.empty(3, 3), torch.empty(3, 3)]
    for tensor in tensors:
        fill(tensor, filler('type: "gaussian" sparse: 2'), torch.Generator().manual_seed(5))
    assert torch.equal(*tensors)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 16, 63])
def test_bilinear_is_the_upsampling_filter(size: int) -> None:
    """The same as the tent of the FCN's filters, in every channel pair."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    tent = 1 - np.abs(np.arange(size) - centre) / factor
    result = filled('type: "bilinear"', 2, 3, size, size)
    np.testing.assert_allclose(result, np.broadcast_to(np.outer(tent, tent), (2, 3, size, size)), atol=1e-6)


def test_parameters_needing_a_gradient_can_be_filled() -> None:
    parameter = torch.nn.Parameter(torch.empty(2, 2))
    fill(parameter, filler("value: 3"))
    assert parameter.requires_grad and torch.equal(parameter.detach(), torch.full((2, 2), 3.0))


def test_scalar() -> None:
    assert filled("value: 2") == 2


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ('type: "xaver"', (2, 2), "did you mean 'xavier'"),
        ('type: "zzz"', (2, 2), "known are bilinear, constant"),
        ('type: "xavier" sparse: 3', (2, 2), "sparse"),
        ('type: "gaussian" sparse: 3', (2, 2), "must not exceed"),
        ('type: "gaussian" sparse: -2', (2, 2), "must be -1"),
        ('type: "gaussian" std: -1', (2, 2), "must not be negative"),
        ('type: "uniform" min: 2', (2, 2), "must not exceed max"),
        ('type: "uniform" max: inf', (2, 2), "too far apart"),
        ('type: "uniform" min: -3e38 max: 3e38', (2, 2), "too far apart"),
        ('type: "bilinear"', (2, 2, 3, 4), "square"),
        ('type: "bilinear"', (2, 3), "4-D"),
        ('type: "msra"', (), "at least one axis"),
        ('type: "positive_unitball"', (), "at least one axis"),
        ("value: 1", (0, 2), "empty"),
    ],
)
def test_refusals(text: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        filled(text, *shape)
