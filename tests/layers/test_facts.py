"""What layers say of themselves is so: pointwise ones are, images that stay apart do, coordinate maps agree with the
values, values that are moved are found again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import fcnproto.net.net
from fcnproto.errors import FcnprotoWarning, GraphError
from fcnproto.graph import maps
from fcnproto.layers.base import Layer
from fcnproto.layers.registry import find, lookup, types
from fcnproto.net import Net
from fcnproto.net.shapes import layer_shapes
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

# The settings that some types can't do without; weights are random.
SETTINGS = {
    "Clip": "clip_param { min: -0.5 max: 0.5 }",
    "Convolution": "convolution_param { num_output: 2 kernel_size: 3 stride: 2 pad: 1 }",
    "Deconvolution": "convolution_param { num_output: 2 kernel_size: 4 stride: 2 pad: 1 }",
    "Im2col": "convolution_param { kernel_size: 3 }",
    "InnerProduct": "inner_product_param { num_output: 3 }",
    "Log": "log_param { shift: 9 }",
    "Pooling": "pooling_param { kernel_size: 2 stride: 2 }",
    "Power": "power_param { power: 2 shift: 1 }",
    "Reshape": "reshape_param { shape { dim: 0 dim: 0 dim: -1 } }",
    "SPP": "spp_param { pyramid_height: 2 }",
    "Tile": "tile_param { tiles: 2 }",
    "Crop": "crop_param { axis: 2 }",
}
NAMES = [
    name
    for name in types()
    if find(name).__module__.startswith(("fcnproto.layers", "fcnproto.dialects")) and not find(name).is_data
]  # type: ignore[union-attr]
SHAPE = (2, 4, 6, 6)


def make(name: str, settings: str | None = None, phase: str = "TEST") -> Layer | None:
    """A layer with as many bottoms as it needs, in the shape above; None for types that don't take that."""
    cls = lookup(name)
    bottoms = cls.bottoms[0]
    text = f'name: "l" type: "{name}" phase: {phase} ' + (SETTINGS.get(name, "") if settings is None else settings)
    text += "".join(f' bottom: "b{k}"' for k in range(bottoms)) + "".join(f' top: "t{k}"' for k in range(cls.tops[0]))
    layer = cls(parse(text, caffe_pb2.LayerParameter))
    layer.train(phase == "TRAIN")
    try:
        layer.setup([SHAPE] * bottoms)
        layer_shapes(layer, [SHAPE] * bottoms)
    except (GraphError, NotImplementedError):
        return None
    generator = torch.Generator().manual_seed(1)
    for index, blob in enumerate(layer.blob_names):
        value = torch.rand(layer.blob_shapes[index], generator=generator) + 0.5
        old = getattr(layer, blob)
        delattr(layer, blob)
        if isinstance(old, torch.nn.Parameter):
            layer.register_parameter(blob, torch.nn.Parameter(value))
        else:
            layer.register_buffer(blob, value)
    return layer


def random(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(7).uniform(-1, 1, shape)).float()


def run(layer: Layer, *bottoms: Tensor) -> list[Tensor]:
    with torch.no_grad():
        result = layer(*bottoms)
    return list(result) if isinstance(result, tuple) else [result]


def bottoms_of(layer: Layer) -> list[Tensor]:
    return [random(*SHAPE) + k for k in range(len(layer.param.bottom))]


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("name", NAMES)
def test_pointwise_layers_are(name: str, phase: str) -> None:
    layer = make(name, phase=phase)
    if layer is None or not layer.is_pointwise(layer.param, layer.training):
        return
    order = torch.randperm(36, generator=torch.Generator().manual_seed(3))

    def shuffled(x: Tensor) -> Tensor:
        return x.flatten(2)[:, :, order].reshape(x.shape)

    given = bottoms_of(layer)
    for plain, moved in zip(run(layer, *given), run(layer, *map(shuffled, given)), strict=True):
        assert plain.shape[2:] == SHAPE[2:]
        torch.testing.assert_close(shuffled(plain), moved)
    assert lookup(name).coordinates(layer.param) == maps.CoordMap()


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("name", NAMES)
def test_images_that_stay_apart_do(name: str, phase: str) -> None:
    layer = make(name, phase=phase)
    if layer is None or not layer.keeps_images_apart():
        return
    given = [bottom * (k == 0 or len(SHAPE)) for k, bottom in enumerate(bottoms_of(layer))]
    together = run(layer, *given)
    for image in range(SHAPE[0]):
        alone = run(layer, *(bottom[image : image + 1] for bottom in given))
        for whole, part in zip(together, alone, strict=True):
            torch.testing.assert_close(whole[image : image + 1], part)


@pytest.mark.parametrize("name", NAMES)
def test_zeros_do_what_is_said(name: str) -> None:
    layer = make(name)
    rule = "" if layer is None else layer.of_zeros()
    if layer is None or not rule:
        return
    with torch.no_grad():
        for index in range(1 if rule == "linear" else 0, len(layer.blob_names)):
            if rule == "linear":
                layer.blob(index).zero_()
    given = [torch.zeros_like(bottom) for bottom in bottoms_of(layer)]
    if rule == "product":
        given[1:] = bottoms_of(layer)[1:]
    if layer.size_bottoms:
        given[1] = torch.ones_like(given[1])
    assert all(not top.any() for top in run(layer, *given)) or lookup(name).moves_values


@pytest.mark.parametrize("name", NAMES)
def test_a_slope_of_zero_at_zero(name: str) -> None:
    layer = make(name)
    if layer is None or not layer.is_flat_at_zero():
        return
    x = torch.zeros(SHAPE, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and not x.grad.any()


def test_most_types_are_looked_at() -> None:
    made = [name for name in NAMES if make(name) is not None]
    assert len(made) >= 35
    assert sum(lookup(name).is_pointwise(make(name).param) for name in made) >= 18  # type: ignore[union-attr]


def test_settings_and_phase_decide() -> None:
    def says(text: str, training: bool = False) -> bool:
        param = parse(text, caffe_pb2.LayerParameter)
        return lookup(param.type).is_pointwise(param, training)

    assert says('type: "BatchNorm"') and not says('type: "BatchNorm"', True)
    assert says('type: "BatchNorm" batch_norm_param { use_global_stats: true }', True)
    assert says('type: "Dropout"') and not says('type: "Dropout"', True)
    assert says('type: "LRN"') and not says('type: "LRN" lrn_param { norm_region: WITHIN_CHANNEL }')
    assert says('type: "Scale" bottom: "a"') and not says('type: "Scale" bottom: "a" bottom: "b"')
    assert not says('type: "Scale" bottom: "a" scale_param { axis: 2 }')
    assert says('type: "Softmax"') and not says('type: "Softmax" softmax_param { axis: 2 }')
    assert says('type: "Concat"') and not says('type: "Concat" concat_param { axis: 2 }')
    assert says('type: "Slice"') and not says('type: "Slice" slice_param { slice_dim: 0 }')


@pytest.mark.parametrize("name", ["Convolution", "Pooling", "Deconvolution"])
def test_coordinate_maps_tell_where_a_value_comes_from(name: str) -> None:
    """A single pixel's trace in the top has its middle where the map puts the pixel."""
    layer = make(name)
    assert layer is not None
    found = lookup(name).coordinates(layer.param)
    assert found is not None
    x = torch.zeros(1, 4, 6, 6)
    for place in (2, 3):
        x.zero_()[..., place, place] = 1
        reached = run(layer, x)[0] - run(layer, torch.zeros_like(x))[0]
        places = reached.abs().sum((0, 1, 3)).nonzero().flatten().float()
        middle = float(places.min() + places.max()) / 2
        assert abs(middle - float(found.scale[0] * place + found.shift[0])) <= 0.75


def test_multiply_adds_are_those_of_one_value_times_the_values() -> None:
    layer = make("Convolution")
    assert layer is not None
    assert layer.multiply_adds([SHAPE], [(2, 2, 3, 3)]) == 4 * 3 * 3 * 2 * 2 * 3 * 3


def test_a_pointwise_layer_refuses_bottoms_of_two_shapes() -> None:
    class Sum(fcnproto.Pointwise):
        bottoms = (2, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    layer = Sum(parse('name: "s" bottom: "a" bottom: "b" top: "c"', caffe_pb2.LayerParameter))
    assert layer.top_shapes([(1, 2), (1, 2)]) == [(1, 2)]
    with pytest.raises(fcnproto.LayerError, match="bottoms must have one shape"):
        layer.top_shapes([(1, 2), (1, 3)])


def test_replaced_fields_are_told() -> None:
    text = """
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 } } }
    layer { name: "s" type: "Slice" bottom: "x" top: "a" top: "b" slice_param { slice_dim: 1 } }
    """
    with pytest.warns(FcnprotoWarning, match="slice_param.slice_dim is deprecated"):
        Net(parse(text, caffe_pb2.NetParameter))
