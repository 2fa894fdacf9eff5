"""The published data layers on miniature trees of each layout."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from data_layers import assert_resumes, batches, make_source
from PIL import Image

from fcnproto.errors import DataError, FcnprotoWarning, LayerError

scipy_io = pytest.importorskip("scipy.io")

SIZE = (9, 12)
IDS = ["one", "two", "three", "four"]
MEAN = (104.00699, 116.66877, 122.67892)


def picture(seed: int) -> np.ndarray:
    """A smooth RGB image, which JPEG keeps."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.stack([(seed * 40 + 5 * y + 3 * x * c) % 200 for c in range(3)], axis=2).astype(np.uint8)


def save_image(path: Path, image: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)


def save_mat(path: Path, **variables: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy_io.savemat(path, variables)


def save_list(path: Path, ids: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{id}\n" for id in ids))


def source(folder: Path, module: str, layer: str, count: int, /, **options: Any) -> Any:
    names = " ".join(f'top: "t{index}"' for index in range(count))
    text = repr(options).replace('"', '\\"')
    return make_source(
        f'type: "Python" {names} python_param {{ module: "{module}" layer: "{layer}" param_str: "{text}" }}', folder
    )


def bgr(path: Path, mean: tuple[float, ...]) -> np.ndarray:
    """What a layer must give for an image file: BGR less the mean, channels first."""
    image = np.array(Image.open(path).convert("RGB"), dtype=np.float64)[:, :, ::-1]
    return (image - np.array(mean)).transpose(2, 0, 1)[None]


def labels(seed: int, classes: int, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, SIZE).astype(dtype)


@pytest.fixture
def sbdd(tmp_path: Path) -> Path:
    for index, id in enumerate(IDS):
        save_image(tmp_path / "sbdd" / "img" / f"{id}.jpg", picture(index), quality=95)
        save_mat(tmp_path / "sbdd" / "cls" / f"{id}.mat", GTcls={"Segmentation": labels(index, 21), "Boundaries": 1})
    for split in ("train", "val"):
        save_list(tmp_path / "sbdd" / f"{split}.txt", IDS)
    return tmp_path


def test_sbdd(sbdd: Path) -> None:
    layer = source(sbdd, "voc_layers", "SBDDSegDataLayer", 2, sbdd_dir="sbdd", split="val", mean=MEAN)
    assert layer.top_shapes([]) == [(1, 3, None, None), (1, 1, None, None)]
    got = batches(layer, 5)
    for (data, label), index in zip(got, [0, 1, 2, 3, 0], strict=True):
        assert data.dtype == label.dtype == np.float32
        np.testing.assert_allclose(data, bgr(sbdd / "sbdd" / "img" / f"{IDS[index]}.jpg", MEAN), atol=1e-5)
        np.testing.assert_array_equal(label[0, 0], labels(index, 21))


def order(layer: Any, count: int) -> list[int]:
    """Which images come, told by their labels."""
    known = {labels(index, 21).tobytes(): index for index in range(len(IDS))}
    return [known[label.astype(np.uint8).tobytes()] for _, label in batches(layer, count)]


def test_train_splits_are_sampled_with_python_s_own_numbers(sbdd: Path) -> None:
    layer = source(sbdd, "voc_layers", "SBDDSegDataLayer", 2, sbdd_dir="sbdd", split="train", mean=MEAN, seed=1337)
    reference = random.Random(1337)
    assert order(layer, 12) == [reference.randint(0, 3) for _ in range(12)]
    for options in ({"randomize": False}, {"split": "val"}):
        settings = {"sbdd_dir": "sbdd", "split": "train", "mean": MEAN, "seed": 1337, **options}
        assert order(source(sbdd, "voc_layers", "SBDDSegDataLayer", 2, **settings), 5) == [0, 1, 2, 3, 0]


@pytest.mark.parametrize("split", ["train", "val"])
def test_resumes_where_it_stood(sbdd: Path, split: str) -> None:
    settings = {"sbdd_dir": "sbdd", "split": split, "mean": MEAN, "seed": 5}
    assert_resumes(lambda: source(sbdd, "voc_layers", "SBDDSegDataLayer", 2, **settings))


def test_workers_draw_their_own_images(sbdd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcnproto.data.published.worker", lambda: (1, 2))
    layer = source(sbdd, "voc_layers", "SBDDSegDataLayer", 2, sbdd_dir="sbdd", split="train", mean=MEAN, seed=1337)
    reference = random.Random(1338)
    assert order(layer, 8) == [reference.randint(0, 3) for _ in range(8)]


def test_voc(tmp_path: Path) -> None:
    root = tmp_path / "VOC2011"
    save_list(root / "ImageSets" / "Segmentation" / "seg11valid.txt", IDS[:2])
    for index, id in enumerate(IDS[:2]):
        save_image(root / "JPEGImages" / f"{id}.jpg", picture(index), quality=95)
        palette = Image.fromarray(np.where(labels(index, 22) == 21, 255, labels(index, 22)).astype(np.uint8))
        palette.putpalette([value % 256 for value in range(768)])
        (root / "SegmentationClass").mkdir(exist_ok=True)
        palette.save(root / "SegmentationClass" / f"{id}.png")
    layer = source(
        tmp_path, "voc_layers", "VOCSegDataLayer", 2, voc_dir="VOC2011", split="seg11valid", mean=MEAN, seed=1337
    )
    ((data, label), (_, second)) = batches(layer, 2)
    np.testing.assert_allclose(data, bgr(root / "JPEGImages" / "one.jpg", MEAN), atol=1e-5)
    expected = labels(0, 22).astype(int)
    np.testing.assert_array_equal(label[0, 0], np.where(expected == 21, 255, expected))
    assert 255 in second
    save_image(root / "SegmentationClass" / "one.png", picture(0))
    with pytest.raises(DataError, match=r"image 'one': .*one\.png: a label image has palette indices"):
        layer()


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_pascal_context(tmp_path: Path, version: str) -> None:
    voc, context = tmp_path / "pascal" / "VOC2010", tmp_path / "context"
    save_list(voc / "ImageSets" / "Main" / "val.txt", IDS[:1])
    save_image(voc / "JPEGImages" / "one.jpg", picture(0), quality=95)
    names = ["accordion", "aeroplane", "air conditioner", "table", "bedclothes", "cloth", "wood"]
    context.mkdir()
    (context / "labels.txt").write_text("".join(f"{i + 1}: {name}\n" for i, name in enumerate(names)))
    (context / "59_labels.txt").write_text("1: aeroplane\n2: diningtable\n3: bedcloth\n4: clothes\n5: wood\n")
    stored = np.random.default_rng(0).integers(0, 8, SIZE)
    path = context / "trainval" / "one.mat"
    if version == "5":
        save_mat(path, LabelMap=stored.astype(np.float64))
    else:
        path.parent.mkdir()
        with h5py.File(path, "w") as file:
            file["LabelMap"] = stored.T.astype(np.float64)
    layer = source(
        tmp_path,
        "pascalcontext_layers",
        "PASCALContextSegDataLayer",
        2,
        voc_dir="pascal",
        context_dir="context",
        split="val",
    )
    ((data, label),) = batches(layer, 1)
    np.testing.assert_allclose(data, bgr(voc / "JPEGImages" / "one.jpg", (104.007, 116.669, 122.679)), atol=1e-5)
    table = np.array([0, 0, 1, 0, 2, 3, 4, 5])  # by original label: aeroplane is 2, table 4, ...
    np.testing.assert_array_equal(label[0, 0], table[stored])
    (context / "59_labels.txt").write_text("1: unicorn\n")
    layer.close()
    with pytest.raises(DataError, match=r"labels\.txt: has no label 'unicorn'"):
        layer()


def test_sift_flow(tmp_path: Path) -> None:
    root, scenes = tmp_path / "sift", "spatial_envelope_256x256_static_8outdoorcategories"
    save_list(root / "test.txt", ["coast"])
    save_image(root / "Images" / scenes / "coast.jpg", picture(1), quality=95)
    semantic = labels(0, 34)
    geometric = np.random.default_rng(1).choice([-1, 0, 1, 2, 3], SIZE).astype(np.int16)
    save_mat(root / "SemanticLabels" / scenes / "coast.mat", S=semantic)
    save_mat(root / "GeoLabels" / scenes / "coast.mat", S=geometric)
    layer = source(tmp_path, "siftflow_layers", "SIFTFlowSegDataLayer", 3, siftflow_dir="sift", split="test", seed=1337)
    assert layer.top_shapes([]) == [(1, 3, None, None), (1, 1, None, None), (1, 1, None, None)]
    ((data, sem, geo),) = batches(layer, 1)
    np.testing.assert_allclose(
        data, bgr(root / "Images" / scenes / "coast.jpg", (114.578, 115.294, 108.353)), atol=1e-5
    )
    np.testing.assert_array_equal(sem[0, 0], np.where(semantic == 0, 255, semantic.astype(int) - 1))
    np.testing.assert_array_equal(geo[0, 0], np.where(geometric <= 0, 255, geometric - 1))
    assert {255, 0, 1, 2} == set(geo.ravel())


@pytest.fixture
def nyud(tmp_path: Path) -> Path:
    root = tmp_path / "nyud"
    save_list(root / "test.txt", ["5001"])
    save_image(root / "data" / "images" / "img_5001.png", picture(0))
    save_image(root / "data" / "hha" / "img_5001.png", picture(1))
    save_image(root / "data" / "depth" / "img_5001.png", (picture(2)[:, :, 1].astype(np.uint16) + 1) * 50)
    save_mat(root / "segmentation" / "img_5001.mat", segmentation=labels(0, 41))
    return tmp_path


def test_nyud(nyud: Path) -> None:
    tops = ["hha", "color", "label", "depth"]
    layer = source(nyud, "nyud_layers", "NYUDSegDataLayer", 4, nyud_dir="nyud", split="test", tops=tops, seed=1337)
    assert layer.top_shapes([]) == [(1, channels, None, None) for channels in (3, 3, 1, 1)]
    ((hha, color, label, depth),) = batches(layer, 1)
    images = nyud / "nyud" / "data"
    np.testing.assert_allclose(color, bgr(images / "images" / "img_5001.png", (116.190, 97.203, 92.318)), atol=1e-5)
    unturned = bgr(images / "hha" / "img_5001.png", (118.477, 94.076, 132.431))[:, ::-1]
    np.testing.assert_allclose(hha, unturned, atol=1e-5)
    np.testing.assert_allclose(depth[0, 0], np.log((picture(2)[:, :, 1] + 1.0) * 50) - 7.844, atol=1e-5)
    stored = labels(0, 41).astype(int)
    np.testing.assert_array_equal(label[0, 0], np.where(stored == 0, 255, stored - 1))


def test_nyud_refuses_holes_and_unknown_tops(nyud: Path) -> None:
    save_image(nyud / "nyud" / "data" / "depth" / "img_5001.png", np.zeros(SIZE, np.uint16))
    layer = source(nyud, "nyud_layers", "NYUDSegDataLayer", 1, nyud_dir="nyud", split="test", tops=["depth"])
    with pytest.raises(DataError, match=r"img_5001\.png: holds depths of 0"):
        layer()
    with pytest.raises(LayerError, match="expected a list of color, depth, hha, label"):
        source(nyud, "nyud_layers", "NYUDSegDataLayer", 1, nyud_dir="nyud", split="test", tops=["colour"])


def test_missing_and_damaged_files_are_named(sbdd: Path) -> None:
    settings = {"sbdd_dir": "sbdd", "mean": MEAN}
    with pytest.raises(DataError, match=r"none\.txt: not a readable list of images"):
        source(sbdd, "voc_layers", "SBDDSegDataLayer", 2, split="none", **settings)()
    layer = source(sbdd, "voc_layers", "SBDDSegDataLayer", 2, split="val", **settings)
    for name, content in (("cls/one.mat", b"MATLAB 5.0 MAT-file" + bytes(200)), ("img/one.jpg", b"\xff\xd8\xff")):
        kept = (sbdd / "sbdd" / name).read_bytes()
        (sbdd / "sbdd" / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"layer 'source' \(Python\): image 'one': .*{name}"):
            layer()
        (sbdd / "sbdd" / name).unlink()
        with pytest.raises(DataError, match=rf"{name}: no such file"):
            layer()
        (sbdd / "sbdd" / name).write_bytes(kept)
    save_mat(sbdd / "sbdd" / "cls" / "one.mat", other=np.zeros((2, 2)))
    with pytest.raises(DataError, match=r"one\.mat: has no variable GTcls\.Segmentation"):
        layer()
    save_mat(sbdd / "sbdd" / "cls" / "one.mat", GTcls={"Segmentation": labels(0, 21)})
    assert layer()[0].shape == (1, 3, *SIZE)


@pytest.mark.parametrize(
    ("param_str", "tops", "message"),
    [
        ("__import__('os').getcwd()", 2, "not a Python dict literal"),
        ("['split']", 2, "not a Python dict literal"),
        ("{'split': 'val'}", 2, "lacks 'sbdd_dir', 'mean'"),
        ("{'split': 3, 'sbdd_dir': 'x', 'mean': (1, 2, 3)}", 2, "'split' must be a text"),
        ("{'split': 'val', 'sbdd_dir': 'x', 'mean': (1, 2, 3)}", 3, "has 3 tops, expected 2"),
        ("{'split': 'val', 'sbdd_dir': 'x', 'mean': (1, 2)}", 2, "'mean' must be one number or three"),
        ("{'split': 'val', 'sbdd_dir': 'x', 'mean': 'bgr'}", 2, "'mean' must be one number or three"),
        ("{'split': 'val', 'sbdd_dir': 'x', 'mean': (1, 2, 3), 'seed': 'a'}", 2, "'seed' must be a whole number"),
    ],
)
def test_bad_settings(param_str: str, tops: int, message: str) -> None:
    names = " ".join(f'top: "t{index}"' for index in range(tops))
    with pytest.raises(LayerError, match=message):
        make_source(
            f'type: "Python" {names} python_param {{ module: "voc_layers" layer: "SBDDSegDataLayer" '
            f'param_str: "{param_str}" }}'
        )


def test_matlab_labels_need_no_scipy(sbdd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    assert len(source(sbdd, "voc_layers", "SBDDSegDataLayer", 2, sbdd_dir="sbdd", split="val", mean=MEAN)()) == 2


def test_unknown_options_are_named() -> None:
    with pytest.warns(FcnprotoWarning, match="'sed' has no effect"):
        source(Path(), "voc_layers", "SBDDSegDataLayer", 2, sbdd_dir="x", split="val", mean=MEAN, sed=1)


def test_position_is_json_of_reasonable_size(sbdd: Path) -> None:
    layer = source(sbdd, "voc_layers", "SBDDSegDataLayer", 2, sbdd_dir="sbdd", split="train", mean=MEAN, seed=1)
    batches(layer, 2)
    assert len(json.dumps(layer.get_position())) < 10_000
    with pytest.raises(DataError, match="expected index and sampler"):
        layer.set_position({"row": 1})
