"""What PyTorch's own tools do with a net: export, ONNX, tracing, compiling; and outputs as a tree of tensors."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from tiny_nets import colour_net, small_fcn
from torch.utils import _pytree as pytree

import fcnproto
from fcnproto.net import Net, Outputs

LABELLED = """
layer { name: "data" type: "Input" top: "data" top: "label" input_param { shape { dim: 1 dim: 3 dim: 6 dim: 9 }
  shape { dim: 1 dim: 1 dim: 6 dim: 9 } } }
"""
LOSS = 'layer { name: "l" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "l" loss_weight: 2 }'


@pytest.fixture
def net(tmp_path: Path) -> Net:
    return fcnproto.load(*small_fcn(tmp_path)).eval()


def image() -> torch.Tensor:
    return torch.randn(1, 3, 20, 24, generator=torch.Generator().manual_seed(0))


def test_export(net: Net, tmp_path: Path) -> None:
    x = image()
    torch.export.save(torch.export.export(net, (), {"data": x}), tmp_path / "n.pt2")
    found = torch.export.load(tmp_path / "n.pt2").module()(data=x)
    assert isinstance(found, Outputs)
    torch.testing.assert_close(found["score"], net(x)["score"])


def test_export_for_any_size(net: Net) -> None:
    free = torch.export.Dim.AUTO
    program = torch.export.export(net, (image(),), dynamic_shapes={"args": ({2: free, 3: free},)})
    other = torch.randn(1, 3, 31, 22)
    torch.testing.assert_close(program.module()(other)["score"], net(other)["score"])


def test_onnx(net: Net, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    x = image()
    torch.onnx.export(net, (x,), tmp_path / "n.onnx", input_names=["data"], output_names=["score"], verbose=False)
    session = runtime.InferenceSession(tmp_path / "n.onnx", providers=["CPUExecutionProvider"])
    (score,) = session.run(["score"], {"data": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(score), net(x)["score"], rtol=1e-4, atol=1e-4)


def test_jit_trace(net: Net, tmp_path: Path) -> None:
    x = image()
    traced = torch.jit.trace(net, x, strict=False)
    torch.jit.save(traced, tmp_path / "n.pt")
    torch.testing.assert_close(torch.jit.load(tmp_path / "n.pt")(x)["score"], net(x)["score"])


def test_symbolic_trace(net: Net) -> None:
    """By name and by place, plain and optimised; the traced module has the net's layers and takes any size."""
    for one in (net, fcnproto.optimize(net)):
        traced = torch.fx.symbolic_trace(one)
        for x in (image(), torch.randn(2, 3, 33, 21)):
            expected = net(x)["score"]
            for found in (traced(data=x), traced(x), traced({"data": x}), traced(data=(x * 0).int() + x)):
                torch.testing.assert_close(found["score"], expected)
        assert "conv" in {node.target for node in traced.graph.nodes if node.op == "call_module"}
    with pytest.raises(fcnproto.GraphError, match="input 'data' is missing; the traced net takes 'data'"):
        traced()


def test_compile(net: Net) -> None:
    x = image()
    found = torch.compile(net, backend="eager")(data=x)
    torch.testing.assert_close(found["score"], net(x)["score"])


def test_outputs_are_a_tree_of_tensors(tmp_path: Path) -> None:
    """With the terms of the loss, so that what goes through a tree and back still has its loss and gradient."""
    net = fcnproto.load(colour_net(tmp_path, LOSS, LABELLED)[0], phase="train")
    out = net(data=torch.randn(1, 3, 6, 9), label=torch.ones(1, 1, 6, 9))
    leaves, tree = pytree.tree_flatten(out)
    assert [type(leaf) for leaf in leaves] == [torch.Tensor, torch.Tensor]
    again = pytree.tree_unflatten(leaves, pytree.treespec_loads(pytree.treespec_dumps(tree)))
    assert isinstance(again, Outputs) and list(again) == list(out)
    assert torch.equal(net.loss(again), net.loss(out)) and net.loss(again) == 2 * out["l"]
    net.loss(again).backward()
    assert net.params["score"][0].grad is not None
    doubled = pytree.tree_map(lambda value: value * 2, out)
    assert net.loss(doubled) == 2 * net.loss(out)
    assert [str(path) for path, _ in pytree.tree_flatten_with_path(out)[0]] == [
        "(MappingKey(key='l'),)",
        "(MappingKey(key='loss 0'),)",
    ]


def test_functional_call_and_vmap(net: Net) -> None:
    x = image()
    found = torch.func.functional_call(net, dict(net.named_parameters()), (x,))
    assert torch.equal(found["score"], net(x)["score"])
    many = torch.vmap(lambda one: net(one[None])["score"])(torch.cat([x, -x]))
    torch.testing.assert_close(many[1], net(-x)["score"])


def test_nets_travel(net: Net) -> None:
    again = pickle.loads(pickle.dumps(net))
    assert again.meta == net.meta and torch.equal(again(image())["score"], net(image())["score"])
    assert fcnproto.optimize(net).meta == net.meta
