"""HHA of a synthetic room whose gravity, heights and angles are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcnproto.cli._main import main
from fcnproto.data.hha import Intrinsics, fill_holes, find_gravity, geometry, hha
from fcnproto.errors import DataError, UsageError

CAMERA = Intrinsics(110.0, 110.0, 63.5, 47.5)
SHAPE = (96, 128)
EYE = 1.4  # the camera's height in metres
# Planes of the room in world coordinates (x right, y down, z ahead, the camera at 0): normal . point = distance.
FLOOR, CEILING, BACK, LEFT, RIGHT, TABLE = range(6)
PLANES = [((0, 1, 0), EYE), ((0, -1, 0), 1.1), ((0, 0, 1), 4.5), ((-1, 0, 0), 2.2), ((1, 0, 0), 1.8)]
TABLE_HEIGHT = 0.75


def turn(pitch: float, roll: float) -> np.ndarray:
    """The matrix from the camera's to the world's coordinates; angles in degrees, pitch downwards."""
    p, r = np.radians([pitch, roll])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), np.sin(p)], [0, -np.sin(p), np.cos(p)]])
    about_z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return about_x @ about_z


def room(pitch: float = 12.0, roll: float = 5.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Depth, which surface each pixel shows, heights above the floor, and gravity in the camera's coordinates."""
    to_world = turn(pitch, roll)
    rays = CAMERA.rays(SHAPE) @ to_world.T
    distances = []
    for normal, distance in PLANES:
        along = rays @ np.array(normal, dtype=float)
        distances.append(np.where(along > 1e-9, distance / np.maximum(along, 1e-9), np.inf))
    table = (EYE - TABLE_HEIGHT) / np.maximum(rays[:, :, 1], 1e-9)
    hit = rays * table[:, :, None]
    on_table = (rays[:, :, 1] > 1e-9) & (np.abs(hit[:, :, 0]) < 0.6) & (hit[:, :, 2] > 1.6) & (hit[:, :, 2] < 2.8)
    distances.append(np.where(on_table, table, np.inf))
    depth = np.min(distances, axis=0)
    heights = EYE - (rays * depth[:, :, None])[:, :, 1]
    return depth, np.argmin(distances, axis=0), heights, to_world.T @ np.array([0.0, 1.0, 0.0])


def inside(surface: np.ndarray, margin: int = 4) -> np.ndarray:
    """Pixels whose whole window shows one surface."""
    same = np.ones(surface.shape, dtype=bool)
    for down in range(-margin, margin + 1):
        for across in range(-margin, margin + 1):
            same &= np.roll(surface, (down, across), (0, 1)) == surface
    same[:margin], same[-margin:], same[:, :margin], same[:, -margin:] = False, False, False, False
    return same


@pytest.mark.parametrize(("pitch", "roll"), [(12, 5), (0, 0), (-8, 10), (20, -6)])
def test_geometry_of_a_room(pitch: float, roll: float) -> None:
    depth, surface, heights, gravity = room(pitch, roll)
    scene = geometry(depth, CAMERA)
    assert np.degrees(np.arccos(np.clip(scene.gravity @ gravity, -1, 1))) < 1.0
    np.testing.assert_allclose(scene.heights, heights, atol=0.1)
    plain = inside(surface)
    expected = np.array([0, 180, 90, 90, 90, 0])[surface]
    assert np.abs(scene.angles() - expected)[plain].max() < 1.0
    assert BACK in surface[plain] and {FLOOR, TABLE} & set(surface[plain])


def test_channels_of_the_image() -> None:
    depth, surface, heights, _ = room()
    image = hha(depth, CAMERA).astype(int)
    assert image.shape == (*SHAPE, 3)
    np.testing.assert_allclose(image[:, :, 0], np.clip(310 / np.maximum(depth, 1), 0, 255), atol=0.51)
    np.testing.assert_allclose(image[:, :, 1], np.clip(100 * heights, 0, 255), atol=6)
    plain = inside(surface)
    for shown, value in ((FLOOR, 38), (TABLE, 38), (BACK, 128), (LEFT, 128)):
        assert np.abs(image[:, :, 2][plain & (surface == shown)] - value).max(initial=0) <= 1
    assert (plain & (surface == TABLE)).any()


def test_noise_and_holes() -> None:
    depth, surface, _, gravity = room()
    rng = np.random.default_rng(0)
    noisy = depth + 0.003 * depth**2 * rng.standard_normal(SHAPE)
    noisy[40:52, 60:70] = 0
    noisy[rng.random(SHAPE) < 0.05] = np.nan
    scene = geometry(noisy, CAMERA)
    assert np.degrees(np.arccos(scene.gravity @ gravity)) < 3.0
    expected = np.array([0, 180, 90, 90, 90, 0])[surface]
    assert np.median(np.abs(scene.angles() - expected)[inside(surface)]) < 8


def test_holes_are_filled_from_around() -> None:
    depth = np.full((37, 41), 2.0)
    depth[:, 20:] = 3.0
    depth[5:9, 3:7] = 0
    filled, known = fill_holes(depth)
    assert (filled[5:9, 3:7] == 2.0).all() and (~known).sum() == 16
    np.testing.assert_array_equal(filled[known], depth[known])
    for bad, message in ((np.zeros((3, 3)), "no depth above 0"), (np.ones((2, 2, 2)), "shape")):
        with pytest.raises(DataError, match=message):
            fill_holes(bad)


def test_gravity_without_walls_or_floors_stays_finite() -> None:
    for normal in ([0.0, 0.0, 1.0], [0.0, 1.0, 0.0]):
        found = find_gravity(np.repeat([normal], 50, axis=0))
        assert np.isfinite(found).all() and found[1] > 0.99


def test_a_camera_that_sees_no_ground() -> None:
    """Only a wall at eye height: the ground is taken to be 1.3 m below."""
    scene = geometry(np.full((20, 30), 1.5), Intrinsics(110.0, 110.0, 14.5, 9.5))
    assert scene.heights[9:11].mean() == pytest.approx(1.3, abs=0.05)
    with pytest.raises(UsageError, match="is no camera"):
        Intrinsics(0, 1, 2, 3)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    depth, *_ = room()
    Image.fromarray((depth * 1000).astype(np.uint16)).save(tmp_path / "a.png")
    command = ["hha", str(tmp_path / "a.png"), "-o", str(tmp_path / "out")]
    assert main([*command, "--camera", "110,110,63.5,47.5"]) == 0
    found = np.asarray(Image.open(tmp_path / "out" / "a.png")).astype(int)
    assert np.median(np.abs(found - hha(depth, CAMERA))) == 0
    assert main([*command, "--camera", "110"]) == 2
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "b.png")
    assert main(["hha", str(tmp_path / "b.png"), "-o", str(tmp_path / "out"), "--camera", "nyud"]) == 1
    assert "b.png: the depth map holds no depth above 0" in capsys.readouterr().err


def test_picture_of_a_ramp_between_floor_and_wall() -> None:
    """Every pixel away from the edges has the analytic disparity, height and angle, for a ramp of 30 degrees too."""
    slope = np.radians(30)
    rays = CAMERA.rays(SHAPE)
    down, ahead = rays[:, :, 1], rays[:, :, 2]
    floor = np.where(down > 1e-9, EYE / np.maximum(down, 1e-9), np.inf)
    # The ramp leaves the floor 4 m ahead: y = EYE - tan(30) * (z - 4); the wall stands 6 m ahead.
    ramp = (EYE + 4 * np.tan(slope)) / (down + ahead * np.tan(slope))
    depth = np.minimum(np.minimum(floor, np.where(ramp > 4, ramp, np.inf)), 6.0)
    surface = np.where(depth == 6.0, 2, np.where(depth == ramp, 1, 0))
    image = hha(depth, CAMERA).astype(int)
    height = EYE - down * depth
    expected = np.stack([310 / depth, 100 * height, 38 + np.array([0.0, 30.0, 90.0])[surface]], axis=2)
    plain = inside(surface)
    assert {0, 1, 2} == set(surface[plain])
    assert (np.abs(image - np.clip(expected, 0, 255))[plain] <= [0.51, 6, 1]).all()
