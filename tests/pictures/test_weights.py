"""Pictures of filters, activations and gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_nets import small_fcn

import fcnproto
from fcnproto.cli._main import main
from fcnproto.pictures.weights import activation_grid, filter_grid, flow_picture, gradient_flow


def cells(image: Image.Image, count: int, columns: int) -> list[np.ndarray]:
    pixels = np.asarray(image)
    rows = -(-count // columns)
    height, width = pixels.shape[0] // rows, pixels.shape[1] // columns
    return [
        pixels[height * (k // columns) : height * (k // columns + 1), width * (k % columns) : width * (k % columns + 1)]
        for k in range(count)
    ]


def test_colour_filters_show_bgr_as_rgb() -> None:
    weight = torch.zeros(4, 3, 2, 2)
    for number, channel in enumerate((0, 1, 2)):  # blue, green, red
        weight[number, channel] = 5.0
    found = cells(filter_grid(weight), 4, 2)
    for number, colour in enumerate(((0, 0, 255), (0, 255, 0), (255, 0, 0))):
        height, width = found[number].shape[:2]
        assert tuple(found[number][height // 2 - 6, width // 2 - 6]) == colour


def test_other_filters_have_zero_at_grey() -> None:
    weight = torch.tensor([-2.0, 0.0, 2.0, 1.0]).reshape(1, 1, 2, 2)
    image = filter_grid(weight)
    assert image.mode == "L"
    values = set(np.unique(np.asarray(image)))
    assert {0, 255} <= values
    assert values & {127, 128}


def test_activations_are_scaled_by_channel() -> None:
    blob = torch.arange(2 * 4 * 3 * 3, dtype=torch.float32).reshape(2, 4, 3, 3)
    found = cells(activation_grid(blob), 4, 2)
    assert all(cell.min() == 0 and cell.max() == 255 for cell in found)


@pytest.mark.parametrize("shape", [(4,), (2, 3), (1, 0, 2, 2)])
def test_shapes_that_make_no_grid(shape: tuple[int, ...]) -> None:
    with pytest.raises(fcnproto.GraphError, match="can't be shown"):
        activation_grid(torch.zeros(shape))


def test_gradient_flow(tmp_path: Path) -> None:
    net = fcnproto.load(*small_fcn(tmp_path))
    with pytest.raises(fcnproto.GraphError, match="backward"):
        gradient_flow(net)
    net(torch.ones(1, 3, 20, 20))["score"].sum().backward()
    flows = gradient_flow(net)
    assert [flow.name for flow in flows] == ["conv.weight", "conv.bias", "class.weight", "class.bias"]
    gradient = net.params["conv"][0].grad
    assert gradient is not None
    assert flows[0].mean == pytest.approx(float(gradient.abs().mean()), rel=1e-5)
    assert flows[0].largest == float(gradient.abs().max())
    assert flow_picture(flows).height > 4 * 18


def test_command(tmp_path: Path) -> None:
    model, weights = small_fcn(tmp_path)
    Image.fromarray(np.full((20, 24, 3), 99, dtype=np.uint8)).save(tmp_path / "a.png")
    out = tmp_path / "out"
    common = ["pictures", str(model), str(weights), "-o", str(out)]
    assert main(common) == 0
    assert [file.name for file in out.iterdir()] == ["filters-conv.png"]
    wanted = [
        "--filters",
        "conv,class",
        "--activations",
        "pool,score",
        "--gradients",
        "--image",
        str(tmp_path / "a.png"),
    ]
    assert main([*common, *wanted]) == 0
    names = {"filters-conv.png", "filters-class.png", "activations-pool.png", "activations-score.png", "gradients.png"}
    assert {file.name for file in out.iterdir()} == names
    for file in out.iterdir():
        with Image.open(file) as picture:
            picture.load()
    assert main([*common, "--gradients"]) == 2
    assert main([*common, "--filters", "relu"]) == 2
