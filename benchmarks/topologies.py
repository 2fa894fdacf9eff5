"""Public topologies of all kinds, with random weights: plain, optimised and the best of ONNX Runtime and OpenVINO.

    python -m benchmarks.topologies FOLDER [--nets 40] [--rounds 5] [--minutes 5] [--threads 2] [--markdown FILE]

FOLDER holds a folder for each repository, as for `benchmarks.dialects`. Of their deploy nets with one input those are
taken that the package knows all layers of, from all repositories in turn, those of like layers once. Each is measured
in a process of its own, all subjects in turns, each called once untimed right before its timed call; a deviation is
that from the plain net. No net begins after `--minutes` (a net takes 5 to 15 s on two cores: about 25 fit into five
minutes, 40 into eight); what doesn't end within 90 s is ended. The last line is the geometric mean.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import engines
from benchmarks.dialects import Outcome, find_nets, inputs_of, randomise
from benchmarks.table import show

HEADER = (
    "| net | plain, ms | optimized, ms | best peer, ms | of plain | of the peer | deviation |",
    "|---|---|---|---|---|---|---|",
)
PEERS = ("onnxruntime", "openvino")
_SECONDS_A_NET = 90
_SMALLEST, _LARGEST = 6, 400
"""Layers of the nets that are taken."""


def chosen(folder: Path, count: int) -> Iterator[Outcome]:
    """Nets of all repositories in turn; of those with the same numbers of layers by type the first."""
    from fcnproto.errors import Error
    from fcnproto.schema.text import read_net

    warnings.simplefilter("ignore")
    by_repository: dict[str, list[Outcome]] = {}
    for net in find_nets(folder):
        if net.deploy:
            by_repository.setdefault(net.repository, []).append(net)
    seen: set[Any] = set()
    waiting, given = [iter(nets) for nets in by_repository.values()], 0
    while waiting and given < count:
        for nets in list(waiting):
            for net in nets:
                try:
                    definition = read_net(Path(net.file), quiet=True)
                except (Error, OSError):
                    continue
                types = frozenset(Counter(layer.type for layer in definition.layer).items())
                if types in seen or not _SMALLEST <= len(definition.layer) <= _LARGEST:
                    continue
                seen.add(types)
                yield net
                given += 1
                break
            else:
                waiting.remove(nets)


def work(pipe: Connection, file: str, rounds: int, threads: int) -> None:
    """A net's process: sends the median milliseconds by subject and ours's deviation, or why it is left out."""
    warnings.simplefilter("ignore")
    try:
        pipe.send(_measured(file, rounds, threads))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:100])


def _measured(file: str, rounds: int, threads: int) -> tuple[dict[str, float], float] | str:
    import torch

    import fcnproto
    from fcnproto.schema.text import read_net

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    definition = read_net(Path(file), quiet=True)
    net = fcnproto.Net(definition, "test", fill=False)
    if len(net.source_shapes) != 1 or any(layer.holds_place for layer in net.layers):
        return "other than one input, or layers that nobody knows"
    randomise(net)
    values = inputs_of(net, 1)
    fast = fcnproto.optimize(net)
    with tempfile.TemporaryDirectory() as temporary:
        weights = Path(temporary, "random.caffemodel")
        net.save(weights)
        runs: dict[str, Any] = {
            "plain": lambda: [net(values)[name].numpy() for name in net.outputs],
            "optimized": lambda: [fast(values)[name].numpy() for name in net.outputs],
        }
        try:
            shapes = {name: tuple(value.shape) for name, value in values.items()}
            engines.write(definition, weights, Path(temporary, "net"), shapes)
            files, arrays = engines.read(Path(temporary, "net"), shapes), {k: x.numpy() for k, x in values.items()}
        except (fcnproto.Error, RuntimeError) as error:
            print(f"{file}: no ONNX file: {str(error)[:100]}", file=sys.stderr)
        else:
            for peer in PEERS:
                try:
                    run = engines.start(peer, files, threads)
                    run(arrays)
                    runs[peer] = lambda run=run: run(arrays)
                except Exception as error:
                    print(f"{file}: {peer}: {str(error)[:100]}", file=sys.stderr)
        return _in_turns(runs, rounds)


def _in_turns(runs: dict[str, Any], rounds: int) -> tuple[dict[str, float], float]:
    answers = {subject: run() for subject, run in runs.items()}
    deviation = max(
        float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))
        for a, b in zip(answers["optimized"], answers["plain"], strict=True)
    )
    taken: dict[str, list[float]] = {subject: [] for subject in runs}
    for _ in range(2):  # ways are chosen at the first calls
        runs["optimized"]()
    for _ in range(rounds):
        for subject, run in runs.items():
            run()  # untimed
            start = time.perf_counter()
            run()
            taken[subject].append(time.perf_counter() - start)
    return {subject: statistics.median(seconds) * 1e3 for subject, seconds in taken.items()}, deviation


def lines(folder: Path, count: int, rounds: int, threads: int, minutes: float) -> Iterator[str]:
    """The rows of the table."""
    began, of_plain, of_peer = time.monotonic(), [], []
    context = multiprocessing.get_context("spawn")
    for net in chosen(folder, count):
        if time.monotonic() - began > minutes * 60:
            break
        here, there = context.Pipe()
        process = context.Process(target=work, args=(there, net.file, rounds, threads), daemon=True)
        process.start()
        there.close()
        title = f"{net.repository} {Path(net.file).parent.name}/{Path(net.file).name}"
        try:
            found = here.recv() if here.poll(_SECONDS_A_NET) else f"not done within {_SECONDS_A_NET} s"
        except EOFError:
            found = "the process was ended"
        process.kill()
        if isinstance(found, str):
            print(f"{title}: {found}", file=sys.stderr)
            continue
        taken, deviation = found
        peers = {peer: taken[peer] for peer in PEERS if peer in taken}
        best = min(peers, key=lambda peer: peers[peer]) if peers else None
        of_plain.append(taken["optimized"] / taken["plain"])
        cells = [title, f"{taken['plain']:.2f}", f"{taken['optimized']:.2f}"]
        if best is None:
            cells += ["", f"{of_plain[-1]:.2f}", ""]
        else:
            of_peer.append(taken["optimized"] / peers[best])
            cells += [f"{peers[best]:.2f} ({best})", f"{of_plain[-1]:.2f}", f"{of_peer[-1]:.2f}"]
        yield f"| {' | '.join([*cells, f'{deviation:.1e}'])} |"
    if of_plain:
        means = [
            math.exp(statistics.fmean(map(math.log, ratios))) if ratios else math.nan for ratios in (of_plain, of_peer)
        ]
        yield f"| geometric mean of {len(of_plain)} | | | | {means[0]:.2f} | {means[1]:.2f} | |"


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.topologies", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nets", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=5, help="no net begins later")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    options = parser.parse_args(arguments)
    print("; ".join(map(engines.version, PEERS)), file=sys.stderr)
    rows = lines(options.folder, options.nets, options.rounds, options.threads, options.minutes)
    return show(rows, options.markdown, HEADER)


if __name__ == "__main__":
    sys.exit(main())
