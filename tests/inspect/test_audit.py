"""`fcnproto audit`: what a net would touch is told, and nothing of it is touched."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import fcnproto
from fcnproto import zoo
from fcnproto.cli._main import main
from fcnproto.inspect.audit import Access, audit, oddities

INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }'
CONV = 'layer { name: "c" type: "Convolution" bottom: "x" top: "y" convolution_param { num_output: 4 kernel_size: 3 } }'


def accesses(folder: Path, text: str, name: str = "n.prototxt") -> list[Access]:
    (folder / name).write_text(text)
    return audit(folder / name).accesses


def told(folder: Path, text: str) -> list[tuple[str, str, bool, bool]]:
    return [(access.use, access.name, access.exists, access.outside) for access in accesses(folder, text)]


def test_a_net_that_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "n.prototxt").write_text(INPUT + CONV)
    found = audit(tmp_path / "n.prototxt")
    assert (found.kind, found.accesses, found.odd, found.refused) == ("net", [], [], [])
    assert (found.parameters, found.multiply_adds) == (4 * 27 + 4, 4 * 27 * 36)
    assert main(["audit", str(tmp_path / "n.prototxt")]) == 0


@pytest.mark.parametrize(
    ("layer", "use", "name"),
    [
        ('type: "Data" top: "x" data_param { source: "%s" batch_size: 1 }', "reads", "db"),
        ('type: "HDF5Data" top: "x" hdf5_data_param { source: "%s" batch_size: 1 }', "reads", "list.txt"),
        ('type: "ImageData" top: "x" top: "l" image_data_param { source: "%s" batch_size: 1 }', "reads", "list.txt"),
        (
            'type: "ImageData" top: "x" top: "l" image_data_param { source: "" root_folder: "%s" batch_size: 1 }',
            "reads",
            "pics",
        ),
        ('type: "WindowData" top: "x" top: "l" window_data_param { source: "%s" batch_size: 1 }', "reads", "w.txt"),
        (
            'type: "Data" top: "x" data_param { source: "" batch_size: 1 } transform_param { mean_file: "%s" }',
            "reads",
            "m.bin",
        ),
        (
            'type: "InfogainLoss" bottom: "x" bottom: "x" top: "l" infogain_loss_param { source: "%s" }',
            "reads",
            "h.bin",
        ),
        ('type: "HDF5Output" bottom: "x" bottom: "x" hdf5_output_param { file_name: "%s" }', "writes", "o.h5"),
        (
            'type: "Python" top: "x" python_param { module: "voc_layers" layer: "VOCSegDataLayer" param_str: "{\'voc_dir\': \'%s\'}" }',
            "reads",
            "a/voc",
        ),
    ],
)
def test_every_layer_that_names_files(layer: str, use: str, name: str, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    for text, outside in ((name, False), ("/etc/" + name, True), ("../" + name, True), ("a/../../" + name, True)):
        found = told(folder, f'layer {{ name: "d" {layer % text} }}')
        assert (use, text, False, outside) in found
        assert main(["audit", str(folder / "n.prototxt")]) == outside
    (tmp_path / "there").write_text("a.png 1\n/etc/passwd 2\n")
    (folder / "link").symlink_to(tmp_path / "there")
    assert (use, "../there" if use == "reads" else str(tmp_path / "there"), True, True) in told(
        folder, f'layer {{ name: "d" {layer % ("../there" if use == "reads" else tmp_path / "there")} }}'
    )
    if "/" not in name and use == "reads":
        assert (use, "link", True, True) in told(folder, f'layer {{ name: "d" {layer % "link"} }}')


def test_lists_are_looked_into(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("one.h5\n/etc/shadow.h5\n")
    text = 'layer { name: "d" type: "HDF5Data" top: "x" hdf5_data_param { source: "list.txt" batch_size: 1 } }'
    found = {access.name: (access.by, access.outside) for access in accesses(tmp_path, text)}
    assert found["one.h5"] == ("layer 'd', listed in list.txt", False)
    assert found["/etc/shadow.h5"][1]
    os.unlink(tmp_path / "list.txt")
    os.mkfifo(tmp_path / "list.txt")  # opening it would wait for ever
    assert audit(tmp_path / "n.prototxt").refused


def test_modules_are_not_imported(tmp_path: Path) -> None:
    text = 'layer { name: "p" type: "Python" top: "x" python_param { module: "%s" layer: "L" } }'
    (tmp_path / "bomb.py").write_text("raise SystemExit('imported')")
    (access,) = accesses(tmp_path, text % "bomb")
    assert (access.use, access.exists, access.outside) == ("imports", True, False)
    assert main(["audit", str(tmp_path / "n.prototxt")]) == 0
    (access,) = accesses(tmp_path, text % "os.path")
    assert (access.use, access.exists, access.outside) == ("imports", False, True)
    published = (
        'layer { name: "p" type: "Python" top: "x" python_param { module: "voc_layers" layer: "VOCSegDataLayer" } }'
    )
    assert [access.use for access in accesses(tmp_path, published)] == ["uses"]


def test_a_solver_and_its_net(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.prototxt").write_text(
        INPUT
        + CONV
        + 'layer { name: "o" type: "HDF5Output" bottom: "y" bottom: "y" hdf5_output_param { file_name: "/tmp/o.h5" } }'
    )
    (tmp_path / "s.prototxt").write_text(
        'net: "net.prototxt" snapshot_prefix: "../snap/x" weights: "a.caffemodel, /b.caffemodel" base_lr: 1 lr_policy: "fixed"'
    )
    assert main(["audit", str(tmp_path / "s.prototxt"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "solver" and found["parameters"] == 112
    assert {(entry["use"], entry["name"], entry["outside"]) for entry in found["accesses"]} == {
        ("reads", "net.prototxt", False),
        ("writes", "../snap/x", True),
        ("reads", "a.caffemodel", False),
        ("reads", "/b.caffemodel", True),
        ("writes", "/tmp/o.h5", True),
    }


def test_a_caffemodel(tmp_path: Path) -> None:
    (tmp_path / "n.prototxt").write_text(INPUT + CONV)
    fcnproto.load(tmp_path / "n.prototxt").save(tmp_path / "w.caffemodel")
    found = audit(tmp_path / "w.caffemodel")
    assert (found.kind, found.parameters, found.parameter_bytes) == ("caffemodel", 112, 448)
    with_weights = audit(tmp_path / "n.prototxt", tmp_path / "w.caffemodel")
    assert [access.by for access in with_weights.accesses] == ["weights"]


@pytest.mark.parametrize(
    "name", ["\x1b[31mred", "a\u202eb", "[/x]", "<script>", "{{x}}", "../x", "/etc/x", "x" * 201, 'a"""b', "a\nb"]
)
def test_odd_names(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert oddities(name)
    quoted = "".join(f"\\{byte:03o}" for byte in name.encode())
    (tmp_path / "n.prototxt").write_text(INPUT + CONV.replace('"y"', f'"{quoted}"'))
    assert [odd.text for odd in audit(tmp_path / "n.prototxt").odd] == [name]
    assert main(["audit", str(tmp_path / "n.prototxt")]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert not any(map(oddities, ("conv1_1", "inception_3a/3x3", "score-pool4", "全卷积", "a b", "data.1")))


def test_sizes_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "n.prototxt").write_text(INPUT + CONV.replace("num_output: 4", "num_output: 2000000000"))
    (problem,) = audit(tmp_path / "n.prototxt").refused
    assert "memory and work can't be told" in problem and "Caffe's limit" in problem


def test_the_published_nets(tmp_path: Path) -> None:
    for kind in ("deploy", "train", "solver"):
        found = audit(zoo.path("voc-fcn8s", kind))
        assert not found.odd and not found.refused
        assert (found.parameters or 0) > 10**8
