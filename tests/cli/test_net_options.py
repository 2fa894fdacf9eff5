"""The options of nets: the same in every command that loads one; --layers imports modules of one's own before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from fcnproto.cli._main import commands, main
from fcnproto.layers import registry

NETS = [
    "convert",
    "draw",
    "features",
    "optimize",
    "parity",
    "pictures",
    "run",
    "segment",
    "serve",
    "summary",
    "test",
    "time",
]
FLAGS = {
    *("--shape", "--phase", "--level", "--stage", "--crop", "--allow-python", "--allow-writes", "--layers"),
    *("--device", "--threads", "--dialect", "--strict", "--caffe-proto"),
}
OWN = """
import torch, fcnproto

@fcnproto.register_layer("TwiceOf{0}")
class TwiceOf{0}(fcnproto.Pointwise):
    def forward(self, x):
        return x * 2
"""
NET = """
layer {{ name: "in" type: "Input" top: "x" input_param {{ shape {{ dim: 1 dim: 3 dim: 4 dim: 4 }} }} }}
layer {{ name: "own" type: "TwiceOf{0}" bottom: "x" top: "y" }}
"""


def flags(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts}


def command(*names: str) -> click.Command:
    found: click.Command = commands
    for name in names:
        assert isinstance(found, click.Group)
        child = found.get_command(click.Context(found), name)
        assert child is not None
        found = child
    return found


@pytest.mark.parametrize("name", [*NETS, "score net", "surgery transplant", "surgery convolutionalise"])
def test_every_command_of_a_net_takes_the_same_options(name: str) -> None:
    assert flags(command(*name.split())) >= FLAGS


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("train", {"--phase"}),
        ("check", {"--phase"}),
        ("finetune", {"--phase", "--shape"}),
        ("migrate", {"--shape"}),
        ("audit", {"--phase", "--level", "--stage", "--allow-python", "--allow-writes", "--device", "--threads"}),
        ("surgery fold-normalisation", FLAGS - {"--layers"}),
        ("extract", FLAGS - {"--shape", "--layers", "--dialect", "--caffe-proto"}),
        ("upgrade", FLAGS - {"--layers"}),
    ],
)
def test_commands_of_definitions_and_solvers_take_what_has_a_meaning(name: str, missing: set[str]) -> None:
    assert FLAGS - flags(command(*name.split())) == missing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN.format("File"))
    (tmp_path / "net.prototxt").write_text(NET.format("File"))
    return tmp_path


def test_a_file_of_layers_is_imported_before_the_net_is_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        for _ in range(2):  # the second time it is there already
            assert main(["summary", str(folder / "net.prototxt"), "--layers", str(folder / "own.py")]) == 0
        assert "TwiceOfFile" in capsys.readouterr().out
        assert (
            main(["upgrade", str(folder / "net.prototxt"), str(folder / "new"), "--layers", str(folder / "own.py")])
            == 0
        )
    finally:
        registry._LAYERS.pop("TwiceOfFile", None)


def test_a_module_by_name_and_neighbours_of_a_file(tmp_path: Path) -> None:
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "first.py").write_text(OWN.format("Module"))
    (tmp_path / "second.py").write_text("import neighbour\n")
    (tmp_path / "neighbour.py").write_text(OWN.format("Neighbour"))
    (tmp_path / "net.prototxt").write_text(
        NET.format("Module") + 'layer { name: "b" type: "TwiceOfNeighbour" bottom: "y" top: "z" }'
    )
    arguments = [
        "run",
        "net.prototxt",
        "--layers",
        "mine.first",
        "--layers",
        "second.py",
        "--input",
        "x.npy",
        "--threads",
        "1",
    ]
    code = "import numpy; numpy.save('x.npy', numpy.ones((1, 3, 4, 4), 'f'))\n"
    code += f"from fcnproto.cli._main import main; raise SystemExit(main({arguments!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "4"  # the mean of 1 taken twice, twice


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (None, 2, "no such file"),
        ("import fcnproto\n1 / 0\n", 1, "own.py, line 2: ZeroDivisionError: division by zero"),
        ("def x(:\n", 1, "own.py, line 1: SyntaxError"),
        ("import no_such_module\n", 1, "No module named 'no_such_module'"),
        (
            "import fcnproto\n@fcnproto.register_layer('X', settings='x.proto')\nclass X(fcnproto.Layer): pass",
            2,
            "no such file",
        ),
    ],
)
def test_modules_that_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, status: int, words: str
) -> None:
    if content is not None:
        (tmp_path / "own.py").write_text(content)
    assert main(["summary", "net.prototxt", "--layers", str(tmp_path / "own.py")]) == status
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_unknown_modules_and_devices_are_told_before_the_net(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "absent.prototxt", "--layers", "no.such.module"]) == 2
    assert "--layers no.such.module: no module 'no'" in capsys.readouterr().err
    assert main(["run", "absent.prototxt", "--device", "abacus"]) == 2
    assert "--device abacus: not a device of this machine" in capsys.readouterr().err


def test_a_missing_package_is_told_before_the_net_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert main(["parity", "absent.prototxt", "--reference", "opencv"]) == 2
    assert "pip install 'opencv-python-headless<5'" in capsys.readouterr().err


STAGED = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 9 dim: 9 } } }
layer { name: "shrunk" type: "Pooling" bottom: "data" top: "shrunk"
  pooling_param { kernel_size: 3 } include { stage: "small" } }
layer { name: "odd" type: "Strange" bottom: "data" top: "odd" include { stage: "odd" } }
"""


def test_check_reads_a_net_as_the_other_commands_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "staged.prototxt"
    file.write_text(STAGED)
    assert main(["check", str(file), "--stage", "small", "--strict", "--device", "cpu"]) == 0
    assert main(["check", str(file), "--shape", "other=1,3,9,9"]) == 1
    assert "'other'" in capsys.readouterr().err
    assert main(["check", str(file), "--stage", "odd", "--strict"]) == 1
    assert "'Strange'" in capsys.readouterr().err


def test_audit_counts_what_shapes_say(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "staged.prototxt"
    file.write_text(STAGED)
    assert main(["audit", str(file), "--json", "--shape", "data=2,3,100,100"]) == 0
    assert json.loads(capsys.readouterr().out)["blob_bytes"] == 2 * 3 * 100 * 100 * 4
