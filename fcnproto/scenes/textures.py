"""Procedural textures for the scene generator: noise, stripes, checks, dots, bricks, marble, wood, gradients.

A texture is a scalar field in [0, 1] that mixes two or three colours. All randomness comes from the generator that is
passed in; numpy and Pillow only. Not a general texture library: the fields are picked to give a segmentation net
strong edges and colours that say nothing about an object's class.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

Field = np.ndarray
"""A float32 array (height, width) with values in [0, 1]."""


def grid(height: int, width: int, angle: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates along and across a direction, float32 arrays that broadcast to (height, width)."""
    rows = np.arange(height, dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)[None, :]
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cosine * columns + sine * rows, cosine * rows - sine * columns


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Noise in about [0, 1] whose blobs are `cell` pixels wide: a coarse random grid, resized bicubically."""
    coarse = rng.random((max(2, round(height / cell) + 1), max(2, round(width / cell) + 1)), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def fractal_noise(rng: np.random.Generator, height: int, width: int, cell: float) -> Field:
    """Three octaves of `smooth_noise`, stretched to use most of [0, 1]."""
    total = smooth_noise(rng, height, width, cell)
    total = total + 0.5 * smooth_noise(rng, height, width, cell / 2.2)
    total = total + 0.25 * smooth_noise(rng, height, width, cell / 4.8)
    return np.clip((total / 1.75 - 0.5) * 1.7 + 0.5, 0.0, 1.0)


def _plain(rng: np.random.Generator, height: int, width: int) -> Field:
    return 0.25 * smooth_noise(rng, height, width, rng.uniform(20, 80))


def _gradient(rng: np.random.Generator, height: int, width: int) -> Field:
    along, _ = grid(height, width, rng.uniform(0, 2 * np.pi))
    low, high = along.min(), along.max()
    return (along - low) / max(high - low, 1e-6) + np.zeros((height, width), np.float32)


def _noise(rng: np.random.Generator, height: int, width: int) -> Field:
    return fractal_noise(rng, height, width, rng.uniform(12, 70))


def _grain(rng: np.random.Generator, height: int, width: int) -> Field:
    return smooth_noise(rng, height, width, rng.uniform(1.5, 5))


def _sharpen(field: np.ndarray, hardness: float) -> Field:
    """Push a wave in [-1, 1] towards two levels; the edges stay some pixels wide, so that they don't alias."""
    return np.clip(0.5 + hardness * field, 0.0, 1.0)


def _stripes(rng: np.random.Generator, height: int, width: int) -> Field:
    along, across = grid(height, width, rng.uniform(0, np.pi))
    period = rng.uniform(8, 36)
    bend = rng.uniform(0, 6) * np.sin(across * (2 * np.pi / rng.uniform(60, 160)))
    wave = np.sin((along + bend) * (2 * np.pi / period) + rng.uniform(0, 6))
    return _sharpen(wave, float(rng.choice([0.5, 2.0])))


def _checks(rng: np.random.Generator, height: int, width: int) -> Field:
    along, across = grid(height, width, rng.uniform(0, np.pi))
    scale = np.pi / rng.uniform(9, 30)
    wave = np.sin(along * scale + rng.uniform(0, 6)) * np.sin(across * scale + rng.uniform(0, 6))
    return _sharpen(wave, rng.uniform(1.5, 4.0))


def _dots(rng: np.random.Generator, height: int, width: int) -> Field:
    along, across = grid(height, width, rng.uniform(0, np.pi))
    period = rng.uniform(12, 34)
    x = (along / period + rng.random()) % 1 - 0.5
    y = (across / period + rng.random()) % 1 - 0.5
    distance = np.sqrt(x * x + y * y) * period
    return np.clip(rng.uniform(0.2, 0.42) * period - distance + 0.5, 0.0, 1.0)


def _bricks(rng: np.random.Generator, height: int, width: int) -> Field:
    along, across = grid(height, width, rng.uniform(-0.3, 0.3))
    tall = rng.uniform(10, 22)
    long = tall * rng.uniform(1.6, 2.6)
    row = np.floor(across / tall)
    x = (along + 0.5 * long * (row % 2)) % long
    y = across % tall
    joint = rng.uniform(1.2, 2.5)
    edge = np.minimum(np.minimum(x, long - x), np.minimum(y, tall - y))
    return np.clip(edge - joint + 0.5, 0.0, 1.0) * (0.75 + 0.25 * smooth_noise(rng, height, width, 6))


def _marble(rng: np.random.Generator, height: int, width: int) -> Field:
    along, _ = grid(height, width, rng.uniform(0, np.pi))
    swirl = fractal_noise(rng, height, width, rng.uniform(25, 60))
    return 0.5 + 0.5 * np.sin(along * (2 * np.pi / rng.uniform(25, 60)) + rng.uniform(4, 9) * swirl)


def _wood(rng: np.random.Generator, height: int, width: int) -> Field:
    along, across = grid(height, width, rng.uniform(0, np.pi))
    x = (along - rng.uniform(-0.5, 1.5) * width) * rng.uniform(0.1, 0.4)
    y = across - rng.uniform(-0.5, 1.5) * height
    radius = np.sqrt(x * x + y * y) + 6 * smooth_noise(rng, height, width, 40)
    return 0.5 + 0.5 * np.sin(radius * (2 * np.pi / rng.uniform(8, 20)))


FIELDS: tuple[Callable[[np.random.Generator, int, int], Field], ...] = (
    _plain,
    _gradient,
    _noise,
    _grain,
    _stripes,
    _checks,
    _dots,
    _bricks,
    _marble,
    _wood,
)


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """One RGB colour, float32 in [0, 1]: any hue, from grey to vivid, from dark to light."""
    hue = rng.random() * 6
    saturation, value = 0.9 * rng.random() ** 1.2, rng.uniform(0.2, 1.0)
    ramp = np.clip(np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0.0, 1.0)
    return (value * (1 - saturation * (1 - ramp))).astype(np.float32)


def nearby_colour(rng: np.random.Generator, colour: np.ndarray, spread: float) -> np.ndarray:
    """A colour that differs from `colour` by about `spread` a channel, clipped to [0, 1]."""
    return np.clip(colour + rng.normal(0, spread, 3), 0.03, 1.0).astype(np.float32)


def texture(rng: np.random.Generator, height: int, width: int, calm: bool = False) -> np.ndarray:
    """A random texture, float32 (height, width, 3) in [0, 1]; `calm` ones have little contrast."""
    if calm:
        pick = int(rng.choice(len(FIELDS), p=[0.4, 0.25, 0.15, 0.05, 0.05, 0.0, 0.0, 0.0, 0.05, 0.05]))
    else:
        pick = int(rng.integers(len(FIELDS)))
    field = FIELDS[pick](rng, height, width)
    first = random_colour(rng)
    second = nearby_colour(rng, first, 0.12) if calm or rng.random() < 0.5 else random_colour(rng)
    return first + field[:, :, None].astype(np.float32) * (second - first)
