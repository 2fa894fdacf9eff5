"""FlowNet2's layers, CTPN's Lstm, C3D's volumes and CenterLoss beside what the recordings show."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_cases import assert_close
from layer_maker import make_layer, seeded

from fcnproto.errors import LayerError


def test_correlation_by_its_definition() -> None:
    a, b = seeded(1, 3, 7, 8), seeded(1, 3, 7, 8, seed=1)
    settings = "pad: 2 kernel_size: 3 max_displacement: 3 stride_1: 2 stride_2: 2"
    text = f'type: "Correlation" correlation_param {{ {settings} }}'
    layer = make_layer(text, (1, 3, 7, 8), (1, 3, 7, 8), dtype=torch.float64)
    top = layer(a, b)
    first, second = (F.pad(t, [2] * 4).numpy()[0] for t in (a, b))
    height, width = (math.ceil((n + 4 - 2 * (3 + 1)) / 2) for n in (7, 8))
    expected = np.zeros((9, height, width))
    for k, (down, right) in enumerate((d, r) for d in (-2, 0, 2) for r in (-2, 0, 2)):
        for i in range(height):
            for j in range(width):
                y, x = 3 + 2 * i, 3 + 2 * j
                one, other = (
                    first[:, y : y + 3, x : x + 3],
                    second[:, y + down : y + down + 3, x + right : x + right + 3],
                )
                expected[k, i, j] = (one * other).mean()
    assert layer.top_shapes([(1, 3, 7, 8)] * 2) == [tuple(top.shape)]
    assert_close(top[0], expected, 1e-12, "values")
    assert torch.autograd.gradcheck(layer, [a.requires_grad_(), b.requires_grad_()])


def test_gradients_of_a_warped_image() -> None:
    x, flow = seeded(2, 2, 4, 5).requires_grad_(), (seeded(2, 2, 4, 5, seed=3) * 1.3 + 0.217).requires_grad_()
    assert torch.autograd.gradcheck(make_layer('type: "FlowWarp"', (2, 2, 4, 5), (2, 2, 4, 5)), [x, flow])


def test_what_comes_from_outside() -> None:
    text = 'type: "FlowWarp" flow_warp_param { fill_value: NOT_A_NUMBER }'
    layer = make_layer(text, (1, 1, 2, 3), (1, 2, 2, 3))
    flow = torch.zeros(1, 2, 2, 3)
    flow[0, 0, :, 2] = 1
    top = layer(torch.arange(6.0).view(1, 1, 2, 3), flow)
    assert top[0, 0, :, :2].tolist() == [[0, 1], [3, 4]] and top[0, 0, :, 2].isnan().all()


def test_downsampling_place_by_place() -> None:
    x = seeded(1, 1, 7, 9)
    x[0, 0, 0, :2] = math.nan
    layer = make_layer('type: "Downsample" downsample_param { top_height: 3 top_width: 4 }', (1, 1, 7, 9))
    top = layer(x)[0, 0]
    down, right = 6 / 2, 8 / 3
    for i in range(3):
        for j in range(4):
            value = weight = lost = 0.0
            for y in range(7):
                for z in range(9):
                    near = max(0.0, 1 - abs(y - i * down) / down) * max(0.0, 1 - abs(z - j * right) / right)
                    if math.isnan(x[0, 0, y, z]):
                        lost += near
                    else:
                        value, weight = value + near * float(x[0, 0, y, z]), weight + near
            if lost / weight > 0.5:
                assert math.isnan(top[i, j])
            else:
                assert abs(float(top[i, j]) - value / weight) < 1e-6
    assert top.isnan().any() and not top.isnan().all()


def test_the_two_forks_l1_losses() -> None:
    a, b = seeded(2, 3, 4, 4), seeded(2, 3, 4, 4, seed=2)
    plain = make_layer('type: "L1Loss"', (2, 3, 4, 4), (2, 3, 4, 4))
    assert_close(plain(a, b), np.float64((a - b).abs().sum() / 2), 1e-12, "NVIDIA's")
    text = 'type: "L1Loss" l1_loss_param { l2_per_location: true epsilon: 0.25 normalize_by_num_entries: true }'
    b[0, :, 0, 0] = math.nan
    squares = torch.where(b.isnan(), 0, a - b).square().sum(1)
    expected = (squares + 0.25).sqrt().sum() / (31 * 3 / 3)
    assert_close(make_layer(text, (2, 3, 4, 4), (2, 3, 4, 4))(a, b), np.float64(expected), 1e-12, "FlowNet2's")


def test_lstm_of_several_samples_keeps_them_apart_and_goes_on() -> None:
    text = 'type: "Lstm" lstm_param { num_output: 3 }'
    layer = make_layer(text, (5, 2, 4), (5, 2), dtype=torch.float64)
    alone = make_layer(text, (5, 1, 4), (5, 1), dtype=torch.float64)
    x, marks = seeded(5, 2, 4), torch.tensor([[0, 0], [1, 1], [1, 0], [1, 1], [1, 1]])
    both = torch.cat([layer(x, marks), layer(x, torch.ones(5, 2))])
    for n in (0, 1):
        alone.states = None
        one = torch.cat([alone(x[:, n : n + 1], marks[:, n : n + 1]), alone(x[:, n : n + 1], torch.ones(5, 1))])
        assert_close(both[:, n : n + 1], one.detach(), 1e-12, f"sample {n}")
    again = make_layer(text, (5, 2, 4), dtype=torch.float64)
    assert_close(again(x), again(x).detach(), 1e-15, "without marks each call begins anew")
    assert torch.autograd.gradcheck(again, [x.requires_grad_()])


def test_volumes() -> None:
    settings = "num_output: 4 kernel_size: 3 kernel_depth: 2 stride: 2 pad: 1 temporal_pad: 1 group: 2"
    x = seeded(1, 2, 5, 7, 6).requires_grad_()
    layer = make_layer(
        f'type: "Convolution3D" convolution3d_param {{ {settings} }}', (1, 2, 5, 7, 6), dtype=torch.float64
    )
    assert layer.blob_shapes == [(4, 1, 2, 3, 3), (4,)]
    assert tuple(layer(x).shape) == (1, 4, 6, 4, 3) and torch.autograd.gradcheck(layer, [x])
    back = make_layer(
        f'type: "Deconvolution3D" convolution3d_param {{ {settings} }}', (1, 2, 5, 7, 6), dtype=torch.float64
    )
    assert back.blob_shapes[0] == (2, 2, 2, 3, 3) and tuple(back(x).shape) == (1, 4, 4, 13, 11)


@pytest.mark.parametrize(("method", "pad"), [("MAX", 0), ("MAX", 1), ("AVE", 0), ("AVE", 1)])
def test_pooling_of_volumes_place_by_place(method: str, pad: int) -> None:
    settings = f"pool: {method} kernel_size: 3 kernel_depth: 2 stride: 2 temporal_stride: 2 pad: {pad}"
    x = seeded(1, 2, 5, 8, 7)
    layer = make_layer(f'type: "Pooling3D" pooling3d_param {{ {settings} }}', (1, 2, 5, 8, 7), dtype=torch.float64)
    top = layer(x)
    assert layer.top_shapes([(1, 2, 5, 8, 7)]) == [tuple(top.shape)]
    kernel, pads, sizes = (2, 3, 3), (0, pad, pad), (5, 8, 7)
    for place in np.ndindex(*top.shape[2:]):
        starts = [2 * p - q for p, q in zip(place, pads, strict=True)]
        ends = [min(s + k, n + q) for s, k, n, q in zip(starts, kernel, sizes, pads, strict=True)]
        cell = x[(0, slice(None), *(slice(max(s, 0), min(e, n)) for s, e, n in zip(starts, ends, sizes, strict=True)))]
        area = math.prod(e - s for s, e in zip(starts, ends, strict=True))
        expected = cell.amax((1, 2, 3)) if method == "MAX" else cell.sum((1, 2, 3)) / area
        assert torch.allclose(top[(0, slice(None), *place)], expected, atol=1e-12)


def test_centres_of_classes() -> None:
    text = 'type: "CenterLoss" center_loss_param { num_output: 3 }'
    layer = make_layer(text, (4, 2), (4,), dtype=torch.float64)
    x, labels = seeded(4, 2).requires_grad_(), torch.tensor([0, 2, 2, 0])
    centres = layer.blob(0)
    loss = layer(x, labels)
    distance = x.detach() - centres.detach()[labels]
    assert_close(loss, np.float64(distance.square().sum() / 8), 1e-12, "loss")
    (loss * 5).backward()
    assert_close(x.grad, (5 * distance / 4).numpy(), 1e-12, "gradient of the features")
    step = torch.stack([-(distance[0] + distance[3]) / 3, torch.zeros(2), -(distance[1] + distance[2]) / 3])
    assert_close(centres.grad, step.numpy(), 1e-12, "the centres' own step")


@pytest.mark.parametrize(
    ("text", "shapes", "words"),
    [
        ('type: "Correlation"', [(1, 2, 3, 4)] * 2, "kernel_size is missing"),
        (
            'type: "Correlation" correlation_param { kernel_size: 2 max_displacement: 1 }',
            [(1, 2, 3, 4)] * 2,
            "must be odd",
        ),
        ('type: "FlowWarp"', [(1, 2, 3, 4), (1, 3, 3, 4)], "needs maps (N, C, H, W) and a flow"),
        ('type: "Resample"', [(1, 2, 3, 4)], "and a size"),
        (
            'type: "Resample" resample_param { width: 2 height: 2 type: AREA }',
            [(1, 2, 3, 4)],
            "AREA is computed in no fork",
        ),
        ('type: "Lstm"', [(1, 2, 3)], "num_output must be given"),
        (
            'type: "Pooling3D" pooling3d_param { kernel_size: 2 kernel_depth: 1 }',
            [(1, 2, 3, 4)],
            "length, height, width",
        ),
        ('type: "CenterLoss"', [(1, 2), (1,)], "num_output (of classes)"),
    ],
)
def test_what_is_refused(text: str, shapes: list[tuple[int, ...]], words: str) -> None:
    with pytest.raises(LayerError) as caught:
        make_layer(text, *shapes)
    assert words in str(caught.value)


def test_volumes_of_c3ds_first_version() -> None:
    """Their settings stand with Convolution's and Pooling's own."""
    settings = "num_output: 2 kernel_size: 3 kernel_depth: 2 pad: 1 temporal_pad: 1 stride: 2"
    shape = (1, 2, 3, 6, 6)
    x = seeded(*shape).float()
    first = make_layer(f'type: "Convolution3D" convolution_param {{ {settings} }}', shape)
    assert torch.equal(first(x), make_layer(f'type: "Convolution3D" convolution3d_param {{ {settings} }}', shape)(x))
    window = "pool: AVE kernel_size: 2 kernel_depth: 1 stride: 2"
    first = make_layer(f'type: "Pooling3D" pooling_param {{ {window} }}', shape)
    assert torch.equal(first(x), make_layer(f'type: "Pooling3D" pooling3d_param {{ {window} }}', shape)(x))
