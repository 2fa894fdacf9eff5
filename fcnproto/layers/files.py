"""Files that the settings of a layer name."""

from __future__ import annotations

from pathlib import Path

from fcnproto.layers.base import Layer


def named_file(layer: Layer, name: str, what: str) -> Path:
    """The existing file `name`, from the working directory or the prototxt's folder; else the layer fails, saying
    `what`, the field that names it."""
    places = [Path(name), Path(layer.base_dir or ".") / name]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        layer.fail(f"{what} {name!r} is not a file (looked for as {places[-1]} too)")
    return path
