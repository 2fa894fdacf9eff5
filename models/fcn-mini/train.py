"""Trains fcn-mini from nothing on drawn images: three `fcnproto train`s, and surgery between them. Run again to resume.

    python models/fcn-mini/train.py            # from the repository root; --help lists the options

What is done, step by step, is in COMMANDS: a slim VGG16 learns to name drawn objects; its features warm up in an FCN-8s
with batch normalisation and little padding; the normalisation is folded away, exactly, and the net proper with its
padding of 100 is trained on from there. Everything is in the solvers and nets of this folder.

Writes weights.caffemodel, score-sample.npz (an image and what the net made of it, which the demo compares with) and
model.json (with the metrics on 200 unseen scenes) into the output folder.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import fcnproto
from fcnproto import demo, zoo
from fcnproto.scenes.scenes import draw_scene, draw_scenes
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse_file
from fcnproto.scoring.metrics import Metrics, confusion_matrix, metrics

HERE = Path(__file__).resolve().parent
MINI = zoo.definitions("mini")
TEST_SCENES = 200
SAMPLE_STEP = 8

# One command a line, run in one folder; {trained} stands for what the training before wrote.
COMMANDS = """
train --solver classifier-solver.prototxt --channels-last
surgery transplant warmup-train.prototxt {trained} -o warmup-start.caffemodel
train --solver warmup-solver.prototxt --channels-last
surgery fold-normalisation warmup-train.prototxt {trained} -o folded.prototxt --output-weights warmup.caffemodel
surgery transplant train.prototxt warmup.caffemodel -o start.caffemodel
train --solver solver.prototxt --optimize
"""


def train(work: Path) -> Path:
    """Run the commands that have not been run yet in the folder `work`; returns the trained weights."""
    (work / "snapshot").mkdir(parents=True, exist_ok=True)
    for file in HERE.glob("*.prototxt"):
        shutil.copy(file, work)
    trained = ""
    for command in COMMANDS.strip().splitlines():
        words = command.format(trained=trained).split()
        made = words[-1]
        if words[0] == "train":
            solver = parse_file(work / words[2], caffe_pb2.SolverParameter)
            made = trained = f"{solver.snapshot_prefix}_iter_{solver.max_iter}.caffemodel"
            words += resumed(work, solver.snapshot_prefix)
        if not (work / made).exists():
            print("fcnproto", *words, flush=True)
            subprocess.run([sys.executable, "-m", "fcnproto", *words], cwd=work, check=True)
    return work / trained


def resumed(work: Path, prefix: str) -> list[str]:
    """The options that let a training go on from its last snapshot, if there is one."""
    pattern = re.compile(re.escape(os.path.basename(prefix)) + r"_iter_(\d+)\.solverstate")
    matches = filter(None, map(pattern.fullmatch, os.listdir((work / prefix).parent)))
    last = max((int(match[1]) for match in matches), default=0)
    return ["--snapshot", f"{prefix}_iter_{last}.solverstate"] if last else []


def evaluate(net: Any, seed: int, count: int) -> Metrics:
    """Metrics over `count` scenes of a seed."""
    matrix = np.zeros((len(MINI.CLASSES), len(MINI.CLASSES)), np.int64)
    for scene in draw_scenes(seed, count):
        matrix += confusion_matrix(scene.label, demo.scores(net, scene.image).argmax(0), len(MINI.CLASSES))
    return metrics(matrix)


def finish(weights: Path, output: Path) -> None:
    """Measure the net as any user loads it, and write its folder's files."""
    final = fcnproto.load(HERE / "deploy.prototxt", weights)
    final.save(output / "weights.caffemodel")
    result = evaluate(fcnproto.optimize(final), MINI.TEST_SEED, TEST_SCENES)
    print(f"{TEST_SCENES} unseen scenes:", *result.lines(), sep="\n", flush=True)
    image = draw_scene(MINI.SAMPLE_SEED).image
    sample = demo.scores(final, image)[:, ::SAMPLE_STEP, ::SAMPLE_STEP]
    np.savez_compressed(output / "score-sample.npz", image=image, score=sample, step=SAMPLE_STEP)
    percent = {name: round(100 * value, 1) for name, value in result.named()}
    score = {
        "data": f"{TEST_SCENES} unseen drawn scenes (seed {MINI.TEST_SEED})",
        "metrics": percent,
        "source": "models/fcn-mini/train.py",
        "verified": True,
    }
    (output / "model.json").write_text(json.dumps(MINI.record([score]), indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train fcn-mini from nothing on drawn images; run again to resume.")
    parser.add_argument("-o", "--output", type=Path, default=HERE, help="folder for the results [this file's]")
    parser.add_argument(
        "--work", type=Path, default=Path("fcn-mini-training.tmp"), help="folder to work in [%(default)s]"
    )
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    finish(train(options.work), options.output)
    print(f"written to {options.output}; remove {options.work} to train anew")


if __name__ == "__main__":
    main()
