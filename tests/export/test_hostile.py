"""Names from a file never become code: the writers of .py, .pt2, .onnx and weights on names made to break out."""

from __future__ import annotations

import ast
import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fcnproto
from fcnproto.export import convert, make_source
from fcnproto.export.audit import check_source
from fcnproto.export.code import BUILTINS, identifier, prose, text
from fcnproto.export.shapes import blob_shapes
from fcnproto.export.source import run_source
from fcnproto.schema import caffe_pb2

CANARY = "opened"
RUN = f"__import__('pathlib').Path('{CANARY}').touch()"
HOSTILE = [
    f'x"""; {RUN}; """',
    f"x'''; {RUN}; '''",
    f'x"); {RUN}; ("',
    f"x\n{RUN}\n",
    f"x\r{RUN}\r",
    f'x\\"""; {RUN}; """',
    f"x\u2028{RUN}\u2029",
    f"\x0c{RUN}",
    f'{{{RUN}}}"""\n{RUN}\n"""',
    f"__import__('os'); {RUN}",
    'back\\slash\\N{DIGIT ONE}\\"',
    "\x00nul",
    "\x1b]0;title\x07",
    "\u202ereversed",
    "{{}} %s %(x)s {0}",
    "../up",
    "/etc/x",
    "__x",
    "__class__",
    "__init__",
    "_",
    "class",
    "None",
    "self",
    "torch",
    "getattr",
    "nn",
    "load",
    "load_file",
    "Net",
    "ﬁ",
    "größe",
    "\U0001f600",
    "[/x]",
    "$\\bad$",
    "-rf",
    " ",
    "x" * 10_000,
]
ENDINGS = [".py", ".pt2", ".onnx", ".pt", ".safetensors", ".h5", ".caffemodel"]


def hostile_net(name: str) -> fcnproto.Net:
    """A net in which everything that can have a name has this one, more or less."""
    param = caffe_pb2.NetParameter(name=name)
    data = param.layer.add(name=name + "d", type="Input", top=[name])
    data.input_param.shape.add(dim=[1, 2, 6, 6])
    conv = param.layer.add(name=name, type="Convolution", bottom=[name], top=[name + "1"])
    conv.convolution_param.num_output = 2
    conv.convolution_param.kernel_size.append(3)
    conv.convolution_param.weight_filler.type = "xavier"
    param.layer.add(name=name + "r", type="ReLU", bottom=[name + "1"], top=[name + "1"])
    bias = param.layer.add(name=name + "b", type="Bias", bottom=[name + "1"], top=[name + "2"])
    bias.bias_param.filler.value = 1
    param.layer.add(name=name + "e", type="Eltwise", bottom=[name + "1", name + "2"], top=[name + "3"])
    param.layer.add(name=name + "p", type="PReLU", bottom=[name + "2"], top=[name + "4"])
    return fcnproto.load(param)


def same(found: dict[str, torch.Tensor], net: fcnproto.Net, x: torch.Tensor) -> None:
    expected = net(x)
    assert set(found) == set(expected)
    for blob, value in expected.items():
        torch.testing.assert_close(found[blob], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_are_data_in_the_source(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net = hostile_net(name)
    source = make_source(net, blob_shapes(net, {name: (1, 2, 6, 6)}), "w.safetensors", title=name, about=[name])
    assert source.text.isascii()
    assert all(sign == "\n" or sign.isprintable() for sign in source.text)
    module = run_source(source)
    module.load_state_dict(net.state_dict())
    same(module(torch.ones(1, 2, 6, 6)), net, torch.ones(1, 2, 6, 6))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [*HOSTILE[:3], HOSTILE[-1]], ids=range(4))
def test_names_are_data_in_a_module(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net = hostile_net(name)
    convert(net, tmp_path / "out" / "net.py", title=name, about=[name])
    spec = importlib.util.spec_from_file_location("hostile", tmp_path / "out" / "net.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    same(module.load()(torch.ones(1, 2, 6, 6)), net, torch.ones(1, 2, 6, 6))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert {path.name for path in (tmp_path / "out").iterdir()} - {"__pycache__"} == {"net.py", "net.safetensors"}


# One kind of break-out each; a program takes a second to write.
@pytest.mark.parametrize("ending", ENDINGS[1:])
def test_names_are_data_elsewhere(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if ending == ".onnx" and any(importlib.util.find_spec(m) is None for m in ("onnx", "onnxscript", "onnxruntime")):
        pytest.skip("the ONNX packages are not installed")
    monkeypatch.chdir(tmp_path)
    names = [HOSTILE[0], f"x,;()[]\n{RUN}\n"] if ending in (".pt2", ".onnx") else HOSTILE
    for name in names:
        if "\x00" in name and ending == ".h5":  # HDF5's names end at NUL
            continue
        if "/" in name and ending == ".h5":  # and its groups are folders
            continue
        net = hostile_net(name)
        convert(net, tmp_path / "out" / f"net{ending}", title=name, about=[name])
        if ending == ".pt2":
            module = torch.export.load(tmp_path / "out" / "net.pt2").module()
            same(module(torch.ones(1, 2, 6, 6)), net, torch.ones(1, 2, 6, 6))
        assert not (tmp_path / CANARY).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"net{ending}"]


def test_random_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw = random.Random(3)
    pieces = [
        '"',
        "'",
        '"""',
        "\\",
        "\n",
        "\r",
        "#",
        "{",
        "}",
        "(",
        ")",
        ";",
        RUN,
        "\x00",
        "\u2028",
        "é",
        "_",
        "1",
        "a",
    ]
    for _ in range(25):
        name = "".join(draw.choice(pieces) for _ in range(draw.randint(1, 12)))
        net = hostile_net(name)
        shapes = blob_shapes(net, {name: (1, 2, 6, 6)})
        source = make_source(net, shapes, name, title=name, about=[name, name])
        tree = ast.parse(source.text)  # and it holds the one string that it should
        strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        assert name in strings
        assert RUN not in ast.unparse(ast.Module([*tree.body[1:2]], []))
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_a_bomb_stays_data_in_another_program(tmp_path: Path) -> None:
    """What would run only where the user imports the module: in a process of its own."""
    bomb = f'Net"""; __name__ != \'fcnproto_exported\' and {RUN}; """'
    convert(hostile_net(bomb), tmp_path / "net.py", title=bomb)
    done = subprocess.run([sys.executable, "-c", "import net; net.load()"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / CANARY).exists()


GOOD = '''"""A module."""

import torch
from pathlib import Path
from safetensors.torch import load_file
from torch import Tensor, nn


class Net(nn.Module):
    """A net."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, data: Tensor) -> Tensor:
        conv = self.conv(data)
        return conv


def load(path: str | Path | None = None) -> Net:
    """The net."""
    net = Net()
    net.load_state_dict(load_file(Path(__file__).with_name("w") if path is None else path))
    return net.eval()
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("import torch\n", "import torch\nimport os\n"),
        ("import torch\n", "from os import system as load_file\n"),
        ('"""A module."""', '"""A module."""; print()'),
        ('"""A module."""', 'f"{print()}"'),
        ('    """A net."""', '    """A net."""; x = print()'),
        ("nn.Conv2d(1, 2, 3)", "print(1)"),
        ("nn.Conv2d(1, 2, 3)", "torch.load('x')"),
        ("nn.Conv2d(1, 2, 3)", "torch.hub.load('x', 'y')"),
        ("nn.Conv2d(1, 2, 3)", "nn.Conv2d.__init__.__globals__"),
        ("nn.Conv2d(1, 2, 3)", "nn.Conv2d(1, 2, [3 for x in (1,)])"),
        ("nn.Conv2d(1, 2, 3)", "lambda: 1"),
        ("self.conv(data)", "self.__class__(data)"),
        ("self.conv(data)", "data.numpy()"),
        ("self.conv(data)", "getattr(torch, 'load')('x')"),
        ("self.conv(data)", "getattr(self, data)"),
        ("self.conv(data)", "__import__('os')"),
        ("self.conv(data)", "f'{data}'"),
        ("self.conv(data)", "(y := data)"),
        ("data: Tensor", "data: Tensor = print()"),
        ("data: Tensor", "data: print()"),
        ("-> Tensor", "-> print()"),
        ("    def forward", "    @print\n    def forward"),
        ("class Net(nn.Module)", "class Net(nn.Module, metaclass=print)"),
        ("class Net(nn.Module)", "@print\nclass Net(nn.Module)"),
        ("        return conv", "        del conv\n        return data"),
        ("        return conv", "        print()\n        return conv"),
        ("        conv =", "        torch ="),
        ("        conv =", "        torch.relu ="),
        ("    net = Net()", "    net = print()"),
        ('with_name("w")', "with_name(print())"),
        ("    return net.eval()\n", "    return net.eval()\n\n\nprint()\n"),
        ("    return net.eval()", "    return exec"),
    ],
)
def test_what_was_not_meant_is_refused(old: str, new: str) -> None:
    check_source(GOOD, "Net")
    assert old in GOOD
    with pytest.raises(fcnproto.Error, match="not meant"):
        check_source(GOOD.replace(old, new, 1), "Net")


def test_copied_definitions_are_those_that_were_copied() -> None:
    helper = "def twice(x: Tensor) -> Tensor:\n    return x * 2\n"
    source = GOOD.replace("class Net", f"{helper}\n\nclass Net").replace("self.conv(data)", "twice(self.conv(data))")
    check_source(source, "Net", [helper])
    for wrong in (source.replace("x * 2", "x * 3"), source):
        with pytest.raises(fcnproto.Error, match="not meant"):
            check_source(wrong, "Net", [] if wrong is source else [helper])


def test_strings_and_words() -> None:
    for value in [*HOSTILE, "".join(map(chr, range(0x300))), "\ud800", "\U0010ffff"]:
        assert ast.literal_eval(text(value)) == value
        assert text(value).isascii()
        assert text(value).isprintable()
        assert ast.literal_eval(f'"""{prose(value)}"""') == prose(value)
        assert len(prose(value)) <= 300
    taken: set[str] = set(BUILTINS)
    for value in HOSTILE * 3:
        name = identifier(value, taken)
        assert name.isidentifier()
        assert name.isascii()
        assert not name.startswith("_")
        assert len(name) < 80
    assert len(taken - BUILTINS) == 3 * len(HOSTILE)
