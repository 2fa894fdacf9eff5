"""convert-imageset and image-mean, as functions and as commands."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from data_layers import batches, make_source, write_images, write_lmdb
from PIL import Image

from fcnproto.cli._main import main
from fcnproto.data.images import decode, resize_bilinear
from fcnproto.data.records import open_records
from fcnproto.data.tools import ImageOptions, convert_imageset, image_mean, write_mean
from fcnproto.data.writing import new_database
from fcnproto.errors import DataError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.weights import read_blob

pytest.importorskip("lmdb")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "im", 3, 10, 12)
    (tmp_path / "list.txt").write_text("".join(f"image{index}.png {index + 1}\n" for index in range(3)))
    return tmp_path


def convert(
    folder: Path, options: ImageOptions | None = None, name: str = "db", **more: object
) -> list[tuple[bytes, caffe_pb2.Datum]]:
    report = convert_imageset(f"{folder}/im/", str(folder / "list.txt"), str(folder / name), options, **more)  # type: ignore[arg-type]
    records = open_records(str(folder / name))
    found = [records.seek(None)]
    while len(found) < records.count():
        found.append(records.next())
    records.close()
    assert report.written == len(found)
    return [(key, caffe_pb2.Datum.FromString(value)) for key, value in found]


def pixels(folder: Path) -> list[np.ndarray]:
    return [image[:, :, ::-1] for image in write_images(folder / "again", 3, 10, 12)]


def test_records_are_named_and_filled_as_caffe_s(folder: Path) -> None:
    found = convert(folder)
    assert [key for key, _ in found] == [b"00000000_image0.png", b"00000001_image1.png", b"00000002_image2.png"]
    for (_, datum), image, label in zip(found, pixels(folder), (1, 2, 3), strict=True):
        assert (datum.channels, datum.height, datum.width, datum.label, datum.encoded) == (3, 10, 12, label, False)
        assert datum.data == image.transpose(2, 0, 1).tobytes()


def test_resize_and_gray(folder: Path) -> None:
    found = convert(folder, ImageOptions(gray=True, resize=(4, 5)))
    gray = decode(str(folder / "im" / "image0.png"), "gray")
    assert found[0][1].data == resize_bilinear(gray, 4, 5).transpose(2, 0, 1).tobytes()
    assert found[0][1].channels == 1


def test_encoded_records(folder: Path) -> None:
    found = convert(folder, ImageOptions(encoded=True))
    assert found[0][1].encoded and found[0][1].data == (folder / "im" / "image0.png").read_bytes()
    jpeg = convert(folder, ImageOptions(encode_type="jpg"), "jpeg")[0][1]
    assert Image.open(io.BytesIO(jpeg.data)).format == "JPEG"
    small = convert(folder, ImageOptions(encoded=True, resize=(4, 5)), "small")[0][1]
    np.testing.assert_array_equal(decode(small.data), resize_bilinear(pixels(folder)[0], 4, 5))
    gray = convert(folder, ImageOptions(encoded=True, gray=True), "gray")[0][1]
    assert decode(gray.data).shape == (10, 12, 1)


def test_shuffle_is_repeatable_and_keeps_all(folder: Path) -> None:
    first = convert(folder, name="a", shuffle=True, seed=4)
    assert [key for key, _ in first] == [key for key, _ in convert(folder, name="b", shuffle=True, seed=4)]
    assert sorted(datum.label for _, datum in first) == [1, 2, 3]
    assert any(
        [datum.label for _, datum in convert(folder, name=f"c{seed}", shuffle=True, seed=seed)] != [1, 2, 3]
        for seed in range(4)
    )


def test_the_data_layer_reads_it(folder: Path) -> None:
    convert(folder)
    layer = make_source(
        'type: "Data" top: "d" top: "l" data_param { source: "db" batch_size: 3 backend: LMDB }', folder
    )
    ((data, label),) = batches(layer, 1)
    np.testing.assert_array_equal(data, np.stack(pixels(folder)).transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(label, [1, 2, 3])


def test_bad_images_are_left_out_and_reported(folder: Path) -> None:
    (folder / "im" / "image1.png").write_bytes(b"no image")
    report = convert_imageset(f"{folder}/im/", str(folder / "list.txt"), str(folder / "db"))
    assert report.written == 2 and len(report.failures) == 1 and "image1.png" in report.failures[0]
    (folder / "list.txt").write_text("none.png 0\n")
    with pytest.raises(DataError, match="none of its 1 images can be read"):
        convert_imageset(f"{folder}/im/", str(folder / "list.txt"), str(folder / "other"))
    assert not (folder / "other").exists()


def test_check_size(folder: Path) -> None:
    write_images(folder / "im" / "small", 1, 3, 3)
    (folder / "list.txt").write_text("image0.png 0\nsmall/image0.png 0\n")
    with pytest.raises(DataError, match="has 27 bytes of data, the first one 360"):
        convert(folder, ImageOptions(check_size=True))
    assert len(convert(folder)) == 2


def test_mean_of_a_database(folder: Path) -> None:
    convert(folder)
    report = image_mean(str(folder / "db"))
    expected = np.stack(pixels(folder)).transpose(0, 3, 1, 2).mean(axis=0, dtype=np.float64).astype(np.float32)
    np.testing.assert_array_equal(report.mean, expected)
    np.testing.assert_allclose(report.values, expected.mean(axis=(1, 2)), rtol=1e-6)
    write_mean(str(folder / "mean.binaryproto"), report.mean)
    assert read_blob(folder / "mean.binaryproto").shape == (1, 3, 10, 12)


def test_mean_of_float_records(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((3, 2, 4, 4)).astype(np.float32)
    write_lmdb(tmp_path / "db", [(str(index), value, 0) for index, value in enumerate(values)])
    np.testing.assert_allclose(image_mean(str(tmp_path / "db")).mean, values.mean(axis=0), rtol=1e-6)


def test_mean_of_a_folder(folder: Path) -> None:
    (folder / "im" / "notes.txt").write_text("no image")
    (folder / "im" / "broken.jpg").write_bytes(b"no image")
    report = image_mean(str(folder / "im"))
    assert report.count == 3 and len(report.failures) == 1
    np.testing.assert_allclose(report.mean, np.stack(pixels(folder)).transpose(0, 3, 1, 2).mean(axis=0), rtol=1e-6)
    write_images(folder / "im" / "small", 1, 3, 3)
    with pytest.raises(DataError, match="a mean needs one size"):
        image_mean(str(folder / "im"))
    assert image_mean(str(folder / "im"), gray=True, resize=(4, 4)).mean.shape == (1, 4, 4)
    with pytest.raises(DataError, match="no images in this folder"):
        image_mean(str(tmp_empty(folder)))
    with pytest.raises(DataError, match="neither a database nor a folder"):
        image_mean(str(folder / "none"))


def tmp_empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def test_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, database, mean = f"{folder}/im/", str(folder / "db"), str(folder / "mean.binaryproto")
    assert main(["convert-imageset", root, str(folder / "list.txt"), database, "--resize", "6x8"]) == 0
    assert "3 records in" in capsys.readouterr().out
    assert main(["image-mean", database, mean]) == 0
    out = capsys.readouterr().out
    assert read_blob(mean).shape == (1, 3, 6, 8)
    assert out.startswith("mean_value channel 0: ") and len(out.splitlines()) == 3
    assert main(["convert-imageset", root, str(folder / "list.txt"), database]) == 1
    assert "exists already" in capsys.readouterr().err
    (folder / "im" / "image1.png").unlink()
    assert main(["convert-imageset", root, str(folder / "list.txt"), str(folder / "other")]) == 1
    captured = capsys.readouterr()
    assert "image1.png: no such file" in captured.err and "2 records in" in captured.out


@pytest.mark.parametrize(
    ("flags", "gray", "size", "encoded"),
    [
        (["-resize_height", "6", "-resize_width", "8", "-gray"], True, (6, 8), False),
        (["--resize_height=6", "--resize_width=8", "--gray=false", "--shuffle=true"], False, (6, 8), False),
        (["-resize_height=0", "-resize_width=0", "-check_size", "-backend=lmdb"], False, (10, 12), False),
        (["--encoded=1", "--encode_type=png"], False, (10, 12), True),
    ],
)
def test_flags_as_caffe_spells_them(
    folder: Path, flags: list[str], gray: bool, size: tuple[int, int], encoded: bool
) -> None:
    assert main(["convert-imageset", *flags, f"{folder}/im/", str(folder / "list.txt"), str(folder / "db")]) == 0
    records = open_records(str(folder / "db"))
    datum = caffe_pb2.Datum.FromString(records.seek(None)[1])
    records.close()
    assert datum.encoded == encoded
    assert encoded or (datum.channels, datum.height, datum.width) == (1 if gray else 3, *size)
    assert main(["image-mean", "-backend", "lmdb", str(folder / "db"), str(folder / "mean.binaryproto")]) == 0
    assert read_blob(folder / "mean.binaryproto").shape == (1, 1 if gray else 3, *size)


@pytest.mark.parametrize("flags", [["-resize_height", "6"], ["--resize", "6x8", "-resize_height=6", "-resize_width=8"]])
def test_half_a_size_is_refused(folder: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert-imageset", *flags, f"{folder}/im/", str(folder / "list.txt"), str(folder / "db")]) == 2
    assert "both of --resize-height and --resize-width" in capsys.readouterr().err


def test_a_leveldb_without_its_module_is_refused_by_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "plyvel", None)
    target = str(folder / "db")
    assert main(["convert-imageset", "--backend", "leveldb", f"{folder}/im/", str(folder / "list.txt"), target]) == 1
    assert f"{target}: a LevelDB needs the module plyvel" in capsys.readouterr().err


def test_a_database_on_a_full_disk(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")

    def write() -> None:
        with new_database(str(tmp_path / "db")) as records:
            records.put(b"0", b"x")
            raise lmdb.DiskError("mdb_put: No space left on device")

    with pytest.raises(DataError, match=r"db: can't be written: .*No space left"):
        write()
    assert list(tmp_path.iterdir()) == []
