"""transform_param: the order of the steps, random draws, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

from fcnproto.data.transform import DataTransform
from fcnproto.errors import DataError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.weights import write_blob

ITEM = np.random.default_rng(1).integers(0, 256, (3, 7, 9), dtype=np.uint8)


def make(text: str, base_dir: Path | None = None) -> DataTransform:
    param = caffe_pb2.TransformationParameter()
    text_format.Merge(text, param)
    return DataTransform(param, None if base_dir is None else str(base_dir))


class Draws:
    """Stands in for a generator: gives the numbers it was made with and records what was asked for."""

    def __init__(self, *values: int) -> None:
        self.values, self.asked = list(values), []

    def integers(self, count: int) -> int:
        self.asked.append(count)
        return self.values.pop(0)


def test_uint8_is_unsigned_and_nothing_is_drawn() -> None:
    result = make("")(ITEM, False, None)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, ITEM)


def test_mean_comes_before_scale() -> None:
    expected = (ITEM.astype(np.float32) - np.float32([[[10]], [[20]], [[30]]])) * np.float32(0.25)
    np.testing.assert_array_equal(
        make("scale: 0.25 mean_value: 10 mean_value: 20 mean_value: 30")(ITEM, True, None), expected
    )
    one = (ITEM.astype(np.float32) - np.float32(10)) * np.float32(0.25)
    np.testing.assert_array_equal(make("scale: 0.25 mean_value: 10")(ITEM, True, None), one)


def test_crop_is_central_in_test_and_random_in_train() -> None:
    transform = make("crop_size: 4")
    np.testing.assert_array_equal(transform(ITEM, False, None), ITEM[:, 1:5, 2:6])
    draws = Draws(3, 5)
    np.testing.assert_array_equal(transform(ITEM, True, draws), ITEM[:, 3:7, 5:9])
    assert draws.asked == [4, 6]


def test_draws_come_in_order_mirror_row_column(tmp_path: Path) -> None:
    mean = np.random.default_rng(2).random((1, 3, 7, 9)).astype(np.float32)
    write_blob(tmp_path / "mean.binaryproto", mean)
    transform = make('mirror: true crop_size: 4 mean_file: "mean.binaryproto" scale: 2', tmp_path)
    draws = Draws(1, 2, 5)
    result = transform(ITEM, True, draws)
    assert draws.asked == [2, 4, 6]
    # The mean is taken at the crop's place and not mirrored by itself.
    expected = ((ITEM.astype(np.float32) - mean[0])[:, 2:6, 5:9] * np.float32(2))[:, :, ::-1]
    np.testing.assert_array_equal(result, expected)


def test_mirror_is_random_in_test_too() -> None:
    transform = make("mirror: true")
    assert transform.is_random(False)
    np.testing.assert_array_equal(transform(ITEM, False, Draws(1)), ITEM[:, :, ::-1])
    np.testing.assert_array_equal(transform(ITEM, False, Draws(0)), ITEM)
    assert not make("crop_size: 4").is_random(False)


def test_refusals(tmp_path: Path) -> None:
    assert "not both" in str(make('mean_file: "x" mean_value: 1').problem())
    assert "not both" in str(make("force_color: true force_gray: true").problem())
    assert make("mean_value: 1").problem() is None
    with pytest.raises(DataError, match="smaller than crop_size 8"):
        make("crop_size: 8")(ITEM, False, None)
    with pytest.raises(DataError, match="2 mean_values for 3 channels"):
        make("mean_value: 1 mean_value: 2")(ITEM, False, None)
    write_blob(tmp_path / "mean.binaryproto", np.zeros((1, 3, 4, 4), np.float32))
    with pytest.raises(DataError, match=r"\(3, 4, 4\), but an item \(before cropping\) \(3, 7, 9\)"):
        make('crop_size: 4 mean_file: "mean.binaryproto"', tmp_path)(ITEM, False, None)
    with pytest.raises(DataError, match="mean_file 'none' not found"):
        make('mean_file: "none"', tmp_path)(ITEM, False, None)
    (tmp_path / "bad").write_bytes(b"<html>")
    with pytest.raises(DataError, match="bad"):
        make('mean_file: "bad"', tmp_path)(ITEM, False, None)
