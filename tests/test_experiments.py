"""The experiments in small: that each can be run, goes on where it stopped, and is reported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fcnproto
from benchmarks.experiments import definitions, report, rooms, running
from benchmarks.experiments.definitions import Experiment, experiments
from fcnproto.errors import UsageError

NAMES = [item.name for item in experiments()]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> running.Runs:
    """Runs of two iterations, with two rooms, on a classifier that knows nothing."""
    short = [replace(item, iterations=2, images=1, checkpoints=min(item.checkpoints, 1)) for item in experiments()]
    monkeypatch.setattr(running, "experiments", lambda: short)
    monkeypatch.setattr(report, "experiments", lambda: short)
    monkeypatch.setattr(rooms, "SPLITS", {"train": (1, 2), "val": (2, 1)})
    torch.manual_seed(0)
    definition = definitions.mini.nets()["classifier-train"]
    classifier = fcnproto.load(definition, phase="train")
    for name, blobs in classifier.params.items():
        if name.startswith("bn_"):
            blobs[1].fill_(1.0)
            blobs[2].fill_(1.0)
    classifier.save(tmp_path / "classifier.caffemodel")
    return running.Runs(tmp_path / "runs", tmp_path / "classifier.caffemodel", threads=1)


def short(name: str) -> Experiment:
    return next(item for item in running.experiments() if item.name == name)


def test_experiments_come_after_those_they_begin_with() -> None:
    for index, item in enumerate(experiments()):
        starts = [item.start] if isinstance(item.start, str) else list(item.start.values())
        assert set(starts) <= {definitions.CLASSIFIER, *NAMES[:index]}
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn16s", "fcn32s-fixed", "rooms-color-d", "rooms-color-hha", "rooms-both"])
def test_an_experiment_from_its_data_to_its_scores(runs: running.Runs, name: str) -> None:
    result = runs.run(short(name))
    blobs = set(result["scores"]["2"])
    assert blobs == ({"score_sem", "score_geo"} if name == "rooms-both" else {"score"})
    assert runs.run(short(name)) == result
    begun, trained = (
        fcnproto.load(runs.folder / name / "train.prototxt", runs.folder / name / file, phase="train").state_dict()
        for file in ("start.caffemodel", "snapshot/train_iter_2.caffemodel")
    )
    changed = {key.rpartition(".")[0] for key in begun if not torch.equal(begun[key], trained[key])}
    assert any(layer.startswith("score") for layer in changed)
    assert any(layer.startswith("conv") for layer in changed) == (name != "fcn32s-fixed")
    assert not any(layer.startswith("up") for layer in changed)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_is_reported(runs: running.Runs, tmp_path: Path) -> None:
    whole = runs.run(short("sampling-half"))
    assert list(whole["scores"]) == ["1", "2"] and whole["images per iteration"] == 8
    folder = runs.folder / "sampling-half"
    for leftover in (folder / "result.json", *folder.glob("snapshot/train_iter_2.*")):
        leftover.unlink()
    again = runs.run(short("sampling-half"))
    assert again["iterations in this run"] == 1 and again["scores"] == whole["scores"]
    document = tmp_path / "page.md"
    marks = [
        mark.format(table)
        for table in ("strides", "fusion", "tasks", "sampling")
        for mark in (report.BEGIN, report.END)
    ]
    document.write_text("\n".join(marks) + "\n")
    for _ in range(2):
        report.write(runs.folder, document)
    value = 100 * whole["scores"]["2"]["score"]["mean IU"]
    assert document.read_text().count(f"| half of the cells | 2 | 16 | {value:.1f} |") == 1


def test_a_document_without_marks_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(UsageError, match="strides: begin"):
        report.write(tmp_path, page)
    assert page.read_text() == "nothing\n"


def test_rooms_are_read_by_the_published_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "SPLITS", {"train": (1, 1), "val": (2, 1)})
    rooms.write(tmp_path / "data")
    (tmp_path / "net").mkdir()
    monkeypatch.chdir(tmp_path / "net")
    colour = fcnproto.load(definitions._fusions()[3].build("TRAIN"), phase="train")
    room = rooms.draw_room((1, 0), rooms.SIZE)
    layer = colour.data_layers()[0]
    color, hha, label = layer()
    assert color.shape == hha.shape == (1, 3, rooms.SIZE, rooms.SIZE)
    assert torch.equal(label[0, 0], torch.from_numpy(room.label).float())
    tasks = fcnproto.load(definitions._tasks()[2].build("TRAIN"), phase="train")
    _, objects, surfaces = tasks.data_layers()[0]()
    assert torch.equal(objects, label) and torch.equal(surfaces[0, 0], torch.from_numpy(room.surface).float())
    assert json.dumps(sorted(path.name for path in (tmp_path / "data").iterdir())) == '["nyud", "sift-flow"]'
