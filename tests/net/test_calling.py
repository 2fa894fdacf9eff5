"""What a call takes and refuses: arrays of any kind, labels in nets of half precision, errors of torch by layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fcnproto
from fcnproto.errors import Error, GraphError, LayerError, UsageError
from fcnproto.layers.base import Pointwise
from fcnproto.net.calling import in_dtype, usable_device
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 dim: 4 dim: 4 } } }\n'
POWER = INPUT + 'layer { name: "p" type: "Power" bottom: "x" top: "y" power_param { scale: 2 } }\n'


def load(text: str, **options: object) -> fcnproto.Net:
    return fcnproto.load(parse(text, caffe_pb2.NetParameter), **options)  # type: ignore[arg-type]


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, (1, 3, 4, 4)).astype(np.float32)


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x[:, ::-1][:, ::-1],
        lambda x: x.copy()[:, ::-1, :, ::-1],
        lambda x: read_only(x.copy()),
        lambda x: x.astype(">f4"),
        lambda x: x.astype(np.float16),
        lambda x: x.astype(np.longdouble),
        lambda x: x.astype(np.uint16),
        lambda x: x.astype(">u2"),
        lambda x: x > 100,
        lambda x: x.tolist(),
        lambda x: torch.from_numpy(x).to(torch.uint8),
    ],
)
def test_arrays_of_any_kind(convert: object) -> None:
    value = convert(image())  # type: ignore[operator]
    expected = 2 * np.asarray(value, np.float32)
    assert np.array_equal(load(POWER)(x=value)["y"].numpy(), expected)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a.jpg", "input 'x' is a str"),
        (None, "input 'x' is a NoneType"),
        ([[1], [1, 2]], "can't be made a tensor"),
        (torch.ones(1, 3, 4, 4, dtype=torch.complex64), "dense tensor of real numbers"),
        (torch.ones(1, 3, 4, 4).to_sparse(), "dense tensor of real numbers"),
        (torch.ones(1, 3, 4, 4, device="meta"), "is on meta, the net on cpu"),
    ],
)
def test_what_is_no_tensor_of_numbers(value: object, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        load(POWER)(x=value)


def test_an_input_given_twice() -> None:
    x = torch.ones(1, 3, 4, 4)
    with pytest.raises(GraphError, match="input 'x' is given twice"):
        load(POWER)(x, x=x)


def test_unknown_devices() -> None:
    with pytest.raises(UsageError, match="device 'nonsense' can't be used"):
        load(POWER, device="nonsense")
    assert usable_device("cpu") == torch.device("cpu")


def test_a_net_without_parameters_is_converted_and_moved_too() -> None:
    net = load(POWER).double()
    assert net(x=image())["y"].dtype == torch.float64
    assert net.to("meta").device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reshaped", [False, True])
def test_labels_given_as_floats_keep_their_value_in_half_precision(dtype: torch.dtype, reshaped: bool) -> None:
    """2049 classes: float16 and bfloat16 would round the label 2047 or 257."""
    between = 'layer { name: "r" type: "Reshape" bottom: "l" top: "m" reshape_param { shape { dim: -1 } } }'
    net = load(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 4000 } } }\n'
        'layer { name: "l" type: "Input" top: "l" input_param { shape { dim: 2 dim: 1 } } }\n'
        + (between if reshaped else "")
        + f'layer {{ name: "a" type: "Accuracy" bottom: "x" bottom: "{"m" if reshaped else "l"}" top: "a" }}\n'
        'layer { name: "b" type: "Bias" bottom: "x" top: "b" }'
    ).to(dtype)
    assert net.dtype == dtype
    scores = torch.zeros(2, 4000)
    scores[0, 257], scores[1, 3999] = 1, 1
    assert net(x=scores, l=torch.tensor([[257.0], [3999.0]]))["a"] == 1


def test_only_indices_stay_in_float32() -> None:
    assert in_dtype(torch.ones(1), torch.bfloat16, False).dtype == torch.bfloat16
    assert in_dtype(torch.ones(1), torch.float64, True).dtype == torch.float64
    assert in_dtype(torch.ones(1, dtype=torch.int64), torch.float16, False).dtype == torch.float32


# Errors of torch, by the layer that they come from.

CASES = {
    "BatchNorm": ("", (3,)),
    "PReLU": ("", (1, 2, 4, 4)),
    "LRN": ("", (3, 4, 4)),
    "Pooling": ("pooling_param { kernel_size: 2 }", (3, 4, 4)),
    "Convolution": ("convolution_param { num_output: 2 kernel_size: 1 }", (1, 3, 4)),
    "InnerProduct": ("inner_product_param { num_output: 2 }", (1, 3, 4, 5)),
    "Scale": ("", (1, 4, 4, 4)),
    "Softmax": ("softmax_param { axis: 3 }", (1, 3, 4)),
    "MVN": ("", (1, 3, 4, 4, 2)),
    "Im2col": ("convolution_param { kernel_size: 2 }", (1, 2, 4, 4)),
    "Slice": ("slice_param { slice_point: 3 slice_point: 4 axis: 2 }", (1, 3, 2, 4)),
    "SPP": ("spp_param { pyramid_height: 2 }", (3, 4, 4)),
    "Tile": ("tile_param { tiles: 2 axis: 3 }", (3,)),
    "Reduction": ("reduction_param { axis: 3 }", (3,)),
    "Flatten": ("", ()),
}


@pytest.mark.parametrize("kind", CASES)
def test_wrong_shapes_are_errors_that_name_the_layer(kind: str) -> None:
    settings, shape = CASES[kind]
    tops = 'top: "y" top: "z" top: "q"' if kind == "Slice" else 'top: "y"'
    net = load(INPUT + f'layer {{ name: "op" type: "{kind}" bottom: "x" {tops} {settings} }}')
    assert net(x=image())["y"].numel()
    with pytest.raises(LayerError, match=rf"^layer 'op' \({kind}\): [^\n]+$"):
        net(x=torch.ones(shape))


def test_what_torch_alone_refuses_is_told_of_the_layer_with_its_shapes() -> None:
    net = load(INPUT + 'layer { name: "op" type: "Pooling" bottom: "x" top: "y" pooling_param { kernel_size: 2 } }')
    with pytest.raises(LayerError, match=r"^layer 'op' \(Pooling\): can't work on tensors of shape \(1, 0, 4, 4\): "):
        net(x=torch.ones(1, 0, 4, 4))


def test_errors_of_users_own_layers_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from fcnproto.layers import registry

    monkeypatch.setattr(registry, "_LAYERS", dict(registry._LAYERS))

    @registry.register("Mine")
    class Mine(Pointwise):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("my own words")

    net = load(INPUT + 'layer { name: "m" type: "Mine" bottom: "x" top: "y" }')
    with pytest.raises(ValueError, match="my own words") as caught:
        net(x=image())
    assert not isinstance(caught.value, Error)


@pytest.mark.parametrize("kind", ["HingeLoss", "MultinomialLogisticLoss"])
def test_losses_of_one_score_per_item(kind: str) -> None:
    """Scores without a class axis: one class, so each item's loss is that of a right label."""
    net = load(
        'layer { name: "x" type: "Input" top: "x" top: "l" input_param { shape { dim: 3 } } }\n'
        f'layer {{ name: "loss" type: "{kind}" bottom: "x" bottom: "l" top: "loss" }}'
    )
    x = torch.tensor([0.5, 0.25, 0.75])
    expected = (1 - x).mean() if kind == "HingeLoss" else -x.log().mean()
    assert torch.allclose(net(x=x, l=torch.zeros(3))["loss"], expected)
