"""All measurements in one table: loading, inference, growth with the image, training.

    python -m benchmarks [--device cpu] [--rounds 3] [--threads 2] [--quick] [--markdown FILE]

Takes a quarter of an hour on two cores, most of it compiling the hand-written nets and the 1024x1024 images; `--quick`
leaves out both. The parts can be run alone: benchmarks.load, benchmarks.inference, benchmarks.training.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import inference, load, training
from benchmarks.table import show


def lines(rounds: int, threads: int, quick: bool, device: str = "cpu") -> Iterator[str]:
    """The rows of all parts."""
    yield from load.lines(rounds)
    known = inference.SUBJECTS_ON_GPU if device.startswith("cuda") else inference.SUBJECTS
    subjects = [subject for subject in known if not quick or not subject.endswith("compiled")]
    yield from inference.lines(inference.CASES, subjects, rounds, threads, device)
    growth = {key: case for key, case in inference.GROWTH.items() if key not in inference.CASES}
    if quick:
        del growth["voc-fcn8s 1024x1024"]
    # Compiled anew for each size, which growth is not about.
    subjects = [subject for subject in subjects if not subject.endswith("compiled")]
    yield from inference.lines(growth, subjects, rounds, threads, device)
    yield from training.measure((375, 500), rounds, rounds, threads, device)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="without compiling, and without 1024x1024")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    options = parser.parse_args(arguments)
    return show(lines(options.rounds, options.threads, options.quick, options.device), options.markdown)


if __name__ == "__main__":
    sys.exit(main())
