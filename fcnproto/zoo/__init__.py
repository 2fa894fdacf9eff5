"""The nets that come with the package, by name: their files, what is known of them, and weights that were fetched."""

from fcnproto.zoo.cache import Fetched, fetched
from fcnproto.zoo.nets import (
    Colour,
    Input,
    ModelInfo,
    Output,
    Score,
    definitions,
    info,
    located,
    names,
    owner,
    palette,
    path,
    weights_of,
)

__all__ = [
    "Colour",
    "Fetched",
    "Input",
    "ModelInfo",
    "Output",
    "Score",
    "definitions",
    "fetched",
    "info",
    "located",
    "names",
    "owner",
    "palette",
    "path",
    "weights_of",
]
