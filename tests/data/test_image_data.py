"""The ImageData layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_layers import assert_resumes, batches, make_source, write_images

from fcnproto.data.image_data import read_image_list
from fcnproto.data.images import resize_bilinear
from fcnproto.errors import DataError, FcnprotoWarning, LayerError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "im", 5, 12, 16)
    (tmp_path / "list.txt").write_text("".join(f"image{index}.png {index * 7}\n" for index in range(5)))
    return tmp_path


def source(folder: Path, settings: str = "batch_size: 2", transform: str = "", train: bool = False) -> Any:
    return make_source(
        f'type: "ImageData" top: "d" top: "l" image_data_param {{ source: "list.txt" root_folder: "im/" {settings} }} '
        f"transform_param {{ {transform} }}",
        folder,
        train,
    )


def bgr(folder: Path, indices: list[int]) -> np.ndarray:
    images = write_images(folder / "again", 5, 12, 16)
    return np.stack([images[index].transpose(2, 0, 1)[::-1] for index in indices])


def test_images_in_order_wrapping_around(folder: Path) -> None:
    layer = source(folder)
    assert layer.top_shapes([]) == [(2, 3, 12, 16), (2,)]
    got = batches(layer, 3)
    np.testing.assert_array_equal(np.concatenate([data for data, _ in got]), bgr(folder, [0, 1, 2, 3, 4, 0]))
    np.testing.assert_array_equal(np.concatenate([label for _, label in got]), [0, 7, 14, 21, 28, 0])


def test_resize_gray_crop_and_mean(folder: Path) -> None:
    settings = "batch_size: 1 new_height: 9 new_width: 7 is_color: false"
    layer = source(folder, settings, "crop_size: 5 mean_value: 100 scale: 0.5")
    assert layer.top_shapes([]) == [(1, 1, 5, 5), (1,)]
    color = bgr(folder, [0])[0].astype(int)
    gray = ((3737 * color[0] + 19234 * color[1] + 9797 * color[2]) >> 15).astype(np.uint8)  # libpng's luminance
    small = resize_bilinear(gray[:, :, None], 9, 7)[2:7, 1:6, 0]
    ((data, _),) = batches(layer, 1)
    np.testing.assert_array_equal(data[0, 0], (small.astype(np.float32) - 100) * np.float32(0.5))
    assert source(folder, "batch_size: 4 new_height: 9 new_width: 7").top_shapes([]) == [(4, 3, 9, 7), (4,)]


def test_shuffle_gives_every_image_once_a_round_in_new_orders(folder: Path) -> None:
    torch.manual_seed(2)
    layer = source(folder, "batch_size: 5 shuffle: true")
    orders = [list(label) for _, label in batches(layer, 4)]
    assert all(sorted(order) == [0, 7, 14, 21, 28] for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    torch.manual_seed(2)
    assert [list(label) for _, label in batches(source(folder, "batch_size: 5 shuffle: true"), 4)] == orders


def test_rand_skip_starts_below_it(folder: Path) -> None:
    starts = set()
    for seed in range(30):
        torch.manual_seed(seed)
        starts.add(int(batches(source(folder, "batch_size: 1 rand_skip: 3"), 1)[0][1][0]) // 7)
    assert starts == {0, 1, 2}


@pytest.mark.parametrize("settings", ["batch_size: 2", "batch_size: 2 shuffle: true rand_skip: 2"])
def test_resumes_where_it_stood(folder: Path, settings: str) -> None:
    torch.manual_seed(0)
    assert_resumes(lambda: source(folder, settings, "mirror: true crop_size: 6", train=True))


def test_workers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcnproto.layers.source.worker", lambda: (1, 2))
    labels = [label for _, label in batches(source(folder, train=True), 2)]
    np.testing.assert_array_equal(np.concatenate(labels) / 7, [1, 3, 0, 2])
    shuffled = batches(source(folder, "batch_size: 5 shuffle: true", train=True), 1)[0][1]
    assert sorted(shuffled / 7) == [0, 1, 2, 3, 4]


def test_list_lines(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"a b.png 3\r\n\nc.png -1\nd.png 4x\n")
    assert read_image_list(str(path)) == [("a b.png", 3), ("c.png", -1), ("d.png", 4)]
    path.write_text("a.png 1\nb.png\n")
    with pytest.raises(DataError, match=r"list\.txt:2: expected a path, a blank and a whole number, found 'b\.png'"):
        read_image_list(str(path))
    path.write_text("\n")
    with pytest.raises(DataError, match="empty"):
        read_image_list(str(path))


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "list.txt").write_text("none.png 1\n")
    layer = source(folder)
    assert layer.top_shapes([]) == [(2, 3, None, None), (2,)]
    with pytest.raises(DataError, match=r"layer 'source' \(ImageData\): image 'im/none\.png' not found"):
        layer()
    (folder / "list.txt").unlink()
    with pytest.raises(DataError, match=r"image_data_param\.source 'list\.txt' not found"):
        source(folder)()


def test_images_of_several_sizes_need_a_common_one(folder: Path) -> None:
    write_images(folder / "im" / "other", 1, 5, 6)
    (folder / "list.txt").write_text("image0.png 1\nother/image0.png 2\n")
    with pytest.raises(DataError, match=r"other/image0\.png has shape \(3, 5, 6\), others of the batch \(3, 12, 16\)"):
        source(folder)()
    assert [data.shape for data, _ in batches(source(folder, "batch_size: 1"), 2)] == [(1, 3, 12, 16), (1, 3, 5, 6)]


def test_settings(folder: Path) -> None:
    with pytest.raises(LayerError, match="both of new_height and new_width"):
        source(folder, "new_height: 3")
    with pytest.warns(FcnprotoWarning, match=r"image_data_param\.scale has no effect"):
        source(folder, "scale: 2")
    torch.manual_seed(0)
    with pytest.raises(DataError, match="has 5 lines"):
        source(folder, "batch_size: 1 rand_skip: 1000000")()
