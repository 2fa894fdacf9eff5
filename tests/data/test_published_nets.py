"""The published train and val files and solvers, as they are, on miniature trees in the layouts of their data sets.

The nets are the zoo's, whose data layers, solvers and losses are untouched; only their widths are cut down here, but for
one that is slow.
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import SHARED
from PIL import Image
from test_published_layers import save_image, save_list, save_mat
from torch.utils.data import DataLoader

import fcnproto
from fcnproto import surgery, zoo
from fcnproto.cli._main import main
from fcnproto.data import datasets
from fcnproto.errors import DataError, LayerError
from fcnproto.schema.text import read_net, read_solver, write_message

scipy_io = pytest.importorskip("scipy.io")

AUTHORS = SHARED / "fcn"
"""The authors' files, where they lie beside the checkout."""
SIZE = (66, 80)
SCENES = "spatial_envelope_256x256_static_8outdoorcategories"
PUBLISHED = [name for name in zoo.names() if name != "fcn-mini"]
CONTEXT = zoo.info("pascalcontext-fcn8s").classes


def label_map(seed: int, classes: int) -> np.ndarray:
    """Blocks of classes, so that the map can be learned."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, classes, (3, 4)).repeat(22, 0).repeat(20, 1).astype(np.uint8)


def photo(label: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 30, (*label.shape, 3))
    return (np.stack([label * 5, 200 - label * 4, label * 3], axis=2) % 220 + noise).astype(np.uint8)


def palette_png(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    image.putpalette([value for colour in zoo.palette() for value in colour])
    image.save(path)


def draw_sbd(data: Path) -> None:
    root = data / "sbdd" / "dataset"
    save_list(root / "train.txt", ["2008_000002", "2008_000003"])
    for seed, id in enumerate(("2008_000002", "2008_000003")):
        label = label_map(seed, 21)
        save_image(root / "img" / f"{id}.jpg", photo(label, seed))
        parts = {"Segmentation": label, "Boundaries": np.zeros((20, 1)), "CategoriesPresent": np.unique(label)}
        save_mat(root / "cls" / f"{id}.mat", GTcls=parts)


def draw_voc(data: Path) -> None:
    root = data / "pascal" / "VOC2011"
    save_list(root / "ImageSets" / "Segmentation" / "seg11valid.txt", ["2007_000033", "2007_000042"])
    for seed, id in enumerate(("2007_000033", "2007_000042")):
        label = label_map(seed, 21)
        save_image(root / "JPEGImages" / f"{id}.jpg", photo(label, seed))
        label[:2] = 255
        palette_png(root / "SegmentationClass" / f"{id}.png", label)


def draw_context(data: Path) -> None:
    """Labels of a list in which the 59 classes stand among others, three of them by another name."""
    names = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}
    listed = sorted([names.get(name, name) for name in CONTEXT[1:]] + ["air conditioner", "clothes tree", "zebra"])
    context, voc = data / "pascal-context", data / "pascal" / "VOC2010"
    context.mkdir(parents=True)
    (context / "labels.txt").write_text("".join(f"{i}: {name}\n" for i, name in enumerate(listed, 1)))
    (context / "59_labels.txt").write_text("".join(f"{i}: {name}\n" for i, name in enumerate(CONTEXT[1:], 1)))
    for split, ids in (("train", ["2008_000008", "2008_000015"]), ("val", ["2008_000026"])):
        save_list(voc / "ImageSets" / "Main" / f"{split}.txt", ids)
        for seed, id in enumerate(ids):
            label = label_map(seed, len(listed) + 1)
            save_image(voc / "JPEGImages" / f"{id}.jpg", photo(label, seed))
            save_mat(context / "trainval" / f"{id}.mat", LabelMap=label.astype(np.uint16))


def draw_nyud(data: Path) -> None:
    root = data / "nyud"
    for split, ids in (("trainval", ["5003", "5004"]), ("test", ["5001"])):
        save_list(root / f"{split}.txt", ids)
        for seed, id in enumerate(ids):
            label = label_map(seed, 41)
            for kind in ("images", "hha"):
                save_image(root / "data" / kind / f"img_{id}.png", photo(label, seed))
            save_image(root / "data" / "depth" / f"img_{id}.png", (1500 + 40 * label.astype(np.uint16)))
            save_mat(root / "segmentation" / f"img_{id}.mat", segmentation=label)


def draw_sift_flow(data: Path) -> None:
    root = data / "sift-flow"
    for split, ids in (("trainval", ["coast_1", "street_2"]), ("test", ["forest_3"])):
        save_list(root / f"{split}.txt", ids)
        for seed, id in enumerate(ids):
            label = label_map(seed, 34)
            save_image(root / "Images" / SCENES / f"{id}.jpg", photo(label, seed))
            save_mat(root / "SemanticLabels" / SCENES / f"{id}.mat", S=label, names=np.array(["a"], dtype=object))
            geometric = label_map(seed + 9, 4).astype(np.int16)
            save_mat(root / "GeoLabels" / SCENES / f"{id}.mat", S=np.where(geometric == 0, -1, geometric))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All data sets under data/. The nets' folders lie beside it, or a folder deeper, as their paths want it."""
    root = tmp_path_factory.mktemp("fcn")
    for draw in (draw_sbd, draw_voc, draw_context, draw_nyud, draw_sift_flow):
        draw(root / "data")
    return root


def folder_of(tree: Path, name: str, target: Path) -> Path:
    """A folder for the net from which its relative paths lead to the data."""
    deep = "'../../data" in zoo.path(name, "train").read_text().replace("\\'", "'")
    folder = target / "more" / name if deep else target / name
    folder.mkdir(parents=True)
    if not (target / "data").exists():
        (target / "data").symlink_to(tree / "data")
    return folder


def slim(name: str, folder: Path) -> Path:
    """The published files with narrow convolutions; scores, data layers, losses and the solver as they are."""
    scores = {layer for found in surgery.score_layers(read_net(zoo.path(name, "train"))).values() for layer in found}
    for kind in ("train", "val"):
        path = zoo.path(name, kind)
        net = read_net(path)
        for layer in net.layer:
            if layer.type == "Convolution" and layer.name not in scores:
                layer.convolution_param.num_output = max(2, layer.convolution_param.num_output // 64)
                layer.convolution_param.ClearField("group")
        write_message(folder / path.name, net)
    shutil.copy(zoo.path(name, "solver"), folder / "solver.prototxt")
    return folder / "solver.prototxt"


def give_values(net: fcnproto.Net) -> None:
    torch.manual_seed(4)
    with torch.no_grad():
        for layer, blobs in net.params.items():
            if not layer.startswith("scale"):
                torch.nn.init.kaiming_normal_(blobs[0]) if blobs[0].ndim == 4 else blobs[0].fill_(1)
    surgery.interpolate(net)


@pytest.mark.parametrize("name", PUBLISHED)
def test_trains_and_tests_as_published(tree: Path, tmp_path: Path, name: str) -> None:
    folder = folder_of(tree, name, tmp_path)
    solver = fcnproto.Solver(slim(name, folder), device="cpu")
    give_values(solver.net)
    before = {layer: [blob.detach().clone() for blob in blobs] for layer, blobs in solver.net.params.items()}
    solver.step(2)
    assert solver.iter == 2 and all(np.isfinite(solver.losses)) and min(solver.losses) > 0
    changed = {layer for layer, blobs in solver.net.params.items() if not blobs[0].equal(before[layer][0])}
    assert {layer for layer in changed if layer.startswith(("up", "scale_"))} == set()
    # The finest nets' rate of 1e-14 is too small for float32 to show in weights of this size; their momentum shows it.
    assert any(layer.startswith("score") for layer in changed) or solver.param.base_lr < 1e-13
    assert any(history.any() for history in solver.optimizer.history)
    (scores,) = solver.test() if len(solver.test_nets) == 1 and reduce_tests(solver) else [{}]
    assert scores and all(np.isfinite(value) for values in scores.values() for value in values)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_check_finds_nothing(tree: Path, tmp_path: Path, name: str) -> None:
    """Neither fault nor suspect in a published solver with weights and data."""
    folder = folder_of(tree, name, tmp_path)
    solver = slim(name, folder)
    net = fcnproto.load(folder / read_solver(solver).train_net, phase="train")
    give_values(net)
    net.save(folder / "w.caffemodel")
    findings = fcnproto.check(solver, folder / "w.caffemodel")
    assert not [str(finding) for finding in findings if finding.level != "note"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PUBLISHED if (AUTHORS / name).is_dir()] or ["none"])
def test_a_check_of_the_published_files_at_full_width(name: str) -> None:
    """The authors' own files, unchanged, with weights in all layers; their data aren't there, which is a note."""
    if name == "none":
        pytest.skip(f"{AUTHORS} is not there")
    solver = fcnproto.Solver(AUTHORS / name / "solver.prototxt", device="cpu")
    with torch.no_grad():
        for blobs in solver.net.params.values():
            blobs[0].fill_(0.01)
    surgery.interpolate(solver.net)
    findings = fcnproto.check(solver)
    assert not [str(finding) for finding in findings if finding.level != "note"]
    assert "missing-files" in {finding.code for finding in findings}


def reduce_tests(solver: fcnproto.Solver) -> bool:
    """The published number of test images is that of the whole data set."""
    assert solver.param.test_iter[0] in (736, 654, 200, 5105)
    solver.param.test_iter[:] = [3]
    return True


def test_classes_of_context_are_found_by_name(tree: Path, tmp_path: Path) -> None:
    folder = folder_of(tree, "pascalcontext-fcn32s", tmp_path)
    slim("pascalcontext-fcn32s", folder)
    net = fcnproto.load(folder / "val.prototxt")
    _, label = net.data_layers()[0]()
    listed = (tree / "data" / "pascal-context" / "labels.txt").read_text().splitlines()
    stored = scipy_io.loadmat(tree / "data" / "pascal-context" / "trainval" / "2008_000026.mat")["LabelMap"]
    renamed = {"table": "diningtable", "bedclothes": "bedcloth", "cloth": "clothes"}
    for value in np.unique(stored):
        name = "" if value == 0 else listed[value - 1].split(": ")[1]
        expected = CONTEXT.index(renamed.get(name, name)) if renamed.get(name, name) in CONTEXT else 0
        if name == "clothes tree":
            expected = 0
        assert set(label[0, 0].numpy()[stored == value]) == {expected}, name


def test_score_of_the_whole_split(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`fcnproto score net` on a published val file: the split once, beside the published figures."""
    folder = folder_of(tree, "siftflow-fcn8s", tmp_path)
    slim("siftflow-fcn8s", folder)
    net = fcnproto.load(folder / "test.prototxt")
    give_values(net)
    net.save(folder / "w.caffemodel")
    model, weights = str(folder / "test.prototxt"), str(folder / "w.caffemodel")
    assert main(["score", "net", model, weights, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [one["images"] for one in results] == [1, 1]
    label = label_map(0, 34)
    assert sum(map(sum, results[0]["confusion"])) == (label != 0).sum()


def test_wrong_labels_and_sizes_name_the_file(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(tree / "data", tmp_path / "data")
    folder = folder_of(tree, "voc-fcn32s", tmp_path)
    solver = fcnproto.Solver(slim("voc-fcn32s", folder), device="cpu")
    masks = tmp_path / "data" / "sbdd" / "dataset" / "cls"
    for path in masks.iterdir():
        save_mat(path, GTcls={"Segmentation": np.full(SIZE, 21, np.uint8)})
    with pytest.raises(
        LayerError, match=r"label 21 in 'label' is outside of 0\.\.20.*the batch is image '2008_0.*cls/2008_"
    ):
        solver.step(1)
    for path in masks.iterdir():
        save_mat(path, GTcls={"Segmentation": np.zeros((66, 79), np.uint8)})
    with pytest.raises(DataError, match=r"image '2008_0.*cls/2008_.*\.mat is 79x66, but .*img/2008_.*\.jpg is 80x66"):
        solver.step(1)
    palette_png(tmp_path / "data/pascal/VOC2011/SegmentationClass/2007_000042.png", np.full(SIZE, 77, np.uint8))
    solver.net.save(folder / "w.caffemodel")
    assert main(["score", "net", str(folder / "val.prototxt"), str(folder / "w.caffemodel")]) == 1
    error = capsys.readouterr().err
    assert "label 77" in error and "SegmentationClass/2007_000042.png" in error and error.count("\n") == 1


def test_data_sets_in_loaders_with_workers(tree: Path) -> None:
    """Every data set gives the same items through two worker processes, and after pickling."""
    data = tree / "data"
    sets: list[datasets.SegmentationDataset] = [
        datasets.SBD(data / "sbdd" / "dataset", "train"),
        datasets.VOC(data / "pascal", "seg11valid", 2011),
        datasets.PASCALContext(data / "pascal-context", data / "pascal", "train"),
        datasets.NYUD(data / "nyud", "trainval", ["color", "depth", "hha", "label"]),
        datasets.SIFTFlow(data / "sift-flow", "trainval"),
        datasets.ImageFolder(data / "pascal/VOC2011/JPEGImages", data / "pascal/VOC2011/SegmentationClass", 21),
    ]
    for one in sets:
        loaded = list(DataLoader(pickle.loads(pickle.dumps(one)), batch_size=1, num_workers=2))
        assert len(loaded) == len(one) == 2
        for index, batch in enumerate(loaded):
            assert batch.keys() == one[index].keys()
            assert all(batch[key][0].equal(one[index][key]) for key in batch)


@pytest.mark.slow
def test_full_width(tree: Path, tmp_path: Path) -> None:
    """The very files of FCN-32s: 134 million weights that begin at zero, as the files say."""
    folder = folder_of(tree, "voc-fcn32s", tmp_path)
    for kind in ("train", "val", "solver"):
        shutil.copy(zoo.path("voc-fcn32s", kind), folder)
    solver = fcnproto.Solver(folder / "solver.prototxt", device="cpu")
    solver.step(1)
    labels = SIZE[0] * SIZE[1]
    assert solver.losses[0] == pytest.approx(labels * np.log(21), rel=1e-4)  # all scores 0: log 21 for each pixel
    assert read_solver(folder / "solver.prototxt").base_lr == pytest.approx(1e-10)
