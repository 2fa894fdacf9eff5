"""pycaffe's `coord_map`: `crop` and `coord_map_from_to` for tops of a `NetSpec`, with pycaffe's errors."""

from __future__ import annotations

from typing import Any

import numpy as np

from fcnproto.errors import GraphError
from fcnproto.graph import coord_map as maps
from fcnproto.netspec import Top
from fcnproto.netspec import crop as aligned


class UndefinedMapException(GraphError, RuntimeError):
    """No chain of spatial layers connects two tops."""


class CropError(GraphError, AssertionError):
    """No Crop can lay one top over the other."""


def coord_map_from_to(top_from: Top, top_to: Top) -> tuple[int | None, Any, Any]:
    """The map from positions in one top to positions in another: (axis, scale, shift), arrays of a value per axis."""
    try:
        found = maps.coord_map_from_to(top_from, top_to)
    except GraphError as error:
        raise UndefinedMapException(*error.args) from error
    if found.axis is None:
        return None, 1, 0
    return found.axis, np.array([float(a) for a in found.scale]), np.array([float(b) for b in found.shift])


def crop(top_from: Top, top_to: Top) -> Top:
    """A Crop of `top_from` to the size of `top_to`, at the offsets that align them."""
    coord_map_from_to(top_from, top_to)
    try:
        return aligned(top_from, top_to)
    except GraphError as error:
        raise CropError(*error.args) from error
