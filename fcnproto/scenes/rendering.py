"""How the scene generator paints: objects from their outlines, light, shadows, and a camera's flaws.

Numpy and Pillow only; all randomness comes from the generator that is passed in. What is drawn where is for `scenes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fcnproto.scenes.objects import Loop, Outline, Part
from fcnproto.scenes.textures import grid, nearby_colour, smooth_noise, texture

_SUPERSAMPLING = 3


@dataclass(frozen=True)
class Light:
    """Where the light comes from: a unit vector in the picture, and how dark and soft the shadows are."""

    x: float
    y: float
    shadow: float
    reach: float
    softness: float


@dataclass(frozen=True)
class Sprite:
    """A drawn object: colours (h, w, 3) and opacity (h, w) in [0, 1], and its top left corner in the scene."""

    colour: np.ndarray
    alpha: np.ndarray
    top: int
    left: int


def render(rng: np.random.Generator, outline: Outline, x: float, y: float, radius: float, light: Light) -> Sprite:
    turn = rng.uniform(-outline.turn, outline.turn)
    flip = rng.choice([-1.0, 1.0])
    squeeze = rng.uniform(0.88, 1.0)
    cosine, sine = np.cos(turn), np.sin(turn)
    matrix = np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([flip * radius, squeeze * radius])
    moved = [loop @ matrix.T for loop in outline.loops]
    reach = max(float(np.abs(loop).max()) for loop in moved)
    margin = int(np.ceil(reach)) + 2
    side = 2 * margin
    left, top = int(np.floor(x)) - margin, int(np.floor(y)) - margin
    shift = np.array([x - left, y - top])
    paints = _paints(rng, side)
    colour: np.ndarray = np.zeros((side, side, 3), np.float32)
    alpha: np.ndarray = np.zeros((side, side), np.float32)
    for part in outline.parts:
        mask = _mask(part, matrix, shift, side)
        paint = paints[part.paint] * np.float32(part.brightness)
        colour += mask[:, :, None] * (paint - colour)
        alpha = alpha + mask * (1 - alpha)
    if outline.round:
        colour *= _bulge(side, shift, radius, light, rng)[:, :, None]
    else:
        colour *= _bevel(alpha, radius, light, rng.uniform(0.3, 0.9))[:, :, None]
    return Sprite(np.clip(colour, 0.0, 1.0), alpha, top, left)


def _paints(rng: np.random.Generator, side: int) -> list[np.ndarray]:
    """Four textures: the object's own, and calmer ones for its details that stand out from it."""
    first = texture(rng, side, side, calm=rng.random() < 0.5)
    paints = [first]
    average = first.mean(axis=(0, 1))
    for _ in range(3):
        colour = nearby_colour(rng, average, 0.35)
        if np.abs(colour - average).max() < 0.25:
            colour = np.where(average > 0.5, colour * 0.35, np.minimum(colour + 0.45, 1.0)).astype(np.float32)
        paints.append(np.broadcast_to(colour, first.shape))
    return paints


def _mask(part: Part, matrix: np.ndarray, shift: np.ndarray, side: int) -> np.ndarray:
    """The part's opacity, float32 (side, side), drawn larger and averaged so that edges are smooth."""
    image = Image.new("L", (side * _SUPERSAMPLING, side * _SUPERSAMPLING))
    draw = ImageDraw.Draw(image)

    def place(loop: Loop) -> list[tuple[float, float]]:
        points = (loop @ matrix.T + shift) * _SUPERSAMPLING
        return [(float(x), float(y)) for x, y in points]

    for loop in part.loops:
        draw.polygon(place(loop), fill=255)
    for hole in part.holes:
        draw.polygon(place(hole), fill=0)
    return np.asarray(image.reduce(_SUPERSAMPLING), dtype=np.float32) / 255


def _bulge(side: int, centre: np.ndarray, radius: float, light: Light, rng: np.random.Generator) -> np.ndarray:
    """Brightness of a sphere lit from the side, with a highlight."""
    columns, rows = grid(side, side)
    middle_x, middle_y = float(centre[0]), float(centre[1])
    x, y = (columns + 0.5 - middle_x) / radius, (rows + 0.5 - middle_y) / radius
    z = np.sqrt(np.clip(1 - x * x - y * y, 0.0, 1.0))
    facing = 0.65 * (x * light.x + y * light.y) + 0.76 * z
    highlight = np.clip(facing, 0.0, 1.0) ** rng.uniform(12, 40) * rng.uniform(0.0, 0.9)
    shade: np.ndarray = 0.4 + 0.75 * np.clip(facing, 0.0, 1.0) + highlight
    return shade


def _bevel(alpha: np.ndarray, radius: float, light: Light, strength: float) -> np.ndarray:
    """Brightness of a shape with rounded edges: the slope of its blurred outline against the light."""
    height = np.asarray(_blur(alpha, max(1.5, 0.09 * radius)))
    slope = np.zeros_like(height)
    slope[:, 1:-1] -= light.x * (height[:, 2:] - height[:, :-2])
    slope[1:-1] -= light.y * (height[2:] - height[:-2])
    side = alpha.shape[0]
    columns, rows = grid(side, side)
    wide = ((columns - side / 2) * light.x + (rows - side / 2) * light.y) / side
    shade: np.ndarray = np.clip(1 + strength * (0.09 * radius) * slope + 0.4 * strength * wide, 0.3, 1.7)
    return shade


def _blur(field: np.ndarray, radius: float) -> np.ndarray:
    image = Image.fromarray((field * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) / 255


def _window(shape: Sequence[int], top: int, left: int, side: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of the scene that a square covers, and the same part seen from the square."""
    first_row, first_column = max(0, top), max(0, left)
    last_row, last_column = min(shape[0], top + side), min(shape[1], left + side)
    last_row, last_column = max(first_row, last_row), max(first_column, last_column)
    scene = (slice(first_row, last_row), slice(first_column, last_column))
    local = (slice(first_row - top, last_row - top), slice(first_column - left, last_column - left))
    return scene, local


def cast_shadow(canvas: np.ndarray, sprite: Sprite, light: Light) -> None:
    pad = int(3 * light.softness)
    soft = _blur(np.pad(sprite.alpha, pad), light.softness)
    top, left = sprite.top - pad - round(light.y * light.reach), sprite.left - pad - round(light.x * light.reach)
    scene, local = _window(canvas.shape, top, left, soft.shape[0])
    canvas[scene] *= 1 - light.shadow * soft[local][:, :, None]


def paste(canvas: np.ndarray, label: np.ndarray, sprite: Sprite, index: int) -> None:
    scene, local = _window(canvas.shape, sprite.top, sprite.left, sprite.alpha.shape[0])
    alpha = sprite.alpha[local]
    canvas[scene] += alpha[:, :, None] * (sprite.colour[local] - canvas[scene])
    label[scene][alpha >= 0.5] = index


def photograph(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Uneven light over the whole scene, a lens's blur, sensor noise, and rounding to bytes."""
    size = canvas.shape[0]
    along, _ = grid(size, size, rng.uniform(0, 2 * np.pi))
    wide = (along - along.mean()) / size
    light = 1 + rng.uniform(0.0, 0.6) * wide + rng.uniform(0.0, 0.5) * (smooth_noise(rng, size, size, 130) - 0.5)
    exposed = canvas * (rng.uniform(0.8, 1.15) * light)[:, :, None] * rng.uniform(0.92, 1.08, 3).astype(np.float32)
    picture = np.clip(exposed, 0.0, 1.0)
    if rng.random() < 0.4:
        image = Image.fromarray((picture * 255).astype(np.uint8))
        picture = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.0))), dtype=np.float32) / 255
    noise = rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(rng.uniform(0.005, 0.04))
    return np.clip((picture + noise) * 255 + 0.5, 0, 255).astype(np.uint8)
