"""Blobs of many images in one file."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from tiny_nets import colour_net

from fcnproto.cli._main import main

MEAN = (1.0, 2.0, 3.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    draw = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        pixels = draw.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
    return tmp_path / "images"


def expected(folder: Path, name: str) -> np.ndarray:
    """The net's score: the image itself, BGR less the mean."""
    pixels = np.asarray(Image.open(folder / f"{name}.png"), dtype=np.float64)
    return (pixels[:, :, ::-1] - MEAN).transpose(2, 0, 1)


def extract(folder: Path, output: Path, *options: str) -> int:
    model, weights = colour_net(folder.parent)
    common = ["--blobs", "score", "--mean", "1,2,3", "-o", str(output)]
    return main(["features", str(model), str(weights), str(folder), *common, *options])


@pytest.mark.parametrize("batch", ["1", "2"])
@pytest.mark.parametrize("ending", [".npz", ".h5"])
def test_images_of_one_size_are_stacked(ending: str, batch: str, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / f"f{ending}"
    assert extract(folder, output, "--batch", batch) == 0
    with np.load(output) if ending == ".npz" else h5py.File(output) as file:
        rows, names = np.asarray(file["score"]), list(np.asarray(file["image_names"]).astype(str))
    assert len(names) == 3
    assert [name[0] for name in names] == ["a", "b", "c"]
    for row, name in zip(rows, "abc", strict=True):
        np.testing.assert_allclose(row, expected(folder, name), rtol=1e-6)


@pytest.mark.parametrize("ending", [".npz", ".hdf5"])
def test_images_of_several_sizes(ending: str, folder: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 9, 3), dtype=np.uint8)).save(folder / "d.png")
    output = tmp_path / f"f{ending}"
    assert extract(folder, output, "--batch", "4") == 0
    with np.load(output) if ending == ".npz" else h5py.File(output) as file:
        names = list(np.asarray(file["image_names"]).astype(str))
        shapes = [np.asarray(file[f"score/{name}"]).shape for name in names]
    assert shapes == [(3, 5, 7)] * 3 + [(3, 4, 9)]


def test_pooled(folder: Path, tmp_path: Path) -> None:
    assert extract(folder, tmp_path / "f.npz", "--pool", "mean") == 0
    with np.load(tmp_path / "f.npz") as file:
        np.testing.assert_allclose(file["score"][1], expected(folder, "b").mean((1, 2)), rtol=1e-5)
    assert extract(folder, tmp_path / "g.npz", "--pool", "max", "--resize", "3x3") == 0
    with np.load(tmp_path / "g.npz") as file:
        assert file["score"].shape == (3, 3)


def test_no_half_written_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "z.png").write_bytes(b"no image")
    assert extract(folder, tmp_path / "f.h5") == 1
    assert "z.png" in capsys.readouterr().err
    assert not (tmp_path / "f.h5").exists()


def test_wrong_usage(folder: Path, tmp_path: Path) -> None:
    assert extract(folder, tmp_path / "f.csv") == 2
    assert extract(folder, tmp_path / "f.npz", "--blobs", "nosuch") == 1
