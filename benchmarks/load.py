"""Loading the 537 MB FCN-8s caffemodel: time against reading the bare file, and peak memory.

    python -m benchmarks.load [--rounds 5]

The weights are seeded and written by `net.save`. Loading into a net that is built already is compared with reading the
file into fresh memory, in turns in one process; the peak is that of a process of its own, beyond torch's import.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks.memory import peak
from benchmarks.table import ratio, row, show

NAME = "voc-fcn8s"


def _peak_of_loading(pipe: Connection, path: Path) -> None:
    import torch  # noqa: F401  the base line has it

    before = peak()
    import fcnproto

    net = fcnproto.load(fcnproto.zoo.path(NAME, "deploy"), path)
    pipe.send((peak() - before, len(net.params)))


def bare_read(path: Path) -> float:
    """Seconds to read the file into fresh memory."""
    start = time.perf_counter()
    size = path.stat().st_size
    buffer = np.empty(size, np.uint8)
    with path.open("rb", buffering=0) as file:
        view, done = memoryview(buffer), 0
        while done < size:
            done += file.readinto(view[done:])
    return time.perf_counter() - start


def load_into_fresh_net(path: Path) -> tuple[float, float]:
    """Seconds to copy the file into a net without values, and seconds to build that net."""
    import fcnproto
    from fcnproto.schema.text import read_net

    start = time.perf_counter()
    net = fcnproto.Net(read_net(fcnproto.zoo.path(NAME, "deploy")), fill=False)
    built = time.perf_counter()
    net.copy_from(path)
    return time.perf_counter() - built, built - start


def lines(rounds: int) -> Iterator[str]:
    """The rows of the table; ratios are to reading the bare file, memory is beyond torch's import."""
    from benchmarks.inference import prepare

    with tempfile.TemporaryDirectory() as temporary:
        prepare(Path(temporary), NAME)
        path = Path(temporary) / f"{NAME}.caffemodel"
        load_into_fresh_net(path), bare_read(path)  # warm the page cache and the imports
        bare, loading, building = [], [], []
        for _ in range(rounds):
            bare.append(bare_read(path))
            seconds, built = load_into_fresh_net(path)
            loading.append(seconds)
            building.append(built)
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=_peak_of_loading, args=(there, path))
        process.start()
        memory, _ = here.recv()
        process.join()
        title = f"loading {path.stat().st_size / 1e6:.0f} MB of {NAME}"
    yield row(title, "bare read of the file", statistics.median(bare), 1.0)
    yield row(title, "weights into the net", statistics.median(loading), ratio(loading, bare), memory)
    yield row(title, "building the net", statistics.median(building), ratio(building, bare))


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="loading time and memory")
    parser.add_argument("--rounds", type=int, default=5)
    return show(lines(parser.parse_args(arguments).rounds))


if __name__ == "__main__":
    sys.exit(main())
