"""Fine-tuning on data as people have it: bands, annotation files, parts by list or folder, and rates that don't spoil."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import fcnproto
from fcnproto.cli._main import main
from fcnproto.errors import UsageError
from fcnproto.finetune import Settings, plan, run
from fcnproto.finetune.rates import choose, find_rate
from fcnproto.images import read_statistics
from fcnproto.preprocessing import Chosen
from fcnproto.solver.progress import LiveLine

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: [1, CHANNELS, 16, 20] } } }
layer { name: "c" type: "Convolution" bottom: "data" top: "c"
  convolution_param { num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "r" type: "ReLU" bottom: "c" top: "c" }
layer { name: "score" type: "Convolution" bottom: "c" top: "score"
  convolution_param { num_output: 2 kernel_size: 1 weight_filler { type: "xavier" } } }
"""
BANDS = 5


def make(folder: Path, count: int = 8, first: int = 0) -> None:
    """Images of five 16-bit bands, the fourth of which shows the object, with masks."""
    tifffile = pytest.importorskip("tifffile")
    random = np.random.default_rng(first)
    for place in ("images", "masks"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        mask = np.zeros((16, 20), np.uint8)
        top, left = random.integers(0, 8, 2)
        mask[top : top + 7, left : left + 9] = 1
        values = random.integers(1000, 3000, (16, 20, BANDS), dtype=np.uint16)
        values[:, :, 3] += np.uint16(40000) * mask
        tifffile.imwrite(folder / "images" / f"{number}.tif", values, photometric="minisblack", planarconfig="contig")
        Image.fromarray(mask).save(folder / "masks" / f"{number}_mask.png")
    (folder / "classes.txt").write_text("background\nthing\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path)
    (tmp_path / "net.prototxt").write_text(NET.replace("CHANNELS", str(BANDS)))
    (tmp_path / "rgb.prototxt").write_text(NET.replace("CHANNELS", "3"))
    torch.manual_seed(0)
    fcnproto.load(tmp_path / "rgb.prototxt").save(tmp_path / "rgb.caffemodel")
    return tmp_path


def settings(folder: Path, **more: Any) -> Settings:
    given = {
        "optimization": "adam",
        "iterations": 4,
        "interval": 2,
        "solver": {"base_lr": 0.02},
        "weights": None,
        **more,
    }
    names = ("background", "thing")
    return Settings(
        str(folder / "net.prototxt"),
        images=folder / "images", masks=folder / "masks", classes=names, output=folder / "out", **given,
    )  # fmt: skip


def test_bands_from_tiff_to_segmentation(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In full 16 bits, with the training images' mean and scale, which go along to `segment` and `score`."""
    made = plan(settings(folder, iterations=60, interval=30))
    how = made.base.images["data"]
    values = [fcnproto.images.read_bands(folder / "images" / f"{id}.tif").values for id in made.splits["train"]]
    pixels = np.concatenate([one.reshape(-1, BANDS) for one in values]).astype(np.float64)
    np.testing.assert_allclose(how.mean, pixels.mean(0), rtol=1e-9)
    np.testing.assert_allclose(how.scale, 1 / pixels.std(0), rtol=1e-9)
    assert pixels[:, 3].max() > 40000 and how.bands == BANDS
    outcome = run(made)
    assert outcome.scores[0].metrics.mean_iu > 0.9
    out = folder / "out"
    # The layer of train.prototxt gives what the plan says.
    net = fcnproto.load(out / "test.prototxt", out / "weights.caffemodel")
    item = net(blobs=["data"])["data"][0].numpy()
    raw = fcnproto.images.read_bands(folder / "images" / f"{made.splits['test'][0]}.tif").values
    np.testing.assert_allclose(item, ((raw - how.mean) * how.scale).transpose(2, 0, 1), rtol=1e-4, atol=1e-4)
    name = made.splits["test"][0]
    image, truth = folder / "images" / f"{name}.tif", np.asarray(Image.open(folder / "masks" / f"{name}_mask.png"))
    found = []
    for model in ("test", "deploy"):
        words = ["segment", str(out / f"{model}.prototxt"), str(out / "weights.caffemodel"), str(image)]
        assert main([*words, "-o", str(folder / model)]) == 0
        found.append(np.asarray(Image.open(folder / model / f"{name}_labels.png")))
        assert (found[-1] == truth).mean() > 0.95
    np.testing.assert_array_equal(*found)
    # .npy files, either way round, and arrays in Python.
    np.save(folder / "x.npy", raw.transpose(2, 0, 1))
    labels = fcnproto.segment.Segmenter(net)(folder / "x.npy")[0].labels
    np.testing.assert_array_equal(labels, found[0])
    np.testing.assert_array_equal(fcnproto.segment.Segmenter(net)(raw)[0].labels, found[0])
    capsys.readouterr()


def test_a_net_of_three_channels_becomes_one_of_five(folder: Path) -> None:
    """`--channels bands`: the first layer begins with the old channels, each further one with their mean."""
    given = settings(folder, weights=folder / "rgb.caffemodel", preprocessing=Chosen(kinds=("bands",)))
    made = plan(replace(given, model=str(folder / "rgb.prototxt")))
    old = fcnproto.load(folder / "rgb.prototxt", folder / "rgb.caffemodel").params["c"][0]
    new = made.net.params["c"][0]
    assert tuple(new.shape) == (4, BANDS, 3, 3)
    torch.testing.assert_close(new[:, :3], old)
    for band in (3, 4):
        torch.testing.assert_close(new[:, band], old.mean(1))


def test_early_fusion_of_bands(folder: Path) -> None:
    words = [
        "surgery",
        "early-fusion",
        folder / "net.prototxt",
        folder / "rgb.caffemodel",
        "-o",
        folder / "five.caffemodel",
    ]
    assert main(list(map(str, words))) == 0
    old = fcnproto.load(folder / "rgb.prototxt", folder / "rgb.caffemodel").params["c"][0]
    new = fcnproto.load(folder / "net.prototxt", folder / "five.caffemodel").params["c"][0]
    torch.testing.assert_close(new[:, :3], old)
    torch.testing.assert_close(new[:, 4], old.mean(1))


def test_image_mean_of_bands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["image-mean", str(folder / "images"), str(folder / "stats.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    pixels = np.concatenate(
        [fcnproto.images.read_bands(path).values.reshape(-1, BANDS) for path in (folder / "images").iterdir()]
    ).astype(np.float64)
    expected = [*(f"mean_value channel {k}: {pixels[:, k].mean():g}" for k in range(BANDS))]
    expected += [f"scale channel {k}: {1 / pixels[:, k].std():g}" for k in range(BANDS)]
    assert lines == expected
    mean, scale = read_statistics(folder / "stats.json")
    np.testing.assert_allclose(mean, pixels.mean(0))
    np.testing.assert_allclose(scale, 1 / pixels.std(0))
    assert main(["image-mean", str(folder / "images"), str(folder / "x.binaryproto")]) == 2


def test_sixteen_bits_of_pictures_are_divided(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(0).integers(0, 65536, (6, 7, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    np.save(tmp_path / "a.npy", values)
    for name in ("a.tif", "a.npy"):
        np.testing.assert_array_equal(
            np.asarray(fcnproto.images.read_image(tmp_path / name)), np.rint(values / 257).astype(np.uint8)
        )


def test_validation_by_a_list(folder: Path) -> None:
    (folder / "val.txt").write_text("1\n3.tif\n")
    made = plan(settings(folder, validation=folder / "val.txt"))
    assert made.splits["val"] == ["1", "3"] and not {"1", "3"} & {*made.splits["train"], *made.splits["test"]}
    (folder / "val.txt").write_text("1\nnone\n")
    with pytest.raises(UsageError, match="val.txt:2: no image is called 'none'"):
        plan(settings(folder, validation=folder / "val.txt"))
    with pytest.raises(UsageError, match="neither a share, a list of names nor a folder"):
        plan(settings(folder, validation=folder / "nothing.txt"))


def test_validation_by_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(folder / "more", 3, first=50)
    words = ["--validation", folder / "more" / "images", "--validation-masks", folder / "more" / "masks"]
    places = ["--images", folder / "images", "--masks", folder / "masks", "--classes", folder / "classes.txt"]
    begin = ["finetune", "--model", folder / "net.prototxt", "--from-scratch", *places, "-o", folder / "out"]
    training = ["--optimization", "adam", "--iterations", 2, "--interval", 1]
    assert main(list(map(str, [*begin, *words, *training, "--held-out", 0.3]))) == 0
    lines = capsys.readouterr().err
    assert "11 images: train 6, val 3, test 2" in lines
    assert (folder / "out" / "val.txt").read_text().split() == ["50", "51", "52"]


def test_finetuning_on_labelme_files(folder: Path) -> None:
    """Whose train.prototxt reads them, too."""
    (folder / "json").mkdir()
    for path in (folder / "masks").iterdir():
        rows, columns = np.nonzero(np.asarray(Image.open(path)))
        corners = [[int(columns.min()), int(rows.min())], [int(columns.max()), int(rows.max())]]
        shapes = [{"label": "thing", "shape_type": "rectangle", "points": corners}]
        content = {"shapes": shapes, "imageHeight": 16, "imageWidth": 20}
        (folder / "json" / f"{path.stem.removesuffix('_mask')}.json").write_text(json.dumps(content))
    given = settings(folder)
    same = settings(folder)
    given = replace(given, masks=folder / "json")
    made = plan(given)
    assert made.pixels["label"]["train"].tolist() == plan(same).pixels["label"]["train"].tolist()
    outcome = run(made)
    assert outcome.scores[0].images == 1
    net = fcnproto.load(folder / "out" / "train.prototxt", phase="train")
    assert set(np.unique(net()["loss"].detach().numpy()).shape) == {1}


def test_no_better_than_before_is_said(folder: Path) -> None:
    run(plan(settings(folder, iterations=60, interval=60)))
    said: list[str] = []
    weights = folder / "out" / "weights.caffemodel"
    given = settings(folder, weights=weights, solver={"base_lr": 1.0}, iterations=4)
    given = replace(given, output=folder / "again")
    outcome = run(plan(given), said.append)
    assert not outcome.improved and outcome.best == 0
    (line,) = [line for line in said if line.startswith("no better than before training")]
    assert f"was {outcome.validations[0][1]:.4f} before and is {outcome.validations[-1][1]:.4f} now" in line
    assert json.loads((folder / "again" / "scores.json").read_text())["better than before training"] is False
    before, after = (
        fcnproto.load(folder / "net.prototxt", one).params["c"][0]
        for one in (weights, folder / "again" / "weights.caffemodel")
    )
    torch.testing.assert_close(before, after)  # what was best is kept


def test_the_rate_finder(folder: Path) -> None:
    made = plan(settings(folder, lr_finder=True, solver={}))
    trial = find_rate(made, steps=40)
    assert trial.rates[0] == pytest.approx(made.solver.base_lr * 1e-3) and 1e-5 < trial.rate < 0.05
    assert made.solver.base_lr == pytest.approx(1e-3) and not (folder / "out").exists()
    said: list[str] = []
    run(made, said.append)
    assert any(line.startswith("learning rate ") and "lr-finder.csv" in line for line in said)
    found = fcnproto.schema.text.read_solver(folder / "out" / "solver.prototxt").base_lr
    assert found == pytest.approx(made.solver.base_lr) != pytest.approx(1e-3)
    # Going on takes the same rate.
    again = plan(settings(folder, lr_finder=True, solver={}, iterations=6))
    assert run(again).begun_at == 4 and again.solver.base_lr == pytest.approx(found)


def test_the_choice_of_a_rate() -> None:
    rates = [10.0**k for k in range(-12, 4)]
    losses = [3.0] * 10 + [2.5, 1.5, 1.0, 4.0, 9.0, float("nan")]
    assert choose(rates, losses) == pytest.approx(0.1)


def test_adams_rate_by_what_is_learned_already(folder: Path) -> None:
    assert plan(settings(folder, solver={})).solver.base_lr == pytest.approx(1e-3)
    run(plan(settings(folder)))
    kept = settings(folder, solver={}, weights=folder / "out" / "weights.caffemodel")
    kept = replace(kept, output=folder / "again")
    assert plan(kept).solver.base_lr == pytest.approx(1e-4)


def test_a_bar_with_the_time_left(folder: Path) -> None:
    made = plan(settings(folder))
    console = Console(force_terminal=True, width=100, file=io.StringIO())
    line = LiveLine(console, made.solver.max_iter)
    run(made, listeners=[line])
    line.close()
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "training" in shown and "4/4" in shown and "0:00:0" in shown
