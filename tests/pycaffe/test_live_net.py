"""`caffe.Net` and `caffe.Blob`: what scripts read and write, between and around the passes."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch

import fcnproto
import fcnproto.pycaffe as caffe
from fcnproto.errors import FcnprotoWarning, GraphError, LayerError, UsageError

NET = """
name: "small" force_backward: true
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 6 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: "gaussian" std: 0.5 } bias_filler { value: 0.1 } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "score" inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
"""
LOSS = """
layer { name: "label" type: "DummyData" top: "label" dummy_data_param { shape { dim: 2 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" loss_weight: 2 }
"""
CONVOLUTIONAL = NET.replace(
    'name: "ip" type: "InnerProduct" bottom: "pool" top: "score" inner_product_param { num_output: 3 weight_filler { type: "xavier" } }',
    'name: "ip" type: "Convolution" bottom: "pool" top: "score" convolution_param { num_output: 3 kernel_size: 1 weight_filler { type: "xavier" } }',
)


def written(folder: Path, text: str = NET, name: str = "net.prototxt") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def reference(net: caffe.Net, path: str, phase: str = "test") -> fcnproto.Net:
    """The package's own net with the same parameters."""
    other = fcnproto.load(path, phase=phase)
    with torch.no_grad():
        for name, blobs in net.params.items():
            for mine, theirs in zip(other.params[name], blobs, strict=True):
                mine.copy_(torch.from_numpy(theirs.data))
    return other


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() <= 1e-5 * max(np.abs(b).max(), 1e-12))


def x(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_passes_give_what_the_engine_gives(tmp_path: Path) -> None:
    path = written(tmp_path, NET + LOSS)
    net = caffe.Net(path, caffe.TRAIN)
    net.blobs["label"].data[...] = [1, 2]
    data = x(2, 3, 5, 6)
    out = net.forward(data=data, blobs=["pool"])
    assert set(out) == {"loss", "pool"}
    mine = reference(net, path, "train")
    given = torch.from_numpy(data).requires_grad_()
    values = mine(data=given, label=torch.tensor([1, 2]), blobs=["pool", "score"])
    mine.loss(values).backward()
    assert close(out["pool"], values["pool"].detach().numpy())
    assert float(out["loss"]) == pytest.approx(float(values["loss"].detach()), rel=1e-5)
    assert float(net.blobs["loss"].diff) == 2 and net.blob_loss_weights["loss"] == 2
    for times in (1, 2):  # parameters' gradients add up, blobs' don't
        assert set(net.backward(diffs=["score"])) == {"data", "score"}
        assert given.grad is not None and close(net.blobs["data"].diff, given.grad.numpy())
        for name, blobs in net.params.items():
            for blob, tensor in zip(blobs, mine.params[name], strict=True):
                assert tensor.grad is not None and close(blob.diff, times * tensor.grad.numpy())
    held = net.params["conv"][0].diff
    net.clear_param_diffs()
    assert not held.any() and not net.params["ip"][1].diff.any()


def test_writing_into_arrays_is_writing_into_the_net(tmp_path: Path) -> None:
    path = written(tmp_path, CONVOLUTIONAL)
    net = caffe.Net(path, caffe.TEST)
    data, score = net.blobs["data"].data, net.blobs["score"].data
    data[...] = 1
    net.forward()
    first = score.copy()
    assert first.any() and np.shares_memory(score, net.blobs["score"].data)
    data[0, 1] = 5
    net.forward()
    assert (score != first).any()  # an array that is held goes on showing the blob
    net.params["ip"][1].data[...] += 3
    before = score.copy()
    net.forward()
    assert close(score, before + 3)
    net.blobs["pool"].data[...] = 0
    net.forward(start="ip")
    assert close(score[:, 0], np.full_like(score[:, 0], net.params["ip"][1].data[0]))
    assert set(net.forward(end="pool")) == {"pool"}
    # Between forward and backward: the weights that backward sees are those of now.
    net.forward()
    net.params["ip"][0].data[...] = 0
    net.params["ip"][0].data[0] = 1
    net.blobs["score"].diff[...] = 0
    net.blobs["score"].diff[:, 0] = 7
    net.backward(end="ip")
    assert (net.blobs["pool"].diff == 7).all()
    assert set(net.backward(start="ip", end="ip")) == {"pool"}
    with pytest.raises(ValueError, match="nowhere"):
        net.forward(start="nowhere")
    with pytest.raises(KeyError):
        net.forward(blobs=["nowhere"])


def test_a_train_net_sees_what_is_written_between_its_passes(tmp_path: Path) -> None:
    net = caffe.Net(written(tmp_path, NET + LOSS), caffe.TRAIN)
    net.forward(data=x(2, 3, 5, 6))
    net.blobs["pool"].data[...] = 2
    net.params["ip"][0].data[...] = 1
    net.backward()
    slope = net.blobs["score"].diff
    assert close(net.params["ip"][0].diff, np.repeat(2 * slope.sum(0)[:, None], 36, 1))
    assert close(net.blobs["pool"].diff.reshape(2, -1), np.repeat(slope.sum(1)[:, None], 36, 1) + 0)


def test_reshaping(tmp_path: Path) -> None:
    net = caffe.Net(written(tmp_path, CONVOLUTIONAL), caffe.TEST)
    blob = net.blobs["data"]
    assert (blob.num, blob.channels, blob.height, blob.width, blob.count) == (2, 3, 5, 6, 180)
    assert net.blobs["score"].shape == (2, 3, 3, 3) and list(net.blobs["score"].shape) == [2, 3, 3, 3]
    blob.reshape(1, 3, 9, 12)
    net.reshape()
    assert net.blobs["score"].data.shape == (1, 3, 5, 6)
    blob.reshape(1, 3, 8, 8)
    blob.data[...] = x(1, 3, 8, 8)
    assert net.forward()["score"].shape == (1, 3, 4, 4)
    single = caffe.Blob((2, 3))
    assert (single.num, single.channels, single.height, single.width) == (2, 3, 1, 1) and not single.data.any()
    single.data[...] = 4
    single.reshape(3, 1)
    assert (single.data == 4).all()
    with pytest.raises(RuntimeError):
        single.reshape(-1, 2)
    with pytest.raises(RuntimeError):
        _ = caffe.Blob((1,) * 5).num
    blob.reshape(1, 7, 8, 8)
    with pytest.raises(LayerError, match="layer 'conv'"):
        net.forward()


def test_in_place_and_shared_memory(tmp_path: Path) -> None:
    text = """
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 6 } } }
    layer { name: "split" type: "Split" bottom: "x" top: "a" top: "b" }
    layer { name: "shaped" type: "Reshape" bottom: "a" top: "shaped" reshape_param { shape { dim: 3 dim: 4 } } }
    layer { name: "drop" type: "Dropout" bottom: "b" top: "b" }
    layer { name: "one" type: "InnerProduct" bottom: "shaped" top: "one" param { name: "w" } param { lr_mult: 0 } inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
    layer { name: "two" type: "InnerProduct" bottom: "one" top: "two" param { name: "w" } inner_product_param { num_output: 4 } }
    """
    net = caffe.Net(written(tmp_path, text), caffe.TEST)
    assert len(net.blobs) == 6 and net._blob_names == ["x", "a", "b", "shaped", "one", "two"]
    net.blobs["x"].data[...] = np.arange(12).reshape(2, 6)
    assert (net.blobs["shaped"].data.ravel() == np.arange(12)).all()
    assert np.shares_memory(net.blobs["a"].data, net.blobs["b"].data)
    assert np.shares_memory(net.params["one"][0].data, net.params["two"][0].data)
    assert np.shares_memory(net.params["one"][0].diff, net.params["two"][0].diff)
    assert np.shares_memory(net.blobs["a"].diff, net.blobs["shaped"].diff)
    assert not np.shares_memory(net.blobs["a"].diff, net.blobs["b"].diff)
    net.forward()
    assert (net.blobs["shaped"].data.ravel() == np.arange(12)).all()


def test_arrays_outlive_the_net(tmp_path: Path) -> None:
    net = caffe.Net(written(tmp_path), caffe.TEST)
    net.forward()
    arrays = [blob.data for blob in net.blobs.values()] + [blob.data for blobs in net.params.values() for blob in blobs]
    blobs = list(net.blobs.values())
    sums = [float(array.sum()) for array in arrays]
    del net
    gc.collect()
    assert [float(array.sum()) for array in arrays] == sums and all(not blob.diff.any() for blob in blobs)


def test_batches(tmp_path: Path) -> None:
    net = caffe.Net(written(tmp_path), caffe.TEST)
    data = x(5, 3, 5, 6)
    together = net.forward_all(data=data, blobs=["pool"])
    assert together["score"].shape == (5, 3) and together["pool"].shape[0] == 5
    net.blobs["data"].reshape(5, 3, 5, 6)
    assert close(together["score"], net.forward(data=data)["score"])
    net.blobs["data"].reshape(2, 3, 5, 6)
    slopes = x(5, 3)
    values, diffs = net.forward_backward_all(data=data, score=slopes, diffs=["pool"])
    assert close(values["score"], together["score"]) and diffs["data"].shape == (5, 3, 5, 6)
    weights = net.params["ip"][0].data
    assert close(diffs["pool"].reshape(5, -1), slopes @ weights)
    for wrong in ({"data": data}, {"other": data}):
        with pytest.raises(ValueError, match="data"):
            net.forward(**wrong)


def test_weights(tmp_path: Path) -> None:
    path = written(tmp_path)
    net = caffe.Net(path, caffe.TEST)
    net.save(str(tmp_path / "a"))
    net.save_hdf5(str(tmp_path / "b.h5"))
    with pytest.warns(FcnprotoWarning, match="deprecated form.*weights="):
        old = caffe.Net(path, str(tmp_path / "a"), caffe.TEST)
    new = caffe.Net(path, phase=caffe.TEST, weights=str(tmp_path / "a"))
    loaded = caffe.Net(path, caffe.TEST)
    loaded.load_hdf5(str(tmp_path / "b.h5"))
    for other in (old, new, loaded):
        assert (other.params["conv"][0].data == net.params["conv"][0].data).all()
    foreign = caffe.Net(
        written(tmp_path, NET.replace('"conv"', '"c"').replace('"ip"', '"i"'), "other.prototxt"), caffe.TEST
    )
    with pytest.warns(FcnprotoWarning, match="keep what they have"):
        foreign.copy_from(str(tmp_path / "a"))  # nothing fits, which Caffe takes
    for wrong in (str(tmp_path / "none"), "none.prototxt"):
        with pytest.raises(RuntimeError, match="no such file"):
            caffe.Net(wrong if wrong.endswith("prototxt") else path, caffe.TEST, weights=wrong)
    with pytest.raises(TypeError, match="phase"):
        caffe.Net(path)


def test_sharing_parameters(tmp_path: Path) -> None:
    path = written(tmp_path)
    net, twin = caffe.Net(path, caffe.TEST), caffe.Net(path, caffe.TEST)
    blob = twin.params["conv"][0]
    twin.share_with(net)
    assert np.shares_memory(blob.data, net.params["conv"][0].data) and not np.shares_memory(
        blob.diff, net.params["conv"][0].diff
    )
    data = x(2, 3, 5, 6)
    assert close(twin.forward(data=data)["score"], net.forward(data=data)["score"])
    net.params["ip"][1].data[...] = 9
    assert close(twin.forward(data=data)["score"], net.forward(data=data)["score"])
    other = caffe.Net(written(tmp_path, NET.replace("num_output: 4", "num_output: 5"), "b.prototxt"), caffe.TEST)
    with pytest.raises(fcnproto.SolverError, match="'conv'"):
        other.share_with(net)


def test_what_a_net_says_of_itself(tmp_path: Path) -> None:
    net = caffe.Net(written(tmp_path, NET + LOSS), caffe.TRAIN)
    assert net.inputs == ["data"] and net.outputs == ["loss"] and net._inputs == [0]
    assert net.top_names["conv"] == ["conv"] and net.bottom_names["loss"] == ["score", "label"]
    assert [net._blob_names[i] for i in net._top_ids(4)] == ["score"] and net._bottom_ids(0) == []
    assert list(net.layer_dict) == net._layer_names and net.layer_dict["pool"].type == net.layers[3].type == "Pooling"
    assert [len(layer.blobs) for layer in net.layers] == [0, 2, 0, 0, 2, 0, 0] and list(net.params) == ["conv", "ip"]
    calls: list[tuple[str, int]] = []
    for kind in ("before_forward", "after_forward", "before_backward", "after_backward"):
        getattr(net, kind)(lambda index, kind=kind: calls.append((kind, index)))
    net.forward(start="ip", end="ip")
    net.backward(start="ip", end="ip")
    assert calls == [("before_forward", 4), ("after_forward", 4), ("before_backward", 4), ("after_backward", 4)]


def test_what_no_loss_depends_on_gets_no_gradient(tmp_path: Path) -> None:
    text = NET.replace("force_backward: true", "") + LOSS
    text += (
        'layer { name: "aside" type: "InnerProduct" bottom: "pool" top: "aside" inner_product_param { num_output: 2 } }'
    )
    net = caffe.Net(written(tmp_path, text), caffe.TRAIN)
    net.forward(data=x(2, 3, 5, 6))
    net.blobs["aside"].diff[...] = 1
    net.backward()
    assert not net.params["aside"][1].diff.any() and net.params["ip"][1].diff.any()
    assert net.params["conv"][0].diff.any() and not net.blobs["data"].diff.any()
    deploy = caffe.Net(written(tmp_path, NET.replace("force_backward: true", ""), "d.prototxt"), caffe.TEST)
    deploy.forward(data=x(2, 3, 5, 6))
    deploy.blobs["score"].diff[...] = 1
    deploy.backward()
    assert not deploy.blobs["pool"].diff.any()


def test_dropout_keeps_its_mask(tmp_path: Path) -> None:
    text = """force_backward: true
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2000 } } }
    layer { name: "drop" type: "Dropout" bottom: "x" top: "y" dropout_param { dropout_ratio: 0.25 } }
    """
    caffe.set_random_seed(5)
    net = caffe.Net(written(tmp_path, text), caffe.TRAIN)
    net.blobs["x"].data[...] = 1
    y = net.forward()["y"].copy()
    net.blobs["x"].data[...] = 3
    net.blobs["y"].diff[...] = 1
    for _ in range(2):
        net.backward()
        assert (net.blobs["x"].diff == y).all() and 0.6 < (y > 0).mean() < 0.9
    caffe.set_random_seed(5)
    again = caffe.Net(written(tmp_path, text), caffe.TRAIN)
    assert (again.forward(x=np.ones(2000, np.float32))["y"] == y).all()


def test_memory_data(tmp_path: Path) -> None:
    text = """
    layer { name: "m" type: "MemoryData" top: "data" top: "label" memory_data_param { batch_size: 2 channels: 1 height: 2 width: 2 } }
    layer { name: "s" type: "Power" bottom: "data" top: "s" power_param { scale: 2 } }
    """
    net = caffe.Net(written(tmp_path, text), caffe.TEST)
    rows = np.arange(16, dtype=np.float32).reshape(4, 1, 2, 2)
    net.set_input_arrays(rows, np.arange(4, dtype=np.float32))
    assert (net.forward()["s"] == 2 * rows[:2]).all()
    assert (net.forward()["s"] == 2 * rows[2:]).all() and net.blobs["label"].data.ravel().tolist() == [2, 3]


def test_the_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        from fcnproto.pycaffe import mode

        monkeypatch.setattr(mode._Mode, "warned", False)
        with pytest.warns(FcnprotoWarning, match="the CPU computes"):
            caffe.set_mode_gpu()
        caffe.set_device(3)
        assert caffe.Net(written(tmp_path), caffe.TEST).forward()["score"].shape == (2, 3)
    assert caffe.solver_count() == 1 and caffe.solver_rank() == 0 and caffe.has_nccl() is False
    caffe.set_multiprocess(True)
    with pytest.raises(UsageError, match="torchrun"):
        caffe.NCCL(None, "uid")


@pytest.mark.gpu
def test_arrays_follow_the_gpu(tmp_path: Path) -> None:
    path = written(tmp_path, NET + LOSS)
    net, data = caffe.Net(path, caffe.TRAIN), x(2, 3, 5, 6)
    net.forward(data=data)
    net.backward()
    expected = {name: blob.data.copy() for name, blob in net.blobs.items()}
    slopes = [blob.diff.copy() for blobs in net.params.values() for blob in blobs]
    caffe.set_mode_gpu()
    net.clear_param_diffs()
    net.blobs["conv"].data[...] = 0
    net.forward()
    net.backward()
    for name, value in expected.items():
        assert close(net.blobs[name].data, value), name
    for blob, value in zip([blob for blobs in net.params.values() for blob in blobs], slopes, strict=True):
        assert np.abs(blob.diff - value).max() <= 1e-4 * np.abs(value).max()
    net.params["ip"][1].data[...] += 1  # written on the host, read by the GPU
    assert close(net.forward()["loss"], expected["loss"]) and net.engine.device.type == "cuda"
    assert close(net.blobs["score"].data, expected["score"] + 1)
    net.save(str(tmp_path / "w.caffemodel"))
    caffe.set_mode_cpu()
    other = caffe.Net(path, caffe.TRAIN, weights=str(tmp_path / "w.caffemodel"))
    assert close(other.params["ip"][1].data, net.params["ip"][1].data)
    assert close(net.forward()["loss"], expected["loss"])


def test_errors_are_exceptions(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="nowhere"):
        caffe.Net(written(tmp_path, NET + 'layer { name: "r" type: "ReLU" bottom: "nowhere" top: "r" }'), caffe.TEST)
    with pytest.raises(fcnproto.PrototxtError):
        caffe.Net(written(tmp_path, "layer { nonsense }"), caffe.TEST)
