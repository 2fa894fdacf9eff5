"""HHA: a depth map as three channels that a colour net can read, after Gupta et al., "Learning Rich Features from RGB-D
Images" (ECCV 2014), with gravity found as in their "Perceptual Organization" (CVPR 2013).

Channels: horizontal disparity, height above the ground, and the angle of the surface with gravity. Coordinates are the
camera's: x to the right, y down, z forward, in metres. Numpy only; not for reading or writing files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fcnproto.errors import DataError, UsageError

# Disparity in units of 1 / 310 m (so that 1.2 m and farther fit 0..255), height in centimetres, angles in degrees with
# the vertical wall in the middle: the scales of the NYUDv2 HHA images that the published nets were trained with.
_DISPARITY_SCALE = 310.0
_NEAREST = 1.0
_HEIGHT_SCALE = 100.0
_ANGLE_SHIFT = 38.0
# Thresholds in degrees of the iterations that find gravity: coarse ones first.
_ROUNDS = (45.0,) * 5 + (15.0,) * 5
_INERTIA = 1e-3
# A neighbour whose depth differs by a larger share belongs to another surface.
_DEPTH_EDGE = 0.05
# A camera in a room without visible ground is taken to be held at this height.
_LEAST_GROUND, _CAMERA_HEIGHT = 0.9, 1.3


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera: focal lengths and principal point in pixels."""

    fx: float
    fy: float
    cx: float
    cy: float

    def __post_init__(self) -> None:
        if not (self.fx > 0 and self.fy > 0 and math.isfinite(self.cx) and math.isfinite(self.cy)):
            raise UsageError(f"{self} is no camera: focal lengths must be above 0")

    def rays(self, shape: Sequence[int]) -> np.ndarray:
        """(height, width, 3) float64: each pixel's direction, with z = 1."""
        rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
        return np.stack([(columns - self.cx) / self.fx, (rows - self.cy) / self.fy, np.ones(tuple(shape))], axis=2)


KINECT_NYUD = Intrinsics(518.858, 519.470, 325.582 - 40, 253.736 - 44)
"""The camera of NYUDv2's images once their white frame is cut off (560 x 425)."""


@dataclass(frozen=True)
class Geometry:
    """What a depth map says of a scene: points and unit normals (height, width, 3), the direction of gravity (3,), and
    heights above the ground (height, width) in metres. Normals point away from the camera, so down on a floor."""

    points: np.ndarray
    normals: np.ndarray
    gravity: np.ndarray
    heights: np.ndarray

    def angles(self) -> np.ndarray:
        """(height, width), degrees: 0 for the floor, 90 for walls, 180 for the ceiling."""
        angles: np.ndarray = np.degrees(np.arccos(np.clip(self.normals @ self.gravity, -1.0, 1.0)))
        return angles


def hha(depth: np.ndarray, camera: Intrinsics, radius: int = 3) -> np.ndarray:
    """The HHA image, uint8 (height, width, 3): disparity, height, angle.

    `depth` is in metres; pixels that are 0, negative or not finite are holes, filled from around them. `radius` is half
    the side of the window in which a plane is fitted for a normal. Raises `DataError` for a map of another shape or
    without any depth.
    """
    scene = geometry(depth, camera, radius)
    channels = [
        _DISPARITY_SCALE / np.maximum(scene.points[:, :, 2], _NEAREST),
        _HEIGHT_SCALE * scene.heights,
        _ANGLE_SHIFT + scene.angles(),
    ]
    return np.clip(np.rint(np.stack(channels, axis=2)), 0, 255).astype(np.uint8)


def geometry(depth: np.ndarray, camera: Intrinsics, radius: int = 3) -> Geometry:
    """Points, normals, gravity and heights of a depth map; see `hha`."""
    filled, known = fill_holes(depth)
    rays = camera.rays(filled.shape)
    points = rays * filled[:, :, None]
    normals = surface_normals(filled, rays, radius)
    gravity = find_gravity(normals[known])
    heights = -(points @ gravity)
    lowest = float(np.percentile(heights[known], 1))
    if lowest > -_LEAST_GROUND:
        lowest = -_CAMERA_HEIGHT
    return Geometry(points, normals, gravity, np.maximum(heights - lowest, 0.0))


def fill_holes(depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The depths (float64) with holes filled smoothly from their surroundings, and where depths were known (bool).

    By averages over ever larger blocks: a hole takes the value of the smallest block around it that knows any.
    """
    values = np.asarray(depth, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise DataError(f"a depth map has shape (height, width), not {values.shape}")
    known = np.isfinite(values) & (values > 0)
    if not known.any():
        raise DataError("the depth map holds no depth above 0")
    return _fill(np.where(known, values, 0.0), known), known


def _fill(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    if known.all():
        return values
    height, width = values.shape
    pad = ((0, height % 2), (0, width % 2))
    blocks = (-(-height // 2), 2, -(-width // 2), 2)
    sums = np.pad(values * known, pad).reshape(blocks).sum(axis=(1, 3))
    counts = np.pad(known, pad).reshape(blocks).sum(axis=(1, 3))
    coarse = _fill(sums / np.maximum(counts, 1), counts > 0)
    return np.where(known, values, coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width])


def surface_normals(depth: np.ndarray, rays: np.ndarray, radius: int = 3) -> np.ndarray:
    """Unit normals (height, width, 3), pointing away from the camera, of planes fitted around each pixel.

    A plane's inverse depth is linear in the image: 1/z = (n . ray) / d. So n comes of a linear least squares fit to the
    inverse depths in the window, which is exact for planes. Neighbours beyond an edge in depth have no part in it.
    """
    inverse = 1.0 / depth
    moments = np.zeros((*depth.shape, 3, 3))
    right = np.zeros((*depth.shape, 3))
    for down in range(-radius, radius + 1):
        for across in range(-radius, radius + 1):
            here, there = _overlap(depth.shape, down, across)
            same = np.abs(depth[there] / depth[here] - 1.0) < _DEPTH_EDGE
            offset = rays[there] - rays[here]
            offset[:, :, 2] = 1.0
            offset *= same[:, :, None]
            moments[here] += offset[:, :, :, None] * offset[:, :, None, :]
            right[here] += offset * inverse[there][:, :, None]
    # Where the neighbours lie on a line, the smallest change decides: the surface then faces the camera.
    moments[..., [0, 1], [0, 1]] += 1e-12
    fit = np.linalg.solve(moments, right[..., None])[..., 0]
    # The fit was around each pixel's own ray; back to the form n . ray.
    fit[:, :, 2] -= (fit[:, :, :2] * rays[:, :, :2]).sum(axis=2)
    normals: np.ndarray = fit / np.maximum(np.linalg.norm(fit, axis=2, keepdims=True), 1e-12)
    return normals


def _overlap(shape: Sequence[int], down: int, across: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The pixels that have a neighbour at (down, across), and these neighbours."""

    def pair(size: int, step: int) -> tuple[slice, slice]:
        return slice(max(0, -step), size - max(0, step)), slice(max(0, step), size - max(0, -step))

    rows, columns = pair(shape[0], down), pair(shape[1], across)
    return (rows[0], columns[0]), (rows[1], columns[1])


def find_gravity(normals: np.ndarray) -> np.ndarray:
    """The direction of gravity (3,) from normals (count, 3), beginning with the image's downward direction.

    Each round takes the normals nearly along the estimate (floors, tables) and nearly at right angles to it (walls) and
    moves it to where it is most parallel to the ones and most perpendicular to the others: the eigenvector of the
    smallest eigenvalue of the sum of n n' over the walls less that over the floors.
    """
    gravity = np.array([0.0, 1.0, 0.0])
    for threshold in _ROUNDS:
        cosines = np.abs(normals @ gravity)
        level = normals[cosines > math.cos(math.radians(threshold))]
        upright = normals[cosines < math.sin(math.radians(threshold))]
        # A slight weight on the estimate itself decides where one wall is all there is to see.
        estimate = _INERTIA * len(normals) * np.outer(gravity, gravity)
        _, vectors = np.linalg.eigh(upright.T @ upright - level.T @ level - estimate)
        found = vectors[:, 0]
        gravity = found if found @ gravity >= 0 else -found
    return gravity
