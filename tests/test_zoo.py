"""The zoo: where the files are and what is known of the nets."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import golden_cases
import numpy as np
import pytest

from fcnproto import UsageError, zoo

PUBLISHED = golden_cases.SHARED / "fcn"
needs_published = pytest.mark.skipif(not PUBLISHED.exists(), reason="the reference folder is missing")

PREFIXES = ("voc-", "nyud-", "siftflow-", "pascalcontext-")
BEYOND = [model.name for model in zoo.definitions("beyond").models()]
NETS = [name for name in zoo.names() if name.startswith(PREFIXES) and name not in BEYOND]


def test_names() -> None:
    assert len(NETS) == 15
    assert zoo.names() == sorted(zoo.names())


@pytest.mark.parametrize("name", NETS)
def test_paths(name: str) -> None:
    old_style = name.startswith(("nyud", "siftflow"))
    train, test = ("trainval", "test") if old_style else ("train", "val")
    expected = {"train": train, "trainval": train, "val": test, "test": test, "deploy": "deploy", "solver": "solver"}
    for kind, stem in expected.items():
        file = zoo.path(name, kind)
        assert file.is_file() and (file.parent.name, file.name) == (name, f"{stem}.prototxt")


def test_refusals() -> None:
    with pytest.raises(UsageError, match=r"unknown model 'voc-fcn8'; did you mean \"voc-fcn8s\""):
        zoo.info("voc-fcn8")
    with pytest.raises(UsageError, match=r"unknown model '\.\./voc-fcn8s'"):
        zoo.path("../voc-fcn8s", "deploy")
    with pytest.raises(UsageError, match=r"known are .*voc-fcn8s"):
        zoo.path("resnet", "deploy")
    with pytest.raises(UsageError, match="unknown kind of file 'deply'; did you mean \"deploy\""):
        zoo.path("voc-fcn8s", "deply")
    with pytest.raises(UsageError, match=r"published them at http://.*/fcn8s-heavy-pascal.caffemodel"):
        zoo.path("voc-fcn8s", "weights")


@needs_published
@pytest.mark.parametrize("name", NETS)
def test_weights_addresses_are_the_published_ones(name: str) -> None:
    file = PUBLISHED / name / "caffemodel-url"
    assert zoo.info(name).weights_url == (file.read_text().strip() if file.exists() else None)


def class_list(file: str, pattern: str) -> list[str]:
    """The names that `pattern` finds at the beginnings of the lines of a published class list."""
    return re.findall(pattern, (PUBLISHED / "data" / file).read_text(), re.MULTILINE)


@needs_published
def test_classes_are_the_published_ones() -> None:
    voc, context = zoo.info("voc-fcn8s"), zoo.info("pascalcontext-fcn8s")
    assert list(voc.classes) == (PUBLISHED / "data/pascal/classes.txt").read_text().split("\n\n")[0].splitlines()
    assert list(context.classes) == class_list("pascal-context/classes-59.txt", r"^\d+: (.+)$")
    nyud = (PUBLISHED / "data/nyud/classes.txt").read_text().split("\n\n")[0].splitlines()
    assert list(zoo.info("nyud-fcn32s-hha").classes) == nyud
    semantic, geometric = zoo.info("siftflow-fcn8s").outputs
    assert [*semantic.classes, *geometric.classes] == class_list("sift-flow/classes.txt", r"^\d\d (.+)$")


@pytest.mark.parametrize("name", NETS)
def test_facts(name: str) -> None:
    facts = zoo.info(name)
    counts = {"voc": [21], "nyud": [40], "siftflow": [33, 3], "pascalcontext": [60]}[name.split("-")[0]]
    assert [len(output.classes) for output in facts.outputs] == counts
    assert all(len(set(output.classes)) == len(output.classes) for output in facts.outputs)
    assert facts.ignore_label == 255 and len(facts.palette) == counts[0]
    assert all(len(entry.mean) == len(entry.channels) for entry in facts.inputs)
    assert facts.base == ("CaffeNet" if name == "voc-fcn-alexnet" else "VGG16")
    for source in facts.initial_weights:
        assert source in ("VGG16", "CaffeNet") or source in NETS
    for score in facts.scores:
        assert score.verified == ("repository" in score.source)
        assert all(0 < value < 100 for value in score.metrics.values())


def test_preprocessing() -> None:
    assert zoo.info("voc-fcn8s").mean == (104.00699, 116.66877, 122.67892)
    color, depth = zoo.info("nyud-fcn32s-color-d").inputs
    assert (color.blob, color.channels, color.mean) == ("color", "BGR", (116.190, 97.203, 92.318))
    assert (depth.blob, depth.kind, depth.mean) == ("depth", "depth", (7.844,))
    hha = zoo.info("nyud-fcn32s-hha").inputs[0]
    assert (hha.blob, hha.kind, hha.channels, hha.mean) == ("data", "hha", "HHA", (132.431, 94.076, 118.477))


@pytest.mark.parametrize(
    ("name", "mean_iu"),
    [
        ("voc-fcn32s", 0.636),
        ("voc-fcn16s", 0.650),
        ("voc-fcn8s", 0.655),
        ("voc-fcn8s-atonce", 0.654),
        ("voc-fcn-alexnet", 0.480),
    ],
)
def test_published_scores(name: str, mean_iu: float) -> None:
    first = zoo.info(name).scores[0]
    assert first.verified and first.metrics == {"mean IU": mean_iu} and first.data.endswith("seg11valid")


def test_palette() -> None:
    colours = zoo.palette()
    assert colours[:5] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert colours[15] == (192, 128, 128) and colours[20] == (0, 64, 128) and colours[255] == (224, 224, 192)
    assert len(set(colours)) == 256 and np.array(colours, np.uint8).shape == (256, 3)
    assert zoo.palette(3) == colours[:3]


def test_definitions_are_found_from_any_folder(tmp_path: Path) -> None:
    checkout = Path(zoo.__file__).parents[2]
    code = (
        f"import sys; sys.path.insert(0, {str(checkout)!r})\n"
        "from fcnproto import zoo\n"
        "net = zoo.definitions('fcn').fcn32s(zoo.definitions('sources').inputs({'data': (1, 3, 9, 9)}), 2)\n"
        "print(len(net.to_proto().layer), 'torch' in sys.modules, len(zoo.names()) > 14)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["39", "False", "True"]
