"""Growth: time and memory of FCN-8s from 128x128 to 2048x2048 pixels and from one image to sixteen, with the slope.

    python -m benchmarks.growth [--subjects plain,optimized] [--minutes 5] [--threads 2] [--markdown FILE]

Each case runs in a process of its own, whose peak memory it is: one untimed call, then timed ones for three seconds,
one at least. The slope is the exponent by which the time grows from the row before: 1 is in proportion to pixels or
images. No case begins after `--minutes`; all of them take four minutes on two cores, a third of it the plain net at
2048x2048, which needs 7 GB.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.inference import images, ours, prepare
from benchmarks.memory import peak
from benchmarks.table import show

SIDES = (128, 256, 512, 1024, 2048)
BATCHES = (1, 2, 4, 8, 16)
HEADER = ("| what | subject | seconds (median) | slope | peak memory, GB |", "|---|---|---|---|---|")
_SECONDS = 3.0


def work(pipe: Connection, folder: Path, name: str, subject: str, side: int, batch: int, threads: int) -> None:
    """A case in its process: sends the seconds of a call and the peak memory, or what stopped it."""
    import torch

    torch.set_num_threads(threads)
    try:
        run = ours(folder, name, subject, "cpu")
        values = {blob: torch.from_numpy(np.repeat(x, batch, 0)) for blob, x in images(name, (side, side)).items()}
        run(values)
        taken: list[float] = []
        while sum(taken) < _SECONDS:
            start = time.perf_counter()
            run(values)
            taken.append(time.perf_counter() - start)
        pipe.send((statistics.median(taken), peak()))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:80])


def measured(folder: Path, *case: Any) -> tuple[float, int] | str:
    """The seconds and bytes of a case, or what stopped it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=work, args=(there, folder, *case), daemon=True)
    process.start()
    there.close()
    try:
        found: tuple[float, int] | str = here.recv()
    except EOFError:
        found = "the process was ended (memory?)"
    process.join()
    return found


def lines(name: str, subjects: Sequence[str], threads: int, minutes: float) -> Iterator[str]:
    """The rows of the table."""
    series = {
        "pixels": [(side, 1, side * side, f"{side}x{side}") for side in SIDES],
        "images": [(128, batch, batch, f"{batch} of 128x128") for batch in BATCHES],
    }
    with tempfile.TemporaryDirectory() as temporary:
        prepare(Path(temporary), name)
        began = time.monotonic()
        for cases in series.values():
            for subject in subjects:
                before: tuple[int, float] | None = None
                for side, batch, amount, title in cases:
                    if time.monotonic() - began > minutes * 60:
                        yield f"| {name}, {title} | {subject} | no time left | | |"
                        continue
                    found = measured(Path(temporary), name, subject, side, batch, threads)
                    if isinstance(found, str):
                        yield f"| {name}, {title} | {subject} | {found} | | |"
                        continue
                    seconds, memory = found
                    slope = f"{math.log(seconds / before[1], amount / before[0]):.2f}" if before else ""
                    yield f"| {name}, {title} | {subject} | {seconds:.3f} | {slope} | {memory / 1e9:.2f} |"
                    before = amount, seconds


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--net", default="voc-fcn8s")
    parser.add_argument("--subjects", default="plain,optimized")
    parser.add_argument("--minutes", type=float, default=5, help="no case begins later")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    options = parser.parse_args(arguments)
    rows = lines(options.net, options.subjects.split(","), options.threads, options.minutes)
    return show(rows, options.markdown, HEADER)


if __name__ == "__main__":
    sys.exit(main())
