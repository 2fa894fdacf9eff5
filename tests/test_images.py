"""Reading images of every usual kind, preprocessing, means, and the names of results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcnproto.data.published import load_color
from fcnproto.errors import DataError, FcnprotoWarning, WeightsError
from fcnproto.image_files import find_images
from fcnproto.images import Preprocessing, limit_side, parse_mean, read_depth, read_image, read_mean, to_blob
from fcnproto.schema.weights import write_blob


@pytest.fixture
def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def read(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


class TestReading:
    def test_rgb(self, tmp_path: Path, colours: np.ndarray) -> None:
        Image.fromarray(colours).save(tmp_path / "a.png")
        assert (read(tmp_path / "a.png") == colours).all()

    def test_grey_has_three_equal_channels(self, tmp_path: Path, colours: np.ndarray) -> None:
        Image.fromarray(colours[:, :, 0]).save(tmp_path / "a.png")
        assert (read(tmp_path / "a.png") == colours[:, :, :1]).all()

    def test_sixteen_bits_are_scaled_to_eight(self, tmp_path: Path) -> None:
        values = np.array([[0, 257, 65535], [128 * 257, 300, 50000]], dtype=np.uint16)
        Image.fromarray(values).save(tmp_path / "a.png")
        expected = np.array([[0, 1, 255], [128, 1, 195]])
        assert (read(tmp_path / "a.png") == expected[:, :, None]).all()

    def test_one_bit(self, tmp_path: Path) -> None:
        bits = np.array([[True, False], [False, True]])
        Image.fromarray(bits).save(tmp_path / "a.png")
        assert (read(tmp_path / "a.png") == np.where(bits, 255, 0)[:, :, None]).all()

    def test_transparent_pixels_are_white(self, tmp_path: Path, colours: np.ndarray) -> None:
        alpha = np.zeros((5, 7, 1), dtype=np.uint8)
        alpha[:3] = 255
        Image.fromarray(np.concatenate([colours, alpha], axis=2)).save(tmp_path / "a.png")
        expected = np.where(alpha > 0, colours, 255)
        assert (read(tmp_path / "a.png") == expected).all()

    def test_grey_with_alpha(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[[10, 255], [10, 0]]], dtype=np.uint8)).save(tmp_path / "a.png")
        assert read(tmp_path / "a.png").tolist() == [[[10] * 3, [255] * 3]]

    def test_palette(self, tmp_path: Path) -> None:
        image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8))
        image.putpalette([1, 2, 3, 40, 50, 60, 255, 0, 7])
        image.save(tmp_path / "a.png")
        assert read(tmp_path / "a.png").tolist() == [[[1, 2, 3], [40, 50, 60], [255, 0, 7]]]

    def test_palette_with_a_transparent_entry(self, tmp_path: Path) -> None:
        image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8))
        image.putpalette([1, 2, 3, 40, 50, 60])
        image.save(tmp_path / "a.png", transparency=0)
        assert read(tmp_path / "a.png").tolist() == [[[255] * 3, [40, 50, 60]]]

    def test_cmyk(self, tmp_path: Path) -> None:
        inks = np.zeros((8, 8, 4), dtype=np.uint8)
        inks[:, :4, 0] = 255  # cyan: no red
        Image.fromarray(inks, mode="CMYK").save(tmp_path / "a.tif")
        found = read(tmp_path / "a.tif")
        assert found[0, 0].tolist() == [0, 255, 255]
        assert found[0, 7].tolist() == [255, 255, 255]

    def test_cmyk_jpeg(self, tmp_path: Path) -> None:
        Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
        assert np.abs(read(tmp_path / "a.jpg")[8, 8].astype(int) - [255, 0, 0]).max() <= 3

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, tmp_path: Path, orientation: int) -> None:
        upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
        # What EXIF's orientations mean for the stored pixels, from the standard's table of row 0 and column 0.
        stored = {
            1: upright,
            2: upright[:, ::-1],
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: upright.T,
            6: upright.T[::-1],
            7: upright[::-1, ::-1].T,
            8: upright.T[:, ::-1],
        }[orientation]
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
        assert (read(tmp_path / "a.png")[:, :, 0] == upright).all()

    def test_first_frame_of_an_animation(self, tmp_path: Path) -> None:
        frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        assert read(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


class TestUnreadable:
    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"", "the file is empty"), (b"hello", "not an image"), (b"\x89PNG\r\n\x1a\n" + b"x" * 50, "image")],
    )
    def test_damaged(self, tmp_path: Path, content: bytes, message: str) -> None:
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(DataError, match=f"a.png.*{message}"):
            read_image(tmp_path / "a.png")

    def test_cut_off(self, tmp_path: Path, colours: np.ndarray) -> None:
        Image.fromarray(np.tile(colours, (20, 20, 1))).save(tmp_path / "a.jpg")
        content = (tmp_path / "a.jpg").read_bytes()
        (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match="a.jpg"):
            read_image(tmp_path / "a.jpg")

    def test_missing_and_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no such file"):
            read_image(tmp_path / "a.png")
        with pytest.raises(DataError, match="folder"):
            read_image(tmp_path)

    def test_floating_point(self, tmp_path: Path) -> None:
        Image.fromarray(np.ones((3, 3), dtype=np.float32)).save(tmp_path / "a.tif")
        with pytest.raises(DataError, match=r"a\.tif.*floating-point"):
            read_image(tmp_path / "a.tif")

    def test_thirty_two_bits(self, tmp_path: Path) -> None:
        Image.fromarray(np.full((3, 3), 70000, dtype=np.int32)).save(tmp_path / "a.tif")
        with pytest.raises(DataError, match="32-bit"):
            read_image(tmp_path / "a.tif")


class TestPreprocessing:
    def test_as_the_published_data_layers_do(self, tmp_path: Path, colours: np.ndarray) -> None:
        Image.fromarray(colours).save(tmp_path / "a.png")
        mean = (104.00699, 116.66877, 122.67892)
        blob = to_blob(read_image(tmp_path / "a.png"), Preprocessing("bgr", np.array(mean)))
        assert blob.dtype == np.float32
        assert (blob == load_color(str(tmp_path / "a.png"), mean)).all()

    def test_rgb_with_scale(self, colours: np.ndarray) -> None:
        blob = to_blob(Image.fromarray(colours), Preprocessing("rgb", np.array([10.0]), scale=0.5))
        np.testing.assert_array_equal(blob, (colours.transpose(2, 0, 1) - 10.0) * 0.5)

    def test_grey_weighs_the_colours(self, colours: np.ndarray) -> None:
        blob = to_blob(Image.fromarray(colours), Preprocessing("grey"))
        np.testing.assert_allclose(blob, (colours @ [0.299, 0.587, 0.114])[None], rtol=1e-6)

    def test_depth(self, tmp_path: Path) -> None:
        depth = np.array([[1000, 2500], [4000, 65535]], dtype=np.uint16)
        Image.fromarray(depth).save(tmp_path / "d.png")
        blob = to_blob(read_depth(tmp_path / "d.png"), Preprocessing("depth", np.array([7.844])))
        np.testing.assert_allclose(blob, (np.log(depth) - 7.844)[None], rtol=1e-5)

    def test_depth_of_zero(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[0, 2500]], dtype=np.uint16)).save(tmp_path / "d.png")
        with pytest.raises(DataError, match="1 pixels have depth 0"):
            to_blob(read_depth(tmp_path / "d.png"), Preprocessing("depth"))

    def test_depth_from_a_colour_image(self, tmp_path: Path, colours: np.ndarray) -> None:
        Image.fromarray(colours).save(tmp_path / "d.png")
        with pytest.raises(DataError, match="one channel"):
            read_depth(tmp_path / "d.png")

    def test_mean_image_of_the_same_size(self, colours: np.ndarray) -> None:
        mean = np.random.default_rng(1).random((3, 5, 7), dtype=np.float32)
        blob = to_blob(Image.fromarray(colours), Preprocessing("bgr", mean))
        np.testing.assert_allclose(blob, colours[:, :, ::-1].transpose(2, 0, 1) - mean)

    def test_mean_image_of_another_size_counts_by_channel(self, colours: np.ndarray) -> None:
        mean = np.random.default_rng(1).random((3, 2, 2), dtype=np.float32)
        with pytest.warns(FcnprotoWarning, match="mean image is 2x2"):
            blob = to_blob(Image.fromarray(colours), Preprocessing("bgr", mean))
        expected = colours[:, :, ::-1].transpose(2, 0, 1) - mean.mean(axis=(1, 2))[:, None, None]
        np.testing.assert_allclose(blob, expected, rtol=1e-5)

    def test_mean_of_wrong_channels(self, colours: np.ndarray) -> None:
        with pytest.raises(DataError, match="2 channels"):
            to_blob(Image.fromarray(colours), Preprocessing("bgr", np.array([1.0, 2.0])))

    def test_limit_side(self) -> None:
        assert limit_side((1000, 500), 100) == (100, 50)
        assert limit_side((3, 1000), 100) == (1, 100)
        assert limit_side((80, 50), 100) == (80, 50)
        assert limit_side((80, 50), None) == (80, 50)


class TestMeans:
    def test_numbers_and_none(self) -> None:
        assert parse_mean("none") is None
        mean = parse_mean("104.5,117,-3")
        assert mean is not None
        assert mean.tolist() == [104.5, 117, -3]

    def test_binaryproto(self, tmp_path: Path) -> None:
        values = np.random.default_rng(0).random((1, 3, 4, 5), dtype=np.float32)
        write_blob(tmp_path / "mean.binaryproto", values)
        mean = parse_mean(str(tmp_path / "mean.binaryproto"))
        assert mean is not None
        assert (mean == values[0]).all()

    def test_npy(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.ones((3, 4, 5)))
        assert read_mean(tmp_path / "a.npy").shape == (3, 4, 5)
        np.save(tmp_path / "b.npy", np.array([1, 2, 3]))
        assert read_mean(tmp_path / "b.npy").tolist() == [1, 2, 3]

    @pytest.mark.parametrize("array", [np.ones((4, 5, 3)), np.ones((2, 3, 4, 4)), np.array([np.nan]), np.array(["a"])])
    def test_npy_that_is_no_mean(self, tmp_path: Path, array: np.ndarray) -> None:
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(DataError, match=r"a\.npy"):
            read_mean(tmp_path / "a.npy")

    def test_bad_files(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no such mean file"):
            parse_mean(str(tmp_path / "missing.npy"))
        (tmp_path / "a.npy").write_bytes(b"rubbish")
        with pytest.raises(DataError, match="not a readable .npy file"):
            read_mean(tmp_path / "a.npy")
        (tmp_path / "a.binaryproto").write_bytes(b"<html>")
        with pytest.raises(WeightsError):
            read_mean(tmp_path / "a.binaryproto")


class TestFinding:
    def touch(self, *paths: Path) -> None:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def names(self, *places: Path, recursive: bool = False) -> list[str]:
        return [name for _, name in find_images(places, recursive)]

    def test_folder_in_order_without_other_files(self, tmp_path: Path) -> None:
        self.touch(*(tmp_path / name for name in ("b.jpg", "a.PNG", "notes.txt", ".hidden.png", "sub/c.png")))
        assert self.names(tmp_path) == ["a", "b"]
        assert self.names(tmp_path, recursive=True) == ["a", "b", "sub/c"]

    def test_same_stem_with_other_suffixes(self, tmp_path: Path) -> None:
        self.touch(tmp_path / "a.jpg", tmp_path / "a.png", tmp_path / "b.png")
        assert self.names(tmp_path) == ["a_jpg", "a_png", "b"]

    def test_same_name_in_two_folders(self, tmp_path: Path) -> None:
        paths = [tmp_path / "x" / "a.jpg", tmp_path / "y" / "a.jpg"]
        self.touch(*paths)
        assert self.names(*paths) == ["x_a", "y_a"]
        assert self.names(tmp_path / "x", tmp_path / "y") == ["x_a", "y_a"]

    def test_same_name_in_folders_of_the_same_name(self, tmp_path: Path) -> None:
        paths = [tmp_path / "1" / "x" / "a.jpg", tmp_path / "2" / "x" / "a.jpg"]
        self.touch(*paths)
        assert self.names(*paths) == ["1_x_a", "2_x_a"]

    def test_names_that_differ_by_case_alone(self, tmp_path: Path) -> None:
        self.touch(tmp_path / "x" / "a.jpg", tmp_path / "y" / "A.jpg")
        assert len({name.lower() for name in self.names(tmp_path / "x", tmp_path / "y")}) == 2

    def test_given_twice_counts_once(self, tmp_path: Path) -> None:
        self.touch(tmp_path / "a.jpg")
        assert self.names(tmp_path, tmp_path / "a.jpg") == ["a"]

    def test_missing_file_is_kept(self, tmp_path: Path) -> None:
        assert find_images([tmp_path / "no.jpg"]) == [(tmp_path / "no.jpg", "no")]
