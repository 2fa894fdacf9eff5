"""All measurements in one table: loading, inference beside other engines, training.

    python -m benchmarks [--device cpu] [--rounds 3] [--minutes 8] [--threads 2] [--quick] [--markdown FILE]

Takes a quarter of an hour on two cores; `--quick` measures FCN-8s alone, `--minutes` ends the rounds of inference
earlier. The parts can be run alone: benchmarks.load, benchmarks.inference, benchmarks.training; growth with the image
and the batch is benchmarks.growth, public nets of all kinds are benchmarks.topologies.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import engines, inference, load, training
from benchmarks.table import show


def lines(rounds: int, minutes: float, threads: int, quick: bool, device: str = "cpu") -> Iterator[str]:
    """The rows of all parts."""
    yield from load.lines(rounds)
    subjects = inference.SUBJECTS_ON_GPU if device.startswith("cuda") else inference.SUBJECTS
    cases = {key: case for key, case in inference.CASES.items() if not quick or key.startswith("voc-fcn8s")}
    yield from inference.lines(cases, subjects, rounds, threads, device, minutes)
    yield from training.measure((375, 500), rounds, rounds, threads, device)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="inference of FCN-8s alone")
    parser.add_argument("--minutes", type=float, default=8, help="the longest that inference's rounds may take")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    options = parser.parse_args(arguments)
    print("; ".join(map(engines.version, inference.ENGINES)), file=sys.stderr)
    return show(
        lines(options.rounds, options.minutes, options.threads, options.quick, options.device), options.markdown
    )


if __name__ == "__main__":
    sys.exit(main())
