"""Whether data layers that belong together stay together: each draws its random crops and mirrors for itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from fcnproto.errors import FcnprotoWarning
from fcnproto.layers.base import Layer


def randomly_moved(layers: Iterable[Layer]) -> list[Layer]:
    """The data layers in phase TRAIN whose `transform_param` mirrors at random, or crops at random places."""
    found = []
    for layer in layers:
        transform = layer.param.transform_param
        reads = layer.training and layer.type in ("Data", "ImageData")
        if reads and (transform.mirror or transform.crop_size):
            found.append(layer)
    return found


def warn_unaligned(layers: Iterable[Layer]) -> None:
    """Warn where two data layers draw random crops or mirrors, as of images and of their label maps."""
    names = [layer.name for layer in randomly_moved(layers)]
    if len(names) > 1:
        message = (
            f"layers {', '.join(map(repr, names))}: each draws its own random crop or mirror, so images and label maps "
            "of separate layers no longer lie on each other (in Caffe too); do it when the databases are written"
        )
        warnings.warn(message, FcnprotoWarning, stacklevel=2)
