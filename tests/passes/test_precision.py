"""`optimize` in other precisions."""

from __future__ import annotations

import click
import golden_cases
import pytest
import torch
from golden_cases import deviation
from torch import Tensor

import fcnproto
from fcnproto.cli import segment, train
from fcnproto.segment import Segmenter
from fcnproto.solver import Options

NAMES = [name for name in golden_cases.names("fcn") if name.endswith("_forward")]


def image(height: int = 40, width: int = 56) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0)) * 50


@torch.no_grad()
@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_close_to_float32(name: str, precision: str) -> None:
    net = golden_cases.load("fcn", name).net()
    shapes = {key: shape for key, shape in net.source_shapes.items() if key in net.inputs}
    torch.manual_seed(0)
    inputs = {key: torch.randn(1, shape[1], 48, 61) * 50 for key, shape in shapes.items()}
    exact, ours = net(inputs), fcnproto.optimize(net, precision=precision)(inputs)
    for blob, value in exact.items():
        found = deviation(ours[blob], value)
        assert ours[blob].dtype == torch.float32
        # eight and eleven bits of mantissa, through twenty layers
        assert found <= {"tf32": 1e-5, "bf16": 3e-2, "fp16": 4e-3}[precision], blob
        assert precision == "tf32" or found > 1e-5, f"{blob} was computed in float32"


@torch.no_grad()
def test_changed_weights_are_noticed() -> None:
    net = golden_cases.load("fcn", "voc_fcn8s_forward").net()
    fast = fcnproto.optimize(net, precision="bf16")
    for layer in ("conv1_1", "conv3_2", "fc6", "score_fr"):
        before = fast(data=image())["score"]
        net.params[layer][0].data.mul_(1.5)
        after = fast(data=image())["score"]
        assert deviation(after, net(data=image())["score"]) <= 3e-2, layer
        assert deviation(after, before) > 3e-2, layer


def test_gradients_in_bfloat16() -> None:
    net = golden_cases.load("fcn", "voc_fcn8s_train").net()
    case = golden_cases.load("fcn", "voc_fcn8s_train")
    inputs = {key: torch.from_numpy(value) for key, value in case.keys("in").items()}
    net.eval()
    net.loss(net(inputs)).backward()
    exact = net.params["score_fr"][0].grad
    net.zero_grad()
    fast = fcnproto.optimize(net, precision="bf16")
    loss = fast.loss(fast(inputs))
    assert loss.dtype == torch.float32
    loss.backward()
    assert deviation(net.params["score_fr"][0].grad, exact) <= 5e-2


def test_unknown_precision() -> None:
    net = golden_cases.load("fcn", "voc_fcn8s_forward").net()
    with pytest.raises(
        fcnproto.errors.UsageError, match="precision 'int8' is unknown; choose one of fp32, tf32x3, tf32, bf16, fp16"
    ):
        fcnproto.optimize(net, precision="int8")
    assert fcnproto.optimize(net, precision="bfloat16").precision == "bf16"


@pytest.mark.parametrize(
    ("name", "short"),
    [("fp32", "fp32"), ("float32", "fp32"), ("tf32", "tf32"), ("bf16", "bf16"), ("bfloat16", "bf16")]
    + [("fp16", "fp16"), ("float16", "fp16"), ("half", "fp16")],
)
def test_one_vocabulary(name: str, short: str) -> None:
    """Short and long names, in Python and on the command line, for inference and training alike."""
    net = golden_cases.load("fcn", "voc_fcn8s_forward").net()
    fast = fcnproto.optimize(net, precision=name)
    assert fast.precision == Options(name).precision == Segmenter(net, precision=name).precision == short
    for command in (segment.command, train.command):
        (option,) = (parameter for parameter in command.params if parameter.name == "precision")
        context = click.Context(command)
        assert option.process_value(context, name) == short
        with pytest.raises(fcnproto.errors.UsageError, match="precision 'int8' is unknown; choose one of fp32"):
            option.process_value(context, "int8")
