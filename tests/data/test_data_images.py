"""Decoding and resizing against OpenCV where it is installed, and against formulas where it is not."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcnproto.data.images import decode, resize_bilinear
from fcnproto.errors import DataError


def picture(height: int = 61, width: int = 83, channels: int = 3) -> np.ndarray:
    """A smooth picture with all values, in which chroma subsampling matters."""
    y, x = np.mgrid[:height, :width] / 20.0
    waves = [np.sin(x + c) + np.cos(y * (1 + c / 3)) + 0.3 * np.sin(9 * x * y / (1 + c)) for c in range(channels)]
    return np.clip(np.stack(waves, axis=2) * 55 + 128, 0, 255).astype(np.uint8)


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


RGB = Image.fromarray(picture())
GRAY = Image.fromarray(picture(channels=1)[:, :, 0])
FILES = {
    "jpeg_420": encode(RGB, "JPEG", quality=80, subsampling=2),
    "jpeg_444": encode(RGB, "JPEG", quality=95, subsampling=0),
    "jpeg_progressive": encode(RGB, "JPEG", progressive=True),
    "jpeg_gray": encode(GRAY, "JPEG"),
    "jpeg_cmyk": encode(RGB.convert("CMYK"), "JPEG"),
    "jpeg_turned": encode(RGB, "JPEG", exif=turned()),
    "png": encode(RGB, "PNG"),
    "png_gray": encode(GRAY, "PNG"),
    "png_palette": encode(RGB.quantize(64), "PNG"),
    "png_alpha": encode(Image.merge("RGBA", (*RGB.split(), GRAY)), "PNG"),
    "png_gray_alpha": encode(Image.merge("LA", (GRAY, GRAY)), "PNG"),
    "png_bits": encode(GRAY.convert("1"), "PNG"),
    "png_turned": encode(RGB, "PNG", exif=turned()),
    "bmp": encode(RGB, "BMP"),
    "tiff": encode(RGB, "TIFF"),
}


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize(("mode", "flag"), [("native", -1), ("color", 1), ("gray", 0)])
def test_decoding_is_opencv_s(name: str, mode: Any, flag: int) -> None:
    cv2 = pytest.importorskip("cv2")
    expected = cv2.imdecode(np.frombuffer(FILES[name], np.uint8), flag)
    expected = expected[:, :, None] if expected.ndim == 2 else expected
    ours = decode(FILES[name], mode)
    assert ours.shape == expected.shape and ours.dtype == np.uint8
    # Lossless formats must agree; JPEG decoders of another version may round some values otherwise.
    difference = np.abs(ours.astype(int) - expected)
    assert difference.max() <= (1 if name.startswith("jpeg") else 0)
    assert (difference > 0).mean() < 0.01


def test_color_is_bgr() -> None:
    np.testing.assert_array_equal(decode(FILES["png"], "color"), picture()[:, :, ::-1])


def test_sixteen_bits_are_refused_natively_and_stripped_otherwise() -> None:
    data = encode(Image.fromarray(picture(channels=1)[:, :, 0].astype(np.uint16) * 257), "PNG")
    with pytest.raises(DataError, match="more than 8 bits"):
        decode(data, name="it.png")
    np.testing.assert_array_equal(decode(data, "gray"), picture(channels=1))


@pytest.mark.parametrize("content", [b"", b"<html></html>", FILES["jpeg_420"][:200], FILES["png"][:300]])
def test_bad_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    for mode in ("native", "color", "gray"):
        with pytest.raises(DataError, match=r"bad\.png"):
            decode(str(path), mode)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"none\.png: no such file"):
        decode(str(tmp_path / "none.png"))


SIZES = [(40, 60, 20, 30), (41, 61, 20, 30), (40, 60, 80, 120), (37, 50, 25, 25), (60, 90, 26, 27), (7, 9, 7, 9)]
SIZES += [(40, 60, 20, 60), (1, 1, 3, 4), (5, 7, 1, 1), (2, 31, 31, 2), (64, 64, 32, 31), (120, 80, 33, 97)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_is_opencv_s_bit_by_bit(sizes: tuple[int, int, int, int], channels: int) -> None:
    cv2 = pytest.importorskip("cv2")
    rows, columns, height, width = sizes
    image = np.random.default_rng(rows).integers(0, 256, (rows, columns, channels), dtype=np.uint8)
    expected = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, channels)
    np.testing.assert_array_equal(resize_bilinear(image, height, width), expected)


def test_resizing_follows_the_formula() -> None:
    """Half-pixel centres, edges repeated; to one grey level because of the fixed-point weights."""
    image = picture(30, 47)
    height, width = 19, 70
    y = ((np.arange(height) + 0.5) * 30 / height - 0.5).clip(0, 29)
    x = ((np.arange(width) + 0.5) * 47 / width - 0.5).clip(0, 46)
    top, left = np.floor(y).astype(int).clip(0, 28), np.floor(x).astype(int).clip(0, 45)
    dy, dx = (y - top)[:, None, None], (x - left)[None, :, None]
    pixels = image.astype(float)
    upper = pixels[top][:, left] * (1 - dx) + pixels[top][:, left + 1] * dx
    lower = pixels[top + 1][:, left] * (1 - dx) + pixels[top + 1][:, left + 1] * dx
    assert np.abs(resize_bilinear(image, height, width) - (upper * (1 - dy) + lower * dy)).max() <= 1.0
