"""Plans: blobs that share memory in Caffe, outputs where inputs are missing, names of every kind."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import fcnproto
from fcnproto.errors import GraphError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 dim: 3 } } }\n'


def load(text: str, **options: object) -> fcnproto.Net:
    return fcnproto.load(parse(text, caffe_pb2.NetParameter), **options)  # type: ignore[arg-type]


def layer(name: str, kind: str, bottoms: str, tops: str, more: str = "") -> str:
    parts = [f'bottom: "{b}"' for b in bottoms.split()] + [f'top: "{t}"' for t in tops.split()]
    return f'layer {{ name: "{name}" type: "{kind}" {" ".join(parts)} {more} }}\n'


def power(name: str, bottom: str, top: str, scale: float) -> str:
    return layer(name, "Power", bottom, top, f"power_param {{ scale: {scale} }}")


X = torch.arange(-3.0, 3.0).reshape(1, 2, 3)

SHARING = {
    "Flatten": "",
    "Reshape": "reshape_param { shape { dim: 3 dim: -1 } }",
    "Slice": "",
    "Concat": "",
}


@pytest.mark.parametrize("kind", SHARING)
def test_in_place_layers_change_what_is_kept_under_the_name_of_a_bottom_that_shares_memory(kind: str) -> None:
    net = load(
        INPUT + power("p", "x", "y", 2) + layer("s", kind, "y", "z", SHARING[kind]) + layer("r", "ReLU", "z", "z")
    )
    x = X.clone().requires_grad_()
    out = net(x=x, blobs=["y", "z", "x"])
    assert torch.equal(out["y"], (2 * X).relu())
    assert torch.equal(out["z"].flatten(), (2 * X).relu().flatten())
    assert torch.equal(out["x"], X)
    out["y"].sum().backward()  # Caffe's blobs share their gradients too: it comes through the ReLU
    assert torch.equal(x.grad, 2.0 * (X > 0))


def test_memory_is_shared_through_chains_and_changed_by_each_layer_in_turn() -> None:
    net = load(
        INPUT
        + power("p", "x", "y", 1)
        + layer("f", "Flatten", "y", "f")
        + power("twice", "f", "f", 2)
        + layer("g", "Reshape", "f", "g", "reshape_param { shape { dim: 3 dim: 2 } }")
        + power("thrice", "g", "g", 3)
        + power("out", "g", "out", 1)
    )
    out = net(x=X, blobs=["y", "f", "g"])
    for name, shape in (("y", (1, 2, 3)), ("f", (1, 6)), ("g", (3, 2)), ("out", (3, 2))):
        assert torch.equal(out[name], 6 * X.reshape(shape)), name


def test_one_bottom_concat_and_slices_of_several_tops_share_nothing_with_others() -> None:
    net = load(INPUT + power("p", "x", "y", 1) + layer("s", "Slice", "y", "a b") + layer("r", "ReLU", "a", "a"))
    assert torch.equal(net(x=X, blobs=["y"])["y"], X)


def test_later_readers_behind_a_split_find_what_an_in_place_layer_left_but_their_gradient_passes_by_it() -> None:
    """y is read by Flatten, whose top a ReLU changes in place, and then by q: Caffe's q reads the ReLU's values."""
    net = load(
        INPUT
        + power("p", "x", "y", 1)
        + layer("f", "Flatten", "y", "f")
        + layer("r", "ReLU", "f", "f")
        + power("q", "y", "q", 5)
    )
    assert [node.type for node in net.graph.nodes][2] == "Split"
    x = X.clone().requires_grad_()
    out = net(x=x, blobs=["y", "y_p_0_split_0", "y_p_0_split_1"])
    for name in ("y", "y_p_0_split_0", "y_p_0_split_1"):
        assert torch.equal(out[name], X.relu()), name
    assert torch.equal(out["q"], 5 * X.relu())
    (gradient,) = torch.autograd.grad(out["q"].sum(), x, retain_graph=True)
    assert torch.equal(gradient, torch.full_like(X, 5))  # the split's tops have gradients of their own
    (gradient,) = torch.autograd.grad(out["f"].sum(), x)
    assert torch.equal(gradient, 1.0 * (X > 0))


def test_earlier_readers_find_the_value_before() -> None:
    net = load(
        INPUT
        + power("p", "x", "y", 1)
        + power("q", "y", "q", 5)
        + layer("f", "Flatten", "y", "f")
        + layer("r", "ReLU", "f", "f")
    )
    out = net(x=X, blobs=["y"])
    assert torch.equal(out["q"], 5 * X)
    assert torch.equal(out["y"], X.relu())


def test_tops_of_a_split_in_the_prototxt_share_memory() -> None:
    net = load(
        INPUT + layer("s", "Split", "x", "a b") + power("t", "a", "a", 3) + power("u", "b", "u", 1), phase="train"
    )
    x = X.clone().requires_grad_()
    out = net(x=x, blobs=["b", "x"])
    assert torch.equal(x, X)
    for name in ("a", "u", "b", "x"):
        assert torch.equal(out[name], 3 * X), name
    assert torch.equal(torch.autograd.grad(out["u"].sum(), x)[0], torch.ones_like(X))


def test_a_loss_is_added_up_before_its_blob_is_overwritten() -> None:
    net = load(
        INPUT
        + layer("l", "Reduction", "x", "l", "loss_weight: 1")
        + layer("f", "Reshape", "l", "f", "reshape_param { shape { dim: 1 } }")
        + power("t", "f", "f", 7)
    )
    out = net(x=X)
    assert torch.equal(net.loss(out), X.sum())
    assert torch.equal(out["f"], 7 * X.sum().reshape(1))
    assert torch.equal(out["l_l_0_split_0"], 7 * X.sum())


def test_plans_that_follow_shared_memory_compile_and_pickle() -> None:
    net = load(
        INPUT
        + power("p", "x", "y", 1)
        + layer("f", "Flatten", "y", "f")
        + layer("r", "ReLU", "f", "f")
        + power("q", "y", "q", 5)
    )
    module = net.plan("x", "y").module
    expected = module(X)
    for other in (
        torch.compile(module, backend="eager", fullgraph=True),
        pickle.loads(pickle.dumps(module)),
        torch.export.export(module, (X,)).module(),
    ):
        assert all(torch.equal(a, b) for a, b in zip(other(X), expected, strict=True))


TRAIN = (
    INPUT
    + INPUT.replace('"in"', '"lb"').replace('"x"', '"label"')
    + layer("ip", "InnerProduct", "x", "score", "inner_product_param { num_output: 6 }")
    + layer("flat", "Flatten", "label", "flat")
    + layer("loss", "EuclideanLoss", "score flat", "loss")
    + layer("aux", "Power", "score", "aux")
)


def test_without_its_label_a_net_gives_the_outputs_that_it_can() -> None:
    net = load(TRAIN)
    assert list(net(x=X, label=X)) == ["aux", "loss"]
    assert list(net(x=X)) == ["aux"]


def test_where_no_output_can_be_computed_the_ends_of_what_can_are_given() -> None:
    net = load(TRAIN.rsplit("layer", 1)[0])
    assert list(net(x=X, label=X)) == ["loss"]
    assert list(net(x=X)) == ["score"]
    assert list(net(label=X)) == ["flat"]
    with pytest.raises(GraphError, match="no output can be computed: input 'label', 'x' is missing"):
        net()
    with pytest.raises(GraphError, match="blob 'loss' can't be computed: input 'label' is missing"):
        net(x=X, blobs="loss")


def test_the_ends_are_no_splits() -> None:
    net = load(
        TRAIN.replace('top: "loss"', 'top: "loss" loss_weight: 2').rsplit("layer", 1)[0]
        + layer("acc", "EuclideanLoss", "score flat", "other")
    )
    assert list(net(x=X)) == ["score"]


NAMES = ["class", "self", "torch", "data", "input", "a.b", "a/b", "²", "ﬁ", "日本", "a b", "0", "", 'q"', "a\\n", "%s"]


@pytest.mark.parametrize("name", NAMES)
def test_blobs_of_any_name(name: str) -> None:
    """Neither Python's words nor names that look alike once cleaned disturb each other."""
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    tops = [f"{escaped}{end}" for end in ("", ".", "/", "_")]
    text = "".join(INPUT.replace('"x"', f'"{top}"').replace('"in"', f'"in{i}"') for i, top in enumerate(tops))
    bottoms = " ".join(f'bottom: "{top}"' for top in tops)
    coefficients = "eltwise_param { coeff: 1 coeff: 2 coeff: 3 coeff: 4 }"
    net = load(text + f'layer {{ name: "sum" type: "Eltwise" {bottoms} top: "sum" {coefficients} }}')
    values = {f"{name}{end}": X + i for i, end in enumerate(("", ".", "/", "_"))}
    out = net(values, blobs=[f"{name}."])
    assert torch.equal(out["sum"], 10 * X + 20)
    assert torch.equal(out[f"{name}."], X + 1)


@pytest.mark.parametrize(
    "name",
    [*NAMES[:-2], "a\\\\n", "a\\nb", "params", "learnable", "device", "dtype", "_plans", "_module_names", "training"],
)
def test_layers_of_any_name(name: str) -> None:
    escaped = name if "\\" in name else name.replace('"', '\\"')
    text = INPUT + layer("NAME", "InnerProduct", "x", "y", "inner_product_param { num_output: 2 }")
    net = load(text.replace("NAME", escaped) + layer("r", "ReLU", "y", "y"))
    caffes = net.graph.nodes[1].name
    assert list(net.params) == [caffes]
    with torch.no_grad():
        net.params[caffes][0].fill_(1)
    for twin in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x=X)["y"], X.sum().relu().expand(1, 2))
    assert len(net.state_dict()) == 2


@pytest.mark.parametrize(
    "text",
    [
        power("p", "x", "p", 2)
        + layer("e", "Eltwise", "x p", "y", "eltwise_param { operation: PROD stable_prod_grad: false }"),
        layer("c", "Reduction", "x", "c", "reduction_param { axis: 2 }")
        + layer("l", "LSTM", "x c", "y", "recurrent_param { num_output: 2 weight_filler { value: 0.5 } }"),
    ],
)
def test_plans_compile_whole(text: str) -> None:
    plan = load(INPUT + text).plan("x")
    compiled = torch.compile(plan.module, backend="eager", fullgraph=True)
    assert torch.isfinite(compiled(X)[plan.keys["y"]]).all()
    x = (X + 0.5).requires_grad_()
    compiled(x)[plan.keys["y"]].sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.any()
