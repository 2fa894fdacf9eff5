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
from fcnproto.net.params import module_stem
from fcnproto.net.tensor_files import read_safetensors
from fcnproto.schema.weights import open_weights


class StoredShapes:
    """The shapes of the parameter blobs in weight files of any kind, by layer; later files count first."""

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        self._paths = [Path(path) for path in paths]
        self._found: dict[str, list[Shape]] | None = None
        self._named: dict[str, dict[str, Shape]] = {}

    @classmethod
    def of_layers(cls, layers: Sequence[Layer]) -> StoredShapes:
        """Those of the layers of another net; of a name's several layers the first one's."""
        made = cls(())
        made._found = {layer.name: list(layer.blob_shapes) for layer in reversed(layers) if layer.blob_names}
        return made

    def of(self, name: str) -> list[Shape]:
        """The shapes of a layer's blobs; empty where no file has any."""
        if self._found is None:
            self._found = {}
            for path in self._paths:
                try:
                    self._look(path, self._found)
                except (Error, OSError):
                    continue
        return self._found.get(name) or list(self.named(name).values())

    def named(self, name: str) -> dict[str, Shape]:
        """The shapes of a layer's blobs by their names, where a file says the names of blobs: .safetensors do."""
        return self._named.get(module_stem(name), {})

    def _look(self, path: Path, found: dict[str, list[Shape]]) -> None:
        if path.name.lower().endswith(".safetensors"):
            for key, tensor in read_safetensors(path).items():
                module, _, blob = key.rpartition(".")
                self._named.setdefault(module, {})[blob] = tuple(tensor.shape)
            for module, blobs in self._named.items():
                self._named[module] = dict(sorted(blobs.items(), key=_order))
            return
        with open_weights(path) as stored:
            for layer in stored.layers:
                if layer.blobs:
                    found[layer.name] = [tuple(blob.shape) for blob in layer.blobs if blob is not None]

    def channels(self, layer: Layer) -> list[int]:
        """The numbers of channels of a bottom that a layer's stored blobs may have been made for."""
        extents = {extent for shape in self.of(layer.name) for extent in shape}
        groups = getattr(layer.config, "group", 1) if layer.config_field else 1
        return sorted(extents | {extent * groups for extent in extents})

    def fit(self, layer: Layer) -> bool:
        """Whether a layer that is set up has blobs of the stored shapes; ones on the left, as in old files, aside."""
        stored = self.of(layer.name)
        named = self.named(layer.name)
        if set(named) == set(layer.blob_names):
            stored = [named[name] for name in layer.blob_names]
        return len(stored) == len(layer.blob_shapes) and all(
            _stripped(theirs) == _stripped(ours) for theirs, ours in zip(stored, layer.blob_shapes, strict=True)
        )


def _order(blob: tuple[str, Shape]) -> tuple[bool, int, str]:
    """Numbered blobs by their numbers, a bias behind the weights, the rest by their names."""
    name = blob[0]
    number = name.rpartition("_")[2]
    return "bias" in name, int(number) if number.isdecimal() else 0, name


def _stripped(shape: Shape) -> Shape:
    first = next((place for place, extent in enumerate(shape) if extent != 1), len(shape))
    return shape[first:]
