"""Runs experiments: nets and solver written to a folder, weights begun by surgery, `fcnproto train`, scores.

What is done is not done again: a run that was interrupted goes on from its last snapshot.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.experiments import rooms
from benchmarks.experiments.definitions import CLASSIFIER, Experiment, experiments
from fcnproto.atomic import atomic_write
from fcnproto.schema.text import write_message


class Runs:
    """The folder that all runs lie in: one folder for each, results as result.json within."""

    def __init__(self, folder: Path, classifier: Path, threads: int) -> None:
        self.folder, self.classifier, self.threads = folder.resolve(), classifier.resolve(), threads

    def run(self, experiment: Experiment) -> dict[str, Any]:
        """Bring one experiment to its end, and those it begins with; returns its result."""
        result = self.folder / experiment.name / "result.json"
        if result.exists():
            return dict(json.loads(result.read_text()))
        folder = result.parent
        (folder / "snapshot").mkdir(parents=True, exist_ok=True)
        if experiment.table in ("fusion", "tasks"):
            rooms.write(self.folder / "data")
        write_message(folder / "train.prototxt", experiment.build("TRAIN"))
        write_message(folder / "val.prototxt", experiment.build("TEST"))
        write_message(folder / "solver.prototxt", experiment.solver())
        self._begin(experiment, folder)
        began = time.monotonic()
        before = _latest(folder)
        self._train(experiment, folder, before)
        found = {
            "name": experiment.name,
            "title": experiment.title,
            "table": experiment.table,
            "iterations": experiment.iterations,
            "images per iteration": experiment.images_per_iteration,
            "iterations in this run": experiment.iterations - before,
            "seconds of this run": round(time.monotonic() - began, 1),
            "scores": self._scores(experiment, folder),
        }
        with atomic_write(result) as file:
            file.write((json.dumps(found, indent=1) + "\n").encode())
        return found

    def weights(self, name: str) -> Path:
        """The weights of the experiment called `name`, which is run if it has not been, or the classifier's."""
        if name == CLASSIFIER:
            return self.classifier
        experiment = next(item for item in experiments() if item.name == name)
        self.run(experiment)
        return _weights(self.folder / name, experiment.iterations)

    def _begin(self, experiment: Experiment, folder: Path) -> None:
        """Write the weights that the training begins with, unless they are there."""
        import fcnproto
        from fcnproto import surgery

        start = folder / "start.caffemodel"
        if start.exists():
            return
        net = fcnproto.load(folder / "train.prototxt", phase="train")
        if not isinstance(experiment.start, str):
            report = surgery.late_fusion(net, {suffix: self.weights(name) for suffix, name in experiment.start.items()})
        elif net.params.get("conv1_1_bgrd"):
            report = surgery.early_fusion(net, self.weights(experiment.start))
        else:
            report = surgery.transplant(net, self.weights(experiment.start))
        surgery.with_interpolation(net, report)
        net.save(start)

    def _train(self, experiment: Experiment, folder: Path, done: int) -> None:
        """`fcnproto train` on the run's solver, from its last snapshot if there is one."""
        if done >= experiment.iterations:
            return
        command = [sys.executable, "-m", "fcnproto", "train", "--solver", "solver.prototxt", "--optimize"]
        command += ["--no-progress", "--no-plot", "--device", "cpu"]
        command += (
            ["--snapshot", f"snapshot/train_iter_{done}.solverstate"] if done else ["--weights", "start.caffemodel"]
        )
        if experiment.sampling:
            command += ["--sample-loss", experiment.sampling]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        with open(folder / "train.log", "ab") as log:
            subprocess.run(command, cwd=folder, env=environment, stderr=log, check=True)

    def _scores(self, experiment: Experiment, folder: Path) -> dict[str, dict[str, dict[str, float]]]:
        """By iteration and score blob the four metrics on what the net is checked on."""
        import torch

        import fcnproto
        from fcnproto.scoring import own_batches, score_net

        torch.set_num_threads(self.threads)
        every = experiment.checkpoints or experiment.iterations
        scores = {}
        for iteration in range(every, experiment.iterations + 1, every):
            net = fcnproto.load(folder / "val.prototxt", _weights(folder, iteration))
            scored = score_net(fcnproto.optimize(net), own_batches(net, experiment.images))
            scores[str(iteration)] = {item.blob: dict(item.metrics.named()) for item in scored}
        return scores


def _weights(folder: Path, iteration: int) -> Path:
    return folder / "snapshot" / f"train_iter_{iteration}.caffemodel"


def _latest(folder: Path) -> int:
    """The iteration of the last snapshot, 0 where there is none."""
    pattern = re.compile(r"train_iter_(\d+)\.solverstate")
    return max((int(match[1]) for match in map(pattern.fullmatch, os.listdir(folder / "snapshot")) if match), default=0)
