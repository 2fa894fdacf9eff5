"""Coordinate maps against those recorded from pycaffe, and the refusals."""

from fractions import Fraction

import golden_cases
import numpy as np
import pytest
from google.protobuf import text_format

import fcnproto.net.net  # noqa: F401  registers the layer types
from fcnproto import GraphError, zoo
from fcnproto.graph import build_graph
from fcnproto.graph.coord_map import CoordMap, coord_map_from_to, crop, layer_map, link
from fcnproto.layers.registry import lookup
from fcnproto.netspec import NetSpec, layers
from fcnproto.netspec import crop as crop_layer
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse_file

CASES = [name for name in golden_cases.names("transform") if name.startswith("coord_map_")]

# Refusals of the recorded crops, by the beginning of pycaffe's message, and the words of ours.
REFUSALS = {
    "scale mismatch": "resolutions differ",
    "cannot crop negative": "begin outside",
    "cannot crop noninteger": "not a whole number",
    "Could not compute": "no chain of spatial layers",
    "'bool' object": "no convolution or pooling",
}


def linked(text: str) -> dict:
    net = caffe_pb2.NetParameter()
    text_format.Parse(text, net)
    return link(net)


@pytest.mark.parametrize("name", CASES)
def test_recorded_maps_and_crops(name: str) -> None:
    case = golden_cases.load("transform", name)
    blobs = linked((case.folder / "net.prototxt").read_text())
    assert case.facts["pairs"]
    for pair in case.facts["pairs"]:
        start, end = blobs[pair["from"]], blobs[pair["to"]]
        if "error" in pair:
            with pytest.raises(GraphError, match="no chain of spatial layers"):
                coord_map_from_to(start, end)
        else:
            found = coord_map_from_to(start, end)
            assert found.axis == pair["axis"]
            np.testing.assert_array_equal(*np.broadcast_arrays([float(a) for a in found.scale], pair["scale"]))
            np.testing.assert_array_equal(*np.broadcast_arrays([float(b) for b in found.shift], pair["shift"]))
        if "crop_offset" in pair:
            derived = crop(start, end)
            assert (derived.axis, list(derived.offset)) == (pair["crop_axis"], pair["crop_offset"])
        else:
            words = next(ours for theirs, ours in REFUSALS.items() if pair["crop_message"].startswith(theirs))
            with pytest.raises(GraphError, match=words):
                crop(start, end)


def test_all_recorded_kinds_of_refusal_occur() -> None:
    messages = {
        pair["crop_message"].split(" (")[0]
        for name in CASES
        for pair in golden_cases.load("transform", name).facts["pairs"]
        if "crop_message" in pair
    }
    assert len(messages) == len(REFUSALS)


def one(text: str) -> CoordMap | None:
    return layer_map(text_format.Parse(text, caffe_pb2.LayerParameter()))


def test_dilation_widens_the_window() -> None:
    found = one('type: "Convolution" convolution_param { kernel_size: 3 dilation: 4 pad: 1 stride: 2 axis: 2 }')
    assert found == CoordMap(2, (Fraction(1, 2),), (Fraction(1 - 4, 2),), windowed=True)


def test_deconvolution_inverts_the_convolution() -> None:
    settings = "convolution_param { kernel_size: 5 pad: 1 stride: 3 }"
    down, up = one(f'type: "Convolution" {settings}'), one(f'type: "Deconvolution" {settings}')
    assert down is not None and down.inverse() == up


def test_crop_without_offset_and_unknown_types() -> None:
    assert one('type: "Crop"') == CoordMap(1)
    assert one('type: "InnerProduct"') is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("kernel_h: 3 kernel_w: 3", "uses kernel_h"),
        ("kernel_size: 3 stride_w: 2", "uses stride_w"),
        ("pad: 1", "no kernel_size"),
    ],
)
@pytest.mark.parametrize(("kind", "message"), [("Convolution", "convolution_param"), ("Pooling", "pooling_param")])
def test_windows_that_have_no_map(kind: str, message: str, settings: str, words: str) -> None:
    with pytest.raises(GraphError, match=f"{kind} layer 'w'.*{words}|{kind} layer 'w' {words}"):
        one(f'name: "w" type: "{kind}" {message} {{ {settings} }}')


def test_different_axes_are_refused() -> None:
    blobs = linked(
        'layer { name: "data" type: "Input" top: "data" }'
        'layer { name: "a" type: "Convolution" bottom: "data" top: "a" convolution_param { kernel_size: 3 } }'
        'layer { name: "b" type: "Convolution" bottom: "a" top: "b" convolution_param { kernel_size: 3 axis: 2 } }'
    )
    with pytest.raises(GraphError, match=r"different axes \(2 and 1\)"):
        coord_map_from_to(blobs["b"], blobs["data"])


def test_two_and_three_spatial_axes_are_refused() -> None:
    with pytest.raises(GraphError, match="2 and 3 spatial axes"):
        CoordMap(1, (Fraction(2),) * 2).compose(CoordMap(1, (Fraction(2),) * 3))


def test_in_place_layers_and_crop_references() -> None:
    # The Crop's reference is another net's end of the world: it must not be walked.
    blobs = linked(
        'layer { name: "data" type: "Input" top: "data" top: "other" }'
        'layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { kernel_size: 1 pad: 7 } }'
        'layer { name: "r" type: "ReLU" bottom: "c" top: "c" }'
        'layer { name: "k" type: "Crop" bottom: "c" bottom: "other" top: "k" crop_param { offset: 3 } }'
    )
    assert crop(blobs["k"], blobs["data"]).offset == [4]
    with pytest.raises(GraphError, match="no chain of spatial layers"):
        coord_map_from_to(blobs["k"], blobs["other"])


def test_blobs_of_a_layer_graph() -> None:
    # The graph puts Split layers after pool3, pool4 and data; the maps pass through them.
    net = parse_file(zoo.path("voc-fcn8s", "deploy"), caffe_pb2.NetParameter)
    graph = build_graph(net, lookup, "test")
    by_name = {node.name: node for node in graph.nodes}
    assert any(node.type == "Split" for node in graph.nodes)
    for name, offset in (("score_pool4c", 5), ("score_pool3c", 9), ("score", 31)):
        start, reference = by_name[name].bottoms
        assert list(crop(start, reference).offset) == [offset]


def test_link_names_a_missing_bottom() -> None:
    with pytest.raises(GraphError, match="layer 'r' \\(ReLU\\): no earlier layer writes its bottom 'x'"):
        linked('layer { name: "r" type: "ReLU" bottom: "x" top: "y" }')


def test_a_hundred_layers_that_fork_and_join_are_walked_once() -> None:
    # The number of paths doubles at each Eltwise; the walk must not follow them all.
    net = NetSpec()
    net.data = top = layers.Input()
    for _ in range(100):
        top = layers.Eltwise(top, layers.ReLU(top))
    net.up = layers.Convolution(top, kernel_size=1, pad=2)
    net.score = crop_layer(net.up, net.data)
    assert net.to_proto().layer[-1].crop_param == caffe_pb2.CropParameter(axis=2, offset=[2])
