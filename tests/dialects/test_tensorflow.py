"""Layers for nets converted from TensorFlow and darknet against loops over places in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden_cases import assert_close
from layer_maker import make_layer, seeded

from fcnproto.errors import LayerError


def test_products_spread_over_missing_axes() -> None:
    x, other = seeded(2, 3, 4).requires_grad_(), seeded(3, 1, seed=1).requires_grad_()
    layer = make_layer('type: "Mul"', x.shape, other.shape)
    assert_close(layer(x, other), (x * other).detach().numpy(), 0, "product")
    assert torch.autograd.gradcheck(layer, (x, other))
    own = make_layer('type: "Mul" mul_param { mul_shape: 4 }', x.shape, dtype=torch.float64)
    assert own.blob_shapes == [(4,)]
    assert_close(own(x), (x * own.blob(0)).detach().numpy(), 0, "product")
    with pytest.raises(LayerError, match="equal, or 1"):
        make_layer('type: "Mul"', (2, 3), (2, 4))


def position(i: int, new: int, old: int, style: str) -> float:
    if style == "align_corners" and new > 1:
        return i * (old - 1) / (new - 1)
    half = style in ("half_pixel_centers", "pytorch_half_pixel", "half_pixel_onnx")
    return (i + 0.5) * old / new if half else i * old / new


@pytest.mark.parametrize("style", ["", "align_corners", "half_pixel_centers", "pytorch_half_pixel"])
@pytest.mark.parametrize("form", ["NHWC", "NCHW"])
def test_bilinear(style: str, form: str) -> None:
    x = seeded(1, 5, 4, 2)
    x = x if form == "NHWC" else x.permute(0, 3, 1, 2)
    setting = f"{style}: true" if style else ""
    text = f'type: "ResizeBilinear" resize_bilinear_param {{ data_format: "{form}" output_height: 8 scale_width: 0.5 {setting} }}'
    y = make_layer(text, x.shape)(x)
    wanted = np.zeros((1, 8, 2, 2))
    plane = x.numpy() if form == "NHWC" else x.permute(0, 2, 3, 1).numpy()
    for i, j in np.ndindex(8, 2):
        middle = 0.5 if "half" in style else 0
        at = [position(i, 8, 5, style) - middle, position(j, 2, 4, style) - middle]
        low = [math.floor(v) for v in at]
        for a, b in np.ndindex(2, 2):
            place = [min(max(low[0] + a, 0), 4), min(max(low[1] + b, 0), 3)]
            share = [(1 - (v - f)) if k == 0 else v - f for v, f, k in zip(at, low, (a, b), strict=True)]
            wanted[0, i, j] += share[0] * share[1] * plane[0, place[0], place[1]]
    assert_close(y if form == "NHWC" else y.permute(0, 2, 3, 1), wanted, 1e-6, "map")


@pytest.mark.parametrize("style", ["", "align_corners", "half_pixel_centers", "half_pixel_onnx"])
def test_nearest(style: str) -> None:
    x = seeded(2, 3, 5, 4)
    setting = f"{style}: true" if style else ""
    text = f'type: "ResizeNearestNeighbor" resize_nearest_neighbor_param {{ data_format: "NCHW" output_height: 8 output_width: 3 {setting} }}'
    y = make_layer(text, x.shape)(x)
    for i, j in np.ndindex(8, 3):
        at = [position(i, 8, 5, style), position(j, 3, 4, style)]
        if style == "align_corners":
            at = [math.floor(v + 0.5) for v in at]
        elif style == "half_pixel_onnx":
            at = [math.floor(v - 0.5) for v in at]
        row, column = min(max(math.floor(at[0]), 0), 4), min(max(math.floor(at[1]), 0), 3)
        assert torch.equal(y[:, :, i, j], x[:, :, row, column])


def test_darknets_upsampling_repeats() -> None:
    x = seeded(1, 2, 2, 3)
    y = make_layer('type: "UpsampleDarknet" upsample_darknet_param { stride: 2 }', x.shape)(x)
    assert y.shape == (1, 2, 4, 6)
    assert all(y[0, 1, i, j] == x[0, 1, i // 2, j // 2] for i, j in np.ndindex(4, 6))


@pytest.mark.parametrize("form", ["NHWC", "NCHW", "DCR", "CRD"])
def test_channels_become_blocks(form: str) -> None:
    x = seeded(1, 8, 2, 3)
    given = x.permute(0, 2, 3, 1) if form == "NHWC" else x
    layer = make_layer(
        f'type: "DepthToSpace" depth_to_space_param {{ block_size: 2 data_format: "{form}" }}', given.shape
    )
    y = layer(given)
    assert tuple(y.shape) == layer.top_shapes([tuple(given.shape)])[0]
    y = y.permute(0, 3, 1, 2) if form == "NHWC" else y
    for d, i, j in np.ndindex(2, 4, 6):
        offset = i % 2 * 2 + j % 2
        channel = d * 4 + offset if form == "CRD" else d + offset * 2
        assert y[0, d, i, j] == x[0, channel, i // 2, j // 2]


def test_space_becomes_batch_and_back() -> None:
    x = seeded(2, 3, 5, 4)
    there = make_layer(
        'type: "SpaceToBatchND" space_to_batch_nd_param { block_shape: 1 block_shape: 2 block_shape: 3 paddings: 0 '
        "paddings: 0 paddings: 1 paddings: 2 paddings: 2 paddings: 0 }",
        x.shape,
    )
    y = there(x)
    assert tuple(y.shape) == (12, 3, 4, 2) == there.top_shapes([(2, 3, 5, 4)])[0]
    padded = np.pad(x.numpy(), [(0, 0), (0, 0), (1, 2), (2, 0)])
    for b, n, c, i, j in np.ndindex(6, 2, 3, 4, 2):
        assert y[b * 2 + n, c, i, j] == padded[n, c, i * 2 + b // 3, j * 3 + b % 3]
    back = make_layer(
        'type: "BatchToSpaceND" batch_to_space_nd_param { block_shape: 1 block_shape: 2 block_shape: 3 crops: 0 crops: 0 '
        "crops: 1 crops: 2 crops: 2 crops: 0 }",
        y.shape,
    )
    assert torch.equal(back(y), x)
    with pytest.raises(LayerError, match="blocks of 2 don't divide the 5 places"):
        make_layer('type: "SpaceToBatchND" space_to_batch_nd_param { block_shape: 2 paddings: 0 paddings: 0 }', (1, 5))
