"""Mean and spread of each band over many images, for nets whose inputs are no photographs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from fcnproto.atomic import atomic_write
from fcnproto.errors import DataError
from fcnproto.images import read_bands

PathLike = str | os.PathLike[str]


@dataclass
class BandStatistics:
    """The mean and standard deviation of each band, float64 (bands,), over all pixels of `count` images.

    `failures` are the images that were left out, with the reason.
    """

    mean: np.ndarray
    deviation: np.ndarray
    count: int
    failures: list[str] = field(default_factory=list)

    @property
    def scale(self) -> tuple[float, ...]:
        """The factor that gives each band a spread of 1 (1 for a band of one value)."""
        return tuple(1.0 / value if value > 0 else 1.0 for value in self.deviation.tolist())


def band_statistics(
    paths: Iterable[PathLike], count: int = 0, told: Callable[[int], None] | None = None
) -> BandStatistics:
    """The statistics of the images in these files, which may differ in size; all need `count` bands (0: any, alike).

    Each image counts by its pixels. Unreadable ones are left out and reported. Raises `DataError` where none is left.
    """
    pixels, images, failures = 0, 0, list[str]()
    mean = square = np.zeros(count)
    for number, path in enumerate(paths, start=1):
        try:
            image = read_bands(path, count)
        except DataError as error:
            failures.append(str(error))
            continue
        finally:
            if told is not None:
                told(number)
        count = image.count
        values = image.values.reshape(-1, count).astype(np.float64)
        if not images:
            mean, square = np.zeros(count), np.zeros(count)
        # Sums of deviations from the mean so far, which don't cancel as sums of squares would.
        own = values.mean(axis=0)
        apart, share = own - mean, len(values) / (pixels + len(values))
        square = square + ((values - own) ** 2).sum(axis=0) + apart**2 * pixels * share
        mean = mean + apart * share
        pixels, images = pixels + len(values), images + 1
    if not images:
        raise DataError(failures[0] if failures else "no images to take the mean of")
    return BandStatistics(mean, np.sqrt(square / pixels), images, failures)


def write_statistics(path: PathLike, found: BandStatistics) -> None:
    """Write mean and scale of each band as JSON, which `--mean FILE.json` reads."""
    with atomic_write(path, "w") as file:
        json.dump({"mean": found.mean.tolist(), "scale": list(found.scale), "images": found.count}, file, indent=1)
        file.write("\n")
