"""What stands in a file is data, wherever it goes: nets, classes and images of hostile names through every command.

Each name of `hostile_names.NAMES` is a layer's and a blob's in one net. Nothing may be run, nothing be written outside
the folder that was asked for, outputs must be parseable, terminals get no control codes, and names come through right.
"""

from __future__ import annotations

import csv
import json
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import browser
import h5py
import hostile_names as hostile
import numpy as np
import pytest
import torch
from PIL import Image

import fcnproto
from fcnproto.cli._main import main
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import read_net, write_message
from fcnproto.solver import Solver

NAMES = list(hostile.NAMES)
TITLE = "</title><script>canary=1</script>\x1b[31m$\\bad$[/x]\n\u202e" + '"""'


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The net of all names, and its weights."""
    return hostile.files(tmp_path_factory.mktemp("net"), hostile.chain(NAMES, TITLE))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; whatever a test does, nothing may run and nothing lie outside of it."""
    inner = tmp_path / "inner" / "work"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    yield inner
    assert os.listdir(tmp_path) == ["inner"] and os.listdir(tmp_path / "inner") == ["work"]
    assert not list(inner.rglob(hostile.CANARY))


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> object:
    """Runs a command, which must succeed and say nothing that a terminal would act on; returns (stdout, stderr)."""

    def run_command(*arguments: object, status: int = 0) -> tuple[str, str]:
        found = main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        assert found == status, shown.err[-2000:]
        assert hostile.is_clean(shown.out) and hostile.is_clean(shown.err)
        return shown.out, shown.err

    return run_command


def test_loads_and_computes(given: tuple[str, str]) -> None:
    net = fcnproto.load(*given)
    found = net(data=torch.ones(1, 3, 6, 6), blobs=NAMES)
    assert list(net.graph.blobs) == ["data", *NAMES] and set(NAMES) <= set(found)
    assert [layer.name for layer in net.layers[1:]] == NAMES
    for before, after, number in zip(NAMES, NAMES[1:], range(1, len(NAMES)), strict=False):
        if number % 8:
            torch.testing.assert_close(found[after], found[before] * (1 + number / 1000))


def test_lists(given: tuple[str, str], run) -> None:  # type: ignore[no-untyped-def]
    out, _ = run("summary", given[0])
    assert len(out.splitlines()) == len(NAMES) + 8 and max(map(len, out.splitlines())) < 400
    assert "\\x1b[31mred" in out and "\\[/x]" in out and ":warning: emoji" in out
    listed = json.loads(run("summary", given[0], "--json")[0])
    assert [layer["name"] for layer in listed["layers"]] == ["data", *NAMES]
    run("audit", *given)
    odd = {entry["text"] for entry in json.loads(run("audit", given[0], "--json")[0])["odd"]}
    assert {"\x1b[31mred", "\u202eright to left\u2066", "../x", "nul\0byte"} <= odd
    out, _ = run("time", "--model", given[0], "--iterations", 1)
    assert len(out.splitlines()) == 2 * len(NAMES) + 2 + 5


def test_drawings(given: tuple[str, str], run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    run("draw", given[0], "-o", "net.svg")
    root = ElementTree.parse("net.svg").getroot()
    boxes = [node for node in root.iter() if node.get("class") == "box"]
    assert [name for box in boxes for name in json.loads(box.get("data-layers") or "")] == ["data", *NAMES]
    assert {node.tag.rpartition("}")[2] for node in root.iter()} <= {
        *("svg", "title", "defs", "marker", "path", "g", "text", "rect"),
    }
    run("draw", *given, "-o", "net.html")
    page = hostile.Page(Path("net.html").read_text("utf-8"))
    assert page.elements.count("script") == 2 and not page.handlers and not page.addresses
    assert list(json.loads(page.scripts[0])) == [*reversed(NAMES), "data"]
    run("draw", given[0], "-o", "net.png", "--unfolded", "--layout", "own")
    with Image.open("net.png") as picture:
        assert picture.width < 3000
    assert sorted(os.listdir()) == ["net.html", "net.png", "net.svg"]


def test_parity(given: tuple[str, str], run) -> None:  # type: ignore[no-untyped-def]
    out, _ = run("parity", *given, "--reference", "float64", "--html", "p.html", "--json", "p.json")
    assert f"{len(NAMES)} arrays" in out
    listed = json.loads(Path("p.json").read_text("utf-8"))
    assert [entry["name"] for entry in listed["entries"]] == NAMES and listed["net"] == TITLE
    page = hostile.Page(Path("p.html").read_text("utf-8"))
    assert page.elements.count("script") == 1 and not page.handlers
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    rows = [value for tag, name, value in page.attributes if (tag, name) == ("tr", "data-layer")]
    assert [json.loads(f'"{value}"') for value in rows] == NAMES


def test_recordings(given: tuple[str, str], run) -> None:  # type: ignore[no-untyped-def]
    names = [name for name in NAMES if "\0" not in name]
    net = fcnproto.load(*given)
    value = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 6, 6), dtype=np.float32))
    found = net(data=value, blobs=names)
    arrays = {"in.data": value.numpy(), **{f"out.{name}": found[name].detach().numpy() for name in names}}
    arrays["out.not there \x1b[2J"] = np.zeros(3)
    from fcnproto.inspect.running import write_arrays

    write_arrays("golden.npz", arrays)
    out, err = run("parity", *given, "--golden", "golden.npz")
    assert f"{len(names)} arrays" in out and "not there \\x1b[2J" in err
    net.params[NAMES[8]][0].data += 1
    net.save("other.caffemodel")
    out, _ = run("parity", given[0], "other.caffemodel", "--golden", "golden.npz", status=1)
    assert "departs from golden.npz, first in blob" in out


def test_pictures_have_names_of_their_own(given: tuple[str, str], run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    np.savez("x.npz", data=np.ones((1, 3, 6, 6), np.float32))
    names = [name.strip() for name in NAMES if "," not in name and name.strip() in NAMES]
    same = ["a\\b", "a:b", "A?b"]
    model, weights = hostile.files(folder, hostile.chain([*names, *same], TITLE))
    wanted = ",".join([*names, *same])
    run("pictures", model, weights, "-o", "made", "--input", "x.npz", "--activations", wanted, "--gradients")
    made = sorted(os.listdir("made"))
    assert len(made) == len(names) + len(same) + 1
    assert {"activations-a_b.png", "activations-a_b-2.png", "activations-A_b-3.png"} <= set(made)
    for file in made:
        assert file.isprintable() and len(file.encode()) < 140
        with Image.open(Path("made") / file) as picture:
            picture.verify()


def test_arrays(given: tuple[str, str], run) -> None:  # type: ignore[no-untyped-def]
    value = np.random.default_rng(0).standard_normal((1, 3, 6, 6), dtype=np.float32)
    np.savez("x.npz", data=value)
    names = [name.strip() for name in NAMES if not {",", "\0"} & set(name) and name.strip() in NAMES]
    run("run", *given, "--input", "x.npz", "--blobs", ",".join(names), "-o", "out.npz")
    with np.load("out.npz") as found:
        assert set(names) <= set(found.files) and found["../x"].shape == (1, 2, 6, 6)
    _, err = run("run", *given, "--input", "x.npz", "--blobs", "nul\0byte", "-o", "bad.npz", status=2)
    assert "has a NUL" in err and len(err.splitlines()) == 1
    Image.fromarray(np.zeros((6, 6, 3), np.uint8)).save("\u202e[red]\x1b[31m.png")
    options = ["\u202e[red]\x1b[31m.png", "--mean", "0", "--blobs", ",".join(names)]
    run("features", *given, *options, "-o", "out2.npz")
    with np.load("out2.npz") as found:
        assert set(names) <= set(found.files) and list(found["image_names"]) == [Path(options[0]).stem]
    run("features", *given, *options, "-o", "out.h5")
    with h5py.File("out.h5") as file:
        assert all(file[name].shape == (1, 2, 6, 6) for name in names)
    _, err = run("features", *given, options[0], "--mean", "0", "--blobs", "nul\0byte", "-o", "bad.h5", status=2)
    assert "write .npz" in err and not Path("bad.h5").exists()


def test_definitions(given: tuple[str, str], run) -> None:  # type: ignore[no-untyped-def]
    run("upgrade", given[0], "new.prototxt")
    run("extract", given[1], "-o", "out.prototxt")
    Path("shown.prototxt").write_text(run("extract", given[1])[0], encoding="utf-8")
    for file in ("new.prototxt", "out.prototxt", "shown.prototxt"):
        net = read_net(file)
        assert [layer.name for layer in net.layer][1:] == NAMES and net.name == TITLE
        assert hostile.is_clean(Path(file).read_text("utf-8"))


@pytest.mark.parametrize("ending", ["safetensors", "pt", "caffemodel", "py", "pt2", "onnx"])
def test_conversions(given: tuple[str, str], run, folder: Path, ending: str) -> None:  # type: ignore[no-untyped-def]
    if ending in ("pt2", "onnx"):  # made by tracing, which takes its time
        given = hostile.files(folder, hostile.chain(NAMES[2::9], TITLE))
    run("convert", *given, f"net.{ending}")
    assert {Path(name).stem for name in os.listdir()} == {"net"}


def test_segmentations(run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    net = hostile.chain([])
    blobs = ["../score", "\x1b[31m[/x]"]
    for number, name in enumerate(blobs):
        layer = net.layer.add(name=f"conv{number}", type="Convolution", bottom=["data"], top=[name])
        layer.convolution_param.num_output = 3
        layer.convolution_param.kernel_size.append(1)
    model, weights = hostile.files(folder, net)
    classes = [name for name in NAMES if not set(name) & set("\n\r") and name.strip()]
    for start in range(0, len(classes) - 2, 3):
        if start > 9:
            break
        Path("classes.txt").write_text("\n".join(classes[start : start + 3]) + "\n", encoding="utf-8")
        image = f"\u202e[b]{start}\x1b[31m.png"
        Image.fromarray(np.full((9, 8, 3), 60, np.uint8)).save(image)
        out, _ = run("segment", model, weights, image, "-o", "made", "--probs", "--classes", "classes.txt")
        assert len(out.splitlines()) == 2
        with np.load(Path("made") / f"{Path(image).stem}__._score_probs.npz") as found:
            assert list(found["classes"]) == [name.strip() for name in classes[start : start + 3]]
    assert len(os.listdir("made")) == 4 * 2 * 3


def test_scores(run) -> None:  # type: ignore[no-untyped-def]
    classes = [name.strip() for name in NAMES if not set(name) & set("\n\r") and name.strip()]
    Path("classes.txt").write_text("\n".join(classes), encoding="utf-8")
    for kind in ("truth", "found"):
        Path(kind).mkdir()
        labels = np.arange(64, dtype=np.uint8).reshape(8, 8) % len(classes)
        Image.fromarray(labels).save(Path(kind) / "\x1b[31m.png")
    options = ["score", "folders", "found", "truth", "--classes", "classes.txt", "--picture", "matrix.png"]
    out, _ = run(*options)
    assert "[bold red]markup[/]" in out
    with Image.open("matrix.png") as picture:
        assert picture.width < 2000
    listed = json.loads(run(*options, "--json")[0])
    assert list(listed["results"][0]["classes"]) == classes


def test_pictures_of_several_scores(run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    net = hostile.chain([])
    blobs = ["\x1b[31m[x]", "nul\0\n|"]
    for number, name in enumerate(blobs):
        layer = net.layer.add(name=f"conv{number}", type="Convolution", bottom=["data"], top=[name])
        layer.convolution_param.num_output = 3
        layer.convolution_param.kernel_size.append(1)
    model, weights = hostile.files(folder, net)
    Path("classes.txt").write_text("a\n[/x]\n\x1b[31m\n", encoding="utf-8")
    options = ["--images", "images", "--picture", "matrix.png", "--mean", "none"]
    for place in ("images", "masks"):
        Path(place).mkdir()
        labels = np.arange(36, dtype=np.uint8).reshape(6, 6) % 3
        Image.fromarray(labels if place == "masks" else labels[:, :, None].repeat(3, 2)).save(Path(place) / "a.png")
    for name in blobs:
        options += ["--masks", f"{name}=masks", "--classes", f"{name}=classes.txt"]
    found = main(["score", "net", model, weights, *options])
    assert found == 0 and {"matrix.png", "matrix_nul___.png"} <= set(os.listdir())


def test_training(run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    hostile.trained(folder, NAMES, TITLE)
    _, err = run("train", "--solver", "solver.prototxt", "--log-dir", "log", "--plot", "plot.png", "--no-progress")
    assert "\\x1b[31mred = " in err
    with Path("log/test.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["output"] for row in rows} >= {"\\x1b[31mred", "'=1+2", "'@SUM(1)", "'-rf", "$\\bad$"}
    assert {row["iteration"] for row in rows} == {"0", "1"} and len(rows) == 2 * len(NAMES)
    with Image.open("plot.png") as picture:
        assert picture.size == (960, 540)
    assert {path.name for path in folder.iterdir()} == {
        *("net.prototxt", "solver.prototxt", "log", "plot.png"),
        *("snap_iter_1.caffemodel", "snap_iter_1.solverstate", "snap_iter_1.resume.json"),
    }
    out, err = run("test", "--model", "net.prototxt", "--weights", "snap_iter_1.caffemodel", "--iterations", "1")
    assert len(out.splitlines()) == len(NAMES) + 1


def test_the_live_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from fcnproto.solver.progress import LiveLine

    hostile.trained(folder, ["[/x]\x1b[31m\u202e"])
    solver = Solver("solver.prototxt")
    console = Console(force_terminal=False, width=200)
    solver.listeners.append(LiveLine(console))
    solver.step(1)
    out = capsys.readouterr().out
    assert "[/x]\\x1b[31m\\u202e = " in out and hostile.is_clean(out)


@pytest.mark.parametrize("names", [NAMES, hostile.fuzzed(120)], ids=["listed", "fuzzed"])
def test_errors_and_warnings_are_one_printable_line(names: list[str], folder: Path) -> None:
    for number, name in enumerate(names):
        net = hostile.chain(["conv"], title=name)
        net.layer.add(name=name, type="ReLU", bottom=["missing" + name], top=["top"])
        with pytest.raises(fcnproto.Error) as found:
            fcnproto.load(net)
        net.layer[-1].bottom[0] = "conv"
        with pytest.raises(fcnproto.Error) as other:
            fcnproto.load(net)(data=torch.zeros(1, 3, 6, 6), blobs=[name + "?"])
        net.layer[-1].type = name + "Layer"
        with pytest.raises(fcnproto.UnsupportedLayerError) as third:
            fcnproto.load(net, strict=True)
        with pytest.warns(fcnproto.errors.FcnprotoWarning) as told:
            held = fcnproto.load(net)
        with pytest.raises(fcnproto.Error) as fourth:
            held(data=torch.zeros(1, 3, 6, 6), blobs=["top"])
        warned = [str(warning.message) for warning in told]
        for text in (str(found.value), str(other.value), str(third.value), str(fourth.value), *warned):
            assert text.isprintable() and len(text) <= 4000, (number, text)


PATHS = ["nul\0byte", "a" * 10_000, "\x1b[31m[/x]", "two\nlines", "..", ".", "/dev/null", "/etc", "%s"]


@pytest.mark.parametrize("kind", ["Data", "HDF5Data", "ImageData", "WindowData", "Infogain", "Python", "Solver"])
def test_paths_in_definitions(kind: str, run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    for path in PATHS:
        net = caffe_pb2.NetParameter(name="paths")
        layer = net.layer.add(name="d", type=kind, top=["data", "label"])
        if kind == "Solver":
            solver = caffe_pb2.SolverParameter(net=path, base_lr=0.1, lr_policy="fixed", max_iter=1)
            write_message(Path("solver.prototxt"), solver)
            _, err = run("train", "--solver", "solver.prototxt", status=1)
        else:
            if kind == "Infogain":
                net = hostile.chain([])
                layer = net.layer.add(name="l", type="InfogainLoss", bottom=["data", "data"], top=["loss"])
                layer.infogain_loss_param.source = path
            elif kind == "Python":
                layer.python_param.module = layer.python_param.layer = path
            else:
                settings = {
                    "Data": "data",
                    "HDF5Data": "hdf5_data",
                    "ImageData": "image_data",
                    "WindowData": "window_data",
                }
                getattr(layer, f"{settings[kind]}_param").source = path
                getattr(layer, f"{settings[kind]}_param").batch_size = 1
            write_message(Path("net.prototxt"), net)
            _, err = run("run", "net.prototxt", "--allow-python", status=1)
        assert len(err.splitlines()) == 1 and "unexpected" not in err
    assert set(os.listdir()) <= {"net.prototxt", "solver.prototxt"}


def test_a_prefix_that_is_no_name(run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    solver = hostile.trained(folder, ["loss"])
    solver.snapshot_prefix = "nul\0byte"
    write_message(folder / "solver.prototxt", solver)
    _, err = run("train", "--solver", "solver.prototxt", "--no-progress", status=1)
    assert "snapshot_prefix 'nul\\x00byte'" in err and "unexpected" not in err


def test_the_command_tells_errors_in_one_line(run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    for name in NAMES[:: len(NAMES) // 12]:
        net = hostile.chain(["conv"])
        net.layer.add(name=name, type="ReLU", bottom=["missing" + name], top=["top"])
        write_message(Path("bad.prototxt"), net)
        _, err = run("summary", "bad.prototxt", status=1)
        assert len(err.splitlines()) == 1 and err.startswith("fcnproto: error: ")
    _, err = run("summary", "\x1b[31m[/x]\u202e\n.prototxt", status=1)
    assert len(err.splitlines()) == 1 and "\\x1b[31m[/x]\\u202e" in err
    _, err = run("\x1b[31m[/x]", status=2)
    assert len(err.splitlines()) == 1


def test_fuzzed_names_come_through(run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    names = sorted({name for name in hostile.fuzzed(150, seed=1) if name})
    model, weights = hostile.files(folder, hostile.chain(names, names[0]))
    listed = json.loads(run("summary", model, "--json")[0])
    assert [layer["name"] for layer in listed["layers"]] == ["data", *names]
    run("summary", model)
    run("draw", model, "-o", "net.svg")
    root = ElementTree.parse("net.svg").getroot()
    found = [json.loads(node.get("data-layers") or "[]") for node in root.iter()]
    assert [name for part in found for name in part] == ["data", *names]
    run("draw", model, "-o", "net.html")
    page = hostile.Page(Path("net.html").read_text("utf-8"))
    assert page.elements.count("script") == 2 and not page.handlers and not page.addresses
    assert set(json.loads(page.scripts[0])) == {"data", *names}
    net = fcnproto.load(model, weights)
    assert set(net(data=torch.ones(1, 3, 6, 6), blobs=names)) == set(names)


@pytest.mark.skipif(browser.find() is None, reason="no Chromium is installed")
def test_pages_in_a_browser(given: tuple[str, str], run, folder: Path, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    run("draw", *given, "-o", "net.html")
    run("parity", *given, "--reference", "float64", "--html", "parity.html")
    with browser.Browser(tmp_path_factory.mktemp("browser")) as page:
        page.open(folder / "net.html")
        page.run("document.querySelectorAll('.box').forEach(box => box.dispatchEvent(new MouseEvent('click')))")
        assert page.run("typeof window.canary") == "undefined"
        shown = page.run("document.getElementById('details').innerText")
        assert "\\u{10ffff} (Power)" in shown
        page.run(f"location.hash = '#' + encodeURIComponent({json.dumps(NAMES[14])})")
        page.wait("document.getElementById('details').innerText.includes('(Power)')")
        assert page.run("document.querySelectorAll('img, iframe, object, embed').length") == 0
        page.open(folder / "parity.html")
        page.run("document.querySelectorAll('.box').forEach(box => box.dispatchEvent(new MouseEvent('click')))")
        assert page.run("typeof window.canary") == "undefined"
        assert page.run("document.querySelectorAll('script').length") == 1
