"""Lists of files as editors of all kinds save them: byte order marks, line ends, names that are not UTF-8."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import fcnproto
from fcnproto.cli._main import main
from fcnproto.data.image_data import read_image_list
from fcnproto.data.paths import find
from fcnproto.data.window_data import read_windows

BOM = b"\xef\xbb\xbf"


def load(folder: Path, text: str) -> fcnproto.Net:
    (folder / "n.prototxt").write_bytes(text.encode("latin-1", "surrogateescape"))
    return fcnproto.load(folder / "n.prototxt")


def test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for index in range(2):
        Image.fromarray(np.full((4, 4, 3), index * 50, np.uint8)).save(f"b{index}.png")
    Path("bom.txt").write_bytes(BOM + b"b0.png 0\r\nb1.png 1\r\n")
    assert read_image_list("bom.txt") == [("b0.png", 0), ("b1.png", 1)]
    net = load(
        tmp_path,
        'layer { name: "d" type: "ImageData" top: "data" top: "label" image_data_param { source: "bom.txt" batch_size: 2 } }',
    )
    assert net()["label"].tolist() == [0, 1]
    assert main(["convert-imageset", "./", "bom.txt", "bom_lmdb"]) == 0


def test_hdf5(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["data"] = np.arange(2.0)
    (tmp_path / "list.txt").write_bytes(BOM + b"x.h5\r\n")
    text = 'layer { name: "d" type: "HDF5Data" top: "data" hdf5_data_param { source: "list.txt" batch_size: 2 } }'
    assert load(tmp_path, text)()["data"].tolist() == [0, 1]


def test_windows(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_bytes(BOM + b"# 0\r\na.png\r\n3\r\n9\r\n9\r\n1\r\n1 0.9 0 0 5 5\r\n")
    assert len(read_windows(str(tmp_path / "w.txt"), 0.5, 0.5).foreground) == 1


def test_a_source_whose_name_is_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is found by the bytes of its name, in whatever encoding they are."""
    monkeypatch.chdir(tmp_path)
    raw = "训练".encode("gbk")
    try:
        os.makedirs(raw)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    Image.fromarray(np.full((4, 4, 3), 50, np.uint8)).save(os.fsdecode(raw) + "/x.png")
    Path(os.fsdecode(raw + b"/list.txt")).write_bytes(raw + b"/x.png 7\n")
    text = 'layer { name: "d" type: "ImageData" top: "data" top: "label" image_data_param { source: "%s/list.txt" batch_size: 1 } }'
    net = load(tmp_path, text % raw.decode("latin-1"))
    assert net()["label"].tolist() == [7]
    assert find("é\udc80") is None and find("a\0b") is None and find("全") is None
