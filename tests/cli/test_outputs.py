"""What commands write to, and what they refuse to: devices, pipes, stdout, links, the inputs themselves."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image
from tiny_nets import colour_net, stripes

from fcnproto.cli import _files
from fcnproto.cli._main import commands, main
from fcnproto.schema.text import read_net


@pytest.fixture
def net(tmp_path: Path) -> list[str]:
    stripes(tmp_path / "a.png")
    return [str(path) for path in colour_net(tmp_path)]


def run(*arguments: object, text: bool = True) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "fcnproto", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=text, timeout=120)


def leaves(command: click.Command, name: str = "") -> list[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        return [(name, command)]
    context = click.Context(command)
    return [
        found
        for inner in command.list_commands(context)
        if (made := command.get_command(context, inner)) is not None
        for found in leaves(made, f"{name} {inner}".strip())
    ]


def test_every_output_is_checked() -> None:
    names = {"output", "output_weights", "out", "html", "json_file", "picture", "plot", "log_dir", "target"}
    seen = set()
    for command, made in leaves(commands):
        for parameter in made.params:
            if parameter.name in names:
                assert isinstance(parameter.type, _files.OutputFile | _files.OutputFolder), (command, parameter.name)
                seen.add(parameter.name)
    assert seen == names


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes in the file system")
def test_pipes_are_written_to(tmp_path: Path, net: list[str]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    assert main(["extract", net[1], "-o", str(pipe)]) == 0
    reader.join(30)
    assert got[0].startswith(b'name: "colours"') and stat.S_ISFIFO(pipe.stat().st_mode)
    got.clear()
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    command = ["surgery", "transplant", *net, "-o", str(pipe), "--no-interpolation"]
    assert main(command) == 0
    reader.join(30)
    assert got[0] == Path(net[1]).read_bytes()


def test_devices_are_written_to(net: list[str]) -> None:
    before = os.stat(os.devnull)
    assert main(["extract", net[1], "-o", os.devnull]) == 0
    assert main(["draw", net[0], "-o", os.devnull, "--format", "png"]) == 0
    assert not [name for name in os.listdir("/dev") if "fcnproto" in name]
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode) and os.stat(os.devnull).st_ino == before.st_ino


def test_stdout(tmp_path: Path, net: list[str]) -> None:
    definition = run("extract", net[1]).stdout
    assert run("extract", net[1], "-o", "-").stdout == definition == run("extract", net[1], "-o", "/dev/stdout").stdout
    with open(tmp_path / "log", "w") as log:
        log.write("before\n")
        log.flush()
        command = [sys.executable, "-m", "fcnproto", "extract", net[1], "-o", "/dev/stdout"]
        subprocess.run(command, stdout=log, check=True, timeout=120)
    assert (tmp_path / "log").read_text() == "before\n" + definition  # written on, not replaced


@pytest.mark.parametrize(
    ("command", "start"),
    [
        ("draw {model} -o -", "<svg"),
        ("draw {model} -o - --format html", "<!DOCTYPE html"),
        ("upgrade {model} -", 'name: "colours"'),
        ("surgery set-classes {model} --classes 4 -o -", 'name: "colours"'),
        ("run {model} {weights} --image {image} --mean none -o -", "score\tscore\t1x3x"),
        ("features {model} {weights} {image} --blobs score --mean none -o -", "a\tscore\t3x"),
        ("parity {model} {weights} --reference float64 --html -", "<!DOCTYPE html"),
    ],
)
def test_a_dash_is_stdout(command: str, start: str, tmp_path: Path, net: list[str], capsys) -> None:  # type: ignore[no-untyped-def]
    places = {"model": net[0], "weights": net[1], "image": tmp_path / "a.png"}
    files = sorted(tmp_path.iterdir())
    assert main([part.format(**places) for part in command.split()]) == 0
    assert capsys.readouterr().out.lower().lstrip().startswith(start.lower())
    assert sorted(tmp_path.iterdir()) == files


def test_arrays_on_stdout(tmp_path: Path, net: list[str]) -> None:
    done = run("run", *net, "--image", tmp_path / "a.png", "--mean", "none", "-o", "-", "--format", "npz", text=False)
    assert done.returncode == 0 and b"score" in done.stderr  # the table
    (tmp_path / "o.npz").write_bytes(done.stdout)
    with np.load(tmp_path / "o.npz") as found, Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(found["score"][0].transpose(1, 2, 0)[..., ::-1], np.asarray(image))


def test_weights_on_stdout(net: list[str], capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["convert", *net, "-", "--format", "caffemodel"]) == 0
    assert capsysbinary.readouterr().out == Path(net[1]).read_bytes()
    assert main(["convert", *net, "-"]) == 2
    assert b"say with --format" in capsysbinary.readouterr().err


def test_outputs_that_are_inputs_are_refused(tmp_path: Path, net: list[str], capsys) -> None:  # type: ignore[no-untyped-def]
    model, weights = map(Path, net)
    image = tmp_path / "a.png"
    (tmp_path / "link").symlink_to(weights)
    os.link(weights, tmp_path / "hard")
    (tmp_path / "truth").mkdir()
    stripes(tmp_path / "truth" / "a.png")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    truth, classes = tmp_path / "truth", tmp_path / "classes.txt"
    refused = [
        f"extract {weights} -o {weights}",
        f"extract {weights} -o {tmp_path / 'link'}",
        f"extract {weights} -o {tmp_path / 'hard'}",
        f"draw {model} -o {model} --format svg",
        f"surgery transplant {model} {weights} -o {weights}",
        f"surgery late-fusion {model} --stream a={weights} -o {weights}",
        f"surgery set-classes {model} --classes 4 -o {tmp_path / 'n.prototxt'} --output-weights {tmp_path / 'n.prototxt'}",
        f"run {model} {weights} --image data={image} -o {image}",
        f"features {model} {weights} {image} --blobs score -o {image} --format npz",
        f"parity {model} {weights} --reference float64 --json-file {weights}",
        f"convert {model} {weights} {weights}",
        f"score folders {tmp_path} {truth} --classes {classes} --picture {truth / 'a.png'}",
        f"hha {truth} --camera nyud -o {truth}",
        f"hha {truth / 'a.png'} --camera nyud -o {truth}",
        f"train --solver {model} --plot {model}",
    ]
    for line in refused:
        assert main(line.split()) in (1, 2), line
        err = capsys.readouterr().err
        assert "to another place" in err or "both write" in err or line.startswith("hha"), (line, err)
        for path, content in before.items():
            assert path.read_bytes() == content, (line, path)
    assert main(["upgrade", str(model), str(model)]) == 0
    assert read_net(model).name == "colours"


def test_outputs_that_cannot_be_written_are_noticed_before_the_work(
    tmp_path: Path, net: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for output in (tmp_path / "none" / "x.npz", tmp_path, tmp_path / "a.png" / "x.npz"):
        assert main(["run", "no.prototxt", "-o", str(output)]) == 2
        assert "no.prototxt" not in capsys.readouterr().err
    assert main(["segment", *net, str(tmp_path / "a.png"), "-o", str(tmp_path / "a.png" / "out")]) == 2
    assert "is a file; the results go to a folder" in capsys.readouterr().err


def test_a_folder_of_results_is_not_searched_for_images(tmp_path: Path, net: list[str]) -> None:
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    stripes(tmp_path / "photos" / "deep" / "cat.png")
    out = tmp_path / "photos" / "out"
    for _ in range(2):
        assert main(["segment", *net, str(tmp_path / "photos"), "-r", "-o", str(out), "--mean", "none"]) == 0
        assert sorted(path.name for path in out.rglob("*.png")) == ["cat_labels.png", "cat_overlay.png"]


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
def test_sigterm_leaves_no_temporary_files(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom fcnproto.atomic import atomic_write\nfrom fcnproto.cli import _main, _files, zoo\n"
        "def work():\n    with atomic_write(sys.argv[1]) as file:\n        file.write(b'x' * 99999)\n"
        "        print('begun', flush=True)\n        time.sleep(60)\n"
        "zoo.list_models.callback = work\nsys.exit(_main.main(['zoo', 'list']))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    for number, status in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"begun\n"
            process.send_signal(number)
            assert process.wait(30) == status
        assert len(list(tmp_path.iterdir())) == (0 if number == signal.SIGTERM else 1)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".x.")
    old = time.time() - 60
    os.utime(left, (old, old))
    assert run("extract", tmp_path / "none", "-o", tmp_path / "y").returncode == 1
    from fcnproto.atomic import atomic_write

    with atomic_write(tmp_path / "y") as file:  # a later writer tidies up what the dead one left
        file.write(b"y")
    assert [path.name for path in tmp_path.iterdir()] == ["y"]
