"""HDF5Data and HDF5Output."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from data_layers import assert_resumes, batches, make_source
from google.protobuf import text_format

from fcnproto.errors import DataError, LayerError
from fcnproto.layers.registry import lookup
from fcnproto.schema import caffe_pb2

ROWS = np.arange(7 * 2 * 3, dtype=np.float32).reshape(7, 2, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rows in (("a.h5", slice(0, 3)), ("b.h5", slice(3, 7))):
        with h5py.File(tmp_path / name, "w") as file:
            file["data"], file["label"] = ROWS[rows], np.arange(7)[rows].astype(np.int64)
    (tmp_path / "list.txt").write_text("a.h5\nb.h5\n")
    return tmp_path


def source(
    folder: Path, settings: str = "batch_size: 2", tops: tuple[str, ...] = ("data", "label"), train: bool = False
) -> Any:
    names = " ".join(f'top: "{top}"' for top in tops)
    return make_source(f'type: "HDF5Data" {names} hdf5_data_param {{ source: "list.txt" {settings} }}', folder, train)


def test_batches_run_on_over_files_and_round(folder: Path) -> None:
    layer = source(folder)
    assert layer.top_shapes([]) == [(2, 2, 3), (2,)]
    got = batches(layer, 8)
    np.testing.assert_array_equal(np.concatenate([label for _, label in got]), np.arange(16) % 7)
    np.testing.assert_array_equal(np.concatenate([data for data, _ in got]), ROWS[np.arange(16) % 7])
    assert got[0][1].dtype == np.float32


def test_a_single_top_and_a_batch_of_several_rounds(folder: Path) -> None:
    ((label,),) = batches(source(folder, "batch_size: 20", ("label",)), 1)
    np.testing.assert_array_equal(label, np.arange(20) % 7)


def test_shuffle_goes_through_every_row_of_every_file(folder: Path) -> None:
    torch.manual_seed(1)
    layer = source(folder, "batch_size: 7 shuffle: true")
    orders = [tuple(label) for _, label in batches(layer, 6)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len(set(orders)) > 2
    assert {min(order[:3]) for order in orders} == {0, 3}, "the files come in both orders"


@pytest.mark.parametrize("settings", ["batch_size: 2", "batch_size: 2 shuffle: true"])
def test_resumes_where_it_stood(folder: Path, settings: str) -> None:
    torch.manual_seed(0)
    assert_resumes(lambda: source(folder, settings), before=5, after=9)


def test_workers_deal_the_rows_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcnproto.layers.source.worker", lambda: (1, 3))
    labels = np.concatenate([label for _, label in batches(source(folder, train=True), 3)])
    np.testing.assert_array_equal(labels, [1, 4, 0, 3, 6, 2])


def test_refusals(folder: Path) -> None:
    with pytest.raises(LayerError, match="takes no transform_param"):
        make_source('type: "HDF5Data" top: "d" hdf5_data_param { source: "x" batch_size: 1 } transform_param {}')
    with pytest.raises(LayerError, match="batch_size"):
        source(folder, "")
    layer = source(folder, tops=("data", "other"))
    assert layer.top_shapes([]) == [None, None]
    with pytest.raises(DataError, match=r"a\.h5: has no dataset 'other' \(the top's name\); it has data, label"):
        layer()
    with h5py.File(folder / "a.h5", "w") as file:
        file["data"], file["label"] = ROWS[:3], np.arange(2)
    with pytest.raises(DataError, match="equally many rows, at least 1; there are data 3, label 2"):
        source(folder)()
    with h5py.File(folder / "a.h5", "w") as file:
        file["data"], file["label"] = ROWS[:3], [b"a", b"b", b"c"]
    with pytest.raises(DataError, match="expected rows of numbers"):
        source(folder)()
    (folder / "a.h5").write_bytes(b"not HDF5")
    with pytest.raises(DataError, match=r"a\.h5: not a readable HDF5 file"):
        source(folder)()
    (folder / "list.txt").write_text("")
    with pytest.raises(DataError, match="names no HDF5 files"):
        source(folder)()


def test_rows_of_files_must_agree(folder: Path) -> None:
    with h5py.File(folder / "b.h5", "w") as file:
        file["data"], file["label"] = ROWS[:2, :1], np.arange(2)
    layer = source(folder)
    layer()
    with pytest.raises(DataError, match="differ in shape"):
        layer()


def test_damaged_files(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        file["data"] = np.zeros((5, 3), np.float32)
        file.create_dataset("label", data=np.zeros(5), compression="gzip", chunks=(2,))
    (tmp_path / "list.txt").write_text("a.h5\n")
    content, numbers, refused = (tmp_path / "whole.h5").read_bytes(), random.Random(0), 0
    for _ in range(150):
        changed = bytearray(content)
        for _ in range(numbers.choice([1, 3, 10])):
            changed[numbers.randrange(900)] ^= 1 << numbers.randrange(8)
        (tmp_path / "a.h5").write_bytes(changed)
        layer = source(tmp_path)
        layer.top_shapes([])
        try:
            layer()
        except DataError as error:
            refused += "a.h5" in str(error)
    assert refused > 30


def test_a_file_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", (10**6, 10**6), np.float32, chunks=(1, 10))[0, :10] = 1
        file["label"] = np.zeros(5)
    (tmp_path / "list.txt").write_text("a.h5\n")
    with pytest.raises(
        DataError,
        match=r"dataset 'data' says shape \(1000000, 1000000\), so 4,000,000,000,000 bytes, but 40 are stored",
    ):
        source(tmp_path)()


def output(path: Path, *shapes: tuple[int, ...]) -> Any:
    param = caffe_pb2.LayerParameter(name="out")
    text_format.Merge(f'type: "HDF5Output" hdf5_output_param {{ file_name: "{path.as_posix()}" }}', param)
    layer = lookup("HDF5Output")(param)
    layer.allow_writes = True
    layer.setup(list(shapes))
    return layer


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with h5py.File(path, "r") as file:
        assert sorted(file) == ["data", "label"]
        return file["data"][()], file["label"][()]


def test_output_appends_and_is_complete_after_every_forward(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    path.write_bytes(b"an older file")
    layer = output(path, (2, 3), (2,))
    data, label = torch.arange(24.0).reshape(8, 3), torch.arange(8)
    for step in range(4):
        assert layer(data[2 * step : 2 * step + 2], label[2 * step : 2 * step + 2]) == ()
        stored = read(path)
        np.testing.assert_array_equal(stored[0], data[: 2 * step + 2].numpy()[:, :, None, None])
        np.testing.assert_array_equal(stored[1].ravel(), np.arange(2 * step + 2))
    assert stored[0].dtype == stored[1].dtype == np.float32 and stored[1].shape == (8, 1, 1, 1)
    assert list(tmp_path.iterdir()) == [path]


def test_output_is_cut_back_after_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    layer = output(path, (1, 1), (1,))
    for value in range(3):
        layer(torch.full((1, 1), float(value)), torch.zeros(1))
    resumed = output(path, (1, 1), (1,))
    resumed.set_position({"rows": 2})
    resumed(torch.full((1, 1), 9.0), torch.zeros(1))
    np.testing.assert_array_equal(read(path)[0].ravel(), [0, 1, 9])


def test_output_refuses(tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="4 at most"):
        output(tmp_path / "o", (1, 1, 1, 1, 1), (1,))
    with pytest.raises(LayerError, match="expected as many"):
        output(tmp_path / "o", (2, 1), (3,))
    layer = output(tmp_path / "none" / "o.h5", (1, 1), (1,))
    with pytest.raises(DataError, match="can't write"):
        layer(torch.zeros(1, 1), torch.zeros(1))
    layer = output(tmp_path / "o.h5", (1, 1), (1,))
    layer(torch.zeros(1, 1), torch.zeros(1))
    with pytest.raises(DataError, match=r"dataset 'data' has shape \(1, 1, 1, 1\)"):
        layer(torch.zeros(1, 2), torch.zeros(1))
