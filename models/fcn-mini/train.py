"""Trains fcn-mini from nothing on drawn scenes: about half an hour on two cores. Run it again to resume.

    python models/fcn-mini/train.py            # from the repository root; --help lists the options

Two stages, both nets read from this folder. `warmup.prototxt` is fcn-mini with batch normalisation and without the
wide padding (the crops are set so that both nets line up pixel for pixel), which learns several times faster. Its
normalisation is then folded into the convolutions, exactly, and `train.prototxt`, the net proper with its padding of
100, is trained on from there. Three of the eight scenes of a batch are drawn for it, the rest are recent ones,
mirrored, shifted and in new colours.

Writes weights.caffemodel, score-sample.npz (an image and what the net made of it, which the demo compares with) and
model.json (with the metrics on 200 unseen scenes) into the output folder.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fcnproto
from fcnproto import demo, zoo
from fcnproto.data.scenes import CLASSES, Scene, draw_scene, draw_scenes
from fcnproto.score import Metrics, confusion_matrix, metrics

HERE = Path(__file__).resolve().parent
MINI = zoo.definitions("mini")
MEAN = np.array(MINI.IMAGE["mean"], np.float32)
TRAIN_SEED, CHECK_SEED, TEST_SEED, SAMPLE_SEED = 1, 2, 3, 4
CHECK_SCENES, TEST_SCENES = 24, 200
SAVE_EVERY = 100
SAMPLE_STEP = 8


@dataclass(frozen=True)
class Stage:
    """One stage of training: its net, how many steps, and the highest learning rate (relative to a weight's size)."""

    net: str
    steps: int
    rate: float
    warm_steps: int
    relative: bool


STAGES = (Stage("warmup.prototxt", 2200, 3e-3, 100, False), Stage("train.prototxt", 1000, 5e-3, 40, True))


class SceneSource:
    """Batches of scenes that depend on the seed and the step alone, so that a resumed run sees what it would have."""

    def __init__(self, seed: int, batch: int = 8, fresh: int = 3, memory: int = 3000) -> None:
        self.seed, self.batch, self.fresh = seed, batch, fresh
        self.recent: deque[Scene] = deque(maxlen=memory)
        self.drawn = 0

    def skip_to(self, step: int) -> None:
        """Refill the memory of recent scenes as it was before `step`."""
        self.drawn = max(self.drawn, self.fresh * step - (self.recent.maxlen or 0))
        while self.drawn < self.fresh * step:
            self._draw()

    def _draw(self) -> Scene:
        scene = draw_scene((self.seed, self.drawn))
        self.drawn += 1
        self.recent.append(scene)
        return scene

    def next_batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images as the net wants them, float32 (batch, 3, height, width), and labels (batch, 1, height, width)."""
        rng = np.random.default_rng((self.seed, step))
        scenes = [self._draw() for _ in range(self.fresh)]
        while len(scenes) < self.batch:
            scenes.append(vary(rng, self.recent[int(rng.integers(len(self.recent)))]))
        images = torch.stack([preprocess(scene.image) for scene in scenes])
        labels = torch.from_numpy(np.stack([scene.label for scene in scenes])[:, None])
        return images.contiguous(memory_format=torch.channels_last), labels


def vary(rng: np.random.Generator, scene: Scene) -> Scene:
    """The scene mirrored or not, shifted, its colour channels swapped, brighter or darker by channel."""
    image, label = scene.image, scene.label
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    height, width = label.shape
    shift = [int(value) for value in rng.integers(0, 49, 2)]
    rows = slice(shift[0], shift[0] + height)
    columns = slice(shift[1], shift[1] + width)
    label = np.pad(label, 24, mode="reflect")[rows, columns]
    image = np.pad(image, ((24, 24), (24, 24), (0, 0)), mode="reflect")[rows, columns, rng.permutation(3)]
    gain, offset = rng.uniform(0.75, 1.25, 3), rng.uniform(-20, 20, 3)
    coloured = np.clip(image * gain.astype(np.float32) + offset.astype(np.float32), 0, 255).astype(np.uint8)
    return Scene(coloured, label)


def preprocess(image: np.ndarray) -> Tensor:
    """uint8 RGB (height, width, 3) -> float32 BGR minus the mean, (3, height, width)."""
    centred = image[:, :, ::-1].astype(np.float32) - MEAN
    return torch.from_numpy(np.ascontiguousarray(centred.transpose(2, 0, 1)))


def start_values(net: Any) -> None:
    """Fixed bilinear filters for the upsampling layers, as every FCN has them."""
    with torch.no_grad():
        for name, blobs in net.params.items():
            if name.startswith("up"):
                size = blobs[0].shape[-1]
                half = (size + 1) // 2
                row = 1 - (torch.arange(size) - (half - 0.5 - 0.5 * (size % 2))).abs() / half
                blobs[0].zero_()
                blobs[0][range(len(blobs[0])), range(len(blobs[0]))] = row[:, None] * row
                blobs[0].requires_grad_(False)


def fold(warm: Any, net: Any) -> None:
    """Copy the weights of the warm-up net into the plain one, each batch normalisation folded into its convolution."""
    with torch.no_grad():
        for name, blobs in net.params.items():
            source = warm.params[name]
            if f"bn_{name}" not in warm.params:
                for blob, value in zip(blobs, source, strict=True):
                    blob.copy_(value)
                continue
            mean, variance, count = (blob.double() for blob in warm.params[f"bn_{name}"])
            gain, offset = (blob.double() for blob in warm.params[f"scale_{name}"])
            factor = gain / torch.sqrt(variance / count + 1e-5)
            blobs[0].copy_(source[0].double() * factor[:, None, None, None])
            blobs[1].copy_(offset - mean / count * factor)


def optimiser(net: Any, stage: Stage) -> torch.optim.Optimizer:
    """Adam; in a relative stage each tensor's rate is proportional to the size of its values."""
    groups = []
    for blobs in net.params.values():
        for blob in blobs:
            if isinstance(blob, torch.nn.Parameter) and blob.requires_grad:
                size = max(float(blob.detach().square().mean().sqrt()), 1e-4 if blob.ndim > 1 else 0.02)
                groups.append({"params": [blob], "size": size if stage.relative else 1.0})
    return torch.optim.Adam(groups, lr=stage.rate, betas=(0.9, 0.98))


def set_rate(optimizer: torch.optim.Optimizer, stage: Stage, step: int) -> None:
    """A short linear rise, then a cosine fall to a thousandth (to a tenth before another stage follows)."""
    rise = min(1.0, (step + 1) / stage.warm_steps)
    lowest = 0.001 if stage.relative else 0.05
    fall = lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * step / stage.steps))
    for group in optimizer.param_groups:
        group["lr"] = stage.rate * rise * fall * group["size"]


def evaluate(net: Any, seed: int, count: int) -> Metrics:
    """Metrics over `count` scenes of another seed."""
    matrix = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    net.eval()
    with torch.no_grad():
        for scene in draw_scenes(seed, count):
            score = net(data=preprocess(scene.image)[None], blobs=["score"])["score"]
            matrix += confusion_matrix(scene.label, score[0].argmax(0).numpy(), len(CLASSES))
    net.train()
    return metrics(matrix)


def save_checkpoint(path: Path, stage: int, step: int, net: Any, optimizer: torch.optim.Optimizer) -> None:
    state = {"stage": stage, "step": step, "net": net.state_dict(), "optimizer": optimizer.state_dict()}
    state["random"] = torch.get_rng_state()
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def load_net(name: str) -> Any:
    return fcnproto.load(str(HERE / name), phase="train").to(memory_format=torch.channels_last)


def run_stage(index: int, net: Any, state: dict[str, Any] | None, checkpoint: Path, source: SceneSource) -> None:
    """Train one stage, from `state` if a checkpoint was made within it."""
    stage = STAGES[index]
    optimizer = optimiser(net, stage)
    first = 0
    if state is not None:
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        if "random" in state:
            torch.set_rng_state(state["random"])
    before = sum(earlier.steps for earlier in STAGES[:index])
    source.skip_to(before + first)
    net.train()
    began, average = time.time(), 0.0
    for step in range(first, stage.steps):
        data, label = source.next_batch(before + step)
        set_rate(optimizer, stage, step)
        optimizer.zero_grad()
        loss = net.loss(net(data=data, label=label))
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in net.parameters() if p.requires_grad], 5.0)
        optimizer.step()
        average = float(loss.detach()) if step == first else 0.98 * average + 0.02 * float(loss.detach())
        if (step + 1) % 20 == 0:
            pace = (time.time() - began) / (step + 1 - first)
            print(f"{stage.net} step {step + 1}/{stage.steps} loss {average:.4f} {pace:.2f} s a step", flush=True)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == stage.steps:
            save_checkpoint(checkpoint, index, step + 1, net, optimizer)
        if (step + 1) % 400 == 0:
            print("  unseen scenes:", ", ".join(evaluate(net, CHECK_SEED, CHECK_SCENES).lines()), flush=True)


def train(checkpoint: Path) -> Any:
    """Both stages; returns the trained net."""
    state = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else None
    source = SceneSource(TRAIN_SEED)
    warm = load_net(STAGES[0].net)
    start_values(warm)
    if state is None or state["stage"] == 0:
        run_stage(0, warm, state, checkpoint, source)
        state = None
    net = load_net(STAGES[1].net)
    start_values(net)
    if state is None:
        fold(warm, net)
        print("folded:", ", ".join(evaluate(net, CHECK_SEED, CHECK_SCENES).lines()), flush=True)
    run_stage(1, net, state, checkpoint, source)
    return net


def finish(net: Any, output: Path) -> None:
    """Save the weights, then load them as any user does, measure the net and write the rest of the model's folder."""
    weights = output / "weights.caffemodel"
    net.save(weights)
    final = fcnproto.load(HERE / "deploy.prototxt", weights)
    result = evaluate(final, TEST_SEED, TEST_SCENES)
    print(f"{TEST_SCENES} unseen scenes:", *result.lines(), sep="\n", flush=True)
    image = draw_scene(SAMPLE_SEED).image
    sample = demo.scores(final, image)[:, ::SAMPLE_STEP, ::SAMPLE_STEP]
    np.savez_compressed(output / "score-sample.npz", image=image, score=sample, step=SAMPLE_STEP)
    percent = {name: round(100 * value, 1) for name, value in result.named()}
    score = {
        "data": f"{TEST_SCENES} unseen drawn scenes (seed {TEST_SEED})",
        "metrics": percent,
        "source": "models/fcn-mini/train.py",
        "verified": True,
    }
    (output / "model.json").write_text(json.dumps(MINI.record([score]), indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train fcn-mini from nothing on drawn scenes; run again to resume.")
    parser.add_argument("-o", "--output", type=Path, default=HERE, help="folder for the results [this file's]")
    parser.add_argument("--checkpoint", type=Path, default=Path("fcn-mini-training.tmp"), help="[%(default)s]")
    parser.add_argument("--threads", type=int, default=0, help="threads for torch; 0 leaves its choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(TRAIN_SEED)
    options.output.mkdir(parents=True, exist_ok=True)
    finish(train(options.checkpoint), options.output)
    print(f"written to {options.output}; remove {options.checkpoint} to train anew")


if __name__ == "__main__":
    main()
