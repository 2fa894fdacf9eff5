"""The picture of a fine-tuning's result: held-out images with their truth and what the net makes of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from fcnproto.data.datasets import VOID, ImageFolders
from fcnproto.escaping import printable
from fcnproto.finetune.nets import Base
from fcnproto.images import to_blob, visible
from fcnproto.net import Net
from fcnproto.pictures.labels import beside, label_image, legend, overlay
from fcnproto.preprocessing import background_labels
from fcnproto.zoo import palette

_SIDE, _GAP, _TITLE = 240, 6, 24

Panel = tuple[Image.Image, bool]
"""A picture, and whether its colours are labels, which must not be mixed when it is scaled."""


def sample_picture(
    net: Net, base: Base, data: ImageFolders, classes: Mapping[str, tuple[str, ...]], count: int
) -> Image.Image:
    """A row for each of the first `count` images: the images, and for each map of scores (with its names in `classes`)
    truth (void is light), prediction and overlay; with a legend of each."""
    ids = data.ids[:count]
    several = len(base.scores) > 1
    titles = list(base.images) if len(base.images) > 1 else ["image"]
    for one in base.scores:
        titles += [f"{title} {one.label}" if several else title for title in ("truth", "prediction", "overlay")]
    size = _SIDE + _GAP
    grid = Image.new("RGB", (len(titles) * size + _GAP, _TITLE + len(ids) * size + _GAP), "white")
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(14)
    for column, title in enumerate(titles):
        draw.text((_GAP + column * size + _SIDE / 2, _TITLE / 2), printable(title, 30), "black", font, anchor="mm")
    for row, id in enumerate(ids):
        for column, (panel, labels) in enumerate(_panels(net, base, data, classes, id)):
            small = _fitted(panel.convert("RGB"), labels)
            left, top = _GAP + column * size, _TITLE + row * size
            grid.paste(small, (left + (_SIDE - small.width) // 2, top + (_SIDE - small.height) // 2))
    for names in classes.values():
        entries = list(zip(names, palette(len(names)), strict=True))
        grid = beside(grid, legend(entries, grid.height, text_size=14))
    return grid


def _panels(net: Net, base: Base, data: ImageFolders, classes: Mapping[str, tuple[str, ...]], id: str) -> list[Panel]:
    """The panels of an item, from left to right."""
    images, masks = data.scene(id)
    blobs = {key: to_blob(image, data.images[key].preprocessing) for key, image in images.items()}
    with torch.no_grad():
        outputs = net({key: torch.from_numpy(blob)[None].to(net.device) for key, blob in blobs.items()})
    shown = [visible(image) for image in images.values()]
    panels: list[Panel] = [(image, False) for image in shown]
    colours = palette()
    colours[VOID] = (224, 224, 192)
    for one in base.scores:
        labels = outputs[one.blob][0].argmax(0).cpu().numpy().astype(np.uint8)
        panels += [(label_image(masks[one.label], colours), True), (label_image(labels), True)]
        panels.append((overlay(shown[0], labels, bare=background_labels(classes[one.blob])), False))
    return panels


def _fitted(panel: Image.Image, labels: bool) -> Image.Image:
    """The panel scaled to the grid's squares."""
    factor = _SIDE / max(panel.size)
    size = (max(1, round(panel.width * factor)), max(1, round(panel.height * factor)))
    return panel.resize(size, Image.Resampling.NEAREST if labels else Image.Resampling.BILINEAR)
