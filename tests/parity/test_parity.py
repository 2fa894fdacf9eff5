"""Comparisons with golden files, with our own layers in float64, with OpenCV, and with a Caffe elsewhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import golden_cases
import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_nets import colour_net, small_fcn

import fcnproto
from fcnproto.cli._main import main
from fcnproto.errors import UsageError
from fcnproto.parity import (
    DUMP_SCRIPT,
    Recording,
    caffe_reference,
    compare,
    float64_reference,
    opencv_reference,
    random_inputs,
    read_recording,
)
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

CASES = ["conv_group", "deconv_fcn_up2", "pool_ave_pad_clip", "lrn_across", "softmaxloss_ignore_valid", "lstm_static"]

# A Caffe made of this package, for an interpreter that "has" pycaffe: it shows the protocol, not Caffe's numbers.
CAFFE = """
import collections
import numpy as np
import torch
import fcnproto

TRAIN, TEST = 0, 1

class Blob(object):
    def __init__(self, shape):
        self.data, self.diff = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    def reshape(self, *shape):
        self.__init__(shape)

class Net(object):
    def __init__(self, model, weights, phase):
        self.net = fcnproto.load(model, weights, phase=phase)
        self.inputs, self.outputs = self.net.inputs, self.net.outputs
        names = [b.name for n in self.net.graph.nodes for b in n.tops if n.type != "Split"]
        self.blobs = collections.OrderedDict((name, Blob((1,))) for name in names)
        for name in self.inputs:
            self.blobs[name].reshape(*self.net.source_shapes[name])
        self.params = collections.OrderedDict(
            (layer, [Blob(tuple(b.shape)) for b in blobs]) for layer, blobs in self.net.params.items())
        for layer, blobs in self.net.params.items():
            for mine, theirs in zip(self.params[layer], blobs):
                mine.data[...] = theirs.detach().numpy()
        self.blob_loss_weights = {b.name: w for b, w in self.net.graph.weighted()}
    def reshape(self):
        pass
    def forward(self):
        self.given = {n: torch.from_numpy(self.blobs[n].data.copy()).requires_grad_() for n in self.inputs}
        self.out = self.net(self.given, blobs=[n for n in self.blobs if n not in self.inputs])
        for name, value in self.out.items():
            self.blobs[name].data = value.detach().numpy().copy()
    def backward(self, **seeds):
        if not self.blob_loss_weights and not self.net.graph.force_backward:
            return
        total = self.net.loss(self.out)
        for name, seed in seeds.items():
            total = total + (self.out[name] * torch.from_numpy(seed)).sum()
        total.backward()
        for name, value in self.given.items():
            self.blobs[name].diff = value.grad.numpy()
        for layer, blobs in self.net.params.items():
            for mine, theirs in zip(self.params[layer], blobs):
                if theirs.grad is not None:
                    mine.diff[...] = theirs.grad.numpy()
"""


@pytest.fixture
def interpreter(tmp_path: Path) -> str:
    """A program that is Python with a pycaffe."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "caffe.py").write_text(CAFFE)
    program = tmp_path / "python-with-caffe"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path / "site"}:$PYTHONPATH" exec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    return str(program)


def cli_case(name: str, group: str = "layers") -> tuple[list[str], golden_cases.Case]:
    case = golden_cases.load(group, name)
    phase = ["--phase", case.facts["phase"].lower()]
    return ["parity", str(case.folder / "net.prototxt"), "--golden", str(case.folder / "data.npz"), *phase], case


@pytest.mark.parametrize("name", CASES)
def test_golden_layers_agree(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, case = cli_case(name)
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "agrees with" in out
    if case.keys("gparam"):
        assert "parameter gradient" in out


def test_golden_net_in_training(tmp_path: Path) -> None:
    case = golden_cases.load("fcn", "voc_fcn8s_train")
    recording = read_recording(case.folder / "data.npz")
    report = compare(case.net(), recording)
    assert report.agrees
    assert report.equal_parameters == len(case.keys("param"))
    kinds = [entry.kind for entry in report.entries]
    assert kinds == sorted(kinds, key=["blob", "parameter gradient", "input gradient"].index)
    names = [entry.name for entry in report.entries if entry.kind == "parameter gradient"]
    assert names.index("score_fr.0") < names.index("conv1_1.0")


def test_hdf5_recordings(tmp_path: Path) -> None:
    case = golden_cases.load("layers", "conv_group")
    flat, grouped = tmp_path / "flat.h5", tmp_path / "grouped.h5"
    with h5py.File(flat, "w") as one, h5py.File(grouped, "w") as other:
        for key, value in case.arrays.items():
            one[key] = value
            kind, _, name = key.partition(".")
            other[f"{kind}/{name}"] = value
    for file in (flat, grouped):
        recording = read_recording(file)
        assert recording.arrays().keys() == read_recording(case.folder / "data.npz").arrays().keys()
        assert compare(case.net(), recording).agrees


def test_departure_is_found_where_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = golden_cases.load("fcn", "voc_fcn8s_forward")
    net = case.net()
    with torch.no_grad():
        net.params["score_pool4"][0].mul_(1.5)
        net.params["score_pool4"][1].mul_(1.5)
    recording = read_recording(case.folder / "data.npz")
    recording.params.clear()
    report = compare(net, recording)
    assert report.departure is not None
    assert report.departure.entry.layer == "score_pool4"
    assert "constant factor: ours is 1.5 times" in report.departure.looks_like
    assert "the cause is in it" in report.departure.cause
    before = [e for e in report.entries if e.kind == "blob"][: report.entries.index(report.departure.entry)]
    assert before
    assert all(entry.agrees for entry in before)
    assert "score" in report.maps


def test_a_layer_that_hands_on_is_not_blamed() -> None:
    case = golden_cases.load("fcn", "voc_fcn8s_forward")
    recording = read_recording(case.folder / "data.npz")
    # Without pool3 the first departure shows at score_pool3 or pool4, whose own bottoms the reference has.
    net = case.net()
    with torch.no_grad():
        net.params["conv4_2"][0].mul_(1.01)
    recording.params.clear()
    for name in ("conv4_2", "conv4_3"):
        recording.blobs.pop(name, None)
    report = compare(net, recording)
    assert report.departure is not None
    assert report.departure.entry.name in ("pool4", "conv4_3")


def test_weights_of_another_net_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, case = cli_case("conv_group")
    net = case.net()
    with torch.no_grad():
        next(iter(net.params.values()))[1].add_(1)
    net.save(tmp_path / "other.caffemodel")
    arguments.insert(2, str(tmp_path / "other.caffemodel"))
    assert main([*arguments, "--json", str(tmp_path / "r.json")]) == 1
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["first_departure"]["kind"] == "parameter"
    assert not found["agrees"]
    assert "weights differ" in capsys.readouterr().out


def test_float64_with_gradients(tmp_path: Path) -> None:
    model, weights = small_fcn(tmp_path)
    net = fcnproto.load(model, weights)
    recording = float64_reference(net, random_inputs(net), with_gradients=True)
    assert recording.blobs["score"].dtype == np.float64
    assert {"conv.0", "class.1"} <= set(recording.param_gradients)
    report = compare(net, recording)
    assert report.agrees
    assert 0 < report.worst < 1e-6


def test_opencv_5_reads_no_caffe_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    five = types.ModuleType("cv2")
    five.__version__, five.dnn = "5.0.0", types.SimpleNamespace()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cv2", five)
    net = fcnproto.load(*colour_net(tmp_path))
    with pytest.raises(UsageError, match=r"OpenCV 5\.0\.0 no longer reads .*'opencv-python-headless<5'"):
        opencv_reference(net, random_inputs(net, (8, 8)))


def test_opencv_reads_the_files_itself(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    model, weights = small_fcn(tmp_path)
    net = fcnproto.load(model, weights)
    report = compare(net, opencv_reference(net, random_inputs(net, (33, 27))), tolerance=1e-5)
    assert report.agrees
    assert [entry.name for entry in report.entries] == ["conv", "pool", "class", "up", "score"]
    assert report.entries[-1].measures is not None
    assert report.entries[-1].measures.argmax is not None


def test_caffe_elsewhere(tmp_path: Path, interpreter: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, weights = small_fcn(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    common = ["parity", str(model), str(weights), "--reference", "caffe", "--python", interpreter]
    assert main([*common, "--image", str(tmp_path / "a.png"), "--mean", "100", "--backward"]) == 0
    out = capsys.readouterr().out
    assert "1x5x24x31" in out
    assert "input gradient data" in out
    assert "parameter gradient up.0" in out


def test_gradients_of_a_net_without_loss(tmp_path: Path, interpreter: str) -> None:
    # Caffe computes them under force_backward alone, and then those of frozen parameters as well.
    model, weights = small_fcn(tmp_path)
    model.write_text(model.read_text() + "force_backward : false # as everywhere\n")
    dump = tmp_path / "dump.npz"
    subprocess.run([interpreter, DUMP_SCRIPT, model, weights, dump, "--backward"], check=True)
    recording = read_recording(dump)
    assert all(value.any() for value in recording.param_gradients.values())
    net = fcnproto.load(model, weights)
    frozen = net.params["up"][0]
    report = compare(net, recording)
    assert report.agrees
    assert "up.0" in [entry.name for entry in report.entries]
    assert not frozen.requires_grad
    recording.param_gradients["up.0"] *= 1.5
    assert not compare(net, recording).agrees


def test_automatic_copies_are_known(tmp_path: Path) -> None:
    net = fcnproto.load(*small_fcn(tmp_path))
    recording = float64_reference(net, random_inputs(net))
    for name in ("data_data_0_split_0", "data_data_0_split_1", "of_another_net"):
        recording.blobs[name] = recording.inputs["data"]
    assert compare(net, recording).unknown == ["of_another_net"]


def test_a_users_own_split_is_compared_like_any_layer() -> None:
    text = """
        layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 } } }
        layer { name: "my_split" type: "Split" bottom: "data" top: "a" top: "b" }
        layer { name: "p" type: "Power" bottom: "a" top: "pa" power_param { scale: 2 } }"""
    net = fcnproto.load(parse(text, caffe_pb2.NetParameter))
    x = np.ones((1, 2), np.float32)
    report = compare(net, Recording(source="wrong in b", inputs={"data": x}, blobs={"b": x * 100, "pa": x * 2}))
    assert not report.agrees
    assert [(entry.name, entry.agrees) for entry in report.entries] == [("b", False), ("pa", True)]


def test_the_fatal_line_of_a_caffe_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, weights = small_fcn(tmp_path)
    program = tmp_path / "fatal"
    lines = (
        "I20200131 10:00:00.000001    77 net.cpp:255] Network initialization done.",
        "F20200131 10:00:00.000002    77 argmax_layer.hpp:67] Not Implemented Yet",
        "*** Check failure stack trace: ***",
        "    @     0x7f0000000000  google::LogMessage::Fail()",
    )
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}' >&2\n" for line in lines) + "exit 134\n")
    program.chmod(0o755)
    assert main(["parity", str(model), str(weights), "--reference", "caffe", "--python", str(program)]) == 1
    assert capsys.readouterr().err.endswith(f"Caffe in {program} failed: Not Implemented Yet\n")


def test_caffe_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, weights = small_fcn(tmp_path)
    common = ["parity", str(model), str(weights), "--reference", "caffe", "--python"]
    assert main([*common, str(tmp_path / "none")]) == 1
    assert "can't be started" in capsys.readouterr().err
    program = tmp_path / "broken"
    program.write_text('#!/bin/sh\necho "ImportError: No module named caffe" >&2\nexit 1\n')
    program.chmod(0o755)
    assert main([*common, str(program)]) == 1
    assert "No module named caffe" in capsys.readouterr().err


def test_dump_script_stands_alone(tmp_path: Path, interpreter: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", "--dump-script"]) == 0
    script = tmp_path / "dump.py"
    script.write_text(capsys.readouterr().out)
    assert script.read_text() == DUMP_SCRIPT.read_text()
    model, weights = small_fcn(tmp_path)
    dump = tmp_path / "dump.npz"
    subprocess.run([interpreter, script, model, weights, dump, "--backward", "--params"], check=True)
    assert main(["parity", str(model), str(weights), "--golden", str(dump)]) == 0
    net = fcnproto.load(model, weights)
    assert compare(net, read_recording(dump)).equal_parameters == 5
    assert not compare(fcnproto.load(model), read_recording(dump)).agrees


# A pycaffe of numpy alone, for interpreters that have no torch (Python 2.7): the net y = 2 x + 1, and its gradient.
PLAIN_CAFFE = """
import collections
import numpy as np

TRAIN, TEST = 0, 1

class Blob(object):
    def __init__(self, shape):
        self.data, self.diff = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    def reshape(self, *shape):
        self.__init__(shape)

class Net(object):
    def __init__(self, model, weights, phase):
        self.forced = b"force_backward: true" in open(model, "rb").read()
        self.inputs, self.outputs, self.layers = ["x"], ["a/y"], []
        self.blobs = collections.OrderedDict([("x", Blob((2, 3))), ("a/y", Blob((2, 3)))])
        self.params, self.blob_loss_weights = {}, {}
    def reshape(self):
        self.blobs["a/y"].reshape(*self.blobs["x"].data.shape)
    def forward(self):
        self.blobs["a/y"].data[...] = 2 * self.blobs["x"].data + 1
    def backward(self, **seeds):
        if self.forced:
            self.blobs["x"].diff[...] = 2 * seeds["a/y"]
"""
PLAIN_NET = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "y" type: "Power" bottom: "x" top: "a/y" power_param { scale: 2 shift: 1 } }
"""


def python2() -> str | None:
    """A Python 2.7 with numpy, if there is one."""
    for name in ("python2.7", "python2"):
        program = shutil.which(name)
        if program and subprocess.run([program, "-c", "import numpy"], capture_output=True).returncode == 0:
            return program
    return None


@pytest.mark.parametrize("ending", [".npz", ".h5"])
@pytest.mark.parametrize("version", [2, 3])
def test_dump_script_by_itself(version: int, ending: str, tmp_path: Path) -> None:
    program = sys.executable if version == 3 else python2()
    if program is None:
        pytest.skip("no Python 2.7 with numpy is installed")
    if version == 2 and ending == ".h5" and subprocess.run([program, "-c", "import h5py"]).returncode:
        pytest.skip("Python 2.7 has no h5py")
    (tmp_path / "caffe.py").write_text(PLAIN_CAFFE)
    shutil.copy(DUMP_SCRIPT, tmp_path / "dump.py")  # Python puts the script's folder on its path
    (tmp_path / "net.prototxt").write_text(PLAIN_NET)
    (tmp_path / "net.caffemodel").write_bytes(b"")
    np.savez(tmp_path / "in.npz", x=np.arange(8, dtype=np.float32).reshape(4, 2))
    names = ["dump.py", "net.prototxt", "net.caffemodel", f"dump{ending}", "--input", "in.npz", "--backward"]
    subprocess.run([program, *names], cwd=tmp_path, check=True)
    assert not list(tmp_path.glob("*.part"))
    recording = read_recording(tmp_path / f"dump{ending}")
    assert set(recording.arrays()) == {"in.x", "out.x", "out.a/y", "gout.a/y", "gin.x"}
    np.testing.assert_array_equal(recording.blobs["a/y"], 2 * np.arange(8).reshape(4, 2) + 1)
    assert main(["parity", str(tmp_path / "net.prototxt"), "--golden", str(tmp_path / f"dump{ending}")]) == 0


def test_caffe_reference_gives_what_it_was_given(tmp_path: Path, interpreter: str) -> None:
    net = fcnproto.load(*small_fcn(tmp_path))
    inputs = random_inputs(net, (21, 22))
    recording = caffe_reference(net, inputs, python=interpreter)
    np.testing.assert_array_equal(recording.inputs["data"], inputs["data"])
    assert not recording.has_gradients


def test_page(tmp_path: Path) -> None:
    model, weights = small_fcn(tmp_path)
    page = tmp_path / "r.html"
    assert main(["parity", str(model), str(weights), "--reference", "float64", "--html", str(page)]) == 0
    text = page.read_text()
    for part in ("All 5 arrays agree", 'data-layer="up"', "<svg", "data:image/png;base64,", "Score maps"):
        assert part in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_input_that_the_net_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, weights = small_fcn(tmp_path)
    np.savez(tmp_path / "g.npz", **{"in.image": np.zeros((1, 3, 20, 20)), "out.score": np.zeros((1, 5, 20, 20))})
    assert main(["parity", str(model), str(weights), "--golden", str(tmp_path / "g.npz")]) == 1
    assert "'image' is no input" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "not a readable"), (b"PK\x03\x04 but no zip", "not a readable"), (b"\x89HDF\r\n\x1a\nxx", "not a readable")],
)
def test_damaged_recordings(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "g.npz").write_bytes(content)
    with pytest.raises(fcnproto.DataError, match=expected):
        read_recording(tmp_path / "g.npz")


def test_recording_without_blobs(tmp_path: Path) -> None:
    np.savez(tmp_path / "g.npz", data=np.zeros(3))
    with pytest.raises(fcnproto.DataError, match="nothing to compare"):
        read_recording(tmp_path / "g.npz")


@pytest.mark.parametrize(
    "options",
    [[], ["--golden", "g.npz", "--reference", "float64"], ["--reference", "opencv", "--backward"]],
)
def test_wrong_usage(options: list[str], tmp_path: Path) -> None:
    model, weights = small_fcn(tmp_path)
    assert main(["parity", str(model), str(weights), *options]) == 2


def test_random_inputs_give_labels_that_losses_accept() -> None:
    net = golden_cases.load("fcn", "voc_fcn8s_train").net()
    inputs = random_inputs(net, (40, 48))
    assert set(np.unique(inputs["label"])) == {0, 1}
    assert inputs["data"].min() < -50
    assert bool(compare(net, float64_reference(net, inputs)).agrees)
