"""The FCN papers' experiments in small, on drawn scenes.

    python -m benchmarks.experiments --classifier FILE [NAME ...] [-o FOLDER]
    python -m benchmarks.experiments --report docs/experiments.md

The classifier's weights are those of fcn-mini's training (models/fcn-mini/README.md says how they are made). Without
names all experiments are run, each in minutes on two cores; what is done already is not done again, and an interrupted
run goes on. Results lie in FOLDER/<name>/result.json; --report writes their tables between the marks of a document.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.experiments import report
from benchmarks.experiments.definitions import experiments
from benchmarks.experiments.running import Runs


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments", description="The FCN papers' experiments in small, on drawn scenes."
    )
    known = {item.name: item for item in experiments()}
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("experiments"), help="folder of the runs [%(default)s]"
    )
    parser.add_argument("--classifier", type=Path, help="weights of fcn-mini's classifier")
    parser.add_argument("--threads", type=int, default=2, help="[%(default)s]")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the tables of what is done into this file")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"no experiment is called {', '.join(unknown)}; there are {', '.join(known)}")
    if options.report:
        report.write(options.output, options.report)
        return
    if options.classifier is None or not options.classifier.is_file():
        parser.error("--classifier FILE is needed: the weights of fcn-mini's classifier")
    runs = Runs(options.output, options.classifier, options.threads)
    for name in options.names or known:
        found = runs.run(known[name])
        last = list(found["scores"].values())[-1]
        print(f"{name}: " + "; ".join(f"{blob} mean IU {values['mean IU']:.3f}" for blob, values in last.items()))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
