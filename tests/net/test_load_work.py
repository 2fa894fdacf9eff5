"""The work of loading a net grows as the net does: calls are counted, not time."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import pytest

import fcnproto
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

INPUT = 'layer { name: "in" type: "Input" top: "b0" input_param { shape { dim: 1 dim: %d dim: 2 } } } '


def convolutions(count: int, name: str | None = None) -> str:
    return INPUT % 2 + "".join(
        f'layer {{ name: "{name or index}" type: "InnerProduct" bottom: "b{index}" top: "b{index + 1}" '
        "inner_product_param { num_output: 1 } } "
        for index in range(count)
    )


NETS: dict[str, Callable[[int], str]] = {
    "a chain": convolutions,
    "layers of one name": lambda count: convolutions(count, "l"),
    "in place": lambda count: INPUT % 2 + 'layer { name: "r" type: "ReLU" bottom: "b0" top: "b0" } ' * count,
    "many readers": lambda count: (
        INPUT % 2
        + "".join(f'layer {{ name: "p{index}" type: "Power" bottom: "b0" top: "p{index}" }} ' for index in range(count))
    ),
    "many bottoms": lambda count: (
        INPUT % 2 + 'layer { name: "c" type: "Concat" top: "c" ' + 'bottom: "b0" ' * count + "}"
    ),
    "many tops": lambda count: (
        INPUT % count
        + 'layer { name: "s" type: "Slice" bottom: "b0" '
        + " ".join(f'top: "s{index}"' for index in range(count))
        + "}"
    ),
    "string pieces": lambda count: "name: " + '"abc" ' * count + INPUT % 2,
    "steps": lambda count: (
        f'layer {{ name: "in" type: "Input" top: "x" top: "c" input_param {{ shape {{ dim: {count} dim: 1 dim: 2 }} '
        f'shape {{ dim: {count} dim: 1 }} }} }} layer {{ name: "l" type: "LSTM" bottom: "x" bottom: "c" top: "y" '
        "recurrent_param { num_output: 2 } }"
    ),
}


def work(text: str) -> int:
    """The calls of Python and C functions while a net is parsed and loaded."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        fcnproto.load(parse(text, caffe_pb2.NetParameter), phase="train")
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("name", NETS)
@pytest.mark.filterwarnings("ignore")
def test_work_grows_as_the_net_does(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work(NETS[name](3))  # imports
        small, large = work(NETS[name](100)), work(NETS[name](400))
    assert large < 4.5 * small


def test_many_layers_of_one_name_have_short_module_names() -> None:
    net = fcnproto.load(parse(convolutions(60, "l"), caffe_pb2.NetParameter))
    names = {name.partition(".")[0] for name in net.state_dict()}
    assert len(names) == 60 and {"l", "l_", "l__"} <= names
    assert max(map(len, names)) <= 17
