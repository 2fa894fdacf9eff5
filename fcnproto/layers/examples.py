"""How random values are drawn for bottoms that don't take any number: the words in which layers say what suits them.

No torch here: arrays from numpy's generators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Draw = Callable[[np.random.Generator, Sequence[int]], Array]
"""From a generator and a shape to values of that shape."""

SMALLEST = 0.05
"""Of values that must be positive."""


def integers(count: int) -> Draw:
    """Whole numbers from 0 to `count` - 1: classes and indices; with 2 switches and continuation marks."""
    return lambda draw, shape: draw.integers(0, max(count, 1), shape)


def positive(draw: np.random.Generator, shape: Sequence[int]) -> Array:
    """Values within 0.05..1, such as probabilities."""
    return draw.uniform(SMALLEST, 1, shape)


def selector(draw: np.random.Generator, shape: Sequence[int]) -> Array:
    """0 and 1, of which at least one is 1."""
    chosen = draw.integers(0, 2, shape)
    chosen.reshape(-1)[:1] = 1
    return chosen


def regions(features: Sequence[int]) -> Draw:
    """Rows image, x1, y1, x2, y2 of regions of images sixteen times as large as the features (N, C, H, W); where their
    shape isn't known, of one image of 16 x 16 pixels."""
    features = features if len(features) == 4 else (1, 1, 1, 1)

    def draw_regions(draw: np.random.Generator, shape: Sequence[int]) -> Array:
        rows = np.zeros((math.prod(shape) // 5, 5))
        rows[:, 0] = draw.integers(0, features[0], len(rows))
        for low, extent in ((1, features[3]), (2, features[2])):
            corners = np.sort(draw.uniform(0, extent * 16, (len(rows), 2)), 1)
            rows[:, low], rows[:, low + 2] = corners.T
        return rows.reshape(tuple(shape))

    return draw_regions
