"""Scoring of folders and nets, against independent counts; the command `fcnproto score`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_nets import colour_net, stripes

import fcnproto
from fcnproto import zoo
from fcnproto.cli._main import main
from fcnproto.errors import DataError, UsageError
from fcnproto.scoring import Scored, confusion_picture, papers, score_folders, score_net
from fcnproto.scoring.metrics import absent, confusion_matrix, metrics

NAMES = ("blue", "green", "red")


def save(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint8)).save(path)


def random_labels(seed: int, classes: int, void: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, (17, 23))
    prediction = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, classes, truth.shape))
    return np.where(rng.random(truth.shape) < void, 255, truth), prediction


@pytest.mark.parametrize("classes", [2, 7])
def test_against_plain_counting(classes: int) -> None:
    """The four metrics pixel by pixel and class by class, without a confusion matrix."""
    truth, prediction = random_labels(classes, classes)
    found = metrics(confusion_matrix(truth, prediction, classes))
    valid = truth != 255
    accuracies, ius, weighted = [], [], 0.0
    for index in range(classes):
        is_true, is_said = valid & (truth == index), valid & (prediction == index)
        accuracies.append((is_true & is_said).sum() / is_true.sum())
        ius.append((is_true & is_said).sum() / (is_true | is_said).sum())
        weighted += is_true.sum() / valid.sum() * ius[-1]
    assert found.pixel_accuracy == pytest.approx((truth == prediction)[valid].mean())
    assert found.mean_accuracy == pytest.approx(np.mean(accuracies))
    assert found.mean_iu == pytest.approx(np.mean(ius))
    assert found.frequency_weighted_iu == pytest.approx(weighted)
    assert found.class_accuracy == pytest.approx(accuracies) and found.class_iu == pytest.approx(ius)


@pytest.mark.parametrize("classes", [2, 7])
def test_against_torchmetrics(classes: int) -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    truth, prediction = random_labels(classes + 10, classes)
    confusion = confusion_matrix(truth, prediction, classes)
    found = metrics(confusion)
    values = torch.from_numpy(prediction).flatten(), torch.from_numpy(truth).flatten()
    options = {"num_classes": classes, "ignore_index": 255}
    theirs = functional.multiclass_confusion_matrix(*values, **options)
    np.testing.assert_array_equal(confusion, theirs.numpy())
    jaccard = functional.multiclass_jaccard_index(*values, **options, average="none")
    np.testing.assert_allclose(found.class_iu, jaccard.numpy(), rtol=1e-6)
    for average, ours in (("macro", found.mean_iu), ("weighted", found.frequency_weighted_iu)):
        theirs = functional.multiclass_jaccard_index(*values, **options, average=average)
        assert ours == pytest.approx(float(theirs), rel=1e-6)
    for average, ours in (("micro", found.pixel_accuracy), ("macro", found.mean_accuracy)):
        assert ours == pytest.approx(
            float(functional.multiclass_accuracy(*values, **options, average=average)), rel=1e-6
        )


def test_classes_left_out_of_the_means() -> None:
    matrix = np.array([[3, 0, 1], [0, 0, 0], [0, 0, 0]])  # class 2 is said once and never true
    assert absent(matrix) == (1, 2)
    assert metrics(matrix).mean_iu == pytest.approx((3 / 4 + 0) / 2)
    found = metrics(matrix, absent(matrix))
    assert found.mean_iu == found.mean_accuracy == pytest.approx(3 / 4)
    assert found.pixel_accuracy == pytest.approx(3 / 4)
    with pytest.raises(UsageError, match="no class is left"):
        metrics(matrix, (0, 1, 2))


def test_an_ignored_label_among_the_classes() -> None:
    truth, prediction = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    assert confusion_matrix(truth, prediction, 2, ignore_label=0).tolist() == [[0, 0], [0, 2]]


def test_an_ignored_class_is_left_out_of_the_means_as_in_torchmetrics(tmp_path: Path) -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    truth, prediction = random_labels(5, 3)
    save(tmp_path / "truth" / "a.png", truth)
    save(tmp_path / "found" / "a.png", prediction)
    scored = score_folders(tmp_path / "found", tmp_path / "truth", NAMES, ignore_label=0)
    counts = truth != 255  # never counts, whatever else is ignored
    values = torch.from_numpy(prediction[counts]), torch.from_numpy(truth[counts])
    for average, ours in (("macro", scored.metrics.mean_iu), ("weighted", scored.metrics.frequency_weighted_iu)):
        theirs = functional.multiclass_jaccard_index(*values, num_classes=3, ignore_index=0, average=average)
        assert ours == pytest.approx(float(theirs), rel=1e-6)
    assert scored.leave_out == (0,) and not scored.as_dict()["classes"]["blue"]["in the means"]


def test_folders(tmp_path: Path) -> None:
    expected = np.zeros((3, 3), np.int64)
    for index, (name, predicted) in enumerate([("a", "a"), ("deep/b", "deep/b_labels")]):
        truth, prediction = random_labels(index, 3)
        save(tmp_path / "truth" / f"{name}.png", truth)
        save(tmp_path / "found" / f"{predicted}.png", prediction)
        expected += confusion_matrix(truth, prediction, 3)
    scored = score_folders(tmp_path / "found", tmp_path / "truth", NAMES)
    np.testing.assert_array_equal(scored.confusion, expected)
    assert scored.images == 2 and scored.metrics == metrics(expected)
    with pytest.raises(DataError, match=r"a\.png: has label 2, expected 0 to 1"):
        score_folders(tmp_path / "found", tmp_path / "truth", NAMES[:2])
    save(tmp_path / "found" / "a.png", np.full((17, 23), 3))
    with pytest.raises(DataError, match=r"found/a\.png: the prediction has class 3"):
        score_folders(tmp_path / "found", tmp_path / "truth", NAMES)
    save(tmp_path / "found" / "a.png", np.zeros((2, 3)))
    with pytest.raises(DataError, match=r"found/a\.png: is 3x2, but .*truth/a\.png is 23x17"):
        score_folders(tmp_path / "found", tmp_path / "truth", NAMES)
    (tmp_path / "found" / "a.png").unlink()
    with pytest.raises(DataError, match=r"truth/a\.png: has no prediction a\.png or a_labels\.png"):
        score_folders(tmp_path / "found", tmp_path / "truth", NAMES)


def test_net_on_items(tmp_path: Path) -> None:
    net = fcnproto.load(*colour_net(tmp_path))
    rng = np.random.default_rng(0)
    items, expected = [], np.zeros((3, 3), np.int64)
    for _ in range(3):
        data = rng.standard_normal((3, 5, 7)).astype(np.float32)
        truth, _ = random_labels(0, 3)
        truth = truth[:5, :7]
        items.append({"data": torch.from_numpy(data), "label": torch.from_numpy(truth.astype(np.float32))[None]})
        expected += confusion_matrix(truth, data.argmax(0), 3)
    (scored,) = score_net(net, items)
    np.testing.assert_array_equal(scored.confusion, expected)
    assert scored.blob == "score" and scored.images == 3 and scored.names[1] == "class 1"
    with pytest.raises(UsageError, match="2 class names are given, but blob 'score' has 3"):
        score_net(net, items, {"score": ("label", NAMES[:2])})
    with pytest.raises(UsageError, match="hold no 'sem'"):
        score_net(net, items, {"score": ("sem", NAMES)})


def test_picture() -> None:
    picture = confusion_picture(Scored(np.array([[90, 10], [0, 0]]), ("cat", "dog"), 1))
    pixels = np.asarray(picture)
    assert (pixels == (255 - np.sqrt(0.9) * (255 - np.array((20, 110, 60)))).round()).all(axis=2).sum() > 300
    assert confusion_picture(Scored(np.eye(60), tuple(map(str, range(60))), 1)).height > 60 * 18


def command_data(folder: Path) -> tuple[Path, Path]:
    (folder / "images").mkdir()
    labels = stripes(folder / "images" / "a.png")
    labels[0, :3] = 255
    labels[1, :3] = 1
    save(folder / "masks" / "a.png", labels)
    (folder / "classes.txt").write_text("\n".join(NAMES))
    return folder / "images", folder / "masks"


def test_command_net(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, masks = command_data(tmp_path)
    model, weights = colour_net(tmp_path)
    options = ["--images", str(images), "--masks", str(masks), "--classes", str(tmp_path / "classes.txt")]
    command = ["score", "net", str(model), str(weights), *options]
    assert main([*command, "--json", "--picture", str(tmp_path / "out" / "confusion.png")]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["confusion"] == [[12, 0, 0], [3, 18, 0], [0, 0, 18]]
    assert result["classes"]["green"]["IU"] == pytest.approx(18 / 21)
    assert Image.open(tmp_path / "out" / "confusion.png").size[0] > 100
    assert main([*command, "--leave-out", "green"]) == 0
    out = capsys.readouterr().out
    assert f"mean IU {(12 / 15 + 1) / 2:.4f}" in out and "left out" in out and "images 1" in out
    assert main([*command, "--leave-out", "violet"]) == 2
    assert main(["score", "net", str(model), str(weights)]) == 2
    assert main(["score", "net", str(model), str(weights), "--images", str(images)]) == 2


def test_command_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, masks = command_data(tmp_path)
    assert main(["score", "folders", str(masks), str(masks)]) == 2
    save(tmp_path / "found" / "a.png", stripes(tmp_path / "images" / "a.png"))
    command = ["score", "folders", str(tmp_path / "found"), str(masks), "--classes", str(tmp_path / "classes.txt")]
    assert main(command) == 0
    assert f"pixel accuracy {48 / 51:.4f}" in capsys.readouterr().out


def test_masks_of_nothing_but_background_and_void(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Masks of 0 and 255, the commonest binary ones: what the net is to find is void in them, so all scores are 1."""
    truth = np.zeros((6, 9), np.uint8)
    truth[:, 3:6] = 1
    save(tmp_path / "images" / "a.png", np.zeros((6, 9, 3)))
    save(tmp_path / "binary" / "a.png", truth * 255)
    save(tmp_path / "found" / "a.png", np.zeros((6, 9)))
    (tmp_path / "classes.txt").write_text("background\nobject\nother\n")
    (tmp_path / "two.txt").write_text("background\nobject\n")
    net = ["score", "net", *map(str, colour_net(tmp_path)), "--images", str(tmp_path / "images")]
    net += ["--masks", str(tmp_path / "binary"), "--classes", str(tmp_path / "classes.txt")]
    folders = ["score", "folders", str(tmp_path / "found"), str(tmp_path / "binary")]
    folders += ["--classes", str(tmp_path / "two.txt")]
    for command in (net, folders):
        assert main(command) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert "nothing but label 0 ('background') and void" in error
        assert all(way in error for way in ("--binary-masks", "--colours", "--allow-empty-classes"))
        assert main([*command, "--allow-empty-classes"]) == 0
        assert "pixel accuracy" in capsys.readouterr().out
        assert main([*command, "--binary-masks"]) == 0
        assert f"accuracy {36 / 54:.4f}" in capsys.readouterr().out or command is net
    scored = score_folders(tmp_path / "found", tmp_path / "binary", ("background", "object"), binary=True)
    assert scored.confusion.tolist() == [[36, 0], [18, 0]] and scored.metrics.mean_iu == pytest.approx(36 / 54 / 2)
    save(tmp_path / "binary" / "a.png", np.full((6, 9), 255))
    with pytest.raises(DataError, match="nothing but void"):
        score_folders(tmp_path / "found", tmp_path / "binary", ("background", "object"))


def test_absent_classes_are_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, found = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    truth[:2], found[:2], found[3, 3] = 1, 1, 2  # class 2 is predicted once, class 3 neither
    save(tmp_path / "truth" / "a.png", truth)
    save(tmp_path / "found" / "a.png", found)
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\nemu\n")
    command = ["score", "folders", str(tmp_path / "found"), str(tmp_path / "truth")]
    command += ["--classes", str(tmp_path / "classes.txt")]
    assert main(command) == 0
    out, error = capsys.readouterr()
    assert f"mean IU {(7 / 8 + 1) / 2:.4f}" in out and "dog, emu" in error and "cat" not in error
    assert main([*command, "--count-absent"]) == 0
    assert f"mean IU {(7 / 8 + 1 + 0) / 3:.4f}" in capsys.readouterr().out


def test_command_on_the_nets_own_data_layer_beside_published_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slim voc-fcn8s under the published name, scored as its val.prototxt says."""
    fcn, sources = zoo.definitions("fcn"), zoo.definitions("sources")
    from fcnproto.schema.text import write_message

    root = tmp_path / "data" / "pascal" / "VOC2011"
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "seg11valid.txt").write_text("one\ntwo\n")
    for index, name in enumerate(("one", "two")):
        save(root / "SegmentationClass" / f"{name}.png", np.full((8, 9), index))
        save(root / "JPEGImages" / f"{name}.jpg", np.zeros((8, 9, 3)))
    folder = tmp_path / "voc-fcn8s"
    folder.mkdir()
    write_message(folder / "val.prototxt", fcn.fcn8s(sources.voc("seg11valid"), 21, (2,) * 6).to_proto())
    fcnproto.load(folder / "val.prototxt").save(folder / "w.caffemodel")
    monkeypatch.chdir(folder)
    assert main(["score", "net", "val.prototxt", "w.caffemodel"]) == 0
    out = capsys.readouterr().out
    assert "pixel accuracy 0.5000" in out and "images 2" in out and "loss" in out  # zero weights: all background
    rows = [line.split() for line in out.splitlines() if "PASCAL VOC" in line]
    source = {name: " ".join(row) for row in rows for name in [row[0]]}
    own = [" ".join(row) for row in rows if row[0] == "voc-fcn8s"]
    for data, figure, where in (
        ("2011 seg11valid", "0.655", "FCN repository (fcn.berkeleyvision.org)"),
        ("2012 test", "0.672", "FCN repository (fcn.berkeleyvision.org)"),
        ("2011 validation", "0.627", "Long, Shelhamer, Darrell, CVPR 2015, table 2"),
        ("2011 test", "0.627", "Long, Shelhamer, Darrell, CVPR 2015, table 3"),
        ("2012 test", "0.622", "Long, Shelhamer, Darrell, CVPR 2015, table 3"),
    ):
        assert f"voc-fcn8s mean IU 0.250 {figure} PASCAL VOC {data} {where}" in own
    for method, figure, table in (
        ("R-CNN", "0.479", 3), ("SDS", "0.516", 3), ("FCN-AlexNet", "0.398", 1), ("FCN-VGG16", "0.560", 1),
        ("FCN-GoogLeNet", "0.425", 1), ("FCN-32s-fixed", "0.454", 2), ("FCN-32s", "0.594", 2), ("FCN-16s", "0.624", 2),
    ):  # fmt: skip
        assert f"{method} mean IU {figure} PASCAL VOC" in source[method]
        assert source[method].endswith(f"Long, Shelhamer, Darrell, CVPR 2015, table {table}")
    assert any(row[:4] == ["SDS", "mean", "IU", "0.526"] and "2011 test" in " ".join(row) for row in rows)
    assert main(["score", "net", "val.prototxt", "w.caffemodel", "--json"]) == 0
    published = json.loads(capsys.readouterr().out)["published"]
    assert {("R-CNN", 0.479), ("SDS", 0.526), ("voc-fcn8s", 0.655)} <= {
        (one["net"], one["metrics"]["mean IU"]) for one in published
    }
    # A net of other classes in a folder of that name isn't the published one.
    write_message(folder / "val.prototxt", fcn.fcn8s(sources.voc("seg11valid"), 3, (2,) * 6).to_proto())
    fcnproto.load(folder / "val.prototxt").save(folder / "other.caffemodel")
    (folder / "classes.txt").write_text("a\nb\nc\n")
    assert main(["score", "net", "val.prototxt", "other.caffemodel", "--classes", "classes.txt"]) == 0
    assert "CVPR" not in capsys.readouterr().out
    write_message(folder / "val.prototxt", fcn.fcn8s(sources.voc("seg11valid"), 21, (2,) * 6).to_proto())
    data = ["--data", "voc", "--root", str(root.parent), "--split", "seg11valid", "--year", "2011"]
    assert main(["score", "net", "val.prototxt", "w.caffemodel", *data]) == 0
    assert "pixel accuracy 0.5000" in capsys.readouterr().out


def test_the_papers_figures() -> None:
    """The CVPR paper's tables 1 to 3; every net that is named is one of the zoo's."""
    found = {
        (score.method, score.data.removeprefix("PASCAL VOC "), score.table): score.mean_iu for score in papers.SCORES
    }
    assert found == {
        ("FCN-AlexNet", "2011 validation", "table 1"): 0.398,
        ("FCN-VGG16", "2011 validation", "table 1"): 0.560,
        ("FCN-GoogLeNet", "2011 validation", "table 1"): 0.425,
        ("FCN-32s-fixed", "2011 validation", "table 2"): 0.454,
        ("FCN-32s", "2011 validation", "table 2"): 0.594,
        ("FCN-16s", "2011 validation", "table 2"): 0.624,
        ("FCN-8s", "2011 validation", "table 2"): 0.627,
        ("R-CNN", "2011 test", "table 3"): 0.479,
        ("SDS", "2011 test", "table 3"): 0.526,
        ("SDS", "2012 test", "table 3"): 0.516,
        ("FCN-8s", "2011 test", "table 3"): 0.627,
        ("FCN-8s", "2012 test", "table 3"): 0.622,
    }
    assert {score.model for score in papers.SCORES if score.model} <= set(zoo.names())


def write_slim(folder: Path, net: object) -> tuple[str, str]:
    from fcnproto.schema.text import write_message

    folder.mkdir()
    write_message(folder / "deploy.prototxt", net)
    fcnproto.load(folder / "deploy.prototxt").save(folder / "w.caffemodel")
    return str(folder / "deploy.prototxt"), str(folder / "w.caffemodel")


def test_command_on_two_labellings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SIFT Flow: both labellings are scored; classes that the test split lacks are left out of the first one's means."""
    scipy_io = pytest.importorskip("scipy.io")
    fcn, sources = zoo.definitions("fcn"), zoo.definitions("sources")
    root, scenes = tmp_path / "sift", "spatial_envelope_256x256_static_8outdoorcategories"
    for kind, count in (("SemanticLabels", 34), ("GeoLabels", 4)):
        (root / kind / scenes).mkdir(parents=True)
        values = np.random.default_rng(0).integers(0, count, (8, 9)).astype(np.uint8)
        scipy_io.savemat(root / kind / scenes / "coast.mat", {"S": values})
    save(root / "Images" / scenes / "coast.jpg", np.zeros((8, 9, 3)))
    (root / "test.txt").write_text("coast\n")
    shapes = {"data": (1, 3, 8, 9)}
    model = write_slim(
        tmp_path / "siftflow-fcn8s", fcn.fcn8s(sources.inputs(shapes), {"sem": 33, "geo": 3}, (2,) * 6).to_proto()
    )
    command = ["score", "net", *model, "--data", "siftflow", "--root", str(root), "--split", "test", "--json"]
    assert main([*command, "--leave-out", "cow,desert,moon"]) == 0
    semantic, geometric = json.loads(capsys.readouterr().out)["results"]
    assert (semantic["blob"], geometric["blob"]) == ("score_sem", "score_geo")
    assert [name for name, facts in semantic["classes"].items() if not facts["in the means"]] == [
        "cow",
        "desert",
        "moon",
    ]
    assert len(geometric["classes"]) == 3 and all(facts["in the means"] for facts in geometric["classes"].values())


def test_command_on_hha(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NYUDv2: the net's record says that its image is HHA, whatever the blob is called."""
    scipy_io = pytest.importorskip("scipy.io")
    fcn, sources = zoo.definitions("fcn"), zoo.definitions("sources")
    root = tmp_path / "nyud"
    (root / "segmentation").mkdir(parents=True)
    scipy_io.savemat(root / "segmentation" / "img_1.mat", {"segmentation": np.ones((8, 9), np.uint8)})
    save(root / "data" / "hha" / "img_1.png", np.zeros((8, 9, 3)))
    (root / "test.txt").write_text("1\n")
    net = fcn.fcn32s(sources.inputs({"data": (1, 3, 8, 9)}), 40, (2,) * 6).to_proto()
    model = write_slim(tmp_path / "nyud-fcn32s-hha", net)
    assert main(["score", "net", *model, "--data", "nyud", "--root", str(root), "--split", "test"]) == 0
    assert "pixel accuracy 1.0000" in capsys.readouterr().out


def test_images_of_batches_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.prototxt").write_text("""
        layer { name: "d" type: "DummyData" top: "data" top: "label"
          dummy_data_param { shape { dim: 3 dim: 2 dim: 4 dim: 5 } shape { dim: 3 dim: 1 dim: 4 dim: 5 } } }
        layer { name: "score" type: "Convolution" bottom: "data" top: "score"
          convolution_param { num_output: 2 kernel_size: 1 } }
        layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" }
    """)
    fcnproto.load(tmp_path / "net.prototxt").save(tmp_path / "net.caffemodel")
    net = [str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel")]
    assert main(["score", "net", *net, "--iterations", "4", "--json", "--allow-empty-classes"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["results"]
    assert found["images"] == 12 and sum(map(sum, found["confusion"])) == 12 * 4 * 5
