"""Is it right: recorded cases, strict float32, precisions, full width, trajectories, graphs, changed weights."""

from __future__ import annotations

import contextlib
import copy
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import fcnproto
from benchmarks.device.setting import Figures, Setting, agreement, deviation, with_tests
from benchmarks.inference import seeded_weights
from fcnproto import zoo
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

LIMITS = {"fp32": 1e-5, "tf32x3": 1e-5, "tf32": 2e-2, "bf16": 5e-2, "fp16": 1e-2}
"""What each precision may deviate by, from double precision."""
_CANCELLING = ("net_siamese", "infogain_")
"""Cases with a gradient whose terms cancel exactly, so that there is nothing to compare it with but rounding."""
_WRONG_IN_CAFFE = ("power_inplace", "clip_inplace")
"""Cases whose recorded gradient is another than the true one."""


def recorded(setting: Setting) -> Iterator[Figures]:
    """Layers and slim FCN nets, forward and backward, against the original Caffe's recorded blobs and gradients."""
    with_tests()
    import golden_cases

    for group, limit in (("layers", 1e-5), ("fcn", 1e-4)):
        names = [name for name in golden_cases.names(group) if name != "dropout_train_contract"]
        names = names[:: 16 if group == "layers" else 9] if setting.quick else names
        for optimized in (False, True):
            failed, worst = [], 0.0
            with _elsewhere():  # HDF5Output writes there
                for name in names:
                    case = golden_cases.load(group, name)
                    try:
                        found = _worst(case, setting, optimized)
                    except fcnproto.Error as error:
                        found = float("inf")
                        failed.append(f"{name}: {error}")
                    worst = max(worst, found if name != "batchnorm_single_pixel_batch" else 0.0)
                    if found > (1e-3 if name == "batchnorm_single_pixel_batch" else limit):
                        failed.append(f"{name} {found:.1e}")
            yield {
                "what": f"{group}, {'optimised' if optimized else 'plain'}",
                "cases": len(names),
                "deviation": worst,
                "failed": failed,
                "good": not failed,
            }


@contextlib.contextmanager
def _elsewhere() -> Iterator[None]:
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(here)


def _worst(case: Any, setting: Setting, optimized: bool) -> float:
    """The largest deviation of a case's blobs and gradients."""
    from golden_runs import backward, forward

    net, inputs, out = forward(case, optimized, str(setting.device))
    pairs = [(out[blob], value) for blob, value in case.keys("out").items()]
    trained = case.facts.get("backward") or case.name.endswith("_train")
    if trained and case.name not in _WRONG_IN_CAFFE:
        backward(case, net, out)
        pairs += [(inputs[blob].grad, value) for blob, value in case.keys("gin").items()]
        if not case.name.startswith(_CANCELLING):
            places = ((key.rsplit(".", 1), value) for key, value in case.keys("gparam").items())
            pairs += [(net.params[layer][int(index)].grad, value) for (layer, index), value in places]
    worst = 0.0
    for ours, value in pairs:
        reference = torch.from_numpy(value)
        found = torch.zeros(reference.shape) if ours is None else ours.detach().cpu().reshape(reference.shape)
        if reference.numel() and not torch.equal(found, reference):
            scale = float(reference[reference.isfinite()].abs().amax()) if bool(reference.isfinite().any()) else 0.0
            same = (found == reference) | (found.isnan() & reference.isnan())
            worst = max(worst, float((found - reference).masked_fill(same, 0).abs().max()) / (scale or 1.0))
    return worst if worst == worst else float("inf")


_WIDE = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 256 dim: 32 dim: 32 } } }
layer { name: "c" type: "Convolution" bottom: "x" top: "y"
  convolution_param { num_output: 256 kernel_size: 3 weight_filler { type: "msra" } } }
layer { name: "i" type: "InnerProduct" bottom: "y" top: "z"
  inner_product_param { num_output: 64 weight_filler { type: "msra" } } }"""


def strict(setting: Setting) -> Iterator[Figures]:
    """A wide convolution and a product in float32, whatever switches a program has set before."""
    net = fcnproto.load(parse(_WIDE, caffe_pb2.NetParameter)).to(setting.device)
    x = torch.randn(1, 256, 32, 32, generator=torch.Generator().manual_seed(0)).to(setting.device)
    double = [blob.detach().double() for name in ("c", "i") for blob in net.params[name]]
    exact = F.conv2d(x.double(), double[0], double[1])
    product = F.linear(exact.flatten(1), double[2], double[3])
    changes: dict[str, Any] = {
        "as it comes": None,
        "convolutions set to TF32": torch.backends.cudnn.conv,
        "everything set to TF32": torch.backends,
    }
    for what, place in changes.items():
        before = None if place is None else place.fp32_precision
        if place is not None:
            place.fp32_precision = "tf32"
        try:
            with torch.no_grad():
                found = net(x=x, blobs=["y", "z"])
        finally:
            if place is not None:
                place.fp32_precision = before
        worst = max(deviation(found["y"], exact), deviation(found["z"], product))
        yield {"what": what, "deviation": worst, "good": worst <= 2e-5}  # TF32: ten times as much and more


@torch.no_grad()
def precision(setting: Setting) -> Iterator[Figures]:
    """Each precision against the same net in double precision."""
    net, image = setting.net(), setting.image()
    exact = copy.deepcopy(net).double()(data=image.double())["score"]
    plain = deviation(net(data=image)["score"], exact)
    yield {"what": "plain", "deviation": plain, "good": plain <= 1e-5}
    for name, limit in LIMITS.items():
        found = fcnproto.optimize(net, precision=name)(data=image)["score"]
        worst = deviation(found, exact)
        yield {"what": name, "deviation": worst, "labels": agreement(found, exact), "good": worst <= limit}


@torch.no_grad()
def full_width(setting: Setting) -> Iterator[Figures]:
    """The published nets, plain and optimised, against themselves in double precision."""
    names = ["fcn-mini"] if setting.quick else [name for name in zoo.names() if name != "fcn-mini"]
    for name in names:
        if setting.left < 20:
            yield {"what": f"{name} and those after it", "note": "no time is left"}
            return
        net = fcnproto.load(zoo.path(name, "deploy"), zoo.path(name, "weights") if setting.quick else None)
        if not setting.quick:
            seeded_weights(net)
        net = net.to(setting.device)
        generator = torch.Generator().manual_seed(0)
        extents = {key: [n or 1 for n in shape or ()] for key, shape in net.source_shapes.items()}
        size = (48, 64) if setting.quick else (96, 128)
        inputs = {
            key: (torch.randn(1, shape[1], *size, generator=generator) * 50).to(setting.device)
            for key, shape in extents.items()
        }
        exact = copy.deepcopy(net).double()({key: value.double() for key, value in inputs.items()})
        for what, form in (("plain", net), ("optimised", fcnproto.optimize(net))):
            found = form(inputs)
            worst = max(deviation(found[key], value) for key, value in exact.items())
            yield {"what": f"{name}, {what}", "deviation": worst, "good": worst <= 1e-5}
        del net, exact
        setting.clean()


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
            deviation(blobs[0].grad, expected[name])
            for name, blobs in net.params.items()
            if blobs[0].grad is not None and expected[name].abs().max() > 0
        )
        yield {"what": what, "deviation": worst, "good": worst <= 1e-4}


def trajectories(setting: Setting) -> Iterator[Figures]:
    """Solvers against the original Caffe's recorded parameters after each iteration."""
    with_tests()
    import golden_cases

    names = [name for name in golden_cases.names("solver") if name != "fcn32s_heavy"]
    for name in names[:: 8 if setting.quick else 1]:
        case, worst = golden_cases.load("solver", name), 0.0
        solver = fcnproto.Solver(case.folder / "solver.prototxt", device=setting.device)
        golden_cases.set_params(solver.net, case.keys("param"))
        solver.net.set_input_arrays(case.arrays["memory.data"], case.arrays["memory.label"])
        for iteration in range(1, case.facts["iterations"] + 1):
            solver.step(1)
            for key, value in case.keys(f"iter.{iteration}.param").items():
                layer, index = key.rsplit(".", 1)
                worst = max(worst, golden_cases.deviation(solver.net.params[layer][int(index)], value))
        yield {"what": name, "deviation": worst, "good": worst <= 1e-4}


def resuming(setting: Setting) -> Iterator[Figures]:
    """A run that is broken off and resumed, with dropout and shuffled data, against one that isn't: to the last bit."""
    with_tests()
    import solver_toy

    before, torch.backends.cudnn.deterministic = torch.backends.cudnn.deterministic, True
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = solver_toy.write(Path(folder))
            first = fcnproto.Solver(path, device=setting.device)
            first.step(4)
            state = first.snapshot()
            again = fcnproto.Solver(path, device=setting.device)
            again.restore(state)
            again.step(4)
            whole = fcnproto.Solver(path, device=setting.device)
            whole.step(8)
            pairs = zip(again.net.learnable, whole.net.learnable, strict=True)
            yield {"what": "resumed", "good": all(torch.equal(a.tensor, b.tensor) for a, b in pairs)}
    finally:
        torch.backends.cudnn.deterministic = before


@torch.no_grad()
def graphs(setting: Setting) -> Iterator[Figures]:
    """Recorded calls against plain ones: sizes, changed weights, layers with a state, several threads."""
    if not setting.on_gpu:
        return
    net = setting.net()
    fast = fcnproto.optimize(net, cuda_graphs=True)
    for less in (0, 8):
        worst = 0.0
        for seed in range(4):
            image = setting.image(seed)[:, :, less:]
            worst = max(worst, deviation(fast(data=image)["score"], net(data=image)["score"]))
        yield {"what": f"{less} rows less", "deviation": worst, "good": worst <= 1e-5}
    next(iter(net.params.values()))[0].mul_(1.5)
    found = deviation(fast(data=setting.image())["score"], net(data=setting.image())["score"])
    yield {"what": "other weights", "deviation": found, "good": found <= 1e-5}
    text = (
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 4 } } }'
        'layer { name: "b" type: "BatchNorm" bottom: "x" top: "y" batch_norm_param { use_global_stats: false } }'
    )
    plain = fcnproto.load(parse(text, caffe_pb2.NetParameter)).to(setting.device)
    twin = copy.deepcopy(plain)
    recorded_twin, x = fcnproto.optimize(twin, cuda_graphs=True), torch.randn(2, 3, 4, 4).to(setting.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(4):
            plain(x=x)
            recorded_twin(x=x)
    found = deviation(twin.params["b"][2], plain.params["b"][2])
    yield {"what": "a layer with a state", "deviation": found, "good": found <= 1e-5}
    yield {"what": "threads", "wrong": (wrong := _wrong_in_threads(setting)), "good": not wrong}


def _wrong_in_threads(setting: Setting) -> int:
    """How many results of two threads that call one net at once are not theirs."""
    net = fcnproto.load(zoo.path("fcn-mini", "deploy"), zoo.path("fcn-mini", "weights")).to(setting.device)
    fast = fcnproto.optimize(net, cuda_graphs=True)
    images = [setting.image(seed, size=(48, 64)) for seed in range(2)]
    with torch.no_grad():
        expected = [net(data=image)["score"] for image in images]
    wrong: list[int] = []

    def work(k: int) -> None:
        with torch.no_grad():
            for _ in range(5 if setting.quick else 100):
                if deviation(fast(data=images[k])["score"], expected[k]) > 1e-4:
                    wrong.append(k)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(before)
    return len(wrong)


@torch.no_grad()
def watch(setting: Setting) -> Iterator[Figures]:
    """Changed weights: what the look for them costs a call, false alarms, and after how many calls it notices."""
    net, image = setting.net(), setting.image()
    for name in ("fp32", "bf16"):
        fast = fcnproto.optimize(net, precision=name)
        fast(data=image)
        looks = setting.milliseconds(fast._watch.look)
        before = fast._watch.changes
        for _ in range(50):
            fast._watch.look()
        alarms = fast._watch.changes - before
        layer = "conv1_1"
        net.params[layer][0].data.view(-1)[0] += 1e-3
        calls = 0
        while fast._watch.changes == before + alarms and calls < 200:
            fast._watch.look()
            setting.wait()
            calls += 1
        yield {"what": name, **looks, "false alarms": alarms, "calls": calls, "good": not alarms and calls < 200}


SECTIONS: dict[str, tuple[int, Callable[[Setting], Iterator[Figures]]]] = {
    "recorded": (80, recorded),
    "strict": (5, strict),
    "precision": (15, precision),
    "full_width": (60, full_width),
    "gradients": (20, gradients),
    "trajectories": (20, trajectories),
    "resuming": (5, resuming),
    "graphs": (20, graphs),
    "watch": (5, watch),
}
"""By name the sections of this file, with the seconds that they take on a GPU."""
