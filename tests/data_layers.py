"""Data layers for tests, made from prototxt text, and small files for them to read."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import fcnproto.data
import fcnproto.layers  # noqa: F401  (registers the types)
from fcnproto.data.datum import array_to_datum
from fcnproto.data.writing import new_database
from fcnproto.layers.registry import lookup
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse


def make_source(text: str, base_dir: Path | None = None, train: bool = False, allow_python: bool = False) -> Any:
    """The data layer that `text` (a `LayerParameter` without a name) describes, set up as a net does it."""
    param = parse(f'name: "source" {text}', caffe_pb2.LayerParameter)
    layer = lookup(param.type)(param)
    layer.base_dir = None if base_dir is None else str(base_dir)
    layer.allow_python = allow_python
    layer.train(train)
    layer.setup([])
    return layer


def batches(layer: Any, count: int) -> list[list[np.ndarray]]:
    """The next batches, as arrays."""
    return [[top.numpy() for top in layer()] for _ in range(count)]


def assert_same_batches(ours: Sequence[Sequence[np.ndarray]], expected: Sequence[Sequence[np.ndarray]]) -> None:
    """Equal in number, shape and every value."""
    assert len(ours) == len(expected)
    for mine, theirs in zip(ours, expected, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


def assert_resumes(make: Any, before: int = 3, after: int = 4) -> None:
    """A layer restored from its position, a deep copy and a pickled one go on as the layer itself does.

    `make()` gives a fresh layer of the same kind each time.
    """
    layer = make()
    batches(layer, before)
    position = json.loads(json.dumps(layer.get_position()))
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    expected = batches(layer, after)
    restored = make()
    restored.set_position(position)
    used = make()
    batches(used, 1)
    used.set_position(position)
    for other in (restored, used, *copies):
        assert_same_batches(batches(other, after), expected)


def write_images(folder: Path, count: int, height: int, width: int, suffix: str = "png") -> list[np.ndarray]:
    """Seeded random RGB images `image<i>` in a folder; returns them as arrays (height, width, 3)."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(5)
    images = []
    for index in range(count):
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"image{index}.{suffix}")
        images.append(image)
    return images


def write_lmdb(path: Path, items: Sequence[tuple[str, np.ndarray, int]]) -> None:
    """An LMDB of (key, array (channels, height, width), label)."""
    with new_database(str(path)) as writer:
        for key, array, label in items:
            writer.put(key.encode(), array_to_datum(array, label).SerializeToString())
