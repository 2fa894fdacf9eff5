"""What weight files at hand say of shapes that neither the prototxt nor the data do.

Internal to `fcnproto.net`. Files are opened only where a layer's parameters depend on something that nobody else knows,
and nothing but names and shapes is read; what is wrong with a file is told when its weights are copied.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fcnproto.errors import Error
from fcnproto.layers.base import Layer, Shape
from fcnproto.schema.weights import open_weights


class StoredShapes:
    """The shapes of the parameter blobs in .caffemodel and .caffemodel.h5 files, by layer; later files count first."""

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        self._paths = [Path(path) for path in paths if not str(path).lower().endswith(".safetensors")]
        self._found: dict[str, list[Shape]] | None = None

    def of(self, name: str) -> list[Shape]:
        """The shapes of a layer's blobs; empty where no file has any."""
        if self._found is None:
            self._found = {}
            for path in self._paths:
                try:
                    with open_weights(path) as stored:
                        for layer in stored.layers:
                            if layer.blobs:
                                self._found[layer.name] = [
                                    tuple(blob.shape) for blob in layer.blobs if blob is not None
                                ]
                except (Error, OSError):
                    continue
        return self._found.get(name, [])

    def channels(self, layer: Layer) -> list[int]:
        """The numbers of channels of a bottom that a layer's stored blobs may have been made for."""
        extents = {extent for shape in self.of(layer.name) for extent in shape}
        groups = getattr(layer.config, "group", 1) if layer.config_field else 1
        return sorted(extents | {extent * groups for extent in extents})

    def fit(self, layer: Layer) -> bool:
        """Whether a layer that is set up has blobs of the stored shapes; ones on the left, as in old files, aside."""
        stored = self.of(layer.name)
        return len(stored) == len(layer.blob_shapes) and all(
            _stripped(theirs) == _stripped(ours) for theirs, ours in zip(stored, layer.blob_shapes, strict=True)
        )


def _stripped(shape: Shape) -> Shape:
    first = next((place for place, extent in enumerate(shape) if extent != 1), len(shape))
    return shape[first:]
