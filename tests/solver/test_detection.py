"""Average precision against its definitions, and a solver whose test net detects."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import fcnproto
from fcnproto.errors import FcnprotoWarning
from fcnproto.schema.text import read_solver
from fcnproto.solver import Solver
from fcnproto.solver.detection import AP_VERSIONS, Detections, average_precision
from fcnproto.solver.settings import check


def by_definition(scores: list[float], hits: list[int], objects: int, version: str) -> float:
    """SSD's three versions and cascade-rcnn's, detection by detection."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    precision, recall, right = [], [], 0
    for place, i in enumerate(order):
        right += hits[i]
        precision.append(right / (place + 1))
        recall.append(right / objects)
    if version in ("11point", "101point"):
        pairs = list(zip(precision, [float(np.float32(r)) for r in recall], strict=True))
        steps = 10 if version == "11point" else 100
        best = [max((p for p, r in pairs if r >= step / steps), default=0) for step in range(steps + 1)]
        return sum(best) / (steps + 1)
    total, last = 0.0, 0.0
    for place, (p, r) in enumerate(zip(precision, recall, strict=True)):
        if version == "Integral":
            total += p * (r - last)
        elif place == 0:
            total += max(precision) * r
        else:
            total += max(precision[place - 1 :]) * (r - last)
        last = r
    return total


@pytest.mark.parametrize("version", AP_VERSIONS)
def test_average_precision(version: str) -> None:
    draw = np.random.default_rng(2)
    for count, objects in ((1, 1), (5, 3), (40, 16), (200, 64)):
        hits = np.zeros(count, int)
        hits[draw.permutation(count)[: min(objects, count // 2 + 1)]] = 1
        scores = draw.permutation(count) / count
        expected = by_definition(scores.tolist(), hits.tolist(), objects, version)
        assert average_precision(scores, hits, objects, version) == pytest.approx(expected, abs=1e-6)
    assert average_precision(np.zeros(0), np.zeros(0), 3, version) == 0
    assert average_precision(np.ones(1), np.ones(1), 0, version) == 0


def test_seven_tenths_fall_short_of_seven_tenths() -> None:
    """SSD's recall is a float32, and 0.7 as such is below 0.7."""
    scores, hits = np.linspace(1, 0, 10), np.array([1] * 7 + [0] * 3)
    assert average_precision(scores, hits, 10, "11point") == pytest.approx(7 / 11)
    assert average_precision(scores, hits, 10, "101point") == pytest.approx(70 / 101)


def test_rows_are_gathered_by_class_and_difficult_ones_left_out() -> None:
    gathered = Detections()
    rows = [[-1, 1, 1, -1, -1], [-1, 2, 1, -1, -1], [0, 1, 0.9, 0, 1], [0, 1, 0.95, 0, 0]]
    gathered.add({"y": torch.tensor(rows)[None, None]})
    gathered.add({"y": torch.tensor([[-1, 1, 1, -1, -1], [3, 1, 0.8, 1, 0]])[None, None]})
    assert gathered.objects == {"y": {1: 2, 2: 1}}
    assert gathered.result("Integral")["y"] == (0.125, {1: 0.25, 2: None})


NET = """
layer { name: "x" type: "DummyData" top: "x" top: "t" include { phase: TRAIN }
  dummy_data_param { shape { dim: 2 dim: 3 } shape { dim: 2 dim: 1 } data_filler { value: 1 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" include { phase: TRAIN }
  inner_product_param { num_output: 1 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "t" top: "loss" include { phase: TRAIN } }
layer { name: "rows" type: "HDF5Data" top: "found" top: "truth" include { phase: TEST }
  hdf5_data_param { source: "list.txt" batch_size: 1 } }
layer { name: "judge" type: "DetectionEvaluate" bottom: "found" bottom: "truth" top: "eval" include { phase: TEST }
  detection_evaluate_param { num_classes: 4 } }
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two batches of one image: class 1 found, class 2 found wrongly, class 3 not found."""
    monkeypatch.chdir(tmp_path)
    truth = [[0, 1, 0, 0.1, 0.1, 0.5, 0.5, 0], [0, 2, 0, 0.5, 0.5, 0.9, 0.9, 0], [0, 3, 0, 0.1, 0.5, 0.3, 0.9, 0]]
    found = [[0, 1, 0.9, 0.1, 0.1, 0.5, 0.5], [0, 2, 0.8, 0.1, 0.1, 0.2, 0.2], [0, 2, 0.5, 0.5, 0.5, 0.9, 0.9]]
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["found"] = np.float32([[found], [found]])
        file["truth"] = np.float32([[truth], [truth]])
    (tmp_path / "list.txt").write_text("rows.h5\n")
    (tmp_path / "net.prototxt").write_text(NET)
    return tmp_path


def solver(folder: Path, settings: str) -> Solver:
    text = 'net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" test_iter: 2 test_interval: 5 max_iter: 1 solver_mode: CPU '
    (folder / "solver.prototxt").write_text(text + settings)
    return Solver(folder / "solver.prototxt")


def test_a_test_shows_the_mean_average_precision(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="fcnproto.solver"):
        scores = solver(folder, 'eval_type: "detection" ap_version: "MaxIntegral" show_per_class_result: true').test()
    assert scores == [{"eval": [pytest.approx((1 + 0.5 + 0) / 3)]}]
    lines = [record.getMessage() for record in caplog.records][-4:]
    assert lines == ["class1: 1", "class2: 0.5", "Missing true_pos for label: 3", "    Test net output #0: eval = 0.5"]


def test_classes_are_shown_on_demand_and_integral_is_the_default(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="fcnproto.solver"):
        (scores,) = solver(folder, 'eval_type: "detection"').test()
    # Class 2: wrong, wrong, right, right of two: precision 1/3 and 1/2 at steps of a half.
    assert scores["eval"] == [pytest.approx((1 + (1 / 3 + 1 / 2) / 2) / 3)]
    assert not any("class1" in record.getMessage() for record in caplog.records)


def test_other_outputs_are_refused(folder: Path) -> None:
    net = folder / "net.prototxt"
    net.write_text(
        net.read_text() + 'layer { name: "p" type: "Power" bottom: "truth" top: "p" include { phase: TEST } }'
    )
    with pytest.raises(fcnproto.SolverError, match=r"output 'p' has shape \(1, 1, 3, 8\)"):
        solver(folder, 'eval_type: "detection"').test()


@pytest.mark.parametrize(
    ("settings", "words"),
    [('eval_type: "other"', "eval_type 'other' is unknown"), ('ap_version: "VOC"', "ap_version 'VOC'")],
)
def test_unknown_words(folder: Path, settings: str, words: str) -> None:
    with pytest.raises(fcnproto.SolverError, match=words):
        solver(folder, settings)


def test_means_of_rows_that_vary_are_refused() -> None:
    from fcnproto.solver.testing import Means

    means = Means()
    means.add({"eval": torch.zeros(1, 1, 4, 5)})
    with pytest.raises(fcnproto.SolverError, match="output 'eval' has 25 values after batches of 20"):
        means.add({"eval": torch.zeros(1, 1, 5, 5)})


def test_evaluations_of_other_forks_are_told(tmp_path: Path) -> None:
    (tmp_path / "s.prototxt").write_text('net: "n" base_lr: 1 lr_policy: "fixed" eval_type: "detection_segmentation"')
    with pytest.warns(FcnprotoWarning, match="eval_type 'detection_segmentation', another fork's, is not computed"):
        check(read_solver(tmp_path / "s.prototxt"))
