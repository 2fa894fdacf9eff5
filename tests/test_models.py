"""The published nets' definitions: their files are current, equal the published ones, and scale to other sizes."""

from __future__ import annotations

import ast
import re

import golden_cases
import pytest

from fcnproto import zoo
from fcnproto.netspec import NetSpec, layers
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse_file

fcn, sources, write = (zoo.definitions(name) for name in ("fcn", "sources", "write"))
catalog = zoo.definitions("catalog")

PUBLISHED = golden_cases.SHARED / "fcn"
PUBLISHED_FILES = sorted(str(file.relative_to(PUBLISHED)) for file in PUBLISHED.glob("*/*.prototxt"))
NAMES = [model.name for model in catalog.models()]

# The slim nets of the golden group `fcn`: all stages of VGG16 (or CaffeNet) divided by 16, but at least 4.
SLIM = (4, 8, 16, 32, 32, 32)
SLIM_CAFFENET = (6, 16, 24, 24, 16, 32)


def read(path) -> caffe_pb2.NetParameter:
    return parse_file(path, caffe_pb2.NetParameter)


def test_written_files_are_current() -> None:
    root = zoo.path("voc-fcn8s", "deploy").parents[1]
    texts = write.files()
    stale = [name for name, text in texts.items() if (root / name).read_text(encoding="utf-8") != text]
    assert not stale, "run `make models`"
    on_disk = {f"{name}/{file.name}" for name in NAMES for file in (root / name).iterdir()}
    assert len(on_disk) == 15 * 5 and on_disk <= set(texts)


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the reference folder is missing")
@pytest.mark.parametrize("file", PUBLISHED_FILES or ["none"])
def test_equals_the_published_file(file: str) -> None:
    name, kind = file.removesuffix(".prototxt").split("/")
    message = caffe_pb2.SolverParameter if kind == "solver" else caffe_pb2.NetParameter
    ours, theirs = parse_file(zoo.path(name, kind), message), parse_file(PUBLISHED / file, message)
    if kind == "solver":
        assert ours == theirs
        return
    assert len(ours.layer) == len(theirs.layer)
    for our_layer, their_layer in zip(ours.layer, theirs.layer, strict=True):
        assert our_layer == their_layer
    assert ours == theirs


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the reference folder is missing")
def test_every_published_file_is_compared() -> None:
    assert len(PUBLISHED_FILES) == 46
    assert sorted({file.split("/")[0] for file in PUBLISHED_FILES}) == sorted(NAMES)


# Facts of the published nets that hold without the reference folder: layers, crop offsets in order, solver rate.
FACTS = {
    "voc-fcn32s": (42, [19], 1e-10),
    "voc-fcn16s": (46, [5, 27], 1e-12),
    "voc-fcn8s": (50, [5, 9, 31], 1e-14),
    "voc-fcn8s-atonce": (52, [5, 9, 31], 1e-10),
    "voc-fcn-alexnet": (26, [18], 1e-4),
    "nyud-fcn32s-color": (42, [19], 1e-10),
    "nyud-fcn32s-hha": (42, [19], 1e-10),
    "nyud-fcn32s-color-d": (43, [19], 1e-10),
    "nyud-fcn32s-color-hha": (81, [19], 1e-12),
    "siftflow-fcn32s": (46, [19, 19], 1e-10),
    "siftflow-fcn16s": (54, [5, 27] * 2, 1e-12),
    "siftflow-fcn8s": (62, [5, 9, 31] * 2, 1e-12),
    "pascalcontext-fcn32s": (42, [19], 1e-10),
    "pascalcontext-fcn16s": (46, [5, 27], 1e-12),
    "pascalcontext-fcn8s": (50, [5, 9, 31], 1e-14),
}


@pytest.mark.parametrize("name", NAMES)
def test_layers_offsets_and_rate(name: str) -> None:
    count, offsets, rate = FACTS[name]
    for kind in ("train", "val"):
        net = read(zoo.path(name, kind))
        assert len(net.layer) == count
        assert [list(layer.crop_param.offset) for layer in net.layer if layer.type == "Crop"] == [[o] for o in offsets]
    solver = parse_file(zoo.path(name, "solver"), caffe_pb2.SolverParameter)
    assert solver.base_lr == pytest.approx(rate)
    assert zoo.path(name, "train").name == solver.train_net
    assert zoo.path(name, "val").name == solver.test_net[0]


@pytest.mark.parametrize("name", NAMES)
def test_deploy_is_the_test_net_without_data_dropout_and_loss(name: str) -> None:
    deploy, tested = read(zoo.path(name, "deploy")), read(zoo.path(name, "val"))
    kept = [layer for layer in tested.layer if layer.type not in ("Python", "Dropout", "SoftmaxWithLoss")]
    assert list(deploy.layer[1:]) == kept
    fed = deploy.layer[0]
    facts = zoo.info(name)
    assert fed.type == "Input"
    assert list(fed.top) == [entry.blob for entry in facts.inputs] == list(tested.layer[0].top)[: len(fed.top)]
    assert [shape.dim[1] for shape in fed.input_param.shape] == [len(entry.channels) for entry in facts.inputs]
    read_blobs = {bottom for layer in deploy.layer for bottom in layer.bottom}
    outputs = {top for layer in deploy.layer for top in layer.top} - read_blobs
    assert outputs == {entry.blob for entry in facts.outputs}


@pytest.mark.parametrize("name", NAMES)
def test_data_layers_read_as_python_literals(name: str) -> None:
    for kind, split in (("train", ("train", "trainval")), ("val", ("val", "test", "seg11valid"))):
        param = ast.literal_eval(read(zoo.path(name, kind)).layer[0].python_param.param_str)
        assert param["split"] in split and param["seed"] == 1337


def golden_net(name: str) -> caffe_pb2.NetParameter:
    return read(golden_cases.load("fcn", name).folder / "net.prototxt")


BUILDERS = {
    "voc_fcn32s": (fcn.fcn32s, 21, SLIM),
    "voc_fcn16s": (fcn.fcn16s, 21, SLIM),
    "voc_fcn8s": (fcn.fcn8s, 21, SLIM),
    "voc_fcn8s_atonce": (fcn.fcn8s_at_once, 21, SLIM),
    "voc_fcn_alexnet": (fcn.fcn_alexnet, 21, SLIM_CAFFENET),
    "nyud_fcn32s_color_d": (fcn.fcn32s_early_fusion, 40, SLIM),
    "nyud_fcn32s_color_hha": (fcn.fcn32s_late_fusion, 40, SLIM),
    "siftflow_fcn8s": (fcn.fcn8s, {"sem": 33, "geo": 3}, SLIM),
    "pascalcontext_fcn8s": (fcn.fcn8s, 60, SLIM),
}


def window(layer: caffe_pb2.LayerParameter) -> tuple:
    """The settings of a convolution that make its shape, defaults filled in."""
    param = layer.convolution_param
    lists = [list(param.kernel_size), list(param.pad) or [0], list(param.stride) or [1]]
    return param.num_output, param.group, param.bias_term, *lists


@pytest.mark.parametrize("name", BUILDERS)
def test_slim_nets_have_the_recorded_layers(name: str) -> None:
    build, classes, widths = BUILDERS[name]
    recorded = {layer.name: layer for layer in golden_net(f"{name}_train").layer}
    net = NetSpec()
    tops = [top for layer in recorded.values() if layer.type == "Input" for top in layer.top]
    for top in tops:
        net[top] = layers.Input()
    built = {layer.name: layer for layer in build(net, classes, widths).to_proto().layer if layer.type != "Input"}
    assert set(built) == {layer.name for layer in recorded.values() if layer.type != "Input"}
    for key, layer in built.items():
        ours, theirs = layer, recorded[key]
        assert (ours.type, list(ours.bottom), list(ours.top)) == (theirs.type, list(theirs.bottom), list(theirs.top))
        assert window(ours) == window(theirs), key
        assert list(ours.crop_param.offset) == list(theirs.crop_param.offset)


def test_inputs_take_names_and_shapes() -> None:
    net = fcn.fcn8s(sources.inputs({"data": (2, 3, 64, 96)}), classes=9, widths=SLIM).to_proto()
    assert list(net.layer[0].input_param.shape[0].dim) == [2, 3, 64, 96]
    scores = [layer for layer in net.layer if re.match("score_(fr|pool[34])$", layer.name)]
    assert [layer.convolution_param.num_output for layer in scores] == [9, 9, 9]
    assert not {"Dropout", "SoftmaxWithLoss"} & {layer.type for layer in net.layer}
