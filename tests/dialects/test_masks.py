"""MNC's layers of masks and resampled regions against loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden_cases import assert_close
from layer_maker import make_layer, seeded

from fcnproto.errors import LayerError


def close(found: torch.Tensor | None, wanted: np.ndarray, tolerance: float) -> None:
    assert found is not None
    assert_close(found, wanted, tolerance, "values")


def sample(plane: np.ndarray, y: float, x: float) -> float | None:
    """A linear mixture of a plane's values; None outside of it by more than half a step."""
    height, width = plane.shape
    if y < -0.5 or y > height - 0.5 or x < -0.5 or x > width - 0.5:
        return None
    y, x = max(y, 0.0), max(x, 0.0)
    low, left = min(int(y), height - 1), min(int(x), width - 1)
    high, right = min(low + 1, height - 1), min(left + 1, width - 1)
    down, over = (y - low if high > low else 0.0), (x - left if right > left else 0.0)
    top = (1 - over) * plane[low, left] + over * plane[low, right]
    return float((1 - down) * top + down * ((1 - over) * plane[high, left] + over * plane[high, right]))


@pytest.mark.parametrize("text", ["output_height: 5 output_width: 9", "factor_height: 0.5 factor_width: 1.4"])
def test_masks_are_resampled_from_the_upper_left_corner(text: str) -> None:
    x = seeded(2, 2, 8, 7).requires_grad_()
    settings = text if "output" in text else f"output_height: 1 output_width: 1 {text}"
    layer = make_layer(f'type: "MaskResize" mask_resize_param {{ {settings} }}', x.shape, dtype=torch.float64)
    y = layer(x)
    high, wide = (5, 9) if "output" in text else (4, int(7 * np.float32(1.4)))
    assert y.shape == (2, 2, high, wide) == tuple(layer.top_shapes([(2, 2, 8, 7)])[0])
    for n, c, i, j in np.ndindex(*y.shape):
        wanted = sample(x.detach().numpy()[n, c], i * (8 / high), j * (7 / wide))
        assert y[n, c, i, j].item() == pytest.approx(wanted or 0.0, abs=1e-12)
    assert torch.autograd.gradcheck(layer, (x,))


def test_masks_multiply_all_channels() -> None:
    x, masks = seeded(2, 3, 4, 5).requires_grad_(), seeded(2, 1, 4, 5, seed=1).requires_grad_()
    layer = make_layer('type: "MaskPooling"', x.shape, masks.shape, dtype=torch.float64)
    assert torch.equal(layer(x, masks), x * masks)
    assert torch.autograd.gradcheck(layer, (x, masks))
    with pytest.raises(LayerError, match="masks"):
        make_layer('type: "MaskPooling"', (2, 3, 4, 5), (2, 1, 4, 4))


def warped(plane: np.ndarray, row: list[float], scale: float, size: tuple[int, int]) -> np.ndarray:
    left, top, right, bottom = (math.floor(abs(v * scale) + 0.5) * (1 if v >= 0 else -1) for v in row)
    extent = max(bottom - top, 0), max(right - left, 0)
    result = np.zeros(size)
    for p, q in np.ndindex(*size):
        values = []
        for fy in positions(p, extent[0] / size[0]):
            for fx in positions(q, extent[1] / size[1]):
                found = sample(plane, top + float(fy) * extent[0] / size[0], left + float(fx) * extent[1] / size[1])
                values += [] if found is None else [found]
        result[p, q] = max(values, default=0.0)
    return result


def positions(cell: int, length: float) -> list[np.float32]:
    """A cell's samples along an axis, with steps added up in float32."""
    at, found = np.float32(cell), []
    step = np.float32(np.inf) if length == 0 else np.float32(1) / np.float32(math.ceil(length))
    while at <= cell + 1:
        found.append(at)
        at = np.float32(at + step)
    return found


def test_regions_are_warped_by_the_largest_sample_of_each_cell() -> None:
    draw = np.random.default_rng(5)
    x = seeded(2, 2, 9, 12)
    rows = np.zeros((37, 5))
    rows[:, 0] = draw.integers(0, 2, 37)
    rows[:, 1:3] = draw.uniform(-20, 100, (37, 2))
    rows[:, 3:] = rows[:, 1:3] + draw.uniform(-30, 150, (37, 2))
    text = 'type: "ROIWarping" roi_warping_param { pooled_h: 3 pooled_w: 2 spatial_scale: 0.125 }'
    layer = make_layer(text, x.shape, rows.shape)
    y = layer(x, torch.from_numpy(rows))
    wanted = np.stack([[warped(x[int(r[0]), c].numpy(), list(r[1:]), 0.125, (3, 2)) for c in range(2)] for r in rows])
    close(y, wanted, 1e-9)
    assert layer(x, torch.zeros(0, 5)).shape == (0, 2, 3, 2)
    few = torch.from_numpy(rows[:4])
    assert torch.autograd.gradcheck(lambda features: layer(features, few), (x.requires_grad_(),))


def test_the_stages_of_mnc_are_joined_by_its_python_layers() -> None:
    python = 'type: "Python" bottom: "a" {} python_param {{ module: "pylayer.{}" layer: "{}" }}'
    masks = make_python(python.format("", "mask_layer", "MaskLayer"), (3, 441))
    flat = seeded(3, 441)
    assert torch.equal(masks(flat), flat.view(3, 1, 21, 21))
    bottoms = 'bottom: "b" bottom: "c" bottom: "d"'
    bridge = make_python(
        python.format(bottoms, "stage_bridge_layer", "StageBridgeLayer"), (2, 5), (2, 8), (2, 2), (1, 3)
    )
    rows = torch.tensor([[0, 10.0, 20, 29, 59], [0, 0, 0, 9, 9]], dtype=torch.float64)
    values = torch.zeros(2, 8, dtype=torch.float64)
    values[0, 4:] = torch.tensor([0.5, -0.25, math.log(2), 0])  # of class 1, the better one
    values[1, :4] = torch.tensor([9, 9, 9, 9])  # of class 0, which isn't
    scores = torch.tensor([[0.1, 0.9], [0.2, 0.3]], dtype=torch.float64)
    found = bridge(rows, values, scores, torch.tensor([[50.0, 45, 1]]))
    # centre 20 + 0.5 * 20 = 30, width 40; centre 40 - 0.25 * 40 = 30, height 40; cut to 45 x 50 pixels
    close(found, np.array([[0, 10, 10, 44, 49], [0, 0, 0, 10, 10]], dtype=np.float64), 1e-6)


def make_python(text: str, *shapes: tuple[int, ...]) -> torch.nn.Module:
    from google.protobuf import text_format

    from fcnproto.data.python_layer import registered_python_layer
    from fcnproto.schema import caffe_pb2

    param = caffe_pb2.LayerParameter(name="it", top=["top"])
    text_format.Merge(text, param)
    cls = registered_python_layer(param.python_param.module, param.python_param.layer)
    assert cls is not None
    layer = cls(param, 1)
    layer.eval()
    assert not layer.withheld()
    layer.setup(list(shapes))
    return layer  # type: ignore[no-any-return]
