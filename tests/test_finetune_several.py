"""Fine-tuning nets of two labellings or two images, and going on after an interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_finetune import WIDTHS, fcn, scenes, settings, slim_net, slim_zoo, sources

import fcnproto
from fcnproto import finetune, meta
from fcnproto.cli._main import main
from fcnproto.data.augmentation import Augmentation
from fcnproto.errors import DataError, UsageError, WeightsError
from fcnproto.finetune.nets import read_base
from fcnproto.finetune.progress import read
from fcnproto.schema.text import read_net, write_message
from fcnproto.solver import Request

__all__ = ["scenes"]  # a fixture

NAMES = ["a", "b", "c", "d", "e", "f"]


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images, 32x24, with depth (16 bits), HHA and two labellings: sem (3 classes) and geo (2, colour-coded)."""
    root = tmp_path_factory.mktemp("rooms")
    rng = np.random.default_rng(3)
    for folder in ("color", "depth", "hha", "sem", "geo"):
        (root / folder).mkdir()
    for name in NAMES:
        sem = np.zeros((24, 32), np.uint8)
        sem[:, 10:20] = 1
        sem[12:, 20:] = 2
        noise = rng.integers(0, 40, (24, 32, 3))
        image = (np.array([[40, 40, 40], [200, 60, 40], [40, 200, 90]])[sem] + noise).astype(np.uint8)
        sem[0, 0] = 255
        Image.fromarray(image).save(root / "color" / f"{name}.jpg")
        Image.fromarray((1000 + 100 * np.arange(32)[None].repeat(24, 0)).astype(np.uint16)).save(
            root / "depth" / f"{name}.png"
        )
        Image.fromarray(rng.integers(0, 255, (24, 32, 3)).astype(np.uint8)).save(root / "hha" / f"{name}.png")
        Image.fromarray(sem).save(root / "sem" / f"{name}.png")
        Image.fromarray(np.array([[0, 0, 0], [255, 0, 0], [255, 0, 0]] + [[9, 9, 9]] * 253, np.uint8)[sem]).save(
            root / "geo" / f"{name}.png"
        )
    (root / "sem.txt").write_text("ground\npost\nbushes and trees\n")
    (root / "geo.txt").write_text("flat 0 0 0\nupright 255 0 0\nvoid 9 9 9\n")
    return root


def two_headed(folder: Path) -> Path:
    spec = sources.inputs({"data": (1, 3, 24, 32), "sem": (1, 1, 24, 32), "geo": (1, 1, 24, 32)})
    path = folder / "two.prototxt"
    write_message(path, fcn.fcn16s(spec, {"sem": 33, "geo": 3}, WIDTHS).to_proto())
    return path


def test_two_labellings(rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    command = [
        "finetune", "--model", str(two_headed(tmp_path)), "--from-scratch", "--device", "cpu", "-o", str(output),
        "--images", str(rooms / "color"), "--masks", f"sem={rooms / 'sem'}", "--masks", f"score_geo={rooms / 'geo'}",
        "--classes", f"sem={rooms / 'sem.txt'}", "--colours", f"geo={rooms / 'geo.txt'}", "--optimization", "adam",
        "--iterations", "4", "--interval", "2", "--class-weights", "balanced", "--augment", "mirror,crop=20",
    ]  # fmt: skip
    assert main([*command, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "image blob 'data', score blob 'score_sem', 'score_geo'" in printed and not output.exists()
    assert "3 classes of score_sem: ground, post, bushes and trees" in printed
    assert "2 classes of score_geo: flat, upright" in printed and "class weights: flat" in printed
    assert "changed  score_fr_sem: 33 -> 3 classes" in printed and "changed  score_fr_geo: 3 -> 2 classes" in printed
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed.index("score_sem:") < printed.index("score_geo:") and printed.count("mean IU") == 2
    names = {path.name for path in output.iterdir()}
    assert names >= {"classes.txt", "classes_geo.txt", "confusion.png", "confusion_geo.png", "samples.png"}
    assert names >= {"class-weights.binaryproto", "class-weights_geo.binaryproto"}
    held_out = json.loads((output / "scores.json").read_text())["held out"]
    assert list(held_out) == ["score_sem", "score_geo"]
    assert list(held_out["score_geo"]["classes"]) == ["flat", "upright"]
    train = read_net(output / "train.prototxt")
    assert [list(layer.bottom) for layer in train.layer[-2:]] == [["score_sem", "sem"], ["score_geo", "geo"]]
    assert [layer.top[0] for layer in train.layer[-2:]] == ["loss", "loss_geo"]
    # The same scores from the files alone, by the net's own data layer and from folders.
    model, weights = str(output / "test.prototxt"), str(output / "weights.caffemodel")
    named = ["--classes", f"sem={output / 'classes.txt'}", "--classes", f"geo={output / 'classes_geo.txt'}", "--json"]
    assert main(["score", "net", model, weights, *named]) == 0
    again = json.loads(capsys.readouterr().out)["results"]
    assert [one["confusion"] for one in again] == [one["confusion"] for one in held_out.values()]
    assert [list(one["classes"]) for one in again] == [list(one["classes"]) for one in held_out.values()]
    folders = ["--images", str(rooms / "color"), "--masks", f"sem={rooms / 'sem'}", "--masks", f"geo={rooms / 'geo'}"]
    assert main(["score", "net", model, weights, *folders, *named, "--colours", f"geo={rooms / 'geo.txt'}"]) == 0
    assert [one["images"] for one in json.loads(capsys.readouterr().out)["results"]] == [6, 6]


def test_one_labelling_for_two_score_blobs(rooms: Path, tmp_path: Path) -> None:
    """A net with a second loss on the same labels takes one folder of masks, and both losses learn."""
    spec = sources.inputs({"data": (1, 3, 24, 32), "sem": (1, 1, 24, 32), "geo": (1, 1, 24, 32)})
    param = fcn.fcn32s(spec, {"sem": 3, "geo": 3}, WIDTHS).to_proto()
    for layer in param.layer:
        if layer.name == "loss_geo":
            layer.bottom[1] = "sem"
    write_message(tmp_path / "aux.prototxt", param)
    names = ("ground", "post", "bushes")
    chosen = settings(
        rooms, tmp_path / "out", tmp_path / "aux.prototxt",
        images=rooms / "color", masks=rooms / "sem", classes=names, iterations=1, interval=1,
    )  # fmt: skip
    outcome = finetune.run(finetune.plan(chosen))
    assert [scored.names for scored in outcome.scores] == [names, names]
    layers = read_net(tmp_path / "out" / "train.prototxt").layer
    assert list(layers[0].top) == ["data", "sem"] and [list(layer.bottom)[1] for layer in layers[-2:]] == ["sem", "sem"]


def known_as(name: str) -> str:
    """The comment that says what a net is: that of the zoo's net, for a slim one."""
    return meta.comment(meta.of_record(fcnproto.zoo.info(name), "said in the file"))


def late_fusion(folder: Path) -> Path:
    """A slim net that says that it is the published one, so that its inputs and classes are known."""
    spec = sources.inputs({"color": (1, 3, 24, 32), "hha": (1, 3, 24, 32), "label": (1, 1, 24, 32)})
    path = folder / "nyud-fcn32s-color-hha" / "trainval.prototxt"
    path.parent.mkdir()
    write_message(path, fcn.fcn32s_late_fusion(spec, 40, WIDTHS).to_proto(), known_as("nyud-fcn32s-color-hha"))
    return path


def single_stream(folder: Path, name: str, seed: int) -> Path:
    spec = sources.inputs({"data": (1, 3, 24, 32)})
    net = fcnproto.load(fcn.fcn32s(spec, 40, WIDTHS).to_proto())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for blobs in net.params.values():
            for blob in blobs:
                blob.normal_(std=0.05, generator=generator)
    net.save(folder / f"{name}.caffemodel")
    return folder / f"{name}.caffemodel"


def test_two_images(rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Colour and HHA: late fusion from two nets' weights, by the command."""
    model, output = late_fusion(tmp_path), tmp_path / "out"
    weights = {name: single_stream(tmp_path, name, seed) for seed, name in enumerate(("color", "hha"))}
    (tmp_path / "classes.txt").write_text("wall\npost\nfloor\n")  # two of NYUDv2's, 0 and 1, at 0 and 2
    command = [
        "finetune", "--model", str(model), "--device", "cpu", "-o", str(output), "--optimization", "adam",
        "--weights", f"color={weights['color']}", "--weights", f"hha={weights['hha']}",
        "--images", str(rooms / "color"), "--images", f"hha={rooms / 'hha'}", "--masks", str(rooms / "sem"),
        "--classes", str(tmp_path / "classes.txt"), "--iterations", "2", "--interval", "2", "--augment", "mirror,colour",
    ]  # fmt: skip
    assert main(command) == 0, capsys.readouterr().err
    first = fcnproto.load(output / "deploy.prototxt", output / "initial.caffemodel")
    for name in ("color", "hha"):
        old = fcnproto.load(fcn.fcn32s(sources.inputs({"data": (1, 3, 8, 8)}), 40, WIDTHS).to_proto(), weights[name])
        assert first.params[f"conv1_1{name}"][0].equal(old.params["conv1_1"][0])
        assert first.params[f"score_fr{name}"][0][[0, 2]].equal(old.params["score_fr"][0][[0, 1]])
        assert not first.params[f"score_fr{name}"][0][1].any()
    source = read_net(output / "train.prototxt").layer[0]
    assert list(source.top) == ["color", "hha", "label"]
    net = fcnproto.load(output / "train.prototxt", phase="train")
    color, hha, _ = net.data_layers()[0]()
    mean = np.array([132.431, 94.076, 118.477])
    stored = [np.asarray(Image.open(rooms / "hha" / f"{name}.png")) - mean for name in NAMES]
    possible = [turned.transpose(2, 0, 1) for one in stored for turned in (one, one[:, ::-1])]
    assert color.shape == hha.shape and any(np.allclose(hha[0], one, atol=1e-4) for one in possible)
    capsys.readouterr()
    segmented = ["segment", str(output / "test.prototxt"), str(output / "weights.caffemodel"), str(rooms / "color")]
    assert main([*segmented, "--input", f"hha={rooms / 'hha'}", "-o", str(tmp_path / "seg")]) == 0
    assert (tmp_path / "seg" / "a_labels.png").exists()
    chosen: dict[str, Any] = {"images": {"": rooms / "color", "hha": rooms / "hha"}, "masks": rooms / "sem"}
    alone = settings(rooms, tmp_path / "o2", model, weights=weights["color"], classes=("a", "b", "c"), **chosen)
    with pytest.raises(WeightsError, match=r"for a net of several streams say which: --weights STREAM=FILE"):
        finetune.plan(alone)


def test_depth_joined_to_colour(rooms: Path, tmp_path: Path) -> None:
    """Early fusion: the first layer's fourth channel begins as the mean of a colour net's three."""
    spec = sources.inputs({"color": (1, 3, 24, 32), "depth": (1, 1, 24, 32), "label": (1, 1, 24, 32)})
    path = tmp_path / "nyud-fcn32s-color-d" / "trainval.prototxt"
    path.parent.mkdir()
    write_message(path, fcn.fcn32s_early_fusion(spec, 40, WIDTHS).to_proto(), known_as("nyud-fcn32s-color-d"))
    weights = single_stream(tmp_path, "color", 4)
    chosen: dict[str, Any] = {
        "images": {"color": rooms / "color", "depth": rooms / "depth"},
        "masks": rooms / "sem",
        "classes": ("wall", "post", "floor"),
        "weights": weights,
        "iterations": 2,
        "interval": 2,
        "augmentation": Augmentation(mirror=True, scale=0.2, crop=(20, 20), colour=0.1),
    }
    made = finetune.plan(settings(rooms, tmp_path / "out", path, **chosen))
    old = fcnproto.load(fcn.fcn32s(sources.inputs({"data": (1, 3, 8, 8)}), 40, WIDTHS).to_proto(), weights)
    first = made.net.params["conv1_1_bgrd"][0]
    assert first[:, :3].equal(old.params["conv1_1"][0])
    torch.testing.assert_close(first[:, 3], old.params["conv1_1"][0].mean(1))
    assert "conv1_1_bgrd" in made.report.layers("made") and "conv1_1_bgrd" not in made.report.layers("kept")
    finetune.run(made)
    net = fcnproto.load(tmp_path / "out" / "test.prototxt")
    _, depth, _ = net.data_layers()[0]()
    np.testing.assert_allclose(depth[0, 0, 0], np.log(1000 + 100 * np.arange(32)) - 7.844, atol=1e-6)
    Image.fromarray(np.zeros((24, 32), np.uint16)).save(tmp_path / "hole.png")
    deep = tmp_path / "depth"
    deep.mkdir()
    for name in NAMES:
        os.link(tmp_path / "hole.png", deep / f"{name}.png")
    chosen["images"] = {"color": rooms / "color", "depth": deep}
    with pytest.raises(DataError, match=r"depth/[a-f]\.png: 768 pixels have depth 0 or less"):
        finetune.plan(settings(rooms, tmp_path / "out2", path, **chosen))


def test_names_that_fit_nothing(rooms: Path, tmp_path: Path) -> None:
    model = two_headed(tmp_path)
    base = {"images": rooms / "color", "classes": {"sem": ("a", "b", "c"), "geo": ("d", "e")}}
    masks = {"sem": rooms / "sem", "geo": rooms / "geo"}
    for wrong, message in (
        (
            {"masks": {**masks, "depth": rooms / "geo"}},
            "masks: the net has nothing called 'depth'; it has geo, score_geo",
        ),
        ({"masks": {"sem": rooms / "sem"}}, "masks: the net has sem, geo; say it for 'geo' too"),
        ({"masks": {"": rooms / "sem", "sem": rooms / "sem"}}, "'sem' is given twice"),
        ({"masks": masks, "images": {"hha": rooms / "hha"}}, "images: the net has nothing called 'hha'; it has data"),
    ):
        with pytest.raises(UsageError, match=message):
            finetune.plan(settings(rooms, tmp_path / "out", model, **{**base, **wrong}))  # type: ignore[dict-item]
    for name in ("siftflow-fcn8s", "nyud-fcn32s-color-hha", "nyud-fcn32s-color-d", "nyud-fcn32s-hha"):
        found = read_base(name)
        assert [one.layers for one in found.scores] and found.record is not None
        assert {how.why.partition(" ")[0] for how in found.images.values()} == {"from"}
        # Colours change in colour images alone.
        kept = found.allowed(Augmentation(mirror=True, colour=0.2))
        assert kept.mirror and bool(kept.colour) == (name != "nyud-fcn32s-hha")


class Stop:
    """Asks to stop after a number of iterations."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self) -> Request:
        self.left -= 1
        return Request.STOP if self.left == 0 else Request.NONE


def test_every_file_is_looked_at_before_the_training(scenes: Path, tmp_path: Path) -> None:
    model, masks = slim_net(tmp_path), tmp_path / "masks"
    shutil.copytree(scenes / "masks", masks)
    chosen = settings(scenes, tmp_path / "out", model, masks=masks)
    for index, (wrong, message) in enumerate(
        (
            (np.full((48, 64), 2, np.uint8), r"05\.png: has label 2, expected 0 to 1, or 255 for void"),
            (np.zeros((64, 48), np.uint8), r"06\.png: is 48x64, but .*images.06\.png is 64x48"),
        ),
        start=5,
    ):
        kept = (masks / f"{index:02}.png").read_bytes()
        Image.fromarray(wrong).save(masks / f"{index:02}.png")
        with pytest.raises(DataError, match=message):
            finetune.plan(chosen)
        (masks / f"{index:02}.png").write_bytes(kept)
    assert not (tmp_path / "out").exists()


def test_goes_on_where_it_was_stopped(scenes: Path, tmp_path: Path) -> None:
    """Stopped twice and continued, the same weights and figures come of it as without a stop."""
    model = slim_net(tmp_path)
    whole = settings(scenes, tmp_path / "whole", model, iterations=12, interval=4)
    expected = finetune.run(finetune.plan(whole))
    parts = settings(scenes, tmp_path / "parts", model, iterations=12, interval=4)
    said: list[str] = []
    first = finetune.run(finetune.plan(parts), said.append, Stop(6))
    assert [step for step, _ in first.validations] == [0, 4, 5] and first.begun_at == 0 and first.stopped
    assert "stopped after iteration 5; the same command goes on from here" in said
    assert (tmp_path / "parts" / "scores.json").exists()
    second = finetune.run(finetune.plan(parts), said.append, Stop(4))
    assert second.begun_at == 5 and "goes on at iteration 5" in said and second.stopped
    assert [step for step, _ in second.validations] == [0, 4, 5, 8]
    third = finetune.run(finetune.plan(parts), said.append)
    assert dict(third.validations).items() >= dict(expected.validations).items() and third.validations[-1][0] == 12
    one, other = read(tmp_path / "whole"), read(tmp_path / "parts")
    assert one is not None and other is not None and one.curves.losses == other.curves.losses
    nets = [fcnproto.load(tmp_path / name / "deploy.prototxt", tmp_path / name / state.snapshot.replace(".solverstate", ".caffemodel"))
            for name, state in (("whole", one), ("parts", other))]  # fmt: skip
    for name, blobs in nets[0].params.items():
        for mine, theirs in zip(blobs, nets[1].params[name], strict=True):
            assert mine.equal(theirs), name
    snapshots = sorted(path.name for path in (tmp_path / "parts").glob("*snapshot_iter*"))
    assert all("_iter_12." in name for name in snapshots) and len(snapshots) == 3
    # Finished: refused, but more iterations go on; other settings are another fine-tuning.
    with pytest.raises(UsageError, match="has done its 12 iterations; give more"):
        finetune.run(finetune.plan(parts))
    more = settings(scenes, tmp_path / "parts", model, iterations=14, interval=4)
    assert finetune.run(finetune.plan(more)).validations[-1][0] == 14
    for change in ({"seed": 2}, {"classes": ("background", "thing")}, {"solver": {"base_lr": 0.5}}):
        other_one = settings(scenes, tmp_path / "parts", model, iterations=20, **change)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=f"with other .*{next(iter(change))}"):
            finetune.run(finetune.plan(other_one))


def test_a_folder_with_results_of_something_else(scenes: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    chosen = settings(scenes, output, slim_net(tmp_path), iterations=1)
    (output / "weights.caffemodel").write_bytes(b"precious")
    with pytest.raises(UsageError, match="results of another fine-tuning"):
        finetune.run(finetune.plan(chosen))
    assert (output / "weights.caffemodel").read_bytes() == b"precious" and len(list(output.iterdir())) == 1
    (output / "progress.json").write_text("{")
    with pytest.raises(UsageError, match=r"progress\.json: damaged"):
        finetune.run(finetune.plan(chosen))


def test_stages_go_on(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the second of two stages, the first isn't trained again."""
    slim_zoo(tmp_path, monkeypatch)
    chosen = settings(scenes, tmp_path / "out", Path("voc-fcn16s"), optimization="heavy", iterations=2, interval=1)
    assert finetune.run_staged(chosen, asked=Stop(1)).validations[-1][0] == 1
    assert not (tmp_path / "out" / "train.prototxt").exists()
    # A request that comes with the last validation of a stage ends there, too.
    assert finetune.run_staged(chosen, asked=Stop(2)).validations[-1][0] == 2
    assert not (tmp_path / "out" / "train.prototxt").exists()
    assert finetune.run_staged(chosen, asked=Stop(1)).validations[-1][0] == 1
    said: list[str] = []
    assert finetune.run_staged(chosen, said.append).begun_at == 1
    assert "stage 1: voc-fcn32s is finished" in said and "goes on at iteration 1" in said


@pytest.mark.slow
def test_killed_and_started_again(scenes: Path, tmp_path: Path) -> None:
    """SIGKILL at some moment: the same command goes on, with the best so far."""
    model, output = slim_net(tmp_path), tmp_path / "out"
    command = [
        sys.executable, "-m", "fcnproto", "finetune", "--model", str(model), "--from-scratch", "--device", "cpu",
        "--images", str(scenes / "images"), "--masks", str(scenes / "masks"), "-o", str(output), "--optimization", "adam",
        "--classes", str(scenes / "classes.txt"), "--iterations", "400", "--interval", "20",
    ]  # fmt: skip
    for _ in range(2):
        before = read(output)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            now = read(output)
            if now is not None and now.iteration >= (60 if before is None else before.iteration + 20):
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (output / "weights.caffemodel").exists()
    reached = read(output)
    assert reached is not None and 60 <= reached.iteration < 400
    done = subprocess.run([*command], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert f"goes on at iteration {reached.iteration}" in done.stderr
    result = json.loads((output / "scores.json").read_text())
    assert [step for step, _ in result["validation"]] == list(range(0, 401, 20))
    best = dict(result["validation"])[result["best iteration"]]
    assert best == max(value for _, value in result["validation"])
    assert not list(output.glob(".*partial*"))
