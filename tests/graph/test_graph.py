"""The layer graph: filtering, splits, in-place blobs, counts and the errors that name what is wrong."""

from __future__ import annotations

import pytest

import fcnproto.net.net  # noqa: F401  registers every layer type
from fcnproto.errors import GraphError, UnsupportedLayerError
from fcnproto.graph import Graph, build_graph, net_state
from fcnproto.layers.registry import lookup
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse


def build(text: str, phase: str = "test", **options: object) -> Graph:
    return build_graph(parse(text, caffe_pb2.NetParameter), lookup, phase, **options)  # type: ignore[arg-type]


INPUT = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 dim: 4 dim: 4 } } }\n'


def layer(name: str, kind: str, bottoms: str = "", tops: str = "", more: str = "") -> str:
    parts = [f'bottom: "{b}"' for b in bottoms.split()] + [f'top: "{t}"' for t in tops.split()]
    return f'layer {{ name: "{name}" type: "{kind}" {" ".join(parts)} {more} }}\n'


def test_split_names_and_readers() -> None:
    graph = build(
        INPUT + layer("a", "TanH", "x", "a") + layer("s", "Eltwise", "a x", "s") + layer("t", "TanH", "a", "t")
    )
    names = [node.name for node in graph.nodes]
    assert names == ["x", "x_x_0_split", "a", "a_a_0_split", "s", "t"]
    assert [blob.name for blob in graph.nodes[4].bottoms] == ["a_a_0_split_0", "x_x_0_split_1"]
    assert graph.outputs == ["s", "t"]


def test_automatic_splits_are_told_by_all_that_caffe_sets() -> None:
    own = INPUT + layer("my_split", "Split", "x", "x_0 x_1") + layer("t", "TanH", "x_0", "t")
    assert not any(node.automatic for node in build(own).nodes)
    of_that_name = INPUT + layer("x_x_0_split", "Split", "x", "x_0 x_1") + layer("t", "TanH", "x_0", "t")
    assert not any(node.automatic for node in build(of_that_name).nodes)
    stored = INPUT + layer("x_x_0_split", "Split", "x", "x_x_0_split_0 x_x_0_split_1")
    assert [node.name for node in build(stored).nodes if node.automatic] == ["x_x_0_split"]
    inserted = INPUT + layer("a", "TanH", "x", "a") + layer("b", "TanH", "x", "b")
    assert [node.name for node in build(inserted).nodes if node.automatic] == ["x_x_0_split"]


def test_split_after_an_in_place_chain_takes_the_last_layers_name() -> None:
    graph = build(
        INPUT
        + layer("c", "TanH", "x", "zz")
        + layer("r", "ReLU", "zz", "zz")
        + layer("p", "TanH", "zz", "p")
        + layer("q", "TanH", "zz", "q")
    )
    assert "zz_r_0_split" in [node.name for node in graph.nodes]
    assert graph.blob("zz").producer.name == "r"


def test_outputs_are_in_byte_order() -> None:
    graph = build(INPUT + layer("s", "Slice", "x", "b B"))
    assert graph.outputs == ["B", "b"]


def test_loss_weight_counts_as_a_use_and_moves_to_the_split() -> None:
    label = INPUT.replace('"x"', '"y"')
    graph = build(
        INPUT + label + layer("l", "EuclideanLoss", "x y", "l", "loss_weight: 0.5") + layer("m", "Power", "l", "m")
    )
    assert graph.outputs == ["l_l_0_split_0", "m"]
    assert [(blob.name, weight) for blob, weight in graph.weighted()] == [("l", 1.0), ("l_l_0_split_0", 0.5)]


def test_a_loss_layer_without_top_gets_an_automatic_one() -> None:
    graph = build(INPUT + INPUT.replace('"x"', '"y"') + layer("l", "EuclideanLoss", "x y"))
    assert graph.outputs == []
    assert [(blob.name, weight) for blob, weight in graph.weighted()] == [("(automatic)", 1.0)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (layer("a", "TanH", "y", "a"), ["'a'", "bottom 0", "'y'", "no earlier layer"]),
        (INPUT + layer("a", "TanH", "z", "a") + layer("b", "TanH", "x", "z"), ["later layer"]),
        (INPUT + layer("aa", "TanH", "x", "pool3") + layer("b", "TanH", "pool33", "b"), ['did you mean "pool3"']),
        (INPUT + layer("a", "TanH", "x", "a") + layer("b", "TanH", "x", "a"), ["'b'", "'a'", "already"]),
        (INPUT + layer("a", "TanH", "x", "b") + layer("c", "ReLU", "x", "x"), ["already"]),
        (INPUT + layer("a", "AbsVal", "x", "x"), ["in place"]),
        (INPUT + layer("a", "TanH", "x x", "a"), ["'a'", "2 bottoms", "expected 1"]),
        (INPUT + layer("a", "Eltwise", "x", "a"), ["1 bottom,", "at least 2"]),
        (INPUT + layer("a", "TanH", "x", "a b"), ["2 tops", "expected 1"]),
        (INPUT + layer("a", "TanH", "x", "a", "loss_weight: 1 loss_weight: 2"), ["2 loss_weight", "1 tops"]),
        (
            INPUT + layer("a", "TanH", "x", "a", "propagate_down: true propagate_down: true"),
            ["2 propagate_down", "1 bottoms"],
        ),
        (INPUT + layer("a", "TanH", "x", "a", "include { phase: TEST } exclude { phase: TRAIN }"), ["'a'", "not both"]),
    ],
)
def test_errors_name_layer_and_cause(text: str, words: list[str]) -> None:
    with pytest.raises(GraphError) as caught:
        build(text)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_unknown_type_names_the_nearest_and_the_way_out() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"'c'.*'Convolutoin'.*did you mean 'Convolution'.*register_layer"):
        build(INPUT + layer("c", "Convolutoin", "x", "c"))


@pytest.mark.filterwarnings("ignore:net .*its state says")
def test_state_takes_the_callers_phase_and_level_and_appends_stages() -> None:
    net = parse('state { phase: TRAIN level: 7 stage: "file" }', caffe_pb2.NetParameter)
    state = net_state(net, "test", 0, ["mine"])
    assert state.phase == caffe_pb2.TEST
    assert state.level == 0
    assert list(state.stage) == ["file", "mine"]


@pytest.mark.parametrize("phase", ["deploy", 2, None])
def test_unknown_phase(phase: object) -> None:
    with pytest.raises(GraphError, match="expected 'train' or 'test'"):
        build(INPUT, phase=phase)  # type: ignore[arg-type]


def test_a_layer_that_names_a_top_twice() -> None:
    with pytest.raises(GraphError, match=r"layer 's' \(Slice\): names the top 'a' twice"):
        build(INPUT + layer("s", "Slice", "x", "a a"))


def test_a_layer_that_reads_its_own_top() -> None:
    with pytest.raises(GraphError, match="bottom 0 is 'z', which no earlier layer writes, only this one itself"):
        build(INPUT + layer("r", "ReLU", "z", "z"))


def test_the_other_blobs_that_nobody_writes_are_told_with_the_first() -> None:
    text = INPUT + layer("a", "ReLU", "late", "b") + layer("c", "ReLU", "none", "d") + layer("l", "ReLU", "x", "late")
    with pytest.raises(
        GraphError, match=r"bottom 0 is 'late', which only a later layer writes; .*; nor does any write 'none'"
    ):
        build(text)
    many = "".join(layer(f"m{i}", "ReLU", f"none{i}", f"top{i}") for i in range(12))
    with pytest.raises(
        GraphError, match=r"'none0', which no earlier layer writes; nor does any write 'none1', .*'none8' and 3 more"
    ):
        build(INPUT + many)


def test_a_level_that_is_none() -> None:
    with pytest.raises(GraphError, match="level 'high': expected a whole number"):
        build(INPUT, level="high")
