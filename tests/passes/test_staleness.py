"""Weights that change after optimising, however they are changed: the next call notices."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import golden_cases
import numpy as np
import pytest
import torch
from golden_cases import deviation
from torch import Tensor, nn

import fcnproto
from fcnproto.passes.keeping import Latest, Watch

LAYERS = ("conv1_1", "conv3_2", "fc6", "upscore8")  # folded, folded, a matrix product, per channel


@pytest.fixture
def net() -> fcnproto.Net:
    return golden_cases.load("fcn", "voc_fcn8s_forward").net()


def image() -> Tensor:
    return torch.randn(1, 3, 40, 56, generator=torch.Generator().manual_seed(0)) * 50


def swap(weight: Tensor) -> Tensor:
    """The same values in another order: sums don't show it."""
    return weight.flip(0) if weight.shape[0] != weight.shape[1] else weight.flip(2)


def by_copy(net: fcnproto.Net, layer: str) -> None:
    with torch.no_grad():
        net.params[layer][0].copy_(net.params[layer][0] * 1.5)


def in_inference_mode(net: fcnproto.Net, layer: str) -> None:
    with torch.inference_mode():
        net.params[layer][0].mul_(1.5)


def through_data(net: fcnproto.Net, layer: str) -> None:
    net.params[layer][0].data.mul_(1.5)


def one_value_through_data(net: fcnproto.Net, layer: str) -> None:
    net.params[layer][0].data.view(-1)[-1] += 20


def reordered_through_data(net: fcnproto.Net, layer: str) -> None:
    weight = net.params[layer][0].data
    weight.copy_(swap(weight.clone()))


def other_data(net: fcnproto.Net, layer: str) -> None:
    net.params[layer][0].data = net.params[layer][0].data * 1.5


def through_numpy(net: fcnproto.Net, layer: str) -> None:
    array = net.params[layer][0].detach().numpy()
    np.multiply(array, 1.5, out=array)


def by_state_dict(net: fcnproto.Net, layer: str) -> None:
    net.load_state_dict({k: v * (1.5 if k.startswith(layer) else 1) for k, v in net.state_dict().items()})


def by_assigned_state_dict(net: fcnproto.Net, layer: str) -> None:
    values = {k: v * (1.5 if k.startswith(layer) else 1) for k, v in net.state_dict().items()}
    net.load_state_dict(values, assign=True)


def by_an_optimizer(net: fcnproto.Net, layer: str) -> None:
    weight = net.params[layer][0]
    weight.grad = weight.detach().clone()
    torch.optim.SGD([weight], lr=0.5).step()


def by_another_parameter(net: fcnproto.Net, layer: str) -> None:
    setattr(net.layer(layer), "weight", nn.Parameter(net.params[layer][0].detach() * 1.5))  # noqa: B010


CHANGES = [
    *(by_copy, in_inference_mode, through_data, one_value_through_data, reordered_through_data, other_data),
    *(through_numpy, by_state_dict, by_assigned_state_dict, by_an_optimizer, by_another_parameter),
]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(net: fcnproto.Net, change: Callable[[fcnproto.Net, str], None]) -> None:
    fast = fcnproto.optimize(net)
    for layer in LAYERS:
        if change is one_value_through_data and layer == "upscore8":
            continue  # the last value of its kernel reaches no pixel
        for _ in range(2):  # the second time memory of the first may be used again
            with torch.no_grad():
                before = fast(data=image())["score"]
            change(net, layer)
            with torch.no_grad():
                after = fast(data=image())["score"]
                assert deviation(after, net(data=image())["score"]) <= 1e-5, layer
            if layer != "upscore8" or change is not reordered_through_data:
                assert deviation(after, before) > 1e-5, f"{layer}: the change changed nothing"


@torch.no_grad()
def test_weights_loaded_from_a_file_are_noticed(net: fcnproto.Net, tmp_path: Path) -> None:
    other = copy.deepcopy(net)
    for blobs in other.params.values():
        blobs[0].mul_(1.1)
    other.save(tmp_path / "other.caffemodel")
    fast = fcnproto.optimize(net)
    fast(data=image())
    net.copy_from(tmp_path / "other.caffemodel")
    assert deviation(fast(data=image())["score"], other(data=image())["score"]) <= 1e-5
    fast.copy_from(tmp_path / "other.caffemodel")
    assert deviation(fast(data=image())["score"], other(data=image())["score"]) <= 1e-5


@torch.no_grad()
def test_other_dtypes_and_back(net: fcnproto.Net) -> None:
    fast = fcnproto.optimize(net)
    expected = fast(data=image())["score"]
    for convert in (net.double, net.float, fast.double, fast.float):
        convert()
        out = fast(data=image())["score"]
        assert out.dtype == net.dtype
        assert deviation(out, expected) <= 1e-5


@torch.no_grad()
def test_statistics_of_batch_norm(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text("""
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 dim: 9 dim: 9 } } }
        layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 6 kernel_size: 3
          weight_filler { type: "xavier" } } }
        layer { name: "b" type: "BatchNorm" bottom: "c" top: "c" }
        layer { name: "s" type: "Scale" bottom: "c" top: "c" }
    """)
    net = fcnproto.load(tmp_path / "net.prototxt")
    fast, x = fcnproto.optimize(net), torch.randn(1, 3, 9, 9)
    for value in (1.0, 2.0):
        for k in range(3):
            net.params["b"][k].data.fill_(value + k)
            assert deviation(fast(x)["c"], net(x)["c"]) <= 1e-5
        net.params["s"][0].data.fill_(value)
        assert deviation(fast(x)["c"], net(x)["c"]) <= 1e-5


def test_training_after_inference_mode(net: fcnproto.Net) -> None:
    """What is kept may have been made in inference mode, whose tensors autograd refuses."""
    fast = fcnproto.optimize(net)
    with torch.inference_mode():
        fast(data=image())
    fast(data=image())["score"].square().sum().backward()
    ours = net.params["conv1_1"][0].grad
    net.zero_grad()
    net(data=image())["score"].square().sum().backward()
    assert deviation(ours, net.params["conv1_1"][0].grad) <= 1e-4


def test_nets_made_in_inference_mode() -> None:
    with torch.inference_mode():
        net = golden_cases.load("fcn", "voc_fcn8s_forward").net()
        fast = fcnproto.optimize(net)
        assert deviation(fast(data=image())["score"], net(data=image())["score"]) <= 1e-5
        net.params["conv1_1"][0].mul_(1.5)
        assert deviation(fast(data=image())["score"], net(data=image())["score"]) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2, 3, 1001])
def test_any_one_value_shows(dtype: torch.dtype, count: int) -> None:
    tensor = torch.randn(count + 1).to(dtype)[1:]  # at an odd place in memory
    watch = Watch()
    watch.add("group", lambda: [tensor])
    for position in {0, count // 2, count - 1}:
        before = watch.generation("group")
        watch.look()
        assert watch.generation("group") == before
        tensor.data[position] += 1
        watch.look()
        assert watch.generation("group") == before + 1


def test_nan_is_no_change() -> None:
    tensor = torch.full((5,), float("nan"))
    watch = Watch()
    watch.add("group", lambda: [tensor])
    watch.look()
    assert watch.generation("group") == 0


def test_latest_values_are_bounded() -> None:
    latest: Latest[int, str] = Latest(3, 100)
    for key in range(5):
        latest.put(key, str(key), 10)
    assert [latest.get(key) for key in range(5)] == [None, None, "2", "3", "4"]
    latest.get(2)
    latest.put(9, "large", 85)
    assert [latest.get(key) for key in (2, 3, 4, 9)] == ["2", None, None, "large"]
    latest.put(10, "huge", 1000)
    assert len(latest) == 1
    assert latest.get(10) == "huge"


def test_what_several_threads_ask_for_is_made_once() -> None:
    watch, weight, made = Watch(), torch.ones(3), []
    meet = threading.Barrier(4)

    def make() -> int:
        time.sleep(0.05)
        made.append(1)
        return len(made)

    def ask(_: int) -> int:
        meet.wait(20)
        return watch.derived("double", make, lambda: [weight]).value

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == [1] * 4
    weight += 1
    watch.look()
    assert watch.derived("double", make, lambda: [weight]).value == 2
