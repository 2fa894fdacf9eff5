"""Nets taken away to other formats and brought back, by the command."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import golden_cases
import numpy as np
import pytest
import torch
from tiny_nets import small_fcn

import fcnproto
from fcnproto.cli._main import main
from fcnproto.export import checking, convert
from fcnproto.layers.activation import ReLU
from fcnproto.layers.plain import Piece
from fcnproto.layers.shaping import Crop
from fcnproto.net.tensor_files import read_safetensors, write_safetensors

onnx_missing = any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime"))


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path]:
    return small_fcn(tmp_path)


def output(model: Path, weights: Path, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return fcnproto.load(model, weights)(x)["score"]


def test_a_program_of_one_size(small: tuple[Path, Path], tmp_path: Path) -> None:
    """Some runtimes want to know all shapes: those of the prototxt, or of --input-size."""
    words = ["convert", *map(str, small), str(tmp_path / "n.pt2"), "--fixed", "--input-size", "24x40"]
    assert main(words) == 0
    program = torch.export.load(tmp_path / "n.pt2")
    inputs = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    assert [tuple(node.meta["val"].shape) for node in inputs] == [(1, 3, 24, 40)]
    assert not program.range_constraints


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_state_dict_there_and_back(ending: str, small: tuple[Path, Path], tmp_path: Path) -> None:
    model, weights = small
    away, home = tmp_path / f"net{ending}", tmp_path / "home.caffemodel"
    assert main(["convert", str(model), str(weights), str(away)]) == 0
    net = fcnproto.load(model, weights)
    state = read_safetensors(away) if ending == ".safetensors" else torch.load(away, weights_only=True)
    assert {name: value.shape for name, value in state.items()} == {n: v.shape for n, v in net.state_dict().items()}
    # Trained a little elsewhere, in another file and in half of the precision.
    state = {f"module.{name}": value.double() * 2 for name, value in state.items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "trained.pt")
    assert main(["convert", str(model), str(tmp_path / "trained.pt"), str(home)]) == 0
    back = fcnproto.load(model, home)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], value * 2, rtol=0, atol=0)


@pytest.mark.parametrize("ending", [".caffemodel", ".caffemodel.h5"])
def test_caffe_files(ending: str, small: tuple[Path, Path], tmp_path: Path) -> None:
    model, weights = small
    away = tmp_path / f"net{ending}"
    assert main(["convert", str(model), str(weights), str(away)]) == 0
    x = torch.randn(1, 3, 20, 20)
    torch.testing.assert_close(output(model, away, x), output(model, weights, x), rtol=0, atol=0)


def test_python_module_runs_where_only_torch_is(small: tuple[Path, Path], tmp_path: Path) -> None:
    model, weights = small
    folder = tmp_path / "taken"
    assert main(["convert", str(model), str(weights), str(folder / "my_net.py"), "--input-size", "40x50"]) == 0
    assert sorted(file.name for file in folder.iterdir()) == ["my_net.py", "my_net.safetensors"]
    assert "# 1 x 4 x 58 x 68" in (folder / "my_net.py").read_text()
    x = torch.randn(2, 3, 31, 22, generator=torch.Generator().manual_seed(1))
    torch.save(x, tmp_path / "x.pt")
    program = (
        "import sys, torch; sys.modules.update(dict.fromkeys(['fcnproto', 'google.protobuf', 'h5py', 'PIL', 'click', 'rich'])); import my_net; "
        "torch.save(my_net.load()(torch.load(sys.argv[1])).detach(), sys.argv[2])"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "x.pt"), str(tmp_path / "y.pt")]
    subprocess.run(command, cwd=folder, check=True)
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), output(model, weights, x), rtol=0, atol=1e-6)


def test_exported_program_takes_any_size(small: tuple[Path, Path], tmp_path: Path) -> None:
    model, weights = small
    assert main(["convert", str(model), str(weights), str(tmp_path / "net.pt2")]) == 0
    module = torch.export.load(tmp_path / "net.pt2").module()
    for size in ((20, 20), (33, 57), (120, 41)):
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(module(x), output(model, weights, x), rtol=1e-6, atol=1e-6)


# Crops, a ceil pooling, two inputs, two outputs, LRN and groups, each with its offsets.
FAMILY = ["voc_fcn8s_forward", "siftflow_fcn8s_forward", "nyud_fcn32s_color_hha_forward", "voc_fcn_alexnet_forward"]
OTHER_SIZES = ((50, 77), (101, 64))


SOME_SLOW = [*FAMILY[:2], *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILY[2:])]


@pytest.mark.parametrize("name", SOME_SLOW)
def test_exported_programs_of_the_family(name: str, tmp_path: Path) -> None:
    net = golden_cases.load("fcn", name).net()
    done = convert(net, tmp_path / "net.pt2")
    assert "96x64" in done.checked and "67x93" in done.checked and "130x49" in done.checked
    module = torch.export.load(tmp_path / "net.pt2").module()
    for size in OTHER_SIZES:
        values = [torch.randn(*net.source_shapes[blob][:2], *size) for blob in net.inputs]  # type: ignore[index]
        with torch.no_grad():
            found, expected = module(*values), net(dict(zip(net.inputs, values, strict=True)))
        found = found if isinstance(found, dict) else {"score": found}
        for blob in net.outputs:
            golden_cases.assert_close(found[blob], expected[blob].numpy(), 1e-5, blob)


@pytest.mark.skipif(onnx_missing, reason="onnx, onnxscript or onnxruntime is not installed")
@pytest.mark.parametrize("name", [FAMILY[0], *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILY[1:])])
def test_onnx_of_the_family(name: str, tmp_path: Path) -> None:
    import onnxruntime

    net = golden_cases.load("fcn", name).net()
    done = convert(net, tmp_path / "net.onnx")
    assert "96x64" in done.checked and "130x49" in done.checked
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    for size in OTHER_SIZES:
        values = {blob: torch.randn(*net.source_shapes[blob][:2], *size) for blob in net.inputs}  # type: ignore[index]
        found = session.run(net.outputs, {blob: value.numpy() for blob, value in values.items()})
        with torch.no_grad():
            expected = net(values)
        for blob, value in zip(net.outputs, found, strict=True):
            golden_cases.assert_close(value, expected[blob].numpy(), 1e-5, blob)


@pytest.mark.skipif(onnx_missing, reason="onnx, onnxscript or onnxruntime is not installed")
def test_onnx_takes_any_size(small: tuple[Path, Path], tmp_path: Path) -> None:
    import onnxruntime

    model, weights = small
    assert main(["convert", str(model), str(weights), str(tmp_path / "net.onnx")]) == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in (*session.get_inputs(), *session.get_outputs())] == ["data", "score"]
    assert session.get_inputs()[0].shape[:2] == ["batch", 3]
    assert all(isinstance(extent, str) for extent in session.get_inputs()[0].shape[2:])
    for size in ((20, 20), (33, 57)):
        x = torch.randn(1, 3, *size)
        (found,) = session.run(["score"], {"data": x.numpy()})
        np.testing.assert_allclose(found, output(model, weights, x), rtol=0, atol=1e-4)


@pytest.mark.skipif(not onnx_missing, reason="the ONNX packages are installed")
def test_onnx_without_its_packages(
    small: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", *map(str, small), str(tmp_path / "net.onnx")]) in (1, 2)
    assert "pip install" in capsys.readouterr().err
    assert not (tmp_path / "net.onnx").exists()


def test_nets_with_two_inputs_and_outputs(tmp_path: Path) -> None:
    for name in ("nyud_fcn32s_color_hha_forward", "siftflow_fcn8s_forward"):
        net = golden_cases.load("fcn", name).net()
        done = convert(net, tmp_path / f"{name}.py")
        assert "96x64" in done.checked
    text = (tmp_path / "siftflow_fcn8s_forward.py").read_text()
    assert 'return {"score_geo": score_geo, "score_sem": score_sem}' in text


def test_training_nets_leave_their_losses(tmp_path: Path) -> None:
    convert(golden_cases.load("fcn", "voc_fcn8s_forward").net(), tmp_path / "a.py")
    case = golden_cases.load("fcn", "voc_fcn8s_train")
    net = fcnproto.load(case.folder / "net.prototxt")
    convert(net, tmp_path / "train.py")
    assert "loss" not in (tmp_path / "train.py").read_text()


def test_training_nets_keep_their_losses_if_asked(tmp_path: Path) -> None:
    case = golden_cases.load("fcn", "siftflow_fcn8s_train")
    net = case.net()
    convert(net, tmp_path / "train.py", losses=True)
    text = (tmp_path / "train.py").read_text()
    assert "def forward(self, data: Tensor, sem: Tensor, geo: Tensor) -> dict:" in text
    assert "softmax_loss(" in text


@pytest.mark.parametrize("name", ["batchnorm_train", "batchnorm_train_global", "lstm", "dropout_train_contract"])
def test_nets_that_remember_stay_as_they_are(name: str, tmp_path: Path) -> None:
    net = golden_cases.load("layers", name).net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    done = convert(net, tmp_path / "net.py")
    assert "in eval() and in train()" in done.checked
    assert net.training
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    assert all(getattr(layer, "hidden", None) is None for layer in net.layers)


@pytest.mark.parametrize("name", ["embed", "batch_reindex", "filter", "log", "softmaxloss_2d", "im2col_axis"])
def test_inputs_that_are_no_images(name: str, tmp_path: Path) -> None:
    matching = [case for case in golden_cases.names("layers") if case.startswith(name)]
    convert(golden_cases.load("layers", matching[0]).net(), tmp_path / "net.py")


def test_rounding_that_a_softmax_enlarges_is_no_departure(tmp_path: Path) -> None:
    # Scores in the thousands: float32 itself is 1e-4 away from the exact probabilities.
    model = tmp_path / "net.prototxt"
    model.write_text("""
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 20 dim: 20 } } }
layer { name: "ip" type: "Convolution" bottom: "data" top: "ip" convolution_param { num_output: 2 kernel_size: 3 } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }""")
    net = fcnproto.load(model)
    with torch.no_grad():
        net.params["ip"][0].copy_(torch.randn(2, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * 100)
    example = checking.make_examples(net, ["data"], ["prob"], None)[0]
    assert example.tolerance("prob") > 5 * checking.TOLERANCE
    near = example.outputs["prob"] + 1.5 * checking.TOLERANCE
    checking.compare(lambda x: near, ["data"], [example])
    with pytest.raises(fcnproto.Error, match="departs"):
        checking.compare(lambda x: near * 1.01, ["data"], [example])


def test_values_that_are_no_numbers_are_a_departure(
    small: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = "[:, :, 8 : 8 + data.shape[2], 8 : 8 + data.shape[3]] / 0 * 0"
    monkeypatch.setattr(Crop, "plain", lambda self, request: Piece((f"{request.x}{cut}", None)))
    with pytest.raises(fcnproto.Error, match=r"departs from this one in 'score' by (nan|inf)"):
        convert(fcnproto.load(*small), tmp_path / "net.py")
    assert list(tmp_path.glob("net*")) == []


def test_net_without_weights(tmp_path: Path) -> None:
    case = golden_cases.load("layers", "pool_max_pad")
    case.net().save(tmp_path / "w.caffemodel")
    arguments = ["convert", str(case.folder / "net.prototxt"), str(tmp_path / "w.caffemodel")]
    assert main([*arguments, str(tmp_path / "net.py")]) == 0
    _, weights = small_fcn(tmp_path)
    assert main(["convert", str(case.folder / "net.prototxt"), str(weights), str(tmp_path / "net.pt")]) == 1


def test_nothing_is_left_of_a_wrong_export(
    small: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ReLU, "plain", lambda self, request: Piece(("F.elu", [request.x])))
    assert main(["convert", *map(str, small), str(tmp_path / "out" / "net.py")]) == 1
    assert "departs from this one" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda state: state.pop("conv.bias"), "has no 'conv.bias'"),
        (lambda state: state.update(extra=torch.zeros(1)), "'extra' is no parameter"),
        (lambda state: state.update({"conv.bias": torch.zeros(7)}), "has shape (7,), the net's (4,)"),
    ],
)
def test_states_that_do_not_fit(
    change: object, expected: str, small: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, weights = small
    state = dict(fcnproto.load(model, weights).state_dict())
    change(state)  # type: ignore[operator]
    torch.save(state, tmp_path / "w.pt")
    assert main(["convert", str(model), str(tmp_path / "w.pt"), str(tmp_path / "home.caffemodel")]) == 1
    assert expected in capsys.readouterr().err


def test_states_with_code_are_refused(small: tuple[Path, Path], tmp_path: Path) -> None:
    torch.save({"conv.bias": subprocess.run}, tmp_path / "w.pt")
    assert main(["convert", str(small[0]), str(tmp_path / "w.pt"), str(tmp_path / "home.caffemodel")]) == 1


def test_links_and_permissions_stay(small: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "model.py", tmp_path / "net.py"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    assert main(["convert", *map(str, small), str(link)]) == 0
    assert link.is_symlink()
    assert "nn.Module" in real.read_text()
    assert real.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "net.safetensors").is_file()
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["model.py"]


@pytest.mark.parametrize(
    ("out", "folder"), [("net.py", "net.safetensors"), ("net.py", "net.py"), ("net.onnx", "net.onnx.data")]
)
def test_folders_in_the_way(
    out: str, folder: str, small: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if out.endswith(".onnx") and onnx_missing:
        pytest.skip("the ONNX packages are not installed")
    (tmp_path / "out" / folder).mkdir(parents=True)
    assert main(["convert", *map(str, small), str(tmp_path / "out" / out)]) == 2
    assert "folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [folder]


def test_inputs_are_not_written_over(small: tuple[Path, Path], tmp_path: Path) -> None:
    model, weights = small
    assert main(["convert", str(model), str(weights), str(tmp_path / "net.safetensors")]) == 0
    before = (tmp_path / "net.safetensors").read_bytes()
    assert main(["convert", str(model), str(tmp_path / "net.safetensors"), str(tmp_path / "net.py")]) == 2
    assert main(["convert", str(model), str(weights), str(weights)]) == 2
    assert (tmp_path / "net.safetensors").read_bytes() == before


def test_missing_packages_are_told_before_the_weights_are_read(
    small: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnx" else find(name, *rest))
    assert main(["convert", str(small[0]), str(tmp_path / "missing.caffemodel"), str(tmp_path / "net.onnx")]) == 2
    assert "pip install 'fcnproto[onnx]'" in capsys.readouterr().err


CLIPPED = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 5 dim: 5 } } }
layer { name: "clip" type: "Clip" bottom: "data" top: "clip" clip_param { min: -1 max: inf } }
layer { name: "low" type: "Clip" bottom: "clip" top: "low" clip_param { min: -inf max: 4 } }
layer { name: "over" type: "Threshold" bottom: "low" top: "over" threshold_param { threshold: nan } }
layer { name: "out" type: "Eltwise" bottom: "over" bottom: "low" top: "out" }
"""


@pytest.mark.parametrize("ending", [".py", ".pt2"])
def test_infinite_settings(ending: str, tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(CLIPPED)
    net = fcnproto.load(tmp_path / "net.prototxt")
    assert "largest deviation 0" in convert(net, tmp_path / f"net{ending}").checked


def test_unknown_endings(small: tuple[Path, Path], tmp_path: Path) -> None:
    assert main(["convert", *map(str, small), str(tmp_path / "net.tflite")]) == 2


def test_shared_parameters_come_home(tmp_path: Path) -> None:
    case = golden_cases.load("layers", "net_shared_params")
    net = case.net()
    net.save(tmp_path / "w.safetensors")
    assert len(read_safetensors(tmp_path / "w.safetensors")) < len(net.state_dict())
    home = tmp_path / "home.caffemodel"
    model = case.folder / "net.prototxt"
    phase = ["--phase", case.facts["phase"].lower()]
    assert main(["convert", str(model), str(tmp_path / "w.safetensors"), str(home), *phase]) == 0
    back = fcnproto.load(model, home, phase=phase[1])
    for name, value in net.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], value)


class TestSafetensors:
    TENSORS = {  # noqa: RUF012
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "b": torch.tensor(3.5, dtype=torch.float16),
        "c": torch.zeros(0, 4),
        "d": torch.tensor([[1, -2]], dtype=torch.int64),
        "ü": torch.tensor([True, False]),
    }

    def test_round_trip(self, tmp_path: Path) -> None:
        write_safetensors(tmp_path / "t.safetensors", self.TENSORS, {"format": "pt"})
        found = read_safetensors(tmp_path / "t.safetensors")
        assert set(found) == set(self.TENSORS)
        for name, value in self.TENSORS.items():
            assert found[name].dtype == value.dtype
            assert torch.equal(found[name], value)

    def test_package_reads_and_writes_the_same(self, tmp_path: Path) -> None:
        package = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
        write_safetensors(tmp_path / "t.safetensors", self.TENSORS, {"format": "pt"})
        theirs = package.load_file(tmp_path / "t.safetensors")
        assert all(torch.equal(theirs[name], value) for name, value in self.TENSORS.items())
        package.save_file(self.TENSORS, tmp_path / "u.safetensors")
        ours = read_safetensors(tmp_path / "u.safetensors")
        assert all(torch.equal(ours[name], value) for name, value in self.TENSORS.items())

    @pytest.mark.parametrize(
        "entry",
        [
            {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
            {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 1 << 62]},
            {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
            {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
            {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
            {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
            {"dtype": "F32", "shape": [1], "data_offsets": [100, 104]},
            {"shape": [1]},
            [],
        ],
    )
    def test_hostile_entries(self, entry: object, tmp_path: Path) -> None:
        header = json.dumps({"x": entry}).encode()
        (tmp_path / "t.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        with pytest.raises(fcnproto.WeightsError, match="tensor 'x'"):
            read_safetensors(tmp_path / "t.safetensors")

    def test_tensors_in_one_place(self, tmp_path: Path) -> None:
        entry = {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}
        header = json.dumps({f"t{index}": entry for index in range(1000)}).encode()
        (tmp_path / "t.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        with pytest.raises(fcnproto.WeightsError, match=r"t\.safetensors: the tensors 't0' and 't1' overlap"):
            read_safetensors(tmp_path / "t.safetensors")

    @pytest.mark.parametrize(
        "content", [b"", b"1234567", (1 << 40).to_bytes(8, "little") + b"{}", bytes(8), b"\2" + bytes(7) + b"[]"]
    )
    def test_other_files(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "t.safetensors").write_bytes(content)
        with pytest.raises(fcnproto.WeightsError, match="not a safetensors file"):
            read_safetensors(tmp_path / "t.safetensors")


WINDOWS = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4 dim: 20 dim: 20 } } }
layer { name: "p" type: "Pooling" bottom: "data" top: "p" pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "n" type: "LRN" bottom: "p" top: "n" lrn_param { local_size: 3 alpha: 0.1 } }
layer { name: "g" type: "Pooling" bottom: "n" top: "g" pooling_param { pool: AVE global_pooling: true } }
layer { name: "m" type: "Pooling" bottom: "n" top: "m" pooling_param { pool: MAX global_pooling: true } }
layer { name: "a" type: "ArgMax" bottom: "n" top: "a" argmax_param { axis: 1 top_k: 3 } }
"""


@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
def test_programs_of_any_size(ending: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Padded means, global pooling and several of the largest, for which ONNX lacks PyTorch's own words."""
    if ending == ".onnx" and onnx_missing:
        pytest.skip("the ONNX packages are not installed")
    (tmp_path / "net.prototxt").write_text(WINDOWS)
    done = convert(fcnproto.load(tmp_path / "net.prototxt"), tmp_path / f"net{ending}")
    assert "96x64, 67x93, 130x49" in done.checked
    assert not [one for one in recwarn if "takes inputs of" in str(one.message)]


@pytest.mark.parametrize("kind", ["onnx", "pt2", "py"])
def test_ends_in_probabilities_and_labels(kind: str, tmp_path: Path) -> None:
    """--softmax and --argmax, and any batch and size for one file."""
    model, weights = small_fcn(tmp_path)
    out = tmp_path / f"net.{kind}"
    assert main(["convert", str(model), str(weights), str(out), "--softmax", "--argmax"]) == 0
    net = fcnproto.load(model, weights)
    for shape in ((3, 3, 41, 36), (1, 3, 30, 52)):
        x = torch.from_numpy(np.random.default_rng(0).normal(0, 50, shape).astype(np.float32))
        with torch.no_grad():
            scores = net(x)["score"]
        expected = {"score_prob": scores.softmax(1), "score_label": scores.argmax(1, keepdim=True).float()}
        if kind == "onnx":
            onnxruntime = pytest.importorskip("onnxruntime")
            session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
            assert session.get_inputs()[0].shape[0] == "batch"
            names = [one.name for one in session.get_outputs()]
            found = dict(zip(names, map(torch.from_numpy, session.run(names, {"data": x.numpy()})), strict=True))
        elif kind == "pt2":
            found = torch.export.load(out).module()(x)
        else:
            spec = importlib.util.spec_from_file_location("ended", out)
            assert spec and spec.loader
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            found = module.load()(x)
        assert set(found) >= set(expected)
        torch.testing.assert_close(found["score_prob"], expected["score_prob"], rtol=1e-4, atol=1e-5)
        assert (found["score_label"] == expected["score_label"]).float().mean() > 0.999


def test_a_net_that_ends_in_a_softmax_gets_no_other(tmp_path: Path) -> None:
    from fcnproto.export.ending import with_ends

    model, _ = small_fcn(tmp_path)
    model.write_text(model.read_text() + 'layer { name: "p" type: "Softmax" bottom: "score" top: "p" }')
    net = fcnproto.load(model)
    assert with_ends(net, ["Softmax"]) is net
    assert with_ends(net, ["ArgMax", "Softmax"]).outputs == ["p", "score_label"]
