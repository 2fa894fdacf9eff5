"""Pooling and SPP against loops in numpy for any kernel, stride, pad and size, and what they refuse."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_maker import make_layer, seeded

from fcnproto.errors import LayerError
from fcnproto.layers.pooling import Windows

Array = npt.NDArray[np.float64]
Axis = tuple[int, int, int, int]
"""Size, kernel, stride and pad along one axis."""

LOWEST = float(np.finfo(np.float32).min)

AXIS = st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 5), st.integers(0, 4)).map(
    lambda axis: (*axis[:3], min(axis[3], axis[1] - 1))
)


def pooled_size(axes: list[Axis], i: int, floor: bool) -> int:
    size, kernel, stride, pad = axes[i]
    rounded = (math.floor if floor else math.ceil)((size + 2 * pad - kernel) / stride) + 1
    if any(axis[3] for axis in axes) and (rounded - 1) * stride >= size + pad:
        rounded -= 1
    return rounded


def naive_pool(x: Array, dy: Array | None, axes: list[Axis], method: str, floor: bool) -> tuple[Array, Array, Array]:
    """Values, mask and (for a top gradient, ones if None) the bottom's gradient."""
    (height, kh, sh, ph), (width, kw, sw, pw) = axes
    out = [pooled_size(axes, 0, floor), pooled_size(axes, 1, floor)]
    y, mask, dx = np.zeros((*x.shape[:2], *out)), np.zeros((*x.shape[:2], *out)), np.zeros(x.shape)
    for n, c, p, q in np.ndindex(*y.shape):
        top, left = p * sh - ph, q * sw - pw
        area = (min(top + kh, height + ph) - top) * (min(left + kw, width + pw) - left)
        rows, columns = range(max(top, 0), min(top + kh, height)), range(max(left, 0), min(left + kw, width))
        gradient = 1.0 if dy is None else dy[n, c, p, q]
        best, where = LOWEST, -1
        for h in rows:
            for w in columns:
                if method == "AVE":
                    y[n, c, p, q] += x[n, c, h, w] / area
                    dx[n, c, h, w] += gradient / area
                elif x[n, c, h, w] > best:
                    best, where = x[n, c, h, w], h * width + w
        if method == "MAX":
            y[n, c, p, q], mask[n, c, p, q] = best, where
            if where >= 0:
                dx[n, c, where // width, where % width] += gradient
    return y, mask, dx


def pool_text(axes: list[Axis], method: str, floor: bool) -> str:
    (_, kh, sh, ph), (_, kw, sw, pw) = axes
    return (
        f'type: "Pooling" pooling_param {{ pool: {method} kernel_h: {kh} kernel_w: {kw} stride_h: {sh} stride_w: {sw} '
        f"pad_h: {ph} pad_w: {pw} round_mode: {'FLOOR' if floor else 'CEIL'} }}"
    )


def check_against_loops(axes: list[Axis], method: str, floor: bool, levels: int, odd: float = 0) -> None:
    shape = (2, 2, axes[0][0], axes[1][0])
    with_mask = method == "MAX"
    layer = make_layer(pool_text(axes, method, floor), shape, tops=2 if with_mask else 1)
    x = seeded(*shape)
    if levels:
        x = (x * levels).round()  # many equal values
    if odd:
        chosen = torch.randint(3, x.shape, generator=torch.Generator().manual_seed(3))
        x[chosen > 0] = torch.where(chosen[chosen > 0] == 1, odd, -math.inf).to(x)
    x.requires_grad_()
    out = [pooled_size(axes, i, floor) for i in (0, 1)]
    if min(out) < 0:
        with pytest.raises(LayerError, match="output size"):
            layer(x)
        return
    tops = layer(x) if with_mask else (layer(x),)
    meta = copy.deepcopy(layer)(torch.empty(shape, device="meta"))
    assert [(2, 2, *out)] * len(tops) == [top.shape for top in tops]
    assert [(2, 2, *out)] * len(tops) == [top.shape for top in (meta if with_mask else (meta,))]
    if 0 in out:
        return
    dy = seeded(*tops[0].shape, seed=1)
    y, mask, dx = naive_pool(x.detach().numpy(), dy.numpy(), axes, method, floor)
    np.testing.assert_allclose(tops[0].detach().numpy(), y, rtol=1e-13, atol=1e-14)
    if with_mask:
        np.testing.assert_array_equal(tops[1].detach().numpy(), mask)
        assert tops[1].dtype == x.dtype
    tops[0].backward(dy)
    np.testing.assert_allclose(x.grad.numpy(), dx, rtol=1e-13, atol=1e-14)


@given(axes=st.tuples(AXIS, AXIS).map(list), method=st.sampled_from(["MAX", "AVE"]), floor=st.booleans())
@settings(max_examples=150, deadline=None)
def test_pooling(axes: list[Axis], method: str, floor: bool) -> None:
    check_against_loops(axes, method, floor, levels=0)


@given(axes=st.tuples(AXIS, AXIS).map(list), floor=st.booleans())
@settings(max_examples=60, deadline=None)
def test_first_of_equal_maxima_wins(axes: list[Axis], floor: bool) -> None:
    check_against_loops(axes, "MAX", floor, levels=1)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
@given(axes=st.tuples(AXIS, AXIS).map(list), floor=st.booleans())
@settings(max_examples=60, deadline=None)
def test_nan_and_minus_infinity_are_no_maxima(odd: float, axes: list[Axis], floor: bool) -> None:
    check_against_loops(axes, "MAX", floor, levels=0, odd=odd)


def test_windows_of_nan_alone() -> None:
    text = 'type: "Pooling" pooling_param { kernel_size: 2 stride: 2 }'
    x = torch.full((1, 1, 2, 4), math.nan)
    x[0, 0, 1, 2] = -5
    values, mask = make_layer(text, x.shape, tops=2)(x)
    assert values.flatten().tolist() == [LOWEST, -5] and mask.flatten().tolist() == [-1, 6]
    assert make_layer(text, x.shape)(x).flatten().tolist() == [LOWEST, -5]
    half = make_layer(text, x.shape, tops=2)(x.half())
    assert half[0].flatten().tolist() == [-65504, -5] and half[1].flatten().tolist() == [-1, 6]
    mapped = torch.vmap(make_layer(text, x.shape))(torch.zeros(3, 1, 1, 2, 4))
    assert tuple(mapped.shape) == (3, 1, 1, 1, 2)


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize(
    "axes",
    [
        [(5, 1, 3, 0), (5, 1, 3, 0)],  # the last windows are empty
        [(4, 1, 2, 0), (4, 1, 2, 0)],  # the last windows begin just past the end
        [(4, 3, 2, 2), (4, 3, 2, 2)],  # pad more than half of the kernel
        [(4, 3, 2, 1), (5, 2, 3, 0)],  # one axis padded: both are clipped
        [(2, 5, 4, 0), (7, 2, 2, 0)],  # kernel larger than the input
    ],
)
def test_odd_windows(axes: list[Axis], method: str) -> None:
    check_against_loops(axes, method, floor=False, levels=0)


def test_padding_counts_in_the_average() -> None:
    layer = make_layer('type: "Pooling" pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }', (1, 1, 4, 4))
    expected = torch.tensor([[4 / 9, 2 / 3, 1 / 3], [2 / 3, 1, 1 / 2], [1 / 3, 1 / 2, 1 / 4]])
    torch.testing.assert_close(layer(torch.ones(1, 1, 4, 4))[0, 0], expected)


def test_empty_last_window() -> None:
    x = torch.ones(1, 1, 5, 5)
    values, mask = make_layer('type: "Pooling" pooling_param { kernel_size: 1 stride: 3 }', x.shape, tops=2)(x)
    assert values.shape == (1, 1, 3, 3) and (values[0, 0, 2] == LOWEST).all() and (mask[0, 0, 2] == -1).all()
    average = make_layer('type: "Pooling" pooling_param { pool: AVE kernel_size: 1 stride: 3 }', x.shape)(x)
    assert (average[0, 0, 2] == 0).all() and (average[0, 0, :2, :2] == 1).all()


@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    height=st.integers(1, 4),
    method=st.sampled_from(["MAX", "AVE"]),
)
@settings(max_examples=80, deadline=None)
def test_spp_of_any_size(size: tuple[int, int], height: int, method: str) -> None:
    x, text = seeded(1, 2, *size), f'type: "SPP" spp_param {{ pyramid_height: {height} pool: {method} }}'
    levels = []
    for level in range(height):
        kernels = [math.ceil(extent / 2**level) for extent in size]
        pads = [(kernel * 2**level - extent + 1) // 2 for kernel, extent in zip(kernels, size, strict=True)]
        if any(pad >= kernel for pad, kernel in zip(pads, kernels, strict=True)):
            with pytest.raises(LayerError, match="too small"):
                make_layer(text, x.shape)(x)
            return
        axes = [(extent, kernel, kernel, pad) for extent, kernel, pad in zip(size, kernels, pads, strict=True)]
        levels.append(naive_pool(x.numpy(), None, axes, method, floor=False)[0])
    y = make_layer(text, x.shape)(x).numpy()
    if height == 1:
        np.testing.assert_allclose(y, levels[0], rtol=1e-12)
        return
    assert all(level.shape[2:] == (2**i, 2**i) for i, level in enumerate(levels))
    np.testing.assert_allclose(y, np.concatenate([level.reshape(1, -1) for level in levels], 1), rtol=1e-12)


@pytest.mark.parametrize(("kernel", "stride", "pad"), [(2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 1, 1), (7, 1, 0)])
def test_common_windows_take_the_fast_path(kernel: int, stride: int, pad: int) -> None:
    windows = Windows((kernel, kernel), (stride, stride), (pad, pad))
    assert all(windows.suits_torch((height, width)) for height in range(7, 40) for width in (7, 18, 33))


@pytest.mark.parametrize("method", ["MAX", "AVE", "STOCHASTIC"])
def test_global_pooling(method: str) -> None:
    layer = make_layer(f'type: "Pooling" pooling_param {{ pool: {method} global_pooling: true }}', (1, 2, 3, 4))
    for shape in ((1, 2, 3, 4), (2, 2, 6, 5)):
        x = seeded(*shape).abs()
        expected = {"MAX": x.amax((2, 3)), "AVE": x.mean((2, 3)), "STOCHASTIC": (x * x).sum((2, 3)) / x.sum((2, 3))}
        torch.testing.assert_close(layer(x), expected[method][:, :, None, None])


def test_stochastic_draws_in_proportion() -> None:
    """100000 windows of 1, 2, 0, 5: each value is drawn with its share and gets the gradient, the 0 never."""
    text = 'type: "Pooling" pooling_param { pool: STOCHASTIC kernel_size: 2 stride: 2 }'
    x = torch.tensor([[1.0, 2.0], [0.0, 5.0]]).repeat(1, 1, 200, 500).requires_grad_()
    torch.manual_seed(0)
    y = make_layer(text, x.shape, train=True)(x)
    shares = [float((y == value).double().mean()) for value in (1, 2, 0, 5)]
    np.testing.assert_allclose(shares, [1 / 8, 2 / 8, 0, 5 / 8], atol=0.008)
    y.sum().backward()
    assert x.grad is not None and x.grad.sum() == y.numel()
    assert torch.equal((x.grad * x).sum(), y.sum())
    torch.testing.assert_close(make_layer(text, x.shape)(x), torch.full(y.shape, 30 / 8))
    zeros = torch.zeros(1, 1, 5, 5)
    for train in (False, True):
        assert torch.equal(make_layer(text, zeros.shape, train=train)(zeros), torch.zeros(1, 1, 3, 3))


@pytest.mark.parametrize("method", ["MAX", "AVE", "STOCHASTIC"])
def test_gradients(method: str) -> None:
    layer = make_layer(f'type: "Pooling" pooling_param {{ pool: {method} kernel_size: 3 stride: 2 }}', (1, 2, 6, 5))
    torch.autograd.gradcheck(layer, (seeded(1, 2, 6, 5).abs().requires_grad_(),))
    if method != "STOCHASTIC":
        layer = make_layer(f'type: "SPP" spp_param {{ pyramid_height: 3 pool: {method} }}', (1, 2, 7, 6))
        torch.autograd.gradcheck(layer, (seeded(1, 2, 7, 6).requires_grad_(),))


def naive_spp(x: Array, height: int, method: str) -> Array:
    levels = []
    for bins in (2**i for i in range(height)):
        kernels = [math.ceil(size / bins) for size in x.shape[2:]]
        pads = [(k * bins - size + 1) // 2 for k, size in zip(kernels, x.shape[2:], strict=True)]
        axes = [(size, k, k, pad) for size, k, pad in zip(x.shape[2:], kernels, pads, strict=True)]
        levels.append(naive_pool(x, None, axes, method, floor=False)[0].reshape(len(x), -1))
    return np.concatenate(levels, 1)


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize("size", [(4, 4), (6, 11), (7, 9), (16, 8)])
def test_spp(size: tuple[int, int], method: str) -> None:
    x = seeded(2, 3, *size)
    y = make_layer(f'type: "SPP" spp_param {{ pyramid_height: 3 pool: {method} }}', x.shape)(x)
    assert y.shape == (2, 3 * (1 + 4 + 16))
    np.testing.assert_allclose(y.numpy(), naive_spp(x.numpy(), 3, method), rtol=1e-13)


def test_spp_sizes() -> None:
    """Caffe refuses the sizes 1, 2, 3 and 5 for a pyramid of height 3."""
    layer = make_layer('type: "SPP" spp_param { pyramid_height: 3 }', (1, 1, 8, 8))
    for size in range(1, 13):
        if size in (1, 2, 3, 5):
            with pytest.raises(LayerError, match="too small"):
                layer(torch.zeros(1, 1, size, size))
        else:
            assert layer(torch.zeros(1, 1, size, size)).shape == (1, 21)
    assert make_layer('type: "SPP" spp_param { pyramid_height: 1 }', (1, 2, 8, 8))(torch.zeros(1, 2, 5, 5)).shape == (
        (1, 2, 1, 1)
    )


@pytest.mark.parametrize(
    ("settings_text", "message"),
    [
        ("", "kernel_size or both"),
        ("kernel_size: 2 kernel_h: 2 kernel_w: 2", "kernel_size or both"),
        ("kernel_h: 2", "kernel_size or both"),
        ("kernel_size: 0", "kernel .* must be positive"),
        ("kernel_size: 2 stride: 0", "stride .* must be positive"),
        ("kernel_size: 2 stride_h: 2", "stride or both"),
        ("kernel_size: 2 stride: 2 stride_h: 2 stride_w: 2", "stride or both"),
        ("kernel_size: 3 pad: 1 pad_h: 1 pad_w: 1", "pad or both"),
        ("kernel_size: 3 pad: 3", "smaller than the kernel"),
        ("kernel_size: 3 pad: 1 pool: STOCHASTIC", "MAX and AVE"),
        ("global_pooling: true kernel_size: 2", "takes the kernel from the bottom"),
        ("global_pooling: true stride: 2", "stride 1 and pad 0"),
    ],
)
def test_refused_settings(settings_text: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        make_layer(f'type: "Pooling" pooling_param {{ {settings_text} }}', (1, 1, 5, 5))


def test_refused_shapes_and_tops() -> None:
    text: Any = 'type: "Pooling" pooling_param { kernel_size: 3 pool: %s }'
    with pytest.raises(LayerError, match=r"\(N, C, H, W\)"):
        make_layer(text % "MAX", (1, 5, 5))
    with pytest.raises(LayerError, match="second top"):
        make_layer(text % "AVE", (1, 1, 5, 5), tops=2)
    with pytest.raises(LayerError, match="pyramid_height"):
        make_layer('type: "SPP"', (1, 1, 5, 5))
    with pytest.raises(LayerError, match="can't be padded"):
        make_layer('type: "SPP" spp_param { pyramid_height: 2 pool: STOCHASTIC }', (1, 1, 7, 7))(
            torch.zeros(1, 1, 7, 7)
        )


def test_half_precision() -> None:
    """Sums beyond the largest half are no trouble, and indices beyond 2048 stay exact."""
    x = torch.full((1, 1, 50, 50), 100.0, dtype=torch.float16)
    average = make_layer('type: "Pooling" pooling_param { pool: AVE kernel_size: 40 stride: 30 pad: 30 }', x.shape)(x)
    assert average.dtype == torch.float16 and torch.isfinite(average).all() and average.max() > 25
    x[0, 0, 49, 48] = 101
    mask = make_layer('type: "Pooling" pooling_param { global_pooling: true }', x.shape, tops=2)(x)[1]
    assert mask.item() == 49 * 50 + 48


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("settings_text", ["kernel_size: 2 stride: 2", "kernel_size: 3 stride: 2 pad: 2"])
def test_equal_maxima_on_the_gpu(settings_text: str) -> None:
    layer = make_layer(f'type: "Pooling" pooling_param {{ {settings_text} }}', (2, 3, 17, 23), tops=2)
    results = []
    for device in ("cpu", "cuda"):
        x = seeded(2, 3, 17, 23).round().to(device).requires_grad_()
        values, mask = layer(x)
        values.sum().backward()
        results.append([tensor.detach().cpu() for tensor in (values, mask, x.grad)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "empty"), [(3, 1, 3, [1]), (5, 1, 3, []), (4, 1, 3, []), (4, 2, 4, [1]), (6, 1, 4, [])]
)
def test_averages_of_nothing_are_zero_or_with_caffe_exact_not_a_number(
    size: int, kernel: int, stride: int, empty: list[int]
) -> None:
    """Caffe's own: 0 / 0 where a window begins right behind the end, -0 where it begins further out."""
    layer = make_layer(
        f'type: "Pooling" pooling_param {{ pool: AVE kernel_size: {kernel} stride: {stride} }}', (1, 1, size, size)
    )
    y = layer(torch.ones(1, 1, size, size))
    assert not y.isnan().any()
    layer.caffe_exact = True
    found = layer(torch.ones(1, 1, size, size))[0, 0].isnan()
    expected = torch.zeros_like(found)
    for place in empty:
        expected[place, :] = expected[:, place] = True
    assert torch.equal(found, expected)
