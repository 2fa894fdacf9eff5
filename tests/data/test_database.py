"""The Data layer over LMDB: order, wrapping, encoded images, crops, positions, workers, damage."""

from __future__ import annotations

import io
import json
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from data_layers import assert_resumes, batches, make_source, write_lmdb
from PIL import Image

import fcnproto
from fcnproto.data.datum import array_to_datum, datum_array
from fcnproto.data.records import open_records
from fcnproto.data.tools import image_mean
from fcnproto.data.writing import new_database
from fcnproto.errors import DataError, FcnprotoWarning, LayerError
from fcnproto.schema import caffe_pb2

pytest.importorskip("lmdb")

ITEMS = np.random.default_rng(0).integers(0, 256, (5, 3, 6, 8), dtype=np.uint8)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    write_lmdb(tmp_path / "db", [(f"{index:03d}", item, 10 + index) for index, item in enumerate(ITEMS)])
    return tmp_path


def source(
    folder: Path, settings: str = "batch_size: 2", transform: str = "", tops: int = 2, train: bool = False
) -> Any:
    names = " ".join(f'top: "t{index}"' for index in range(tops))
    return make_source(
        f'type: "Data" {names} data_param {{ source: "db" backend: LMDB {settings} }} transform_param {{ {transform} }}',
        folder,
        train,
    )


def test_batches_wrap_in_the_middle(database: Path) -> None:
    layer = source(database)
    assert layer.top_shapes([]) == [(2, 3, 6, 8), (2,)]
    got = batches(layer, 4)
    for number, (data, label) in enumerate(got):
        rows = [(2 * number) % 5, (2 * number + 1) % 5]
        np.testing.assert_array_equal(data, ITEMS[rows])
        np.testing.assert_array_equal(label, np.float32(rows) + 10)


def test_keys_are_in_byte_order(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "db", [(str(index), ITEMS[0], index) for index in (1, 2, 9, 10, 11)])
    ((_, label),) = batches(source(tmp_path, "batch_size: 5"), 1)
    np.testing.assert_array_equal(label, [1, 10, 11, 2, 9])


def test_float_data_and_one_top(tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((2, 1, 3, 4)).astype(np.float32)
    write_lmdb(tmp_path / "db", [(str(index), item, 0) for index, item in enumerate(values)])
    layer = source(tmp_path, "batch_size: 3", tops=1)
    assert layer.top_shapes([]) == [(3, 1, 3, 4)]
    ((data,),) = batches(layer, 1)
    np.testing.assert_array_equal(data, values[[0, 1, 0]])


def encoded(image: np.ndarray, label: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return caffe_pb2.Datum(encoded=True, data=buffer.getvalue(), label=label).SerializeToString()


def test_encoded_images_are_bgr_with_their_own_channels(tmp_path: Path) -> None:
    color = ITEMS[0].transpose(1, 2, 0)
    with new_database(str(tmp_path / "db")) as writer:
        writer.put(b"0", encoded(color, 4))
    ((data, label),) = batches(source(tmp_path, "batch_size: 1"), 1)
    np.testing.assert_array_equal(data[0], color.transpose(2, 0, 1)[::-1])
    assert label == [4]
    ((gray, _),) = batches(source(tmp_path, "batch_size: 1", "force_gray: true"), 1)
    weighted = color @ np.array([0.299, 0.587, 0.114])
    assert gray.shape == (1, 1, 6, 8) and np.abs(gray[0, 0] - weighted).max() <= 1.0


def test_encoded_gray_and_force_color(tmp_path: Path) -> None:
    with new_database(str(tmp_path / "db")) as writer:
        writer.put(b"0", encoded(ITEMS[0, 0], 4))
    ((native, _),) = batches(source(tmp_path, "batch_size: 1"), 1)
    np.testing.assert_array_equal(native, ITEMS[:1, :1])
    ((color, _),) = batches(source(tmp_path, "batch_size: 1", "force_color: true"), 1)
    np.testing.assert_array_equal(color[0], np.repeat(ITEMS[0, :1], 3, axis=0))


def test_force_gray_has_no_effect_on_raw_records(database: Path) -> None:
    with pytest.warns(FcnprotoWarning, match="force_gray has no effect"):
        ((data, _),) = batches(source(database, "batch_size: 1", "force_gray: true"), 1)
    np.testing.assert_array_equal(data, ITEMS[:1])


def test_crops_make_items_of_several_sizes_one(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "db", [("0", ITEMS[0], 0), ("1", ITEMS[1, :, :, :5], 0)])
    layer = source(tmp_path, transform="crop_size: 4")
    assert layer.top_shapes([]) == [(2, 3, 4, 4), (2,)]
    ((data, _),) = batches(layer, 1)
    np.testing.assert_array_equal(data[0], ITEMS[0, :, 1:5, 2:6])
    np.testing.assert_array_equal(data[1], ITEMS[1, :, 1:5, 0:4])
    with pytest.raises(DataError, match=r"record '1' .* \(3, 6, 5\), others of the batch \(3, 6, 8\)"):
        source(tmp_path)()


@pytest.mark.parametrize("transform", ["", "mirror: true crop_size: 3"])
def test_resumes_where_it_stood(database: Path, transform: str) -> None:
    torch.manual_seed(0)
    assert_resumes(lambda: source(database, transform=transform, train=True))


def test_seed_of_torch_makes_it_repeatable(database: Path) -> None:
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(np.stack([data for data, _ in batches(source(database, transform="crop_size: 3", train=True), 6)]))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()


def test_workers_deal_the_items_out(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for rank in range(2):
        monkeypatch.setattr("fcnproto.layers.source.worker", lambda rank=rank: (rank, 2))
        seen.append(np.concatenate([label for _, label in batches(source(database, train=True), 3)]) - 10)
    np.testing.assert_array_equal(seen[0], [0, 2, 4, 1, 3, 0])
    np.testing.assert_array_equal(seen[1], [1, 3, 0, 2, 4, 1])
    (_, label) = batches(source(database), 1)[0]
    np.testing.assert_array_equal(label, [10, 11])


def test_lmdb_under_the_default_backend(database: Path) -> None:
    text = 'type: "Data" top: "d" data_param { source: "db" batch_size: 1 }'
    layer = make_source(text, database)
    with pytest.warns(FcnprotoWarning, match="is an LMDB"):
        (data,) = layer()
    np.testing.assert_array_equal(data, ITEMS[:1])


def test_leveldb_without_its_module_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plyvel", None)
    (tmp_path / "db").mkdir()
    layer = make_source('type: "Data" top: "d" data_param { source: "db" batch_size: 1 }', tmp_path)
    assert layer.top_shapes([]) == [(1, None, None, None)]
    with pytest.raises(DataError, match=r"pip install 'fcnproto\[leveldb\]'.*convert-imageset"):
        layer()


class Cursor:
    """A raw iterator as plyvel's, over a sorted list."""

    def __init__(self, items: list[tuple[bytes, bytes]]) -> None:
        self.items, self.place = items, len(items)

    def seek_to_first(self) -> None:
        self.place = 0

    def seek(self, key: bytes) -> None:
        self.place = sum(known < key for known, _ in self.items)

    def next(self) -> None:
        self.place += 1

    def valid(self) -> bool:
        return self.place < len(self.items)

    def key(self) -> bytes:
        return self.items[self.place][0]

    def value(self) -> bytes:
        return self.items[self.place][1]

    def close(self) -> None:
        self.items = []


class LevelDB:
    """What the Data layer uses of plyvel.DB; like the real one it may be open only once."""

    opened: ClassVar[set[str]] = set()

    def __init__(self, path: str, create_if_missing: bool, paranoid_checks: bool) -> None:
        assert path not in self.opened and not create_if_missing and paranoid_checks
        self.opened.add(path)
        self.path = path
        datums = [array_to_datum(item, 10 + index).SerializeToString() for index, item in enumerate(ITEMS)]
        self.items = [(b"%03d" % index, datum) for index, datum in enumerate(datums)]

    def raw_iterator(self, verify_checksums: bool) -> Cursor:
        assert verify_checksums
        return Cursor(self.items)

    def close(self) -> None:
        self.opened.discard(self.path)


def test_leveldb_through_its_binding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plyvel = types.ModuleType("plyvel")
    plyvel.DB, plyvel.Error = LevelDB, OSError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "plyvel", plyvel)
    (tmp_path / "db").mkdir()
    text = 'type: "Data" top: "d" top: "l" data_param { source: "db" batch_size: 3 }'
    layer = make_source(text, tmp_path)
    assert layer.top_shapes([]) == [(3, 3, 6, 8), (3,)]
    labels = np.concatenate([label for _, label in batches(layer, 3)])
    np.testing.assert_array_equal(labels - 10, np.arange(9) % 5)
    assert_resumes(lambda: make_source(text, tmp_path))
    layer.close()
    assert not LevelDB.opened


def test_a_real_leveldb(tmp_path: Path) -> None:
    pytest.importorskip("plyvel", reason="needs plyvel, the binding of LevelDB")
    with new_database(str(tmp_path / "db"), "leveldb") as writer:
        for index, item in enumerate(ITEMS):
            datum = array_to_datum(item, index + 10)
            writer.put(b"%d" % (5 * index), datum.SerializeToString())  # in the order of bytes: 0 10 15 20 5
    text = 'type: "Data" top: "d" top: "l" data_param { source: "db" batch_size: 3 }'
    layer, other = make_source(text, tmp_path), make_source(text, tmp_path)
    assert layer.top_shapes([]) == [(3, 3, 6, 8), (3,)]
    found = [batches(reader, 3) for reader in (layer, other)]  # a process may open a LevelDB only once; both read it
    for pairs in found:
        assert np.concatenate([label for _, label in pairs]).tolist() == [10, 12, 13, 14, 11, 10, 12, 13, 14]
        np.testing.assert_array_equal(pairs[0][0], ITEMS[[0, 2, 3]])
    assert_resumes(lambda: make_source(text, tmp_path))
    mean = image_mean(str(tmp_path / "db"))
    assert mean.count == len(ITEMS)
    np.testing.assert_allclose(mean.mean, ITEMS.mean(axis=0), rtol=1e-6)
    layer.close()
    other.close()
    (tmp_path / "db" / "CURRENT").write_text("nothing\n")
    with pytest.raises(DataError, match="not a readable LevelDB"):
        make_source(text, tmp_path)()


def test_missing_lmdb_module_says_what_to_do(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(DataError, match=r"pip install 'fcnproto\[lmdb\]'"):
        source(database)()


def test_missing_and_damaged_databases(tmp_path: Path) -> None:
    layer = source(tmp_path)
    assert layer.top_shapes([]) == [(2, None, None, None), (2,)]
    assert source(tmp_path, transform="crop_size: 3").top_shapes([]) == [(2, None, 3, 3), (2,)]
    with pytest.raises(DataError, match=r"layer 'source' \(Data\): data_param.source 'db' not found"):
        layer()
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(DataError, match="not a readable LMDB"):
        layer()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"\xff\xff\xff", "not a Datum"),
        (
            caffe_pb2.Datum(channels=3, height=2, width=2, data=b"abc").SerializeToString(),
            "3 values, expected 3 x 2 x 2",
        ),
        (caffe_pb2.Datum(channels=-1, height=2, width=2, data=b"abcd").SerializeToString(), "an item of -1 x 2 x 2"),
        (caffe_pb2.Datum(channels=2**30, height=2**30, width=2**30).SerializeToString(), "0 values"),
        (caffe_pb2.Datum(encoded=True, data=b"no image").SerializeToString(), "not an image of a known format"),
    ],
)
def test_damaged_records_are_named(tmp_path: Path, record: bytes, message: str) -> None:
    with new_database(str(tmp_path / "db")) as writer:
        writer.put(b"the key", record)
    with pytest.raises(DataError, match=rf"record 'the key' of db: .*{message}"):
        source(tmp_path)()


def test_settings_without_effect_are_named(database: Path) -> None:
    with pytest.warns(FcnprotoWarning) as caught:
        source(database, "batch_size: 1 rand_skip: 4 crop_size: 3")
    assert ["data_param.rand_skip" in str(w.message) or "data_param.crop_size" in str(w.message) for w in caught] == [
        True,
        True,
    ]
    with pytest.raises(LayerError, match="batch_size"):
        source(database, "")
    with pytest.raises(LayerError, match="not both"):
        source(database, transform='mean_value: 1 mean_file: "x"')


def test_datum_round_trip() -> None:
    for array in (ITEMS[0], ITEMS[0].astype(np.float32) / 3):
        datum = array_to_datum(array, 3)
        np.testing.assert_array_equal(datum_array(datum), array)
        assert datum.label == 3 and datum_array(datum).dtype == array.dtype
    with pytest.raises(ValueError, match="3 axes"):
        array_to_datum(np.zeros((2, 2)))


def test_a_database_grows_beyond_its_first_size(tmp_path: Path) -> None:
    value = np.random.default_rng(0).bytes(5_000_000)
    with new_database(str(tmp_path / "db")) as writer:
        for index in range(16):
            writer.put(b"%02d" % index, value)
    records = open_records(str(tmp_path / "db"))
    assert records.count() == 16
    assert records.seek(b"14")[1] == value and records.next()[0] == b"15" and records.next()[0] == b"00"
    records.close()


def test_a_database_appears_only_when_complete(tmp_path: Path) -> None:
    def stop_halfway() -> None:
        with new_database(str(tmp_path / "db")) as writer:
            writer.put(b"0", b"x")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop_halfway()
    assert list(tmp_path.iterdir()) == []
    write_lmdb(tmp_path / "db", [("0", ITEMS[0], 0)])
    with pytest.raises(DataError, match="exists already"), new_database(str(tmp_path / "db")):
        pass


def test_forks_shuffle_records(tmp_path: Path) -> None:
    """Each time round all records come once: Intel's way in an order of its own every time, NVIDIA's from the second on,
    in TRAIN alone and with `cache`."""
    write_lmdb(tmp_path / "db", [(f"{index:03d}", np.zeros((1, 1, 1), np.uint8), index) for index in range(30)])

    def rounds(more: str, phase: str = "train", dialect: str | None = None, count: int = 3) -> list[list[int]]:
        text = (
            f'layer {{ name: "d" type: "Data" top: "data" top: "label" data_param {{ source: "{tmp_path}/db" '
            f"backend: LMDB batch_size: 10 {more} }} }}"
        )
        (tmp_path / "net.prototxt").write_text(text)
        net = fcnproto.load(tmp_path / "net.prototxt", phase=phase, dialect=dialect)
        labels = [int(label) for _ in range(3 * count) for label in net(blobs=["label"])["label"]]
        return [labels[30 * k : 30 * (k + 1)] for k in range(count)]

    in_order = [*range(30)]
    for more, phase, dialect, firsts in (
        ("shuffle: true", "train", None, 0),
        ("shuffle: true", "test", None, 0),
        ("shuffle: true cache: true", "train", None, 1),
        ("shuffle: true cache: true", "test", None, 3),
        ("shuffle: true", "train", "nvidia", 3),
        ("", "train", None, 3),
    ):
        found = rounds(more, phase, dialect)
        assert [one == in_order for one in found] == [True] * firsts + [False] * (3 - firsts), (more, phase, dialect)
        assert all(sorted(one) == in_order for one in found)
        assert firsts == 3 or found[1] != found[2]


def test_shuffled_records_are_resumed(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "db", [(f"{index:03d}", np.zeros((1, 1, 1), np.uint8), index) for index in range(7)])
    text = (
        f'layer {{ name: "d" type: "Data" top: "data" top: "label" data_param {{ source: "{tmp_path}/db" backend: LMDB '
        "batch_size: 3 shuffle: true } }"
    )
    (tmp_path / "net.prototxt").write_text(text)
    first, second = (fcnproto.load(tmp_path / "net.prototxt", phase="train") for _ in range(2))
    for _ in range(3):
        first(blobs=["label"])
    second.data_layers()[0].set_position(json.loads(json.dumps(first.data_layers()[0].get_position())))
    for _ in range(4):
        assert torch.equal(first(blobs=["label"])["label"], second(blobs=["label"])["label"])
