"""The objects that the scene generator draws: outlines of their parts, in unit coordinates.

Each object is a list of parts from back to front; a part is filled loops (and holes) in a square of about [-1, 1] with
y downwards, a paint group (parts of one group share a texture) and a brightness. What makes a class is its outline and
how the parts sit together; colours and textures are drawn at random elsewhere. Not for rendering: see `scenes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

Loop = np.ndarray
"""A closed outline: float64 (points, 2), x to the right, y downwards."""


@dataclass(frozen=True)
class Part:
    """One painted piece: `loops` are filled, then `holes` are cut out; `paint` picks the texture."""

    loops: Sequence[Loop]
    holes: Sequence[Loop] = ()
    paint: int = 0
    brightness: float = 1.0


@dataclass(frozen=True)
class Outline:
    """An object of one class: its parts, how far it may turn (radians either way), whether it bulges like a ball."""

    parts: Sequence[Part]
    turn: float = 0.35
    round: bool = False
    loops: list[Loop] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "loops", [loop for part in self.parts for loop in part.loops])


def polygon(*points: tuple[float, float]) -> Loop:
    """A loop through the given points."""
    return np.array(points, dtype=np.float64)


def ellipse(x: float, y: float, half_width: float, half_height: float, turn: float = 0.0, points: int = 40) -> Loop:
    """An ellipse around (x, y), turned by `turn` radians."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    across, down = half_width * np.cos(angle), half_height * np.sin(angle)
    cosine, sine = np.cos(turn), np.sin(turn)
    return np.stack([x + cosine * across - sine * down, y + sine * across + cosine * down], axis=1)


def rectangle(left: float, top: float, right: float, bottom: float) -> Loop:
    """An upright rectangle."""
    return polygon((left, top), (right, top), (right, bottom), (left, bottom))


def ball(rng: np.random.Generator) -> Outline:
    squeeze = rng.uniform(0.85, 1.0)
    return Outline([Part([ellipse(0, 0, 1, squeeze, points=64)])], turn=np.pi, round=True)


def ring(rng: np.random.Generator) -> Outline:
    squeeze, hole = rng.uniform(0.75, 1.0), rng.uniform(0.42, 0.62)
    outer = ellipse(0, 0, 1, squeeze, points=64)
    return Outline([Part([outer], [hole * outer])], turn=np.pi)


def star(rng: np.random.Generator) -> Outline:
    tips = int(rng.integers(5, 8))
    angle = np.arange(2 * tips) * np.pi / tips
    radius = np.where(np.arange(2 * tips) % 2 == 0, 1.0, rng.uniform(0.4, 0.52))
    return Outline([Part([np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)])], turn=np.pi)


def box(rng: np.random.Generator) -> Outline:
    """A cuboid seen from above and to one side: a front, a top and a flank."""
    wide, tall = rng.uniform(0.6, 0.8), rng.uniform(0.5, 0.8)
    shift, rise = rng.uniform(0.35, 0.55), rng.uniform(0.3, 0.5)
    left, right, top, bottom = -wide - shift / 2, wide - shift / 2, -tall + rise / 2, tall + rise / 2
    front = rectangle(left, top, right, bottom)
    lid = polygon((left, top), (left + shift, top - rise), (right + shift, top - rise), (right, top))
    flank = polygon((right, top), (right + shift, top - rise), (right + shift, bottom - rise), (right, bottom))
    lighter, darker = rng.uniform(1.15, 1.4), rng.uniform(0.5, 0.75)
    return Outline([Part([front]), Part([lid], brightness=lighter), Part([flank], brightness=darker)], turn=0.3)


def mug(rng: np.random.Generator) -> Outline:
    """A cup with an open rim on top and a handle at one side."""
    tall, wide, foot = rng.uniform(0.75, 0.95), rng.uniform(0.6, 0.75), rng.uniform(0.7, 1.0)
    rim = rng.uniform(0.15, 0.25)
    middle = -0.22
    handle = ellipse(middle + wide * 0.95, 0.05, 0.45, 0.55 * tall)
    body = polygon(
        (middle - wide, -tall + rim),
        (middle + wide, -tall + rim),
        (middle + wide * foot, tall),
        (middle - wide * foot, tall),
    )
    base = ellipse(middle, tall, wide * foot, rim * foot)
    parts = [
        Part([handle], [ellipse(middle + wide * 0.95, 0.05, 0.23, 0.3 * tall)], brightness=0.85),
        Part([body, base, ellipse(middle, -tall + rim, wide, rim)]),
        Part([ellipse(middle, -tall + rim, wide * 0.88, rim * 0.75)], paint=1, brightness=0.55),
    ]
    return Outline(parts, turn=0.3)


def flower(rng: np.random.Generator) -> Outline:
    """Separate rounded petals around a disc of another paint."""
    petals = int(rng.integers(5, 9))
    start, middle = rng.uniform(0, 2 * np.pi), rng.uniform(0.24, 0.34)
    fat = min(0.36, 0.62 * np.pi / petals)
    loops = []
    for angle in start + np.arange(petals) * 2 * np.pi / petals:
        loops.append(ellipse(0.6 * np.cos(angle), 0.6 * np.sin(angle), 0.4, fat, angle, points=24))
    parts = [Part([loop], brightness=1.0 if i % 2 else 0.86) for i, loop in enumerate(loops)]
    return Outline([*parts, Part([ellipse(0, 0, middle, middle)], paint=1)], turn=np.pi)


def tree(rng: np.random.Generator) -> Outline:
    """A trunk below a crown, which is a heap of round bushes or three stacked cones."""
    trunk = rng.uniform(0.13, 0.2)
    parts = [Part([polygon((-trunk, 0.1), (trunk, 0.1), (trunk * 1.3, 1.0), (-trunk * 1.3, 1.0))], paint=1)]
    if rng.random() < 0.5:
        for top, wide in ((-0.05, 0.78), (-0.5, 0.62), (-1.0, 0.46)):
            foot = top + 0.68
            parts.append(Part([polygon((0, top), (wide, foot), (-wide, foot))], brightness=0.8 + 0.2 * (top < -0.3)))
        return Outline(parts, turn=0.2)
    for x, y, radius in (
        (-0.42, 0.0, 0.36),
        (0.42, 0.02, 0.36),
        (-0.28, -0.48, 0.38),
        (0.3, -0.46, 0.38),
        (0, -0.25, 0.5),
    ):
        jitter = rng.uniform(-0.06, 0.06, 3)
        round_bush = ellipse(x + jitter[0], y + jitter[1], radius + jitter[2], radius + jitter[2])
        parts.append(Part([round_bush], brightness=rng.uniform(0.8, 1.1)))
    return Outline(parts, turn=0.2)


def house(rng: np.random.Generator) -> Outline:
    """Walls under a pitched roof, with a door, windows and sometimes a chimney."""
    wide, eaves = rng.uniform(0.68, 0.85), rng.uniform(-0.25, 0.05)
    ridge = rng.uniform(0.0, 0.35) * wide
    over = wide + rng.uniform(0.08, 0.18)
    parts = [Part([rectangle(-wide, eaves - 0.02, wide, 0.9)])]
    if rng.random() < 0.6:
        side = rng.choice([-1.0, 1.0]) * rng.uniform(0.35, 0.5) * wide
        parts.append(Part([rectangle(side - 0.11, -1.0, side + 0.11, eaves)], paint=3, brightness=0.8))
    parts.append(Part([polygon((-over, eaves), (-ridge, -0.95), (ridge, -0.95), (over, eaves))], paint=1))
    door = rng.uniform(-0.4, 0.2) * wide
    parts.append(Part([rectangle(door - 0.13, 0.35, door + 0.13, 0.9)], paint=2, brightness=0.7))
    for x in (-0.62 * wide, 0.6 * wide):
        if abs(x - door) > 0.32:
            parts.append(Part([rectangle(x - 0.14, eaves + 0.22, x + 0.14, eaves + 0.52)], paint=3))
    return Outline(parts, turn=0.2)


def car(rng: np.random.Generator) -> Outline:
    """A side view: body, cabin with two panes, two wheels with hubs."""
    roof, bonnet = rng.uniform(-0.62, -0.48), rng.uniform(0.42, 0.66)
    back, front = rng.uniform(-0.85, -0.6), rng.uniform(0.2, 0.38)
    belt = -0.08
    cabin = polygon((back, belt), (back + 0.2, roof), (front, roof), (bonnet, belt))
    body = polygon((-1, belt - 0.02), (bonnet, belt - 0.04), (0.97, belt + 0.1), (1, 0.38), (-1, 0.38))
    middle = (back + bonnet) / 2
    panes = [
        polygon((back + 0.13, belt), (back + 0.26, roof + 0.1), (middle - 0.05, roof + 0.1), (middle - 0.05, belt)),
        polygon((middle + 0.05, belt), (middle + 0.05, roof + 0.1), (front - 0.04, roof + 0.1), (bonnet - 0.15, belt)),
    ]
    size = rng.uniform(0.22, 0.27)
    wheels = [ellipse(x, 0.38, size, size) for x in (-0.58, 0.58)]
    hubs = [ellipse(x, 0.38, size * 0.45, size * 0.45) for x in (-0.58, 0.58)]
    parts = [Part([cabin, body]), Part(panes, paint=1), Part(wheels, paint=2, brightness=0.35), Part(hubs, paint=3)]
    return Outline(parts, turn=0.3)


def fish(rng: np.random.Generator) -> Outline:
    """A pointed oval body with a forked tail, fins and an eye."""
    fat = rng.uniform(0.4, 0.52)
    x = np.linspace(-0.55, 1.0, 24)
    profile = fat * np.sin(np.pi * ((x + 0.75) / 1.75) ** 0.9) ** 0.8
    body = np.concatenate([np.stack([x, -profile], axis=1), np.stack([x, profile], axis=1)[::-1]])
    fork = rng.uniform(0.42, 0.6)
    tail = polygon((-0.45, -0.12), (-1.0, -fork), (-0.82, 0.0), (-1.0, fork), (-0.45, 0.12))
    fin = polygon((-0.2, -0.8 * fat), (0.05, -fat - rng.uniform(0.2, 0.32)), (0.45, -0.8 * fat))
    belly = polygon((0.0, 0.8 * fat), (0.1, fat + 0.2), (0.4, 0.8 * fat))
    parts = [
        Part([tail, fin, belly], paint=1),
        Part([body]),
        Part([ellipse(0.66, -0.25 * fat, 0.09, 0.09)], paint=2, brightness=1.3),
        Part([ellipse(0.68, -0.25 * fat, 0.045, 0.045)], paint=3, brightness=0.15),
    ]
    return Outline(parts, turn=0.6)


OBJECTS: dict[str, Callable[[np.random.Generator], Outline]] = {
    "ball": ball,
    "ring": ring,
    "star": star,
    "box": box,
    "mug": mug,
    "flower": flower,
    "tree": tree,
    "house": house,
    "car": car,
    "fish": fish,
}
