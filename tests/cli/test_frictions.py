"""Small things that a user meets: what is said, where it is said, and that one word means one thing everywhere."""

from __future__ import annotations

import builtins
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image

import fcnproto
from fcnproto.cli import _main
from fcnproto.cli._main import main
from fcnproto.errors import FcnprotoWarning, GraphError, SolverError
from fcnproto.image_files import find_images

MINI = str(fcnproto.zoo.path("fcn-mini", "deploy"))
WEIGHTS = str(fcnproto.zoo.path("fcn-mini", "weights"))
NET = """layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }
layer { name: "score" type: "Convolution" bottom: "data" top: "score" convolution_param { num_output: 2 kernel_size: 1
  weight_filler { type: "gaussian" std: 1 } } }
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    """A net without a name, with weights beside it, two images and their masks."""
    path = tmp_path / "net.prototxt"
    path.write_text(NET)
    fcnproto.load(path).save(tmp_path / "net.caffemodel")
    random = np.random.default_rng(0)
    for folder, shape in (("images", (8, 8, 3)), ("masks", (8, 8))):
        (tmp_path / folder).mkdir()
        for name in ("a", "b", "c"):
            values = random.integers(0, 2, shape) * (255 if folder == "images" else 1)
            Image.fromarray(values.astype(np.uint8)).save(tmp_path / folder / f"{name}.png")
    (tmp_path / "classes.txt").write_text("background\nthing\n")
    return str(path)


def every_command(group: click.Group = _main.commands, before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """All commands by their words."""
    context, found = click.Context(group), []
    for name in group.list_commands(context):
        inner = group.get_command(context, name)
        found += every_command(inner, (*before, name)) if isinstance(inner, click.Group) else [(*before, name)]
    return found


def command_of(words: tuple[str, ...]) -> click.Command:
    found: click.Command = _main.commands
    for word in words:
        assert isinstance(found, click.Group)
        found = found.get_command(click.Context(found), word)  # type: ignore[assignment]
    return found


def option(command: click.Command, flag: str) -> click.Option | None:
    options = [one for one in command.params if isinstance(one, click.Option)]
    return next((one for one in options if flag in one.opts), None)


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_json_is_a_flag_and_model_an_option_of_every_command(words: tuple[str, ...]) -> None:
    command = command_of(words)
    found = option(command, "--json")
    assert found is not None and found.is_flag
    takes_net = any(one.name in ("model", "net") for one in command.params if isinstance(one, click.Argument))
    assert not takes_net or option(command, "--model") is not None


def printed(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> Any:
    """What a command prints with --json."""
    assert main([*map(str, arguments), "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_json_of_what_reads_a_net(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "net.caffemodel"
    image, out = tmp_path / "images" / "a.png", tmp_path / "out"
    found = printed(capsys, "segment", net, weights, image, "-o", out)
    assert sum(found["images"][0]["blobs"]["score"]["shares"].values()) == pytest.approx(1) and found["failed"] == 0
    assert [Path(file).name for file in found["images"][0]["files"]] == ["a_labels.png", "a_overlay.png"]
    found = printed(capsys, "run", net, weights, "--image", image)
    assert found["blobs"]["score"]["shape"] == [1, 2, 8, 8]
    assert printed(capsys, "parity", net, weights, "--reference", "float64")["agrees"] is True
    assert printed(capsys, "summary", net)["parameters"] == 8
    assert printed(capsys, "draw", net, "-o", out / "net.svg")["layers"] == 2
    assert printed(capsys, "convert", net, weights, out / "net.safetensors")["files"] == [str(out / "net.safetensors")]
    assert printed(capsys, "extract", weights)["layers"] == 2
    assert printed(capsys, "extract", weights, "-o", out / "e.prototxt")["file"] == str(out / "e.prototxt")
    found = printed(capsys, "features", net, weights, image, "--blobs", "score", "-o", out / "f.npz")
    assert found["images"] == 1
    assert len(printed(capsys, "pictures", net, weights, "-o", out)["files"]) == 1
    assert "savings" in printed(capsys, "optimize", net, weights)
    assert printed(capsys, "upgrade", net, out / "u.prototxt")["compatible"] is True
    found = printed(capsys, "surgery", "transplant", net, weights, "-o", out / "t.caffemodel")
    assert [(one["action"], one["layer"]) for one in found["steps"]] == [("copied", "score")]
    assert len(printed(capsys, "time", "--model", net, "--iterations", 1)["milliseconds"]) == 2
    masks = ("--images", tmp_path / "images", "--masks", tmp_path / "masks", "--classes", tmp_path / "classes.txt")
    found = printed(capsys, "score", "net", net, weights, *masks)
    assert 0 <= found["results"][0]["mean IU"] <= 1
    found = printed(
        capsys, "finetune", "--model", net, "--weights", weights, *masks, "-o", tmp_path / "tuned", "--dry-run"
    )
    assert any(line.startswith("2 classes") for line in found["plan"])


def test_json_of_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lmdb")
    depth = tmp_path / "depth.png"
    Image.fromarray(np.full((12, 12), 900, np.uint16)).save(depth)
    found = printed(capsys, "hha", depth, "-o", tmp_path / "hha", "--camera", "500,500,6,6")
    assert found["files"] == [str(tmp_path / "hha" / "depth.png")]
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "x.png")
    (tmp_path / "list.txt").write_text("x.png 0\n")
    found = printed(capsys, "convert-imageset", f"{tmp_path}/", tmp_path / "list.txt", tmp_path / "db")
    assert found["records"] == 1
    assert printed(capsys, "image-mean", tmp_path / "db")["mean"] == [3, 2, 1]
    solver = tmp_path / "solver.prototxt"
    (tmp_path / "train.prototxt").write_text(
        'layer { name: "d" type: "DummyData" top: "x" top: "y" dummy_data_param { shape { dim: 2 dim: 3 } '
        'shape { dim: 2 dim: 1 } } } layer { name: "l" type: "EuclideanLoss" bottom: "p" bottom: "y" top: "loss" }'.replace(
            ' layer { name: "l"',
            ' layer { name: "p" type: "InnerProduct" bottom: "x" top: "p" inner_product_param { num_output: 1 } }\nlayer { name: "l"',
        )
    )
    solver.write_text(
        f'net: "train.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 2 snapshot_prefix: "{tmp_path}/s"\n'
    )
    found = printed(capsys, "train", "--solver", solver, "--no-plot", "--device", "cpu")
    assert found["iterations"] == 2 and found["snapshot"].endswith(".solverstate")
    found = printed(
        capsys, "test", "--model", tmp_path / "train.prototxt", "--weights", tmp_path / "s_iter_2.caffemodel",
        "--iterations", 1,
    )  # fmt: skip
    assert list(found["outputs"]) == ["loss"]
    assert {one["name"] for one in printed(capsys, "zoo", "list")} == set(fcnproto.zoo.names())
    assert printed(capsys, "zoo", "path", "fcn-mini")["path"] == MINI
    score = printed(capsys, "zoo", "info", "fcn-mini")["scores"][0]["metrics"]["mean IU"]
    assert score == 0.81


def test_old_json_of_parity(net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["parity", "net.prototxt", "net.caffemodel", "--reference", "float64"]
    for form in (["--json", "x.json"], ["--json=x.json"], ["--json", "report"], ["--json-file", "x.json"]):
        assert main([*words, *form]) == 0
        written = tmp_path / form[-1].removeprefix("--json=")
        assert json.loads(written.read_text())["agrees"] is True
        written.unlink()
    # The flag before the arguments takes none of them for a file.
    assert main(["parity", "--json", "net.prototxt", "net.caffemodel", "--reference", "float64"]) == 0


def test_model_and_weights_by_option(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, image = str(tmp_path / "net.caffemodel"), str(tmp_path / "images" / "a.png")
    outputs = []
    for number, given in enumerate(
        (
            [net, weights, image],
            ["--model", net, "--weights", weights, image],
            [image, f"--model={net}", f"--weights={weights}"],
            [net, "--weights", weights, image],
            ["--model", net, weights, image],
        )
    ):
        assert main(["segment", *given, "-o", str(tmp_path / f"out{number}")]) == 0
        outputs.append(capsys.readouterr().out)
    assert len(set(outputs)) == 1
    assert main(["summary", "--model", net]) == 0
    assert main(["score", "net", "--model", net]) == 2
    assert "Missing argument 'WEIGHTS' (see: fcnproto score net --help)" in capsys.readouterr().err
    assert main(["summary", "--model", net, net]) == 2  # too much
    # What is given by option is guarded like an argument.
    assert main(["extract", "--weights", weights, "-o", weights]) == 2
    assert "is an input" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("score", "net"), ("surgery", "transplant"), ("zoo", "info"), ("segment",)])
def test_nested_commands_point_to_their_own_help(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words]) == 2
    assert f"(see: fcnproto {' '.join(words)} --help)" in capsys.readouterr().err


def test_cuda_graphs_without_a_gpu(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(tmp_path / "images" / "a.png")
    words = ["segment", net, str(tmp_path / "net.caffemodel"), image, "-o", str(tmp_path / "out")]
    assert main([*words, "--device", "cpu", "--cuda-graphs"]) == 0
    assert "CUDA graphs are for GPUs; this net is on the CPU" in capsys.readouterr().err


def test_files_that_are_images_but_not_by_name(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "plain")
    shutil.copy(tmp_path / "a.png", tmp_path / "photo.backup")
    (tmp_path / "phone.heic").write_bytes(b"....ftypheic")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.warns(FcnprotoWarning, match="not by their names: phone.heic, photo.backup, plain "):
        assert [path.name for path, _ in find_images([tmp_path])] == ["a.png"]
    with pytest.raises(fcnproto.DataError, match="HEIC can't be read here"):
        fcnproto.images.read_image(tmp_path / "phone.heic")


def test_avif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import features

    if features.check("avif"):
        Image.new("RGB", (4, 4)).save(tmp_path / "b.avif")
        assert [path.name for path, _ in find_images([tmp_path])] == ["b.avif"]
    (tmp_path / "c.avif").write_bytes(b"....ftypavif")
    monkeypatch.setattr("fcnproto.images.features.check", lambda name: False)
    with pytest.raises(fcnproto.DataError, match="this Pillow can't read AVIF"):
        fcnproto.images.read_image(tmp_path / "c.avif")


def test_a_net_without_a_name(net: str) -> None:
    found = fcnproto.load(net)
    for call in (lambda: found(), lambda: found.layer("nothing"), lambda: found(data=np.zeros(1), blobs=["nothing"])):
        with pytest.raises(GraphError) as caught:
            call()
        assert "''" not in str(caught.value) and "the net" in str(caught.value)


@pytest.mark.parametrize("command", ["summary", "draw", "optimize", "run"])
def test_errors_of_a_net_name_its_file(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.prototxt"
    path.write_text(NET.replace("num_output: 2", ""))
    more = {"draw": ["-o", str(tmp_path / "x.svg")]}.get(command, [])
    assert main([command, str(path), *more]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"fcnproto: error: {path}: layer 'score'")


def test_misspelt_types_policies_and_fields(net: str, tmp_path: Path) -> None:
    text = NET.replace('"Convolution"', '"Convolusion"')
    (tmp_path / "t.prototxt").write_text(text)
    with pytest.warns(FcnprotoWarning, match='Convolusion .did you mean "Convolution"\\?'):
        fcnproto.load(tmp_path / "t.prototxt")
    (tmp_path / "f.prototxt").write_text(NET.replace("num_output", "num_outptu"))
    with pytest.warns(FcnprotoWarning, match='did you mean "num_output"'), pytest.raises(GraphError):
        fcnproto.load(tmp_path / "f.prototxt")
    solver = tmp_path / "s.prototxt"
    for field, value, meant in (("lr_policy", "stpe", "step"), ("type", "Adm", "Adam")):
        settings = {"lr_policy": "fixed", "type": "SGD", field: value}
        listed = " ".join(f'{name}: "{one}"' for name, one in settings.items())
        solver.write_text(f'net: "{net}" base_lr: 1 {listed} max_iter: 1')
        with pytest.raises(SolverError, match=f'did you mean "{meant}"'):
            fcnproto.Solver(solver)


def test_tensorboard_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fcnproto.solver.progress import LogFolder

    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if "tensorboard" in name:
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "train.prototxt").write_text(NET)
    folder = LogFolder(tmp_path)
    (tmp_path / "s.prototxt").write_text('net: "train.prototxt" base_lr: 1 lr_policy: "fixed" max_iter: 1')
    with pytest.warns(FcnprotoWarning, match="nothing for TensorBoard.*pip install tensorboard"):
        folder.started(fcnproto.Solver(tmp_path / "s.prototxt"), 1)
    folder.close()


def test_shares_and_scores_are_fractions(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = ["--images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks")]
    words = ["score", "net", net, str(tmp_path / "net.caffemodel"), *masks]
    assert main([*words, "--classes", str(tmp_path / "classes.txt")]) == 0
    assert main(["zoo", "list"]) == main(["zoo", "info", "voc-fcn8s"]) == 0
    assert main(["parity", net, str(tmp_path / "net.caffemodel"), "--reference", "float64"]) == 0
    words = ["segment", net, str(tmp_path / "net.caffemodel"), str(tmp_path / "images"), "-o", str(tmp_path / "out")]
    assert main([*words, "--precision", "bf16"]) == 0
    captured = capsys.readouterr()
    assert "%" not in captured.out + captured.err and "percent" not in captured.out
    assert "0.655" in captured.out and "65.5" not in captured.out


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody may write to")
@pytest.mark.parametrize(
    "words",
    [
        "run {net} {weights} --image {image} -o /proc/x.npz",
        "segment {net} {weights} {image} -o /proc/out",
        "draw {net} -o /proc/x.svg",
        "features {net} {weights} {image} --blobs score -o /proc/x.npz",
        "convert {net} {weights} /proc/x.onnx",
        "parity {net} {weights} --reference float64 --html /proc/x.html",
        "score net {net} {weights} --images {folder}/images --masks {folder}/masks --picture /proc/x.png",
        "finetune --model {net} --weights {weights} --images {folder} --masks {folder} -o /proc/out",
        "convert-imageset {folder}/ {folder}/classes.txt /proc/db",
        "train --solver {net} --log-dir /proc/log",
        "check {net} --html /proc/x.html",
    ],
    ids=lambda words: words.partition(" ")[0],
)
def test_an_output_that_cannot_be_written_is_told_first(
    words: str, net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcnproto, "load", lambda *arguments, **settings: pytest.fail("work has begun"))
    places = {"net": net, "weights": tmp_path / "net.caffemodel", "folder": tmp_path}
    filled = words.format(**places, image=tmp_path / "images" / "a.png")
    assert main(filled.split()) == 2
    assert "/proc can't be written to" in capsys.readouterr().err


def test_image_and_input_mean_the_same_everywhere(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, values = tmp_path / "images" / "a.png", np.ones((1, 3, 8, 8), np.float32)
    np.save(tmp_path / "x.npy", values)
    np.savez(tmp_path / "x.npz", data=values)
    weights = str(tmp_path / "net.caffemodel")
    pictures = ("--image", image), ("--image", f"data={image}"), ("--input", image), ("--input", f"data={image}")
    arrays = [("--input", f"{start}{tmp_path}/x.{suffix}") for start in ("", "data=") for suffix in ("npy", "npz")]
    for group in (pictures, arrays):
        found = [printed(capsys, "run", net, weights, *words) for words in group]
        assert all(one == found[0] for one in found)
    for words in (*pictures, *arrays):
        assert printed(capsys, "parity", net, weights, "--reference", "float64", *words)["agrees"] is True
        made = printed(capsys, "pictures", net, weights, "--activations", "score", "-o", tmp_path / "p", *words)
        assert [Path(file).name for file in made["files"]] == ["activations-score.png"]
    assert main(["run", net, weights, "--image", str(image), "--input", str(tmp_path / "x.npy")]) == 2
    assert "input 'data' is given twice" in capsys.readouterr().err


def test_the_shell_completes_as_the_readme_says() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for shell in ("bash", "zsh", "fish"):
        assert f"_FCNPROTO_COMPLETE={shell}_source" in readme or f"{shell}_source in" in readme
    words = {"COMP_WORDS": "fcnproto segment --pro", "COMP_CWORD": "2", "_FCNPROTO_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [sys.executable, "-c", "from fcnproto.cli._main import main; main()"],
        env={**os.environ, **words},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "plain,--probs\n"
