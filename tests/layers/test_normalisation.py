"""LRN, BatchNorm, MVN and Softmax against the formulas written out in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_maker import make_layer, seeded

from fcnproto.errors import LayerError

Array = npt.NDArray[np.float64]


def naive_lrn_across(x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        low, high = max(0, c - (size - 1) // 2), min(x.shape[1], c + (size - 1) // 2 + 1)
        y[:, c] = x[:, c] * (k + alpha / size * (x[:, low:high] ** 2).sum(1)) ** -beta
    return y


def naive_lrn_within(x: Array, size: int, alpha: float, beta: float) -> Array:
    reach = (size - 1) // 2
    padded = np.pad(x**2, [(0, 0), (0, 0), (reach, reach), (reach, reach)])
    mean = np.zeros_like(x)
    for i in range(size):
        for j in range(size):
            mean += padded[:, :, i : i + x.shape[2], j : j + x.shape[3]] / size**2
    return x * (1 + alpha * mean) ** -beta


@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 7), st.integers(1, 5), st.integers(1, 5)),
    size=st.sampled_from([1, 3, 5, 9]),
    alpha=st.floats(1e-4, 3),
    beta=st.sampled_from([0.5, 0.75, 1.25]),
    k=st.floats(0.5, 3),
    within=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_lrn(shape: tuple[int, ...], size: int, alpha: float, beta: float, k: float, within: bool) -> None:
    region = "WITHIN_CHANNEL" if within else "ACROSS_CHANNELS"
    layer = make_layer(
        f'type: "LRN" lrn_param {{ local_size: {size} alpha: {alpha} beta: {beta} k: {k} norm_region: {region} }}',
        shape,
    )
    config = layer.config  # the settings as float32 holds them
    x = seeded(*shape)
    if within:
        expected = naive_lrn_within(x.numpy(), size, config.alpha, config.beta)
    else:
        expected = naive_lrn_across(x.numpy(), size, config.alpha, config.beta, config.k)
    np.testing.assert_allclose(layer(x).numpy(), expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(layer(x.float()).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("region", ["WITHIN_CHANNEL", "ACROSS_CHANNELS"])
@pytest.mark.parametrize(("size", "beta"), [(3, 0.75), (5, 0.6), (9, 0.75)])
def test_lrn_gradient_is_the_derivative(region: str, size: int, beta: float) -> None:
    text = f'type: "LRN" lrn_param {{ local_size: {size} alpha: 1.3 beta: {beta} norm_region: {region} }}'
    assert torch.autograd.gradcheck(make_layer(text, (2, 4, 3, 3)), seeded(2, 4, 3, 3).requires_grad_())


def test_lrn_of_half_precision_does_not_overflow() -> None:
    x = torch.full((1, 5, 2, 2), 400, dtype=torch.float16)
    layer = make_layer('type: "LRN" lrn_param { alpha: 0.0001 }', x.shape)
    assert layer(x).dtype == torch.float16
    torch.testing.assert_close(layer(x), layer(x.double()).half())


def test_lrn_works_on_any_memory_format() -> None:
    x = seeded(2, 6, 4, 5)
    layer = make_layer('type: "LRN"', x.shape)
    torch.testing.assert_close(layer(x.contiguous(memory_format=torch.channels_last)), layer(x))


def batch_norm(settings: str = "", shape: tuple[int, ...] = (3, 2, 4, 5), train: bool = True) -> torch.nn.Module:
    return make_layer(f'type: "BatchNorm" batch_norm_param {{ {settings} }}', shape, train=train, dtype=torch.float64)


def test_batch_norm_accumulates_sums() -> None:
    layer = batch_norm("moving_average_fraction: 0.5")
    means, variances, factor = np.zeros(2), np.zeros(2), 0.0
    for step in range(3):
        x = seeded(3, 2, 4, 5, seed=step)
        with torch.set_grad_enabled(step == 1):  # also without a backward
            y = layer(x)
        mean, variance = x.numpy().mean((0, 2, 3)), x.numpy().var((0, 2, 3))
        means = 0.5 * means + mean
        variances = 0.5 * variances + variance * 60 / 59
        factor = 0.5 * factor + 1
        expected = (x.numpy() - mean[:, None, None]) / np.sqrt(variance + np.float32(1e-5))[:, None, None]
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(layer.mean, means, rtol=1e-12)
    np.testing.assert_allclose(layer.variance, variances, rtol=1e-12)
    np.testing.assert_allclose(layer.scale_factor, [factor], rtol=1e-12)
    layer.eval()
    expected = x.numpy() - (means / factor)[:, None, None]
    expected /= np.sqrt(variances / factor + np.float32(1e-5))[:, None, None]
    np.testing.assert_allclose(layer(x).numpy(), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(layer.scale_factor, [factor], rtol=1e-12)


def test_batch_norm_without_statistics_divides_by_the_root_of_eps() -> None:
    layer = batch_norm(train=False)
    x = seeded(3, 2, 4, 5)
    np.testing.assert_allclose(layer(x).numpy(), x.numpy() / np.sqrt(np.float32(1e-5), dtype=np.float64), rtol=1e-9)


def test_batch_norm_of_one_value_per_channel() -> None:
    layer = batch_norm(shape=(1, 2))
    x = torch.tensor([[5.0, -700.0]], dtype=torch.float64, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.tolist() == [[0, 0]]
    assert x.grad is not None and x.grad.tolist() == [[0, 0]]
    assert layer.mean.tolist() == [5, -700] and layer.variance.tolist() == [0, 0]


@pytest.mark.parametrize(("settings", "train"), [("", True), ("use_global_stats: false", False), ("", False)])
@pytest.mark.parametrize("shape", [(4, 2), (3, 2, 4), (2, 3, 2, 2, 2)])
def test_batch_norm_gradient_is_the_derivative(settings: str, train: bool, shape: tuple[int, ...]) -> None:
    layer = batch_norm(settings + " eps: 0.1", shape, train)
    assert torch.autograd.gradcheck(layer, seeded(*shape).requires_grad_())


@pytest.mark.parametrize("params", ["param { lr_mult: 1 }", "param { lr_mult: 0 } param { decay_mult: 0 }"])
def test_batch_norm_refuses_to_learn(params: str) -> None:
    with pytest.raises(LayerError, match="statistics, not learned"):
        make_layer(f'type: "BatchNorm" {params}', (2, 3))


@pytest.mark.parametrize("given", range(4))
def test_batch_norm_blobs_have_no_rate(given: int) -> None:
    layer = make_layer('type: "BatchNorm"' + " param { lr_mult: 0 }" * given, (2, 3, 4, 4))
    assert [spec.lr_mult for spec in layer.param.param] == [0, 0, 0]


def test_batch_norm_accepts_param_entries_that_do_not_learn() -> None:
    make_layer('type: "BatchNorm" param { lr_mult: 0 } param { lr_mult: 0 }', (2, 3))
    make_layer('type: "BatchNorm" param { lr_mult: 1 } param { lr_mult: 1 } param { lr_mult: 1 }', (2, 3))


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    across=st.booleans(),
    variance=st.booleans(),
    eps=st.sampled_from([1e-9, 0.5]),
)
@settings(max_examples=50, deadline=None)
def test_mvn(shape: list[int], across: bool, variance: bool, eps: float) -> None:
    layer = make_layer(
        f'type: "MVN" mvn_param {{ across_channels: {str(across).lower()} normalize_variance: {str(variance).lower()} '
        f"eps: {eps} }}",
        shape,
    )
    full = [*shape, 1, 1, 1][:4]
    x = seeded(*shape).requires_grad_()
    grad = seeded(*full, seed=1)
    y = layer(x)
    y.backward(grad)

    rows = full[0] if across else full[0] * full[1]
    values, seeds = x.detach().numpy().reshape(rows, -1), grad.numpy().reshape(rows, -1)
    centred = values - values.mean(1, keepdims=True)
    expected_grad = seeds - seeds.mean(1, keepdims=True)
    expected = centred
    if variance:
        divisor = np.sqrt((centred**2).mean(1, keepdims=True)) + layer.config.eps
        expected = centred / divisor
        expected_grad = (expected_grad - expected * (seeds * expected).mean(1, keepdims=True)) / divisor
    assert list(y.shape) == full
    np.testing.assert_allclose(y.detach().numpy(), expected.reshape(full), rtol=1e-9, atol=1e-9)
    assert x.grad is not None
    scale = np.abs(expected_grad).max()
    np.testing.assert_allclose(x.grad.numpy().reshape(rows, -1), expected_grad, rtol=1e-9, atol=1e-9 * max(scale, 1))


def test_mvn_of_a_constant_has_a_finite_gradient() -> None:
    x = torch.ones(1, 2, 3, 3, requires_grad=True)
    layer = make_layer('type: "MVN"', x.shape)
    (layer(x) * torch.arange(9.0).reshape(3, 3)).sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())


@pytest.mark.parametrize("settings", ["", "across_channels: true", "normalize_variance: false"])
def test_mvn_gradient_is_the_derivative(settings: str) -> None:
    layer = make_layer(f'type: "MVN" mvn_param {{ {settings} }}', (2, 3, 2, 2))
    assert torch.autograd.gradcheck(layer, seeded(2, 3, 2, 2).requires_grad_())


@pytest.mark.parametrize("axis", [0, 1, 3, -1, -4])
def test_softmax(axis: int) -> None:
    x = seeded(2, 3, 4, 5)
    layer = make_layer(f'type: "Softmax" softmax_param {{ axis: {axis} }}', x.shape)
    powers = np.exp(x.numpy())
    np.testing.assert_allclose(layer(x).numpy(), powers / powers.sum(axis, keepdims=True), rtol=1e-12)
    assert torch.autograd.gradcheck(layer, x.requires_grad_())


def test_softmax_of_large_values_does_not_overflow() -> None:
    layer = make_layer('type: "Softmax"', (1, 2))
    assert layer(torch.tensor([[1000.0, -1000.0]])).tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("text", "shape", "words"),
    [
        ('type: "LRN" lrn_param { local_size: 4 }', (1, 4, 3, 3), "local_size 4 must be odd"),
        ('type: "LRN"', (1, 4, 3), "4 axes"),
        ('type: "BatchNorm"', (4,), "2 axes or more"),
        ('type: "MVN"', (1, 2, 3, 4, 5), "at most 4 axes"),
    ],
)
def test_bad_settings_are_named(text: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(LayerError, match=words):
        make_layer(text, shape)


def test_softmax_axis_out_of_range_is_named() -> None:
    with pytest.raises(LayerError, match="axis 4 is outside"):
        make_layer('type: "Softmax" softmax_param { axis: 4 }', (1, 2))(torch.zeros(1, 2))
