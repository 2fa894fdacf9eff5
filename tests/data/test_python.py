"""Python layers: pycaffe's protocol, the stand-in, imports by opt-in, the registry, gradients, copies."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import subprocess
import sys
import types
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import golden_cases
import numpy as np
import pytest
import torch
from data_layers import batches, make_source
from torch import Tensor

import fcnproto
from fcnproto.cli._main import main
from fcnproto.data import PythonBlob, PythonLayer, register_python_layer
from fcnproto.errors import DataError, LayerError

NET = """
name: "n"
layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 2 dim: 3 }} }} }}
layer {{ name: "py" type: "Python" bottom: "x" top: "{top}" python_param {{ module: "{module}" layer: "{layer}"
         param_str: "{param}" }} {more} }}
"""

PYCAFFE = """
import numpy as np
import caffe

class Affine(caffe.Layer):
    def setup(self, bottom, top):
        if len(bottom) != 1:
            raise Exception("one bottom")
        self.blobs.add_blob(bottom[0].shape[1])
        self.blobs.add_blob(1)
        self.blobs[0].data[...] = float(self.param_str)
        self.seen = []

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        import caffe
        self.seen.append(self.phase == caffe.TRAIN)
        top[0].data[...] = bottom[0].data * self.blobs[0].data + self.blobs[1].data

    def backward(self, top, propagate_down, bottom):
        self.blobs[0].diff[...] += (top[0].diff * bottom[0].data).sum(axis=0)
        self.blobs[1].diff[...] += top[0].diff.sum()
        if propagate_down[0]:
            bottom[0].diff[...] = top[0].diff * self.blobs[0].data

class InPlaceDouble(caffe.Layer):
    def setup(self, bottom, top):
        pass

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        bottom[0].data[...] *= 2

    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[...] *= 2

class Grow(caffe.Layer):
    def setup(self, bottom, top):
        self.idx = np.int64(0)

    def reshape(self, bottom, top):
        top[0].reshape(1, self.idx + 1)

    def forward(self, bottom, top):
        top[0].data[...] = self.idx
        self.idx += 1

    def backward(self, top, propagate_down, bottom):
        pass

class NoReshape(caffe.Layer):
    def setup(self, bottom, top):
        pass

    def forward(self, bottom, top):
        pass

class NoBackward(caffe.Layer):
    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data

class Raises(NoBackward):
    def forward(self, bottom, top):
        raise KeyError("from the user's code")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "user_layers.py").write_text(PYCAFFE)
    return tmp_path


def load(folder: Path, layer: str, param: str = "", top: str = "y", more: str = "", **options: Any) -> fcnproto.Net:
    path = folder / "net.prototxt"
    path.write_text(
        NET.format(module=options.pop("module", "user_layers"), layer=layer, param=param, top=top, more=more)
    )
    return fcnproto.load(path, **{"allow_python": True, **options})


def test_parameters_and_gradients(folder: Path) -> None:
    net = load(folder, "Affine", "3")
    assert [tuple(blob.shape) for blob in net.params["py"]] == [(3,), (1,)]
    assert net.params["py"][0].tolist() == [3, 3, 3]
    with torch.no_grad():
        net.params["py"][0].copy_(torch.tensor([1.0, 2, 3]))
        net.params["py"][1].fill_(0.5)
    x = torch.arange(6.0).reshape(2, 3).requires_grad_()
    kept = x.detach().clone()
    y = net(x=x)["y"]
    torch.testing.assert_close(y, x * torch.tensor([1.0, 2, 3]) + 0.5)
    seed = torch.tensor([[1.0, -1, 2], [0.5, 3, 1]])
    for factor in (1, 2):  # parameter gradients add up over backward passes
        net(x=x)["y"].backward(seed)
        torch.testing.assert_close(net.params["py"][0].grad, factor * (seed * x.detach()).sum(0))
        torch.testing.assert_close(net.params["py"][1].grad, factor * seed.sum().reshape(1))
    torch.testing.assert_close(x.grad, 2 * seed * torch.tensor([1.0, 2, 3]))
    assert torch.equal(x.detach(), kept)


def test_backward_sees_the_values_of_its_own_forward(folder: Path) -> None:
    net = load(folder, "Affine", "1")
    first, second = torch.ones(2, 3), torch.full((2, 3), 5.0)
    early = net(x=first)["y"].sum()
    net(x=second)
    early.backward()
    assert net.params["py"][0].grad.tolist() == [2, 2, 2]


def test_phase_and_other_sizes(folder: Path) -> None:
    for phase in ("train", "test"):
        net = load(folder, "Affine", "1", phase=phase)
        assert net(x=torch.zeros(7, 3))["y"].shape == (7, 3)
        assert net.layer("py").instance.seen == [phase == "train"]


def test_weights_survive_save_and_load(folder: Path) -> None:
    net = load(folder, "Affine", "3")
    with torch.no_grad():
        net.params["py"][0].copy_(torch.tensor([1.0, 2, 4]))
    net.save(folder / "w.caffemodel")
    again = load(folder, "Affine", "3")
    again.copy_from(folder / "w.caffemodel")
    assert again.params["py"][0].tolist() == [1, 2, 4]


def test_in_place_layers_share_their_blob(folder: Path) -> None:
    net = load(folder, "InPlaceDouble", top="x")
    x = torch.arange(6.0).reshape(2, 3).requires_grad_()
    out = net(x=x)["x"]
    torch.testing.assert_close(out, 2 * x)
    out.sum().backward()
    assert (x.grad == 2).all()


def test_sources_run_and_resume(folder: Path) -> None:
    text = 'type: "Python" top: "t" python_param { module: "user_layers" layer: "Grow" }'
    layer = make_source(text, folder, allow_python=True)
    assert layer.is_data and layer.top_shapes([]) == [(1, 1)]
    ((one,), (two,)) = batches(layer, 2)
    assert one.tolist() == [[0]] and two.tolist() == [[1, 1]], "a batch handed out is not written to again"
    position = json.loads(json.dumps(layer.get_position()))
    assert position == {"idx": 2}
    other = make_source(text, folder, allow_python=True)
    other.set_position(position)
    assert batches(other, 1)[0][0].tolist() == [[2, 2, 2]]


def test_a_source_is_bypassed_by_its_top(folder: Path) -> None:
    (folder / "net.prototxt").write_text(
        'layer { name: "d" type: "Python" top: "t" python_param { module: "user_layers" layer: "Grow" } }'
        'layer { name: "p" type: "Power" bottom: "t" top: "y" power_param { scale: 3 } }'
    )
    net = fcnproto.load(folder / "net.prototxt", allow_python=True)
    assert net(t=torch.ones(1, 2))["y"].tolist() == [[3, 3]]
    assert net()["y"].tolist() == [[0]] and net()["y"].tolist() == [[3, 3]]


def test_copies_and_pickles(folder: Path) -> None:
    net = load(folder, "Affine", "3")
    x = torch.randn(2, 3)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(other(x=x)["y"], net(x=x)["y"])
        assert other.params["py"][0] is not net.params["py"][0]


def test_double_precision_nets(folder: Path) -> None:
    net = load(folder, "Affine", "3").double()
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    y = net(x=x)["y"]
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.float64
    torch.testing.assert_close(y, 3 * x, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_layers_on_a_gpu_run_on_copies(folder: Path) -> None:
    net = load(folder, "Affine", "3", device="cuda")
    x = torch.ones(2, 3, device="cuda", requires_grad=True)
    y = net(x=x)["y"]
    y.sum().backward()
    assert y.is_cuda and (y == 3).all() and (x.grad == 3).all()
    assert net.params["py"][0].grad.tolist() == [2, 2, 2]


def test_nothing_is_imported_without_opt_in(folder: Path) -> None:
    (folder / "user_layers.py").write_text("raise SystemExit('imported')")
    with pytest.raises(LayerError, match=r"user_layers\.Affine is not a registered Python layer; .*allow_python=True"):
        load(folder, "Affine", allow_python=False, strict=True)
    net = load(folder, "Affine", allow_python=False)
    assert net.unknown == [("py", "Python")]


@pytest.mark.parametrize(
    ("layer", "module", "message"),
    [
        ("NoReshape", "user_layers", r"user_layers\.NoReshape has no method reshape"),
        ("Missing", "user_layers", "module 'user_layers' has no class 'Missing'"),
        ("np", "user_layers", "module 'user_layers' has no class 'np'"),
        ("X", "no_such_module", "module 'no_such_module' can't be imported: No module named"),
    ],
)
def test_refusals_at_load(folder: Path, layer: str, module: str, message: str) -> None:
    with pytest.raises(LayerError, match=rf"layer 'py' \(Python\): .*{message}"):
        load(folder, layer, module=module)


def test_errors_of_the_user_s_code_name_the_layer_and_the_line(folder: Path) -> None:
    line = PYCAFFE.splitlines().index('        raise KeyError("from the user\'s code")') + 1
    expected = rf"net\.prototxt: layer 'py' \(Python\): its user_layers\.Raises\.forward failed at .*user_layers\.py, line {line}: "
    net = load(folder, "Raises")
    with pytest.raises(LayerError, match=expected + 'KeyError: "from the user\'s code"') as caught:
        net(x=torch.zeros(2, 3))
    assert isinstance(caught.value.__cause__, KeyError) and "\n" not in str(caught.value)
    y = load(folder, "NoBackward")(x=torch.zeros(2, 3, requires_grad=True))["y"]
    with pytest.raises(LayerError, match="has no method backward"):
        y.sum().backward()


OLD = """
import caffe, itertools, string
import numpy as np
class Old(caffe.Layer):
    def setup(self, bottom, top):
        {setup}
    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)
    def forward(self, bottom, top):
        {forward}
        top[0].data[...] = bottom[0].data
    def backward(self, top, propagate_down, bottom):
        {backward}
"""


@pytest.mark.parametrize(
    ("method", "code", "said"),
    [
        ("forward", "{1: 2}.keys()[0]", r"not subscriptable; .*Python 2.*list\(\.\.\.\)"),
        ("forward", "range(5 / 2)", "interpreted as an integer; Python 3's / gives fractions"),
        ("setup", "raise ValueError, 'no'", "ValueError: no$"),
        ("setup", "print 'hello' hello", "SyntaxError: .*Python 2"),
        ("backward", "np.asscalar(np.ones(1))", r"NumPy had np.asscalar once.*a\.item\(\)"),
        ("forward", "np.zeros(3)[1 / 2]", "IndexError: .*use //"),
        ("forward", "nothing_of_age", "NameError: name 'nothing_of_age' is not defined$"),
    ],
)
def test_code_of_old_age_is_said_to_be_that(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, code: str, said: str
) -> None:
    monkeypatch.delitem(sys.modules, "old_layers", raising=False)
    parts = {"setup": "pass", "forward": "pass", "backward": "pass", method: code}
    (folder / "old_layers.py").write_text(OLD.format(**parts))
    with pytest.raises(LayerError, match=rf"net\.prototxt: layer 'py'.*old_layers\.py, line \d+: .*{said}") as caught:
        load(folder, "Old", module="old_layers")(x=torch.zeros(2, 3, requires_grad=True))["y"].sum().backward()
    assert "\n" not in str(caught.value)


def test_layers_of_2015_run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Python 2, and what NumPy has taken away, is translated as the module is imported."""
    monkeypatch.delitem(sys.modules, "old_layers", raising=False)
    setup = ("print 'hello'", "exec 'a = 1'", "a = 0777", "import cPickle", "from itertools import izip")
    forward = ("a = [i for i in xrange(3)]", "b = {}.iteritems()", "c = {}.has_key(1)", "d = {1: 2}.keys()[0]")
    forward += ("e = range(5 / 2)", "f = np.float(1)", "g = np.zeros(3, dtype=np.int)", "h = np.zeros(3)[1 / 2]")
    parts = {"setup": "; ".join(setup), "forward": "; ".join(forward), "backward": "bottom[0].diff[...] = 5 / 2"}
    (folder / "old_layers.py").write_text(OLD.format(**parts))
    x = torch.zeros(2, 3, requires_grad=True)
    load(folder, "Old", module="old_layers")(x=x)["y"].sum().backward()
    assert x.grad is not None and x.grad.unique().tolist() == [2]
    said = capsys.readouterr()
    assert "hello" in said.out and "old_layers.py: Python 2, translated in memory" in said.err
    assert [path.name for path in folder.glob("*old*")] == ["old_layers.py"]


def test_the_command_line_blames_nobody_wrongly(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a pycaffe layer's fault nor that of a `fcnproto.Layer` in a user's module is the program's."""
    (folder / "own_layer.py").write_text(
        "import fcnproto\nclass Own(fcnproto.Layer):\n    def forward(self, x):\n        return x.no_such_thing\n"
    )
    np.savez(folder / "x.npz", x=np.ones((2, 3), np.float32))
    for module, layer, line in (("user_layers", "Raises", "KeyError"), ("own_layer", "Own", "line 4: AttributeError")):
        (folder / "net.prototxt").write_text(NET.format(module=module, layer=layer, param="", top="y", more=""))
        arguments = [str(folder / "net.prototxt"), "--allow-python", "--input", str(folder / "x.npz")]
        assert main(["run", *arguments]) == 1
        error = capsys.readouterr().err
        assert f"{module}.py, line" in error and line in error and "fault of the program" not in error


def test_modules_of_one_name_in_two_folders(folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    (other / "user_layers.py").write_text(PYCAFFE.replace("*= 2", "*= 7"))
    assert load(folder, "InPlaceDouble", top="x")(x=torch.ones(2, 3))["x"][0, 0] == 2
    assert load(other, "InPlaceDouble", top="x")(x=torch.ones(2, 3))["x"][0, 0] == 7
    assert load(folder, "InPlaceDouble", top="x")(x=torch.ones(2, 3))["x"][0, 0] == 2


def test_working_directory_comes_before_the_prototxt_s_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = folder / "cwd"
    other.mkdir()
    (other / "user_layers.py").write_text(PYCAFFE.replace("*= 2", "*= 9"))
    monkeypatch.chdir(other)
    assert load(folder, "InPlaceDouble", top="x")(x=torch.ones(2, 3))["x"][0, 0] == 9


def test_the_module_caffe_has_what_layers_use(folder: Path) -> None:
    path = list(sys.path)
    load(folder, "Affine", "1")(x=torch.zeros(2, 3))
    assert sys.path == path
    import caffe
    import caffe.io
    from caffe.proto import caffe_pb2

    assert (caffe.TRAIN, caffe.TEST) == (0, 1) and caffe.io.Transformer and caffe_pb2.Datum
    assert caffe.set_mode_cpu() is None
    assert caffe.__name__ == "fcnproto.pycaffe" == caffe.__spec__.name


def test_a_folder_called_caffe_is_no_caffe(folder: Path) -> None:
    """As a checkout of Caffe in the working directory, which has no module."""
    (folder / "caffe" / "build").mkdir(parents=True)
    program = "import fcnproto; print(fcnproto.load('net.prototxt', allow_python=True).layers[1].instance.__class__)"
    (folder / "net.prototxt").write_text(NET.format(module="user_layers", layer="Affine", param="1", top="y", more=""))
    root = str(Path(fcnproto.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert "user_layers.Affine" in done.stdout, done.stderr


def test_layers_import_caffe_in_threads(folder: Path) -> None:
    (folder / "lazy_layers.py").write_text(
        PYCAFFE.split("class Affine")[0] + "class Lazy(caffe.Layer):\n"
        "    def reshape(self, bottom, top):\n        top[0].reshape(*bottom[0].shape)\n"
        "    def forward(self, bottom, top):\n        import caffe.io\n        top[0].data[...] = 2 * bottom[0].data\n"
    )
    nets = [load(folder, "Lazy", module="lazy_layers") for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(len(nets)) as pool:
            work = [pool.submit(lambda net=net: [net(x=torch.ones(2, 3)) for _ in range(150)]) for net in nets]
        assert all((one["y"] == 2).all() for future in work for one in future.result())
    finally:
        sys.setswitchinterval(interval)


def test_a_real_caffe_is_used_where_there_is_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base class that can't be made from Python, as pycaffe's: it wants a C++ message."""

    class Layer:
        blobs = property(lambda self: None)

        def __init__(self, param: object) -> None:
            raise TypeError("Python argument types did not match C++ signature")

    real = types.ModuleType("caffe")
    real.Layer, real.TRAIN, real.TEST = Layer, 0, 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "caffe", real)
    (folder / "real_layers.py").write_text(PYCAFFE)
    net = load(folder, "Affine", "4", module="real_layers")
    assert (net(x=torch.ones(2, 3))["y"] == 4).all()
    assert sys.modules["caffe"] is real


def test_registered_classes_need_no_opt_in(folder: Path) -> None:
    @register_python_layer("my_layers", "Square")
    class Square(PythonLayer):
        def reshape(self, bottom: list[PythonBlob], top: list[PythonBlob]) -> None:
            top[0].reshape(*bottom[0].shape)

        def forward(self, bottom: list[PythonBlob], top: list[PythonBlob]) -> None:
            torch.mul(bottom[0].tensor, bottom[0].tensor, out=top[0].tensor)

        def backward(self, top: list[PythonBlob], propagate_down: list[bool], bottom: list[PythonBlob]) -> None:
            bottom[0].gradient.copy_(2 * bottom[0].tensor * top[0].gradient)

    @register_python_layer("my_layers", "Autograd")
    class Autograd(fcnproto.Layer):
        def setup(self, shapes: Any) -> None:
            self.power = float(self.param.python_param.param_str)

        def forward(self, x: Tensor) -> Tensor:
            return x**self.power

    x = torch.randn(2, 3, requires_grad=True)
    for layer, param in (("Square", ""), ("Autograd", "2")):
        net = load(folder, layer, param, module="my_layers", allow_python=False)
        y = net(x=x)["y"]
        torch.testing.assert_close(y, x * x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(gradient, 2 * x.detach())


def test_the_example_of_the_guide(folder: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "data-layers.md").read_text(encoding="utf-8")
    example = next(block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "PythonLayer" in block)
    exec(compile(example, "data-layers.md", "exec"), {})
    net = load(folder, "Scale", "2.5", module="my_layers", allow_python=False)
    x = torch.ones(2, 3, requires_grad=True)
    y = net(x=x)["y"]
    y.sum().backward()
    assert (y == 2.5).all() and (x.grad == 2.5).all() and net.params["py"][0].grad.tolist() == [6]


def test_an_imported_class_may_be_a_layer(folder: Path) -> None:
    (folder / "torch_layers.py").write_text(
        "import fcnproto\n"
        "class Halve(fcnproto.Layer):\n"
        "    def setup(self, shapes):\n"
        "        self.add_blob('factor', (1,), None)\n"
        "    def forward(self, x):\n"
        "        return x * self.blob(0)\n"
    )
    net = load(folder, "Halve", module="torch_layers")
    with torch.no_grad():
        net.params["py"][0].fill_(0.5)
    assert (net(x=torch.ones(2, 3))["y"] == 0.5).all()
    assert "py.factor" in net.state_dict()


def test_blobs() -> None:
    blob = PythonBlob((2, 3))
    blob.data[...] = np.arange(6).reshape(2, 3)
    assert (blob.num, blob.channels, blob.height, blob.width, blob.count) == (2, 3, 1, 1, 6)
    blob.reshape(3, 1)
    assert blob.data.ravel().tolist() == [0, 1, 2], "values stay where the count falls"
    blob.diff[...] = 1
    assert blob.gradient.shape == (3, 1) and blob.gradient.sum() == 3
    blob.reshape(5, 5)
    assert blob.data.sum() == 0 and blob.diff.shape == (5, 5)
    with pytest.raises(AttributeError):
        blob.data = np.zeros(3)  # type: ignore[misc]
    with pytest.raises(LayerError, match="use shape"):
        _ = PythonBlob((1,) * 5).num


def test_published_data_layers_need_no_data_to_load(tmp_path: Path) -> None:
    layer = make_source(
        'type: "Python" top: "d" top: "l" python_param { module: "voc_layers" layer: "VOCSegDataLayer" '
        "param_str: \"{'voc_dir': 'none', 'split': 'val', 'mean': (1, 2, 3)}\" }",
        tmp_path,
    )
    assert layer.top_shapes([]) == [(1, 3, None, None), (1, 1, None, None)]
    with pytest.raises(DataError, match=r"layer 'source' \(Python\): folder \(voc_dir\) 'none' not found"):
        layer()


@pytest.mark.parametrize("name", [name for name in golden_cases.names("layers") if name.startswith("python_")])
def test_golden_cases_load_without_warnings(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        golden_cases.load("layers", name).net()
