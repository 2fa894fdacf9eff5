"""Rooms with depth: drawn scenes before a floor, a wall and a ceiling in perspective, with a depth map.

For what colour and depth together, or two labellings of one image, are good for: a pinhole camera looks into a room
whose surfaces are textured in perspective; objects of `scenes` stand in front of them at depths of their own, nearer
ones over farther ones, round ones bulging. The depth map has a sensor's noise, which grows with the square of the
depth. Numpy and Pillow only.

    room = draw_room(seed=7)     # room.image, room.label as of a scene; room.surface, room.depth
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fcnproto.data.hha import Intrinsics
from fcnproto.scenes.objects import OBJECTS
from fcnproto.scenes.rendering import cast_shadow, paste, photograph, render
from fcnproto.scenes.scenes import SIZE, generator, places, random_light
from fcnproto.scenes.textures import texture

SURFACES: tuple[str, ...] = ("floor", "upright", "ceiling")
"""Names of the surface labels: objects and walls are upright."""

_TILE = 256
_TILES_PER_METRE = 0.35
_HEIGHT = 2.6


@dataclass(frozen=True)
class Room:
    """`image`: uint8 (height, width, 3), RGB. `label`: uint8 (height, width), indices into `scenes.CLASSES`.
    `surface`: uint8 (height, width), indices into `SURFACES`. `depth`: float32 (height, width), metres."""

    image: np.ndarray
    label: np.ndarray
    surface: np.ndarray
    depth: np.ndarray


def camera(size: int = SIZE) -> Intrinsics:
    """The camera of rooms of `size` x `size` pixels: 53 degrees wide."""
    return Intrinsics(float(size), float(size), (size - 1) / 2, (size - 1) / 2)


def draw_room(seed: int | Sequence[int], size: int = SIZE) -> Room:
    """One room of `size` x `size` pixels; `seed` is a number or several, as for `numpy.random.SeedSequence`."""
    rng = generator(seed)
    canvas, depth, surface = _shell(rng, size)
    label = np.zeros((size, size), np.uint8)
    light = random_light(rng)
    standing = []
    for x, y, radius in places(rng, size):
        row, column = (min(max(int(at), 0), size - 1) for at in (y, x))
        standing.append((float(depth[row, column]) * rng.uniform(0.4, 0.85), x, y, radius))
    for distance, x, y, radius in sorted(standing, reverse=True):
        index = int(rng.integers(len(OBJECTS)))
        outline = list(OBJECTS.values())[index](rng)
        sprite = render(rng, outline, x, y, radius, light)
        cast_shadow(canvas, sprite, light)
        before = label.copy()
        label[:] = 255
        paste(canvas, label, sprite, index + 1)
        covered = label != 255
        label[~covered] = before[~covered]
        depth[covered] = _front(covered, x, y, radius, distance, outline.round, size)
        surface[covered] = SURFACES.index("upright")
    noisy = depth + 0.002 * depth**2 * rng.standard_normal(depth.shape, dtype=np.float32)
    return Room(photograph(rng, canvas), label, surface, np.maximum(noisy, 0.3).astype(np.float32))


def _front(
    covered: np.ndarray, x: float, y: float, radius: float, distance: float, bulges: bool, size: int
) -> np.ndarray | float:
    """The depths of an object's pixels: a board facing the camera, or half a ball in front of it."""
    if not bulges:
        return distance
    rows, columns = np.nonzero(covered)
    inside = np.clip(1 - ((columns - x) ** 2 + (rows - y) ** 2) / radius**2, 0.0, 1.0)
    thickness = min(radius * distance / size, 0.4 * distance)
    return (distance - thickness * np.sqrt(inside)).astype(np.float32)


def _shell(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The empty room: colours (size, size, 3), depths and surface labels (size, size)."""
    above_floor, pitch, yaw = rng.uniform(1.1, 1.7), rng.uniform(-0.25, 0.3), rng.uniform(-0.5, 0.5)
    rays = camera(size).rays((size, size))
    cosine, sine = math.cos(pitch), math.sin(pitch)
    # The room's axes seen from the camera: down, and across and away as the wall stands.
    down = rays @ np.array([0.0, cosine, sine])
    level = rays @ np.array([0.0, -sine, cosine])
    away = math.cos(yaw) * level + math.sin(yaw) * rays[:, :, 0]
    across = math.cos(yaw) * rays[:, :, 0] - math.sin(yaw) * level
    with np.errstate(divide="ignore"):
        reaches = np.stack(
            [
                np.where(down > 0, above_floor / down, np.inf),
                np.where(away > 0, rng.uniform(2.0, 5.0) / away, np.inf),
                np.where(down < 0, (above_floor - _HEIGHT) / down, np.inf),
            ]
        )
    surface = reaches.argmin(axis=0).astype(np.uint8)
    depth = np.minimum(reaches.min(axis=0), 12.0)
    canvas = np.zeros((size, size, 3), np.float32)
    second = {"floor": away, "upright": down, "ceiling": away}
    for index, name in enumerate(SURFACES):
        tile = texture(rng, _TILE, _TILE, calm=rng.random() < 0.5)
        here = surface == index
        rows, columns = (_place(axis[here] * depth[here]) for axis in (second[name], across))
        canvas[here] = tile[rows, columns] * np.float32(rng.uniform(0.7, 1.0))
    return canvas, depth.astype(np.float32), surface


def _place(metres: np.ndarray) -> np.ndarray:
    """Rows or columns of a tile that is laid mirrored beside itself, so that no seam shows."""
    steps = np.floor(metres * (_TILES_PER_METRE * _TILE)).astype(np.int64) % (2 * _TILE)
    return np.where(steps < _TILE, steps, 2 * _TILE - 1 - steps)
