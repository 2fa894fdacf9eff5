"""The data layer for images and masks, and augmentation."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_layers import assert_resumes, batches, make_source
from PIL import Image
from test_datasets import folder
from test_published_layers import bgr, labels

from fcnproto.data.augmentation import Augmentation, parse_augmentation
from fcnproto.errors import DataError, LayerError, UsageError


def source(root: Path, **options: Any) -> Any:
    settings = {"images": "images", "masks": "masks", "split": "list.txt", "classes": 3, "mean": (1, 2, 3), **options}
    (root / "list.txt").write_text("deep/b\na\n")
    text = repr(settings).replace('"', '\\"')
    return make_source(
        'type: "Python" top: "data" top: "label" python_param { module: "fcnproto_layers" layer: "ImageMaskLayer" '
        f'param_str: "{text}" }}',
        root,
    )


def test_images_and_masks_in_the_order_of_the_list(tmp_path: Path) -> None:
    images, _ = folder(tmp_path)
    layer = source(tmp_path)
    assert layer.top_shapes([]) == [(1, 3, None, None), (1, 1, None, None)]
    first, second, third = batches(layer, 3)
    np.testing.assert_allclose(first[0], bgr(images / "deep" / "b.jpg", (1, 2, 3)), atol=1e-5)
    expected = labels(1, 4).astype(int)
    np.testing.assert_array_equal(first[1][0, 0], np.where(expected == 3, 255, expected))
    np.testing.assert_array_equal(third[1], first[1])
    assert not np.array_equal(second[1], first[1])


def test_colours_and_errors(tmp_path: Path) -> None:
    images, _ = folder(tmp_path, "colour")
    colours = [((0, 0, 0), 0), ((255, 0, 0), 1), ((18, 52, 86), 2), ((9, 9, 9), 255)]
    expected = labels(1, 4).astype(int)
    layer = source(tmp_path, colours=colours)
    np.testing.assert_array_equal(batches(layer, 1)[0][1][0, 0], np.where(expected == 3, 255, expected))
    with pytest.raises(DataError, match=r"image 'deep/b': .*b\.png: colour \(9, 9, 9\) at row"):
        source(tmp_path, colours=colours[:3])()
    (images / "deep" / "b.jpg").unlink()
    with pytest.raises(DataError, match="no image called 'deep/b'"):
        source(tmp_path, colours=colours)()
    for wrong, message in (
        ({"classes": 1}, "'classes' must be"),
        ({"mean": 3}, "'mean' must be"),
        ({"augment": {"x": 1}}, "x"),
    ):
        with pytest.raises(LayerError, match=message):
            source(tmp_path, **wrong)


def test_random_and_augmented_runs_resume(tmp_path: Path) -> None:
    folder(tmp_path)
    options = {"randomize": True, "seed": 4, "augment": {"mirror": True, "scale": 0.5, "colour": 0.2, "crop": (7, 8)}}
    assert_resumes(lambda: source(tmp_path, **options))
    sizes = {batch[0].shape for batch in batches(source(tmp_path, **options), 20)}
    assert all(shape[2] <= 16 and shape[3] <= 16 for shape in sizes)


def test_mirror_keeps_image_and_mask_together() -> None:
    mask = labels(0, 3)
    image = Image.fromarray(np.repeat(mask[:, :, None] * 60, 3, axis=2))
    seen = set()
    for seed in range(8):
        found, turned = Augmentation(mirror=True).apply(image, mask, random.Random(seed))
        np.testing.assert_array_equal(np.asarray(found)[:, :, 0], turned * 60)
        seen.add(np.array_equal(turned, mask))
    assert seen == {True, False}


def test_crop_and_scale() -> None:
    mask = np.full((40, 60), 255, np.uint8)
    mask[:, 30:] = 1
    image = Image.fromarray(np.repeat(mask[:, :, None], 3, axis=2))
    for seed in range(10):
        found, cut = Augmentation(crop=(20, 100)).apply(image, mask, random.Random(seed))
        assert found.size == (60, 20) and cut.shape == (20, 60)
        found, cut = Augmentation(crop=(20, 25)).apply(image, mask, random.Random(seed))
        np.testing.assert_array_equal(np.asarray(found)[:, :, 0], cut)
    sides = [Augmentation(scale=1.0).apply(image, mask, random.Random(seed))[1].shape[1] for seed in range(200)]
    assert 30 <= min(sides) < 34 and 110 < max(sides) <= 120 and 55 < np.median(sides) < 66
    colours = np.asarray(Augmentation(colour=0.5).apply(image, mask, random.Random(0))[0])
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 2 and not np.array_equal(colours, np.asarray(image))


def test_settings_from_texts() -> None:
    parsed = parse_augmentation("mirror,scale=0.3,crop=200x300,colour")
    assert parsed == Augmentation(True, 0.3, (200, 300), 0.25)
    assert str(parse_augmentation("mirror,crop=9")) == "mirror, crop (9, 9)" and not parse_augmentation("none")
    for text in ("flip", "scale=x", "crop", "scale=9"):
        with pytest.raises(UsageError, match="augmentation"):
            parse_augmentation(text)
