"""How many nets of public repositories load and compute, what stops the others, and OpenCV's share of the same files.

    python -m benchmarks.dialects FOLDER [--most 30] [--jobs 2] [--opencv] [--markdown FILE]

FOLDER holds a folder for each repository, or prototxt files (one repository then). Each distinct text with layers in it
is tried once, in a process of its own with limits of time and memory:

* it *loads* if it becomes a net (in TEST, or in TRAIN where it is made for that alone);
* it is *known* if besides no layer in it only holds a place;
* a deploy net (one with inputs declared) *computes* if all its outputs come out of small random inputs and weights.
  With `--side N` images are first tried N pixels long, where that is smaller, for the sake of time; what is made for
  its declared size alone, or can't be computed so, gets that.

With `--opencv` OpenCV's dnn module reads the deploy nets, too, and computes them from the same weights.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

SUFFIXES = (".prototxt", ".pt", ".prototext", ".pbtxt")
_NET = re.compile(r"^\s*layers?\s*:?\s*[{<\[]", re.MULTILINE)
_DEPLOY = re.compile(r"""^\s*input\s*:|\btype\s*:\s*["']Input["']""", re.MULTILINE)
_SOLVER = re.compile(r"^(base_lr|test_iter|max_iter)\s*:", re.MULTILINE)
_COMMENT = re.compile(r"#.*")
_WALL_SHARE = 6
"""Seconds on the clock for each second of processor time: machines are shared."""


@dataclass(frozen=True)
class Limits:
    """What a net may take: seconds of processor time, bytes, pixels."""

    seconds: int = 20
    memory: int = 8 << 30
    side: int | None = None
    """The longest side of images, in pixels, where the net takes them so."""


@dataclass
class Outcome:
    """What became of a net. `stops` names what stopped it from loading, being known or computing."""

    repository: str
    file: str
    deploy: bool
    loads: bool = False
    known: bool = False
    computes: bool = False
    opencv_reads: bool = False
    opencv_computes: bool = False
    stops: list[str] = field(default_factory=list)
    opencv_stop: str = ""


def find_nets(folder: Path, most: int | None = None) -> list[Outcome]:
    """The distinct nets in a folder, `most` of a repository (spread over it), in the order of their names."""
    own = any(path.is_file() and path.suffix in SUFFIXES for path in folder.iterdir())
    seen: set[bytes] = set()
    result: list[Outcome] = []
    for repository in [folder] if own else sorted(path for path in folder.iterdir() if path.is_dir()):
        found = []
        for path in sorted(repository.rglob("*")):
            if not path.is_file() or not path.name.endswith(SUFFIXES):
                continue
            text = _COMMENT.sub("", path.read_bytes().decode("utf-8", "replace"))
            digest = hashlib.sha256("".join(text.split()).encode()).digest()
            if digest not in seen and _NET.search(text) and not _SOLVER.search(text):
                seen.add(digest)
                found.append(Outcome(repository.name, str(path), bool(_DEPLOY.search(text))))
        kept = len(found) if most is None else min(most, len(found))
        result += [found[index * len(found) // kept] for index in range(kept)]
    return result


# In the child.


def _pattern(error: BaseException) -> str:
    """A message with what differs from net to net left out."""
    from fcnproto.errors import Error

    text = re.sub(r"^\S*/\S+?:(\d+:\d+:)?\s*", "", str(error).splitlines()[0] if str(error) else "")
    if isinstance(error, Error):
        text = re.sub(r"'[^']*'", "'...'", text)
    text = re.sub(r"\d+", "N", text)
    return f"{type(error).__name__}: {text[:110]}"


def _name_of(param: Any) -> str:
    if param.type == "Python":
        return f"python {param.python_param.module}.{param.python_param.layer}"
    return f"type {param.type}"


def randomise(net: Any) -> None:
    """Weights as small as keeps the values' size from layer to layer; what counts (variances) is positive."""
    import torch

    torch.manual_seed(1)
    for layer in net.layers:
        for name in layer.blob_names:
            blob = getattr(layer, name)
            if blob.dim() > 1 and name in layer._parameters:
                reach = (3.0 / max(blob[0].numel(), 1)) ** 0.5
                blob.data.uniform_(-reach, reach)
            else:
                blob.data.fill_(1.0).add_(torch.rand(blob.shape) * 0.1)


def inputs_of(net: Any, batch: int | None, side: int | None = None) -> dict[str, Any]:
    """Random values for all inputs, with `batch` images instead of the declared number, and at most `side` pixels long
    (a multiple of 32 each way)."""
    import torch

    from fcnproto.net.examples import draw_inputs

    shapes = {}
    for name, shape in net.source_shapes.items():
        full = [1, 3, 224, 224] if shape is None else [1 if extent is None else extent for extent in shape]
        shapes[name] = [batch, *full[1:]] if batch and len(full) == 4 else full
        if side and len(full) == 4 and max(full[2:]) > side:
            smaller = [max(32, round(extent * side / max(full[2:]) / 32) * 32) for extent in full[2:]]
            shapes[name] = [*shapes[name][:2], *smaller]
    return {name: torch.from_numpy(value) for name, value in draw_inputs(net, shapes).items()}


def _compute(net: Any, side: int | None) -> tuple[dict[str, Any], list[str]]:
    """The inputs of a call whose outputs were all computed, or what stopped some of them."""
    import torch

    from fcnproto.errors import Error

    declared = [shape for shape in net.source_shapes.values() if shape is not None]
    first: BaseException | None = None
    batches = (1, None) if all(len(shape) == 4 and shape[0] != 1 for shape in declared) else (None,)
    fixed = side is None or any(node.facts.fixes_image_size(node.param) for node in net.graph.nodes)
    for batch, long in [*([] if fixed else [(batches[0], side)]), *((batch, None) for batch in batches)]:
        values = inputs_of(net, batch, long)
        try:
            with torch.no_grad():
                outputs = net(values)
            return values, [f"output left out: {name}" for name in outputs.left_out]
        except (Error, RuntimeError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            first = first or error
    assert first is not None
    return {}, [_pattern(first)]


def made_net(definition: Any) -> Any:
    """The net of a definition in TEST, or in TRAIN where it is made for that alone."""
    import fcnproto

    try:
        net = fcnproto.Net(definition, "test", fill=False)
        if len(net.layers):
            return net
    except fcnproto.GraphError:  # only TRAIN has the layers that give data
        pass
    return fcnproto.Net(definition, "train", fill=False)


def _try(outcome: Outcome, limits: Limits, opencv: Callable[[Outcome], None] | None) -> Outcome:
    """Load the net and, of a deploy net, compute its outputs; then, where `opencv` takes what is known until then, have
    OpenCV do the same."""
    from fcnproto.schema.text import read_net

    path = Path(outcome.file)
    try:
        definition = read_net(path, quiet=True)
        net = made_net(definition)
    except Exception as error:  # a fault of ours counts as a refusal, by its name
        outcome.stops = [_pattern(error)]
        return outcome
    outcome.loads = True
    placed = [layer for layer in net.layers if layer.holds_place]
    outcome.known = not placed
    outcome.stops = list(dict.fromkeys(_name_of(layer.param) for layer in placed))
    if not outcome.deploy:
        return outcome
    try:
        randomise(net)
        values, stops = _compute(net, limits.side)
    except Exception as error:
        values, stops = {}, [_pattern(error)]
    outcome.computes = not stops
    outcome.stops += [] if placed else stops
    if opencv is not None:
        opencv(outcome)  # told before, as OpenCV may end the process
        _try_opencv(outcome, net, values)
    return outcome


def _try_opencv(outcome: Outcome, net: Any, values: dict[str, Any]) -> None:
    """The same with OpenCV, with the net's weights."""
    import cv2

    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "net.caffemodel")
        try:
            cv2.dnn.readNetFromCaffe(outcome.file)
            outcome.opencv_reads = True
            net.save(weights)
            read = cv2.dnn.readNetFromCaffe(outcome.file, str(weights))
            for name, value in (values or inputs_of(net, 1)).items():
                read.setInput(value.numpy(), name)
            read.forward(read.getUnconnectedOutLayersNames())
            outcome.opencv_computes = True
        except Exception as error:
            outcome.opencv_stop = _pattern(error)


def _child(pipe: Connection, outcome: Outcome, limits: Limits, opencv: bool) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (limits.seconds, limits.seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))
    warnings.simplefilter("ignore")
    pipe.send(_try(outcome, limits, pipe.send if opencv else None))


# In the parent.


def outcomes(nets: Sequence[Outcome], limits: Limits, jobs: int = 2, opencv: bool = False) -> Iterator[Outcome]:
    """Each net's outcome, as they come. Processes are forks of this one, which has torch already and runs nothing."""
    import torch

    torch.set_num_threads(1)
    context = get_context("fork")
    running: dict[Connection, tuple[BaseProcess, Outcome, float]] = {}
    waiting = list(reversed(nets))
    while waiting or running:
        while waiting and len(running) < jobs:
            outcome = waiting.pop()
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(there, outcome, limits, opencv))
            process.start()
            there.close()
            running[here] = process, outcome, time.monotonic() + limits.seconds * _WALL_SHARE
        ready = wait(list(running), timeout=1)
        for pipe in list(running):
            process, outcome, deadline = running[pipe]
            if pipe not in ready and time.monotonic() < deadline:
                continue
            del running[pipe]
            yield _collect(pipe, process, outcome) if pipe in ready else _overdue(process, outcome)
            pipe.close()


def _collect(pipe: Connection, process: BaseProcess, outcome: Outcome) -> Outcome:
    told = 0
    try:
        while True:  # with OpenCV twice
            outcome = pipe.recv()
            told += 1
    except EOFError:
        process.join()
    if not told:
        died = process.exitcode or 0
        timely = -died in (signal.SIGXCPU, signal.SIGKILL)
        outcome.stops = ["out of time" if timely else f"the process died ({died})"]
    process.join()
    return outcome


def _overdue(process: BaseProcess, outcome: Outcome) -> Outcome:
    process.kill()
    process.join()
    outcome.stops = ["out of time"]
    return outcome


# The report.


def _share(of: Sequence[Outcome], what: str) -> str:
    """The share of files for which a fact holds, and of repositories, each with one vote that its files share."""
    if not of:
        return "- | -"
    by: dict[str, list[bool]] = defaultdict(list)
    for outcome in of:
        by[outcome.repository].append(getattr(outcome, what))
    files = sum(map(sum, by.values())) / len(of)
    repositories = sum(sum(held) / len(held) for held in by.values()) / len(by)
    return f"{100 * files:.0f} % | {100 * repositories:.0f} %"


def report(found: Sequence[Outcome], opencv: bool = False) -> list[str]:
    """The table of shares and that of what stops nets, as lines of Markdown."""
    deploy = [outcome for outcome in found if outcome.deploy]
    repositories = len({outcome.repository for outcome in found})
    lines = [
        f"{len(found)} nets of {repositories} repositories, {len(deploy)} of them deploy nets.",
        "",
        "| share | by file | by repository |",
        "|---|---|---|",
        f"| loads | {_share(found, 'loads')} |",
        f"| every layer known | {_share(found, 'known')} |",
        f"| deploy nets: load | {_share(deploy, 'loads')} |",
        f"| deploy nets: compute | {_share(deploy, 'computes')} |",
    ]
    if opencv:
        lines += [
            f"| deploy nets: OpenCV reads | {_share(deploy, 'opencv_reads')} |",
            f"| deploy nets: OpenCV computes | {_share(deploy, 'opencv_computes')} |",
        ]
    files: Counter[str] = Counter()
    where: dict[str, set[str]] = defaultdict(set)
    for outcome in found:
        for stop in outcome.stops:
            files[stop] += 1
            where[stop].add(outcome.repository)
    lines += ["", "| what stops nets | files | repositories |", "|---|---|---|"]
    ranked = sorted(files, key=lambda stop: (-len(where[stop]), -files[stop], stop))
    lines += [f"| {stop.replace('|', '/')} | {files[stop]} | {len(where[stop])} |" for stop in ranked]
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Try all nets and print the report; each file that was stopped is told of on stderr as it comes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dialects", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--most", type=int, help="nets of each repository, spread over it; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="nets tried at a time")
    parser.add_argument("--seconds", type=int, default=Limits.seconds, help="processor time for each")
    parser.add_argument("--gigabytes", type=float, default=Limits.memory / 2**30, help="memory for each")
    parser.add_argument("--side", type=int, help="pixels of the longer side of images, where the net takes them so")
    parser.add_argument("--opencv", action="store_true", help="try OpenCV, too (Python package opencv-python)")
    parser.add_argument("--markdown", type=Path, help="write the report to this file, too")
    options = parser.parse_args(arguments)
    limits = Limits(options.seconds, int(options.gigabytes * 2**30), options.side)
    found = []
    for outcome in outcomes(find_nets(options.folder, options.most), limits, options.jobs, options.opencv):
        found.append(outcome)
        if outcome.stops:
            print(f"{outcome.file}: {'; '.join(outcome.stops)}", file=sys.stderr, flush=True)
    lines = report(found, options.opencv)
    print("\n".join(lines))
    if options.markdown is not None:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
