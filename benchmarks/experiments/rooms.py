"""Drawn rooms written out in the layouts of NYUDv2 and SIFT Flow, for the published data layers to read.

The same rooms stand in both: colour, depth, HHA and ten objects (labels as of 11 classes) in NYUDv2's, colour, objects
and surfaces in SIFT Flow's. HHA images come from the depth maps alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from fcnproto.atomic import atomic_write
from fcnproto.data.hha import hha
from fcnproto.data.published import SIFTFlowSegDataLayer
from fcnproto.scenes.rooms import Room, camera, draw_room

SIZE = 160
SPLITS = {"train": (31, 400), "val": (32, 80)}
"""Split -> seed and number of rooms."""


def write(folder: Path) -> None:
    """Write what is missing of all rooms below `folder`/nyud and `folder`/sift-flow."""
    for split, (seed, count) in SPLITS.items():
        ids = [f"{split}_{index:04}" for index in range(count)]
        for index, name in enumerate(ids):
            if not (folder / "nyud" / "data" / "hha" / f"img_{name}.png").exists():
                _write_room(folder, name, draw_room((seed, index), SIZE))
        for data in ("nyud", "sift-flow"):
            (folder / data / f"{split}.txt").write_text("\n".join(ids) + "\n")


def _write_room(folder: Path, name: str, room: Room) -> None:
    """The files of one room; its HHA image comes last and tells that all are there."""
    scenes = f"{SIFTFlowSegDataLayer.scenes}/{name}"
    labels = {
        f"nyud/segmentation/img_{name}.mat": {"segmentation": room.label + 1},
        f"sift-flow/SemanticLabels/{scenes}.mat": {"S": room.label.astype(np.int16) + 1},
        f"sift-flow/GeoLabels/{scenes}.mat": {"S": room.surface.astype(np.int16) + 1},
    }
    images = {
        f"sift-flow/Images/{scenes}.jpg": Image.fromarray(room.image),
        f"nyud/data/images/img_{name}.png": Image.fromarray(room.image),
        f"nyud/data/depth/img_{name}.png": Image.fromarray((1000 * room.depth).astype(np.uint16)),
        f"nyud/data/hha/img_{name}.png": Image.fromarray(hha(room.depth, camera(SIZE))),
    }
    for relative, content in {**labels, **images}.items():
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            if isinstance(content, dict):
                scipy.io.savemat(file, content)
            elif path.suffix == ".jpg":
                content.save(file, "JPEG", quality=95)
            else:
                content.save(file, "PNG")
