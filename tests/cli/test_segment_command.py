"""`fcnproto segment`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_nets import COLOURS, colour_net, small_fcn, stripes

import fcnproto.segment
from fcnproto.cli._main import main


def labels_in(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


@pytest.fixture
def net(tmp_path: Path) -> list[str]:
    folder = tmp_path / "net"
    folder.mkdir()
    return [str(path) for path in colour_net(folder)]


def test_files_and_folders(tmp_path: Path, net: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    truth = stripes(tmp_path / "in" / "a.png")
    stripes(tmp_path / "b.png", 4, 3)
    (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in COLOURS))
    places = [str(tmp_path / "in"), str(tmp_path / "b.png")]
    arguments = [*net, *places, "-o", str(tmp_path / "out" / "deep"), "--mean", "none"]
    assert main(["segment", *arguments, "--classes", str(tmp_path / "names.txt")]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        f"{tmp_path / 'in' / 'a.png'}: blue 0.333, green 0.333, red 0.333",
        f"{tmp_path / 'b.png'}: blue 0.333, green 0.333, red 0.333",
    ]
    assert captured.err == ""
    assert (labels_in(tmp_path / "out" / "deep" / "a_labels.png") == truth).all()
    assert sorted(path.name for path in (tmp_path / "out" / "deep").iterdir()) == [
        "a_labels.png",
        "a_overlay.png",
        "b_labels.png",
        "b_overlay.png",
    ]


def test_overlay_has_the_size_of_the_image_without_legend(tmp_path: Path, net: list[str]) -> None:
    stripes(tmp_path / "a.png", 30, 60)
    out = tmp_path / "out"
    assert main(["segment", *net, str(tmp_path / "a.png"), "-o", str(out)]) == 0
    with Image.open(out / "a_overlay.png") as image:
        assert image.width > 60
        assert image.height >= 30
    assert main(["segment", *net, str(tmp_path / "a.png"), "-o", str(out), "--no-legend"]) == 0
    with Image.open(out / "a_overlay.png") as image:
        assert image.size == (60, 30)


def test_says_what_it_assumes(tmp_path: Path, net: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    stripes(tmp_path / "a.png")
    assert main(["segment", *net, str(tmp_path / "a.png"), "-o", str(tmp_path / "out")]) == 0
    assert "input 'data': assumed BGR, mean 104.007 116.669 122.679, scale 1" in capsys.readouterr().err


def test_one_bad_image(tmp_path: Path, net: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    stripes(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    stripes(tmp_path / "c.png")
    images = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png", "d.png")]
    assert main(["segment", *net, *images, "-o", str(tmp_path / "out"), "--mean", "0"]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert captured.err.splitlines() == [
        f"fcnproto: error: {tmp_path / 'b.png'}: the file is empty",
        f"fcnproto: error: {tmp_path / 'd.png'}: no such file",
        "fcnproto: 2 of 4 images failed",
    ]
    assert (tmp_path / "out" / "c_labels.png").exists()


def test_preprocessing_options(tmp_path: Path, net: list[str]) -> None:
    Image.new("RGB", (4, 4), (100, 90, 80)).save(tmp_path / "a.png")  # red is strongest
    np.save(tmp_path / "mean.npy", np.array([0.0, 0.0, 99.0]))

    def label(*options: str) -> int:
        assert main(["segment", *net, str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), *options]) == 0
        return int(labels_in(tmp_path / "out" / "a_labels.png")[0, 0])

    assert label("--mean", "none") == 2
    assert label("--mean", "none", "--channels", "rgb") == 0
    assert label("--mean", "0,0,20") == 1
    assert label("--mean", f"data={tmp_path / 'mean.npy'}") == 1
    assert label("--mean", "none", "--scale", "-1") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mean", "1,2"], "--mean 1,2: has 2 channels, input 'data' has 3"),
        (["--scale", "big"], "--scale big: not a number"),
        (["--channels", "cmyk"], "--channels cmyk: expected one of bgr"),
        (["--resize", "5x5x5"], "--resize '5x5x5': expected HEIGHTxWIDTH"),
        (["--input", "hha"], "--image hha: expected BLOB=VALUE"),
        (["--input", "hha=."], "'hha' is no image input; these are 'data'"),
    ],
)
def test_wrong_options(
    tmp_path: Path, net: list[str], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stripes(tmp_path / "a.png")
    assert main(["segment", *net, str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_resize_to_the_nets_size(tmp_path: Path, net: list[str]) -> None:
    truth = stripes(tmp_path / "a.png", 60, 90)
    out = str(tmp_path / "out")
    assert main(["segment", *net, str(tmp_path / "a.png"), "-o", out, "--mean", "0", "--resize", "net"]) == 0
    assert (labels_in(tmp_path / "out" / "a_labels.png") == truth).mean() > 0.8


def test_probabilities(tmp_path: Path, net: list[str]) -> None:
    stripes(tmp_path / "a.png")
    out = tmp_path / "out"
    assert main(["segment", *net, str(tmp_path / "a.png"), "-o", str(out), "--probs", "--scale", "0.01"]) == 0
    with np.load(out / "a_probs.npz") as file:
        probabilities = file["probs"]
    scores = np.zeros((3, 6, 9))
    for label, image_channel in enumerate((2, 1, 0)):
        scores[label] = np.asarray(Image.open(tmp_path / "a.png"))[:, :, image_channel]
    scores = np.exp((scores - np.array([104.00699, 116.66877, 122.67892])[:, None, None]) * 0.01)
    np.testing.assert_allclose(probabilities, scores / scores.sum(axis=0), rtol=1e-5)


def test_without_optimising(tmp_path: Path) -> None:
    net = [str(path) for path in small_fcn(tmp_path)]
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for options in ([], ["--no-optimize"]):
        out = str(tmp_path / f"out{len(options)}")
        assert main(["segment", *net, str(tmp_path / "a.png"), "-o", out, "--probs", *options]) == 0
    fast, plain = (np.load(tmp_path / f"out{number}" / "a_probs.npz")["probs"] for number in (0, 1))
    np.testing.assert_allclose(fast, plain, atol=1e-5)


def test_results_are_not_drawn_into_the_progress_bar(tmp_path: Path, net: list[str]) -> None:
    """With the bar on a terminal the lines of results still go to stdout, wherever that leads."""
    pty = pytest.importorskip("pty", reason="there are no pseudo-terminals here")
    stripes(tmp_path / "a.png")
    reader, terminal = pty.openpty()
    arguments = ["segment", *net, str(tmp_path / "a.png"), "-o", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-m", "fcnproto", *arguments], stdout=subprocess.PIPE, stderr=terminal)
    os.close(terminal)
    shown = os.read(reader, 100_000).decode()
    os.close(reader)
    assert done.returncode == 0
    assert "a.png: class" in done.stdout.decode()
    assert "segmenting" in shown
    assert "a.png: class" not in shown


def test_precision_reports_its_agreement(tmp_path: Path, net: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    values = np.zeros((10, 10, 3), np.uint8)
    values[:3], values[3:] = (200, 0, 200), (0, 100, 0)  # 199.5 and 199.75 are one number in bfloat16
    Image.fromarray(values).save(tmp_path / "a.png")
    stripes(tmp_path / "b.png")
    arguments = [
        *net,
        str(tmp_path / "a.png"),
        str(tmp_path / "b.png"),
        "-o",
        str(tmp_path / "out"),
        "--mean",
        "0.5,0,0.25",
    ]
    for extra in ([], ["--no-optimize"]):
        assert main(["segment", *arguments, "--precision", "bf16", *extra]) == 0
        captured = capsys.readouterr()
        assert captured.out.splitlines()[0].endswith("; 0.70000 of the labels as in float32")
        assert captured.err.splitlines() == [
            "fcnproto: bf16: 0.85000 of the labels agree with float32's (2 of 2 images compared; lowest 0.70000, a.png)"
        ]
    assert main(["segment", *arguments, "--precision", "bf16", "--compare", "0"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["segment", *arguments, "--precision", "float32"]) == 0
    assert "float32" not in capsys.readouterr().out


def test_threads_and_batches(tmp_path: Path, net: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    truth = stripes(tmp_path / "a.png")
    before, seen = torch.get_num_threads(), []
    run = fcnproto.segment.segmenter.run_with
    monkeypatch.setattr(
        fcnproto.segment.segmenter, "run_with", lambda *a: seen.append(torch.get_num_threads()) or run(*a)
    )
    arguments = [*net, str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--mean", "none", "--no-optimize"]
    assert main(["segment", *arguments, "--threads", str(before + 1), "--batch", "3"]) == 0
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
    assert (labels_in(tmp_path / "out" / "a_labels.png") == truth).all()


@pytest.mark.parametrize(
    "option", [["--threads", "0"], ["--batch", "0"], ["--precision", "int8"], ["--cuda-graphs", "--no-optimize"]]
)
def test_options_that_make_no_sense(tmp_path: Path, net: list[str], option: list[str]) -> None:
    stripes(tmp_path / "a.png")
    assert main(["segment", *net, str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), *option]) == 2
    assert not (tmp_path / "out").exists()
