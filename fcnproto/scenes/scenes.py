"""A seeded generator of synthetic scenes with a label map: what `fcn-mini` is trained and scored on.

A scene is a textured background (one texture, a wall and a floor, or two that blend) with two to six overlapping
objects of ten classes. Colours and textures are random for every object, so only the shape tells the class. Light from
one side, cast shadows, bevels, a light gradient, blur and sensor noise are added. Objects are 56 to 136 pixels long.

    scene = draw_scene(seed=7)        # scene.image uint8 (256, 256, 3) RGB, scene.label uint8 (256, 256)

The same seed gives the same scene wherever numpy's PCG64 and float32 arithmetic and Pillow's drawing agree. Numpy and
Pillow only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fcnproto.scenes.objects import OBJECTS
from fcnproto.scenes.rendering import Light, cast_shadow, paste, photograph, render
from fcnproto.scenes.textures import grid, smooth_noise, texture

CLASSES: tuple[str, ...] = ("background", *OBJECTS)
"""Class names; the index is the label."""

SIZE, OBJECT_SIZE = 256, 224
_SMALLEST, _LARGEST = 56.0, 136.0


@dataclass(frozen=True)
class Scene:
    """`image`: uint8 (height, width, 3), RGB. `label`: uint8 (height, width), indices into `CLASSES`."""

    image: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class DrawnObject:
    """`image`: uint8 (height, width, 3), RGB. `label`: the class of the object in the middle, 0 for the first object
    of `CLASSES[1:]`, for there is no background among whole images."""

    image: np.ndarray
    label: int


def draw_scene(seed: int | Sequence[int], size: int = SIZE) -> Scene:
    """One scene of `size` x `size` pixels; `seed` is a number or several, as for `numpy.random.SeedSequence`."""
    rng = generator(seed)
    canvas = _background(rng, size)
    label = np.zeros((size, size), np.uint8)
    light = random_light(rng)
    for x, y, radius in places(rng, size):
        add_object(rng, canvas, label, x, y, radius, light)
    return Scene(photograph(rng, canvas), label)


def draw_object(seed: int | Sequence[int], size: int = OBJECT_SIZE) -> DrawnObject:
    """An image for a classification net: one object about the middle, as large as in scenes, others at the margin."""
    rng = generator(seed)
    canvas = _background(rng, size)
    label = np.zeros((size, size), np.uint8)
    light = random_light(rng)
    for _ in range(int(rng.integers(3))):
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 0.75) * size
        x, y = size / 2 + distance * np.cos(angle), size / 2 + distance * np.sin(angle)
        add_object(rng, canvas, label, x, y, rng.uniform(_SMALLEST, _LARGEST) / 2, light)
    x, y = size / 2 + rng.uniform(-size / 9, size / 9, 2)
    index = add_object(rng, canvas, label, x, y, rng.uniform(_SMALLEST, min(_LARGEST, 0.94 * size)) / 2, light)
    return DrawnObject(photograph(rng, canvas), index - 1)


def generator(seed: int | Sequence[int]) -> np.random.Generator:
    """The random numbers that a seed stands for."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))


def random_light(rng: np.random.Generator) -> Light:
    """Light from any side."""
    angle = rng.uniform(0, 2 * np.pi)
    return Light(
        float(np.cos(angle)), float(np.sin(angle)), rng.uniform(0.2, 0.6), rng.uniform(3, 12), rng.uniform(2, 7)
    )


def add_object(
    rng: np.random.Generator, canvas: np.ndarray, label: np.ndarray, x: float, y: float, radius: float, light: Light
) -> int:
    """Paint an object of a random class over `canvas` and its label over `label`; returns the label."""
    index = int(rng.integers(len(OBJECTS)))
    outline = list(OBJECTS.values())[index](rng)
    sprite = render(rng, outline, x, y, radius, light)
    cast_shadow(canvas, sprite, light)
    paste(canvas, label, sprite, index + 1)
    return index + 1


def draw_scenes(seed: int, count: int, size: int = SIZE) -> Iterator[Scene]:
    """`count` scenes; the i-th is `draw_scene((seed, i), size)`."""
    for index in range(count):
        yield draw_scene((seed, index), size)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    kind = rng.random()
    canvas = texture(rng, size, size, calm=rng.random() < 0.35)
    if kind < 0.4:
        return canvas
    other = texture(rng, size, size, calm=rng.random() < 0.35)
    if kind < 0.75:  # a wall and a floor, with a slightly tilted edge between them
        _, down = grid(size, size, rng.uniform(-0.25, 0.25))
        mask = np.clip(down - rng.uniform(0.35, 0.75) * size, 0.0, 1.0)
    else:
        mask = np.clip((smooth_noise(rng, size, size, rng.uniform(40, 120)) - 0.5) * rng.uniform(3, 20) + 0.5, 0.0, 1.0)
    return canvas + mask[:, :, None] * (other - canvas)


def places(rng: np.random.Generator, size: int) -> list[tuple[float, float, float]]:
    """Centres and half lengths of the objects. They overlap, but no later one covers the middle of another."""
    places: list[tuple[float, float, float]] = []
    wanted = int(rng.integers(2, 7))
    for _ in range(12 * wanted):
        radius = rng.uniform(_SMALLEST, _LARGEST) / 2
        x, y = rng.uniform(0.35 * radius, size - 0.35 * radius, 2)
        if all(np.hypot(x - a, y - b) > 0.62 * (radius + r) for a, b, r in places):
            places.append((x, y, radius))
            if len(places) == wanted:
                break
    return places
