"""Inference: ours plain and optimised against hand-written PyTorch, ONNX Runtime, OpenVINO, MNN and OpenCV's dnn.

    python -m benchmarks.inference [--device cpu] [--rounds 5] [--minutes 8] [--threads 2] [--nets voc-fcn8s,...]
                                   [--subjects plain,...] [--markdown FILE]

Each subject runs in a process of its own (so that its peak memory is its own); the processes take turns, one image
each, so that a noisy machine disturbs all alike. Each is called once untimed right before its timed call, as a loop
over images would call it: the caches are its own then, and its threads awake. Weights are seeded; every subject's
answer is compared with ours. On a GPU images lie there already, and a call ends when the GPU has done all; memory is
the GPU's. All of it takes 15 minutes on two cores, one net with `--rounds 3` two; `--minutes` ends the rounds earlier.
"""

from __future__ import annotations

import argparse
import math
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

from benchmarks import engines
from benchmarks.memory import peak
from benchmarks.table import ratio, row, show

CASES: dict[str, tuple[str, tuple[int, int]]] = {
    "voc-fcn8s 500x334": ("voc-fcn8s", (334, 500)),
    "voc-fcn8s 256x256": ("voc-fcn8s", (256, 256)),
    "voc-fcn16s 500x334": ("voc-fcn16s", (334, 500)),
    "voc-fcn32s 500x334": ("voc-fcn32s", (334, 500)),
    "voc-fcn-alexnet 500x334": ("voc-fcn-alexnet", (334, 500)),
    "siftflow-fcn8s 256x256": ("siftflow-fcn8s", (256, 256)),
    "nyud-fcn32s-color-d 640x480": ("nyud-fcn32s-color-d", (480, 640)),
}
LIVE = "forward through caffe.Net"
ENGINES = tuple(engines.PACKAGES)
SUBJECTS = ("hand-written", *ENGINES, "plain", "optimized")
MORE_SUBJECTS = ("hand-written, compiled", LIVE, "optimized, bf16")
"""Measured where asked for: the first takes half a minute to compile, the last computes other numbers."""
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


def work(
    pipe: Connection, folder: Path, subject: str, name: str, size: tuple[int, int], threads: int, device: str
) -> None:
    """One subject's process: prepare, then a timed run for every message that asks for one. Engines need no torch."""
    try:
        run, memory = prepared(folder, subject, name, size, threads, device)
        for _ in range(3 if device.startswith("cuda") else 1):  # kernels are chosen, graphs recorded
            answer = run()
        pipe.send([np.array(y.cpu() if hasattr(y, "cpu") else y) for y in answer])
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return
    while pipe.recv():
        run()  # untimed: its caches, its threads awake
        start = time.perf_counter()
        run()
        pipe.send((time.perf_counter() - start, memory()))


def prepared(
    folder: Path, subject: str, name: str, size: tuple[int, int], threads: int, device: str
) -> tuple[Callable[[], Answer], Callable[[], int]]:
    """A call of the subject that ends when all is done, and its peak memory in bytes."""
    values: dict[str, Any] = images(name, size)
    if subject in ENGINES:
        files = engines.read(folder / name, {blob: value.shape for blob, value in values.items()})
        engine = engines.start(subject, files, threads)
        return lambda: engine(values), peak
    import torch

    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 is strict for all, as it is for ours
    if subject == LIVE:
        script = live(folder, name)
        return lambda: [np.array(y) for y in script(values)], peak
    make = hand_written if subject.startswith("hand-written") else ours
    run, tensors = make(folder, name, subject, device), {k: torch.from_numpy(x).to(device) for k, x in values.items()}
    if not device.startswith("cuda"):
        return lambda: [y.numpy() for y in run(tensors)], peak

    def to_the_end() -> Answer:
        torch.cuda.synchronize(device)
        found = run(tensors)
        torch.cuda.synchronize(device)
        return found

    return to_the_end, lambda: int(torch.cuda.max_memory_allocated(device))


def measure(
    folder: Path,
    name: str,
    size: tuple[int, int],
    subjects: Sequence[str],
    rounds: int,
    threads: int,
    device: str,
    seconds: float = math.inf,
) -> dict[str, Result | str]:
    """Every subject's result, or the reason why it has none. No round begins later than `seconds` after the first."""
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
    began = time.monotonic()
    for done in range(rounds):
        if done and time.monotonic() - began > seconds:
            break
        for subject, pipe in pipes.items():
            pipe.send(True)
            taken, memory = pipe.recv()
            results[subject].seconds.append(taken)
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
    minutes: float = math.inf,
) -> Iterator[str]:
    """The rows of the table for some cases; ratios are to the hand-written net. `minutes` is what all rounds of all
    cases may take together, but for a first one of each."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for title, (name, size) in cases.items():
            prepare(folder, name, any(subject in ENGINES for subject in subjects))
            seconds = minutes * 60 / len(cases)
            yield from rows(title, measure(folder, name, size, subjects, rounds, threads, device, seconds))


def rows(title: str, results: Mapping[str, Result | str]) -> Iterator[str]:
    """The lines of one case."""
    base = results.get("hand-written")
    for subject, result in results.items():
        if isinstance(result, str):
            yield row(title, subject, note=result)
            continue
        share = ratio(result.seconds, base.seconds) if isinstance(base, Result) else None
        yield row(title, subject, statistics.median(result.seconds), share, result.memory, result.deviation)
    yield from beside_the_best(title, results)


def beside_the_best(title: str, results: Mapping[str, Result | str]) -> Iterator[str]:
    """A line with the optimised net's time beside that of the fastest engine that computes the same numbers."""
    ours = results.get("optimized")
    peers = {
        subject: result
        for subject, result in results.items()
        if subject in ENGINES and isinstance(result, Result) and result.deviation <= engines.EXACT
    }
    if isinstance(ours, Result) and peers:
        best = min(peers, key=lambda subject: statistics.median(peers[subject].seconds))
        yield row(title, f"optimized beside {best}", share=ratio(ours.seconds, peers[best].seconds))


def main(arguments: list[str] | None = None) -> int:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--nets", default="", help="only cases whose name begins with one of these, by comma")
    parser.add_argument("--subjects", help=f"by comma, with + for ', '; more: {MORE_SUBJECTS}")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    parser.add_argument("--minutes", type=float, default=math.inf, help="the longest that all rounds may take together")
    options = parser.parse_args(arguments)
    chosen = {key: case for key, case in CASES.items() if key.startswith(tuple(options.nets.split(",")))}
    known = SUBJECTS_ON_GPU if options.device.startswith("cuda") else SUBJECTS
    subjects = [subject.replace("+", ", ") for subject in options.subjects.split(",")] if options.subjects else known
    print("; ".join(engines.version(subject) for subject in subjects if subject in ENGINES), file=sys.stderr)
    arguments_of_all = (options.rounds, options.threads, options.device, options.minutes)
    return show(lines(chosen, subjects, *arguments_of_all), options.markdown)


def prepare(folder: Path, name: str, for_engines: bool = False) -> None:
    """Write the net's seeded weights, and the files of engines, in a process of its own to keep this one small."""
    process = multiprocessing.get_context("spawn").Process(target=_write, args=(folder, name, for_engines))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"could not write the files of {name}")


def _write(folder: Path, name: str, for_engines: bool) -> None:
    import fcnproto
    from fcnproto.schema.text import read_net

    definition, path = read_net(fcnproto.zoo.path(name, "deploy")), folder / f"{name}.caffemodel"
    if not path.exists():
        net = fcnproto.load(definition)
        seeded_weights(net)
        net.save(path)
    if for_engines and not (folder / name).exists():
        engines.write(definition, path, folder / name, {key: x.shape for key, x in images(name, (64, 64)).items()})


if __name__ == "__main__":
    sys.exit(main())
