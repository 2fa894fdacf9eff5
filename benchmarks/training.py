"""Training: one iteration of FCN-32s against hand-written PyTorch, and a snapshot against writing the same bytes.

    python -m benchmarks.training [--device cpu] [--iterations 3] [--snapshots 3] [--size 375x500] [--threads N]
                                  [--markdown FILE]

Batch 1, float32, the published solver's settings. Each side runs in a process of its own (so that its peak memory is
its own) and both take turns, one iteration each; both start from the same weights and draw the same dropout, so that
their losses can be compared. Seconds are medians; on a GPU an iteration ends when all
is done there, and memory is the GPU's. The snapshot (model and state) is compared with writing and syncing
the very same bytes, in turns as well.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.memory import peak
from benchmarks.table import ratio, row, show

CLASSES, MOMENTUM, DECAY, RATE = 21, 0.99, 0.0005, 1e-10
Step = Callable[[], float]


def fill(tensors: Iterable[Any]) -> None:
    """Seeded values for the parameters of either side, which list them in the same order."""
    import torch

    rng = np.random.default_rng(1)
    with torch.no_grad():
        for tensor in tensors:
            scale = 0.1 if tensor.dim() == 1 else (2 / np.prod(tensor.shape[1:])) ** 0.5
            values = rng.standard_normal(tuple(tensor.shape), np.float32)
            tensor.copy_(torch.from_numpy(values).mul_(float(scale)))


def batch(size: tuple[int, int]) -> dict[str, Any]:
    """One seeded image with labels, a twentieth of them void.

    Values of about 1, because for scores in the hundreds Caffe cuts the loss off and plain PyTorch doesn't.
    """
    import torch

    rng = np.random.default_rng(0)
    label = rng.integers(0, CLASSES, (1, 1, *size))
    label[rng.random(label.shape) < 0.05] = 255
    image = rng.standard_normal((1, 3, *size), np.float32)
    return {"data": torch.from_numpy(image), "label": torch.from_numpy(label.astype(np.float32))}


def ours(size: tuple[int, int], folder: Path, device: str, optimized: bool = False) -> tuple[Step, Callable[[], Path]]:
    """The package's solver: (one iteration, one snapshot)."""
    import torch

    import fcnproto
    from fcnproto.schema import caffe_pb2
    from fcnproto.solver import Options

    param = caffe_pb2.SolverParameter(
        train_net=str(fcnproto.zoo.path("voc-fcn32s", "train")),
        base_lr=RATE,
        lr_policy="fixed",
        momentum=MOMENTUM,
        weight_decay=DECAY,
        snapshot_prefix=str(folder / "snap"),
        solver_mode=caffe_pb2.SolverParameter.CPU,
    )
    solver = fcnproto.Solver(param, device=device, options=Options(optimize=optimized))
    fill(entry.tensor for entry in solver.net.learnable)
    inputs = {name: value.to(device) for name, value in batch(size).items()}

    def step() -> float:
        torch.manual_seed(0)
        solver.step(1, **inputs)
        return solver.losses[-1]

    return step, lambda: Path(solver.snapshot())


def hand_written(size: tuple[int, int], folder: Path, device: str) -> tuple[Step, None]:
    """The same net and update written directly in PyTorch."""
    import torch
    from torch.nn import functional as F

    from benchmarks.peers import Vgg

    model = Vgg(1, [CLASSES]).to(device)
    fill(model.parameters())
    model.ups.requires_grad_(False)
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    weights = [p for name, p in model.named_parameters() if name.endswith("weight") and p.requires_grad]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": DECAY}, {"params": biases, "lr": 2 * RATE}], lr=RATE, momentum=MOMENTUM
    )
    inputs = {name: value.to(device) for name, value in batch(size).items()}
    image, label = inputs["data"], inputs["label"][:, 0].long()

    def step() -> float:
        torch.manual_seed(0)
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(image)[0], label, ignore_index=255, reduction="sum")
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step, None


def ours_optimized(size: tuple[int, int], folder: Path, device: str) -> tuple[Step, Callable[[], Path]]:
    """The package's solver on the net as `fcnproto.optimize` rewrites it."""
    return ours(size, folder, device, optimized=True)


SUBJECTS: dict[str, Callable[[tuple[int, int], Path, str], tuple[Step, Any]]] = {
    "hand-written": hand_written,
    "fcnproto": ours,
    "fcnproto, optimize": ours_optimized,
}


def serve(name: str, size: tuple[int, int], folder: str, threads: int, device: str, pipe: Connection) -> None:
    """A side's process: does what the pipe asks and answers with (seconds, result)."""
    import torch

    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 is strict for all, as it is for ours
    on_gpu = device.startswith("cuda")
    step, snapshot = SUBJECTS[name](size, Path(folder), device)
    pipe.send("ready")
    while (request := pipe.recv()) != "quit":
        if request == "memory":
            pipe.send((0.0, torch.cuda.max_memory_allocated(device) if on_gpu else peak()))
            continue
        if on_gpu:
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        result = step() if request == "step" else str(snapshot())
        if on_gpu:
            torch.cuda.synchronize(device)
        pipe.send((time.perf_counter() - start, result))


def write_and_sync(paths: list[Path], folder: Path) -> float:
    """Seconds to write files of the same bytes and bring them to the disk."""
    contents = [path.read_bytes() for path in paths]
    start = time.perf_counter()
    for path, content in zip(paths, contents, strict=True):
        with open(folder / f"raw-{path.name}", "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    for path in paths:
        (folder / f"raw-{path.name}").unlink()
    return seconds


def measure(size: tuple[int, int], iterations: int, snapshots: int, threads: int, device: str = "cpu") -> list[str]:
    """Run everything; the lines of the report."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    seconds: dict[str, list[float]] = {name: [] for name in SUBJECTS}
    losses: dict[str, list[float]] = {name: [] for name in SUBJECTS}
    memory: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in SUBJECTS:
            pipes[name], other = context.Pipe()
            context.Process(target=serve, args=(name, size, folder, threads, device, other), daemon=True).start()
            other.close()  # so that a side that dies is an error here, not silence
            pipes[name].recv()
        for number in range(iterations + 1):
            for name, pipe in pipes.items():
                pipe.send("step")
                duration, loss = pipe.recv()
                losses[name].append(loss)
                if number:  # the first one makes memory and chooses algorithms
                    seconds[name].append(duration)
        for name, pipe in pipes.items():
            pipe.send("memory")
            memory[name] = pipe.recv()[1]
        for name in ("hand-written", "fcnproto, optimize"):
            pipes[name].send("quit")
        written, raw = [], []
        for _ in range(snapshots):
            pipes["fcnproto"].send("snapshot")
            duration, state = pipes["fcnproto"].recv()
            written.append(duration)
            model = Path(state).with_suffix(".caffemodel")
            raw.append(write_and_sync([model, Path(state)], Path(folder)))
            Path(state).unlink()  # each snapshot is a new one, not a replacement
        pipes["fcnproto"].send("quit")
    return report(size, seconds, losses, memory, written, raw)


def report(
    size: tuple[int, int],
    seconds: dict[str, list[float]],
    losses: dict[str, list[float]],
    memory: dict[str, float],
    written: list[float],
    raw: list[float],
) -> list[str]:
    """The rows of the table: ratios to the hand-written net; as deviation the largest of the losses."""
    title = f"training voc-fcn32s {size[1]}x{size[0]}"
    lines = []
    for name, values in losses.items():
        difference = max(abs(a - b) / abs(b) for a, b in zip(values, losses["hand-written"], strict=True))
        share = ratio(seconds[name], seconds["hand-written"])
        lines.append(row(title, name, statistics.median(seconds[name]), share, memory[name], difference))
    if written:
        title = "snapshot of model and state"
        lines.append(row(title, "the same bytes written and synced", statistics.median(raw), 1.0))
        lines.append(row(title, "fcnproto", statistics.median(written), ratio(written, raw)))
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and print the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--snapshots", type=int, default=3)
    parser.add_argument("--size", default="375x500", help="HEIGHTxWIDTH")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--markdown", type=Path, help="also write the report to this file")
    options = parser.parse_args(arguments)
    height, width = (int(part) for part in options.size.split("x"))
    rows = measure((height, width), options.iterations, options.snapshots, options.threads, options.device)
    return show(rows, options.markdown)


if __name__ == "__main__":
    sys.exit(main())
