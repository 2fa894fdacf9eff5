"""`fcnproto run`, `summary`, `extract`, `upgrade` and `zoo`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from golden_cases import group_folder
from PIL import Image
from tiny_nets import colour_net, small_fcn

import fcnproto
from fcnproto.cli._main import main
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse_file, read_net

CLASSIFIER = """
layer { name: "mix" type: "InnerProduct" bottom: "score" top: "mix" inner_product_param { num_output: 4
  weight_filler { type: "constant" value: 0.001 } } }
layer { name: "prob" type: "Softmax" bottom: "mix" top: "prob" }
"""
LOSS = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" }'
LABELLED = """
layer { name: "data" type: "Input" top: "data" top: "label" input_param { shape { dim: 1 dim: 3 dim: 6 dim: 9 }
  shape { dim: 1 dim: 1 dim: 6 dim: 9 } } }
"""


def arrays_in(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


class TestRun:
    def test_image(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        model, weights = colour_net(tmp_path)
        pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        out = tmp_path / "out.npz"
        options = ["--image", str(tmp_path / "a.png"), "--mean", "1,2,3", "--blobs", "data", "-o", str(out)]
        assert main(["run", str(model), str(weights), *options]) == 0
        expected = (pixels[:, :, ::-1] - np.array([1.0, 2.0, 3.0])).transpose(2, 0, 1)[None]
        found = arrays_in(out)
        assert set(found) == {"score", "data"}
        np.testing.assert_allclose(found["data"], expected)
        np.testing.assert_allclose(found["score"], expected)
        assert "score   1x3x5x7" in capsys.readouterr().out

    def test_arrays(self, tmp_path: Path) -> None:
        model, weights = colour_net(tmp_path)
        data = np.random.default_rng(0).random((2, 3, 4, 5))
        np.savez(tmp_path / "in.npz", data=data)
        np.save(tmp_path / "in.npy", data)
        for name in ("in.npz", "in.npy"):
            arguments = [str(model), str(weights), "--input", str(tmp_path / name), "-o", str(tmp_path / "o.npz")]
            assert main(["run", *arguments]) == 0
            np.testing.assert_allclose(arrays_in(tmp_path / "o.npz")["score"], data, rtol=1e-6)

    def test_golden_file(self, tmp_path: Path) -> None:
        case = group_folder("layers") / "eltwise_sum3_coeff"
        arguments = [str(case / "net.prototxt"), "--input", str(case / "data.npz"), "-o", str(tmp_path / "o.npz")]
        assert main(["run", *arguments]) == 0
        expected = {key[4:]: value for key, value in arrays_in(case / "data.npz").items() if key.startswith("out.")}
        found = arrays_in(tmp_path / "o.npz")
        assert found
        for name, value in found.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-6)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"dta": np.zeros((1, 3, 2, 2))}, "no inputs in it; the inputs are 'data'"),
            ({"data": np.zeros((1, 3, 2, 2)), "x": np.zeros(2)}, "'x' is no input of the net"),
            ({"data": np.array(["a"])}, "'data' holds no numbers"),
        ],
    )
    def test_wrong_arrays(
        self, tmp_path: Path, content: dict[str, np.ndarray], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model, weights = colour_net(tmp_path)
        np.savez(tmp_path / "in.npz", **content)
        assert main(["run", str(model), str(weights), "--input", str(tmp_path / "in.npz")]) == 1
        assert message in capsys.readouterr().err

    def test_best_classes(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        model, weights = colour_net(tmp_path, CLASSIFIER)
        net = fcnproto.load(model, weights)
        net.params["mix"][1].data.copy_(fcnproto.net.net.torch.tensor([0.0, 1.0, -1.0, 0.5]))
        net.save(weights)
        Image.new("RGB", (40, 30), (9, 9, 9)).save(tmp_path / "a.png")
        (tmp_path / "labels.txt").write_text("n01 tench, fish\ncat\ndog\nowl [bird]\n")
        arguments = [str(model), str(weights), "--image", str(tmp_path / "a.png"), "--mean", "none", "--top-k", "2"]
        assert main(["run", *arguments, "--labels", str(tmp_path / "labels.txt")]) == 0
        odds = np.exp([0, 1, -1, 0.5])
        shares = odds / odds.sum()
        assert capsys.readouterr().out == f"  1  {shares[1]:.6f}  cat\n  2  {shares[3]:.6f}  owl [bird]\n"

    def test_classifiers_get_their_size(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        model, weights = colour_net(tmp_path, CLASSIFIER)
        Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
        image = ["--image", str(tmp_path / "a.png"), "--blobs", "data"]
        assert main(["run", str(model), str(weights), *image]) == 0
        assert "1x3x6x8" in capsys.readouterr().out
        assert main(["run", str(model), str(weights), *image, "--resize", "12x20", "--crop", "6x8"]) == 0
        assert "1x3x6x8" in capsys.readouterr().out
        assert main(["run", str(model), str(weights), *image, "--resize", "12x20"]) == 1
        assert "layer 'mix' (InnerProduct)" in capsys.readouterr().err
        assert main(["run", str(model), str(weights), *image, "--crop", "50x8"]) == 1
        assert "smaller than the crop" in capsys.readouterr().err

    def test_nets_that_end_in_a_loss(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        model, weights = colour_net(tmp_path, LOSS, LABELLED)
        Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
        assert main(["run", str(model), str(weights), "--image", str(tmp_path / "a.png")]) == 0
        assert "score   1x3x3x4" in capsys.readouterr().out
        np.savez(tmp_path / "in.npz", data=np.zeros((1, 3, 2, 2)), label=np.zeros((1, 1, 2, 2), dtype=np.uint8))
        assert main(["run", str(model), str(weights), "--input", str(tmp_path / "in.npz")]) == 0
        assert f"{np.log(3):.6g}"[:6] in capsys.readouterr().out

    def test_missing_input(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        model, weights = colour_net(tmp_path)
        assert main(["run", str(model), str(weights)]) == 2
        assert "the net needs 'data': give --image or --input" in capsys.readouterr().err

    def test_data_layers_read_where_nothing_is_given(self, tmp_path: Path) -> None:
        model = tmp_path / "m.prototxt"
        model.write_text("""
        layer { name: "d" type: "DummyData" top: "d" dummy_data_param { shape { dim: 2 dim: 3 }
          data_filler { type: "constant" value: 4 } } }
        layer { name: "p" type: "Power" bottom: "d" top: "p" power_param { scale: 0.5 } }
        """)
        assert main(["run", str(model), "-o", str(tmp_path / "o.npz")]) == 0
        assert (arrays_in(tmp_path / "o.npz")["p"] == np.full((2, 3), 2)).all()

    def test_blobs_with_any_name(self, tmp_path: Path) -> None:
        extra = 'layer { name: "a/b" type: "ReLU" bottom: "score" top: "a/b" }'
        extra += 'layer { name: "file" type: "Power" bottom: "a/b" top: "file" }'
        model, weights = colour_net(tmp_path, extra)
        np.save(tmp_path / "in.npy", np.ones((1, 3, 2, 2)))
        arguments = [str(model), str(weights), "--input", str(tmp_path / "in.npy"), "--blobs", "a/b"]
        assert main(["run", *arguments, "-o", str(tmp_path / "o.npz")]) == 0
        assert set(arrays_in(tmp_path / "o.npz")) == {"a/b", "file"}


class TestSummary:
    def test_json(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        model, _ = small_fcn(tmp_path)
        assert main(["summary", str(model), "--input-size", "10x12", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        shapes = {name: shape for layer in found["layers"] for name, shape in layer["tops"].items()}
        assert shapes["conv"] == [1, 4, 28, 30]
        assert shapes["pool"] == [1, 4, 14, 15]
        assert shapes["up"] == [1, 5, 30, 32]
        assert shapes["score"] == [1, 5, 10, 12]
        assert found["parameters"] == 4 * 27 + 4 + 5 * 4 + 5 + 5 * 16
        assert found["learnable"] == found["parameters"] - 5 * 16

    def test_table(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        model, _ = small_fcn(tmp_path)
        assert main(["summary", str(model)]) == 0
        out = capsys.readouterr().out
        assert "score 1x5x20x20" in out
        assert "parameters      217, 80 of them fixed" in out

    def test_size_that_does_not_fit(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        model, _ = colour_net(tmp_path, CLASSIFIER)
        assert main(["summary", str(model), "--input-size", "7x7"]) == 1
        assert "layer 'mix' (InnerProduct)" in capsys.readouterr().err


class TestExtract:
    def test_comes_back_as_it_was(self, tmp_path: Path) -> None:
        model, weights = small_fcn(tmp_path)
        assert main(["extract", str(weights), "-o", str(tmp_path / "e.prototxt")]) == 0
        assert read_net(tmp_path / "e.prototxt") == read_net(model)
        fcnproto.load(tmp_path / "e.prototxt", weights)

    def test_to_stdout_and_raw(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        _, weights = small_fcn(tmp_path)
        assert main(["extract", str(weights)]) == 0
        out = capsys.readouterr().out
        assert out.startswith('name: "small"\n')
        assert "phase" not in out
        assert "Split" not in out
        assert main(["extract", str(weights), "--raw"]) == 0
        out = capsys.readouterr().out
        assert "phase: TEST" in out
        assert 'type: "Split"' in out  # of data, which the Crop reads too

    def test_prototxt_instead_of_weights(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        model, _ = small_fcn(tmp_path)
        assert main(["extract", str(model)]) == 1
        assert "perhaps a prototxt" in capsys.readouterr().err


class TestUpgrade:
    OLD_NET = """
    input: "data" input_dim: 1 input_dim: 3 input_dim: 4 input_dim: 4
    layers { name: "c" type: CONVOLUTION bottom: "data" top: "c" blobs_lr: 1 blobs_lr: 2
      convolution_param { num_output: 2 kernel_size: 1 } }
    """

    def test_net(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "old.prototxt").write_text(self.OLD_NET)
        assert main(["upgrade", str(tmp_path / "old.prototxt"), str(tmp_path / "new.prototxt")]) == 0
        assert "V1 format" in capsys.readouterr().err
        net = parse_file(tmp_path / "new.prototxt", caffe_pb2.NetParameter)
        assert [layer.type for layer in net.layer] == ["Input", "Convolution"]
        assert [param.lr_mult for param in net.layer[1].param] == [1, 2]
        assert main(["upgrade", str(tmp_path / "new.prototxt"), str(tmp_path / "newer.prototxt")]) == 0
        assert "is in the current format already" in capsys.readouterr().err
        assert (tmp_path / "newer.prototxt").read_text() == (tmp_path / "new.prototxt").read_text()

    def test_solver(self, tmp_path: Path) -> None:
        (tmp_path / "old.prototxt").write_text('net: "n.prototxt" base_lr: 0.1 solver_type: ADAGRAD')
        assert main(["upgrade", str(tmp_path / "old.prototxt"), str(tmp_path / "new.prototxt")]) == 0
        solver = parse_file(tmp_path / "new.prototxt", caffe_pb2.SolverParameter)
        assert (solver.type, solver.HasField("solver_type")) == ("AdaGrad", False)

    def test_binary(self, tmp_path: Path) -> None:
        old = caffe_pb2.NetParameter(name="old")
        layer = old.layers.add(name="ip", type=caffe_pb2.V1LayerParameter.INNER_PRODUCT, bottom=["x"], top=["y"])
        layer.blobs.add(num=1, channels=1, height=2, width=3, data=range(6))
        (tmp_path / "old.caffemodel").write_bytes(old.SerializeToString())
        assert main(["upgrade", str(tmp_path / "old.caffemodel"), str(tmp_path / "new.caffemodel")]) == 0
        new = caffe_pb2.NetParameter.FromString((tmp_path / "new.caffemodel").read_bytes())
        assert [found.type for found in new.layer] == ["InnerProduct"]
        assert list(new.layer[0].blobs[0].data) == list(range(6))

    def test_neither(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "a.prototxt").write_text("base_lr: 0.1\nmomentum: 0.9.1\n")
        assert main(["upgrade", str(tmp_path / "a.prototxt"), str(tmp_path / "b.prototxt")]) == 1
        assert "a.prototxt:2:11" in capsys.readouterr().err  # the solver's error: more of the file is a solver
        assert not (tmp_path / "b.prototxt").exists()
        assert main(["upgrade", str(tmp_path / "missing"), str(tmp_path / "b.prototxt")]) == 1
        assert "No such file" in capsys.readouterr().err


class TestZoo:
    def test_list_and_path(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["zoo", "list"]) == 0
        listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]]
        assert listed == fcnproto.zoo.names()
        assert main(["zoo", "path", "voc-fcn8s", "solver"]) == 0
        assert Path(capsys.readouterr().out.strip()) == fcnproto.zoo.path("voc-fcn8s", "solver")

    def test_info(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["zoo", "info", "voc-fcn8s"]) == 0
        out = capsys.readouterr().out
        assert "104.007, 116.669, 122.679" in out
        assert "aeroplane" in out
        assert main(["zoo", "info", "voc-fcn8s", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["outputs"][0]["classes"][15] == "person"
