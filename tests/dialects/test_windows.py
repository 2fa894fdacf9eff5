"""What forks add to the windows of convolutions and poolings: padding by side, SAME, dilation by other names, rounding."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from golden_cases import assert_close
from layer_maker import make_layer, seeded

import fcnproto
from fcnproto.errors import GraphError, LayerError
from fcnproto.export.shapes import blob_shapes
from fcnproto.export.source import endpoints, make_source, run_source, state_for
from fcnproto.graph import maps
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse
from fcnproto.surgery.dense import rarefy

SHAPE = (2, 4, 9, 8)
SIDES = "pad_t: 1 pad_b: 3 pad_l: 0 pad_r: 2"


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, begin: tuple, size: tuple, stride: tuple, dilation):
    """A convolution of one group, one position at a time, zeros beyond the image."""
    y = np.zeros((len(x), len(weight), *size)) + bias[:, None, None]
    for i, j in product(*map(range, size)):
        for a, b in product(*map(range, weight.shape[2:])):
            row, column = i * stride[0] - begin[0] + a * dilation[0], j * stride[1] - begin[1] + b * dilation[1]
            if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
                y[:, :, i, j] += x[:, :, row, column] @ weight[:, :, a, b].T
    return y


@pytest.mark.parametrize(
    ("settings", "begin", "size", "stride", "dilation"),
    [
        (f"kernel_size: 3 {SIDES}", (1, 0), (11, 8), (1, 1), (1, 1)),
        (f"kernel_h: 2 kernel_w: 3 stride_h: 2 stride_w: 3 {SIDES}", (1, 0), (6, 3), (2, 3), (1, 1)),
        (f"kernel_size: 3 hole: 2 {SIDES}", (1, 0), (9, 6), (1, 1), (2, 2)),
        ("kernel_size: 2 dilation_h: 3 dilation_w: 1", (0, 0), (6, 7), (1, 1), (3, 1)),
        ("kernel_size: 2 hole_h: 1 hole_w: 4 pad: 1", (1, 1), (10, 6), (1, 1), (1, 4)),
        ("kernel_size: 3 pad_type: 1", (1, 1), (9, 8), (1, 1), (1, 1)),
        ("kernel_size: 4 stride: 2 pad_type: 1", (1, 1), (5, 4), (2, 2), (1, 1)),
        ("kernel_size: 3 stride: 3 pad_type: 1", (0, 0), (3, 3), (3, 3), (1, 1)),
        ("kernel_size: 1 stride: 2 pad_type: 1", (0, 0), (5, 4), (2, 2), (1, 1)),
        # SAME doesn't count the dilation: less is read before the image, the more behind it.
        ("kernel_size: 3 dilation: 2 pad_type: 1", (1, 1), (9, 8), (1, 1), (2, 2)),
    ],
)
def test_convolutions(settings: str, begin: tuple, size: tuple, stride: tuple, dilation: tuple) -> None:
    text = f'type: "Convolution" convolution_param {{ num_output: 3 {settings} }}'
    layer, x = make_layer(text, SHAPE, dtype=torch.float64), seeded(*SHAPE).requires_grad_()
    weight, bias = (blob.detach().numpy() for blob in (layer.blob(0), layer.blob(1)))
    expected = convolved(x.detach().numpy(), weight, bias, begin, size, stride, dilation)
    assert_close(layer(x), expected, 1e-12, "values")
    assert layer.top_shapes([SHAPE]) == [expected.shape]
    assert tuple(layer(torch.zeros(0, *SHAPE[1:], dtype=torch.float64)).shape) == (0, *expected.shape[1:])
    assert torch.autograd.gradcheck(layer, x[:1, :, :5, :6].detach().requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_deconvolutions_cut_each_side_by_itself(stride: int) -> None:
    shape = f"num_output: 2 kernel_size: 4 stride: {stride}"
    whole = make_layer(f'type: "Deconvolution" convolution_param {{ {shape} }}', SHAPE, dtype=torch.float64)
    cut = make_layer(f'type: "Deconvolution" convolution_param {{ {shape} {SIDES} }}', SHAPE, dtype=torch.float64)
    x = seeded(*SHAPE)
    assert_close(cut(x), whole(x)[:, :, 1:-3, :-2].detach().numpy(), 1e-12, "values")
    assert cut.top_shapes([SHAPE]) == [tuple(cut(x).shape)]


def pooled(x: np.ndarray, kernel: tuple, stride: tuple, begin: tuple, end: tuple, size: tuple, method: str):
    """A pooling, one window at a time, and the flat index of each maximum."""
    y, mask = np.zeros((*x.shape[:2], *size)), np.zeros((*x.shape[:2], *size))
    for i, j in product(*map(range, size)):
        first = [i * stride[0] - begin[0], j * stride[1] - begin[1]]
        last = [min(first[k] + kernel[k], x.shape[2 + k] + end[k]) for k in (0, 1)]
        area = (last[0] - first[0]) * (last[1] - first[1])
        rows = slice(max(first[0], 0), min(last[0], x.shape[2]))
        columns = slice(max(first[1], 0), min(last[1], x.shape[3]))
        window = x[:, :, rows, columns]
        if method == "MAX":
            y[:, :, i, j] = window.max((2, 3))
            best = window.reshape(*x.shape[:2], -1).argmax(-1)
            width = window.shape[3]
            mask[:, :, i, j] = (best // width + rows.start) * x.shape[3] + best % width + columns.start
        else:
            area = area if method == "AVE" else window.shape[2] * window.shape[3]
            y[:, :, i, j] = window.sum((2, 3)) / area
    return y, mask


POOLINGS = [
    # settings, kernel, stride, before, behind, size
    (f"kernel_size: 3 stride: 2 {SIDES}", (3, 3), (2, 2), (1, 0), (3, 2), (5, 4)),
    (f"kernel_size: 3 stride: 2 ceil_mode: false {SIDES}", (3, 3), (2, 2), (1, 0), (3, 2), (5, 4)),
    ("kernel_size: 4 stride: 3 pad_t: 2 pad_r: 1", (4, 4), (3, 3), (2, 0), (0, 1), (4, 3)),
    ("kernel_size: 4 stride: 3 pad_t: 2 pad_r: 1 ceil_mode: false", (4, 4), (3, 3), (2, 0), (0, 1), (3, 2)),
    ("kernel_size: 3 stride: 2 pad_type: 1", (3, 3), (2, 2), (1, 0), (1, 1), (5, 4)),
    ("kernel_size: 2 stride: 1 pad_type: 1", (2, 2), (1, 1), (0, 0), (1, 1), (9, 8)),
    ("kernel_size: 2 stride: 3 pad_type: 1", (2, 2), (3, 3), (0, 0), (0, 0), (3, 3)),
    ("kernel_h: 4 kernel_w: 3 stride_h: 2 stride_w: 1 pad_type: 1", (4, 3), (2, 1), (1, 1), (2, 1), (5, 8)),
    ("kernel_size: 3 stride: 2 pad: 1", (3, 3), (2, 2), (1, 1), (1, 1), (5, 5)),
    ("kernel_size: 2 stride: 2 torch_pooling: true", (2, 2), (2, 2), (0, 0), (0, 0), (4, 4)),
    ("kernel_size: 3 stride: 3 ceil_mode: false", (3, 3), (3, 3), (0, 0), (0, 0), (3, 2)),
]


@pytest.mark.parametrize("method", ["MAX", "AVE", "AVE_EXC_PAD", "AVE_TF", "AVE avg_include_pad: false"])
@pytest.mark.parametrize("case", POOLINGS, ids=[case[0] for case in POOLINGS])
def test_poolings(case: tuple, method: str) -> None:
    settings, *window = case
    text = f'type: "Pooling" pooling_param {{ pool: {method} {settings} }}'
    layer, x = make_layer(text, SHAPE, tops=2 if method == "MAX" else 1), seeded(*SHAPE).requires_grad_()
    expected, mask = pooled(x.detach().numpy(), *window, method)
    found = layer(x)
    if method == "MAX":
        assert_close(found[1], mask, 0, "mask")
        found = found[0]
    assert_close(found, expected, 1e-12, "values")
    assert layer.top_shapes([SHAPE])[0] == expected.shape
    one = make_layer(text, SHAPE)
    assert torch.autograd.gradcheck(one, x[:1, :1, :7, :6].detach().requires_grad_(), fast_mode=True)


NETS = {
    "same": """
        layer { name: "a" type: "Convolution" bottom: "x" top: "a"
          convolution_param { num_output: 4 kernel_size: 3 stride: 2 pad_type: 1 } }
        layer { name: "r" type: "ReLU" bottom: "a" top: "a" relu_param { relu6: true } }
        layer { name: "p" type: "Pooling" bottom: "a" top: "p"
          pooling_param { pool: MAX kernel_size: 3 stride: 2 pad_type: 1 } }
        layer { name: "v" type: "Pooling" bottom: "p" top: "v"
          pooling_param { pool: AVE kernel_size: 2 stride: 1 pad_type: 1 } }""",
    "sides": """
        layer { name: "a" type: "Convolution" bottom: "x" top: "a"
          convolution_param { num_output: 4 kernel_size: 3 pad_t: 20 pad_b: 9 pad_l: 8 pad_r: 15 } }
        layer { name: "r" type: "ReLU" bottom: "a" top: "a" }
        layer { name: "p" type: "Pooling" bottom: "a" top: "p" pooling_param { kernel_size: 2 stride: 2 ceil_mode: false } }
        layer { name: "q" type: "Pooling" bottom: "p" top: "q" pooling_param { kernel_size: 3 pad_l: 1 pad_b: 2 } }
        layer { name: "d" type: "Deconvolution" bottom: "q" top: "d"
          convolution_param { num_output: 2 kernel_size: 4 stride: 2 pad_t: 1 pad_r: 2 } }
        layer { name: "c" type: "Crop" bottom: "d" bottom: "x" top: "c" crop_param { offset: 3 } }""",
    "holes": """
        layer { name: "a" type: "Convolution" bottom: "x" top: "a"
          convolution_param { num_output: 4 kernel_size: 3 pad: 12 hole: 2 } }
        layer { name: "r" type: "ReLU" bottom: "a" top: "a" }
        layer { name: "p" type: "Pooling" bottom: "a" top: "p" pooling_param { kernel_size: 2 stride: 2 } }
        layer { name: "b" type: "DepthwiseConvolution" bottom: "p" top: "b"
          convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }""",
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("size", [(16, 17), (15, 14)])
def test_optimized_and_exported(name: str, size: tuple[int, int]) -> None:
    text = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 dim: 16 dim: 17 } } }'
    torch.manual_seed(0)
    net = fcnproto.load(parse(text + NETS[name], caffe_pb2.NetParameter))
    with torch.no_grad():
        for blobs in net.params.values():
            for blob in blobs:
                torch.nn.init.normal_(blob, std=0.3)
    x = torch.randn(2, 3, *size)
    ((output, expected),) = net(x=x).items()
    assert_close(fcnproto.optimize(net)(x=x)[output], expected.detach().numpy(), 1e-5, "optimized")
    names, _ = endpoints(net, losses=False)
    source = make_source(net, blob_shapes(net, dict.fromkeys(names, (2, 3, 16, 17))), "w.safetensors", losses=False)
    module = run_source(source)
    module.load_state_dict(state_for(net, module))
    assert_close(module(x), expected.detach().numpy(), 1e-5, "exported")


@pytest.mark.parametrize(
    ("settings", "pad"),
    [
        ("kernel_size: 5 pad_t: 2 pad_b: 2 pad_l: 1 pad_r: 1", (2, 1)),
        ("kernel_size: 5 pad_type: 1", (2, 2)),
        ("kernel_size: 5 stride: 2 pad_type: 1", None),
        ("kernel_size: 4 pad_type: 1", None),
    ],
)
def test_windows_that_are_even_are_taken_for_even_ones(settings: str, pad: tuple | None) -> None:
    for layer in (
        make_layer(f'type: "Convolution" convolution_param {{ num_output: 1 {settings} }}', SHAPE).window,
        make_layer(f'type: "Pooling" pooling_param {{ {settings} }}', SHAPE).windows,
    ):
        assert layer.is_even == (pad is not None)
        assert pad is None or layer.pad == pad


@pytest.mark.parametrize(
    ("text", "scale", "shift"),
    [
        ('type: "Convolution" convolution_param { kernel_size: 3 pad_t: 2 pad_l: 1 }', [1], [1, 0]),
        ('type: "Convolution" convolution_param { kernel_size: 3 stride: 2 pad_b: 2 }', ["1/2"], ["-1/2", "-1/2"]),
        ('type: "Convolution" convolution_param { kernel_size: 3 hole: 2 }', [1], [-2]),
        ('type: "Convolution" convolution_param { kernel_size: 3 hole_h: 2 hole_w: 3 }', [1], [-2, -3]),
        ('type: "Convolution" convolution_param { kernel_size: 4 pad_type: 1 }', [1], ["-1/2"]),
        ('type: "Pooling" pooling_param { kernel_size: 2 stride: 2 pad_l: 1 }', ["1/2"], ["-1/4", "1/4"]),
        ('type: "Pooling" pooling_param { kernel_size: 3 pad_type: 1 }', [1], [0]),
    ],
)
def test_coordinate_maps(text: str, scale: list, shift: list) -> None:
    param = parse(text, caffe_pb2.LayerParameter)
    found = (maps.pooling if param.type == "Pooling" else maps.convolution)(param)
    assert found is not None
    assert found.scale == tuple(map(Fraction, scale))
    assert found.shift == tuple(map(Fraction, shift))


def test_same_with_a_stride_has_no_coordinate_map() -> None:
    text = 'name: "c" type: "Convolution" convolution_param { kernel_size: 3 stride: 2 pad_type: 1 }'
    with pytest.raises(GraphError, match="'c' pads by SAME with a stride"):
        maps.convolution(parse(text, caffe_pb2.LayerParameter))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("pad: 1 pad_l: 1", "take the place of pad"),
        ("pad_h: 1 pad_w: 1 pad_type: 1", "remove pad"),
        ("pad_type: 1 pad_l: 2", "give one"),
        ("pad_type: 2", "expected 0"),
        ("pad_l: -1", "must not be negative"),
        ("hole: 2 dilation: 2", "dilation and hole say the same"),
        ("hole_h: 2", "both hole_h and hole_w"),
        ("hole: 0", "must be positive"),
    ],
)
def test_contradictions_of_convolutions(settings: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        make_layer(f'type: "Convolution" convolution_param {{ num_output: 1 kernel_size: 3 {settings} }}', SHAPE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('type: "Pooling" pooling_param { kernel_size: 3 pad: 1 pad_l: 1 }', "take the place of pad"),
        ('type: "Pooling" pooling_param { kernel_size: 3 pool: STOCHASTIC pad_l: 1 }', "MAX and AVE pooling only"),
        ('type: "Pooling" pooling_param { global_pooling: true pad_type: 1 }', "stride 1 and pad 0"),
        ('type: "Deconvolution" convolution_param { num_output: 1 kernel_size: 3 pad_type: 1 }', "SAME"),
        (
            'type: "ConvolutionDepthwise" convolution_param { num_output: 8 kernel_size: 3 }',
            "must be the number of chan",
        ),
    ],
)
def test_contradictions(text: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        make_layer(text, SHAPE)


def test_depthwise_weights() -> None:
    def shape(kind: str, settings: str) -> tuple[int, ...]:
        return make_layer(f'type: "{kind}" convolution_param {{ kernel_size: 3 {settings} }}', SHAPE).blob_shapes[0]

    assert shape("ConvolutionDepthwise", "num_output: 4 group: 2") == (4, 1, 3, 3)
    assert shape("DepthwiseConvolution", "num_output: 8") == (8, 1, 3, 3)
    assert shape("DepthwiseConvolution", "num_output: 4 group: 2") == (4, 2, 3, 3)


def test_uneven_windows_are_not_made_dense() -> None:
    text = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 1 dim: 8 dim: 8 } } }
      layer { name: "c" type: "Convolution" bottom: "x" top: "c"
        convolution_param { num_output: 1 kernel_size: 3 stride: 2 pad_l: 1 } }"""
    with pytest.raises(GraphError, match="one pad for all sides"):
        rarefy(parse(text, caffe_pb2.NetParameter))
