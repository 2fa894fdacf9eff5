"""Does it keep within its bounds: memory, waiting, memory that runs out, a default device, more workers than GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import fcnproto
from benchmarks.device.setting import MIB, TESTS, Figures, Setting, with_tests
from fcnproto import zoo
from fcnproto.segment import Segmenter


@torch.no_grad()
def memory(setting: Setting) -> Iterator[Figures]:
    """Bytes that an optimised net keeps beyond the weights, and what a call takes at most above both."""
    if not setting.on_gpu:
        return
    net, image = setting.net(), setting.image()
    weights = sum(tensor.nbytes for tensor in (*net.parameters(), *net.buffers()))
    yield {"what": "plain", "MiB weights": weights / MIB, **setting.peak(lambda: net(data=image))}
    for name in ("fp32", "tf32x3", "tf32", "bf16"):
        setting.clean()
        before = torch.cuda.memory_allocated(setting.device)
        fast = fcnproto.optimize(net, precision=name)
        for _ in range(2):
            fast(data=image)
        share = (torch.cuda.memory_allocated(setting.device) - before) / weights
        most = 0.2 if setting.quick else 0.05
        above = setting.peak(lambda fast=fast: fast(data=image))
        yield {"what": name, "share of the weights": share, **above, "good": name != "fp32" or share <= most}
        del fast


def waiting(setting: Setting) -> Iterator[Figures]:
    """How often an iteration of training and a call of segmenting wait for the GPU: never, and once for the labels."""
    if not setting.on_gpu:
        return
    with_tests()
    import solver_toy
    from gpu_waits import waits

    with tempfile.TemporaryDirectory() as folder:
        solver = fcnproto.Solver(solver_toy.write(Path(folder)), device=setting.device)
        solver.step(2)
        with waits() as found:
            solver.step(5)
        yield {"what": "5 iterations", "waits": len(found), "where": found[:5], "good": not found}
    segmenter = Segmenter(fcnproto.optimize(setting.net()))
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    scenes = [segmenter.prepare(dict.fromkeys(segmenter.inputs, Image.fromarray(pixels))) for _ in range(3)]
    for _ in range(3):
        segmenter.run(scenes)
    with waits() as found:
        segmenter.run(scenes)
    yield {"what": "segmenting 3 images", "waits": len(found), "where": found[:5], "good": len(found) <= 1}


def out_of_memory(setting: Setting) -> Iterator[Figures]:
    """Two images of which memory has room for one: each is segmented alone."""
    if not setting.can_do("_cuda_setMemoryFraction"):
        return
    segmenter, rng = Segmenter(setting.net(), batch=2), np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (900, 1200, 3), dtype=np.uint8)) for _ in range(2)]
    scenes = [segmenter.prepare(dict.fromkeys(segmenter.inputs, image)) for image in images]
    total, needs = torch.cuda.get_device_properties(setting.device).total_memory, []
    for count in (1, 2):
        setting.clean()
        torch.cuda.reset_peak_memory_stats(setting.device)
        segmenter.run(scenes[:count])
        needs.append(torch.cuda.max_memory_reserved(setting.device))
    for share in (1.1, 1.4):
        setting.clean()
        torch.cuda.set_per_process_memory_fraction(min(1.0, share * needs[0] / total), setting.device)
        try:
            alone = [isinstance(segmenter.run([scene])[0], list) for scene in scenes]
            setting.clean()
            together = [isinstance(found, list) for found in segmenter.run(scenes)]
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, setting.device)
        yield {
            "what": f"room for {share} images",
            "MiB for one": needs[0] / MIB,
            "MiB for two": needs[1] / MIB,
            "good": together == alone,
        }


def default_device(setting: Setting) -> Iterator[Figures]:
    """`torch.set_default_device`, as scripts have it: nothing of the package's lands there unasked."""
    where = zoo.path("fcn-mini", "deploy"), zoo.path("fcn-mini", "weights")
    torch.set_default_device(setting.device)
    try:
        with torch.no_grad():
            for place in ("cpu", setting.device):
                net = fcnproto.load(*where, device=place)
                x = setting.image(size=(48, 64)).to(place)
                for what, form in (("plain", net), ("optimised", fcnproto.optimize(net))):
                    found = form(data=x)["score"].device
                    yield {"what": f"{what}, a net on {place}", "good": found == net.device}
    finally:
        torch.set_default_device(None)


def workers(setting: Setting) -> Iterator[Figures]:
    """`torchrun`: one worker trains, one more than there are GPUs is refused at once."""
    with_tests()
    import solver_toy

    seen = subprocess.run(
        [sys.executable, "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"], check=False
    )
    if not setting.on_gpu or seen.returncode:
        return
    root = TESTS.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    for count, good in ((1, True), (torch.cuda.device_count() + 1, False)):
        with tempfile.TemporaryDirectory() as folder:
            path = solver_toy.write(Path(folder), solver_mode=1, max_iter=6)
            run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
            run += ["-m", "fcnproto", "train", "--solver", str(path), "--no-plot"]
            began = time.monotonic()
            try:
                done = subprocess.run(
                    run, cwd=folder, env=environment, capture_output=True, text=True, timeout=90, check=False
                )
                said, code = done.stderr, done.returncode
            except subprocess.TimeoutExpired:
                said, code = "still running", -1
            right = code == 0 if good else code != 0 and "not as many GPUs" in said
            seconds = time.monotonic() - began
            yield {"what": f"{count} workers", "seconds": seconds, "end": "" if right else _told(said), "good": right}


def _told(text: str) -> str:
    """Why a worker ended: its own line, before what torchrun says of it, or the end of that."""
    return next((line for line in text.splitlines() if line.startswith("fcnproto: error")), text[-600:])


SECTIONS: dict[str, tuple[int, Callable[[Setting], Iterator[Figures]]]] = {
    "memory": (15, memory),
    "waiting": (5, waiting),
    "out_of_memory": (15, out_of_memory),
    "default_device": (5, default_device),
    "workers": (40, workers),
}
"""By name the sections of this file, with the seconds that they take on a GPU."""
