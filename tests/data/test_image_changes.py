"""Resizing and colours as OpenCV has them: against OpenCV where it is there, else what must hold anyway."""

from __future__ import annotations

import numpy as np
import pytest

from fcnproto.data.colour import distort, from_hsv, problem, to_hsv
from fcnproto.data.resizing import Settings, apply_resize, resize, resized_shape
from fcnproto.errors import DataError
from fcnproto.schema import caffe_pb2

MODES = {"AREA": 1, "NEAREST": 0, "CUBIC": 1, "LANCZOS4": 1}
"""The levels by which each may differ from OpenCV's fixed point."""
IMAGE = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(30, 30), (60, 75), (20, 75), (37, 25)])
def test_interpolations_are_opencv_s(mode: str, size: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2", reason="compares with OpenCV")
    expected = cv2.resize(IMAGE, size[::-1], interpolation=getattr(cv2, f"INTER_{mode}"))
    ours = resize(IMAGE, *size, getattr(Settings, mode))
    assert np.abs(ours.astype(int) - expected).max() <= MODES[mode]


def test_area_takes_means_and_nearest_takes_pixels() -> None:
    image = np.arange(32, dtype=np.uint8).reshape(4, 8, 1)
    assert resize(image, 2, 2, Settings.AREA)[..., 0].tolist() == [[6, 10], [22, 26]]
    assert resize(image, 2, 4, Settings.NEAREST)[..., 0].tolist() == [[0, 2, 4, 6], [16, 18, 20, 22]]


@pytest.mark.parametrize("mode", ["LINEAR", *MODES])
def test_a_uniform_image_stays_so(mode: str) -> None:
    image = np.full((9, 14, 3), 77, np.uint8)
    assert (resize(image, 20, 6, getattr(Settings, mode)) == 77).all()


def padded(shape: tuple[int, int], **settings: object) -> np.ndarray:
    resize_param = Settings(resize_mode=Settings.FIT_LARGE_SIZE_AND_PAD, height=20, width=30, **settings)
    return apply_resize(np.full((*shape, 3), 100, np.uint8), resize_param, None)


def test_borders() -> None:
    wide = padded((10, 60), pad_value=[1, 2, 3])
    assert wide.shape == (20, 30, 3)
    assert (wide[7:12] == 100).all() and (wide[:7] == [1, 2, 3]).all() and (wide[12:] == [1, 2, 3]).all()
    high = padded((40, 20), pad_value=[9])
    assert (high[:, 10:20] == 100).all() and (high[:, :10] == 9).all() and (high[:, 20:] == 9).all()
    assert (padded((10, 60), pad_mode=Settings.REPEAT_NEAREST) == 100).all()
    assert (padded((40, 20), pad_mode=Settings.MIRRORED) == 100).all()
    with pytest.raises(DataError, match="2 pad_values for 3 channels"):
        padded((10, 60), pad_value=[1, 2])


def test_the_small_side_fits() -> None:
    settings = Settings(resize_mode=Settings.FIT_SMALL_SIZE, height=20, width=30)
    assert resized_shape(40, 100, settings) == (20, 50) and resized_shape(100, 50, settings) == (60, 30)
    assert apply_resize(IMAGE, settings, None).shape == (22, 30, 3)


def test_one_interpolation_is_drawn() -> None:
    settings = Settings(height=20, width=30, interp_mode=[Settings.NEAREST, Settings.AREA])
    found = {apply_resize(IMAGE, settings, np.random.default_rng(seed)).tobytes() for seed in range(8)}
    assert found == {resize(IMAGE, 20, 30, mode).tobytes() for mode in (Settings.NEAREST, Settings.AREA)}


def test_hue_is_opencv_s() -> None:
    cv2 = pytest.importorskip("cv2", reason="compares with OpenCV")
    np.testing.assert_array_equal(to_hsv(IMAGE), cv2.cvtColor(IMAGE, cv2.COLOR_BGR2HSV))
    apart = from_hsv(IMAGE).astype(int) - cv2.cvtColor(IMAGE, cv2.COLOR_HSV2BGR)
    assert np.abs(apart).max() <= 1


def test_hue_of_known_colours() -> None:
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 255, 255], [90, 90, 90]]], np.uint8)
    hsv = [[120, 255, 255], [60, 255, 255], [0, 255, 255], [30, 255, 255], [0, 0, 90]]
    assert to_hsv(colours)[0].tolist() == hsv
    np.testing.assert_array_equal(from_hsv(np.array([hsv], np.uint8)), colours)


def distorted(image: np.ndarray, seed: int = 0, **settings: float) -> np.ndarray:
    return distort(image, caffe_pb2.DistortionParameter(**settings), np.random.default_rng(seed))


def test_distortions() -> None:
    np.testing.assert_array_equal(distorted(IMAGE), IMAGE)
    shifts = {
        int(distorted(np.full((1, 1, 3), 100, np.uint8), s, brightness_prob=1, brightness_delta=9)[0, 0, 0])
        for s in range(60)
    }
    assert min(shifts) < 95 and max(shifts) > 105 and 91 <= min(shifts) <= max(shifts) <= 109
    doubled = distorted(IMAGE, contrast_prob=1, contrast_lower=2, contrast_upper=2)
    np.testing.assert_array_equal(doubled, (IMAGE.astype(int) * 2).clip(0, 255))
    grey = distorted(IMAGE, saturation_prob=1, saturation_lower=0, saturation_upper=0)
    np.testing.assert_array_equal(grey, IMAGE.max(2, keepdims=True).repeat(3, 2))
    assert to_hsv(distorted(IMAGE, hue_prob=1, hue_delta=18)).shape == IMAGE.shape
    np.testing.assert_array_equal(np.sort(distorted(IMAGE, random_order_prob=1)), np.sort(IMAGE))
    with pytest.raises(DataError, match="1 channels; set force_color"):
        distorted(IMAGE[..., :1], hue_prob=1)


def test_settings_in_order() -> None:
    assert problem(caffe_pb2.DistortionParameter()) is None
    assert "hue_delta must not be negative" in str(problem(caffe_pb2.DistortionParameter(hue_delta=-1)))
    wrong = caffe_pb2.DistortionParameter(contrast_prob=1, contrast_lower=2, contrast_upper=1)
    assert "contrast_lower 2 must be from 0 to contrast_upper 1" in str(problem(wrong))
