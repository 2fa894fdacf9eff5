"""The files of a result, written in the calling thread or in processes of their own (which need no torch)."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from PIL import Image

from fcnproto.atomic import atomic_write
from fcnproto.errors import DataError
from fcnproto.images import Picture, visible
from fcnproto.pictures.labels import beside, label_image, legend, overlay, parts, save_png
from fcnproto.segment.results import Segmentation
from fcnproto.zoo import palette


class Writers:
    """Writes results in `processes` of their own, or where that is 0 in the thread that asks.

    `kept` are files that may not be replaced, by their real paths.
    """

    def __init__(self, processes: int, kept: AbstractSet[str]) -> None:
        self._kept = kept
        self._pool: ProcessPoolExecutor | None = None
        if processes:
            # Not forked: the process that computes has threads, and perhaps a GPU.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(processes, context, _begin, (kept,))

    def write(
        self,
        image: Picture,
        segmentations: Sequence[Segmentation],
        stem: Path,
        bare: Sequence[Sequence[int]],
        with_legend: bool,
    ) -> list[Path]:
        """What the function `write` does."""
        if self._pool is None:
            return write(image, segmentations, stem, bare, with_legend, self._kept)
        try:
            return self._pool.submit(_write, image, segmentations, stem, bare, with_legend).result()
        except BrokenProcessPool as error:
            raise DataError("a process that writes results has ended; try fewer of them (writers)") from error

    def close(self) -> None:
        """Wait for what is being written, and end the processes."""
        if self._pool is not None:
            self._pool.shutdown()


_kept: AbstractSet[str] = frozenset()


def _begin(kept: AbstractSet[str]) -> None:
    global _kept
    _kept = kept
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that computes ends them


def _write(
    image: Picture,
    segmentations: Sequence[Segmentation],
    stem: Path,
    bare: Sequence[Sequence[int]],
    with_legend: bool,
) -> list[Path]:
    return write(image, segmentations, stem, bare, with_legend, _kept)


def write(
    image: Picture,
    segmentations: Sequence[Segmentation],
    stem: Path,
    bare: Sequence[Sequence[int]],
    with_legend: bool,
    kept: AbstractSet[str],
) -> list[Path]:
    """Write the label map, the overlay and, where there are, the probabilities of each result.

    `stem` is the path without endings, `bare` are each result's labels that the overlay leaves out, `kept` the files
    that may not be replaced (real paths). Returns the paths. Raises `DataError` and `OSError`.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    names = parts([found.blob for found in segmentations])
    for found, unseen, part in zip(segmentations, bare, names, strict=True):
        pictures = {
            "labels": label_image(found.labels),
            "overlay": _overlay(image, found, unseen, with_legend),
        }
        paths = {what: stem.with_name(f"{stem.name}{part}_{what}.png") for what in pictures}
        for what, picture in pictures.items():
            _refuse(paths[what], kept)
            with atomic_write(paths[what]) as file:
                save_png(picture, file)
        written += paths.values()
        if found.probabilities is not None:
            path = stem.with_name(f"{stem.name}{part}_probs.npz")
            count = found.probabilities.shape[0]
            with atomic_write(path) as file:
                np.savez(file, probs=found.probabilities, classes=np.array([found.name(k) for k in range(count)]))
            written.append(path)
    return written


def _refuse(path: Path, kept: AbstractSet[str]) -> None:
    if os.path.realpath(path) in kept:
        raise DataError(f"{path} is one of the images to be read; write the results to another folder")


def _overlay(image: Picture, found: Segmentation, bare: Sequence[int], with_legend: bool) -> Image.Image:
    picture = overlay(visible(image), found.labels, bare=bare)
    shown = [int(label) for label in np.unique(found.labels) if label not in bare]
    if not with_legend or not shown:
        return picture
    colours = palette()
    return beside(picture, legend([(found.name(label), colours[label]) for label in shown], picture.height))
