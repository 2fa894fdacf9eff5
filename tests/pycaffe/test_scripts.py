"""Scripts as they were written for pycaffe, most of them in Python 2: a project trains, scores, snapshots, resumes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fcnproto
import fcnproto.pycaffe as caffe
from fcnproto.cli._main import main

BLOCKS = '''
import numpy as np
import caffe

class Blocks(caffe.Layer):
    """Half of each image is bright, and that half is class 1."""

    def setup(self, bottom, top):
        params = eval(self.param_str)
        self.items = range(params['count'])
        self.index = 0
        if len(top) != 2:
            raise Exception, "needs data and label"

    def reshape(self, bottom, top):
        self.label = np.zeros((1, 6, 8), dtype=np.float)
        self.label[:, :, :8 / 2] = self.items[self.index] % 2
        self.label[:, :, 8 / 2:] = 1 - self.items[self.index] % 2
        top[0].reshape(1, 1, 6, 8)
        top[1].reshape(1, *self.label.shape)

    def forward(self, bottom, top):
        top[0].data[...] = self.label
        top[1].data[...] = self.label
        self.index = (self.index + 1) % len(self.items)

    def backward(self, top, propagate_down, bottom):
        pass
'''
NET = """
layer { name: "data" type: "Python" top: "data" top: "label" python_param { module: "blocks_layer" layer: "Blocks" param_str: "{'count': 3}" } }
layer { name: "class" type: "Convolution" bottom: "data" top: "class" convolution_param { num_output: 2 kernel_size: 2 stride: 2 } }
layer { name: "up" type: "Deconvolution" bottom: "class" top: "score" param { lr_mult: 0 } convolution_param { num_output: 2 group: 2 kernel_size: 2 stride: 2 bias_term: false } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" loss_param { ignore_label: 255 } }
"""
SOLVER = """
train_net: "../net.prototxt" test_net: "../net.prototxt" test_iter: 3 test_interval: 99999 test_initialization: false
base_lr: 0.5 lr_policy: "fixed" momentum: 0.9 snapshot: 20 snapshot_prefix: "snapshot/train" max_iter: 40
"""
TOOLS = """
import numpy as np

def fill_up(net):
    for name in (k for k in net.params.iterkeys() if 'up' in k):
        net.params[name][0].data[...] = 1

def score(solver):
    net = solver.test_nets[0]
    net.share_with(solver.net)
    right = total = 0
    for _ in xrange(3):
        net.forward()
        right += (net.blobs['score'].data[0].argmax(0) == net.blobs['label'].data[0, 0]).sum()
        total += net.blobs['label'].data.size
    print '>>>', 'iteration', solver.iter, 'accuracy', right / float(total), 'whole', right / total
"""
SOLVE = """
import sys
import caffe
import tools

caffe.set_device(int(sys.argv[1]))
caffe.set_mode_gpu()
solver = caffe.SGDSolver('solver.prototxt')
if len(sys.argv) > 2:
    solver.restore(sys.argv[2])
    print 'at', solver.iter, [float(b.data.sum()) for b in solver.net.params['class']]
else:
    tools.fill_up(solver.net)
    for _ in range(2):
        solver.step(10)
        tools.score(solver)
    solver.step(1)
    solver.snapshot()
    print 'at', solver.iter
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tools and a folder of one net, in which one stands."""
    (tmp_path / "run").mkdir()
    for name, text in {"blocks_layer.py": BLOCKS, "tools.py": TOOLS, "net.prototxt": NET}.items():
        (tmp_path / name).write_text(text)
    for name, text in {"solve.py": SOLVE, "solver.prototxt": SOLVER}.items():
        (tmp_path / "run" / name).write_text(text)
    monkeypatch.chdir(tmp_path / "run")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_project_trains_scores_snapshots_and_resumes(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["python", "solve.py", "0"]) == 0
    said = capsys.readouterr()
    assert ">>> iteration 20 accuracy 1.0 whole 1" in said.out and said.out.endswith("at 21\n")
    for name in ("solve.py", "tools.py", "blocks_layer.py"):
        assert said.err.count(f"{name}: Python 2, translated in memory") == 1
    files = {path.name for path in (project / "run" / "snapshot").iterdir() if path.suffix != ".lock"}
    assert {"train_iter_20.caffemodel", "train_iter_21.caffemodel", "train_iter_21.solverstate"} <= files
    assert main(["python", "solve.py", "0", "snapshot/train_iter_21.solverstate"]) == 0
    stored = fcnproto.load(project / "net.prototxt", "snapshot/train_iter_21.caffemodel", allow_python=True)
    sums = [float(blob.sum()) for blob in stored.params["class"]]
    assert f"at 21 {sums}" in capsys.readouterr().out
    assert not list(project.rglob("*.pyc"))


def test_infer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An image of any size through `fcn-mini`, as the published nets are used."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (37, 50, 3)).astype(np.uint8)
    Image.fromarray(noise).save("image.png")
    script = f"""
from PIL import Image
import numpy as np, sys
import caffe
in_ = np.array(Image.open('image.png'), dtype=np.float32)[:, :, ::-1] - 100
net = caffe.Net({str(fcnproto.zoo.path("fcn-mini", "deploy"))!r}, {str(fcnproto.zoo.path("fcn-mini", "weights"))!r}, caffe.TEST)
net.blobs['data'].reshape(1, *in_.transpose((2, 0, 1)).shape)
net.blobs['data'].data[...] = in_.transpose((2, 0, 1))
net.forward()
Image.fromarray(net.blobs['score'].data[0].argmax(axis=0).astype(np.uint8)).save('output.png')
print >> sys.stdout, net.blobs['score'].data.shape
"""
    Path("infer.py").write_text(script)
    status, said = main(["python", "infer.py"]), capsys.readouterr()
    assert status == 0 and ", 37, 50)" in said.out and "is the deprecated form" in said.err, said.err
    import torch

    net = fcnproto.load(fcnproto.zoo.path("fcn-mini", "deploy"), fcnproto.zoo.path("fcn-mini", "weights"))
    data = torch.from_numpy(np.ascontiguousarray(noise[:, :, ::-1].transpose(2, 0, 1)[None], np.float32) - 100)
    with torch.no_grad():
        expected = net(data=data)["score"][0].argmax(0).numpy()
    assert (np.array(Image.open("output.png")) == expected).all()


def run(*arguments: str, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """`python -m fcnproto.pycaffe` in a process of its own."""
    root = str(Path(fcnproto.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", "fcnproto.pycaffe", *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        cwd=cwd,
        env={"PYTHONPATH": root, "PATH": ""},
    )


def test_modules_and_a_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tool.py").write_text("import sys, caffe\nprint sys.argv[1:], __name__, caffe.TEST\nsys.exit(4)\n")
    done = run("-m", "tool", "a", "--debug", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (4, "['a', '--debug'] __main__ 1\n"), done.stderr
    typed = "caffe.TRAIN + 40\nfor i in xrange(2):\n    print 'i', i\n\n7/2\ndef f(a):\n  print a,\n  return a/2\n\nf(9)\n1 +\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    assert main(["python"]) == 0
    said = capsys.readouterr()
    for piece in ("40", "i 0\ni 1\n", "3\n", "9 4\n"):
        assert piece in said.out, piece
    assert "SyntaxError" in said.err


def test_a_command_s_status_and_its_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["python", "-c", "import caffe, sys\nprint caffe.io.__name__, sys.argv", "x"]) == 0
    assert capsys.readouterr().out == "fcnproto.data.io ['-c', 'x']\n"
    assert main(["python", "-c", "raise SystemExit(3)"]) == 3
    done = run(
        "-", "a", cwd=tmp_path, stdin="import sys, caffe.detector\nprint sys.argv, caffe.detector.Detector.__name__"
    )
    assert (done.returncode, done.stdout) == (0, "['-', 'a'] Detector\n"), done.stderr
    (tmp_path / "fails.py").write_text(
        "import caffe\n\n\ndef f(a):\n    print a\n    caffe.Net('none.prototxt', 1)\nf(2)\n"
    )
    assert main(["python", str(tmp_path / "fails.py")]) == 1
    error = capsys.readouterr().err
    assert "fails.py, line 6: none.prototxt: no such file" in error and "Traceback" not in error
    (tmp_path / "raises.py").write_text("def f():\n    raise ValueError, 'so'\nf()\n")
    assert main(["python", str(tmp_path / "raises.py")]) == 1
    error = capsys.readouterr().err
    assert 'raises.py", line 2, in f' in error and "ValueError: so" in error and "fcnproto/pycaffe" not in error
    for wrong in (["nowhere.py"], ["-c"], ["-x"], ["-m", "no.such_module_here"]):
        assert main(["python", *wrong]) == 2
        assert "fault of the program" not in capsys.readouterr().err


def test_json_of_a_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The script's own prints go to stderr; what comes after its name is its own, --json too."""
    script = tmp_path / "old.py"
    script.write_text("import sys\nprint 'said', sys.argv[1:]\nsys.exit(3)\n")
    assert main(["python", "--json", str(script), "--json", "x"]) == 3
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found == {"arguments": [str(script), "--json", "x"], "status": 3, "translated": [str(script)]}
    assert "said ['--json', 'x']" in captured.err


def test_names_under_which_the_module_is_imported(tmp_path: Path) -> None:
    module = caffe.install()
    import importlib

    assert module is caffe is importlib.import_module("caffe")
    for name in (
        "io",
        "proto.caffe_pb2",
        "net_spec",
        "coord_map",
        "draw",
        "classifier",
        "detector",
        "pycaffe",
        "_caffe",
    ):
        importlib.import_module(f"caffe.{name}")
    assert "Convolution" in caffe.layer_type_list() and "Python" in caffe.layer_type_list()
    caffe.load_ipython_extension(None)
    caffe.init_log()
    caffe.log("a line")
