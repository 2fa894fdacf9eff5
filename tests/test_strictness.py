"""Torch's switches for float32 products: strict while a net's work is launched, the user's own afterwards.

The switches are there on every machine, so that what a GPU would do can be read off them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fcnproto
from fcnproto import precision
from fcnproto.inspect.running import run_with
from fcnproto.inspect.timing import time_layers
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

CUDA = torch.device("cuda")
NAMES = ("cudnn.conv", "cudnn.rnn", "cuda.matmul", "mkldnn.conv", "mkldnn.rnn", "mkldnn.matmul")


def switches() -> dict[str, Any]:
    """All that torch says, in the newer and in the older interface (where that can be read)."""
    found: dict[str, Any] = {name: part.fp32_precision for name, part in precision._parts().items()}
    found["convolutions"] = if_told(lambda: torch.backends.cudnn.allow_tf32)
    found["products"] = if_told(torch.get_float32_matmul_precision)
    return found


def if_told(older: Callable[[], object]) -> object:
    """What the older interface says; None where it refuses since the newer one says something else."""
    try:
        return older()
    except RuntimeError:
        return None


def is_strict() -> bool:
    return all(precision._parts()[name].fp32_precision in ("none", "ieee") for name in NAMES)


def newer(name: str, value: str) -> Callable[[], None]:
    return lambda: precision._say(name, value)


def older(convolutions: bool, products: str) -> Callable[[], None]:
    def change() -> None:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)

    return change


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    for name in precision._parts():
        precision._say(name, "none")
    older(True, "highest")()
    precision._say("mkldnn.matmul", "none")
    precision._say("cuda.matmul", "none")


SETTINGS: dict[str, list[Callable[[], None]]] = {
    "torch's own": [],
    "older, all relaxed": [older(True, "medium")],
    "older, all strict": [older(False, "highest")],
    "newer, general": [newer("all", "tf32")],
    "newer, general, strict": [newer("all", "ieee")],
    "newer, cuDNN": [newer("cudnn", "tf32")],
    "newer, by operation": [newer("cudnn.conv", "ieee"), newer("cuda.matmul", "tf32")],
    "newer, oneDNN": [newer("mkldnn", "bf16")],
    "newer, one against the general": [newer("all", "tf32"), newer("cudnn.conv", "ieee")],
    "both": [older(True, "high"), newer("all", "tf32"), newer("mkldnn.matmul", "bf16")],
}


@pytest.mark.parametrize("mode", ["highest", "tf32"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_in_force_within_and_the_users_own_afterwards(setting: str, mode: str) -> None:
    for change in SETTINGS[setting]:
        change()
    before = switches()
    with precision.asking_for(mode), precision.in_force(CUDA):
        within = switches()
        assert is_strict() == (mode == "highest")
        # Readable in the older interface, which programs and layers of users' own may ask.
        assert within["convolutions"] == (mode == "tf32")
        assert within["products"] == ("high" if mode == "tf32" else "highest")
        assert within["cudnn.conv"] == within["cuda.matmul"].replace("ieee", within["cudnn.conv"])
        assert within["mkldnn.conv"] == "ieee"
    assert switches() == before
    for name in ("cudnn", "all"):  # what said nothing says nothing again, and goes on following the general switch
        if precision._parts()["all"].fp32_precision == "none":
            precision._say(name, "ieee")
            assert (precision._parts()["cudnn.rnn"].fp32_precision == "ieee") == (before["cudnn.rnn"] == "none")
            precision._say(name, "none")


def test_apply_is_strict_whatever_was_switched_on() -> None:
    for setting in SETTINGS.values():
        for change in setting:
            change()
        precision.apply()
        assert is_strict()


LAYERS = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 6 dim: 6 } } }
layer { name: "c" type: "Convolution" bottom: "data" top: "c"
        convolution_param { num_output: 3 kernel_size: 3 weight_filler { type: "msra" } } }"""
LABELS = """
layer { name: "truth" type: "HDF5Data" top: "label" hdf5_data_param { source: "none.txt" batch_size: 1 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "c" bottom: "label" top: "loss" }"""


def small_net(text: str = LAYERS) -> fcnproto.net.Net:
    return fcnproto.load(
        parse(text, caffe_pb2.NetParameter), shapes={"label": (1, 1, 4, 4)} if "label" in text else None
    )


def watch(net: fcnproto.net.Net) -> list[bool]:
    """Whether the switches are strict, at each forward and at each backward of the net's convolution."""
    seen: list[bool] = []
    layer = net.layer("c")
    layer.register_forward_hook(lambda *_: seen.append(is_strict()))
    layer.register_full_backward_hook(lambda *_: seen.append(is_strict()))
    return seen


def test_every_way_to_run_a_net() -> None:
    """On the CPU too, where torch may be told to take bfloat16 for float32 products."""
    torch.set_float32_matmul_precision("medium")
    precision._say("mkldnn.conv", "bf16")
    before = switches()
    net = small_net()
    seen, image = watch(net), torch.randn(1, 2, 6, 6)
    with torch.no_grad():
        net(data=image)
        fcnproto.optimize(net, passes=[])(data=image)
        run_with(net, {"data": image}, ["c"])
    other = small_net(LAYERS + LABELS)
    more = watch(other)
    with torch.no_grad():
        run_with(other, {"data": image}, ["c"])  # a data layer without its file: not by a call of the net
    time_layers(net, 1)
    assert seen == [True] * 7 and more == [True]
    assert switches() == before


def gradient_of(results: list[Tensor], mode: str = "highest") -> None:
    with precision.asking_for(mode), precision.in_force(CUDA) as in_force_backward:
        in_force_backward(results)


class Spy(torch.autograd.Function):
    """The identity; its backward tells whether the switches are strict, and can fail."""

    seen: list[bool]
    fails = False

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        Spy.seen.append(is_strict())
        if Spy.fails:
            raise ValueError("on purpose")
        return gradient


def test_gradients_are_computed_as_their_values() -> None:
    Spy.seen, Spy.fails = [], False
    torch.set_float32_matmul_precision("high")
    before = switches()
    x = torch.ones(3, requires_grad=True)
    strict, relaxed = Spy.apply(x), Spy.apply(x)
    gradient_of([strict])
    gradient_of([relaxed], "tf32")
    strict.sum().backward()
    assert Spy.seen == [True] and switches() == before
    relaxed.sum().backward()
    assert Spy.seen == [True, False] and switches() == before
    strict, relaxed = Spy.apply(x), Spy.apply(x)
    gradient_of([strict])
    gradient_of([relaxed], "tf32")
    torch.autograd.grad((strict + relaxed).sum(), x)
    assert switches() == before and any(Spy.seen[2:]) and len(Spy.seen) == 4


def test_a_backward_pass_that_fails_leaves_the_switches() -> None:
    Spy.seen, Spy.fails = [], True
    before = switches()
    result = Spy.apply(torch.ones(3, requires_grad=True))
    gradient_of([result])
    with pytest.raises(ValueError, match="on purpose"):
        result.sum().backward()
    del result
    assert Spy.seen == [True] and switches() == before and not precision._passes


def test_threads_of_different_precision() -> None:
    """A strict computation never meets TF32, whoever computes beside it."""
    before, wrong = switches(), []
    ready = threading.Barrier(4)

    def work(mode: str) -> None:
        ready.wait()
        for _ in range(300):
            with precision.asking_for(mode), precision.in_force(CUDA):
                for _ in range(3):
                    if mode == "highest" and not is_strict():
                        wrong.append(mode)

    threads = [threading.Thread(target=work, args=(mode,)) for mode in ("highest", "tf32") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and switches() == before
    with precision.asking_for("tf32"), precision.in_force(CUDA):
        assert not is_strict()  # alone, TF32 is what is computed
        with precision.asking_for("highest"), precision.in_force(CUDA):
            assert is_strict()
        assert not is_strict()
