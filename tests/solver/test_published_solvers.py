"""The published solvers, untouched, train the published nets from drawn data sets of the published layout.

Only the channels are fewer (the wide layers would take minutes); data layers, paths and all else are as published.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from solver_toy import equal, values

import fcnproto
from fcnproto.cli._main import main
from fcnproto.solver import Solver
from fcnproto.surgery import interpolate

scipy_io = pytest.importorskip("scipy.io", reason="needs scipy (the extra of that name), for .mat files")

IDS = ["11", "22", "33"]
HEIGHT, WIDTH = 20, 26
SCENES = "spatial_envelope_256x256_static_8outdoorcategories"
NETS = {
    "voc-fcn32s": "data/sbdd",
    "voc-fcn8s-atonce": "data/sbdd",
    "voc-fcn-alexnet": "data/sbdd",
    "siftflow-fcn8s": "data/sift-flow",
    "nyud-fcn32s-color-d": "data/nyud",
    "nyud-fcn32s-color-hha": "data/nyud",
    "pascalcontext-fcn16s": "../data",
}


def draw_image(path: Path, channels: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(path.name)) + int(re.sub(r"\D", "", path.stem)))
    shape = (HEIGHT, WIDTH, 3) if channels == 3 else (HEIGHT, WIDTH)
    if channels == 3:
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
    else:
        Image.fromarray(rng.integers(1000, 5000, shape, np.uint16)).save(path)


def draw_mat(path: Path, classes: int, variable: str, inside: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.random.default_rng(int(re.sub(r"\D", "", path.stem))).integers(0, classes, (HEIGHT, WIDTH))
    scipy_io.savemat(path, {variable: {inside: labels.astype(np.uint8)} if inside else labels.astype(np.uint8)})


def draw_list(path: Path, ids: list[str] = IDS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{id}\n" for id in ids))


def draw_data(root: Path) -> None:
    """All four data sets under `root`, in their published layouts."""
    sbdd, voc, sift, nyud = (root / name for name in ("sbdd/dataset", "pascal/VOC2011", "sift-flow", "nyud"))
    for split in ("train", "trainval", "val", "test"):
        for path in (sbdd, sift, nyud, root / "pascal" / "VOC2010" / "ImageSets" / "Main"):
            draw_list(path / f"{split}.txt")
    draw_list(voc / "ImageSets" / "Segmentation" / "seg11valid.txt")
    context = root / "pascal-context"
    draw_list(context / "labels.txt", [f"{number}: name{number}" for number in range(1, 70)])
    draw_list(context / "59_labels.txt", [f"{number}: name{number + 5}" for number in range(1, 60)])
    for id in IDS:
        draw_image(sbdd / "img" / f"{id}.jpg")
        draw_mat(sbdd / "cls" / f"{id}.mat", 21, "GTcls", "Segmentation")
        draw_image(voc / "JPEGImages" / f"{id}.jpg")
        (voc / "SegmentationClass").mkdir(exist_ok=True)
        Image.fromarray(np.full((HEIGHT, WIDTH), 7, np.uint8)).save(voc / "SegmentationClass" / f"{id}.png")
        draw_image(sift / "Images" / SCENES / f"{id}.jpg")
        draw_mat(sift / "SemanticLabels" / SCENES / f"{id}.mat", 34, "S")
        draw_mat(sift / "GeoLabels" / SCENES / f"{id}.mat", 4, "S")
        draw_image(root / "pascal" / "VOC2010" / "JPEGImages" / f"{id}.jpg")
        draw_mat(context / "trainval" / f"{id}.mat", 70, "LabelMap")
        for kind, channels in (("images", 3), ("hha", 3), ("depth", 1)):
            draw_image(nyud / "data" / kind / f"img_{id}.png", channels)
        draw_mat(nyud / "segmentation" / f"img_{id}.mat", 41, "segmentation")


def slim(text: str) -> str:
    """A published net with the channels of its trunk divided by 16 (at least 4), of the wide layers by 128."""
    wide = re.sub(r"num_output: 4096\b", "num_output: 32", text)
    return re.sub(r"num_output: (64|96|128|256|384|512)\b", lambda m: f"num_output: {max(4, int(m[1]) // 16)}", wide)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    draw_data(root)
    return root


@pytest.fixture
def folder(request: pytest.FixtureRequest, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`<tmp>/nets/<name>` with the published solver and the slim nets, where the paths in them lead to the data."""
    published, copy = fcnproto.zoo.path(request.param, "solver").parent, tmp_path / "nets" / request.param
    copy.mkdir(parents=True)
    # The PASCAL-Context nets look for their data two folders up, the others one.
    for place in (tmp_path / "data", tmp_path / "nets" / "data"):
        place.symlink_to(data)
    for path in published.glob("*.prototxt"):
        (copy / path.name).write_text(slim(path.read_text()))
    shutil.copy(published / "solver.prototxt", copy / "solver.prototxt")
    monkeypatch.chdir(copy)
    return copy


@pytest.mark.parametrize("folder", NETS, indirect=True)
def test_published_solver_trains(folder: Path) -> None:
    torch.manual_seed(3)
    start = fcnproto.load(Solver("solver.prototxt").param.train_net, phase="train")
    interpolate(start)  # as the published scripts do
    with torch.no_grad():  # their weights begin with VGG16's; where all are 0 no gradient comes through
        for entry in start.learnable:
            if entry.lr_mult and entry.tensor.dim() > 1:
                entry.tensor.normal_(0, (2 / entry.tensor[0].numel()) ** 0.5)
    start.save("start.caffemodel")
    arguments = ["train", "--solver", "solver.prototxt", "--no-plot"]
    assert main([*arguments, "--weights", "start.caffemodel", "--iterations", "2"]) == 0
    assert main([*arguments, "--snapshot", state("train", 2), "--iterations", "1"]) == 0

    solver = Solver("solver.prototxt")
    solver.net.copy_from("start.caffemodel")
    before = values(solver)
    torch.manual_seed(11)
    solver.step(1)
    assert len(solver.losses) == solver.param.iter_size
    assert solver.optimizer.param_groups[0]["momentum"] == pytest.approx(0.9 if "alexnet" in folder.name else 0.99)
    # The first pass saw the image that the published sampler draws first; the loss is a sum over pixels.
    twin = fcnproto.load(solver.param.train_net, "start.caffemodel", phase="train")
    torch.manual_seed(11)
    assert twin.loss(twin()).item() == pytest.approx(solver.losses[0], rel=1e-5)
    for entry, old, momentum in zip(solver.net.learnable, before, solver.optimizer.history, strict=True):
        assert bool(momentum.any()) == (entry.lr_mult > 0), entry  # the upsampling stays as it is
        torch.testing.assert_close(entry.tensor.detach(), old - momentum)
    solver.restore(state("train", 3))
    assert solver.iter == 3
    again = Solver("solver.prototxt")
    again.restore(state("train", 2))
    again.step(1)
    assert equal(values(again), values(solver))
    assert all(bool(value.isfinite().all()) for value in solver.test_nets[0]().values())


def state(prefix: str, iteration: int) -> str:
    """The state where the solver's snapshot_prefix (or, without one, its own name) puts it."""
    place = Path("snapshot") / prefix
    return f"{place if place.parent.exists() else 'solver'}_iter_{iteration}.solverstate"
