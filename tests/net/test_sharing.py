"""Parameters shared by name between layers of any kinds, and copies of nets: every way to copy keeps what is shared."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.func import functional_call

import fcnproto
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 dim: 4 dim: 4 } } }\n'
X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))

KINDS = {
    "BatchNorm": 'type: "BatchNorm" bottom: "x" param { name: "m" lr_mult: 0 } param { lr_mult: 0 } param { lr_mult: 0 }',
    "Bias": 'type: "Bias" bottom: "x" param { name: "m" } bias_param { filler { value: 2 } }',
    "PReLU": 'type: "PReLU" bottom: "x" param { name: "m" }',
    "Parameter": 'type: "Parameter" param { name: "m" } parameter_param { shape { dim: 3 } }',
}


def load(text: str, **options: object) -> fcnproto.Net:
    return fcnproto.load(parse(text, caffe_pb2.NetParameter), **options)  # type: ignore[arg-type]


def pair(first: str, second: str) -> fcnproto.Net:
    return load(
        INPUT + f'layer {{ name: "a" top: "a" {KINDS[first]} }}\nlayer {{ name: "b" top: "b" {KINDS[second]} }}'
    )


def assign_to_another(net: fcnproto.Net) -> fcnproto.Net:
    twin = copy.deepcopy(net)
    twin.load_state_dict({key: value.clone() for key, value in net.state_dict().items()}, assign=True)
    return twin


COPIES: dict[str, Callable[[fcnproto.Net], fcnproto.Net]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "assigned state": assign_to_another,
    "double and back": lambda net: copy.deepcopy(net).double().float(),
    "to_empty": lambda net: copy.deepcopy(net).to_empty(device="cpu"),
    "optimize": fcnproto.optimize,
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize(
    ("first", "second"), [(a, b) for a in KINDS for b in KINDS if a == "BatchNorm" or b in ("BatchNorm", "Bias")]
)
def test_kinds_of_layers_share_in_every_copy(first: str, second: str, way: str) -> None:
    net = COPIES[way](pair(first, second))
    assert net.params["a"][0] is net.params["b"][0]
    assert isinstance(net.params["a"][0], torch.nn.Parameter) == (first != "BatchNorm")
    assert len({id(value) for value in (*net.parameters(), *net.buffers()) if value is net.params["a"][0]}) == 1
    with torch.no_grad():
        net.params["a"][0].fill_(3)
    if second == "Bias":
        assert torch.equal(net(x=X)["b"], X + 3)
    strict = net.load_state_dict(net.state_dict(), strict=True)
    assert not strict.missing_keys and not strict.unexpected_keys


@pytest.mark.parametrize("suffix", [".caffemodel", ".caffemodel.h5"])
def test_kinds_of_layers_share_through_files(tmp_path: Path, suffix: str) -> None:
    net = pair("BatchNorm", "Bias")
    with torch.no_grad():
        net.params["b"][0].fill_(7)
    net.save(tmp_path / f"w{suffix}")
    other = pair("BatchNorm", "Bias")
    other.copy_from(tmp_path / f"w{suffix}")
    assert torch.equal(other.params["a"][0], torch.full((3,), 7.0))
    assert torch.equal(other(x=X)["b"], X + 7)


def test_shared_statistics_are_updated_by_each_layer() -> None:
    entries = " ".join(f'param {{ name: "{name}" lr_mult: 0 }}' for name in "mvs")
    text = "".join(f'layer {{ name: "{n}" type: "BatchNorm" bottom: "x" top: "{n}" {entries} }}\n' for n in "ab")
    net = load(INPUT + text, phase="train")
    net(x=X)
    assert net.params["b"][2] is net.params["a"][2]
    assert torch.allclose(net.params["a"][2], torch.tensor([1.999]))
    assert torch.allclose(net.params["a"][0], 1.999 * X.mean((0, 2, 3)), atol=1e-6)


TWO = INPUT + "".join(
    f'layer {{ name: "{name}" type: "InnerProduct" bottom: "x" top: "{name}" param {{ name: "w" }} '
    "inner_product_param { num_output: 2 bias_term: false weight_filler { value: 1 } } }\n"
    for name in "ab"
)


def without(path: Path, *layers: str) -> Path:
    """A weight file without some of its layers."""
    message = caffe_pb2.NetParameter.FromString(path.read_bytes())
    kept = [layer for layer in message.layer if layer.name not in layers]
    target = path.with_name(f"without_{'_'.join(layers)}.caffemodel")
    target.write_bytes(caffe_pb2.NetParameter(layer=kept).SerializeToString())
    return target


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("missing", ["a", "b"])
def test_a_file_with_one_of_the_layers_that_share_fills_both(tmp_path: Path, missing: str) -> None:
    net = load(TWO)
    with torch.no_grad():
        net.params["a"][0].fill_(5)
    net.save(tmp_path / "w.caffemodel")
    other = load(TWO, weights=without(tmp_path / "w.caffemodel", missing))
    assert torch.equal(other.params["b"][0], net.params["b"][0])


def test_of_layers_with_one_name_the_first_is_loaded_and_the_others_keep_their_fillers(tmp_path: Path) -> None:
    net = load(TWO.replace('param { name: "w" }', "").replace('name: "b"', 'name: "a"'))
    with torch.no_grad():
        for layer in net.layers[-2:]:
            layer.blob(0).fill_(5)
    net.save(tmp_path / "w.caffemodel")
    with pytest.warns(fcnproto.FcnprotoWarning, match="no values for a;"):
        other = load(
            TWO.replace('param { name: "w" }', "").replace('name: "b"', 'name: "a"'), weights=tmp_path / "w.caffemodel"
        )
    first, second = other.layers[-2:]
    assert (first.blob(0) == 5).all() and (second.blob(0) == 1).all()


def test_hdf5_weights_go_to_the_last_layer_of_a_name(tmp_path: Path) -> None:
    net = load(TWO.replace('param { name: "w" }', "").replace('name: "b"', 'name: "a"'))
    first, second = net.layers[-2:]
    with h5py.File(tmp_path / "w.h5", "w") as file:
        for index, shape in enumerate(second.blob_shapes):
            file[f"data/a/{index}"] = np.full(shape, 7, np.float32)
    net.copy_from(tmp_path / "w.h5")
    assert (first.blob(0) == 1).all() and (second.blob(0) == 7).all()


def test_functional_calls_replace_shared_parameters_everywhere() -> None:
    net = load(TWO)
    zero = {name: torch.zeros_like(value) for name, value in net.named_parameters()}
    assert list(zero) == ["a.weight"]
    out = functional_call(net, zero, kwargs={"x": X[:1]})
    assert not out["a"].any() and not out["b"].any()
    assert net(x=X[:1])["b"].any()


def test_replicas_run_their_own_parameters() -> None:
    """What `nn.DataParallel` does for every GPU."""
    net = load(TWO)
    expected = net(x=X)["a"]
    replica = net._replicate_for_data_parallel()
    for key, module in net._modules.items():
        twin = module._replicate_for_data_parallel()
        if "weight" in module._parameters:
            twin.weight = module.weight * 2
        replica._modules[key] = twin
    assert torch.allclose(replica(x=X)["a"], 2 * expected)
    assert torch.equal(net(x=X)["a"], expected)


def test_nets_of_any_depth_are_copied() -> None:
    chain = "".join(f'layer {{ name: "r{i}" type: "ReLU" bottom: "{i or "x"}" top: "{i + 1}" }}\n' for i in range(1200))
    net = load(INPUT + chain)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x=X)["1200"], X.relu())
        blobs = twin.graph.blobs
        assert blobs["7"].consumer is blobs["8"].producer and blobs["7"] is blobs["8"].producer.bottoms[0]
