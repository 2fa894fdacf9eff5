"""`load` and `Net`: calling, blobs, parameters, sharing, weights, copying, devices."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import fcnproto
from fcnproto.errors import FcnprotoWarning, GraphError, LayerError, WeightsError
from fcnproto.net.tensor_files import write_safetensors
from fcnproto.net.weights import CopyReport

NET = """
name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }
layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 1 dim: 1 dim: 8 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: "gaussian" std: 0.1 } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" }
layer { name: "score" type: "Convolution" bottom: "conv" top: "score" param { lr_mult: 0 }
  convolution_param { num_output: 3 kernel_size: 1 weight_filler { type: "xavier" } bias_filler { type: "constant" value: 0.5 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" loss_param { ignore_label: 255 normalize: false } }
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "net.prototxt"
    file.write_text(NET)
    return file


@pytest.fixture
def net(path: Path) -> fcnproto.Net:
    torch.manual_seed(1)
    return fcnproto.load(path)


def image(height: int = 8, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_names(net: fcnproto.Net) -> None:
    assert net.inputs == ["data", "label"]
    assert net.outputs == ["loss"]
    assert list(net.state_dict()) == ["conv.weight", "conv.bias", "score.weight", "score.bias"]
    assert list(net.params) == ["conv", "score"]
    assert [tuple(p.shape) for p in net.params["conv"]] == [(4, 3, 3, 3), (4,)]


def test_fillers_gave_the_first_values(net: fcnproto.Net) -> None:
    assert torch.equal(net.params["score"][1], torch.full((3,), 0.5))
    assert not net.params["conv"][1].any()
    assert 0.05 < float(net.params["conv"][0].detach().std()) < 0.15


def test_without_label_the_loss_is_left_out_and_asking_for_it_is_an_error(net: fcnproto.Net) -> None:
    assert list(net(data=image())) == ["score"]
    with pytest.raises(GraphError, match="no output can be computed: input 'data' is missing"):
        net(label=image())
    out = net(data=image(), blobs=["score"])
    assert list(out) == ["score"]
    with pytest.raises(GraphError, match="not computed; give its label"):
        net.loss(out)
    with pytest.raises(GraphError, match="not computed; give its label"):
        net.loss(dict(out))
    with pytest.raises(GraphError, match="'loss' can't be computed: input 'label' is missing"):
        net(data=image(), blobs=["loss"])


def test_blobs_hold_the_value_after_the_last_in_place_layer(net: fcnproto.Net) -> None:
    x = image()
    out = net(data=x, blobs=["conv", "data"])
    weight, bias = net.params["conv"]
    assert torch.allclose(out["conv"], torch.relu(torch.nn.functional.conv2d(x, weight, bias, padding=1)))
    assert torch.equal(out["data"], x)


@pytest.mark.parametrize(("names", "word"), [({"dta": 1}, "not a blob"), ({"conv": 1}, "inner blob")])
def test_unknown_inputs(net: fcnproto.Net, names: dict[str, int], word: str) -> None:
    with pytest.raises(GraphError, match=word):
        net(**{name: image() for name in names})


def test_unknown_blob_names_the_nearest(net: fcnproto.Net) -> None:
    with pytest.raises(GraphError, match='did you mean "score"'):
        net(data=image(), blobs=["scor"])


def test_any_size_from_call_to_call_and_inputs_unchanged(net: fcnproto.Net) -> None:
    for size in ((8, 8), (5, 13), (31, 2)):
        x = image(*size)
        before = x.clone()
        assert net(data=x, blobs=["score"])["score"].shape == (1, 3, *size)
        assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float64])
def test_labels_of_any_dtype(net: fcnproto.Net, dtype: torch.dtype) -> None:
    label = torch.randint(0, 3, (1, 1, 8, 8), generator=torch.Generator().manual_seed(3))
    label[0, 0, 0, :3] = 255
    out = net(data=image(), label=label.to(dtype), blobs=["label", "score"])
    assert out["loss"].dtype == torch.float32
    assert out["label"].dtype == torch.float32
    expected = torch.nn.functional.cross_entropy(out["score"], label[:, 0], ignore_index=255, reduction="sum")
    assert torch.allclose(net.loss(out), expected)


def test_positional_input(path: Path) -> None:
    path.write_text("\n".join(line for line in NET.splitlines() if '"label"' not in line))
    net = fcnproto.load(path)
    assert torch.equal(net(image())["score"], net(data=image())["score"])
    assert torch.equal(net({"data": image()})["score"], net(data=image())["score"])
    with pytest.raises(GraphError, match="2 positional"):
        net(image(), image())


def test_numpy_inputs(net: fcnproto.Net) -> None:
    x = image()
    assert torch.equal(net(data=x.numpy(), blobs=["score"])["score"], net(data=x, blobs=["score"])["score"])


def test_gradients_flow_in_either_phase_and_lr_mult_zero_gets_none(path: Path) -> None:
    for phase in ("train", "test"):
        net = fcnproto.load(path, phase=phase)
        assert net.training == (phase == "train")
        net.loss(net(data=image(), label=torch.zeros(1, 1, 8, 8))).backward()
        assert net.params["conv"][0].grad is not None
        assert net.params["score"][0].grad is None
        assert net.params["score"][1].grad is not None


def test_force_backward_gives_lr_mult_zero_a_gradient(path: Path) -> None:
    path.write_text("force_backward: true\n" + NET)
    net = fcnproto.load(path)
    net.loss(net(data=image(), label=torch.zeros(1, 1, 8, 8))).backward()
    assert net.params["score"][0].grad is not None


def test_train_and_eval_switch_the_phase(net: fcnproto.Net) -> None:
    x = image()
    quiet = net(data=x, blobs=["conv"])["conv"]
    assert torch.equal(net(data=x, blobs=["conv"])["conv"], quiet)
    net.train()
    noisy = net(data=x, blobs=["conv"])["conv"]
    assert ((noisy == 0) & (quiet > 0)).any()
    net.eval()
    assert torch.equal(net(data=x, blobs=["conv"])["conv"], quiet)


def test_learnable_params_in_caffes_order(net: fcnproto.Net) -> None:
    listed = [(p.layer, p.index, p.lr_mult, p.decay_mult) for p in net.learnable]
    assert listed == [("conv", 0, 1.0, 1.0), ("conv", 1, 2.0, 0.0), ("score", 0, 0.0, 1.0), ("score", 1, 1.0, 1.0)]


def test_params_are_live(net: fcnproto.Net) -> None:
    with torch.no_grad():
        net.params["score"][0].zero_()
    assert torch.equal(net(data=image(), blobs=["score"])["score"], torch.full((1, 3, 8, 8), 0.5))


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_compute_the_same_and_are_independent(net: fcnproto.Net, way: str) -> None:
    expected = net(data=image(), blobs=["score"])["score"]
    if way == "deepcopy":
        twin = copy.deepcopy(net)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(net))
    else:
        buffer = io.BytesIO()
        torch.save(net, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert torch.equal(twin(data=image(), blobs=["score"])["score"], expected)
    with torch.no_grad():
        twin.params["score"][1].add_(1)
    assert torch.equal(net(data=image(), blobs=["score"])["score"], expected)


def test_double_and_half(net: fcnproto.Net) -> None:
    assert net(data=image(), blobs=["score"])["score"].dtype == torch.float32
    assert copy.deepcopy(net).double()(data=image(), blobs=["score"])["score"].dtype == torch.float64
    half = copy.deepcopy(net).to(torch.bfloat16)
    assert half(data=image(), blobs=["score"])["score"].dtype == torch.bfloat16
    labels = torch.randint(0, 3, (1, 1, 8, 8))
    assert torch.isfinite(half.loss(half(data=image(), label=labels)))


def test_strict_state_dict(net: fcnproto.Net, path: Path) -> None:
    other = fcnproto.load(path)
    other.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(other(data=image(), blobs=["score"])["score"], net(data=image(), blobs=["score"])["score"])


def test_layer_names_that_collide_or_hold_dots(tmp_path: Path) -> None:
    text = NET.replace('name: "conv"', 'name: "a.b/c"').replace('name: "score"', 'name: "forward"')
    (tmp_path / "n.prototxt").write_text(text)
    net = fcnproto.load(tmp_path / "n.prototxt")
    assert list(net.params) == ["a.b/c", "forward"]
    assert list(net.state_dict()) == ["a_b_c.weight", "a_b_c.bias", "forward_.weight", "forward_.bias"]
    assert "loss_" in dict(net.named_children())


SHARING = """
force_backward: true
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 6 } } }
layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" } inner_product_param { num_output: 4 bias_term: false
  weight_filler { type: "xavier" } } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" share_mode: PERMISSIVE lr_mult: 3 } inner_product_param {
  num_output: 6 bias_term: false weight_filler { type: "xavier" } } }
"""


def test_shared_parameters_are_the_owners_object(tmp_path: Path) -> None:
    (tmp_path / "n.prototxt").write_text(SHARING)
    net = fcnproto.load(tmp_path / "n.prototxt")
    twin = copy.deepcopy(net)
    for candidate in (net, twin, pickle.loads(pickle.dumps(net))):
        assert candidate.params["b"][0] is candidate.params["a"][0]
        assert tuple(candidate.params["b"][0].shape) == (4, 6)
        assert [(p.layer, p.lr_mult) for p in candidate.learnable] == [("a", 3.0)]
    x = torch.randn(2, 6)
    w = net.params["a"][0]
    assert torch.allclose(net(x)["b"], x @ w.T @ w.reshape(6, 4).T, atol=1e-6)
    net.double()
    assert net.params["b"][0] is net.params["a"][0]


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("share_mode: PERMISSIVE", "", "shapes must be equal"),
        ("num_output: 6", "num_output: 5", "equal counts"),
        ('name: "w" }', 'name: "w" lr_mult: 2 }', "lr_mult 2"),
        ('param { name: "w" }', 'param { name: "w" } param { }', "2 param entries for 1"),
    ],
)
def test_sharing_errors(tmp_path: Path, old: str, new: str, word: str) -> None:
    assert old in SHARING
    (tmp_path / "n.prototxt").write_text(SHARING.replace(old, new, 1))
    with pytest.raises(LayerError, match=word):
        fcnproto.load(tmp_path / "n.prototxt")


# Weights.


@pytest.mark.parametrize("suffix", [".caffemodel", ".caffemodel.h5"])
def test_weights_survive_saving_and_loading(net: fcnproto.Net, path: Path, suffix: str) -> None:
    file = path.with_name("w" + suffix)
    net.save(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = fcnproto.load(path, file)
    for ours, theirs in zip(net.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert [p.name for p in path.parent.iterdir() if "tmp" in p.name] == []


def test_safetensors(net: fcnproto.Net, path: Path, tmp_path: Path) -> None:
    net.save(tmp_path / "w.safetensors")
    assert sorted(safetensors.torch.load_file(tmp_path / "w.safetensors")) == sorted(net.state_dict())
    torch.manual_seed(2)
    other = fcnproto.load(path, tmp_path / "w.safetensors")
    assert all(torch.equal(other.state_dict()[name], value) for name, value in net.state_dict().items())


def test_safetensors_that_do_not_fit(net: fcnproto.Net, tmp_path: Path) -> None:
    state, file = {name: value.detach().clone() for name, value in net.state_dict().items()}, tmp_path / "w.safetensors"
    write_safetensors(
        file, {"conv.weight": state["conv.weight"], "conv.bias": state["conv.bias"] + 1, "x": state["score.bias"]}
    )
    with pytest.warns(FcnprotoWarning, match="has no values for score"):
        report = net.copy_from(file)
    assert report == CopyReport(("conv",), ("score",), ("x",))
    assert torch.equal(net.params["conv"][1], state["conv.bias"] + 1)
    write_safetensors(file, {"conv.bias": state["conv.bias"], "conv.weight": state["conv.weight"][:1]})
    with pytest.raises(WeightsError, match=r"w\.safetensors: 'conv.weight' has the shape \(1, 3, 3, 3\), the net's"):
        net.copy_from(file)
    assert torch.equal(net.params["conv"][1], state["conv.bias"] + 1)
    write_safetensors(file, {"a": state["conv.bias"]})
    with pytest.raises(WeightsError, match="fills no layer of net 'small'; its names are a, the net's are conv.weight"):
        net.copy_from(file)


def test_unknown_suffix_is_an_error_and_writes_nothing(net: fcnproto.Net, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="can't tell the format"):
        net.save(tmp_path / "w.bin")
    assert list(tmp_path.glob("w*")) == []


def test_layers_missing_in_the_file_keep_their_values_and_are_named(net: fcnproto.Net, path: Path) -> None:
    net.save(path.with_name("w.caffemodel"))
    path.write_text(NET.replace('name: "score"', 'name: "score_new"'))
    with pytest.warns(fcnproto.FcnprotoWarning, match="score_new"):
        other = fcnproto.load(path, path.with_name("w.caffemodel"))
    assert torch.equal(other.params["conv"][0], net.params["conv"][0])
    assert torch.equal(other.params["score_new"][1], torch.full((3,), 0.5))


def test_a_file_that_fills_nothing_is_an_error(net: fcnproto.Net, path: Path) -> None:
    net.save(path.with_name("w.caffemodel"))
    path.write_text(NET.replace('name: "score"', 'name: "q"').replace('name: "conv"', 'name: "p"'))
    with pytest.raises(WeightsError, match=r"fills no layer.*conv.*p, q"):
        fcnproto.load(path, path.with_name("w.caffemodel"))


def test_other_shapes_are_an_error_that_names_both_and_nothing_is_copied(net: fcnproto.Net, path: Path) -> None:
    net.save(path.with_name("w.caffemodel"))
    path.write_text(NET.replace("num_output: 3", "num_output: 5"))
    other = fcnproto.load(path)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(WeightsError, match=r"'score', blob 0.*\(3, 4, 1, 1\).*\(5, 4, 1, 1\)"):
        other.copy_from(path.with_name("w.caffemodel"))
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_number_of_blobs_differs(net: fcnproto.Net, path: Path) -> None:
    net.save(path.with_name("w.caffemodel"))
    path.write_text(NET.replace("num_output: 3", "num_output: 3 bias_term: false"))
    with pytest.raises(WeightsError, match="'score' has 2 blobs, the net's has 1"):
        fcnproto.load(path, path.with_name("w.caffemodel"))


def test_meta_device_gives_shapes_without_memory(path: Path) -> None:
    net = fcnproto.load(path, device="meta")
    out = net(data=torch.empty(2, 3, 40, 30, device="meta"), blobs=["score"])
    assert out["score"].shape == (2, 3, 40, 30)


def test_settings_of_another_layer_type_draw_a_warning(path: Path) -> None:
    path.write_text(NET.replace('type: "ReLU"', 'type: "ReLU" pooling_param { kernel_size: 2 }'))
    with pytest.warns(fcnproto.FcnprotoWarning, match=r"'relu' \(ReLU\): pooling_param has no effect"):
        fcnproto.load(path)


def test_the_plan_prints_as_an_fx_graph(net: fcnproto.Net) -> None:
    plan = net.plan(["data"], ["score"])
    assert plan.inputs == ("data",)
    assert "score" in str(plan.module.graph)
    assert torch.equal(plan.module(image())[plan.keys["score"]], net(data=image(), blobs=["score"])["score"])


def test_shape_dependent_parameters_without_known_shapes(tmp_path: Path) -> None:
    text = (
        'layer { name: "d" type: "HDF5Data" top: "x" hdf5_data_param { source: "nothing.txt" batch_size: 2 } }\n'
        'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 3 } }\n'
    )
    (tmp_path / "n.prototxt").write_text(text)
    net = fcnproto.load(tmp_path / "n.prototxt")
    assert net.unknown == [("ip", "InnerProduct")] and not net.params
    with pytest.raises(GraphError, match="waits for the size of 'x'.*shapes="):
        net.plan("x")
    torch.manual_seed(1)
    assert net(x=np.ones((2, 5)))["y"].shape == (2, 3)
    assert tuple(net.params["ip"][0].shape) == (3, 5) and not net.unknown
    net = fcnproto.load(tmp_path / "n.prototxt", shapes={"x": (2, 7)})
    assert tuple(net.params["ip"][0].shape) == (3, 7)
    assert net(x=np.ones((2, 7)))["y"].shape == (2, 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_is_strict_float32(net: fcnproto.Net) -> None:
    x = image(64, 64)
    expected = net(data=x, blobs=["score"])["score"]
    net.to("cuda")
    seen: list[bool] = []
    for layer in net.layers:
        layer.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    ours = net(data=x.cuda(), blobs=["score"])["score"].cpu()
    assert float((ours - expected).abs().max() / expected.abs().max()) < 1e-5
    assert seen and not any(seen)


def test_layers_called_by_themselves_leave_their_inputs(net: fcnproto.Net) -> None:
    """In a net's plan the ReLU writes over its convolution's output; called by hand it must not."""
    x = torch.randn(1, 4, 3, 3)
    before = x.clone()
    leaf = x.clone().requires_grad_()
    net.layer("relu")(x)
    net.layer("relu")(leaf).sum().backward()
    assert torch.equal(x, before)
    assert "overwrite" in str(net.plan(["data"], ["score"]).module.graph)
