"""Layers registered from outside the package, taken away by the source of their classes."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fcnproto
from fcnproto.export import convert
from fcnproto.layers import registry
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

SHARPNESS = 2.5
TABLE = (0.5, 1.5)
Shape = tuple[int, ...]


def larger_part(x: Tensor) -> Tensor:
    return x.abs() * TABLE[1]


def soften(x: Tensor, amount: float = SHARPNESS) -> Tensor:
    return x / (1 + larger_part(x) * amount)


halve = lambda x: x / 2  # noqa: E731


class Smooth(fcnproto.Pointwise):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(F.softplus(x))


class Soften(fcnproto.Pointwise):
    """Softer, by 'quotes', \"\"\"more\"\"\" and a factor."""

    config_field = "power_param"

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.factor = math.sqrt(2)
        self.add_blob("weight", (shapes[0][1],), caffe_pb2.FillerParameter(type="uniform", min=1, max=2))

    def forward(self, x: Tensor) -> Tensor:
        return self.weighed(halve(soften(x))) * self.config.scale + self.config.shift

    def weighed(self, x: Tensor) -> Tensor:
        return x * self.blob(0).view(-1, 1, 1) * self.doubled(x) / 2

    @torch.no_grad()
    def doubled(self, x: Tensor) -> Tensor:
        return x.new_full((), self.factor * 2)


class Blend(fcnproto.Layer):
    bottoms = (2, 2)
    tops = (1, 2)
    config_field = "power_param"
    GAIN = 2.0

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.add_blob("mix", (1,), caffe_pb2.FillerParameter(type="constant", value=0.25))

    def forward(self, a: Tensor, b: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if a.shape != b.shape:
            self.fail("two shapes")
        share = torch.sigmoid(self.blob(0) * self.GAIN)
        share = share if self.config.HasField("power") else share * 0.5
        share = share * 3 if self.training else share
        mixed = a * share + b * (1 - share) * math.pi
        return (mixed, a - b) if self.num_tops == 2 else mixed


class Ratio(fcnproto.Pointwise):
    """Has settings of its own."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.add_blob("weight", (shapes[0][1],), self.config.scale_filler)

    def forward(self, x: Tensor) -> Tensor:
        steps = sum(self.config.steps) if self.config.note == 'it\'s "1"\n' else 0
        kept = self.config.scale_filler.value if self.config.HasField("scale_filler") else 7.0
        return self.blob(0).reshape(-1, 1, 1) * x * self.config.ratio + steps + kept


class WithNumpy(fcnproto.Pointwise):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.abs(x.numpy()))


class WithTensor(fcnproto.Pointwise):
    def setup(self, shapes: Sequence[Shape]) -> None:
        self.table = torch.ones(3)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.table[0]


class WithPackage(fcnproto.Pointwise):
    def forward(self, x: Tensor) -> Tensor:
        return x * caffe_pb2.TRAIN


class WithParent(Smooth):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def without_source() -> type[fcnproto.Layer]:
    space: dict[str, type[fcnproto.Layer]] = {}
    text = "import fcnproto\nclass Hidden(fcnproto.Pointwise):\n    def forward(self, x):\n        return x + 1\n"
    exec(text, space)
    return space["Hidden"]


def around(factor: float) -> type[fcnproto.Layer]:
    class Around(fcnproto.Pointwise):
        def forward(self, x: Tensor) -> Tensor:
            return x * factor

    return Around


TYPES = {
    "OwnSmooth": Smooth,
    "OwnSoften": Soften,
    "OwnBlend": Blend,
    "OwnNumpy": WithNumpy,
    "OwnTensor": WithTensor,
    "OwnPackage": WithPackage,
    "OwnParent": WithParent,
    "OwnHidden": without_source(),
    "OwnAround": around(2.0),
}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    for name, cls in TYPES.items():
        fcnproto.register_layer(name)(cls)
    yield
    for name in TYPES:
        del registry._LAYERS[name]


NET = """
name: "smooth"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 8 dim: 9 } } }
layer { name: "m" type: "OwnSmooth" bottom: "data" top: "m" }
layer { name: "s" type: "OwnSoften" bottom: "m" top: "s" power_param { scale: 3 shift: 0.5 } }
layer { name: "b" type: "OwnBlend" bottom: "m" bottom: "s" top: "b" top: "c" power_param { scale: 3 } }
"""


def made(text: str, phase: str = "test") -> fcnproto.Net:
    torch.manual_seed(1)
    return fcnproto.load(parse(text, caffe_pb2.NetParameter), phase=phase)


@pytest.mark.parametrize("phase", ["test", "train"])
def test_modules(phase: str, tmp_path: Path) -> None:
    net = made(NET, phase)
    assert "compared" in convert(net, tmp_path / "net.py").checked
    text = (tmp_path / "net.py").read_text()
    assert "fcnproto" not in text.split('"""', 2)[2]
    assert "numpy" not in text
    spec = importlib.util.spec_from_file_location("own_net", tmp_path / "net.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loaded = module.load().train(phase == "train")
    x = torch.randn(2, 2, 5, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    (ours,) = torch.autograd.grad(sum(value.sum() for value in net(x).values()), x)
    (theirs,) = torch.autograd.grad(sum(value.sum() for value in loaded(x).values()), x)
    torch.testing.assert_close(theirs, ours)
    assert set(loaded.state_dict()) == set(net.state_dict()) == {"s.weight", "b.mix"}


@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
def test_programs(ending: str, tmp_path: Path) -> None:
    if ending == ".onnx" and any(importlib.util.find_spec(m) is None for m in ("onnx", "onnxscript", "onnxruntime")):
        pytest.skip("the ONNX packages are not installed")
    done = convert(made(NET), tmp_path / f"net{ending}")
    assert "96x64, 67x93, 130x49" in done.checked


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("OwnNumpy", r"WithNumpy uses 'np'"),
        ("OwnTensor", r"uses self.table"),
        ("OwnPackage", r"WithPackage uses 'caffe_pb2'"),
        ("OwnParent", r"uses 'super'"),
        ("OwnHidden", r"no source of forward"),
        ("OwnAround", r"uses 'factor' of the function around"),
    ],
)
def test_what_cannot_come_along_is_named(name: str, reason: str, tmp_path: Path) -> None:
    net = made(NET + f'layer {{ name: "last" type: "{name}" bottom: "b" top: "last" }}')
    with pytest.raises(fcnproto.UnsupportedLayerError, match=rf"layer 'last' \({name}\).*{reason}") as caught:
        convert(net, tmp_path / "net.py")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


PROTO = """
message OwnRatioParameter {
  optional float ratio = 1 [default = 0.5];
  optional FillerParameter scale_filler = 2;
  repeated int32 steps = 3;
  optional string note = 4;
}
"""


def test_settings_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "ratio.proto").write_text(PROTO)
    fcnproto.register_layer("OwnRatio", settings=tmp_path / "ratio.proto")(Ratio)
    settings = (
        """own_ratio_param { scale_filler { type: "constant" value: 3 } steps: 1 steps: 4 note: 'it\\'s "1"\\n' }"""
    )
    layer = f'layer {{ name: "r" type: "OwnRatio" bottom: "b" top: "r" {settings} }}'
    try:
        (tmp_path / "net.prototxt").write_text(NET + layer)
        net = fcnproto.load(tmp_path / "net.prototxt")
        x = torch.ones(1, 2, 8, 9)
        out = net(x, blobs=["b"])
        torch.testing.assert_close(out["r"], out["b"] * 1.5 + 5 + 3)
        assert "compared" in convert(net, tmp_path / "net.py").checked
    finally:
        del registry._LAYERS["OwnRatio"]
