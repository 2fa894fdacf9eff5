"""CUDA graphs: when they are recorded, kept and refused, with a stand-in for CUDA; the rest needs a GPU."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import golden_cases
import pytest
import torch
from golden_cases import deviation
from gpu_waits import waits
from torch import Tensor, nn

import fcnproto
from fcnproto.passes import graphs
from fcnproto.passes.graphs import GraphedPlan
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class StandIn:
    """Stands for CUDA's graphs: repeats what was computed for a size as long as the recording is used."""

    def __init__(self, *errors: Exception) -> None:
        self.recordings, self.errors = 0, list(errors)

    def __call__(self, module: nn.Module, values: Sequence[Tensor]) -> Callable[..., Any]:
        if self.errors:
            raise self.errors.pop(0)
        self.recordings += 1
        return lambda *given: module(*given)


def image(height: int = 40, width: int = 56, seed: int = 0) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 50


def fcn() -> fcnproto.net.Net:
    return golden_cases.load("fcn", "voc_fcn8s_forward").net()


class Negative(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (-x,)


def ones(size: int) -> Tensor:
    return torch.ones(1, size)


@torch.no_grad()
def test_a_size_is_recorded_at_its_second_call(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in, state = StandIn(), [0]
    plan = GraphedPlan(Negative(), lambda: state[0], stand_in)
    for size, expected in ((3, 0), (4, 0), (3, 1), (4, 2), (3, 2)):
        assert torch.equal(plan(ones(size))[0], -ones(size))
        assert stand_in.recordings == expected
    with torch.autocast("cuda", torch.bfloat16) if torch.cuda.is_available() else fcnproto.precision.asking_for("tf32"):
        plan(ones(3))
        plan(ones(3))
    assert stand_in.recordings == 3  # products computed otherwise are another recording
    state[0] = 1  # weights have changed: the size is known, the recording is not true any more
    plan(ones(3))
    assert stand_in.recordings == 4 and len(plan._runs) == 1
    with torch.enable_grad():
        plan(ones(50))
        plan(ones(50))
    assert stand_in.recordings == 4
    monkeypatch.setattr(plan, "_runs", graphs.Latest(64, 3 * 2 * 4 * 8))  # room for three of 8 values in and out
    for size in (5, 6, 7, 8) * 2:
        plan(ones(size))
    assert stand_in.recordings == 8 and len(plan._runs) == 3
    plan(ones(6))  # one of the latest
    assert stand_in.recordings == 8
    plan(ones(5))  # the least recently used one went
    assert stand_in.recordings == 9


@torch.no_grad()
def test_a_net_that_can_not_be_recorded_runs_as_it_is() -> None:
    stand_in = StandIn(RuntimeError("operation not permitted when stream is capturing"))
    plan = GraphedPlan(Negative(), lambda: 0, stand_in)
    plan(ones(3))
    with pytest.warns(
        fcnproto.FcnprotoWarning, match="CUDA graphs can't be used with this net: operation not permitted"
    ):
        assert plan(ones(3))[0].tolist() == [[-1, -1, -1]]
    plan(ones(3))
    assert stand_in.recordings == 0


@torch.no_grad()
def test_memory_that_runs_out_changes_nothing_for_later_calls() -> None:
    ended = RuntimeError("operation failed due to a previous error during capture")
    ended.__context__ = torch.OutOfMemoryError("CUDA out of memory")
    stand_in = StandIn(ended)
    plan = GraphedPlan(Negative(), lambda: 0, stand_in)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for expected in (0, 0, 1, 1):
            assert plan(ones(3))[0].tolist() == [[-1, -1, -1]]
            assert stand_in.recordings == expected


STATEFUL = {
    "LSTM": """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 } } }
layer { name: "c" type: "Input" top: "c" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "l" type: "LSTM" bottom: "x" bottom: "c" top: "y"
        recurrent_param { num_output: 5 weight_filler { type: "xavier" } } }""",
    "BatchNorm": """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 4 } } }
layer { name: "l" type: "BatchNorm" bottom: "x" top: "y" batch_norm_param { use_global_stats: false } }""",
}


class Counting(fcnproto.Layer):
    """A layer of a user's own whose result depends on how often it ran."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


@pytest.fixture
def own_layer() -> Any:
    fcnproto.register_layer("CountingForGraphs")(Counting)


@torch.no_grad()
@pytest.mark.usefixtures("own_layer")
@pytest.mark.parametrize("kind", [*STATEFUL, "CountingForGraphs"])
def test_layers_that_keep_a_state_are_refused_by_name(kind: str) -> None:
    text = STATEFUL.get(kind) or STATEFUL["BatchNorm"].replace('"BatchNorm"', f'"{kind}"').split("batch_norm")[0] + "}"
    torch.manual_seed(0)
    net = fcnproto.load(parse(text, caffe_pb2.NetParameter))
    inputs = {name: torch.rand([extent or 1 for extent in net.source_shapes[name] or ()]) for name in net.inputs}
    plan, stand_in = net.plan(net.inputs), StandIn()
    graphed = GraphedPlan(plan.module, lambda: 0, stand_in, net.layers)
    with pytest.warns(fcnproto.FcnprotoWarning, match=rf"layer 'l' \({kind}\): it keeps a state"):
        graphed(*(inputs[name] for name in plan.inputs))
    for _ in range(2):
        graphed(*(inputs[name] for name in plan.inputs))
    assert stand_in.recordings == 0


@torch.no_grad()
def test_a_net_on_the_cpu_is_not_recorded() -> None:
    net = golden_cases.load("fcn", "voc_fcn8s_forward").net()
    fast = fcnproto.optimize(net, cuda_graphs=True)
    for _ in range(2):
        assert deviation(fast(data=image())["score"], net(data=image())["score"]) <= 1e-5


@torch.no_grad()
@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("graphs", [False, True])
def test_on_a_gpu(precision: str, graphs: bool) -> None:
    net = golden_cases.load("fcn", "voc_fcn8s_forward").net()
    limit = {"float32": 1e-5, "tf32": 1e-2, "bf16": 3e-2, "fp16": 4e-3}[precision]
    sizes = [(40, 56), (33, 70), (40, 56)]
    expected = [net(data=image(*size))["score"].numpy() for size in sizes]
    fast = fcnproto.optimize(net.to("cuda"), precision=precision, cuda_graphs=graphs)
    for _ in range(2):
        for size, value in zip(sizes, expected, strict=True):
            assert deviation(fast(data=image(*size).cuda())["score"].cpu(), value) <= limit
    net.params["fc6"][0].mul_(1.5)
    net.params["conv1_2"][0].data.mul_(1.5)  # not counted by torch, so noticed later than the next call
    for _ in range(3):
        fast(data=image().cuda())
        torch.cuda.synchronize()
    assert deviation(fast(data=image().cuda())["score"].cpu(), net(data=image().cuda())["score"].cpu()) <= limit


@torch.no_grad()
@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_the_nets_own_device_is_recorded(device: str) -> None:
    if torch.device(device).index >= torch.cuda.device_count():
        pytest.skip("one CUDA device only")
    net = fcn().to(device)
    fast = fcnproto.optimize(net, cuda_graphs=True)
    before = torch.cuda.current_device(), torch.cuda.current_stream(device)
    for seed in range(4):
        x = image(seed=seed).to(device)
        assert deviation(fast(data=x)["score"].cpu(), net(data=x)["score"].cpu()) <= 1e-5
    assert (torch.cuda.current_device(), torch.cuda.current_stream(device)) == before
    (plan,) = (found.module for found, _ in fast._fast_plans._values.values())
    assert len(plan._runs) == 1 and not plan._refused


@pytest.mark.gpu
@needs_cuda
def test_threads_with_streams_of_their_own_get_their_own_results() -> None:
    net = fcn().to("cuda")
    fast = fcnproto.optimize(net, cuda_graphs=True)
    images = [image(32, 32 + 8 * (k % 2), seed=k).cuda() for k in range(4)]
    with torch.no_grad():
        expected = [net(data=x)["score"].cpu() for x in images]
    wrong: list[int] = []

    def work(k: int) -> None:
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                if deviation(fast(data=images[k])["score"].cpu(), expected[k]) > 1e-5:
                    wrong.append(k)

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@torch.no_grad()
@pytest.mark.gpu
@needs_cuda
def test_a_recording_that_fails_leaves_stream_and_device() -> None:
    """A layer that reads values on the host can't be recorded; it is named, and all runs as before."""
    net = fcn().to("cuda")
    fast = fcnproto.optimize(net, cuda_graphs=True, passes=[])
    seen: list[float] = []
    net.layer("conv1_1").register_forward_hook(lambda *given: seen.append(float(given[-1].sum())))
    before = torch.cuda.current_stream()
    expected = net(data=image().cuda())["score"].cpu()
    fast(data=image().cuda())
    with pytest.warns(fcnproto.FcnprotoWarning, match="CUDA graphs can't be used with this net"):
        fast(data=image().cuda())
    assert deviation(fast(data=image().cuda())["score"].cpu(), expected) <= 1e-5
    assert torch.cuda.current_stream() == before


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("graphs", [False, True])
def test_no_call_waits_for_the_gpu(graphs: bool) -> None:
    fast, x = fcnproto.optimize(fcn().to("cuda"), cuda_graphs=graphs), image().cuda()
    with torch.no_grad():
        for _ in range(3):
            fast(data=x)
        with waits() as found:
            for _ in range(3):
                fast(data=x)
    assert not found
