"""Is what the project claims of a GPU true on this one, and what does it take: a JSON of all figures and a table.

    python -m benchmarks.device_check [--device cuda] [--quick] [--only precision,graphs] [--deadline 540] [--out DIR]

Each section is tried by itself; what fails is told and the rest goes on; sections that the deadline leaves no time for
are named. `--device cpu --quick` tries the sections that need no GPU. Nothing is needed that the package doesn't need.
Exit status 1 where a section failed.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fcnproto
from benchmarks.inference import seeded_weights
from benchmarks.peers import Vgg, copy_weights
from fcnproto import zoo

Figures = dict[str, Any]
_LIMITS = {"fp32": 1e-5, "tf32x3": 1e-5, "tf32": 2e-2, "bf16": 5e-2, "fp16": 1e-2}


@dataclass
class Setting:
    """What is tried: on which device, at full size or quickly."""

    device: torch.device
    quick: bool

    def net(self) -> fcnproto.net.Net:
        """FCN-8s for VOC with seeded weights, or the small one with its own, on the device."""
        if self.quick:
            net = fcnproto.load(zoo.path("fcn-mini", "deploy"), zoo.path("fcn-mini", "weights"))
        else:
            net = fcnproto.load(zoo.path("voc-fcn8s", "deploy"))
            seeded_weights(net)
        return net.to(self.device)

    def image(self, seed: int = 0) -> Tensor:
        """An image of 500x334, or 64x48."""
        size = (48, 64) if self.quick else (334, 500)
        return (torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed)) * 50).to(self.device)

    def wait(self) -> None:
        """Until the device has done all."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def milliseconds(self, work: Callable[[], Any]) -> float:
        """The median time of a call, waiting included, after some that are not counted."""
        times = []
        for round_ in range(4 if self.quick else 25):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            if round_ >= (2 if self.quick else 5):
                times.append((time.perf_counter() - start) * 1e3)
        return statistics.median(times)


def deviation(ours: Tensor, reference: Tensor) -> float:
    """max|a - b| / max|b|."""
    return float((ours.double() - reference.double()).abs().max() / reference.double().abs().max())


@torch.no_grad()
def precision(setting: Setting) -> Iterator[Figures]:
    """Each precision against the same net in double precision."""
    net, image = setting.net(), setting.image()
    exact = copy.deepcopy(net).double()(data=image.double())["score"]
    plain = deviation(net(data=image)["score"], exact)
    yield {"what": "plain", "deviation": plain, "good": plain <= 1e-5}
    for name, limit in _LIMITS.items():
        found = deviation(fcnproto.optimize(net, precision=name)(data=image)["score"], exact)
        yield {"what": name, "deviation": found, "good": found <= limit}


@torch.no_grad()
def graphs(setting: Setting) -> Iterator[Figures]:
    """Recorded calls against plain ones, for several images and sizes, also after a change of weights."""
    net = setting.net()
    fast = fcnproto.optimize(net, cuda_graphs=True)
    for size in (0, 8):
        worst = 0.0
        for seed in range(4):
            image = setting.image(seed)[:, :, size:]
            worst = max(worst, deviation(fast(data=image)["score"], net(data=image)["score"]))
        yield {"what": f"{size} rows less", "deviation": worst, "good": worst <= 1e-5}
    first = next(iter(net.params.values()))[0]
    first.mul_(1.5)
    found = deviation(fast(data=setting.image())["score"], net(data=setting.image())["score"])
    yield {"what": "other weights", "deviation": found, "good": found <= 1e-5}


def gradients(setting: Setting) -> Iterator[Figures]:
    """The gradients of the weights on the device against those on the CPU, plain and optimised."""
    net, image = setting.net(), setting.image()
    twin = copy.deepcopy(net).cpu()
    twin(data=image.cpu())["score"].square().mean().backward()
    expected = {name: blobs[0].grad for name, blobs in twin.params.items()}
    for what, form in (("plain", net), ("optimised", fcnproto.optimize(net))):
        net.zero_grad()
        form(data=image)["score"].square().mean().backward()
        worst = max(
            deviation(blobs[0].grad.cpu(), expected[name])
            for name, blobs in net.params.items()
            if blobs[0].grad is not None and expected[name].abs().max() > 0
        )
        yield {"what": what, "deviation": worst, "good": worst <= 1e-4}


@torch.no_grad()
def memory(setting: Setting) -> Iterator[Figures]:
    """Bytes that an optimised net keeps beyond the weights (CUDA alone)."""
    if setting.device.type != "cuda":
        return
    net, image = setting.net(), setting.image()
    weights = sum(tensor.nbytes for tensor in (*net.parameters(), *net.buffers()))
    for name in ("fp32", "tf32x3", "tf32", "bf16"):
        before = torch.cuda.memory_allocated(setting.device)
        fast = fcnproto.optimize(net, precision=name)
        for _ in range(2):
            fast(data=image)
        share = (torch.cuda.memory_allocated(setting.device) - before) / weights
        yield {
            "what": name,
            "share of the weights": share,
            "good": name != "fp32" or share <= (0.2 if setting.quick else 0.05),
        }
        del fast


@torch.no_grad()
def inference(setting: Setting) -> Iterator[Figures]:
    """Milliseconds of a call: ours in every precision, with and without graphs, and a net written by hand."""
    net, image = setting.net(), setting.image()
    if not setting.quick:
        peer = Vgg(3, [21]).to(setting.device).eval()
        copy_weights(peer, net.params)
        yield {"what": "hand-written", "ms": setting.milliseconds(lambda: peer(image))}
        inner, last = peer.to(memory_format=torch.channels_last), image.to(memory_format=torch.channels_last)
        yield {"what": "hand-written, channels last", "ms": setting.milliseconds(lambda: inner(last))}
        compiled = torch.compile(peer)
        yield {"what": "hand-written, compiled", "ms": setting.milliseconds(lambda: compiled(image))}
        del peer, inner, compiled
    yield {"what": "plain", "ms": setting.milliseconds(lambda: net(data=image))}
    for name in _LIMITS:
        for recorded in (False, True):
            fast = fcnproto.optimize(net, precision=name, cuda_graphs=recorded)
            milliseconds = setting.milliseconds(lambda fast=fast: fast(data=image))  # type: ignore[misc]
            yield {"what": f"{name}{', graphs' if recorded else ''}", "ms": milliseconds}


SECTIONS: dict[str, Callable[[Setting], Iterator[Figures]]] = {
    section.__name__: section for section in (precision, graphs, gradients, memory, inference)
}


def main() -> int:
    """Run the sections, print a line for each figure, and write the JSON again after each section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="a small net and image, few repetitions")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, by comma")
    parser.add_argument("--deadline", type=float, default=540, help="seconds after which no section is begun")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "device-check"))
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"no section {unknown[0]!r}; the sections are {', '.join(SECTIONS)}")
    setting, began = Setting(torch.device(options.device), options.quick), time.monotonic()
    if setting.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu tries what needs none")
    name = torch.cuda.get_device_name(setting.device) if setting.device.type == "cuda" else "CPU"
    report: dict[str, Any] = {"device": name, "torch": torch.__version__, "quick": options.quick, "sections": {}}
    options.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for section in names:
        if time.monotonic() - began > options.deadline:
            print(f"{section:10} left out: no time is left")
            continue
        rows: list[Figures] = report["sections"].setdefault(section, [])
        try:
            for figures in SECTIONS[section](setting):
                rows.append(figures)
                failed |= not figures.get("good", True)
                shown = ", ".join(f"{key} {value:.3g}" for key, value in figures.items() if isinstance(value, float))
                print(f"{section:10} {figures['what']:28} {shown}{'' if figures.get('good', True) else '   NOT GOOD'}")
        except Exception as error:  # one section must not take the others' figures along
            failed = True
            rows.append({"what": "failed", "error": f"{type(error).__name__}: {error}"})
            print(f"{section:10} failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        (options.out / "device_check.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
