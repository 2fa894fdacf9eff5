"""Python 2, and what libraries have taken away since: translated in memory."""

from __future__ import annotations

import ast
import importlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fcnproto.pycaffe as caffe
from fcnproto.pycaffe.python2 import compile_source, translate_imports


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 7 / 2\nprint x", 3),
        ("from __future__ import division\nx = 7 / 2\nprint x", 3.5),
        ("x = 7\nx /= 2\nprint x", 3),
        ("import numpy as np\na = np.arange(4.)\nb = a\nb /= 2\nprint b\nx = a[3]", 1.5),
        ("import numpy as np\nx = (np.arange(4) / 2)[3]\nprint x", 1),
        ("print 'x' # tab\nif 1:\n\tx = 1\n        y = 2", 1),
        ("def f((a, b), c=1):\n    return a + b + c\nx = f((1, 2))", 4),
        ("try:\n    raise KeyError, 'k'\nexcept KeyError, e:\n    x = str(e)", "'k'"),
        ("x = reduce(lambda a, b: a * b, [1, 2, 3])", 6),
        ("x = map(str, [1])[0] + `2`\nprint x", "12"),
        ("# coding: latin-1\nprint 'h'\nx = len(u'\xe9')", 1),
        ("import cPickle as pickle\nx = pickle.loads(pickle.dumps(2, 2))", 2),
        ("try:\n    import cPickle as p\nexcept ImportError:\n    import pickle as p\nx = p.loads(p.dumps(5))", 5),
        ("xrange = range\nx = xrange(3)[1] / 2", 0.5),
        ("x = 5 / 2", 2.5),
        ("print\nx = 5 / 2", 2),
        ("print (1), 2\nx = 5 / 2", 2),
        ("print (1, 2)\nx = 5 / 2", 2.5),
        ("print ('%d %d') % (1, 2)\nx = 5 / 2", 2),
        ("print ('{}').format(1)\nx = 5 / 2", 2),
        ("import itertools\nx = [a / b for a, b in itertools.izip([5], [2])]", [2]),
        ("import sys\nx = sys.maxint / 2 > 0", True),
        ("import sys\nreload(sys)\nsys.setdefaultencoding('utf8')\nx = 5 / 2", 2),
        ("print 'r'\nx = [round(2.5), round(-0.5), round(1.005, 2), round(3)]", [3.0, -1.0, 1.0, 3.0]),
        ("print ur'\\n'\nx = ur'\\n' + u'a'", "\\na"),
        ("x = 0777 + 0xfL\nexec 'x += 1'", 527),
        (
            "print\nx = [None < -1, 5 < 'a', 'b' > [], len > 0, 2 < 1, (1, 2) >= (1, 1)]",
            [True, True, True, True, False, True],
        ),
        ("assert len > 0\nx = 5 / 2", 2),
        ("ns = {}\nexec 'y = 3 / 2' in ns\nx = 5 <> 4", True),
    ],
)
def test_translation(source: str, expected: object, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    exec(compile_source(source.encode("latin-1"), "s.py"), names)
    assert names["x"] == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import numpy as np\nx = np.zeros(1, np.float)[0] + 5 / 2", 2.5),  # Python 3 of 2018: its own division
        ("import numpy as np\nx = np.fromstring(b'\\x01\\x02', dtype=np.uint8)[1] / 4", 0.5),
        ("import numpy as np\nx = np.array([1, 2], dtype=float, copy=False)[1] / 4", 0.5),
        ("import numpy as np\nx = np.arange(2, dtype='u1').tostring()", b"\0\1"),
        ("import numpy as np\nprint np.loadtxt\nx = np.fromstring('1 2', sep=' ')[1]", 2),
        ("import yaml\nx = yaml.load('a: 3')['a'] / 2", 1.5),
        ("from PIL import Image\nx = Image.ANTIALIAS == Image.LANCZOS", True),
        ("import time\nx = time.clock() <= time.clock()", True),
    ],
)
def test_what_libraries_have_taken_away(source: str, expected: object, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    exec(compile_source(source.encode(), f"{hash(source)}.py"), names)
    assert names["x"] == expected
    assert ("taken away" in capsys.readouterr().err) == ("print" not in source)


def test_text_and_bytes_are_one_in_python_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    old = pickle.dumps(np.arange(3.0), 2).replace(b"numpy._core", b"numpy.core")
    (tmp_path / "of_old.pkl").write_bytes(b"\x80\x02U\x02\xe9a.")
    (tmp_path / "array.pkl").write_bytes(old)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\nend\n")
    np.save("objects.npy", np.array({"a": 1}, object), allow_pickle=True)
    source = """
import cPickle, tempfile
import numpy as np
from StringIO import StringIO
from cStringIO import StringIO as C
with tempfile.NamedTemporaryFile(delete=False, suffix='.txt') as f:
    f.write('text')
kept = open(f.name, 'rb').read()
with tempfile.NamedTemporaryFile() as g:
    g.write(u'text')
    g.flush()
    name = g.name
lines = [line for line in open('latin.txt', 'rU')]
open('copy.txt', 'w').writelines(lines)
h = open('binary', 'wb'); h.write('abc'); h.write(b'\\x00'); h.close()
cPickle.dump({'a': 1}, open('new.pkl', 'w'))
a = cPickle.load(open('new.pkl'))['a'], cPickle.load(open('array.pkl'))[2], cPickle.load(open('of_old.pkl', 'rb'))
log = open('log', 'w', 0)
log.write('at once')
seen = open('log').read()
text, raw = StringIO(), C()
text.write('a\\n'); text.write('b'); raw.write(b'\\xff')
b = text.getvalue(), raw.getvalue(), StringIO('x\\ny').readlines(), [l for l in StringIO('p\\nq')]
c = np.load('objects.npy').item()['a']
"""
    names: dict[str, Any] = {}
    exec(compile_source(source.encode(), "s.py"), names)
    assert names["kept"] == b"text" and Path(names["f"].name).unlink() is None and not Path(names["name"]).exists()
    assert Path("copy.txt").read_bytes() == Path("latin.txt").read_bytes() and Path("binary").read_bytes() == b"abc\0"
    assert names["a"] == (1, 2.0, "\xe9a") and names["seen"] == "at once" and names["c"] == 1
    assert names["b"] == ("a\nb", b"\xff", ["x\n", "y"], ["p\n", "q"])


def test_a_package_whose_files_import_each_other_in_the_old_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old_package").mkdir()
    (tmp_path / "old_package" / "__init__.py").touch()
    (tmp_path / "old_package" / "one.py").write_text("from beside_one import value\nhalf = value / 2\n")
    (tmp_path / "old_package" / "beside_one.py").write_text("value = 5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    translate_imports()
    assert importlib.import_module("old_package.one").half == 2


def test_parts_that_forks_add_to_caffe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "caffe").mkdir()
    (tmp_path / "caffe" / "__init__.py").write_text("raise ImportError('a caffe that is not built')\n")
    (tmp_path / "caffe" / "libs_of_a_fork.py").write_text(
        "from caffe import layers as L\n\n\ndef head(net, name, kernel=3):\n    assert len > 0 and name in net.keys()\n"
        "    net.head = L.Convolution(net[name], num_output=4, kernel_size=kernel, pad=(kernel - 1) / 2.0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert caffe.install() is importlib.import_module("caffe")
    head = importlib.import_module("caffe.libs_of_a_fork").head
    net = caffe.NetSpec()
    net.data = caffe.layers.Input(shape={"dim": [1, 3, 8, 8]})
    head(net, "data")
    net.update("head", {"num_output": 6, "pad": [2]})
    assert (
        list(net.to_proto().layer[1].convolution_param.pad) == [2]
        and net.head.producer.param.convolution_param.num_output == 6
    )
    assert net.keys() == ["data", "head"] == list(net.tops) and net.vals()[1] is net.tops["head"]
    del net["head"]
    assert net.keys() == ["data"]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("caffe.no_such_part")


def test_the_parts_of_rcnn_that_are_to_be_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rcnn_nms/gpu_nms.pyx", "rcnn_nms/cpu_nms.pyx", "rcnn_utils/bbox.pyx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        (tmp_path / name).with_name("__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    translate_imports()
    nms = importlib.import_module("rcnn_nms.gpu_nms").gpu_nms
    at_least = importlib.import_module("rcnn_nms.cpu_nms").cpu_nms
    overlaps = importlib.import_module("rcnn_utils.cython_bbox").bbox_overlaps
    rows = np.array([[0, 0, 9, 9, 0.5], [0, 0, 9, 4, 0.9], [20, 20, 30, 30, 0.7]], np.float32)
    assert overlaps(rows[:, :4], rows[:2, :4]).tolist() == [[1, 0.5], [0.5, 1], [0, 0]]
    assert nms(rows, 0.5, device_id=0) == [1, 2, 0] and at_least(rows, 0.5) == [1, 2] and nms(rows, 0.4) == [1, 2]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("rcnn_utils.gpu_nms")


def test_scipy_s_functions_on_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    translate_imports()
    misc = importlib.import_module("scipy.misc")
    ramp = np.arange(12.0).reshape(3, 4)
    assert misc.bytescale(ramp).tolist()[0][:2] == [0, 23] and misc.bytescale(ramp).max() == 255
    assert misc.imresize(ramp, 200).shape == (6, 8) and misc.imresize(ramp, 0.5).shape == (1, 2)
    colours = np.random.default_rng(1).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    assert (misc.imresize(colours, (4, 6), "nearest") == colours).all() and misc.toimage(colours.T).size == (4, 6)
    misc.imsave("image.png", colours)
    assert (misc.imread("image.png") == colours).all() and misc.imread("image.png", flatten=True).dtype == np.float32
    assert misc.comb(4, 2) == 6
    with pytest.raises(AttributeError):
        getattr(misc, "nothing_of_that_name")  # noqa: B009


class Shell:
    """What an extension sees of IPython: lists of transformers, through which a cell goes."""

    def __init__(self) -> None:
        self.input_transformers_cleanup: list[Any] = []
        self.input_transformers_post: list[Any] = []
        self.ast_transformers: list[Any] = []
        self.names: dict[str, Any] = {}

    def run(self, cell: str) -> str:
        lines = cell.splitlines(keepends=True)
        for transform in (*self.input_transformers_cleanup, *self.input_transformers_post):
            lines = transform(lines)
        tree: Any = ast.parse("".join(lines))
        for transformer in self.ast_transformers:
            tree = transformer.visit(tree)
        exec(compile(tree, "<cell>", "exec"), self.names)
        return "".join(lines)


def test_cells_of_a_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    shell = Shell()
    caffe.load_ipython_extension(shell)
    caffe.load_ipython_extension(shell)
    assert len(shell.ast_transformers) == 1
    shell.run("x = 5 / 2")
    assert shell.names["x"] == 2.5  # nothing has said yet that this is Python 2
    shell.run("print 'a', 5 / 2\nfor k, v in {1: 2}.iteritems(): print k")
    assert capsys.readouterr().out == "a 2\n1\n"
    shell.run("x = 7 / 2\nimport numpy as np\ny = np.zeros(2, np.int)")
    assert shell.names["x"] == 3
    shell.run("from __future__ import division\nx = 7 / 2")
    shell.run("y = 7 / 2")
    assert (shell.names["x"], shell.names["y"]) == (3.5, 3.5)
    assert shell.input_transformers_cleanup[0](["% matplotlib inline\n", "%% time\n"]) == [
        "%matplotlib inline\n",
        "%%time\n",
    ]
    with pytest.raises(SyntaxError):
        shell.run("a = = 2")


def test_lines_stay_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = 'print "a"\ny = reduce(lambda a, b: a, [1])\ndef f((a, b), c):\n    d = a\n    return d / 0\n\n\ndef g():\n    f((1, 2), 3)\n'
    (tmp_path / "lines_of_old.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    translate_imports()
    import traceback

    import lines_of_old

    with pytest.raises(ZeroDivisionError) as caught:
        lines_of_old.g()
    frames = [f for f in traceback.extract_tb(caught.value.__traceback__) if f.filename.endswith("lines_of_old.py")]
    assert [(frame.name, frame.lineno) for frame in frames] == [("g", 9), ("f", 5)]


def test_what_is_neither_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(SyntaxError) as caught:
        compile_source(b"a = 1\nb = = 2\n", "s.py")
    assert caught.value.lineno == 2 and caught.value.filename == "s.py"
    with pytest.raises(SyntaxError, match="neither Python 3 nor Python 2") as caught:
        compile_source(b"print 'a'\nx = 1\nb = = 2\n", "s.py")
    assert caught.value.lineno == 3 and caught.value.__cause__ is None
