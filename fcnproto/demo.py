"""The demonstration: fcn-mini segments newly drawn scenes, is scored, and is compared with its training's numbers.

Everything goes the way a user's own net goes: the prototxt and the caffemodel from the zoo through `fcnproto.load`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from fcnproto import zoo
from fcnproto.atomic import atomic_write
from fcnproto.errors import DataError, Error
from fcnproto.images import Preprocessing, to_blob
from fcnproto.net import Net, load
from fcnproto.pictures.labels import beside, label_image, legend, overlay
from fcnproto.scenes.scenes import Scene, draw_scenes
from fcnproto.schema.arrays import read_npz
from fcnproto.scoring.metrics import Metrics, confusion_matrix, metrics

MODEL = "fcn-mini"
SEED = 20_000
"""Scenes of this seed are in no training."""

SCENES = 40
_SHOWN = 4
_GAP = 8
_TITLES = ("image", "truth", "prediction", "overlay")

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class ScoreSample:
    """What the net made of one image when it was trained: file score-sample.npz in the model's folder.

    `image` is uint8 (height, width, 3), RGB; `score` float32 (classes, rows, columns), every `step`-th row and column
    of the score blob.
    """

    image: np.ndarray
    score: np.ndarray
    step: int

    @staticmethod
    def read(path: Path) -> ScoreSample:
        """Raises `DataError` for a missing or damaged file."""
        try:
            file = dict(read_npz(path))
            return ScoreSample(file["image"], file["score"], int(file["step"]))
        except (DataError, KeyError) as error:
            raise DataError(f"{path}: not a readable score sample ({error}); reinstall the package") from error

    def deviation(self, score: np.ndarray) -> float:
        """The largest difference of a score blob (classes, height, width) from the stored one, relative to its size."""
        found = score[:, :: self.step, :: self.step]
        if found.shape != self.score.shape:
            raise Error(f"the score map has shape {found.shape} where the stored sample has {self.score.shape}")
        return float(np.abs(found - self.score).max() / np.abs(self.score).max())


def run_demo(
    output: PathLike, device: str | torch.device | None = None, seed: int = SEED, tolerance: float = 1e-4
) -> Metrics:
    """Segment newly drawn scenes with fcn-mini and write one picture, demo.png, into the folder `output`.

    Prints one line per metric on stdout (`mean IU 0.8312`) and the rest on stderr. `seed` picks the scenes. Raises
    `Error` where the score map differs from the one stored at training time by more than `tolerance` of its largest
    value: then this machine does not compute what the net's training computed.
    """
    net = load(zoo.path(MODEL, "deploy"), zoo.path(MODEL, "weights"), device=device)
    check_score(net, tolerance)
    classes = zoo.info(MODEL).classes
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    shown: list[tuple[Scene, np.ndarray]] = []
    for scene in draw_scenes(seed, SCENES):
        prediction = scores(net, scene.image).argmax(axis=0).astype(np.uint8)
        matrix += confusion_matrix(scene.label, prediction, len(classes))
        if len(shown) < _SHOWN:
            shown.append((scene, prediction))
    result = metrics(matrix)
    for line in result.lines():
        print(line)
    path = Path(output) / "demo.png"
    save_picture(path, picture(shown, classes))
    print(f"{SCENES} scenes; the first {_SHOWN} are in {path}", file=sys.stderr)
    return result


def scores(net: Net, image: np.ndarray) -> np.ndarray:
    """The score blob, float32 (classes, height, width), for one image, uint8 (height, width, 3) RGB."""
    preprocessing = Preprocessing("bgr", np.array(zoo.info(MODEL).mean))
    blob = to_blob(Image.fromarray(image), preprocessing)
    with torch.no_grad():
        score = net(data=torch.from_numpy(blob)[None].to(net.device))["score"]
    values: np.ndarray = score[0].cpu().numpy()
    return values


def check_score(net: Net, tolerance: float = 1e-4) -> float:
    """The deviation of the net's score map from the one stored at training time; `Error` if above `tolerance`."""
    path = zoo.path(MODEL, "deploy").parent / "score-sample.npz"
    sample = ScoreSample.read(path)
    deviation = sample.deviation(scores(net, sample.image))
    if not deviation <= tolerance:
        raise Error(
            f"{MODEL}: the score map differs from the one stored at training time by {deviation:.1e} of its largest "
            f"value, at most {tolerance:.0e} is expected; this installation of torch (or this device) computes wrongly"
        )
    print(f"score map as at training time (largest difference {deviation:.1e})", file=sys.stderr)
    return deviation


def picture(shown: Sequence[tuple[Scene, np.ndarray]], classes: Sequence[str]) -> Image.Image:
    """One row per scene: image, truth, prediction, overlay; a legend at the right."""
    height, width = shown[0][0].label.shape
    title = 28
    grid = Image.new("RGB", (4 * (width + _GAP) + _GAP, title + len(shown) * (height + _GAP)), "white")
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(17)
    for column, name in enumerate(_TITLES):
        draw.text((_GAP + column * (width + _GAP) + width / 2, title / 2), name, "black", font, anchor="mm")
    for row, (scene, prediction) in enumerate(shown):
        image = Image.fromarray(scene.image)
        panels = (image, label_image(scene.label), label_image(prediction), overlay(image, prediction))
        for column, panel in enumerate(panels):
            grid.paste(panel.convert("RGB"), (_GAP + column * (width + _GAP), title + row * (height + _GAP)))
    colours = zoo.palette(len(classes))
    return beside(grid, legend(list(zip(classes, colours, strict=True)), grid.height, text_size=20))


def save_picture(path: Path, image: Image.Image) -> None:
    """Write a PNG, making its folder; `DataError` where that can't be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            image.save(file, "PNG")
    except OSError as error:
        raise DataError(f"{path}: can't be written: {error.strerror or error}") from error
