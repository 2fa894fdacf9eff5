"""Corpora and nets for tests on Ray, small enough that starting workers is what takes the time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from tiny_nets import colour_net

import fcnproto
from fcnproto.images import Preprocessing
from fcnproto.net import Net
from fcnproto.segment import Segmenter, segment

STORE = 100_000_000
"""Bytes of a node's object store, little more than the least that Ray takes."""
CRASH, HANG, ONCE = (7, 7, 7), (8, 8, 8), (9, 9, 9)
"""Colours of the first pixel of images that `TRAP` stumbles over."""

TRAP = """
import os, signal, time
import torch
import fcnproto

@fcnproto.register_layer("Trap")
class Trap(fcnproto.Pointwise):
    def forward(self, x):
        if x.device.type == "meta":
            return x
        first = x[:, :, 0, 0]
        if (first == 7).all(1).any():
            os.kill(os.getpid(), signal.SIGKILL)
        if (first == 8).all(1).any():
            time.sleep(3600)
        flag = os.path.join(os.path.dirname(os.path.abspath(__file__)), "killed")
        if (first == 9).all(1).any() and not os.path.exists(flag):
            open(flag, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return x
"""
_TRAPPED = 'layer { name: "trap" type: "Trap" bottom: "score" top: "trapped" }'


def images(folder: Path, count: int, seed: int = 0, first: str = "im") -> Path:
    """A folder of images of three sizes."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        height, width = [(12, 18), (18, 12), (16, 16)][rng.integers(3)]
        pixels = rng.integers(10, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{first}{number:03d}.png")
    return folder


def mark(path: Path, colour: tuple[int, int, int]) -> None:
    """Give an image its first pixel's colour."""
    pixels = np.array(Image.open(path))
    pixels[0, 0] = colour
    Image.fromarray(pixels).save(path)


def segmenter(net: Net) -> Segmenter:
    """A net of `colour_net` as a segmenter without a mean."""
    return Segmenter(net, preprocessing={"data": Preprocessing("bgr")}, classes=["b", "g", "r"])


def plain(folder: Path) -> Segmenter:
    """The segmenter of a small net."""
    return segmenter(fcnproto.load(*colour_net(folder)))


def trapped(folder: Path) -> tuple[Path, Path, Path]:
    """A net with a trap behind its scores: the prototxt, the weights, the module that registers the layer."""
    module = folder / "trap_layers.py"
    module.write_text(TRAP)
    model, weights = colour_net(folder)
    model.write_text(model.read_text() + _TRAPPED)
    return model, weights, module


def labels(folder: Path) -> dict[str, bytes]:
    """The label files in a folder by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*_labels.png")}


def reference(net: Segmenter, source: Path, out: Path) -> dict[str, bytes]:
    """The label files that one process makes."""
    assert sum(result.error is None for result in segment(net, source, out))
    return labels(out)
