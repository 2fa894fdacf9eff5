"""The WindowData layer: sampling, geometry, margins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_layers import assert_resumes, batches, make_source, write_images

from fcnproto.data.images import resize_bilinear
from fcnproto.data.window_data import Window, place_window, read_windows
from fcnproto.errors import DataError, FcnprotoWarning, LayerError

HEADER = "# {index}\nim/image{index}.png\n3 20 30\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "im", 2, 20, 30)
    (tmp_path / "windows.txt").write_text(
        HEADER.format(index=0)
        + "3\n5 0.9 4 3 15 12\n2 0.1 0 0 29 19\n1 0.4 1 1 2 2\n"
        + HEADER.format(index=1)
        + "1\n7 0.8 0 10 9 19\n"
    )
    return tmp_path


def source(folder: Path, settings: str = "batch_size: 4 fg_fraction: 0.5", transform: str = "crop_size: 8") -> Any:
    return make_source(
        f'type: "WindowData" top: "d" top: "l" window_data_param {{ source: "windows.txt" bg_threshold: 0.3 {settings} }} '
        f"transform_param {{ {transform} }}",
        folder,
    )


def pixels(folder: Path, index: int) -> np.ndarray:
    return write_images(folder / "again", 2, 20, 30)[index][:, :, ::-1]


def test_file_is_sorted_by_overlap(folder: Path) -> None:
    lists = read_windows(str(folder / "windows.txt"), 0.5, 0.3)
    assert lists.foreground == [Window("im/image0.png", 5, 4, 3, 15, 12), Window("im/image1.png", 7, 0, 10, 9, 19)]
    assert lists.background == [Window("im/image0.png", 0, 0, 0, 29, 19)]


def test_backgrounds_then_foregrounds_warped(folder: Path) -> None:
    layer = source(folder)
    assert layer.top_shapes([]) == [(4, 3, 8, 8), (4,)]
    torch.manual_seed(1)
    expected = {
        0: resize_bilinear(pixels(folder, 0), 8, 8),
        5: resize_bilinear(pixels(folder, 0)[3:13, 4:16], 8, 8),
        7: resize_bilinear(pixels(folder, 1)[10:20, 0:10], 8, 8),
    }
    seen = set()
    for data, label in batches(layer, 6):
        assert list(label[:2]) == [0, 0] and set(label[2:]) <= {5, 7}
        seen |= set(label)
        for item, number in zip(data, label, strict=True):
            np.testing.assert_array_equal(item, expected[int(number)].transpose(2, 0, 1))
    assert seen == {0, 5, 7}


def test_foreground_share_is_rounded_down(folder: Path) -> None:
    ((_, label),) = batches(source(folder, "batch_size: 7 fg_fraction: 0.25"), 1)
    assert (label > 0).sum() == 1


def test_mean_scale_and_mirror(folder: Path) -> None:
    layer = source(
        folder,
        "batch_size: 6 fg_fraction: 0 scale: 0.5",
        "crop_size: 8 mirror: true mean_value: 10 mean_value: 20 mean_value: 30",
    )
    plain = resize_bilinear(pixels(folder, 0), 8, 8).transpose(2, 0, 1).astype(np.float32)
    plain = (plain - np.float32([[[10]], [[20]], [[30]]])) * np.float32(0.5)
    mirrored = 0
    torch.manual_seed(0)
    for item in batches(layer, 1)[0][0]:
        if (item == plain).all():
            continue
        np.testing.assert_array_equal(item, plain[:, :, ::-1])
        mirrored += 1
    assert 0 < mirrored < 6


def test_context_is_exactly_as_wide_as_asked() -> None:
    """A window well inside the image: widened by 16/(16-2*4) = 2 about its centre."""
    place = place_window(Window("x", 1, 40, 50, 47, 57), (200, 200), 16, 4, False)
    assert (place.x1, place.x2, place.y1, place.y2) == (36, 52, 46, 62)
    assert (place.height, place.width, place.above, place.left) == (16, 16, 0, 0)


def test_square_takes_the_longer_side() -> None:
    place = place_window(Window("x", 1, 40, 50, 59, 53), (200, 200), 10, 0, True)
    assert (place.x1, place.x2, place.y1, place.y2) == (40, 60, 42, 62)


def test_margin_outside_of_the_image_stays_zero(folder: Path) -> None:
    """Window (0, 10)-(9, 19) of a 30 x 20 image, context 2 of crop 8: doubled to (-5, 5)-(15, 25)."""
    layer = source(
        folder,
        "batch_size: 1 fg_fraction: 1 context_pad: 2 fg_threshold: 0.75",
        "crop_size: 8 mean_value: 200",
    )
    layer.windows = read_windows(str(folder / "windows.txt"), 0.75, 0.3)
    layer.windows.foreground = layer.windows.foreground[1:]
    ((data, _),) = batches(layer, 1)
    # 21 columns of which 5 lie left of the image, 6 rows below it: 8/21 crop pixels each.
    left, width, height = round(5 * 8 / 21), round(16 * 8 / 21), round(15 * 8 / 21)
    part = resize_bilinear(pixels(folder, 1)[5:20, 0:16], height, width).transpose(2, 0, 1).astype(np.float32) - 200
    expected = np.zeros((3, 8, 8), np.float32)
    expected[:, :height, left : left + width] = part
    np.testing.assert_array_equal(data[0], expected)


def test_resumes_where_it_stood(folder: Path) -> None:
    torch.manual_seed(0)
    assert_resumes(lambda: source(folder, transform="crop_size: 8 mirror: true"))


def test_cached_images_are_the_same(folder: Path) -> None:
    torch.manual_seed(4)
    plain = batches(source(folder), 3)
    torch.manual_seed(4)
    for cached, expected in zip(
        batches(source(folder, "batch_size: 4 fg_fraction: 0.5 cache_images: true"), 3), plain, strict=True
    ):
        np.testing.assert_array_equal(cached[0], expected[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("x 0", "expected '#' before image 0, found 'x'"),
        (HEADER.format(index=0) + "2\n5 0.9 4 3 15 12\n", "image 0: damaged or incomplete"),
        (HEADER.format(index=0) + "1\n5 high 4 3 15 12\n", "image 0: damaged or incomplete"),
        (HEADER.format(index=0) + "1\n0 0.9 4 3 15 12\n", "class 0, expected 1 or more"),
        ("# 0\nim/image0.png\n1 20 30\n0\n", "1 channels"),
        (HEADER.format(index=0) + "1\n5 0.9 4 3 15 12\n", "no background windows"),
        (HEADER.format(index=0) + "2\n5 0.9 4 3 15 12\n5 0.1 4 3 35 12\n", "does not lie in the image of 20 x 30"),
    ],
)
def test_bad_files(folder: Path, text: str, message: str) -> None:
    (folder / "windows.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        source(folder)()


def test_settings(folder: Path) -> None:
    with pytest.raises(LayerError, match="crop_size above 0"):
        source(folder, transform="")
    with pytest.raises(LayerError, match="crop_mode 'round'"):
        source(folder, 'batch_size: 1 crop_mode: "round"')
    with pytest.raises(DataError, match="context_pad 4 leaves nothing of crop_size 8"):
        source(folder, "batch_size: 1 context_pad: 4")()
    with pytest.warns(FcnprotoWarning, match=r"transform_param\.scale has no effect"):
        source(folder, transform="crop_size: 8 scale: 2")
