"""The picture of a fine-tuning's result: held-out images with their truth and what the net makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from fcnproto.data.datasets import VOID, ImageFolder
from fcnproto.finetune.nets import Base
from fcnproto.images import to_blob
from fcnproto.net import Net
from fcnproto.pictures import beside, label_image, legend, overlay
from fcnproto.zoo import palette

_SIDE, _GAP, _TITLE = 240, 6, 24
_TITLES = ("image", "truth", "prediction", "overlay")


def sample_picture(net: Net, base: Base, folder: ImageFolder, classes: Sequence[str], count: int) -> Image.Image:
    """A row for each of the first `count` images: image, truth (void is light), prediction, overlay; with a legend."""
    ids = folder.ids[:count]
    size = _SIDE + _GAP
    grid = Image.new("RGB", (4 * size + _GAP, _TITLE + len(ids) * size + _GAP), "white")
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(14)
    for column, title in enumerate(_TITLES):
        draw.text((_GAP + column * size + _SIDE / 2, _TITLE / 2), title, "black", font, anchor="mm")
    for row, id in enumerate(ids):
        image, mask = folder.read(id)
        with torch.no_grad():
            data = torch.from_numpy(to_blob(image, folder.preprocessing))[None].to(net.device)
            labels = net({base.image: data})[base.score][0].argmax(0).cpu().numpy().astype(np.uint8)
        colours = palette()
        colours[VOID] = (224, 224, 192)
        panels = (image, label_image(mask, colours), label_image(labels), overlay(image, labels, bare=()))
        for column, panel in enumerate(panels):
            small = _fitted(panel.convert("RGB"), column in (1, 2))
            left, top = _GAP + column * size, _TITLE + row * size
            grid.paste(small, (left + (_SIDE - small.width) // 2, top + (_SIDE - small.height) // 2))
    entries = list(zip(classes, palette(len(classes)), strict=True))
    return beside(grid, legend(entries, grid.height, text_size=14))


def _fitted(panel: Image.Image, labels: bool) -> Image.Image:
    """The panel scaled to the grid's squares."""
    factor = _SIDE / max(panel.size)
    size = (max(1, round(panel.width * factor)), max(1, round(panel.height * factor)))
    return panel.resize(size, Image.Resampling.NEAREST if labels else Image.Resampling.BILINEAR)
