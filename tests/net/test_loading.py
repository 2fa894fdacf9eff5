"""`load`: formats, states and fields that are passed over, shapes, blobs in the text, several weight files, errors."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch

import fcnproto
from fcnproto.errors import FcnprotoWarning, GraphError, LayerError, UnsupportedLayerError, WeightsError
from fcnproto.layers.registry import lookup
from fcnproto.schema import caffe_pb2
from fcnproto.schema.fields import fields_of
from fcnproto.schema.text import parse

INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 } } }\n'
TWO = INPUT + "".join(
    f'layer {{ name: "{name}" type: "InnerProduct" bottom: "x" top: "{name}" '
    "inner_product_param { num_output: 2 bias_term: false } }\n"
    for name in "ab"
)


def message(text: str) -> caffe_pb2.NetParameter:
    return parse(text, caffe_pb2.NetParameter)


def load(text: str, **options: object) -> fcnproto.Net:
    return fcnproto.load(message(text), **options)  # type: ignore[arg-type]


def test_messages_of_old_formats_are_brought_up_to_date_and_stay_as_they_are() -> None:
    old = message(
        'input: "x" input_dim: 1 input_dim: 3 input_dim: 4 input_dim: 4\n'
        'layers { name: "ip" type: INNER_PRODUCT bottom: "x" top: "y" inner_product_param { num_output: 2 } }'
    )
    before = old.SerializeToString()
    with pytest.warns(fcnproto.FcnprotoWarning, match="V1 format"):
        net = fcnproto.load(old)
    assert net.inputs == ["x"] and list(net.params) == ["ip"]
    assert old.SerializeToString() == before


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("debug_info: true", "debug_info has no effect"),
        ("state { level: 2 }", "its state says level 2, but it is built with 0"),
        ("state { phase: TRAIN }", "its state says phase TRAIN, but it is built with TEST"),
        (
            'layer { name: "c" type: "Softmax" bottom: "x" top: "y" softmax_param { engine: CUDNN } }',
            r"engine has no effect \('c'\)",
        ),
        (
            (
                'layer { name: "r" type: "Reshape" bottom: "x" top: "y" reshape_param { shape { dim: 1 dim: 3 dim: 1 dim: 1 } } }'
                'layer { name: "l" type: "LRN" bottom: "y" top: "z" lrn_param { k: 2 norm_region: WITHIN_CHANNEL } }'
            ),
            "lrn_param.k has no effect",
        ),
        (
            (
                'layer { name: "r" type: "Reshape" bottom: "x" top: "y" reshape_param { shape { dim: 1 dim: 1 dim: 3 } } }'
                'layer { name: "c" type: "Input" top: "cont" input_param { shape { dim: 1 dim: 1 } } }'
                'layer { name: "l" type: "RNN" bottom: "y" bottom: "cont" top: "z" recurrent_param { num_output: 2 debug_info: true } }'
            ),
            "recurrent_param.debug_info has no effect",
        ),
    ],
)
def test_what_is_passed_over_is_told(text: str, told: str) -> None:
    with pytest.warns(fcnproto.FcnprotoWarning, match=told) as caught:
        load(INPUT + text)
    assert len(caught) == 1


IMAGE = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4 dim: 6 dim: 6 } } }\n'
SECOND = 'layer { name: "in2" type: "Input" top: "t" input_param { shape { dim: 1 dim: 4 dim: 6 dim: 6 } } }\n'
LABEL = 'layer { name: "in2" type: "Input" top: "t" input_param { shape { dim: 1 dim: 1 dim: 6 dim: 6 } } }\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('type: "Im2col" convolution_param { kernel_size: 2 num_output: 3 }', "num_output has no effect"),
        (
            'type: "Convolution" convolution_param { kernel_size: 2 num_output: 3 bias_term: false bias_filler {} }',
            "bias_filler",
        ),
        ('type: "InnerProduct" inner_product_param { num_output: 3 bias_term: false bias_filler {} }', "bias_filler"),
        ('type: "Scale" scale_param { bias_filler {} }', "bias_filler has no effect"),
        ('type: "Scale" bottom: "t" scale_param { axis: 0 num_axes: 1 }', "num_axes has no effect; bottom 1"),
        ('type: "Bias" bottom: "t" bias_param { axis: 0 filler {} }', "filler has no effect; bottom 1"),
        ('type: "Eltwise" bottom: "t" eltwise_param { stable_prod_grad: false }', "stable_prod_grad has no effect"),
        ('type: "MVN" mvn_param { normalize_variance: false eps: 1 }', "eps has no effect"),
        (
            'type: "InnerProduct" inner_product_param { num_output: 3 weight_filler { type: "xavier" std: 0.1 } }',
            r"std has no effect on fillers of type 'xavier' \('it'\)",
        ),
        ('type: "PReLU" param { share_mode: PERMISSIVE }', "share_mode has no effect without a name"),
        (
            'type: "SoftmaxWithLoss" bottom: "t" loss_param { normalize: true normalization: FULL }',
            "normalize has no effect; normalization is given too",
        ),
    ],
)
def test_settings_that_the_layer_does_not_read_are_told(text: str, told: str) -> None:
    second = LABEL if "Loss" in text else SECOND
    with pytest.warns(fcnproto.FcnprotoWarning, match=told) as caught:
        load(IMAGE + second + f'layer {{ name: "it" top: "y" bottom: "x" {text} }}')
    assert len(caught) == 1 and "'it'" in str(caught[0].message)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            'type: "Concat" bottom: "x" bottom: "t" top: "y{}" concat_param {{ concat_dim: 1 }}',
            r"concat_param\.concat_dim",
        ),
        ('type: "Slice" bottom: "x" top: "y{}" top: "z{}" slice_param {{ slice_dim: 1 }}', r"slice_param\.slice_dim"),
    ],
)
def test_deprecated_fields_work_and_are_told_once(text: str, told: str) -> None:
    layers = "".join(f'layer {{ name: "l{i}" {text.format(i, i)} }}' for i in range(2))
    with pytest.warns(fcnproto.FcnprotoWarning, match=rf"{told} is deprecated \('l0', 'l1'\); use axis") as caught:
        net = load(IMAGE + SECOND + layers)
    assert len(caught) == 1
    out = net(x=torch.zeros(1, 4, 6, 6), t=torch.zeros(1, 4, 6, 6), blobs=["y0"])
    assert out["y0"].shape[1] == (8 if "Concat" in text else 2)


def test_the_old_sizes_of_dummy_data_are_told() -> None:
    text = 'layer { name: "d" type: "DummyData" top: "x" dummy_data_param { num: 2 channels: 1 height: 1 width: 3 } }'
    with pytest.warns(fcnproto.FcnprotoWarning, match=r"dummy_data_param\.num is deprecated") as caught:
        net = load(text)
    assert len(caught) == 4 and tuple(net()["x"].shape) == (2, 1, 1, 3)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            'type: "ImageData" top: "l" image_data_param { source: "x" } transform_param { force_gray: true }',
            "transform_param.force_gray has no effect; is_color",
        ),
        (
            'type: "DummyData" dummy_data_param { shape { dim: 2 } data_filler { std: 2 } }',
            "std has no effect on fillers of type 'constant'",
        ),
    ],
)
def test_settings_that_the_data_layer_does_not_read_are_told(text: str, told: str) -> None:
    with pytest.warns(fcnproto.FcnprotoWarning, match=told) as caught:
        load(f'layer {{ name: "it" top: "y" {text} }}')
    assert len(caught) == 1


def test_a_state_that_agrees_is_no_matter() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load('state { level: 2 phase: TRAIN stage: "s" }\n' + INPUT, phase="train", level=2)


def test_engines_are_told_once_for_all_layers() -> None:
    layers = [
        f'layer {{ name: "l{i}" type: "Softmax" bottom: "x" top: "y{i}" softmax_param {{ engine: CAFFE }} }}'
        for i in range(5)
    ]
    with pytest.warns(fcnproto.FcnprotoWarning, match=r"\('l0', 'l1', 'l2', \.\.\.\)") as caught:
        load(INPUT + "\n".join(layers))
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("shapes", "word"),
    [
        ({"y": (1, 3)}, "a shape for 'y', which is no data top; they are 'x'"),
        ({"x": (1, -3)}, "whole numbers from 0 on"),
        ({"x": "abc"}, "whole numbers from 0 on"),
        ({"x": 5}, "give a sequence of extents"),
        ({"x": (2**30, 2**30)}, "no tensor is that large"),
        ({"x": (1,) * 33}, "no tensor is that large"),
    ],
)
def test_impossible_shapes(shapes: dict[str, object], word: str) -> None:
    with pytest.raises(GraphError, match=word):
        load(INPUT, shapes=shapes)


def test_a_negative_extent_in_the_prototxt() -> None:
    with pytest.raises(LayerError, match=r"'in' \(Input\): top 'x' can't have the shape \(1, -3\)"):
        load(INPUT.replace("dim: 3", "dim: -3"))


@pytest.mark.parametrize(("count", "kind"), [(2, "InnerProduct"), (1, "Power")])
def test_blobs_in_the_prototxt_must_be_the_layers(count: int, kind: str) -> None:
    blobs = "blobs { shape { dim: 2 dim: 3 } data: [1, 2, 3, 4, 5, 6] } " * count
    settings = "inner_product_param { num_output: 2 bias_term: false }" if kind == "InnerProduct" else ""
    text = INPUT + f'layer {{ name: "l" type: "{kind}" bottom: "x" top: "y" {settings} BLOBS }}'
    with pytest.raises(LayerError, match=f"{count} blobs in the prototxt, expected {count - 1}"):
        load(text.replace("BLOBS", blobs))
    if count > 1:
        values = load(text.replace("BLOBS", blobs[: len(blobs) // 2])).params["l"][0]
        assert torch.equal(values, torch.arange(1.0, 7.0).reshape(2, 3))


def test_a_parameter_of_a_negative_extent() -> None:
    with pytest.raises(LayerError, match=r"parameter blob 'weight' can't have the shape \(-1,\)"):
        load('layer { name: "p" type: "Parameter" top: "y" parameter_param { shape { dim: -1 } } }')


def test_a_layer_without_a_type() -> None:
    with pytest.raises(UnsupportedLayerError, match="layer 'r': has no type"):
        load(INPUT + 'layer { name: "r" bottom: "x" top: "y" }')


def test_errors_of_the_graph_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(INPUT + 'layer { name: "r" type: "Relu" bottom: "x" top: "y" }')
    with pytest.raises(UnsupportedLayerError, match=r"^\S+net\.prototxt: layer 'r': unknown layer type 'Relu'"):
        fcnproto.load(path, strict=True)


def halves(tmp_path: Path, net: fcnproto.Net) -> list[Path]:
    """Two weight files, each with one of the layers a and b."""
    net.save(tmp_path / "w.caffemodel")
    whole = caffe_pb2.NetParameter.FromString((tmp_path / "w.caffemodel").read_bytes())
    paths = []
    for name in "ab":
        paths.append(tmp_path / f"{name}.caffemodel")
        part = caffe_pb2.NetParameter(layer=[layer for layer in whole.layer if layer.name == name])
        paths[-1].write_bytes(part.SerializeToString())
    return paths


def test_of_several_weight_files_only_what_none_has_is_told(tmp_path: Path) -> None:
    net = load(TWO)
    with torch.no_grad():
        net.params["a"][0].fill_(1)
        net.params["b"][0].fill_(2)
    first, second = halves(tmp_path, net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = load(TWO, weights=[first, second])
    assert (both.params["a"][0] == 1).all() and (both.params["b"][0] == 2).all()
    with pytest.warns(fcnproto.FcnprotoWarning, match=r"a\.caffemodel, \S+a\.caffemodel: has no values for b;"):
        load(TWO, weights=[first, first])


def test_nets_that_can_not_be_written(tmp_path: Path) -> None:
    net = load(TWO)
    with pytest.raises(WeightsError, match=r"missing/w\.caffemodel: can't be written: No such file"):
        net.save(tmp_path / "missing" / "w.caffemodel")
    (tmp_path / "folder.h5").mkdir()
    with pytest.raises(WeightsError, match=r"folder\.h5: can't be written: .* is a folder"):
        net.save(tmp_path / "folder.h5")
    with pytest.raises(WeightsError, match="can't be written: the net is on the device 'meta'"):
        net.to("meta").save(tmp_path / "w.caffemodel")
    assert not list(tmp_path.glob("*.caffemodel"))
    load(TWO).save(tmp_path / "w.caffemodel")
    with pytest.raises(WeightsError, match="can't be copied: the net is on the device 'meta'"):
        net.copy_from(tmp_path / "w.caffemodel")


def test_nets_of_no_layers_and_of_no_outputs() -> None:
    empty = load('name: "nothing"')
    assert (empty.inputs, empty.outputs, dict(empty()), float(empty.loss(empty()))) == ([], [], {}, 0)
    silent = load(INPUT + 'layer { name: "s" type: "Silence" bottom: "x" }')
    assert dict(silent(x=torch.ones(1, 3))) == {}
    x = torch.ones(1, 3)
    assert torch.equal(load(INPUT)(x)["x"], x)


def test_nets_are_float32_whatever_torchs_default_is() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        net = load(INPUT + 'layer { name: "b" type: "Bias" bottom: "x" top: "y" }')
        assert net.dtype == net(x=torch.ones(1, 3))["y"].dtype == torch.float32
        assert load(INPUT)(x=torch.ones(1, 3))["x"].dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_blobs_beyond_all_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def scarce(*shape: object, **options: object) -> torch.Tensor:
        if str(options.get("device")) != "meta" and math.prod(torch.empty(*shape, device="meta").shape) > 10**8:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return empty(*shape, **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(torch, "empty", scarce)
    text = (
        'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 1000000000 } }'
    )
    with pytest.raises(fcnproto.LayerError, match=r"layer 'ip' \(InnerProduct\): no memory for its weight, .* GB"):
        load(INPUT.replace("dim: 3", "dim: 1") + text)
    dummy = load(
        'layer { name: "d" type: "DummyData" top: "x" dummy_data_param { shape { dim: 100000 dim: 100000 } } }'
    )
    with pytest.raises(fcnproto.DataError, match="no memory for a top of shape"):
        dummy()


def test_a_field_of_a_fork_that_nothing_acts_on_is_told(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    layer = 'layer { name: "d" type: "DummyData" top: "d" dummy_data_param { shape { dim: 1 } } }'
    loss = 'layer { name: "l" type: "EuclideanLoss" bottom: "d" bottom: "d" top: "l" loss_param { normalize: true } }'
    path.write_text(layer + loss.replace("normalize: true", "pre_fixed_normalizer: 3"))
    with pytest.warns(
        FcnprotoWarning, match=r"'l' \(EuclideanLoss\): loss_param(.pre_fixed_normalizer)? has no effect"
    ):
        fcnproto.load(path)
    pooling = 'layer { name: "p" type: "Pooling" bottom: "d" top: "p" pooling_param { kernel_size: 1 %s: 1 } }'
    data = 'layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 1 dim: 1 dim: 2 dim: 2 } } }'
    unread = [f.name for f in fields_of(caffe_pb2.PoolingParameter.DESCRIPTOR).by_number.values() if f.number > 20000]
    unread = [name for name in unread if f"pooling_param.{name}" not in lookup("Pooling").fork_fields]
    for name in unread:
        path.write_text(data + pooling % name)
        with pytest.warns(FcnprotoWarning, match=rf"'p' \(Pooling\): pooling_param.{name} has no effect"):
            fcnproto.load(path)
