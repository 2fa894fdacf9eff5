"""What it takes: the device itself, inference and training beside nets written by hand, folders, kernels."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import fcnproto
from benchmarks.device.numbers import LIMITS
from benchmarks.device.setting import MIB, Figures, Setting, captured, deviation, switches
from benchmarks.peers import Vgg, copy_weights
from fcnproto import zoo
from fcnproto.inspect.timing import time_layers
from fcnproto.passes import splitting
from fcnproto.schema import caffe_pb2
from fcnproto.segment import Segmenter, segment
from fcnproto.solver import Options

LAST = torch.channels_last


def environment(setting: Setting) -> Iterator[Figures]:
    """The device, how fast it copies, and how fast it multiplies matrices in each precision."""
    if setting.can_do("_cuda_getDeviceCount"):
        properties: Any = torch.cuda.get_device_properties(setting.device)
        yield {
            "what": properties.name,
            "GiB": properties.total_memory / 2**30,
            "cudnn": torch.backends.cudnn.version(),
            "cuda": torch.version.cuda,
            "GPUs": torch.cuda.device_count(),
        }
    count, n = (MIB // 4, 256) if setting.quick or not setting.on_gpu else (2**30, 8192)
    source, target = torch.zeros(count, device=setting.device), torch.zeros(count, device=setting.device)
    taken = setting.milliseconds(partial(target.copy_, source), 5)["ms in a row"]
    yield {"what": "copying", "TB/s": 8 * count / taken / 1e9}
    del source, target
    kinds = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    for name, dtype in kinds.items():
        a, b = (torch.randn(n, n, device=setting.device).to(dtype) for _ in range(2))
        with switches(tf32=name == "tf32"):
            taken = setting.milliseconds(lambda a=a, b=b: a @ b, 5)["ms in a row"]
        yield {"what": f"products in {name}", "TFLOP/s": 2 * n**3 / taken / 1e9}


@torch.no_grad()
def inference(setting: Setting) -> Iterator[Figures]:
    """A call of FCN-8s: ours in every precision, with and without graphs, and the net written by hand."""
    net = setting.net()
    for batch in (1,) if setting.quick or not setting.on_gpu else (1, 8):
        image = setting.image(batch=batch)
        exact = net(data=image)["score"]

        row = partial(_row, setting, batch, exact)

        yield row("plain", lambda image=image: net(data=image)["score"])
        for name in LIMITS:
            for recorded in (False, True) if setting.on_gpu else (False,):
                fast = fcnproto.optimize(net, precision=name, cuda_graphs=recorded)
                for _ in range(3):
                    fast(data=image)
                yield row(f"{name}{', graphs' if recorded else ''}", lambda f=fast, x=image: f(data=x)["score"])
                del fast
                setting.clean()
        if not setting.quick:
            for what, call, tf32 in _by_hand(setting, setting.peer(net), image):
                with switches(tf32, benchmark=True):
                    yield row(f"hand-written {what}", call)


def _row(setting: Setting, batch: int, exact: Tensor, what: str, call: Callable[[], Tensor]) -> Figures:
    figures = {"what": f"{what}, batch {batch}", "deviation": deviation(call(), exact)}
    return figures | setting.peak(call) | setting.milliseconds(call)


def _by_hand(setting: Setting, peer: Any, image: Tensor) -> Iterator[tuple[str, Callable[[], Tensor], bool]]:
    """The net as one writes it by hand: eager, channels last, in other precisions, as a graph, compiled."""
    inner, last = copy.deepcopy(peer).to(memory_format=LAST), image.contiguous(memory_format=LAST)
    half, half_last = copy.deepcopy(inner).bfloat16(), last.bfloat16()
    yield "fp32", lambda: peer(image)[0], False
    yield "fp32, channels last", lambda: inner(last)[0], False
    yield "tf32, channels last", lambda: inner(last)[0], True
    yield "bf16, channels last", lambda: half(half_last)[0], False
    if not setting.on_gpu:
        return
    graph = captured(lambda x: peer(x)[0], image)
    yield "fp32, graph", lambda: graph(image), False
    fast = captured(lambda x: half(x)[0], half_last)
    yield "bf16, channels last, graph", lambda: fast(half_last), False
    if setting.can_do("_cuda_getDeviceCount") and setting.left > 150:
        compiled = torch.compile(half, mode="max-autotune-no-cudagraphs")
        yield "bf16, channels last, compiled", lambda: compiled(half_last)[0].clone(), False


TRAINED = {
    "fp32": Options(),
    "fp32, optimize": Options(optimize=True),
    "tf32": Options("tf32"),
    "tf32, channels last": Options("tf32", channels_last=True),
    "bf16": Options("bf16"),
    "bf16, channels last": Options("bf16", channels_last=True),
    "bf16, optimize": Options("bf16", optimize=True),
    "fp16, channels last": Options("fp16", channels_last=True),
}


def training(setting: Setting) -> Iterator[Figures]:
    """An iteration of FCN-32s, batch 1: ours in every way, and a loop written by hand."""
    size = (48, 64) if setting.quick else (334, 500)
    rng = np.random.default_rng(0)
    classes = 4 if setting.quick else 21
    label = rng.integers(0, classes, (1, 1, *size))
    label[rng.random(label.shape) < 0.05] = 255
    # Values of about 1: for scores in the hundreds Caffe cuts the loss off and plain PyTorch doesn't.
    image = torch.from_numpy(rng.standard_normal((1, 3, *size), np.float32)).to(setting.device)
    labels = torch.from_numpy(label.astype(np.float32)).to(setting.device)
    for what, options in TRAINED.items():
        if options.precision == "tf32" and not setting.on_gpu:
            continue
        with tempfile.TemporaryDirectory() as folder:
            solver = _solver(setting, options, folder)
            inputs = {"data": image, "label": labels}
            above = setting.peak(lambda solver=solver, inputs=inputs: solver.step(2, **inputs))
            rounds = 2 if setting.quick else 20
            solver.step(rounds, **inputs)
            setting.wait()
            start = time.perf_counter()
            solver.step(rounds, **inputs)
            setting.wait()
            taken = (time.perf_counter() - start) / rounds
            yield {"what": what, "images/s": 1 / taken, "ms in a row": taken * 1e3, "loss": solver.losses[0], **above}
            del solver
            setting.clean()
    if not setting.quick:
        yield from _training_by_hand(setting, image, labels[:, 0].long())


def _solver(setting: Setting, options: Options, folder: str) -> fcnproto.Solver:
    param = caffe_pb2.SolverParameter(
        train_net=str(zoo.path("fcn-mini" if setting.quick else "voc-fcn32s", "train")),
        base_lr=1e-10,
        lr_policy="fixed",
        momentum=0.99,
        weight_decay=0.0005,
        snapshot_prefix=f"{folder}/snap",
    )
    solver = fcnproto.Solver(param, device=setting.device, options=options)
    from benchmarks.inference import seeded_weights

    seeded_weights(solver.net)
    return solver


def _training_by_hand(setting: Setting, image: Tensor, labels: Tensor) -> Iterator[Figures]:
    """The same net and update written directly in PyTorch."""
    for what, dtype, tf32, last in (
        ("fp32", torch.float32, False, False),
        ("tf32, channels last", torch.float32, True, True),
        ("bf16, channels last", torch.bfloat16, False, True),
    ):
        net = setting.net("train")
        model = Vgg(1, [21]).to(setting.device)
        copy_weights(model, net.params)
        del net
        model.ups.requires_grad_(False)
        model = model.to(memory_format=LAST) if last else model
        biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
        weights = [p for name, p in model.named_parameters() if name.endswith("weight") and p.requires_grad]
        groups = [{"params": weights, "weight_decay": 0.0005}, {"params": biases, "lr": 2e-10}]
        optimizer = torch.optim.SGD(groups, lr=1e-10, momentum=0.99)

        def step(model: Vgg = model, optimizer: Any = optimizer, dtype: torch.dtype = dtype) -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(setting.device.type, dtype, enabled=dtype != torch.float32):
                scores = model(image)[0]
            F.cross_entropy(scores.float(), labels, ignore_index=255, reduction="sum").backward()
            optimizer.step()

        with switches(tf32, benchmark=True):
            figures = setting.peak(step) | setting.milliseconds(step)
        yield {"what": f"hand-written {what}", "images/s": 1e3 / figures["ms in a row"], **figures}
        del model, optimizer, step
        setting.clean()


def folder(setting: Setting) -> Iterator[Figures]:
    """A folder of photographs through `segment`: images a second, with threads and with processes that write."""
    count, size = (3, (64, 48)) if setting.quick else (96, (500, 334))
    with tempfile.TemporaryDirectory() as temporary:
        images, rng = Path(temporary) / "in", np.random.default_rng(0)
        images.mkdir()
        for k in range(count):
            small = Image.fromarray(rng.integers(0, 256, (11, 16, 3), dtype=np.uint8))
            small.resize(size, Image.Resampling.BICUBIC).save(images / f"{k:03}.jpg", quality=92)
        net = setting.net()
        for name in ("fp32", "bf16"):
            segmenter = Segmenter(fcnproto.optimize(net), precision=name)
            for workers, writers in ((2, 0), (8, 0)) if setting.quick else ((2, 0), (8, 0), (4, 4), (8, 8)):
                out = Path(temporary) / f"{name}-{workers}-{writers}"
                start = time.perf_counter()
                results = list(segment(segmenter, images, out, compared=0, workers=workers, writers=writers))
                taken = time.perf_counter() - start
                errors = [result.error for result in results if result.error]
                what = f"{name}, {workers} threads, {writers} processes write"
                yield {"what": what, "images/s": count / taken, "errors": errors[:3], "good": not errors}


@torch.no_grad()
def kernels(setting: Setting) -> Iterator[Figures]:
    """Which kernels run for one call of FCN-8s: how many, how long, and the longest of them."""
    if not setting.can_do("_cuda_getDeviceCount"):
        return
    from torch.profiler import ProfilerActivity, profile

    net, image = setting.net(), setting.image()
    for name in LIMITS:
        fast = fcnproto.optimize(net, precision=name)
        for _ in range(3):
            fast(data=image)
        setting.wait()
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
            fast(data=image)
            setting.wait()
        events = [e for e in found.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
        events.sort(key=lambda event: -event.self_device_time_total)
        longest = [f"{e.key[:60]} {e.self_device_time_total / 1e3:.3f} ms x{e.count}" for e in events[:8]]
        busy = sum(event.self_device_time_total for event in events) / 1e3
        yield {"what": name, "kernels": sum(event.count for event in events), "ms busy": busy, "longest": longest}


@torch.no_grad()
def layers(setting: Setting) -> Iterator[Figures]:
    """VGG16's convolutions as a folded image of 500x334 has them: both layouts, TF32, three products, bfloat16."""
    sizes = [(64, 64, 336, 502), (128, 128, 169, 253), (256, 256, 86, 128), (512, 512, 45, 66), (512, 512, 25, 35)]
    sizes = [(16, 16, 12, 12)] if setting.quick or not setting.on_gpu else sizes
    for channels, outputs, height, width in sizes:
        x = torch.randn(1, channels, height, width, device=setting.device)
        w = torch.randn(outputs, channels, 3, 3, device=setting.device) * (2 / (9 * channels)) ** 0.5
        exact = F.conv2d(x.double(), w.double(), padding=1)
        inner = x.contiguous(memory_format=LAST), w.contiguous(memory_format=LAST)
        tripled = splitting.tripled_weight(w).contiguous(memory_format=LAST)
        runs: dict[str, tuple[bool, Callable[[], Tensor]]] = {
            "fp32": (False, lambda x=x, w=w: F.conv2d(x, w, padding=1)),
            "fp32, channels last": (False, lambda i=inner: F.conv2d(*i, padding=1)),
            "tf32, channels last": (True, lambda i=inner: F.conv2d(*i, padding=1)),
            "tf32x3": (False, lambda i=inner, t=tripled: _three(i[0], t)),
            "bf16, channels last": (False, lambda i=inner: F.conv2d(i[0].bfloat16(), i[1].bfloat16(), padding=1)),
        }
        kernel = splitting.kernel()
        if kernel is not None and setting.on_gpu:
            runs["tf32x3, one kernel"] = (False, partial(_by_kernel, kernel, inner[0], kernel.arranged(w)))
        for what, (tf32, run) in runs.items():
            with switches(tf32):
                figures = setting.milliseconds(run, 8)
                found = deviation(run(), exact)
            good = {} if what.split(",")[0] not in ("fp32", "tf32x3") else {"good": found <= 1e-5}
            yield {"what": f"{channels} to {outputs}, {what}", "deviation": found, **figures, **good}


def _three(x: Tensor, weight: Tensor) -> Tensor:
    return splitting.convolve(splitting.tripled(x, 1), weight, None, (1, 1), (1, 1), (1, 1), 1)


def _by_kernel(kernel: Any, x: Tensor, weight: Tensor) -> Tensor:
    found: Tensor = kernel.convolve(x, weight, None, (3, 3), x.shape[2:], (1, 1), (1, 1), (1, 1))
    return found


@torch.no_grad()
def upsampling(setting: Setting) -> Iterator[Figures]:
    """FCN-8s's last deconvolution: as it is, channel by channel, and as two products."""
    channels, kernel, stride, size = (4, 16, 8, (5, 6)) if setting.quick else (21, 16, 8, (66, 87))
    line = 1 - (torch.arange(kernel) - (kernel / 2 - 0.5)).abs() / (kernel / 2)
    each = torch.outer(line, line).expand(channels, 1, -1, -1).contiguous().to(setting.device)
    dense = torch.zeros(channels, channels, kernel, kernel, device=setting.device)
    dense[range(channels), range(channels)] = each[:, 0]
    down, across = (_laid_down(line, n, stride).to(setting.device) for n in size)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(1, channels, *size, device=setting.device).to(dtype)
        d, e, rows, columns = (value.to(dtype) for value in (dense, each, down, across))
        runs: dict[str, Callable[[], Tensor]] = {
            "as it is": lambda x=x, d=d: F.conv_transpose2d(x, d, stride=stride),
            "by channel": lambda x=x, e=e: F.conv_transpose2d(x, e, stride=stride, groups=channels),
            "two products": lambda x=x, r=rows, c=columns: r @ (x @ c.t()),
        }
        exact = F.conv_transpose2d(x.double(), each.double(), stride=stride, groups=channels)
        for what, run in runs.items():
            figures = setting.milliseconds(run, 10)
            yield {"what": f"{str(dtype)[6:]}, {what}", "deviation": deviation(run(), exact), **figures}


def _laid_down(line: Tensor, n: int, stride: int) -> Tensor:
    """The matrix that lays a line down at every `stride`-th position, times an input."""
    matrix = torch.zeros((n - 1) * stride + len(line), n)
    for k in range(n):
        matrix[k * stride : k * stride + len(line), k] = line
    return matrix


def layer_times(setting: Setting) -> Iterator[Figures]:
    """`fcnproto time`: the sum of its layers beside the net as a whole."""
    net, image = setting.net(), setting.image()
    times = time_layers(net, 2 if setting.quick else 5, {"data": tuple(image.shape)})
    with torch.no_grad():
        whole = setting.milliseconds(lambda: net(data=image), 5)
    yield {"what": "whole net", **whole, "ms of all layers": sum(each.forward for each in times)}


SECTIONS: dict[str, tuple[int, Callable[[Setting], Iterator[Figures]]]] = {
    "environment": (10, environment),
    "inference": (90, inference),
    "training": (60, training),
    "folder": (40, folder),
    "kernels": (15, kernels),
    "layers": (20, layers),
    "upsampling": (5, upsampling),
    "layer_times": (10, layer_times),
}
"""By name the sections of this file, with the seconds that they take on a GPU."""
