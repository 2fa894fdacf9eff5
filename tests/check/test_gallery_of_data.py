"""A gallery of images and masks with which nothing can be learned; the healthy twin of all of them gives nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sick_nets import DUMMY, LOSS, SCORE, SOLVER, examined, grave, one, write

from fcnproto import load
from fcnproto.cli._main import main
from fcnproto.data.writing import new_database
from fcnproto.errors import UsageError
from fcnproto.schema import caffe_pb2
from fcnproto.zoo import palette

SIZE = (48, 60)


def scene(seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """An image (RGB) with a disc of each class but the first, and its labels."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    labels = np.zeros(SIZE, np.uint8)
    for label in range(1, classes):
        row, column = 14 + draw.integers(20), 12 + 25 * (label - 1) + draw.integers(8)
        labels[(rows - row) ** 2 + (columns - column) ** 2 < 60] = label
    colours = np.array([[30, 60, 90], [200, 40, 40], [60, 220, 120]])
    return (colours[labels] + draw.integers(0, 12, (*SIZE, 3))).astype(np.uint8), labels


def draw(folder: Path, count: int = 4, classes: int = 3) -> tuple[Path, Path]:
    """Folders of images and masks."""
    images, masks = folder / "images", folder / "masks"
    images.mkdir(parents=True)
    masks.mkdir()
    for seed in range(count):
        pixels, labels = scene(seed, classes)
        Image.fromarray(pixels).save(images / f"{seed}.png")
        Image.fromarray(labels).save(masks / f"{seed}.png")
    return images, masks


def change(folder: Path, how: Any) -> None:
    """Rewrite every image of a folder."""
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            changed = how(np.asarray(image))
        (changed if isinstance(changed, Image.Image) else Image.fromarray(changed)).save(path)


def moved(labels: np.ndarray) -> np.ndarray:
    return np.roll(labels, (3, -5), (0, 1))


def smooth(labels: np.ndarray) -> Image.Image:
    small = Image.fromarray((labels * 2).astype(np.uint8))  # 0, 2, 4: there is room between
    return small.resize((33, 27), Image.Resampling.BILINEAR).resize(SIZE[::-1], Image.Resampling.BILINEAR)


def coloured(labels: np.ndarray) -> np.ndarray:
    return np.array(palette(3), np.uint8)[labels]


def dark(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 16)


# code: (level, how the images change, how the masks do, what is said of where and what)
FOLDERS: dict[str, tuple[str, Any, Any, str]] = {
    "class-never-occurs": ("fault", None, lambda m: np.minimum(m, 1), "'dog' (label 2)"),
    "rare-class": ("suspect", None, lambda m: np.where((m == 2) & (np.cumsum(m == 2).reshape(m.shape) > 2), 0, m).astype("uint8"), "'dog'"),
    "label-out-of-range": ("fault", None, lambda m: m + np.uint8(1), "labels 3 "),
    "void-not-ignored": ("fault", None, lambda m: np.where(np.arange(60) < 3, 255, m).astype("uint8"), "no ignore_label"),
    "colour-masks": ("suspect", None, coloured, "3 colours"),
    "interpolated-masks": ("suspect", None, smooth, "have strips of others between"),
    "size-mismatch": ("suspect", lambda i: i[:-4], None, "60x44"),
    "shifted-masks": ("suspect", None, moved, "moved by +5 pixels to the right and -3 down"),
    "duplicates": ("suspect", lambda i: scene(0)[0], lambda m: scene(0)[1], "0 and 1 are the same image"),
    "dark-images": ("suspect", dark, None, "16 bits"),
}  # fmt: skip


def test_strips_between_two_classes(tmp_path: Path) -> None:
    """Masks that were enlarged much have broad strips; a class that lies between two others is none, nor is noise."""
    images, masks = draw(tmp_path)
    rng = np.random.default_rng(3)
    layers = np.repeat([2] * 20 + [1] * 4 + [0] * 24, 60).reshape(SIZE)  # a wall, a kerb, a road
    cases = {
        "broad": lambda m: Image.fromarray((m * 2).astype(np.uint8)).resize((20, 16)).resize(SIZE[::-1], Image.Resampling.BILINEAR),
        "kerb": lambda m: np.where(np.arange(60) < 30, layers, m * 0).astype(np.uint8),
        "noise": lambda m: rng.integers(0, 3, SIZE).astype(np.uint8),
    }  # fmt: skip
    for name, how in cases.items():
        for seed in range(4):
            made = how(scene(seed)[1])
            (made if isinstance(made, Image.Image) else Image.fromarray(made)).save(masks / f"{seed}.png")
        codes = [finding.code for finding in examined(write(tmp_path), images=images, masks=masks)]
        assert ("interpolated-masks" in codes) is (name == "broad"), name


@pytest.mark.parametrize("code", [None, *FOLDERS])
def test_folders(code: str | None, tmp_path: Path) -> None:
    images, masks = draw(tmp_path)
    path = write(tmp_path)
    options: dict[str, Any] = {"images": images, "masks": masks, "classes": ["background", "cat", "dog"]}
    if code is None:
        assert not grave(examined(path, **options))
        return
    level, of_images, of_masks, said = FOLDERS[code]
    for folder, how in ((images, of_images), (masks, of_masks)):
        if how is not None:
            change(folder, how)
    finding = one(examined(path, **options), code)
    assert finding.level == level and said in finding.seen and str(masks) in finding.where


def test_masks_of_0_and_255(tmp_path: Path) -> None:
    """The commonest trap: to a net of two classes the object is void."""
    images, masks = draw(tmp_path, classes=2)
    change(masks, lambda labels: labels * np.uint8(255))
    ignoring = LOSS.replace('top: "loss"', 'top: "loss" loss_param { ignore_label: 255 }')
    path = write(tmp_path, DUMMY + SCORE.replace("num_output: 3", "num_output: 2") + ignoring)
    finding = one(examined(path, images=images, masks=masks), "binary-masks")
    assert finding.level == "fault" and "--binary-masks" in finding.remedy and "255" in finding.seen
    assert not grave(examined(path, images=images, masks=masks, binary_masks=True))
    change(masks, lambda labels: np.minimum(labels, 1))
    assert not grave(examined(path, images=images, masks=masks))


def test_colours_read_as_grey(tmp_path: Path) -> None:
    images, masks = draw(tmp_path)
    change(masks, lambda labels: Image.fromarray(coloured(labels)).convert("L"))
    finding = one(examined(write(tmp_path), images=images, masks=masks), "colour-masks")
    assert "'38'" in finding.seen and finding.level == "suspect"


def test_objects_larger_than_what_a_score_sees(tmp_path: Path) -> None:
    images, masks = draw(tmp_path)
    for folder in (images, masks):
        change(folder, lambda array: array.repeat(4, 0).repeat(4, 1))
    finding = one(examined(write(tmp_path), images=images, masks=masks), "small-receptive-field")
    assert finding.level == "suspect" and "3 x 3 pixels" in finding.seen
    wide = SCORE.replace("kernel_size: 3 pad: 1", "kernel_size: 21 pad: 10")
    codes = {one.code for one in examined(write(tmp_path, DUMMY + wide + LOSS), images=images, masks=masks)}
    assert "small-receptive-field" not in codes


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    images, masks = draw(tmp_path)
    (masks / "1.png").write_bytes(b"no image")
    (masks / "2.png").unlink()
    findings = examined(write(tmp_path), images=images, masks=masks)
    assert "1.png" in one(findings, "unreadable").seen
    assert "1 of 4 images have no mask" in one(findings, "missing-files").seen
    with pytest.raises(UsageError, match="images and masks go together"):
        examined(write(tmp_path), images=images)


@pytest.mark.parametrize("times", [1, 2])
def test_databases_without_their_mean(times: int, tmp_path: Path) -> None:
    """Floating-point records from which the mean was taken when they were written, and the layer takes it again."""
    pytest.importorskip("lmdb")
    with new_database(str(tmp_path / "data")) as target:
        for seed in range(2):
            values = scene(seed)[0].transpose(2, 0, 1) - (110.0 if times == 2 else 0.0)
            datum = caffe_pb2.Datum(channels=3, height=SIZE[0], width=SIZE[1], float_data=values.ravel().tolist())
            target.put(f"{seed:08}".encode(), datum.SerializeToString())
    mean = "transform_param { mean_value: 104 mean_value: 117 mean_value: 123 }"
    data = (
        f'layer {{ name: "data" type: "Data" top: "data" {mean}'
        ' data_param { source: "data" backend: LMDB batch_size: 1 } }\n'
    )
    label = (
        'layer { name: "label" type: "DummyData" top: "label"'
        " dummy_data_param { shape { dim: 1 dim: 1 dim: 48 dim: 60 } } }\n"
    )
    findings = examined(write(tmp_path, data + label + SCORE + LOSS))
    assert [finding.code for finding in grave(findings)] == ["mean-twice"] * (times == 2)


def test_images_smaller_than_the_padding(tmp_path: Path) -> None:
    images, masks = draw(tmp_path)
    net = DUMMY.replace("dim: 16 dim: 16", "dim: 90 dim: 90")
    wide = SCORE.replace("pad: 1", "pad: 30").replace("kernel_size: 3", "kernel_size: 61")
    path = write(tmp_path, net + wide + LOSS)
    assert not grave(examined(path))
    assert "60x48" in one(examined(path, images=images, masks=masks), "padding").seen


def test_empty_classes_that_are_meant(tmp_path: Path) -> None:
    images, masks = draw(tmp_path, classes=2)
    options: dict[str, Any] = {"images": images, "masks": masks}
    assert one(examined(write(tmp_path), **options), "class-never-occurs").level == "fault"
    assert not grave(examined(write(tmp_path), **options, allow_empty_classes=True))


LAYER = (
    'layer { name: "input" type: "Python" top: "data" top: "label" python_param { module: "fcnproto_layers"\n'
    "  layer: \"ImageMaskLayer\" param_str: \"{'images': 'images', 'masks': 'masks', 'split': 'SPLIT',"
    " 'classes': CLASSES, 'mean': (104, 117, 123), 'randomize': False}\" } RULE }\n"
)


def layer(split: str, rule: str = "", classes: int = 3) -> str:
    return LAYER.replace("SPLIT", split).replace("RULE", rule).replace("CLASSES", str(classes))


def test_the_nets_own_folders(tmp_path: Path) -> None:
    """Masks that an ImageMaskLayer would refuse or misread; and images of both splits."""
    _, masks = draw(tmp_path)
    (tmp_path / "train.txt").write_text("0\n1\n2\n")
    (tmp_path / "val.txt").write_text("3\n")
    both = layer("train.txt", "include { phase: TRAIN }") + layer("val.txt", "include { phase: TEST }")
    path = write(tmp_path, both + SCORE + LOSS, SOLVER + "test_interval: 5 test_iter: 1\n")
    assert not grave(examined(path))
    (tmp_path / "val.txt").write_text("3\n1\n")
    findings = examined(path)
    assert "1.png" in one(findings, "duplicates").seen and "'input'" in one(findings, "duplicates").where
    assert one(findings, "test-leaves-out").remedy == "test_iter: 2"
    change(masks, lambda labels: np.minimum(labels, 1) * np.uint8(255))
    net = layer("train.txt", classes=2) + SCORE.replace("num_output: 3", "num_output: 2") + LOSS
    finding = one(examined(write(tmp_path, net)), "binary-masks")
    assert finding.level == "fault" and f"{tmp_path / 'net.prototxt'}:1: " in finding.where


def test_training_and_scoring_say_the_faults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks of 0 and 255, a crop beside its place, a rate that moves nothing: said before the work begins."""
    monkeypatch.chdir(tmp_path)
    _, masks = draw(tmp_path, classes=2)
    split = tmp_path / "all.txt"
    split.write_text("0\n1\n2\n3\n")
    two = SCORE.replace("num_output: 3", "num_output: 2")
    wide = two.replace('top: "score"', 'top: "wide"').replace("pad: 1", "pad: 4")
    crop = (
        'layer { name: "crop" type: "Crop" bottom: "wide" bottom: "data" top: "score" crop_param { offset: OFFSET } }\n'
    )
    for offset, binary, rate, told in ((0, True, "1e-12", True), (3, False, "1e-2", False)):
        if binary:
            change(masks, lambda labels: labels * np.uint8(255))
        else:
            change(masks, lambda labels: (labels > 0).astype(np.uint8))
        net = layer("all.txt", classes=2) + wide + crop.replace("OFFSET", str(offset)) + LOSS
        solver = SOLVER.replace("0.01", rate).replace("max_iter: 100", "max_iter: 1")
        path = write(tmp_path, net, solver)
        load("net.prototxt").save("w.caffemodel")
        capsys.readouterr()
        for arguments in (
            ["train", "--solver", str(path)],
            ["test", "--model", "net.prototxt", "--weights", "w.caffemodel", "--iterations", "1"],
        ):
            main(arguments)
            said = capsys.readouterr().err
            for code in ("binary-masks", "crop-offset", *(["rate-too-small"] if arguments[0] == "train" else [])):
                assert (f"[{code}]" in said) is told, (code, said)


def test_label_maps_of_a_database(tmp_path: Path) -> None:
    pytest.importorskip("lmdb")
    text = 'layer { name: "NAME" type: "Data" top: "NAME" data_param { source: "NAME" backend: LMDB batch_size: 2 } MEAN }\n'
    mean = "transform_param { mean_value: 104 mean_value: 117 mean_value: 123 }"
    net = text.replace("NAME", "data").replace("MEAN", mean) + text.replace("NAME", "label").replace("MEAN", "")
    for value, expected in ((2, []), (7, ["label-out-of-range", "class-never-occurs"])):
        folder = tmp_path / str(value)
        folder.mkdir()
        for name in ("data", "label"):
            with new_database(str(folder / name)) as target:
                for seed in range(2):
                    pixels, labels = scene(seed)
                    values = pixels.transpose(2, 0, 1) if name == "data" else np.where(labels == 2, value, labels)[None]
                    datum = caffe_pb2.Datum(channels=len(values), height=SIZE[0], width=SIZE[1])
                    datum.data = values.astype(np.uint8).tobytes()
                    target.put(f"{seed:08}".encode(), datum.SerializeToString())
        findings = grave(examined(write(folder, net + SCORE + LOSS)))
        assert sorted(finding.code for finding in findings) == sorted(expected)
        assert all("label" in finding.where for finding in findings)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, masks = draw(tmp_path, classes=2)
    folders = ["--images", str(images), "--masks", str(masks)]
    assert main(["check", str(write(tmp_path)), *folders]) == 1
    assert "[class-never-occurs]" in capsys.readouterr().out
    assert main(["check", str(write(tmp_path)), *folders, "--allow-empty-classes"]) == 0
    assert main(["check", str(write(tmp_path)), "--masks", str(masks)]) == 2


HEADS = (
    'layer { name: "in" type: "DummyData" top: "data" top: "sem" top: "geo" dummy_data_param {\n'
    "  shape { dim: 1 dim: 3 dim: 16 dim: 16 } shape { dim: 1 dim: 1 dim: 16 dim: 16 }\n"
    "  shape { dim: 1 dim: 1 dim: 16 dim: 16 }\n"
    '  data_filler { type: "gaussian" std: 1 } data_filler { value: 1 } data_filler { value: 1 } } }\n'
    + SCORE.replace('"score"', '"score_sem"')
    + SCORE.replace('"score"', '"score_geo"').replace("num_output: 3", "num_output: 2")
    + LOSS.replace('"score"', '"score_sem"').replace('"label"', '"sem"').replace('"loss"', '"loss_sem"')
    + LOSS.replace('"score"', '"score_geo"').replace('"label"', '"geo"').replace('"loss"', '"loss_geo"')
)


def test_two_labellings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Masks of both heads are judged, each by its own classes; both are learned in the steps."""
    images, sem = draw(tmp_path)
    geo = tmp_path / "geo"
    geo.mkdir()
    for path in sem.glob("*.png"):
        with Image.open(path) as image:
            Image.fromarray((np.asarray(image) > 0).astype(np.uint8)).save(geo / path.name)
    (tmp_path / "geo.txt").write_text("flat\nupright\n")
    path = write(tmp_path, HEADS.replace('"xavier"', '"gaussian" std: 0.001'), SOLVER.replace("0.01", "1e-5"))
    both = {"images": images, "masks": {"sem": sem, "score_geo": geo}}
    torch.manual_seed(3)
    assert not grave(examined(path, **both, classes={"geo": ["flat", "upright"]}, steps=6))
    assert not grave(examined(path, **both, overfit=True, steps=400))
    arguments = ["check", str(path), "--images", str(images), "--masks", f"sem={sem}", "--masks", f"geo={geo}"]
    assert main([*arguments, "--classes", f"geo={tmp_path / 'geo.txt'}", "--steps", "2", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["pixels"]) == {"sem", "geo"}
    change(geo, lambda labels: labels * np.uint8(255))
    finding = one(examined(path, **both), "binary-masks")
    assert finding.level == "fault" and str(geo) in finding.where
    three = examined(path, **both, binary_masks=True, classes={"geo": ["flat", "upright", "sky"]})
    assert "'sky'" in one(three, "class-never-occurs").seen and "'score_geo'" in one(three, "old-classes").where
    change(geo, lambda labels: np.minimum(labels, 1))
    change(sem, lambda labels: labels + np.uint8(1))
    assert str(sem) in one(examined(path, **both), "label-out-of-range").where
    assert one(examined(path, images=images, masks=sem), "label-out-of-range")  # one alone is the first one's
    assert main([*arguments[:4], "--masks", f"depth={sem}"]) == 2
    assert "the net has nothing called 'depth'" in capsys.readouterr().err


def test_a_head_that_stands_still(tmp_path: Path) -> None:
    """What a few steps show is said of every head."""
    images, sem = draw(tmp_path)
    still = HEADS.replace('"score_geo"\n', '"score_geo" param { lr_mult: 0 } param { lr_mult: 0 }\n').replace(
        'num_output: 2 kernel_size: 3 pad: 1 weight_filler { type: "xavier" }', "num_output: 2 kernel_size: 3 pad: 1"
    )
    geo = shutil.copytree(sem, tmp_path / "geo")
    change(geo, lambda labels: np.minimum(labels, 1))
    findings = examined(write(tmp_path, still), images=images, masks={"sem": sem, "geo": geo}, steps=6)
    assert "'score_geo'" in one(findings, "constant-loss").where
