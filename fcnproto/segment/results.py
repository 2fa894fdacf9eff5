"""What segmenting gives: label maps with what is known of their classes, and what became of each image file.

No torch here, so that processes which only write files do without.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from fcnproto.lazy import later

Array = npt.NDArray[Any]

MOST_CLASSES = 256
"""A label is a byte."""


@dataclass(frozen=True)
class Segmentation:
    """What one score blob says of an image.

    `labels` is (height, width) uint8, the class with the highest score (the lowest of equals); `probabilities`
    (classes, height, width) float32, the softmax over the classes, or None where it wasn't asked for; both in the size
    of the image. `names` are the classes' names if known. `agreement`, where it was asked for, is the share of pixels
    (0..1) whose label is the one that computing in float32 gives. `image` is what was segmented, where it was one image
    and not a folder.
    """

    blob: str
    labels: Array
    names: tuple[str, ...] | None
    probabilities: Array | None = None
    agreement: float | None = None
    image: Image.Image | None = field(default=None, repr=False, compare=False)

    def name(self, label: int) -> str:
        """The name of a class, or "class 7"."""
        return self.names[label] if self.names is not None else f"class {label}"

    def shares(self) -> dict[str, float]:
        """The classes that occur with their shares of the image's pixels (0..1), the largest first."""
        counts = np.bincount(self.labels.ravel(), minlength=MOST_CLASSES)
        order = sorted(np.flatnonzero(counts), key=lambda label: (-counts[label], label))
        return {self.name(int(label)): float(counts[label] / self.labels.size) for label in order}

    def _repr_html_(self) -> str:
        """For notebooks: the image, the labels over it, the classes with their shares."""
        return cast("str", later("fcnproto.notebook:of_segmentation")(self))


@dataclass(frozen=True)
class Result:
    """One image of `segment`: `files` written and the `segmentations`, or the `error` that prevented it.

    It is image `index` (from 0) of `total`.
    """

    source: Path
    index: int
    total: int
    files: tuple[Path, ...] = ()
    segmentations: tuple[Segmentation, ...] = ()
    error: str | None = None
