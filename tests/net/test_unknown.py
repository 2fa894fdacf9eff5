"""Fields and layers that nobody here knows: kept, told of once, and in the way of nothing that doesn't need them."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import fcnproto
from fcnproto.errors import FcnprotoWarning, GraphError, LayerError, PrototxtError, UnsupportedLayerError
from fcnproto.schema import caffe_pb2, unknown
from fcnproto.schema.definition import net_definition
from fcnproto.schema.text import format_message, parse, read_net, read_solver

DATA = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 4 dim: 4 } } }\n'
CONV = (
    'layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 4 kernel_size: 1 '
    'blur: 0.5 weight_filler { type: "xavier" spread: WIDE } } }\n'
)
STRANGE = 'layer { name: "q" type: "MarginInnerProduct" bottom: "c" top: "q" margin_inner_product_param { base: 1 } }\n'
BEHIND = (
    'layer { name: "r" type: "ReLU" bottom: "q" top: "q" }\n'
    'layer { name: "ip" type: "InnerProduct" bottom: "q" top: "ip" inner_product_param { num_output: 2 } }\n'
)
REST = 'layer { name: "s" type: "Softmax" bottom: "c" top: "s" }\n'
IMAGE = np.ones((1, 3, 4, 4), np.float32)


def write(folder: Path, text: str) -> Path:
    (folder / "net.prototxt").write_text(text)
    return folder / "net.prototxt"


def test_all_that_is_unknown_is_told_in_one_warning(tmp_path: Path) -> None:
    path = write(tmp_path, DATA + CONV + STRANGE + REST)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fcnproto.load(path)
    (said,) = [str(one.message) for one in caught]
    for words in (
        str(path),
        "ConvolutionParameter.blur",
        "FillerParameter.spread",
        "LayerParameter.margin_inner_product_param (known to wy1iu/sphereface",
        "MarginInnerProduct (known to wy1iu/sphereface",
    ):
        assert words in said
    assert "\n" not in said


def test_what_does_not_need_an_unknown_layer_works(tmp_path: Path) -> None:
    net = fcnproto.load(write(tmp_path, DATA + CONV + STRANGE + BEHIND + REST))
    assert net.unknown == [("q", "MarginInnerProduct"), ("ip", "InnerProduct")]
    for one in (net, pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        outputs = one(data=IMAGE, blobs=["c"])
        assert list(outputs) == ["s", "c"]
        with pytest.raises(GraphError, match=r"'ip' can't be computed: layer 'q'.*MarginInnerProduct.*register_layer"):
            outputs["ip"]
        with pytest.raises(KeyError):
            outputs["nothing"]
    with pytest.raises(GraphError, match=r"blob 'q' can't be computed.*wy1iu/sphereface"):
        net(data=IMAGE, blobs=["q"])


def test_default_outputs_that_need_an_unknown_layer_are_an_error(tmp_path: Path) -> None:
    net = fcnproto.load(write(tmp_path, DATA + CONV + STRANGE + BEHIND))
    with pytest.raises(GraphError, match="no output can be computed: layer 'q'"):
        net(data=IMAGE)


def test_a_place_holder_keeps_the_blobs_of_its_name(tmp_path: Path) -> None:
    stored = caffe_pb2.NetParameter()
    for name, shape in (("c", (4, 3, 1, 1)), ("q", (5, 64)), ("ip", (2, 5))):
        layer = stored.layer.add(name=name, type="X")
        layer.blobs.add(data=np.arange(np.prod(shape))).shape.dim.extend(shape)
        if name != "q":
            layer.blobs.add(data=np.zeros(shape[0])).shape.dim.append(shape[0])
    (tmp_path / "w.caffemodel").write_bytes(stored.SerializeToString())
    path = write(tmp_path, DATA + CONV + STRANGE + BEHIND)
    for way in ("load", "copy_from"):
        net = fcnproto.load(path, tmp_path / "w.caffemodel" if way == "load" else None)
        if way == "copy_from":
            net.copy_from(tmp_path / "w.caffemodel")
        assert net.params["q"][0].tolist() == np.arange(320).reshape(5, 64).tolist()
        assert net.params["ip"][0].tolist() == np.arange(10).reshape(2, 5).tolist()
        net.save(tmp_path / "again.caffemodel")
        again = fcnproto.load(path, tmp_path / "again.caffemodel")
        assert torch.equal(again.params["q"][0], net.params["q"][0])


def test_an_unknown_loss_leaves_the_scores(tmp_path: Path) -> None:
    text = DATA + CONV + 'layer { name: "l" type: "WingLoss" bottom: "c" top: "l" }'
    net = fcnproto.load(write(tmp_path, text), phase="train")
    outputs = net(data=IMAGE)
    assert list(outputs) == ["c"]
    with pytest.raises(GraphError, match="its loss can't be computed: layer 'l'"):
        net.loss(outputs)


@pytest.mark.parametrize("kind", ['type: "Python" python_param { module: "their" layer: "Data" }', 'type: "TheirData"'])
def test_a_data_layer_that_cannot_run_is_not_needed_where_its_tops_are_given(tmp_path: Path, kind: str) -> None:
    text = f'layer {{ name: "d" {kind} top: "data" top: "label" }}' + CONV.replace("\n", "")
    with pytest.warns(FcnprotoWarning, match="hold their places"):
        net = fcnproto.load(write(tmp_path, text), shapes={"data": (1, 3, 4, 4)})
    assert net(data=IMAGE)["c"].shape == (1, 4, 4, 4)
    with pytest.raises(GraphError, match=r"input 'data'.* missing \(layer 'd'.*(--allow-python|register_layer)"):
        net()


def test_a_python_layer_that_may_not_run(tmp_path: Path) -> None:
    text = (
        DATA
        + CONV
        + (
            'layer { name: "p" type: "Python" bottom: "c" top: "p" loss_weight: 1 '
            'python_param { module: "pyloss" layer: "EuclideanLossLayer" } }'
        )
    )
    path = write(tmp_path, text)
    with pytest.warns(FcnprotoWarning, match=r"pyloss\.EuclideanLossLayer \(if you trust"):
        net = fcnproto.load(path)
    assert net.unknown == [("p", "Python")]
    assert list(net(data=IMAGE)) == ["c"]
    with pytest.raises(GraphError, match=r"pyloss\.EuclideanLossLayer is not a registered.*--allow-python"):
        net(data=IMAGE, blobs=["p"])
    path.write_text(text.replace("blur: 0.5", "").replace("spread: WIDE", ""))
    with pytest.raises(LayerError, match="--allow-python"):
        fcnproto.load(path, strict=True)


def test_strict_refuses_as_ever(tmp_path: Path) -> None:
    with pytest.raises(PrototxtError, match=r'net\.prototxt:2:\d+: ConvolutionParameter has no field "blur"'):
        fcnproto.load(write(tmp_path, DATA + CONV), strict=True)
    net = read_net(tmp_path / "net.prototxt", quiet=True)
    with pytest.raises(PrototxtError, match=r"ConvolutionParameter\.blur"):
        fcnproto.load(net, strict=True)
    with pytest.raises(UnsupportedLayerError, match="MarginInnerProduct"):
        fcnproto.load(
            write(tmp_path, DATA + 'layer { name: "q" type: "MarginInnerProduct" bottom: "data" top: "q" }'),
            strict=True,
        )


def test_a_setting_whose_value_nobody_knows_is_not_computed_as_another(tmp_path: Path) -> None:
    text = (
        DATA
        + 'layer { name: "p" type: "Pooling" bottom: "data" top: "p" pooling_param { pool: MEDIAN kernel_size: 2 } }'
    )
    with pytest.warns(FcnprotoWarning, match="PoolingParameter.pool: MEDIAN"):
        net = fcnproto.load(write(tmp_path, text))
    with pytest.raises(
        GraphError, match=r"layer 'p' \(Pooling\): pool: MEDIAN is a setting that nothing here computes"
    ):
        net(data=IMAGE)


TEXTS = [
    "frob { a: 1 b: \"x\\351\" 'y' c <d: -3.5e2, e: [1, 2]; f: [ {g: FOO}, {} ] > }",
    'layer { name: "a" blobs { strange: inf } pooling_param { pool: WAVES } }',
    'layer { transform_param { deep { deeper { deepest: true } } } new: [] other: "\\n" }',
]


@pytest.mark.parametrize("text", TEXTS)
def test_unknown_fields_are_written_as_they_were(text: str) -> None:
    net = parse(text, caffe_pb2.NetParameter, strict=False)
    written = format_message(net)
    again = parse(written, caffe_pb2.NetParameter, strict=False)
    assert again == net and format_message(again) == written
    copied = caffe_pb2.NetParameter()
    copied.CopyFrom(pickle.loads(pickle.dumps(net)))
    assert format_message(copied) == written
    squeezed = "".join(sign for sign in written if sign not in ' \n"')
    for words in ("b:x\\351'y'", "d:-3.5e2", "g:FOO", "strange:inf", "pool:WAVES", "deepest:true", "other:\\n"):
        assert (words in squeezed) == (words.replace("'", "").split(":")[0] + ":" in text)


def test_old_formats_keep_what_nobody_knows(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'frob: 1 layers { name: "a" type: WARP bottom: "x" top: "a" warp { by: 2 } } input: "x" input_dim: 1 input_dim: 1 input_dim: 1 input_dim: 1',
    )
    net = read_net(path)
    layer = net.layer[1]
    assert (layer.name, layer.type, unknown.kept(layer)) == ("a", "WARP", ["warp {\n  by: 2\n}"])
    assert unknown.kept(net) == ["frob: 1"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('layer { pooling_param { pool: MAX\n top: "x" }\n layer { name: "b" }', 'is a closing "}" missing above'),
        ("layer { foo { bar", 'expected ":"'),
        ("layer { foo 3 }", 'expected ":"'),
        ("layer { foo { bar: > } }", '"bar" takes a value'),
        ('layer { foo: "\\q" }', "escape"),
        ("base_lr: 1", "looks like a solver file"),
        ("a" + "{a" * 300, "more than 100 deep"),
    ],
)
def test_what_no_parser_reads_is_refused_all_the_same(text: str, words: str) -> None:
    with pytest.raises(PrototxtError, match="^<text>:\\d+:\\d+: ") as caught:
        parse(text, caffe_pb2.NetParameter, strict=False)
    assert words in str(caught.value)


def test_definitions_in_caffemodels_keep_unknown_fields(tmp_path: Path) -> None:
    net = fcnproto.load(write(tmp_path, DATA + CONV + STRANGE))
    net.save(tmp_path / "w.caffemodel")
    assert "margin_inner_product_param {" in format_message(net_definition(tmp_path / "w.caffemodel"))
    assert "blur: 0.5" in format_message(net_definition(tmp_path / "w.caffemodel"))


def test_unknown_fields_of_a_solver_are_told(tmp_path: Path) -> None:
    (tmp_path / "s.prototxt").write_text('net: "n" warmup: 3 test_iter: 1')
    with pytest.warns(
        FcnprotoWarning, match=r"s\.prototxt: unknown fields are kept without effect: SolverParameter.warmup"
    ):
        assert read_solver(tmp_path / "s.prototxt").net == "n"
    with pytest.raises(PrototxtError, match="warmup"):
        read_solver(tmp_path / "s.prototxt", strict=True)


AUTOENCODER = (
    'layer { name: "d" type: "Data" top: "data" data_param { source: "none" batch_size: 2 backend: LMDB } }\n'
    'layer { name: "flat" type: "Flatten" bottom: "data" top: "flat" }\n'
    'layer { name: "e" type: "InnerProduct" bottom: "data" top: "e" inner_product_param { num_output: 3 } }\n'
    'layer { name: "m" type: "ReLU" bottom: "e" top: "m" }\n'
    'layer { name: "o" type: "InnerProduct" bottom: "m" top: "o" inner_product_param { num_output: 20 } }\n'
    'layer { name: "l" type: "EuclideanLoss" bottom: "o" bottom: "flat" top: "l" }\n'
)


def test_a_size_never_stops_loading(tmp_path: Path) -> None:
    path = write(tmp_path, AUTOENCODER)
    net = fcnproto.load(path)
    assert [name for name, _ in net.unknown][:1] == ["e"]
    with pytest.raises(GraphError, match=r"shapes=.*--shape data=N,C,H,W"):
        net.plan("data")
    net.double()
    assert net(data=np.ones((2, 1, 4, 5)))["l"].shape == ()
    assert tuple(net.params["e"][0].shape) == (3, 20) and not net.unknown
    assert net.params["e"][0].dtype == torch.float64 and len(net.learnable) == 4
    net.save(tmp_path / "w.caffemodel")
    sized = fcnproto.load(path, tmp_path / "w.caffemodel")
    assert tuple(sized.params["e"][0].shape) == (3, 20) and torch.equal(
        sized.params["o"][0], net.params["o"][0].float()
    )
    other = fcnproto.load(path)
    other.copy_from(tmp_path / "w.caffemodel")
    ours, theirs = (one(data=np.ones((2, 1, 4, 5)))["l"] for one in (other, sized))
    assert torch.equal(ours, theirs)
    assert not fcnproto.load(path, shapes={"data": (2, 1, 4, 5)}).unknown


def test_settings_that_are_wrong_whatever_the_size_are_an_error_at_once(tmp_path: Path) -> None:
    text = AUTOENCODER.replace('type: "Flatten"', 'type: "Convolution" convolution_param { num_output: 2 }')
    with pytest.raises(GraphError, match=r"layer 'flat' .*kernel_size"):
        fcnproto.load(write(tmp_path, text))


DATABASE = 'layer { name: "d" type: "Data" top: "data" top: "label" data_param { source: "none" batch_size: 2 backend: LMDB } }\n'
FILES = (
    'layer { name: "h" type: "HDF5Data" top: "data" top: "density" hdf5_data_param { source: "none" batch_size: 2 } }\n'
)


def convolution(name: str, bottom: str, stride: int = 1) -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" convolution_param '
        f'{{ num_output: 4 kernel_size: 3 pad: 1 stride: {stride} weight_filler {{ type: "xavier" }} }} }}\n'
    )


def average(name: str, bottom: str, size: int) -> str:
    return (
        f'layer {{ name: "{name}" type: "Pooling" bottom: "{bottom}" top: "{name}" '
        f"pooling_param {{ pool: AVE kernel_size: {size} }} }}\n"
    )


PRODUCT = (
    'layer { name: "ip" type: "InnerProduct" bottom: "a" top: "ip" inner_product_param { num_output: 5 } }\n'
    'layer { name: "l" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "l" }\n'
)
UNSIZED = {
    # A map of densities smaller than the image; a classifier for one size; a pooling larger than what is assumed; a
    # Reshape and a Slice that what is assumed doesn't fit.
    "density": (
        FILES + convolution("c", "data", 2) + convolution("e", "c", 2) + 'layer { name: "l" type: "EuclideanLoss" bottom: "e" bottom: "density" top: "l" }',
        {"data": (2, 3, 16, 16), "density": (2, 4, 4, 4)},
    ),
    "classifier": (
        DATABASE + convolution("c", "data", 2) + convolution("e", "c") + average("a", "e", 8) + PRODUCT,
        {"data": (2, 3, 20, 20), "label": (2,)},
    ),
    "pooling": (
        DATABASE + convolution("c", "data") + average("a", "c", 300) + PRODUCT,
        {"data": (2, 3, 300, 300), "label": (2,)},
    ),
    "reshape": (
        DATABASE + 'layer { name: "a" type: "Reshape" bottom: "data" top: "a" reshape_param { shape { dim: 0 dim: 784 } } }' + PRODUCT,
        {"data": (2, 1, 28, 28), "label": (2,)},
    ),
    "slice": (
        FILES + 'layer { name: "s" type: "Slice" bottom: "data" top: "a" top: "b" slice_param { slice_point: 3 } }'
        + convolution("c", "a") + convolution("e", "b"),
        {"data": (2, 7, 8, 8)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSIZED)
def test_nets_that_only_data_size_load_and_compute(tmp_path: Path, name: str) -> None:
    text, sizes = UNSIZED[name]
    path = write(tmp_path, text)
    net = fcnproto.load(path, phase="train")
    assert net.unknown
    values = {blob: torch.zeros(shape) for blob, shape in sizes.items()}
    outputs = net(values)
    assert not net.unknown and outputs
    sized = fcnproto.load(path, phase="train", shapes=sizes)
    shapes = [[tuple(blob.shape) for one in (net, sized) for blob in one.params[layer]] for layer in sized.params]
    assert all(one[: len(one) // 2] == one[len(one) // 2 :] for one in shapes)
    net.save(tmp_path / "w.caffemodel")
    again = fcnproto.load(path, tmp_path / "w.caffemodel", phase="train")
    assert all(torch.equal(outputs[blob], value) for blob, value in again(values).items())


def test_an_assumed_number_of_channels_is_told_where_it_keeps_layers_waiting(tmp_path: Path) -> None:
    net = fcnproto.load(write(tmp_path, UNSIZED["pooling"][0]), phase="train")
    with pytest.raises(LayerError, match=r"set up for 3 channels.*'data' has; taken to be 3.*shapes="):
        net(data=torch.zeros(2, 1, 300, 300), label=torch.zeros(2))


def test_the_oldest_format_keeps_what_nobody_knows(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'input: "data" input_dim: 1 input_dim: 1 input_dim: 4 input_dim: 4 layers { layer { name: "c" type: "conv" '
        'num_output: 2 kernelsize: 3 strange: 4 } bottom: "data" top: "c" } '
        'layers { layer { name: "w" type: "warp" } bottom: "c" top: "w" }',
    )
    with pytest.warns(FcnprotoWarning, match=r"LayerParameter\.strange.*unknown types.*warp"):
        net = fcnproto.load(path)
    assert net.unknown == [("w", "warp")]
    assert net(data=np.ones((1, 1, 4, 4)), blobs=["c"])["c"].shape == (1, 2, 2, 2)


def test_layers_that_say_the_same_say_it_together(tmp_path: Path) -> None:
    one = (
        'layer {{ name: "s{0}" type: "Im2col" bottom: "data" top: "s{0}" '
        "convolution_param {{ kernel_size: 2 num_output: 3 }} pooling_param {{ kernel_size: 2 }} }}"
    )
    path = write(tmp_path, DATA + "".join(one.format(index) for index in range(40)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fcnproto.load(path)
    said = [str(each.message) for each in caught]
    assert len(said) == 2
    assert all(words.startswith("layers 's0', 's1', 's2', ... (Im2col): ") for words in said)


def test_what_other_forks_take_for_a_field_is_kept(tmp_path: Path) -> None:
    (tmp_path / "s.prototxt").write_text('net: "n" device_id: [0, 1]')
    with pytest.warns(FcnprotoWarning, match=r"SolverParameter\.device_id: \[0, 1\]"):
        assert read_solver(tmp_path / "s.prototxt").device_id == 0
    with pytest.raises(PrototxtError, match="takes one value, not a list"):
        read_solver(tmp_path / "s.prototxt", strict=True)
    text = "layer { transform_param { noise_param { prob: 1 } noise_param { prob: 2 } } }"
    net = parse(text, caffe_pb2.NetParameter, strict=False)
    assert " ".join(format_message(net).split()) == text
    with pytest.raises(PrototxtError, match="set twice"):
        parse(text, caffe_pb2.NetParameter)
    with pytest.raises(PrototxtError, match="set twice"):
        parse('layer { name: "a" name: "b" }', caffe_pb2.NetParameter, strict=False)


def test_sharing_that_an_assumed_size_contradicts_waits(tmp_path: Path) -> None:
    text = DATABASE + (
        'layer { name: "s" type: "Slice" bottom: "data" top: "x" top: "y" slice_param { slice_point: 1 } }\n'
        + convolution("c", "x").replace("convolution_param", 'param { name: "w" } convolution_param')
        + convolution("e", "y").replace("convolution_param", 'param { name: "w" } convolution_param')
    )
    net = fcnproto.load(write(tmp_path, text))
    assert net.unknown == [("e", "Convolution")]
    sized = fcnproto.load(tmp_path / "net.prototxt", shapes={"data": (2, 2, 4, 4)})
    assert not sized.unknown and sized.params["c"][0] is sized.params["e"][0]


def test_a_layer_of_another_fork_holds_its_place(tmp_path: Path) -> None:
    text = (
        DATA + 'layer { name: "r" type: "Input" top: "r" input_param { shape { dim: 1 dim: 5 } } }\n'
        'layer { name: "a" type: "ROIAlign" bottom: "data" bottom: "r" top: "a" roi_align_param { pooled_h: 2 } }\n'
    )
    with pytest.warns(FcnprotoWarning, match=r"'a' \(ROIAlign\): roi_align_param is another layer's"):
        net = fcnproto.load(write(tmp_path, text))
    assert net.unknown == [("a", "ROIAlign")]
    with pytest.raises(LayerError, match="roi_align_param"):
        fcnproto.load(tmp_path / "net.prototxt", strict=True)


def test_normalize_without_settings_is_ssds_unless_something_says_otherwise(tmp_path: Path) -> None:
    text = DATA + 'layer { name: "n" type: "Normalize" bottom: "data" top: "n" }\n'
    with pytest.warns(FcnprotoWarning, match=r"Normalize is another layer in several forks.*--dialect happynear"):
        net = fcnproto.load(write(tmp_path, text))
    assert len(net.params["n"]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "n" not in fcnproto.load(tmp_path / "net.prototxt", dialect="happynear").params
        assert "n" not in fcnproto.load(write(tmp_path, text.replace('top: "n"', 'top: "n" top: "norm"'))).params
        assert "n" in fcnproto.load(write(tmp_path, text), dialect="ssd").params


def test_hints_name_what_is_meant() -> None:
    for word, meant in (("conv_param", "convolution_param"), ("interp_parm", "interp_param"), ("flip_prm", None)):
        with pytest.raises(PrototxtError) as caught:
            parse(f"layer {{ {word} {{ }} }}", caffe_pb2.NetParameter)
        assert (f'did you mean "{meant}"?' in str(caught.value)) == (meant is not None), caught.value
