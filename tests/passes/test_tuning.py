"""Which of several exact ways optimised nets take: by the rule, by the timings of a clock made for the test, by a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from golden_cases import deviation
from torch import Tensor

import fcnproto
from fcnproto.errors import FcnprotoWarning, UsageError
from fcnproto.layers.convolution import Convolution
from fcnproto.passes import choosing, kernels, onednn, tuning
from fcnproto.passes.choosing import FAST, PLAIN, ChosenPlan
from fcnproto.passes.fused import FusedConvolution
from fcnproto.passes.keeping import Watch
from fcnproto.passes.kernels import FastConvolution
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse


def made(convolution: str = "num_output: 6 kernel_size: 3", channels: int = 3) -> fcnproto.Net:
    torch.manual_seed(0)
    text = f"""layer {{ name: "data" type: "Input" top: "data"
        input_param {{ shape {{ dim: 1 dim: {channels} dim: 24 dim: 24 }} }} }}
      layer {{ name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param {{ {convolution}
        weight_filler {{ type: "msra" }} }} }}
      layer {{ name: "r" type: "ReLU" bottom: "c" top: "c" }}"""
    return fcnproto.load(parse(text, caffe_pb2.NetParameter))


def chosen_plan(fast: fcnproto.passes.OptimizedNet) -> ChosenPlan:
    plan = fast._find_plan(("data",), ())
    assert isinstance(plan.module, ChosenPlan)
    return plan.module


class Clock:
    """Tells the time as if each run of a function took so many seconds."""

    def __init__(self) -> None:
        self.now, self.runs = 0.0, list[str]()

    def __call__(self) -> float:
        return self.now

    def slow(self, monkeypatch: pytest.MonkeyPatch, where: object, name: str, seconds: float) -> None:
        real: Callable[..., object] = getattr(where, name)

        def run(*args: object, **more: object) -> object:
            self.now += seconds
            self.runs.append(name)
            return real(*args, **more)

        monkeypatch.setattr(where, name, run)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(tuning, "clock", clock)
    monkeypatch.setenv(tuning.SWITCH, "on")
    tuning.forget()
    yield clock
    tuning.forget()


# Layers of classic nets: settings, bottom, and the way that the rule takes.
CLASSIC = {
    "VGG-16 conv1_2": ("num_output: 64 kernel_size: 3 pad: 1", (1, 64, 224, 224), "direct"),
    "VGG-16 conv3_2": ("num_output: 256 kernel_size: 3 pad: 1", (1, 256, 56, 56), "winograd"),
    "VGG-16 conv5_1": ("num_output: 512 kernel_size: 3 pad: 1", (1, 512, 14, 14), "direct"),
    "VGG-16 conv5_1, batch 10": ("num_output: 512 kernel_size: 3 pad: 1", (10, 512, 14, 14), "winograd"),
    "VGG-16 conv3_2, image of 16x16": ("num_output: 256 kernel_size: 3 pad: 1", (1, 256, 4, 4), "direct"),
    "FCN-8s fc6": ("num_output: 4096 kernel_size: 7", (1, 512, 22, 22), "product"),
    "FCN-8s fc7": ("num_output: 4096 kernel_size: 1", (1, 4096, 16, 16), "product"),
    "ResNet-50 res2a_branch2b": ("num_output: 64 kernel_size: 3 pad: 1 bias_term: false", (1, 64, 56, 56), "direct"),
    "ResNet-50 res5a_branch1": ("num_output: 2048 kernel_size: 1 stride: 2", (1, 1024, 14, 14), "direct"),
    "SqueezeNet fire2/squeeze1x1": ("num_output: 16 kernel_size: 1", (1, 64, 56, 56), "rows"),
    "SqueezeNet conv10": ("num_output: 1000 kernel_size: 1", (1, 512, 14, 14), "direct"),
    "MobileNet-v2 conv6_3/expand": ("num_output: 960 kernel_size: 1 bias_term: false", (1, 160, 7, 7), "rows"),
    "MobileNet-v2 conv6_3/expand, 10 images": ("num_output: 960 kernel_size: 1", (10, 160, 7, 7), "direct"),
    "MobileNet conv2_1/dw": ("num_output: 32 group: 32 kernel_size: 3 pad: 1", (1, 32, 112, 112), "direct"),
    "AlexNet conv2": ("num_output: 256 group: 2 kernel_size: 5 pad: 2", (1, 96, 27, 27), "direct"),
    "SphereFace conv3_2": ("num_output: 256 kernel_size: 3 pad: 1", (1, 256, 14, 12), "direct"),
    "OpenPose Mconv1_stage2_L1": ("num_output: 128 kernel_size: 7 pad: 3", (1, 185, 23, 41), "direct"),
    "OpenPose Mconv2_stage2_L1": ("num_output: 128 kernel_size: 7 pad: 3", (1, 128, 23, 41), "direct"),
}


@pytest.mark.parametrize("name", CLASSIC)
def test_the_rule_for_layers(name: str) -> None:
    settings, shape, way = CLASSIC[name]
    layer = next(layer for layer in made(settings, shape[1]).layers if layer.name == "c")
    assert isinstance(layer, Convolution)
    fast = FusedConvolution(FastConvolution(Watch(), layer), (), first=True, doubtful=False)
    assert fast.way(shape) == way


@pytest.mark.parametrize(("size", "way"), [(16, PLAIN), (2048, FAST)])
def test_the_rule_for_plans(monkeypatch: pytest.MonkeyPatch, size: int, way: str) -> None:
    monkeypatch.undo()
    monkeypatch.setenv(tuning.SWITCH, "off")
    fast = fcnproto.optimize(made())
    assert chosen_plan(fast).rule((1, 3, size, size)) == way
    assert chosen_plan(fast).rule((1, 3, 16, 16)) == PLAIN


def test_the_work_of_a_net() -> None:
    text = """layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4 dim: 8 dim: 8 } } }
      layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 5 kernel_size: 3 stride: 2 } }
      layer { name: "d" type: "Deconvolution" bottom: "c" top: "d" convolution_param { num_output: 2 kernel_size: 4 stride: 2 } }
      layer { name: "p" type: "Pooling" bottom: "d" top: "p" pooling_param { pool: AVE global_pooling: true } }
      layer { name: "e" type: "Convolution" bottom: "p" top: "e" convolution_param { num_output: 3 kernel_size: 1 } }
      layer { name: "f" type: "InnerProduct" bottom: "e" top: "f" inner_product_param { num_output: 7 } }"""
    plan = fcnproto.load(parse(text, caffe_pb2.NetParameter)).plan("data")
    assert choosing.work(plan.module) == (180 / 4 + 160 / 4, 6 + 21)


@pytest.mark.parametrize(("seconds", "way"), [(0.5, PLAIN), (2.0, FAST)])
def test_the_faster_plan_is_taken(monkeypatch: pytest.MonkeyPatch, clock: Clock, seconds: float, way: str) -> None:
    net = made()
    fast = fcnproto.optimize(net)
    module = chosen_plan(fast)
    monkeypatch.setattr(choosing, "_SECONDS", 10)
    clock.slow(monkeypatch, module.fast, "forward", 1.0)
    clock.slow(monkeypatch, module.plain, "forward", seconds)
    x = torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        outputs = [fast(data=x)["c"] for _ in range(12)]
        assert [size.trial.chosen for size, _ in module._sizes._values.values()] == [way]
        assert all(deviation(y, net(data=x)["c"]) <= 1e-6 for y in outputs)
        fast(data=torch.randn(2, 3, 24, 24))  # another size is tried for itself
    assert [size.trial.chosen for size, _ in module._sizes._values.values()] == [way, None]


def test_slow_plans_are_tried_late(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    fast = fcnproto.optimize(made())
    module = chosen_plan(fast)
    clock.slow(monkeypatch, module.fast, "forward", 1.0)
    plain_runs: list[int] = []
    monkeypatch.setattr(module.plain, "forward", lambda *_: plain_runs.append(1) or module.fast.forward(*_))
    with torch.no_grad():
        for _ in range(choosing._BEFORE_SLOW):
            fast(data=torch.zeros(1, 3, 24, 24))
    assert not plain_runs


def test_calls_with_gradients_are_not_timed(clock: Clock) -> None:
    fast = fcnproto.optimize(made())
    for _ in range(3):
        fast(data=torch.zeros(1, 3, 24, 24))
    assert not chosen_plan(fast)._sizes


WIDE = "num_output: 128 kernel_size: 3 pad: 1"  # 36 tiles: the rule says Winograd, the direct way is close


@pytest.mark.parametrize(("seconds", "way"), [(0.5, "direct"), (0.99, "winograd"), (2.0, "winograd")])
def test_the_faster_way_of_a_layer(monkeypatch: pytest.MonkeyPatch, clock: Clock, seconds: float, way: str) -> None:
    if not onednn.works():
        pytest.skip("this build of torch has none of oneDNN's fused operators")
    net = made(WIDE, 128)
    fast = fcnproto.optimize(net)
    (layer,) = (each for each in chosen_plan(fast).modules() if isinstance(each, FusedConvolution))
    assert layer.ways((1, 128, 24, 24)) == ("winograd", "direct")
    assert layer.ways((1, 128, 96, 96)) == ("winograd", "direct")
    assert layer.ways((1, 128, 6, 6)) == ("direct",)
    clock.slow(monkeypatch, kernels.FastConvolution, "by_winograd", 1.0)
    clock.slow(monkeypatch, onednn, "convolve", seconds)
    x = torch.randn(1, 128, 24, 24)
    with torch.no_grad():
        outputs = [fast(data=x)["c"] for _ in range(9)]
        kept = {key[1] for key, value in fast._watch._derived.items() if value._kept is not None}
        assert {"winograd": "winograd", "direct": "arranged"}[way] in kept and len(kept) == 1  # the other's are freed
        clock.runs.clear()
        fast(data=x)
        assert clock.runs == [{"direct": "convolve", "winograd": "by_winograd"}[way]]
        assert all(deviation(y, net(data=x)["c"]) <= 1e-5 for y in outputs)


def test_off_means_the_same_bits_at_every_call() -> None:
    fast = fcnproto.optimize(made(WIDE, 128), tuning=False)
    x = torch.randn(1, 128, 24, 24)
    with torch.no_grad():
        first, *others = (fast(data=x)["c"] for _ in range(10))
    assert all(torch.equal(first, other) for other in others)


def test_another_value_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tuning.SWITCH, "maybe")
    with pytest.raises(UsageError, match="FCNPROTO_TUNING is 'maybe'; it can be 'on' or 'off'"):
        fcnproto.optimize(made())


def decided(key: str, ways: tuple[str, ...]) -> str | None:
    return tuning.Trial(key, ways).chosen


def try_out(key: str, seconds: dict[str, float]) -> None:
    trial = tuning.Trial(key, tuple(seconds))
    while trial.chosen is None:
        way = trial.turn()
        trial.note(way, seconds[way])


def test_a_file_keeps_what_was_found(monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path) -> None:
    file = tmp_path / "ways.json"
    monkeypatch.setenv(tuning.CACHE, str(file))
    try_out("a", {"x": 2, "y": 1})
    tuning.save()
    tuning.forget()
    try_out("b", {"x": 1, "y": 2})
    tuning.save()
    tuning.forget()  # a new process
    assert decided("a", ("x", "y")) == "y" and decided("b", ("x", "y")) == "x"
    assert decided("c", ("x", "y")) is None and decided("a", ("x", "z")) is None
    monkeypatch.setattr(tuning, "machine", lambda: "another")
    tuning.forget()
    assert decided("a", ("x", "y")) is None
    assert [list(each) for each in json.loads(file.read_text())["fcnproto"].values()] == [["a", "b"]]
    assert [path.name for path in tmp_path.iterdir()] == ["ways.json"]


@pytest.mark.parametrize(
    "content", ["", "{", '{"fcnproto": 3}', '{"fcnproto": {"m": {"k": 1}}}', "[]", '{"ways": {}}', "\x00\xff"]
)
def test_a_damaged_file_is_ignored(monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path, content: str) -> None:
    file = tmp_path / "ways.json"
    file.write_bytes(content.encode("latin1"))
    monkeypatch.setenv(tuning.CACHE, str(file))
    with pytest.warns(FcnprotoWarning, match="ways.json is ignored") as told:
        assert decided("a", ("x", "y")) is None
    assert len(told) == 1 and "\n" not in str(told[0].message)
    try_out("a", {"x": 2, "y": 1})
    tuning.save()
    tuning.forget()
    assert decided("a", ("x", "y")) == "y"


def test_a_file_that_cant_be_written(monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path) -> None:
    monkeypatch.setenv(tuning.CACHE, str(tmp_path / "missing" / "ways.json"))
    try_out("a", {"x": 2, "y": 1})
    with pytest.warns(FcnprotoWarning, match="can't be kept there"):
        tuning.save()
    assert decided("a", ("x", "y")) == "y"


def test_a_way_far_behind_is_given_up(clock: Clock) -> None:
    trial = tuning.Trial("far", ("x", "y"))
    taken: list[str] = []
    while trial.chosen is None:
        taken.append(trial.turn())
        trial.note(taken[-1], {"x": 1.0, "y": 5.0}[taken[-1]])
    assert trial.chosen == "x" and taken.count("y") == 2


def test_copies_and_pickles(clock: Clock) -> None:
    import copy
    import pickle

    fast = fcnproto.optimize(made())
    x = torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        y: Tensor = fast(data=x)["c"]
        for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert twin.tuning and deviation(twin(data=x)["c"], y) <= 1e-6
