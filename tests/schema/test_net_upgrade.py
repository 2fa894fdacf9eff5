"""The upgrade of old formats, against what the original Caffe's own tools wrote."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from golden_cases import group_folder

from fcnproto.errors import FcnprotoWarning, PrototxtError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse, parse_file, read_net, read_solver
from fcnproto.schema.upgrade import SOLVER_TYPES, V1_TYPES, needs_upgrade, upgrade_net, upgrade_solver
from fcnproto.schema.upgrade_v0 import V0_TYPES

FORMATS = group_folder("formats")
TEXT_CASES = sorted(path.parent.name for path in FORMATS.glob("*/upgraded.prototxt"))
BINARY_CASES = sorted(path.parent.name for path in FORMATS.glob("*/upgraded.caffemodel"))
PADDING = 'input: "x" layers { bottom: "x" top: "p" layer { name: "pad" type: "padding" pad: 1 } }'


def _net(text: str) -> Any:
    return parse(text, caffe_pb2.NetParameter)


def test_the_cases_are_there() -> None:
    assert len(TEXT_CASES) >= 13 and len(BINARY_CASES) >= 7


@pytest.mark.parametrize("case", TEXT_CASES)
def test_text_upgrades_as_in_caffe(case: str) -> None:
    solver = FORMATS / case / "solver.prototxt"
    with pytest.warns(FcnprotoWarning, match="deprecated"):
        upgraded: Any = read_solver(solver) if solver.exists() else read_net(FORMATS / case / "net.prototxt")
    assert upgraded == parse_file(FORMATS / case / "upgraded.prototxt", type(upgraded))


@pytest.mark.parametrize("case", BINARY_CASES)
@pytest.mark.filterwarnings("ignore::fcnproto.errors.FcnprotoWarning")
def test_binary_upgrades_as_in_caffe(case: str) -> None:
    net, expected = caffe_pb2.NetParameter(), caffe_pb2.NetParameter()
    net.ParseFromString((FORMATS / case / "weights.caffemodel").read_bytes())
    expected.ParseFromString((FORMATS / case / "upgraded.caffemodel").read_bytes())
    assert upgrade_net(net)
    assert net == expected
    assert not needs_upgrade(net)


def test_current_nets_stay_as_they_are() -> None:
    text = 'name: "n" layer { name: "a" type: "Data" data_param { scale: 2 } } state { phase: TRAIN } debug_info: true'
    net = _net(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert upgrade_net(net)
    assert net == _net(text) and not needs_upgrade(net)


def test_each_old_format_warns_once() -> None:
    text = 'layers { name: "a" type: RELU } layers { name: "b" type: RELU } input: "x" input_dim: [1, 1, 1, 1]'
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        upgrade_net(_net(text), "old.prototxt")
    assert [str(entry.message).startswith("old.prototxt: ") for entry in caught] == [True, True]


def test_every_enum_value_has_a_name() -> None:
    assert set(V1_TYPES) == set(caffe_pb2.V1LayerParameter.LayerType.keys())
    assert set(SOLVER_TYPES) == set(caffe_pb2.SolverParameter.SolverType.keys())
    assert set(V0_TYPES.values()) <= set(V1_TYPES)


@pytest.mark.filterwarnings("ignore::fcnproto.errors.FcnprotoWarning")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('layer { name: "a" } layers { name: "b" }', "both layer and layers"),
        ('layers { layer { name: "a" type: "convolution" } }', 'did you mean "conv"'),
        ('layers { layer { name: "a" type: "relu" } } layers { name: "b" type: RELU }', "mixes V0 and V1"),
        ('layers { bottom: "x" layer { name: "a" type: "relu" } }', 'reads "x", which nothing before it makes'),
        (
            PADDING + 'layers { bottom: "p" top: "r" layer { name: "r" type: "relu" } }',
            'padding layer "pad" feeds "r" (relu)',
        ),
        (
            PADDING.replace('top: "p"', 'bottom: "x" top: "p"')
            + 'layers { bottom: "p" top: "r" layer { name: "r" type: "conv" } }',
            "must have one bottom and one top",
        ),
        ('layers { layer { name: "a" type: "images" new_height: -2 } }', 'layer "a": new_height can\'t be -2'),
        ('input: "a" input_dim: [1, 2, 3]', "input_dim has 3 values"),
        ('input: "a" input: "b" input_shape { dim: 1 }', "2 inputs but 1 input shapes"),
        ('input: "a" input: "b" input_dim: [1, 2, 3, 4]', "2 inputs but 1 input shapes"),
    ],
)
def test_where_caffe_aborts(text: str, words: str) -> None:
    with pytest.raises(PrototxtError) as caught:
        upgrade_net(_net(text), "old.prototxt")
    assert words in str(caught.value) and str(caught.value).startswith("old.prototxt: ")


def test_dropped_v0_settings_are_told() -> None:
    net = _net('layers { layer { name: "r" type: "relu" kernelsize: 3 new_num: 4 } } debug_info: true')
    with pytest.warns(FcnprotoWarning) as caught:
        assert not upgrade_net(net)
    texts = " | ".join(str(entry.message) for entry in caught)
    assert 'kernelsize of layer "r" has no meaning for the type relu' in texts and "debug_info" in texts
    assert "new_num" not in texts
    assert net == _net('layer { name: "r" type: "ReLU" }')


@pytest.mark.filterwarnings("ignore::fcnproto.errors.FcnprotoWarning")
def test_padding_reaches_pooling_too() -> None:
    net = _net(
        'input: "x" input_dim: [1, 1, 4, 4]'
        'layers { bottom: "x" top: "p" layer { name: "pad" type: "padding" pad: 2 } }'
        'layers { bottom: "p" top: "y" layer { name: "pool" type: "pool" kernelsize: 3 pool: AVE } }'
    )
    upgrade_net(net)
    assert net.layer[1] == parse(
        'name: "pool" type: "Pooling" bottom: "x" top: "y" pooling_param { pool: AVE kernel_size: 3 pad: 2 }',
        caffe_pb2.LayerParameter,
    )


@pytest.mark.filterwarnings("ignore::fcnproto.errors.FcnprotoWarning")
def test_inputs_without_shapes_are_dropped() -> None:
    net = _net('input: "a" layer { name: "r" type: "ReLU" }')
    upgrade_net(net)
    assert net == _net('layer { name: "r" type: "ReLU" }')


def test_superfluous_input_shapes_are_told() -> None:
    net = _net('input: "a" input_shape { dim: 1 } input_shape { dim: 2 }')
    with pytest.warns(FcnprotoWarning) as caught:
        upgrade_net(net)
    assert "the last ones are ignored" in str(caught[-1].message)
    assert [list(shape.dim) for shape in net.layer[0].input_param.shape] == [[1]]


def test_batch_norm_rates() -> None:
    net = _net('layer { name: "b" type: "BatchNorm" param { name: "m" lr_mult: 1 } param {} param {} }')
    with pytest.warns(FcnprotoWarning, match="BatchNorm"):
        upgrade_net(net)
    assert [(param.name, param.lr_mult, param.decay_mult) for param in net.layer[0].param] == [
        ("m", 0, 0),
        ("", 0, 0),
        ("", 0, 0),
    ]
    two = _net('layer { name: "b" type: "BatchNorm" param { lr_mult: 1 } param {} }')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        upgrade_net(two)
    assert two.layer[0].param[0].lr_mult == 1


@pytest.mark.parametrize("number", range(6))
def test_solver_types(number: int) -> None:
    solver = caffe_pb2.SolverParameter(solver_type=number)
    with pytest.warns(FcnprotoWarning, match="solver_type is deprecated"):
        assert upgrade_solver(solver)
    assert solver.type == ["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"][number]
    assert not solver.HasField("solver_type")


def test_solver_with_both_types() -> None:
    solver = caffe_pb2.SolverParameter(solver_type=1, type="SGD")
    with pytest.raises(PrototxtError, match="both solver_type"):
        upgrade_solver(solver)
