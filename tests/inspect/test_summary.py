"""Shapes, counts and memory against figures worked out by hand and known ones of published nets."""

from __future__ import annotations

import pytest

from fcnproto import zoo
from fcnproto.errors import FcnprotoWarning, GraphError
from fcnproto.inspect.summary import NetSummary, summarise
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse, read_net


def of(text: str, *arguments: object, **options: object) -> NetSummary:
    return summarise(parse(text, caffe_pb2.NetParameter), *arguments, **options)  # type: ignore[arg-type]


INPUT = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 4 dim: 5 dim: 6 } } }'


@pytest.mark.parametrize(
    ("layer", "parameters", "multiply_adds"),
    [
        # 2 images, 6 outputs of 5x6 from 2 channels of a group and 3x3 windows
        (
            'type: "Convolution" convolution_param { num_output: 6 kernel_size: 3 pad: 1 group: 2 }',
            6 * 2 * 9 + 6,
            2 * 6 * 30 * 2 * 9,
        ),
        # every one of 2x4x5x6 values is spread over 3 outputs and 2x2 windows
        (
            'type: "Deconvolution" convolution_param { num_output: 3 kernel_size: 2 stride: 2 bias_term: false }',
            4 * 3 * 4,
            2 * 4 * 30 * 3 * 4,
        ),
        ('type: "InnerProduct" inner_product_param { num_output: 7 }', 7 * 120 + 7, 2 * 7 * 120),
        ('type: "Pooling" pooling_param { kernel_size: 2 }', 0, 0),
        ('type: "BatchNorm"', 4 + 4 + 1, 0),
        ('type: "PReLU"', 4, 0),
    ],
)
def test_layers(layer: str, parameters: int, multiply_adds: int) -> None:
    found = of(INPUT + f'layer {{ name: "y" bottom: "x" top: "y" {layer} }}').layers[1]
    assert (found.parameters, found.multiply_adds) == (parameters, multiply_adds)


def test_lstm() -> None:
    found = of(
        """layer { name: "i" type: "Input" top: "x" top: "cont" input_param {
          shape { dim: 5 dim: 3 dim: 8 } shape { dim: 5 dim: 3 } } }
        layer { name: "l" type: "LSTM" bottom: "x" bottom: "cont" top: "h" recurrent_param { num_output: 4 } }"""
    )
    assert found.layers[1].tops == {"h": (5, 3, 4)}
    assert found.layers[1].parameters == 16 * 8 + 16 + 16 * 4
    assert found.layers[1].multiply_adds == 5 * 3 * (16 * 8 + 16 * 4)


def test_memory() -> None:
    found = of(
        INPUT
        + """
        layer { name: "r" type: "ReLU" bottom: "x" top: "x" }
        layer { name: "p" type: "Pooling" bottom: "x" top: "p" pooling_param { global_pooling: true } }
        layer { name: "e" type: "Eltwise" bottom: "x" bottom: "x" top: "e" }
        """
    )
    x, p = 2 * 4 * 5 * 6 * 4, 2 * 4 * 4
    assert found.blob_bytes == x + p + x  # x, worked on in place, counts once
    assert found.peak_blob_bytes == x + p + x  # x, p and e
    chain = "".join(f'layer {{ name: "{b}" type: "Power" bottom: "{a}" top: "{b}" }}' for a, b in ["xa", "ab", "bc"])
    found = of(INPUT + chain)
    assert (found.blob_bytes, found.peak_blob_bytes) == (4 * x, 2 * x)


def test_splits_are_left_out() -> None:
    found = of(INPUT + 'layer { name: "e" type: "Eltwise" bottom: "x" bottom: "x" top: "e" }')
    assert [layer.name for layer in found.layers] == ["x", "e"]
    assert found.layers[1].bottoms == {"x": (2, 4, 5, 6)}


def test_shared_parameters_count_once() -> None:
    conv = 'type: "InnerProduct" inner_product_param { num_output: 3 bias_term: false } param { name: "w" }'
    found = of(INPUT + "".join(f'layer {{ name: "{y}" bottom: "x" top: "{y}" {conv} }}' for y in "ab"))
    assert found.parameters == 3 * 120
    assert [layer.parameters for layer in found.layers] == [0, 360, 0]


def test_fixed_parameters() -> None:
    conv = 'type: "Convolution" convolution_param { num_output: 3 kernel_size: 1 } param { lr_mult: 0 }'
    found = of(INPUT + f'layer {{ name: "c" bottom: "x" top: "c" {conv} }}')
    assert (found.parameters, found.learnable) == (15, 3)


def test_input_size_and_shapes() -> None:
    text = INPUT + 'layer { name: "p" type: "Power" bottom: "x" top: "p" }'
    assert of(text, (50, 70)).inputs == {"x": (2, 4, 50, 70)}
    data = 'layer { name: "d" type: "Data" top: "x" data_param { source: "missing" batch_size: 4 } }'
    rest = 'layer { name: "p" type: "Power" bottom: "x" top: "p" }'
    with pytest.raises(GraphError, match="--shape x="):
        of(data + rest)
    assert of(data + rest, shapes={"x": (4, 1, 8, 8)}).layers[1].tops == {"p": (4, 1, 8, 8)}


@pytest.mark.parametrize(
    ("name", "kind", "parameters"),
    # counts as the original Caffe has them
    [("voc-fcn32s", "deploy", 136152917), ("voc-fcn8s-atonce", "deploy", 134490527), ("voc-fcn-alexnet", "deploy", 58704590),
     ("nyud-fcn32s-color-d", "trainval", 140978600)],
)  # fmt: skip
def test_published_nets(name: str, kind: str, parameters: int) -> None:
    found = summarise(read_net(zoo.path(name, kind)), (375, 500))
    assert found.parameters == parameters
    tops = {name: shape for layer in found.layers for name, shape in layer.tops.items()}
    assert tops["score"][2:] == (375, 500)


def test_size_that_nobody_says() -> None:
    param = read_net(zoo.path("voc-fcn32s", "train"))
    with pytest.warns(FcnprotoWarning, match="500x500 is assumed"):
        found = summarise(param)
    assert found.inputs == {"data": (1, 3, 500, 500), "label": (1, 1, 500, 500)}


def test_nothing_is_computed() -> None:
    """The shapes of a net too large for any machine."""
    text = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 dim: 100000 dim: 100000 } } }
    layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 100 kernel_size: 1 } }"""
    assert of(text).layers[1].tops == {"c": (1, 100, 100000, 100000)}


def test_tops_that_are_their_bottoms_memory_are_no_copies() -> None:
    summary = of(INPUT + 'layer { name: "f" type: "Flatten" bottom: "x" top: "f" }')
    plain = of(INPUT + 'layer { name: "f" type: "AbsVal" bottom: "x" top: "f" }')
    assert plain.blob_bytes == plain.peak_blob_bytes == 2 * summary.blob_bytes == 2 * summary.peak_blob_bytes
