"""What the original Caffe refuses and runs here: each kind is told, and nothing is told of nets that ran there."""

from __future__ import annotations

import warnings
from pathlib import Path

import golden_cases
import pytest

import fcnproto
from fcnproto.checking.caffe import loads_in_caffe
from fcnproto.errors import FcnprotoWarning
from fcnproto.net.refusals import caffe_refusals


def source(name: str, *extents: int) -> str:
    shape = " ".join(f"dim: {extent}" for extent in extents)
    return f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {shape} }} }} }}\n'


def layer(kind: str, bottoms: str, more: str = "", tops: str = "l") -> str:
    names = "".join(f'bottom: "{name}" ' for name in bottoms) + "".join(f'top: "{name}" ' for name in tops)
    return f'layer {{ name: "l" type: "{kind}" {names}{more} }}\n'


SCORE = 'layer { name: "c" type: "InnerProduct" bottom: "a" top: "c" inner_product_param { num_output: 3 } }\n'
# Every one of these ends a real Caffe's process.
REFUSED = {
    "axes of a loss": (source("a", 2, 1, 1, 1, 2) + source("b", 2, 1, 1, 1, 2) + layer("EuclideanLoss", "ab"), "5 axes"),
    "axes of a hinge": (source("a", 2, 1, 1, 1, 2) + source("b", 2) + layer("HingeLoss", "ab"), "5 axes"),
    "axes of PReLU": (source("a", 2, 2, 1, 1, 2) + layer("PReLU", "a"), "5 axes"),
    "Im2col": (source("a", 2, 3) + layer("Im2col", "a", "convolution_param { kernel_size: 1 }"), "behind the channels"),
    "gaussian": (
        source("a", 2, 3)
        + layer("InnerProduct", "a", 'inner_product_param { num_output: 2 weight_filler { type: "gaussian" std: 0 } }'),
        "std 0",
    ),
    "Slice": (source("a", 2, 1) + layer("Slice", "a", "slice_param { slice_point: 1 }", "lm"), "2 tops for an extent"),
    "octal": (source("a", 2) + layer("Power", "a", "loss_weight: 08"), "line 2: 08 begins with 0"),
    "force_backward": (
        "force_backward: true\n"
        + source("a", 2, 3)
        + source("b", 2)
        + source("h", 3, 3)
        + layer("InfogainLoss", "abh"),
        "gradient of bottom 2",
    ),
    "propagate_down": (
        source("a", 2, 3) + source("b", 2) + SCORE
        + layer("SoftmaxWithLoss", "cb", "propagate_down: true propagate_down: true"),
        "gradient of bottom 1",
    ),
    "type of a fork": (source("a", 2, 3) + layer("HardSwish", "a"), "no layer type HardSwish"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_caffe_refuses_is_named(name: str, tmp_path: Path) -> None:
    text, said = REFUSED[name]
    path = tmp_path / "net.prototxt"
    path.write_text(text)
    with pytest.warns(FcnprotoWarning, match="the original Caffe refuses this net") as caught:
        net = fcnproto.load(path, phase="train", caffe_exact=True)
    assert any(said in str(warning.message) for warning in caught)
    (finding,) = loads_in_caffe(net)
    assert said in finding.seen
    assert finding.where in ("layer 'l'", "net")
    with warnings.catch_warnings(record=True) as quiet:
        warnings.simplefilter("always")
        fcnproto.load(path, phase="train")
    assert not any("refuses this net" in str(warning.message) for warning in quiet)


@pytest.mark.parametrize("group", ["layers", "fcn"])
def test_nets_that_ran_in_caffe_are_not_refused(group: str) -> None:
    refused = {}
    for name in golden_cases.names(group)[::3]:
        case = golden_cases.Case(group, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = fcnproto.load(case.folder / "net.prototxt", allow_python=True, phase=case.facts.get("phase", "test"))
        refused[name] = caffe_refusals(net)
    assert {name: reasons for name, reasons in refused.items() if reasons} == {}


def test_texts_in_comments_and_names_are_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(
        'name: "net 08" # 09\n' + source("a", 2) + layer("Power", "a", "power_param { shift: 0.8 scale: 1e08 }")
    )
    assert caffe_refusals(fcnproto.load(path)) == []
