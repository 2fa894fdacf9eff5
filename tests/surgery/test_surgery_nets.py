"""Surgery on definitions: classification nets made convolutional, heads, numbers of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_surgery_weights import randomise

import fcnproto
from fcnproto import surgery, zoo
from fcnproto.errors import GraphError, UsageError
from fcnproto.netspec import NetSpec
from fcnproto.netspec import layers as L
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

fcn, sources, googlenet = (zoo.definitions(name) for name in ("fcn", "sources", "googlenet"))
SLIM = (4, 8, 16, 32, 32, 32)


def vgg(size: int = 64) -> caffe_pb2.NetParameter:
    net = NetSpec()
    net.data = L.Input(shape={"dim": [10, 3, size, size]})
    top = net.data
    for stage, (width, depth) in enumerate(zip(SLIM, (2, 2, 3, 3, 3), strict=False), 1):
        for index in range(1, depth + 1):
            top = net[f"conv{stage}_{index}"] = L.Convolution(top, num_output=width, kernel_size=3, pad=1)
            top = net[f"relu{stage}_{index}"] = L.ReLU(top, in_place=True)
        top = net[f"pool{stage}"] = L.Pooling(top, pool="MAX", kernel_size=2, stride=2)
    for name in ("fc6", "fc7"):
        top = net[name] = L.InnerProduct(top, num_output=24)
        top = net[f"relu{name[2]}"] = L.ReLU(top, in_place=True)
        top = net[f"drop{name[2]}"] = L.Dropout(top, in_place=True)
    net.fc8 = L.InnerProduct(top, num_output=7)
    net.prob = L.Softmax(net.fc8)
    return net.to_proto()


def google(slimness: int = 16) -> caffe_pb2.NetParameter:
    net = sources.inputs({"data": (1, 3, 224, 224)})
    googlenet.classifier(net, googlenet.features(net, net.data, slimness=slimness), 7)
    return net.to_proto()


RESIDUAL = """
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  data_param { source: "nowhere" batch_size: 4 } }
layer { name: "data" type: "Input" top: "data" include { phase: TEST }
  input_param { shape { dim: 2 dim: 3 dim: 20 dim: 28 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 6 kernel_size: 3 stride: 2 pad: 1 bias_term: false } }
layer { name: "branch" type: "Convolution" bottom: "conv" top: "branch" convolution_param { num_output: 6 kernel_size: 1 } }
layer { name: "sum" type: "Eltwise" bottom: "conv" bottom: "branch" top: "sum" }
layer { name: "pool" type: "Pooling" bottom: "sum" top: "pool" pooling_param { pool: AVE global_pooling: true } }
layer { name: "flat" type: "Flatten" bottom: "pool" top: "flat" }
layer { name: "drop" type: "Dropout" bottom: "flat" top: "flat" }
layer { name: "fc" type: "InnerProduct" bottom: "flat" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "aux" type: "InnerProduct" bottom: "conv" top: "aux" include { phase: TRAIN }
  inner_product_param { num_output: 5 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" include { phase: TRAIN } }
"""


def converted(net: caffe_pb2.NetParameter, **options: Any) -> tuple[Any, Any, surgery.Report]:
    old = randomise(fcnproto.load(net))
    with torch.no_grad():
        for blobs in old.params.values():
            for blob in blobs:
                blob.mul_(0.3)
    definition, report = surgery.convolutionalise(net, **options)
    new = fcnproto.load(definition)
    surgery.transplant(new, old)
    return old, new, report


def test_vgg_gives_the_same_answer_as_a_map() -> None:
    old, new, report = converted(vgg())
    data = torch.randn(2, 3, 64, 64)
    expected = old(data, blobs=["fc8"])["fc8"]
    torch.testing.assert_close(
        new(data)["fc8"][:, :, 0, 0], expected, rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max())
    )
    assert new(torch.randn(1, 3, 128, 96))["fc8"].shape == (1, 7, 3, 2)
    assert report.layers("changed") == ["fc6", "fc7", "fc8"] and report.layers("dropped") == ["prob"]
    assert tuple(new.params["fc6"][0].shape) == (24, 32, 2, 2)
    assert old.inputs == new.inputs == ["data"]


@pytest.mark.parametrize(("net", "size", "score"), [(google(), (224, 224), "loss3/classifier"), (None, (20, 28), "fc")])
def test_mean_of_the_map_where_an_average_was_dropped(net: Any, size: tuple[int, int], score: str) -> None:
    old, new, report = converted(net or parse(RESIDUAL, caffe_pb2.NetParameter))
    data = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected, found = old(data, blobs=[score])[score], new(data)[score]
    assert found.ndim == 4 and found.shape[2:] != (1, 1)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.mean(dim=(2, 3)), expected, rtol=1e-4, atol=1e-5 * scale)
    assert {"pool5/7x7_s1", "prob"} <= set(report.layers("dropped")) or {"pool", "flat"} <= set(
        report.layers("dropped")
    )
    assert not any(layer.type in ("InnerProduct", "Data") for layer in new.layers)


def test_padding_and_dropping_the_classifier() -> None:
    net, report = surgery.convolutionalise(vgg(), pad=100, classifier=False)
    assert net.layer[1].convolution_param.pad == [100] and net.layer[-1].name == "drop7"
    assert (
        "changed  conv1_1: pad 100" in report.lines() and "dropped  fc8: Convolution: the classifier" in report.lines()
    )


def test_what_is_no_classification_net() -> None:
    with pytest.raises(GraphError, match="no convolution or inner product"):
        surgery.convolutionalise(parse(RESIDUAL.split('layer { name: "conv"')[0], caffe_pb2.NetParameter))
    turned = vgg()
    next(layer for layer in turned.layer if layer.name == "fc6").inner_product_param.transpose = True
    with pytest.raises(GraphError, match="'fc6' .* with transpose"):
        surgery.convolutionalise(turned)


def test_head_on_vgg_is_the_published_net() -> None:
    """From a classification net to FCN-32s by surgery alone: the same layers as the definition's."""
    base, _ = surgery.convolutionalise(vgg(224), pad=100, classifier=False)
    made, _ = surgery.add_scores(base, 21)
    published = fcn.fcn32s(sources.inputs({"data": (1, 3, 500, 500)}), 21, (*SLIM[:5], 24)).to_proto()
    ours = {layer.name: layer for layer in made.layer}
    for layer in published.layer:
        if layer.name in ("score_fr", "upscore", "score"):
            assert ours[layer.name] == layer
        elif layer.type == "Convolution":
            settings = ours[layer.name].convolution_param
            assert settings.kernel_size == layer.convolution_param.kernel_size
            assert list(settings.pad or [0]) == list(layer.convolution_param.pad)
    with pytest.raises(GraphError, match="pad more"):
        surgery.add_scores(surgery.convolutionalise(vgg(224), pad=10, classifier=False)[0], 21)


@pytest.mark.parametrize("size", [(224, 224), (97, 131), (33, 64), (512, 65)])
def test_head_on_googlenet_covers_the_image(size: tuple[int, int]) -> None:
    base, _ = surgery.convolutionalise(google(64), classifier=False)
    net = fcnproto.load(surgery.add_scores(base, 4)[0])
    assert net(torch.zeros(1, 3, *size))["score"].shape == (1, 4, *size)


def test_set_classes() -> None:
    net = fcn.fcn8s_at_once(sources.inputs({"data": (1, 3, 64, 64), "label": (1, 1, 64, 64)}), 21, SLIM).to_proto()
    changed, report = surgery.set_classes(net, 5)
    expected = fcn.fcn8s_at_once(sources.inputs({"data": (1, 3, 64, 64), "label": (1, 1, 64, 64)}), 5, SLIM).to_proto()
    assert changed == expected
    assert set(report.layers("changed")) == {
        "score_fr", "score_pool4", "score_pool3", "upscore2", "upscore_pool4", "upscore8",
    }  # fmt: skip


def test_set_classes_of_several_tasks_and_a_classifier() -> None:
    shapes = {"data": (1, 3, 64, 64), "sem": (1, 1, 64, 64), "geo": (1, 1, 64, 64)}
    net = fcn.fcn16s(sources.inputs(shapes), {"sem": 33, "geo": 3}, SLIM).to_proto()
    changed, _ = surgery.set_classes(net, {"score_sem": 4})
    assert changed == fcn.fcn16s(sources.inputs(shapes), {"sem": 4, "geo": 3}, SLIM).to_proto()
    with pytest.raises(UsageError, match="score blobs score_sem, score_geo"):
        surgery.set_classes(net, 4)
    with pytest.raises(UsageError, match="'score' is no score blob"):
        surgery.set_classes(net, {"score": 4})
    changed, report = surgery.set_classes(vgg(), 3)
    assert report.layers("changed") == ["fc8"] and fcnproto.load(changed).params["fc8"][0].shape == (3, 24)


def test_published_train_nets_keep_their_data_layers() -> None:
    """Python layers without bottoms are data: their tops are no scores, and they give way to an Input."""
    spec = sources.sbd("train")
    net = fcn.fcn16s(spec, 21, SLIM).to_proto()
    changed, _ = surgery.set_classes(net, 5)
    assert changed == fcn.fcn16s(sources.sbd("train"), 5, SLIM).to_proto()
    del net.layer[-1]  # without the loss, the outputs are the scores
    assert surgery.set_classes(net, 5)[0].layer[-2].convolution_param.num_output == 5


TRAIN_VAL = """
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN } data_param { source: "a" batch_size: 4 } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST } transform_param { crop_size: 32 }
  data_param { source: "b" batch_size: 2 } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 4 kernel_size: 3 pad: 1 stride: 2 } }
layer { name: "aux/pool" type: "Pooling" bottom: "conv" top: "aux/pool" pooling_param { pool: AVE kernel_size: 5 stride: 3 } }
layer { name: "aux/fc" type: "InnerProduct" bottom: "aux/pool" top: "aux/fc" inner_product_param { num_output: 5 } }
layer { name: "aux/loss" type: "SoftmaxWithLoss" bottom: "aux/fc" bottom: "label" top: "aux/loss" loss_weight: 0.3 }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: AVE kernel_size: 16 stride: 1 } }
layer { name: "drop" type: "Dropout" bottom: "pool" top: "pool" }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "fc" bottom: "label" top: "accuracy" include { phase: TEST } }
"""


def test_a_train_val_net_with_auxiliary_classifiers() -> None:
    """As classification nets are trained: the data need not be there, the auxiliary head goes."""
    definition = parse(TRAIN_VAL, caffe_pb2.NetParameter)
    net, report = surgery.convolutionalise(definition)
    kept = [(layer.name, layer.type, list(layer.bottom)) for layer in net.layer]
    assert kept == [
        ("data", "Input", []),
        ("conv", "Convolution", ["data"]),
        ("drop", "Dropout", ["conv"]),
        ("fc", "Convolution", ["conv"]),
    ]
    assert list(net.layer[0].input_param.shape[0].dim) == [1, 3, 32, 32]
    assert set(report.layers("dropped")) == {"aux/pool", "aux/fc", "aux/loss", "pool", "loss", "accuracy"}
    assert fcnproto.load(net)(torch.zeros(1, 3, 40, 50))["fc"].shape == (1, 5, 20, 25)
    definition.layer[1].transform_param.ClearField("crop_size")
    with pytest.raises(GraphError, match=r"'data' \(Data\): nothing tells the shape of its top 'data'"):
        surgery.convolutionalise(definition)
    assert len(surgery.convolutionalise(definition, shapes={"data": (1, 3, 32, 32)})[0].layer) == 4


def normalised(**norm: Any) -> caffe_pb2.NetParameter:
    """A convolution with BatchNorm and Scale in place, one with BatchNorm out of place, one whose own value is read."""
    net = NetSpec()
    net.data = L.Input(shape={"dim": [2, 3, 9, 8]})
    net.first = L.Convolution(net.data, num_output=4, kernel_size=3, bias_term=False)
    net.first_norm = L.BatchNorm(net.first, in_place=True, **norm)
    net.first_scale = L.Scale(net.first_norm, in_place=True, bias_term=True)
    net.relu = L.ReLU(net.first_scale, in_place=True)
    net.second = L.Convolution(net.relu, num_output=5, kernel_size=1)
    net.second_norm = L.BatchNorm(net.second)
    net.third = L.Convolution(net.second_norm, num_output=5, kernel_size=1)
    net.third_norm = L.BatchNorm(net.third)
    net.sum = L.Eltwise(net.third, net.third_norm)
    return net.to_proto()


def test_fold_normalisation(tmp_path: Path) -> None:
    definition = normalised()
    net = fcnproto.load(definition)
    randomise(net)
    for name in ("first_norm", "second_norm", "third_norm"):
        net.params[name][1].uniform_(0.5, 2)
        net.params[name][2].fill_(1.5)
    net.save(tmp_path / "net.caffemodel")
    folded, made, report = surgery.fold_normalisation(definition, tmp_path / "net.caffemodel")
    assert [layer.name for layer in folded.layer] == ["data", "first", "relu", "second", "third", "third_norm", "sum"]
    assert folded.layer[3].top[0] == "second_norm" and folded.layer[1].convolution_param.bias_term
    assert report.layers("dropped") == ["first_norm", "first_scale", "second_norm"]
    x = torch.randn(2, 3, 9, 8)
    with torch.no_grad():
        expected, found = net(data=x)["sum"], made(data=x)["sum"]
    assert float((expected - found).abs().max() / expected.abs().max()) < 1e-5
    again = fcnproto.load(folded)
    made.save(tmp_path / "folded.caffemodel")
    again.copy_from(tmp_path / "folded.caffemodel")
    with torch.no_grad():
        assert torch.equal(again(data=x)["sum"], found)


def test_fold_normalisation_leaves_statistics_of_the_batch_alone(tmp_path: Path) -> None:
    definition = normalised(use_global_stats=False)
    fcnproto.load(definition).save(tmp_path / "net.caffemodel")
    _, _, report = surgery.fold_normalisation(definition, tmp_path / "net.caffemodel")
    assert report.layers("dropped") == ["second_norm"]
    plain = vgg()
    fcnproto.load(plain).save(tmp_path / "plain.caffemodel")
    with pytest.raises(GraphError, match="no BatchNorm directly follows a convolution"):
        surgery.fold_normalisation(plain, tmp_path / "plain.caffemodel")
