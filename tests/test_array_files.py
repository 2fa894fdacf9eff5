"""Arrays in .npy and .npz files that are damaged: one clear error from whoever reads them, whatever numpy raises."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fcnproto
from fcnproto.errors import DataError
from fcnproto.images import read_mean
from fcnproto.inspect.running import read_arrays
from fcnproto.parity.recording import read_recording
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

NET = parse('layer { name: "d" type: "Input" top: "data" input_param { shape { dim: 1 } } }', caffe_pb2.NetParameter)
VALUES = np.random.default_rng(0).random((3, 4, 4))


def stored(save: Callable[..., None], **arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def damaged(content: bytes, random_numbers: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random_numbers.choice([1, 2, 5])):
        place = random_numbers.randrange(len(changed) if random_numbers.random() < 0.4 else 130)
        changed[place] ^= 1 << random_numbers.randrange(8)
    return bytes(changed if random_numbers.random() < 0.9 else changed[: random_numbers.randrange(len(changed))])


def test_damaged_archives_of_inputs(tmp_path: Path) -> None:
    net, path, numbers = fcnproto.load(NET), tmp_path / "x.npz", random.Random(1)
    contents = [stored(np.savez, data=VALUES), stored(np.savez_compressed, data=VALUES)]
    refused = 0
    for trial in range(200):
        path.write_bytes(damaged(contents[trial % 2], numbers))
        for read in (lambda: read_arrays(path, net), lambda: read_recording(path)):
            try:
                read()
            except DataError as error:
                refused += str(path) in str(error)
    assert refused > 200


def test_damaged_mean_images(tmp_path: Path) -> None:
    path, numbers = tmp_path / "mean.npy", random.Random(2)
    content = stored(lambda file, mean: np.save(file, mean), mean=VALUES)
    refused = 0
    for _ in range(200):
        path.write_bytes(damaged(content, numbers))
        try:
            read_mean(path)
        except DataError as error:
            refused += str(path) in str(error)
    assert refused > 60


def test_python_objects_are_not_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", data=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"x\.npz: not a readable \.npz file"):
        read_arrays(tmp_path / "x.npz", fcnproto.load(NET))
