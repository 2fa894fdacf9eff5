"""Overlays, palette images and legends."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fcnproto.pictures.labels import beside, label_image, legend, overlay


def test_label_image_keeps_every_label() -> None:
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = label_image(labels)
    assert image.mode == "P"
    assert (np.array(image) == labels).all()
    colours = np.array(image.convert("RGB")).reshape(-1, 3)
    # entries of the VOC development kit's colour map
    assert colours[[0, 1, 2, 15, 20, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192],
    ]  # fmt: skip
    own = label_image(labels, [(1, 2, 3), (4, 5, 6)]).convert("RGB")
    assert own.getpixel((1, 0)) == (4, 5, 6)


def test_overlay_mixes_and_leaves_background_bare() -> None:
    image = Image.new("RGB", (20, 20), (100, 100, 100))
    labels = np.zeros((20, 20), dtype=np.uint8)
    labels[:, 10:] = 1
    mixed = np.array(overlay(image, labels, opacity=0.5))
    assert mixed[5, 2].tolist() == [100, 100, 100]
    assert mixed[5, 15].tolist() == [114, 50, 50]  # halfway to (128, 0, 0)
    assert (mixed[:, 10] > mixed[:, 15]).all()  # the border is light
    mixed = np.array(overlay(image, labels, bare=(), opacity=0.5))
    assert mixed[5, 2].tolist() == [50, 50, 50]


def test_legend_shows_every_colour_and_grows_sideways() -> None:
    entries = [(f"class {k}", (k * 10, 255 - k * 10, 7)) for k in range(25)]
    for height in (10, 100, 2000):
        strip = legend(entries, height)
        assert strip.height >= height
        seen = set(map(tuple, np.array(strip).reshape(-1, 3).tolist()))
        assert all(colour in seen for _, colour in entries)
    assert legend(entries, 100).width > legend(entries, 2000).width
    assert legend([], 50).height >= 50


def test_beside() -> None:
    joined = beside(Image.new("RGB", (3, 2), "red"), Image.new("RGB", (1, 5), "blue"))
    assert joined.size == (4, 5)
    assert joined.getpixel((0, 4)) == (255, 255, 255)
    assert joined.getpixel((3, 4)) == (0, 0, 255)
