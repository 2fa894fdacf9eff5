"""Inference: ours plain and optimised against hand-written PyTorch and OpenCV's dnn, ratios by median in one run.

    python -m benchmarks.inference [--device cpu] [--rounds 5] [--threads 2] [--nets voc-fcn8s,...]
                                   [--subjects plain,...] [--growth] [--markdown FILE]

Each subject runs in a process of its own (so that its peak memory is its own); the processes take turns, one image
each, so that a noisy machine disturbs all alike. Weights are seeded; every subject's answer is compared with ours. On a
GPU images lie there already, and a call ends when the GPU has done all; memory is the GPU's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.memory import peak
from benchmarks.table import ratio, row, show

CASES: dict[str, tuple[str, tuple[int, int]]] = {
    "voc-fcn8s 500x334": ("voc-fcn8s", (334, 500)),
    "voc-fcn8s 256x256": ("voc-fcn8s", (256, 256)),
    "voc-fcn32s 500x334": ("voc-fcn32s", (334, 500)),
    "voc-fcn-alexnet 500x334": ("voc-fcn-alexnet", (334, 500)),
    "siftflow-fcn8s 256x256": ("siftflow-fcn8s", (256, 256)),
    "nyud-fcn32s-color-d 640x480": ("nyud-fcn32s-color-d", (480, 640)),
}
GROWTH = {f"voc-fcn8s {n}x{n}": ("voc-fcn8s", (n, n)) for n in (128, 256, 512, 1024)}
LIVE = "forward through caffe.Net"
SUBJECTS = ("hand-written", "hand-written, compiled", "opencv", "plain", LIVE, "optimized", "optimized, bf16")
SUBJECTS_ON_GPU = (
    *("hand-written", "hand-written, channels last", "hand-written, graph", "hand-written, compiled", "plain"),
    *("optimized", "optimized, graph", "optimized, tf32x3", "optimized, tf32", "optimized, bf16"),
    *("optimized, tf32x3, graph", "optimized, bf16, graph"),
)
Answer = list[Any]
"""A call's outputs: arrays, or tensors on the device."""


@dataclass
class Result:
    """What one subject did: seconds of every round, peak memory in bytes, largest deviation from ours."""

    seconds: list[float] = field(default_factory=list)
    memory: int = 0
    deviation: float = 0.0


def seeded_weights(net: Any, seed: int = 1) -> None:
    """He-scaled normal weights, small biases, bilinear upsampling: signals keep their size through the net."""
    import torch

    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for layer in net.layers:
            for k, tensor in enumerate(net.params.get(layer.name, ())):
                if layer.type == "Deconvolution":
                    size = tensor.shape[-1]
                    factor = (size + 1) // 2
                    line = 1 - np.abs(np.arange(size) - (factor - 1 if size % 2 else factor - 0.5)) / factor
                    tensor.zero_()
                    tensor[range(tensor.shape[0]), range(tensor.shape[0])] = torch.from_numpy(
                        np.outer(line, line)
                    ).float()
                elif layer.type == "Convolution":
                    scale = 0.1 if k else (2 / np.prod(tensor.shape[1:])) ** 0.5
                    values = rng.standard_normal(tuple(tensor.shape), np.float32) * np.float32(scale)
                    tensor.copy_(torch.from_numpy(values))


def images(name: str, size: tuple[int, int]) -> dict[str, np.ndarray[Any, Any]]:
    """Seeded inputs by blob name."""
    rng = np.random.default_rng(0)
    blobs = {"color": 3, "depth": 1} if name.endswith("color-d") else {"data": 3}
    return {blob: rng.standard_normal((1, n, *size), np.float32) * 60 for blob, n in blobs.items()}


def ours(folder: Path, name: str, subject: str, device: str) -> Callable[[dict[str, Any]], Answer]:
    """A net of the package."""
    import torch

    import fcnproto

    net = fcnproto.load(fcnproto.zoo.path(name, "deploy"), folder / f"{name}.caffemodel", device=device)
    _, *how = subject.split(", ")
    if subject != "plain":
        precision = next((part for part in how if part != "graph"), "fp32")
        net = fcnproto.optimize(net, precision=precision, cuda_graphs="graph" in how)

    def run(inputs: dict[str, Any]) -> Answer:
        with torch.no_grad():
            return list(net(inputs).values())

    return run


def live(folder: Path, name: str) -> Callable[[dict[str, Any]], Answer]:
    """The same files as a script written for pycaffe runs them: every blob lives."""
    import fcnproto
    import fcnproto.pycaffe as caffe

    net = caffe.Net(fcnproto.zoo.path(name, "deploy"), caffe.TEST, weights=folder / f"{name}.caffemodel")

    def run(inputs: dict[str, Any]) -> Answer:
        for key, x in inputs.items():
            net.blobs[key].reshape(*x.shape)
            net.blobs[key].data[...] = x
        found = net.forward()
        return [found[name] for name in net.outputs]

    return run


def hand_written(folder: Path, name: str, subject: str, device: str) -> Callable[[dict[str, Any]], Answer]:
    """The same net as one writes it by hand."""
    import torch

    import fcnproto
    from benchmarks import peers

    stages = {"32s": 1, "16s": 2}.get(next((s for s in ("32s", "16s") if s in name), ""), 3)
    heads = {"voc": [21], "siftflow": [3, 33], "nyud": [40]}[name.split("-")[0]]
    module: torch.nn.Module = (
        peers.AlexNet() if "alexnet" in name else peers.Vgg(stages, heads, 4 if "color-d" in name else 3)
    )
    weights = fcnproto.load(fcnproto.zoo.path(name, "deploy"), folder / f"{name}.caffemodel").params
    peers.copy_weights(module.eval(), weights)
    del weights
    last = torch.channels_last if subject.endswith("channels last") else torch.contiguous_format
    module = module.to(device, memory_format=last)  # type: ignore[call-overload]
    call: Any = torch.compile(module) if subject.endswith("compiled") else module
    kept: list[Any] = []

    def run(inputs: dict[str, Any]) -> Answer:
        with torch.no_grad():
            x = torch.cat(list(inputs.values()), 1).contiguous(memory_format=last)
            if subject.endswith("graph"):
                from benchmarks.device.setting import captured

                kept[:] = kept or [captured(call, x)]
                return list(kept[0](x))
            return list(call(x))

    return run


def opencv(folder: Path, name: str) -> Callable[[dict[str, Any]], Answer]:
    """The same files in OpenCV's dnn module."""
    import cv2

    import fcnproto

    net = cv2.dnn.readNetFromCaffe(str(fcnproto.zoo.path(name, "deploy")), str(folder / f"{name}.caffemodel"))
    names = sorted(net.getUnconnectedOutLayersNames())

    def run(inputs: dict[str, Any]) -> Answer:
        for key, x in inputs.items():
            net.setInput(x, key)
        return list(net.forward(names))

    return run


def work(
    pipe: Connection, folder: Path, subject: str, name: str, size: tuple[int, int], threads: int, device: str
) -> None:
    """One subject's process: prepare, then a timed run for every message that asks for one."""
    import torch

    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 is strict for all, as it is for ours
    on_gpu = device.startswith("cuda")
    inputs: dict[str, Any] = images(name, size)
    try:
        if subject == "opencv":
            import cv2

            cv2.setNumThreads(threads)
            run = opencv(folder, name)
        elif subject == LIVE:
            run = live(folder, name)
        elif subject.startswith("hand-written"):
            run = hand_written(folder, name, subject, device)
        else:
            run = ours(folder, name, subject, device)
        if subject not in ("opencv", LIVE):
            inputs = {key: torch.from_numpy(x).to(device) for key, x in inputs.items()}
        for _ in range(3 if on_gpu else 1):  # kernels are chosen, graphs recorded
            answer = run(inputs)
        pipe.send([np.array(y.cpu() if isinstance(y, torch.Tensor) else y) for y in answer])
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return
    while pipe.recv():
        if on_gpu:
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        run(inputs)
        if on_gpu:
            torch.cuda.synchronize(device)
        pipe.send((time.perf_counter() - start, torch.cuda.max_memory_allocated(device) if on_gpu else peak()))


def measure(
    folder: Path, name: str, size: tuple[int, int], subjects: Sequence[str], rounds: int, threads: int, device: str
) -> dict[str, Result | str]:
    """Every subject's result, or the reason why it has none."""
    context = multiprocessing.get_context("spawn")
    pipes, results, answers = {}, {}, {}
    for subject in subjects:
        here, there = context.Pipe()
        process = context.Process(target=work, args=(there, folder, subject, name, size, threads, device), daemon=True)
        process.start()
        answer = here.recv()
        if isinstance(answer, str):
            results[subject] = answer
        else:
            pipes[subject], answers[subject], results[subject] = here, answer, Result()
    for _ in range(rounds):
        for subject, pipe in pipes.items():
            pipe.send(True)
            seconds, memory = pipe.recv()
            results[subject].seconds.append(seconds)
            results[subject].memory = max(results[subject].memory, memory)
    reference = answers.get("plain", answers.get("hand-written"))
    for subject, pipe in pipes.items():
        pipe.send(False)
        if reference is not None:
            results[subject].deviation = max(
                float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(answers[subject], reference, strict=True)
            )
    return results


def lines(
    cases: Mapping[str, tuple[str, tuple[int, int]]],
    subjects: Sequence[str],
    rounds: int,
    threads: int,
    device: str = "cpu",
) -> Iterator[str]:
    """The rows of the table for some cases; ratios are to the hand-written net."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for title, (name, size) in cases.items():
            prepare(folder, name)
            yield from rows(title, measure(folder, name, size, subjects, rounds, threads, device))


def rows(title: str, results: Mapping[str, Result | str]) -> Iterator[str]:
    """The lines of one case."""
    base = results.get("hand-written")
    for subject, result in results.items():
        if isinstance(result, str):
            yield row(title, subject, note=result)
            continue
        share = ratio(result.seconds, base.seconds) if isinstance(base, Result) else None
        yield row(title, subject, statistics.median(result.seconds), share, result.memory, result.deviation)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description="inference against hand-written PyTorch and OpenCV")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--nets", default="", help="only cases whose name begins with one of these, by comma")
    parser.add_argument("--subjects", help="by comma, with + for ', '; by default all that the device knows")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    parser.add_argument("--growth", action="store_true", help="FCN-8s from 128x128 to 1024x1024 instead")
    options = parser.parse_args(arguments)
    cases = GROWTH if options.growth else CASES
    chosen = {key: case for key, case in cases.items() if key.startswith(tuple(options.nets.split(",")))}
    known = SUBJECTS_ON_GPU if options.device.startswith("cuda") else SUBJECTS
    subjects = [subject.replace("+", ", ") for subject in options.subjects.split(",")] if options.subjects else known
    return show(lines(chosen, subjects, options.rounds, options.threads, options.device), options.markdown)


def prepare(folder: Path, name: str) -> None:
    """Write the net's seeded weights, in a process of its own to keep this one small."""
    path = folder / f"{name}.caffemodel"
    if not path.exists():
        process = multiprocessing.get_context("spawn").Process(target=_write, args=(path, name))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"could not write the weights of {name}")


def _write(path: Path, name: str) -> None:
    import fcnproto

    net = fcnproto.load(fcnproto.zoo.path(name, "deploy"))
    seeded_weights(net)
    net.save(path)


if __name__ == "__main__":
    sys.exit(main())
