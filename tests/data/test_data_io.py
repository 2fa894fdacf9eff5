"""pycaffe's io: the Transformer against recorded cases, interpolation against scipy, and the array helpers."""

from __future__ import annotations

from pathlib import Path

import golden_cases
import numpy as np
import pytest
from golden_cases import assert_close
from PIL import Image

from fcnproto.data import io
from fcnproto.data.interpolation import resize_normalised, zoom
from fcnproto.errors import DataError

CASES = [name for name in golden_cases.names("transform") if name.startswith("transformer_")]


def transformer(case: golden_cases.Case) -> io.Transformer:
    settings = case.facts["settings"]
    made = io.Transformer({"data": settings["input_shape"]})
    for name in ("transpose", "channel_swap", "raw_scale", "input_scale"):
        if name in settings:
            getattr(made, f"set_{name}")("data", settings[name])
    if "mean" in case.arrays:
        made.set_mean("data", case.arrays["mean"])
    return made


@pytest.mark.parametrize("name", CASES)
def test_transformer_case(name: str) -> None:
    case = golden_cases.load("transform", name)
    made = transformer(case)
    if "mean" in case.arrays:
        assert_close(made.mean["data"], case.arrays["mean_stored"], 1e-6, "mean")
    result = made.preprocess("data", case.arrays["image"])
    assert result.dtype == np.float32
    assert_close(result, case.arrays["preprocessed"], 1e-6, "preprocessed")
    back = made.deprocess("data", result)
    if "deprocessed" in case.arrays:
        assert_close(back, case.arrays["deprocessed"], 1e-6, "deprocessed")
    else:  # pycaffe can't undo a grey image with a mean; this must be its inverse
        assert_close(back, case.arrays["image"], 1e-6, "deprocessed")


def test_oversample_case() -> None:
    case = golden_cases.load("transform", "oversample")
    images = [case.arrays["image.0"], case.arrays["image.1"]]
    np.testing.assert_array_equal(io.oversample(images, case.facts["crop_dims"]), case.arrays["crops"])
    with pytest.raises(DataError, match="smaller than crops"):
        io.oversample(images, (50, 5))


@pytest.mark.parametrize("size", [(9, 30), (40, 40), (5, 7), (60, 11), (20, 1)])
def test_resizing_is_scikit_image_s_way(size: tuple[int, int]) -> None:
    """scikit-image: a Gaussian along sides that shrink, then scipy's zoom on the pixel grid."""
    ndimage = pytest.importorskip("scipy.ndimage")
    image = np.random.default_rng(0).random((20, 30, 3))
    factors = np.array([20 / size[0], 30 / size[1], 1])
    smooth = ndimage.gaussian_filter(image, np.maximum(0, (factors - 1) / 2), mode="grid-constant")
    expected = ndimage.zoom(smooth, 1 / factors, order=1, mode="grid-constant", grid_mode=True)
    np.testing.assert_allclose(resize_normalised(image, *size), expected.clip(image.min(), image.max()), atol=1e-12)
    cubic = ndimage.zoom(smooth, 1 / factors, order=3, mode="grid-constant", grid_mode=True)
    np.testing.assert_allclose(
        resize_normalised(image, *size, order=3), cubic.clip(image.min(), image.max()), atol=1e-9
    )


@pytest.mark.parametrize("size", [(9, 30), (40, 41), (5, 7)])
def test_zoom_is_scipy_s(size: tuple[int, int]) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    image = np.random.default_rng(0).random((20, 30, 5))
    expected = ndimage.zoom(image, (size[0] / 20, size[1] / 30, 1), order=1)
    np.testing.assert_allclose(zoom(image, *size), expected, atol=1e-12)


def test_resize_of_a_constant_image_and_wrong_shapes() -> None:
    assert (io.resize_image(np.full((4, 5, 3), 7.0), (9, 9)) == 7).all()
    with pytest.raises(DataError, match="3 axes"):
        io.resize_image(np.zeros((4, 5)), (2, 2))


def test_transformer_refuses() -> None:
    made = io.Transformer({"data": (1, 3, 4, 5)})
    for call in (lambda: made.set_raw_scale("image", 1), lambda: made.preprocess("image", np.zeros((4, 5, 3)))):
        with pytest.raises(DataError, match="'image' is not one of the net's inputs: 'data'"):
            call()
    with pytest.raises(DataError, match="expected 3 axes"):
        made.set_transpose("data", (2, 0))
    with pytest.raises(DataError, match="expected 3 channels"):
        made.set_channel_swap("data", (1, 0))
    with pytest.raises(ValueError, match="2 channels"):
        made.set_mean("data", np.zeros(2))
    with pytest.raises(ValueError, match="shape invalid"):
        made.set_mean("data", np.zeros((2, 4, 5)))
    with pytest.raises(ValueError, match="shape invalid"):
        made.set_mean("data", np.zeros((1, 3, 4, 5)))


def test_load_image(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 4), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "rgba.png")
    loaded = io.load_image(tmp_path / "rgba.png")
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, (image[:, :, :3] / 255.0).astype(np.float32))
    gray = io.load_image(tmp_path / "rgba.png", color=False)
    np.testing.assert_allclose(gray[:, :, 0], image[:, :, :3] @ [0.2125, 0.7154, 0.0721] / 255, rtol=1e-6)
    Image.fromarray(image[:, :, 0]).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(io.load_image(tmp_path / "gray.png")[:, :, 2] * 255, image[:, :, 0])
    deep = image[:, :, 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_allclose(io.load_image(tmp_path / "deep.png", color=False)[:, :, 0], deep / 65535, rtol=1e-6)
    with pytest.raises(DataError, match=r"none\.png"):
        io.load_image(tmp_path / "none.png")


def test_messages_and_arrays() -> None:
    array = np.random.default_rng(0).random((2, 3, 4)).astype(np.float32)
    blob = io.array_to_blobproto(array, diff=2 * array)
    np.testing.assert_array_equal(io.blobproto_to_array(blob), array)
    np.testing.assert_array_equal(io.blobproto_to_array(blob, return_diff=True), 2 * array)
    text = io.arraylist_to_blobprotovector_str([array, array[0]])
    for back, expected in zip(io.blobprotovector_str_to_arraylist(text), (array, array[0]), strict=True):
        np.testing.assert_array_equal(back, expected)
    datum = io.array_to_datum(array, 4)
    np.testing.assert_array_equal(io.datum_to_array(datum.SerializeToString()), array)
    blob.num, blob.channels, blob.height, blob.width = 1, 2, 3, 4
    assert io.blobproto_to_array(blob).shape == (1, 2, 3, 4)
