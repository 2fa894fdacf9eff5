"""A folder of nets moved elsewhere: found, paired, compared, converted, reported, gone on with."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import fcnproto
from fcnproto.cli._main import commands
from fcnproto.migration import migrate
from fcnproto.migration.finding import find

NET = """
name: "small"
{input}
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param {{ num_output: 4 kernel_size: 3 pad: 1 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "relu" type: "ReLU" bottom: "conv" top: "conv" }}
layer {{ name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param {{ kernel_size: 3 stride: 2 }} }}
layer {{ name: "score" type: "Convolution" bottom: "pool" top: "score"
  convolution_param {{ num_output: {classes} kernel_size: 1 weight_filler {{ type: "xavier" }} }} }}
{end}
"""
INPUT = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 11 dim: 14 } } }'
DATA = 'layer { name: "data" type: "DummyData" top: "data" dummy_data_param { shape { dim: 2 dim: 3 dim: 9 dim: 9 } } }'
PYTHON = 'layer { name: "own" type: "Python" bottom: "score" top: "own" python_param { module: "m" layer: "L" } }'


def text(classes: int = 5, first: str = INPUT, end: str = "") -> str:
    return NET.format(input=first, classes=classes, end=end)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a/: a net with two snapshots, its solver and a recording; b/: the same with another number of classes; others."""
    folder = tmp_path / "nets"
    for name in ("a", "b", "c"):
        (folder / name).mkdir(parents=True)
    (folder / "a" / "deploy.prototxt").write_text(text())
    (folder / "a" / "solver.prototxt").write_text('net: "train.prototxt" base_lr: 0.1 lr_policy: "fixed"')
    torch.manual_seed(3)
    net = fcnproto.load(folder / "a" / "deploy.prototxt")
    net.save(folder / "a" / "small_iter_200.caffemodel")
    data = torch.randn(1, 3, 11, 14)
    found = net(data=data, blobs=["conv", "pool"])
    recording = {"in.data": data.numpy()} | {f"out.{name}": value.detach().numpy() for name, value in found.items()}
    np.savez(folder / "a" / "blobs.npz", **recording)
    fcnproto.load(folder / "a" / "deploy.prototxt").save(folder / "a" / "small_iter_100.caffemodel")
    (folder / "b" / "deploy.prototxt").write_text(text(classes=7))
    fcnproto.load(folder / "b" / "deploy.prototxt").save(folder / "b" / "other.caffemodel")
    return folder


def entries(out: Path) -> dict[str, dict]:
    return {net["net"]: net for net in json.loads((out / "report.json").read_text())["nets"]}


def test_nets_are_paired_compared_converted_and_reported(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = migrate(folder, out)
    assert outcome.sound
    found = entries(out)
    assert set(found) == {"a/deploy.prototxt", "b/deploy.prototxt"}  # the solver is no net
    first, second = found["a/deploy.prototxt"], found["b/deploy.prototxt"]
    assert first["weights"] == "a/small_iter_200.caffemodel"
    assert first["other weights"][0] == "a/small_iter_100.caffemodel"
    assert second["weights"] == "b/other.caffemodel"
    compared = {one["reference"]: one for one in first["compared"]}
    assert compared["a/blobs.npz"]["agrees"] and compared["float64"]["worst"] < 1e-6
    assert {one["target"] for one in first["converted"]} == {"py", "safetensors"}
    for one in first["converted"]:
        assert one["agrees"] and one["worst"] < 1e-5
        for file in one["files"]:
            assert hashlib.sha256((out / file["path"]).read_bytes()).hexdigest() == file["sha256"]
    for file in first["files"]:
        assert hashlib.sha256((folder / file["path"]).read_bytes()).hexdigest() == file["sha256"]
    report = json.loads((out / "report.json").read_text())
    assert report["versions"]["torch"] and report["date"] and report["command"] and report["tolerances"]
    assert report["counts"] == {"nets": 2, "agrees": 2, "departs": 0, "failed": 0, "no weights": 0}
    page = (out / "report.html").read_text()
    assert "a/deploy.prototxt" in page and report["date"] in page and first["files"][0]["sha256"] in page
    assert "<td>py, safetensors</td>" in page and "float64 1e-05, OpenCV 0.0001" in page


def test_the_converted_files_work(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    migrate(folder, out)
    net = fcnproto.load(folder / "a" / "deploy.prototxt", folder / "a" / "small_iter_200.caffemodel")
    again = fcnproto.load(folder / "a" / "deploy.prototxt", out / "a" / "deploy.safetensors")
    data = torch.randn(1, 3, 20, 17)
    assert torch.equal(net(data=data)["score"], again(data=data)["score"])
    spec = importlib.util.spec_from_file_location("deploy", out / "a" / "deploy.py")
    assert spec and spec.loader
    own = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)
    assert torch.equal(own.load()(data), net(data=data)["score"])


def test_a_run_that_ended_goes_on(folder: Path, tmp_path: Path) -> None:
    out, done = tmp_path / "out", []

    def end(index: int, count: int, entry: dict) -> None:
        done.append(entry["net"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        migrate(folder, out, tell=end)
    (first,) = entries(out).values()
    assert migrate(folder, out).sound
    again = entries(out)
    assert again[done[0]] == first and len(again) == 2  # to the second that it took: it wasn't done again
    (out / "a" / "deploy.safetensors").write_bytes(b"damaged")
    migrate(folder, out)
    assert entries(out)["a/deploy.prototxt"]["seconds"] is not None
    assert hashlib.sha256((out / "a" / "deploy.safetensors").read_bytes()).hexdigest() in json.dumps(entries(out))
    assert entries(out)["b/deploy.prototxt"] == again["b/deploy.prototxt"]
    fcnproto.load(folder / "b" / "deploy.prototxt").save(folder / "b" / "other.caffemodel")
    migrate(folder, out)
    assert entries(out)["b/deploy.prototxt"] != again["b/deploy.prototxt"]


def test_departures_and_failures_are_told(folder: Path, tmp_path: Path) -> None:
    with np.load(folder / "a" / "blobs.npz") as stored:
        arrays = dict(stored)
    arrays["out.pool"] = arrays["out.pool"] * 1.01
    np.savez(folder / "a" / "blobs.npz", **arrays)
    (folder / "b" / "other.caffemodel").write_bytes(b"\xff\xff no net")
    (folder / "c" / "broken.prototxt").write_text("layer { name: 1.5 }")
    (folder / "c" / "alone.prototxt").write_text(text(first=DATA).replace('"conv"', '"c"').replace('"score"', '"s"'))
    (folder / "c" / "own.prototxt").write_text(text(end=PYTHON))
    outcome = migrate(folder, tmp_path / "out", ["safetensors"])
    found = entries(tmp_path / "out")
    verdicts = {name: net["verdict"] for name, net in found.items()}
    assert not outcome.sound
    assert verdicts["a/deploy.prototxt"] == "departs"
    assert "blob 'pool'" in json.dumps(found["a/deploy.prototxt"]["compared"])
    assert verdicts["b/deploy.prototxt"] == "failed" and "'score'" in found["b/deploy.prototxt"]["error"]
    assert verdicts["c/broken.prototxt"] == "failed" and "broken.prototxt:1" in found["c/broken.prototxt"]["error"]
    assert verdicts["c/alone.prototxt"] == "no weights"
    assert "allow" in json.dumps(found["c/own.prototxt"])
    assert not list((tmp_path / "out" / "c").glob("alone*"))


def test_names_in_the_report_are_text(folder: Path, tmp_path: Path) -> None:
    (folder / "a" / "deploy.prototxt").rename(folder / "a" / "<script>alert(1)<.prototxt")
    migrate(folder, tmp_path / "out", ["safetensors"])
    assert "<script>alert" not in (tmp_path / "out" / "report.html").read_text()


def test_texts_that_differ_in_their_ending_alone(folder: Path, tmp_path: Path) -> None:
    (folder / "a" / "deploy.pbtxt").write_text(text())
    migrate(folder, tmp_path / "out", ["safetensors"])
    assert (tmp_path / "out" / "a" / "deploy_pbtxt.safetensors").exists()
    assert (tmp_path / "out" / "a" / "deploy_prototxt.safetensors").exists()


def test_the_output_is_not_searched(folder: Path) -> None:
    out = folder / "out"
    migrate(folder, out, ["safetensors"])
    (out / "later.prototxt").write_text(text())
    assert [net.path.name for net in find(folder, out)] == ["deploy.prototxt"] * 2


def test_an_image_of_one_pixel_holds_a_place(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Pose nets say their size so; they are compared with an image, and neither the search nor OpenCV chatters."""
    old = 'input: "data" input_dim: 1 input_dim: 3 input_dim: 1 input_dim: 1 '
    folder = tmp_path / "nets"
    folder.mkdir()
    (folder / "pose.prototxt").write_text(text(first=old))
    dense = 'layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 2 } }'
    (folder / "vector.prototxt").write_text(old + dense)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for net in find(folder, tmp_path / "out"):
            with pytest.warns(fcnproto.errors.FcnprotoWarning, match="deprecated"):
                fcnproto.load(net.path).save(net.path.with_suffix(".caffemodel"))
        migrate(folder, tmp_path / "out", ["safetensors"])
    found = entries(tmp_path / "out")
    assert found["pose.prototxt"]["inputs"]["data"] == [1, 3, 96, 96]
    assert found["vector.prototxt"]["inputs"]["data"] == [1, 3, 1, 1]
    assert any("deprecated" in said for said in found["pose.prototxt"]["warnings"])
    assert capfd.readouterr().err == ""


def test_certain_probabilities_prove_nothing(tmp_path: Path) -> None:
    """Where random images give probabilities of 0 and 1 alone, smaller values are compared."""
    (tmp_path / "nets").mkdir()
    model = tmp_path / "nets" / "n.prototxt"
    model.write_text(text(end='layer { name: "prob" type: "Softmax" bottom: "score" top: "prob" }'))
    net = fcnproto.load(model)
    with torch.no_grad():
        net.params["score"][0].normal_().mul_(100)
    net.save(model.with_suffix(".caffemodel"))
    migrate(tmp_path / "nets", tmp_path / "out", ["safetensors"])
    found = entries(tmp_path / "out")["n.prototxt"]
    assert found["inputs"]["values"].startswith("random, seed 1, values 0.")
    assert found["verdict"] == "agrees" and found["converted"][0]["worst"] > 1e-12


def test_the_command(folder: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    result = run(commands, ["migrate", str(folder), "-o", str(tmp_path / "out"), "--to", "safetensors", "--json"])
    assert result.exit_code in (0, None) and json.loads(result.stdout)["counts"]["agrees"] == 2
    for wrong, words in ((["--to", "coreml"], "targets are"), (["--to", ","], "targets are")):
        result = run(commands, ["migrate", str(folder), "-o", str(tmp_path / "o2"), *wrong])
        assert words in str(result.exception)
    empty = tmp_path / "empty"
    empty.mkdir()
    result = run(commands, ["migrate", str(empty), "-o", str(tmp_path / "o3")])
    assert "holds no net" in str(result.exception) and not (tmp_path / "o3").exists()
