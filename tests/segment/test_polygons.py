"""Label maps as polygons: filled again by labelme's and COCO's own rules they are the label map, to the pixel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_nets import colour_net

from fcnproto.cli._main import main
from fcnproto.data.label_files import paint, read_coco, read_labelme
from fcnproto.segment.polygons import CocoFile, labelme_content, regions
from fcnproto.segment.results import Segmentation

NAMES = ("background", "a", "b", "c")


def maps() -> list[np.ndarray]:
    """Blobs, noise, rings within rings, pixels that touch by corners, lines of one pixel, single pixels."""
    random = np.random.default_rng(0)
    found = [random.integers(0, 3, size).astype(np.uint8) for size in ((1, 1), (1, 9), (9, 1), (12, 15), (30, 25))]
    smooth = random.normal(size=(8, 9)).repeat(5, 0).repeat(4, 1) + random.normal(size=(40, 36)) * 0.4
    found.append((smooth > 0).astype(np.uint8) + (smooth > 0.8))
    y, x = np.mgrid[:41, :37]
    found.append(((np.hypot(y - 20, x - 18) // 4) % 4).astype(np.uint8))
    found.append(np.eye(7, dtype=np.uint8) * 2)
    comb = np.ones((9, 11), np.uint8)
    comb[1::2, 1:-1] = 0
    found += [comb, np.zeros((3, 4), np.uint8), np.full((3, 4), 2, np.uint8)]
    return found


@pytest.mark.parametrize("labels", maps(), ids=lambda one: "x".join(map(str, one.shape)))
@pytest.mark.parametrize("names", [NAMES, ("sky", "a", "b", "c")], ids=["background", "sky"])
def test_there_and_back(labels: np.ndarray, names: tuple[str, ...], tmp_path: Path) -> None:
    found = Segmentation("score", labels, names)
    (tmp_path / "a.json").write_text(json.dumps(labelme_content(found, "a.jpg")))
    np.testing.assert_array_equal(paint(read_labelme(tmp_path / "a.json"), names), labels)
    pytest.importorskip("pycocotools")
    file = CocoFile()
    file.add(found, "a.jpg")
    (tmp_path / "coco.json").write_text(json.dumps(file.content()))
    np.testing.assert_array_equal(paint(read_coco(tmp_path / "coco.json")["a.jpg"], names), labels)


def test_coco_by_its_own_library(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    labels = maps()[5]
    file = CocoFile()
    file.add(Segmentation("score", labels, NAMES), "a.jpg")
    (tmp_path / "coco.json").write_text(json.dumps(file.content()))
    read = coco.COCO(str(tmp_path / "coco.json"))
    again = np.zeros_like(labels)
    for one in read.loadAnns(read.getAnnIds()):
        mask = read.annToMask(one).astype(bool)
        assert mask.sum() == one["area"]
        rows, columns = np.nonzero(mask)
        assert one["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        again[mask] = NAMES.index(read.loadCats(one["category_id"])[0]["name"])
    np.testing.assert_array_equal(again, labels)


def test_regions_are_connected_by_edges() -> None:
    found = list(regions(np.array([[1, 0], [0, 1]], np.uint8), leave_out=[0]))
    assert [(one.box, one.area, one.outlines) for one in found] == [
        ((0, 0, 1, 1), 1, [[(1, 0), (1, 1), (0, 1), (0, 0)]]),
        ((1, 1, 1, 1), 1, [[(2, 1), (2, 2), (1, 2), (1, 1)]]),
    ]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both forms by themselves; what is written is read as masks by `score`, and equals the label maps."""
    model, weights = colour_net(tmp_path)
    (tmp_path / "in").mkdir()
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        pixels = random.integers(0, 255, (4, 5, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "classes.txt").write_text("blue\ngreen\nred\n")
    words = ["segment", model, weights, tmp_path / "in", "--classes", tmp_path / "classes.txt"]
    assert main(list(map(str, [*words, "-o", tmp_path / "both", "--polygons"]))) == 0
    names = {path.name for path in (tmp_path / "both").iterdir()}
    assert {"a.json", "b.json", "annotations.coco.json"} <= names
    assert json.loads((tmp_path / "both" / "a.json").read_text())["imagePath"] == "../in/a.png"
    for kind in ("labelme", "coco"):
        assert main(list(map(str, [*words, "-o", tmp_path / kind, "--polygons", kind]))) == 0
        for path in (tmp_path / kind).glob("*.png"):
            if path.name.endswith("_overlay.png"):
                path.unlink()
            else:
                (tmp_path / "truth").mkdir(exist_ok=True)
                path.rename(tmp_path / "truth" / path.name.replace("_labels", ""))
        capsys.readouterr()
        more = ["--classes", tmp_path / "classes.txt"]
        if kind == "coco":
            pytest.importorskip("pycocotools")
        assert main(list(map(str, ["score", "folders", tmp_path / kind, tmp_path / "truth", *more]))) == 0
        assert "pixel accuracy 1.0000" in capsys.readouterr().out
