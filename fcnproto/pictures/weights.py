"""Pictures of what a net has learned and does: filters, activations, and how large gradients are along its layers.

Functions take tensors or a net that has run, and give Pillow images. Those of label maps
are in `pictures/labels.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fcnproto.errors import GraphError
from fcnproto.escaping import printable
from fcnproto.net import Net

Array = npt.NDArray[Any]

_GAP = 1
_LARGEST_CELL, _PICTURE, _LONGEST_NAME = 64, 1024, 80
_INK, _BAR, _PEAK, _GRID = (40, 40, 40), (91, 141, 196), (214, 120, 60), (228, 228, 228)


def filter_grid(weight: Tensor, *, bgr: bool = True) -> Image.Image:
    """The filters (outputs, inputs, height, width) of a layer, each in a cell, scaled to its own range.

    Those of three inputs are shown in colour (BGR by Caffe's custom), others as one cell for each input, 0 being grey.
    """
    values = weight.detach().float().cpu().numpy()
    if values.ndim != 4:
        raise GraphError(f"filters of shape {tuple(weight.shape)} can't be shown: (outputs, inputs, height, width) are")
    if values.shape[1] == 3:
        cells = values[:, ::-1] if bgr else values
        low = cells.min((1, 2, 3), keepdims=True)
        spread = cells.max((1, 2, 3), keepdims=True) - low
        return _grid(((cells - low) / np.where(spread == 0, 1, spread)).transpose(0, 2, 3, 1))
    cells = values.reshape(-1, *values.shape[2:])
    largest = np.abs(cells).max((1, 2), keepdims=True)
    return _grid((cells / np.where(largest == 0, 1, largest) + 1) / 2)


def activation_grid(blob: Tensor) -> Image.Image:
    """The channels of the first item of a blob (N, C, H, W), each in a cell from black (its least) to white."""
    values = blob.detach().float().cpu().numpy()
    if values.ndim != 4 or 0 in values.shape:
        raise GraphError(f"a blob of shape {tuple(blob.shape)} can't be shown as a grid: (N, C, H, W) can")
    cells = values[0]
    low = cells.min((1, 2), keepdims=True)
    spread = cells.max((1, 2), keepdims=True) - low
    return _grid((cells - low) / np.where(spread == 0, 1, spread))


def _grid(cells: Array) -> Image.Image:
    """Cells (count, height, width) or (count, height, width, 3) of 0..1 in a grid about as wide as high."""
    count, height, width = cells.shape[:3]
    columns = max(1, min(count, math.ceil(math.sqrt(count * height / width))))
    rows = math.ceil(count / columns)
    pixels = np.full((rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, *cells.shape[3:]), 0.85)
    for number in range(count):
        y, x = (number // columns) * (height + _GAP) + _GAP, (number % columns) * (width + _GAP) + _GAP
        pixels[y : y + height, x : x + width] = cells[number]
    image = Image.fromarray(np.rint(np.nan_to_num(pixels).clip(0, 1) * 255).astype(np.uint8))
    factor = max(1, min(_LARGEST_CELL // max(height, width), _PICTURE // max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


@dataclass(frozen=True)
class Flow:
    """The gradient of one parameter blob after a backward pass: mean and largest absolute value."""

    name: str
    mean: float
    largest: float


def gradient_flow(net: Net) -> list[Flow]:
    """The gradients of all parameters that have one, in the order of layers. `GraphError` if none has."""
    flows = []
    for layer in dict.fromkeys(net.layers):
        for name in layer.blob_names:
            gradient = getattr(layer, name).grad
            if gradient is not None and gradient.numel():
                size = gradient.detach().abs()
                flows.append(Flow(f"{layer.name}.{name}", float(size.mean(dtype=torch.float64)), float(size.max())))
    if not flows:
        raise GraphError(f"{net.graph.title}: no parameter has a gradient; run a backward pass first")
    return flows


def flow_picture(flows: list[Flow], title: str = "gradients") -> Image.Image:
    """Bars of the mean absolute gradient on a logarithmic scale, with a mark at the largest; zero has no bar."""
    font = ImageFont.load_default(12)
    labels = [printable(flow.name, _LONGEST_NAME) for flow in flows]
    names = max(map(font.getlength, labels))
    left, top, line, width = int(names) + 20, 40, 18, 520
    image = Image.new("RGB", (left + width + 30, top + line * len(flows) + 34), "white")
    draw = ImageDraw.Draw(image)
    positive = [value for flow in flows for value in (flow.mean, flow.largest) if 0 < value < math.inf]
    low = math.floor(math.log10(min(positive))) if positive else -1
    high = max(low + 1, math.ceil(math.log10(max(positive)))) if positive else 0

    def place(value: float) -> float:
        if not 0 < value < math.inf:
            return left if value == 0 else left + width
        return left + width * (math.log10(value) - low) / (high - low)

    draw.text(
        (left, 10),
        f"{printable(title, _LONGEST_NAME)}: mean (bar) and largest (mark) absolute value",
        fill=_INK,
        font=font,
    )
    every = max(1, math.ceil((high - low) / 8))
    for power in range(low, high + 1, every):
        x = place(10.0**power)
        draw.line([(x, top - 6), (x, image.height - 26)], fill=_GRID)
        draw.text((x, image.height - 14), f"1e{power}", fill=_INK, font=font, anchor="mm")
    for number, flow in enumerate(flows):
        y = top + line * number
        draw.text((left - 8, y + line / 2), labels[number], fill=_INK, font=font, anchor="rm")
        if flow.mean != 0:
            draw.rectangle([(left, y + 4), (place(flow.mean), y + line - 4)], fill=_BAR)
        if flow.largest != 0:
            draw.rectangle([(place(flow.largest) - 1, y + 2), (place(flow.largest) + 1, y + line - 2)], fill=_PEAK)
    return image
