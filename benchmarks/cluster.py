"""Corpora on local Ray: where the time of an image goes, and images a second from 1 to N workers. See docs/clusters.md.

    python -m benchmarks.cluster [--images 96] [--workers 1,2]

Drawn scenes of 500x375 as JPEG, the net that comes along, label files as results.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import fcnproto
from fcnproto import cluster, zoo
from fcnproto.cluster.chunks import Item
from fcnproto.cluster.segmenting import Labels, Segmenting
from fcnproto.cluster.sources import Reader
from fcnproto.scenes.scenes import draw_scenes
from fcnproto.segment import Segmenter, segment
from fcnproto.segment.segmenter import AHEAD

WIDTH, HEIGHT = 500, 375


def draw(folder: Path, count: int) -> None:
    """JPEG files of scenes, with the grain of photographs."""
    rng = np.random.default_rng(0)
    for number, scene in enumerate(draw_scenes(0, count)):
        pixels = np.asarray(Image.fromarray(np.asarray(scene.image)).resize((WIDTH, HEIGHT)), dtype=np.int16)
        grain = rng.normal(0, 6, pixels.shape).astype(np.int16)
        Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{number:05d}.jpg", quality=90)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds of CPU that something takes, and what it gives."""
    start = time.process_time()
    found = work()
    return 1000 * (time.process_time() - start), found


def stages(segmenter: Segmenter, folder: Path, out: Path, count: int) -> dict[str, float]:
    """Milliseconds of one core for each stage of an image, and the bytes that it moves, in the mean."""
    work = Segmenting(segmenter.preprocessing[segmenter.inputs[0]], "cpu", None, "", AHEAD)
    sums = dict.fromkeys(("reading", "decoding", "the net", "encoding", "writing"), 0.0)
    sums |= dict.fromkeys(("bytes read", "bytes of pixels", "bytes of results"), 0.0)
    for path in sorted(folder.iterdir())[:count]:
        item = Item(path.stem, str(path))
        spent, data = timed(lambda: Reader()(item))  # noqa: B023
        sums["reading"] += spent
        spent, picture = timed(lambda: work.decode(item, data, 2**30))  # noqa: B023
        sums["decoding"] += spent
        spent, found = timed(lambda: segmenter(picture.content))  # noqa: B023
        sums["the net"] += spent
        labels = [Labels(one.blob, "", one.labels, one.shares()) for one in found]
        spent, rows = timed(lambda: work.encode(item, labels))  # noqa: B023
        sums["encoding"] += spent
        spent, _ = timed(lambda: (out / f"{item.name}.png").write_bytes(rows[0]["labels"]))  # noqa: B023
        sums["writing"] += spent
        sums["bytes read"] += len(data)
        sums["bytes of pixels"] += picture.nbytes
        sums["bytes of results"] += len(rows[0]["labels"])
    return {name: value / count for name, value in sums.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Corpora on local Ray.")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--workers", default="1,2")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    net = fcnproto.optimize(fcnproto.load(zoo.path("fcn-mini", "deploy"), zoo.path("fcn-mini", "weights")))
    segmenter = Segmenter(net)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for inner in ("images", "one"):
            (folder / inner).mkdir()
        draw(folder / "images", chosen.images)
        for what, value in stages(segmenter, folder / "images", folder / "one", min(16, chosen.images)).items():
            print(f"{what:18} {value:10.2f}")
        start = time.perf_counter()
        done = len(list(segment(segmenter, folder / "images", folder / "single")))
        print(f"one process        {done / (time.perf_counter() - start):10.2f} images/s (with overlays)")
        for workers in map(int, chosen.workers.split(",")):
            summary = cluster.segment(
                segmenter, folder / "images", folder / f"out{workers}", cluster="local", workers=workers, part=16
            )
            rate, first = summary.images_per_second, summary.seconds_to_first
            print(f"{f'{workers} workers':18} {rate:10.2f} images/s; first results after {first:.1f} s")


if __name__ == "__main__":
    main()
