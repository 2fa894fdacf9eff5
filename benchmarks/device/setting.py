"""What the sections share: the device, nets and images at full size or small, times, memory."""

from __future__ import annotations

import contextlib
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fcnproto
from benchmarks.inference import seeded_weights
from benchmarks.peers import Vgg, copy_weights
from fcnproto import zoo

Figures = dict[str, Any]
"""A line of the report: "what", figures, and "good" where there is a limit."""
Section = Callable[["Setting"], Iterator[Figures]]

MIB = 2**20
TESTS = Path(__file__).resolve().parents[2] / "tests"


def with_tests() -> None:
    """Let the recorded cases and what reads them be imported from the checkout."""
    for folder in (TESTS, TESTS / "solver"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))


def deviation(ours: Tensor, reference: Tensor) -> float:
    """max|a - b| / max|b|; without end where a value is not finite."""
    ours, reference = ours.detach().double().cpu(), reference.detach().double().cpu()
    found = float((ours - reference).abs().max() / reference.abs().max())
    return found if found == found else float("inf")


def agreement(ours: Tensor, reference: Tensor) -> float:
    """The share of pixels with the same label."""
    return float((ours.argmax(1) == reference.argmax(1)).double().mean())


@dataclass
class Setting:
    """What is tried: on which device, at full size or quickly, and until when (by `time.monotonic`)."""

    device: torch.device
    quick: bool
    end: float = float("inf")

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU, or stands for one."""
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds until no further work should be begun."""
        return self.end - time.monotonic()

    def net(self, phase: str = "deploy") -> fcnproto.net.Net:
        """FCN-8s for VOC (in the "train" phase FCN-32s) with seeded weights, or the small one with its own."""
        if self.quick:
            kind = "train" if phase == "train" else "test"
            net = fcnproto.load(zoo.path("fcn-mini", phase), zoo.path("fcn-mini", "weights"), phase=kind)
        elif phase == "train":
            net = fcnproto.load(zoo.path("voc-fcn32s", "train"), phase="train")
            seeded_weights(net)
        else:
            net = fcnproto.load(zoo.path("voc-fcn8s", phase))
            seeded_weights(net)
        return net.to(self.device)

    def image(self, seed: int = 0, batch: int = 1, size: tuple[int, int] | None = None) -> Tensor:
        """Images of 500x334, or 64x48."""
        size = size or ((48, 64) if self.quick else (334, 500))
        return (torch.randn(batch, 3, *size, generator=torch.Generator("cpu").manual_seed(seed), device="cpu") * 50).to(
            self.device
        )

    def peer(self, net: fcnproto.net.Net) -> nn.Module:
        """FCN-8s written by hand, with the net's weights."""
        peer = Vgg(3, [21]).to(self.device).eval()
        copy_weights(peer, net.params)
        return peer

    def wait(self) -> None:
        """Until the device has done all."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def clean(self) -> None:
        """Free what nobody holds any more."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def milliseconds(self, work: Callable[[], Any], rounds: int = 20) -> Figures:
        """The median time of a call with waiting for its end ("ms"), and of calls in a row ("ms in a row")."""
        rounds = 2 if self.quick else rounds
        for _ in range(2 if self.quick else 5):
            work()
        alone = []
        for _ in range(rounds):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            alone.append((time.perf_counter() - start) * 1e3)
        start = time.perf_counter()
        for _ in range(rounds):
            work()
        self.wait()
        return {"ms": statistics.median(alone), "ms in a row": (time.perf_counter() - start) * 1e3 / rounds}

    def peak(self, work: Callable[[], Any]) -> Figures:
        """The MiB that a call takes at most above what is there before; nothing on a CPU."""
        if not self.on_gpu:
            work()
            return {}
        self.clean()
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        self.wait()
        return {"MiB above": (torch.cuda.max_memory_allocated(self.device) - before) / MIB}

    def can_do(self, name: str) -> bool:
        """Whether torch's own CUDA has a function: not where something stands for a GPU."""
        return self.on_gpu and hasattr(torch._C, name)


@contextlib.contextmanager
def switches(tf32: bool = False, benchmark: bool = False) -> Iterator[None]:
    """Torch's switches for code that is not the package's."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, products.allow_tf32
    cudnn.benchmark, cudnn.allow_tf32, products.allow_tf32 = benchmark, tf32, tf32
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, products.allow_tf32 = before


def captured(call: Callable[[Tensor], Any], like: Tensor) -> Callable[[Tensor], Any]:
    """A call recorded as a CUDA graph, which copies its input in."""
    given = like.clone()
    stream: Any = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call(given)
    torch.cuda.current_stream().wait_stream(stream)
    graph: Any = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call(given)

    def replay(x: Tensor) -> Any:
        given.copy_(x)
        graph.replay()
        return result

    return replay
