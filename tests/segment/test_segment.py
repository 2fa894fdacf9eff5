"""Segmenting: label maps, files written, several heads and inputs, images that fail."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import SHARED
from PIL import Image
from tiny_nets import colour_net, small_fcn, stripes

import fcnproto
from fcnproto import zoo
from fcnproto.errors import DataError, UsageError
from fcnproto.images import Preprocessing
from fcnproto.meta import Meta, of_record
from fcnproto.net.roles import score_blobs
from fcnproto.preprocessing import (
    background_labels,
    class_names,
    preprocessing_of,
    read_class_names,
    record_of,
    similar_record,
    zoo_record,
)
from fcnproto.schema.text import read_net
from fcnproto.segment import Scene, Segmenter, segment

PLAIN = {"data": Preprocessing("bgr")}

TWO_HEADS = """
layer { name: "other" type: "Power" bottom: "score" top: "other" power_param { scale: -1 } }
layer { name: "first" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "first" }
layer { name: "second" type: "SoftmaxWithLoss" bottom: "other" bottom: "label" top: "second" }
"""
LABELLED = """
layer { name: "data" type: "Input" top: "data" top: "label" input_param { shape { dim: 1 dim: 3 dim: 6 dim: 9 }
  shape { dim: 1 dim: 1 dim: 6 dim: 9 } } }
"""
TWO_INPUTS = """
layer { name: "in" type: "Input" top: "color" top: "hha" input_param { shape { dim: 1 dim: 3 dim: 6 dim: 9 } } }
layer { name: "sum" type: "Eltwise" bottom: "color" bottom: "hha" top: "data" eltwise_param { coeff: 1 coeff: 2 } }
"""


def labels_in(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.array(image)


class TestResults:
    def test_labels_overlay_and_probabilities(self, tmp_path: Path) -> None:
        truth = stripes(tmp_path / "cat.png")
        net = fcnproto.load(*colour_net(tmp_path))
        segmenter = Segmenter(net, preprocessing=PLAIN, probabilities=True, classes=["b", "g", "r"])
        (result,) = segment(segmenter, tmp_path / "cat.png", tmp_path / "out")
        assert result.error is None
        assert (result.index, result.total) == (0, 1)
        assert [path.name for path in result.files] == ["cat_labels.png", "cat_overlay.png", "cat_probs.npz"]
        assert (labels_in(tmp_path / "out" / "cat_labels.png") == truth).all()
        assert result.segmentations[0].shares() == pytest.approx({"b": 1 / 3, "g": 1 / 3, "r": 1 / 3})
        with np.load(tmp_path / "out" / "cat_probs.npz") as file:
            assert file["classes"].tolist() == ["b", "g", "r"]
            assert file["probs"].shape == (3, 6, 9)
            assert file["probs"].dtype == np.float32
            np.testing.assert_allclose(file["probs"].sum(axis=0), 1, rtol=1e-6)
            np.testing.assert_allclose(file["probs"][0, 0, 0], 1, rtol=1e-6)

    def test_label_image_has_the_voc_colours(self, tmp_path: Path) -> None:
        stripes(tmp_path / "cat.png")
        net = fcnproto.load(*colour_net(tmp_path))
        (result,) = segment(Segmenter(net, preprocessing=PLAIN), tmp_path / "cat.png", tmp_path / "out")
        with Image.open(result.files[0]) as image:
            colours = np.array(image.convert("RGB"))
        # the first colours of the VOC development kit's map
        assert colours[0, [0, 3, 8]].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]

    def test_mean_is_subtracted(self, tmp_path: Path) -> None:
        Image.new("RGB", (4, 4), (100, 101, 102)).save(tmp_path / "a.png")  # blue is strongest
        net = fcnproto.load(*colour_net(tmp_path))
        for mean, label in [((0, 0, 0), 0), ((50, 0, 0), 1), ((50, 50, 0), 2)]:
            segmenter = Segmenter(net, preprocessing={"data": Preprocessing("bgr", np.array(mean))})
            assert (segmenter(Image.open(tmp_path / "a.png"))[0].labels == label).all()

    @pytest.mark.parametrize("size", [(1, 1), (7, 20), (33, 5), (64, 64)])
    def test_any_size(self, tmp_path: Path, size: tuple[int, int]) -> None:
        net = fcnproto.load(*small_fcn(tmp_path))
        height, width = size
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
        (found,) = Segmenter(net)(image)
        assert found.labels.shape == size
        scores = net(torch.tensor(np.asarray(image)[None, :, :, ::-1].transpose(0, 3, 1, 2).astype(np.float32).copy())
                     - torch.tensor([104.00699, 116.66877, 122.67892])[:, None, None])["score"]  # fmt: skip
        assert (found.labels == scores.argmax(1)[0].numpy()).all()

    def test_shrunk_images_give_labels_of_their_own_size(self, tmp_path: Path) -> None:
        truth = stripes(tmp_path / "a.png", 40, 60)
        net = fcnproto.load(*colour_net(tmp_path))
        segmenter = Segmenter(net, preprocessing=PLAIN, longest_side=30)
        (found,) = segmenter(Image.open(tmp_path / "a.png"))
        assert found.labels.shape == truth.shape
        assert (found.labels == truth).mean() > 0.95
        segmenter = Segmenter(net, preprocessing=PLAIN, fixed_size=(16, 33))
        assert (segmenter(Image.open(tmp_path / "a.png"))[0].labels == truth).mean() > 0.9

    def test_softmax_and_argmax_are_looked_through(self, tmp_path: Path) -> None:
        extra = 'layer { name: "prob" type: "Softmax" bottom: "score" top: "prob" }'
        assert score_blobs(fcnproto.load(colour_net(tmp_path, extra)[0])) == ["score"]
        extra = 'layer { name: "best" type: "ArgMax" bottom: "score" top: "best" argmax_param { axis: 1 } }'
        assert score_blobs(fcnproto.load(colour_net(tmp_path, extra)[0])) == ["score"]


class TestHeads:
    def test_one_set_of_files_for_each(self, tmp_path: Path) -> None:
        truth = stripes(tmp_path / "cat.png")
        model, weights = colour_net(tmp_path, TWO_HEADS, LABELLED)
        net = fcnproto.load(model, weights)
        (result,) = segment(Segmenter(net, preprocessing=PLAIN), tmp_path / "cat.png", tmp_path / "out")
        assert [found.blob for found in result.segmentations] == ["score", "other"]
        assert (labels_in(tmp_path / "out" / "cat_score_labels.png") == truth).all()
        # the negated scores: of the two colours that are not there the first one wins
        assert (labels_in(tmp_path / "out" / "cat_other_labels.png") == np.where(truth == 0, 1, 0)).all()

    def test_chosen_one(self, tmp_path: Path) -> None:
        stripes(tmp_path / "cat.png")
        net = fcnproto.load(*colour_net(tmp_path, TWO_HEADS, LABELLED))
        (result,) = segment(Segmenter(net, blobs=["other"]), tmp_path / "cat.png", tmp_path / "out")
        assert {path.name for path in result.files} == {"cat_labels.png", "cat_overlay.png"}

    def test_unknown_one(self, tmp_path: Path) -> None:
        net = fcnproto.load(*colour_net(tmp_path))
        with pytest.raises(fcnproto.GraphError, match='did you mean "score"'):
            Segmenter(net, blobs=["scores"])

    def test_classifier(self, tmp_path: Path) -> None:
        extra = 'layer { name: "p" type: "Pooling" bottom: "score" top: "p" pooling_param { pool: AVE global_pooling: true } }'
        extra += 'layer { name: "f" type: "Flatten" bottom: "p" top: "f" }'
        net = fcnproto.load(*colour_net(tmp_path, extra))
        with pytest.raises(UsageError, match=r"no map of class scores \('f' \(1, 3\)\)"):
            Segmenter(net)(Image.new("RGB", (8, 8)))


class TestInputs:
    def net(self, folder: Path) -> fcnproto.Net:
        return fcnproto.load(*colour_net(folder, source=TWO_INPUTS))

    def images(self, folder: Path) -> None:
        for name, red in (("a", 0), ("b", 200)):
            Image.new("RGB", (5, 4), (0, 0, 150)).save(folder / f"{name}.png")
            (folder / "hha").mkdir(exist_ok=True)
            Image.new("RGB", (5, 4), (red, 0, 0)).save(folder / "hha" / f"{name}.jpg", quality=100)

    def test_matched_by_stem(self, tmp_path: Path) -> None:
        self.images(tmp_path)
        both = {"color": Preprocessing("bgr"), "hha": Preprocessing("bgr")}
        segmenter = Segmenter(self.net(tmp_path), preprocessing=both)
        paths = [tmp_path / "a.png", tmp_path / "b.png"]
        results = list(segment(segmenter, paths, tmp_path / "out", inputs={"hha": tmp_path / "hha"}))
        assert [result.error for result in results] == [None, None]
        assert [int(result.segmentations[0].labels[0, 0]) for result in results] == [0, 2]

    def test_partner_missing_or_of_another_size(self, tmp_path: Path) -> None:
        self.images(tmp_path)
        (tmp_path / "hha" / "a.jpg").unlink()
        Image.new("RGB", (50, 4)).save(tmp_path / "hha" / "b.jpg")
        paths = [tmp_path / "a.png", tmp_path / "b.png"]
        results = list(segment(self.net(tmp_path), paths, tmp_path / "out", inputs={"hha": tmp_path / "hha"}))
        assert "a.png: no image called 'a'" in (results[0].error or "")
        assert "b.png: the images of one scene differ in size: color 5x4, hha 50x4" in (results[1].error or "")

    def test_wrong_names(self, tmp_path: Path) -> None:
        self.images(tmp_path)
        net = self.net(tmp_path)
        with pytest.raises(UsageError, match="--image hha="):
            segment(net, tmp_path / "a.png", tmp_path / "out")
        with pytest.raises(UsageError, match="'depth' is no image input; these are 'color', 'hha'"):
            segment(net, tmp_path / "a.png", tmp_path / "out", inputs={"depth": tmp_path})
        with pytest.raises(UsageError, match="does not exist"):
            segment(net, tmp_path / "a.png", tmp_path / "out", inputs={"hha": tmp_path / "no"})

    def test_data_layers_that_are_not_asked_stay_closed(self, tmp_path: Path) -> None:
        source = """
        layer { name: "image" type: "ImageData" top: "data" top: "number"
          image_data_param { source: "missing.txt" batch_size: 1 }
          transform_param { mean_value: 1 mean_value: 2 mean_value: 3 scale: 0.5 crop_size: 4 } }
        layer { name: "truth" type: "ImageData" top: "label" top: "n2" image_data_param { source: "no.txt" batch_size: 1 } }
        """
        extra = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" }'
        model = tmp_path / "m.prototxt"
        text = colour_net(tmp_path)[0].read_text().partition("\n\n")[2]
        model.write_text(source + text + extra)
        net = fcnproto.load(
            model, tmp_path / "colours.caffemodel", shapes={"data": (1, 3, 6, 9), "label": (1, 1, 6, 9)}
        )
        truth = stripes(tmp_path / "cat.png")
        with pytest.warns(fcnproto.FcnprotoWarning, match="crop_size 4 is not applied"):
            segmenter = Segmenter(net)
        assert str(segmenter.preprocessing["data"]) == "BGR, mean 1 2 3, scale 0.5 (from layer 'image')"
        (found,) = segmenter(Image.open(tmp_path / "cat.png"))
        assert (found.labels == truth).all()


class TestImagesInMemory:
    """A `Segmenter` takes what the command would read from a file."""

    @pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "HSV", "I;16", "I", "PA"])
    def test_modes(self, tmp_path: Path, mode: str) -> None:
        segmenter = Segmenter(fcnproto.load(*colour_net(tmp_path)))
        stripes(tmp_path / "cat.png")
        picture = Image.open(tmp_path / "cat.png")
        if mode == "I;16":
            image = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
        else:
            image = picture.convert("P").convert("PA") if mode == "PA" else picture.convert(mode)
        expected = segmenter(picture.convert("L") if mode in ("I;16", "I") else image.convert("RGB"))[0].labels
        if mode == "I":
            image = Image.fromarray(np.asarray(picture.convert("L")).astype(np.int32) * 257)
        assert (segmenter(image)[0].labels == expected).all()

    def test_paths_and_arrays(self, tmp_path: Path) -> None:
        segmenter = Segmenter(fcnproto.load(*colour_net(tmp_path)))
        truth = stripes(tmp_path / "cat.png")
        array = np.asarray(Image.open(tmp_path / "cat.png").convert("RGB"))
        opaque = np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])
        for given in (tmp_path / "cat.png", str(tmp_path / "cat.png"), array, opaque, torch.from_numpy(array.copy())):
            assert (segmenter(given)[0].labels == truth).all()
            assert (segmenter({"data": given})[0].labels == truth).all()
        grey = segmenter(array[:, :, 1])[0].labels
        assert (segmenter(array[:, :, 1:2])[0].labels == grey).all()

    def test_turned_by_exif(self, tmp_path: Path) -> None:
        segmenter = Segmenter(fcnproto.load(*colour_net(tmp_path)))
        truth = stripes(tmp_path / "cat.png")
        image = Image.open(tmp_path / "cat.png").convert("RGB").transpose(Image.Transpose.ROTATE_90)
        image.getexif()[0x0112] = 6  # to be turned by 90 degrees clockwise
        assert (segmenter(image)[0].labels == truth).all()

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (torch.rand(3, 8, 8), r"Tensor of float32 and shape \(3, 8, 8\) .*RGB of uint8"),
            (np.zeros((8, 8, 3)), r"ndarray of float64"),
            (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\)"),
            (17, r"int of int64 and shape \(\)"),
            (Image.new("F", (4, 4)), "mode F can't be used: .*save the image with 8 or 16 bits"),
            ("no_such.jpg", r"no_such\.jpg: no such file"),
        ],
    )
    def test_refused(self, tmp_path: Path, given: object, said: str) -> None:
        with pytest.raises(DataError, match=said):
            Segmenter(fcnproto.load(*colour_net(tmp_path)))(given)


class TestFailures:
    def test_the_rest_go_on(self, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        folder.mkdir()
        for name in ("a.png", "c.png"):
            stripes(folder / name)
        (folder / "b.png").write_bytes(b"no image")
        results = list(segment(fcnproto.load(*colour_net(tmp_path)), folder, tmp_path / "out"))
        assert [result.error is None for result in results] == [True, False, True]
        assert results[1].error == f"{folder / 'b.png'}: not an image of a known kind"
        assert not list((tmp_path / "out").glob("b*"))

    def test_net_that_can_not_work_on_the_size(self, tmp_path: Path) -> None:
        extra = """layer { name: "wide" type: "Convolution" bottom: "score" top: "wide"
          convolution_param { num_output: 2 kernel_size: 5 } }"""
        net = fcnproto.load(*colour_net(tmp_path, extra))
        with pytest.raises(DataError, match="can't work on 4x3 pixels: layer 'wide'"):
            Segmenter(net)(Image.new("RGB", (4, 3)))

    def test_scores_that_are_no_numbers(self, tmp_path: Path) -> None:
        net = fcnproto.load(*colour_net(tmp_path))
        with torch.no_grad():
            net.params["score"][0].fill_(float("nan"))
        with pytest.raises(DataError, match="no numbers"):
            Segmenter(net)(Image.new("RGB", (4, 3)))

    def test_results_among_the_images(self, tmp_path: Path) -> None:
        stripes(tmp_path / "a.png")
        net = fcnproto.load(*colour_net(tmp_path))
        with pytest.raises(UsageError, match="another folder"):
            segment(net, tmp_path, tmp_path)
        stripes(tmp_path / "a_labels.png")
        paths = [tmp_path / "a.png", tmp_path / "a_labels.png"]
        results = list(segment(net, paths, tmp_path))
        assert "one of the images to be read" in (results[0].error or "")
        assert Image.open(tmp_path / "a_labels.png").mode == "RGB"

    def test_nothing_to_do(self, tmp_path: Path) -> None:
        net = fcnproto.load(*colour_net(tmp_path))
        (tmp_path / "empty").mkdir()
        with pytest.raises(UsageError, match="no images in"):
            segment(net, tmp_path / "empty", tmp_path / "out")
        (tmp_path / "file").touch()
        with pytest.raises(UsageError, match="is a file"):
            segment(net, tmp_path / "a.png", tmp_path / "file")

    def test_number_of_class_names(self, tmp_path: Path) -> None:
        segmenter = Segmenter(fcnproto.load(*colour_net(tmp_path)), classes=["a", "b"])
        with pytest.raises(UsageError, match="2 class names are given, but blob 'score' has 3"):
            segmenter(Image.new("RGB", (4, 3)))


class TestBatches:
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "in"
        folder.mkdir()
        rng = np.random.default_rng(0)
        for number in range(9):
            size = [(12, 17), (20, 9), (12, 17)][number % 3]
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        (folder / "4a.png").write_bytes(b"no image")
        return folder

    @pytest.mark.parametrize("optimized", [False, True])
    def test_labels_are_those_of_single_images(self, tmp_path: Path, optimized: bool) -> None:
        net = fcnproto.load(*small_fcn(tmp_path))
        folder = self.folder(tmp_path)
        batches: list[int] = []
        segmenter = Segmenter(fcnproto.optimize(net) if optimized else net, probabilities=True)
        run = segmenter.run
        segmenter.run = lambda scenes: batches.append(len(scenes)) or run(scenes)  # type: ignore[method-assign, func-returns-value]
        together = list(segment(segmenter, folder, tmp_path / "together"))
        assert batches == [6, 3]
        alone = list(segment(Segmenter(net, batch=1, probabilities=True), folder, tmp_path / "alone", workers=1))
        assert [result.source.name for result in together] == [
            f"{n}.png" for n in ("0", "1", "2", "3", "4", "4a", *"5678")
        ]
        for ours, theirs in zip(together, alone, strict=True):
            assert ours.error == theirs.error
            for a, b in zip(ours.segmentations, theirs.segmentations, strict=True):
                assert (a.labels == b.labels).all()
                assert a.probabilities is not None
                np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-6)

    def test_size_of_a_batch(self, tmp_path: Path) -> None:
        segmenter = Segmenter(fcnproto.load(*small_fcn(tmp_path)))
        sizes = {(256, 256): 4, (334, 500): 1, (500, 500): 1, (2000, 2000): 1, (64, 64): 16}
        for (height, width), most in sizes.items():
            assert segmenter.most_at_once(segmenter.prepare({"data": Image.new("RGB", (width, height))})) == most
        segmenter.batch = 7
        assert segmenter.most_at_once(segmenter.prepare({"data": Image.new("RGB", (500, 500))})) == 7
        with pytest.raises(UsageError, match="batch must be 1 or more"):
            Segmenter(segmenter.net, batch=0)

    @pytest.mark.parametrize(
        "layer",
        [
            'type: "BatchNorm" batch_norm_param { use_global_stats: false }',
            'type: "Reshape" reshape_param { shape { dim: 1 dim: 0 dim: 0 dim: 0 } }',
            'type: "Concat" concat_param { concat_dim: 0 }',
            'type: "Softmax" softmax_param { axis: 0 }',
        ],
    )
    def test_nets_that_mix_images_get_one_at_a_time(self, tmp_path: Path, layer: str) -> None:
        net = fcnproto.load(colour_net(tmp_path, f'layer {{ name: "mix" bottom: "score" top: "mix" {layer} }}')[0])
        segmenter = Segmenter(net, blobs=["mix"], batch=8)
        assert segmenter.most_at_once(segmenter.prepare({"data": Image.new("RGB", (9, 9))})) == 1
        segmenter = Segmenter(net, blobs=["score"], batch=8)
        assert segmenter.most_at_once(segmenter.prepare({"data": Image.new("RGB", (9, 9))})) == 8

    def test_one_that_fails_fails_alone(self, tmp_path: Path) -> None:
        net = fcnproto.load(*colour_net(tmp_path))
        scenes = [Segmenter(net).prepare({"data": Image.new("RGB", (9, 9), colour)}) for colour in ("red", "blue")]
        scenes[0].values["data"].fill_(float("nan"))
        first, second = Segmenter(net).run(scenes)
        assert "no numbers" in str(first)
        assert isinstance(second, list)

    def test_memory_that_does_not_suffice_for_a_batch(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        net = fcnproto.load(*small_fcn(tmp_path))
        segmenter = Segmenter(net)
        scenes = [segmenter.prepare({"data": Image.new("RGB", (9, 9), colour)}) for colour in ("red", "blue")]
        whole = segmenter._scores

        def scores(given: list[Scene], precision: str) -> dict[str, torch.Tensor]:
            if len(given) > 1:
                raise DataError("too many pixels for the memory")
            return whole(given, precision)

        monkeypatch.setattr(segmenter, "_scores", scores)
        assert all(isinstance(found, list) for found in segmenter.run(scenes))


class TestPrecision:
    def test_agreement_is_of_labels(self, tmp_path: Path) -> None:
        net = fcnproto.load(*colour_net(tmp_path))
        # 199.5 and 199.75 are one number in bfloat16: red wins in float32, blue (the first) in bfloat16
        values = np.zeros((10, 10, 3), np.uint8)
        values[:3], values[3:] = (200, 0, 200), (0, 100, 0)
        how = {"data": Preprocessing("bgr", np.array([0.5, 0, 0.25]))}
        segmenter = Segmenter(net, preprocessing=how, precision="bf16")
        (found,) = segmenter(Image.fromarray(values), compare=True)
        assert found.agreement == pytest.approx(0.7)
        (found,) = segmenter(Image.fromarray(values))
        assert found.agreement is None
        (found,) = Segmenter(net, preprocessing=how)(Image.fromarray(values), compare=True)
        assert found.agreement is None
        assert (found.labels[:3] == 2).all()

    def test_of_an_optimized_net(self, tmp_path: Path) -> None:
        net = fcnproto.load(*small_fcn(tmp_path))
        segmenter = Segmenter(fcnproto.optimize(net, precision="bf16"))
        assert segmenter.precision == "bf16"
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
        (found,) = segmenter(image, compare=True)
        (exact,) = Segmenter(net)(image)
        assert found.agreement == (found.labels == exact.labels).mean()

    def test_images_to_compare_are_spread(self, tmp_path: Path) -> None:
        net = fcnproto.load(*colour_net(tmp_path))
        for number in range(9):
            stripes(tmp_path / f"{number}.png")
        images = [tmp_path / f"{number}.png" for number in range(9)]
        segmenter = Segmenter(net, preprocessing=PLAIN, precision="bf16")
        results = list(segment(segmenter, images, tmp_path / "out", compared=3))
        assert [r.index for r in results if r.segmentations[0].agreement is not None] == [1, 4, 7]
        results = list(segment(segmenter, images, tmp_path / "out", compared=0))
        assert all(result.segmentations[0].agreement is None for result in results)

    def test_unknown(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="precision 'int8' is unknown"):
            Segmenter(fcnproto.load(*colour_net(tmp_path)), precision="int8")


class TestRecognising:
    def test_zoo_by_folder_and_by_weights(self, tmp_path: Path) -> None:
        record = zoo_record("models/voc-fcn16s/deploy.prototxt")
        assert record is not None
        assert record.name == "voc-fcn16s"
        record = zoo_record(tmp_path / "net.prototxt", tmp_path / "siftflow-fcn32s-heavy.caffemodel")
        assert record is not None
        assert record.name == "siftflow-fcn32s"
        assert zoo_record(tmp_path / "net.prototxt", tmp_path / "my.caffemodel") is None

    def test_names_of_files_are_not_enough(self, tmp_path: Path) -> None:
        """Neither a published net's prototxt under its name, nor weights called as the published ones."""
        (tmp_path / "voc-fcn8s").mkdir()
        published = tmp_path / "voc-fcn8s" / "deploy.prototxt"
        published.write_bytes(zoo.path("voc-fcn8s", "deploy").read_bytes())
        net = fcnproto.Net(read_net(published), fill=False, file=published)
        net._copied.append(tmp_path / "fcn8s-heavy-pascal.caffemodel")
        assert record_of(net) is None and net.meta.classes == tuple(f"class {label}" for label in range(21))
        assert "nobody says the names" in net.meta.source and net.meta.inputs[0].mean == zoo.info("voc-fcn8s").mean
        place = zoo.path("voc-fcn8s", "deploy")
        record = record_of(fcnproto.Net(read_net(place), fill=False, file=place))
        assert record is not None and record.name == "voc-fcn8s"
        (tmp_path / "fcn-mini.prototxt").write_bytes(zoo.path("fcn-mini", "deploy").read_bytes())
        weights = tmp_path / "copied.caffemodel"
        weights.write_bytes(zoo.path("fcn-mini", "weights").read_bytes())
        copy = fcnproto.load(tmp_path / "fcn-mini.prototxt")
        assert record_of(copy) is None
        record = record_of(fcnproto.load(tmp_path / "fcn-mini.prototxt", weights))
        assert record is not None and record.name == "fcn-mini"
        loaded = Segmenter(fcnproto.optimize(fcnproto.load("fcn-mini")))
        assert loaded.names("score", 11) == zoo.info("fcn-mini").classes

    def test_layers_tell_what_images_need(self, tmp_path: Path) -> None:
        definition = read_net(zoo.path("fcn-mini", "train"))
        for layer in definition.layer:  # the same net with other classes, made from its training's prototxt
            if "score" in layer.name and layer.convolution_param.num_output:
                layer.convolution_param.num_output = 5
        net = fcnproto.Net(definition, fill=False)
        found = similar_record(net)
        assert found is not None and found.name == "fcn-mini"
        assert similar_record(fcnproto.load(colour_net(tmp_path)[0])) is None
        # Colour and HHA go through the same layers, less another mean.
        assert similar_record(fcnproto.Net(read_net(zoo.path("nyud-fcn32s-hha", "deploy")), fill=False)) is None

    @pytest.mark.parametrize("kind", ["Data", "ImageData", "WindowData"])
    def test_data_layers_without_transform_take_nothing_off(self, tmp_path: Path, kind: str) -> None:
        settings = {
            "Data": 'data_param { source: "no_lmdb" batch_size: 1 }',
            "ImageData": 'image_data_param { source: "no.txt" batch_size: 1 }',
            "WindowData": 'window_data_param { source: "no.txt" batch_size: 1 scale: 0.5 }'
            " transform_param { crop_size: 8 }",
        }[kind]
        tops = 'top: "data" top: "label"' if kind != "Data" else 'top: "data"'
        (tmp_path / "n.prototxt").write_text(
            f'layer {{ name: "d" type: "{kind}" {tops} {settings} }}'
            'layer { name: "shift" type: "Power" bottom: "data" top: "shifted" power_param { shift: -116 } }'
        )
        net = fcnproto.load(tmp_path / "n.prototxt", shapes={"data": (1, 3, 8, 8)})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            how = preprocessing_of(net, "data")
        assert (how.kind, how.mean, how.why) == ("bgr", None, "from layer 'd'")
        assert how.scale == (0.5 if kind == "WindowData" else 1)

    def test_class_names(self) -> None:
        record = fcnproto.zoo.info("siftflow-fcn8s")
        sift_flow = of_record(record, "known")
        assert class_names("score_geo", 3, sift_flow) == ("sky", "horizontal", "vertical")
        assert class_names("score_sem", 33, sift_flow) == record.classes
        assert class_names("score", 21, sift_flow) is None
        # As many classes as a published net has are no reason to have its names.
        assert all(class_names("score", count, Meta()) is None for count in (3, 11, 21, 33, 40, 60))

    def test_as_many_classes_as_a_published_net(self, tmp_path: Path) -> None:
        (tmp_path / "n.prototxt").write_text(
            'layer { name: "d" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 6 dim: 9 } } }'
            'layer { name: "s" type: "Convolution" bottom: "data" top: "score" convolution_param { num_output: 21'
            " kernel_size: 1 } }"
        )
        segmenter = Segmenter(fcnproto.load(tmp_path / "n.prototxt"))
        image = np.zeros((6, 9, 3), np.uint8)
        with pytest.warns(fcnproto.FcnprotoWarning, match="21 classes, as PASCAL VOC has, .* class 0 to class 20"):
            (found,) = segmenter(image)
        assert found.names is None and found.shares() == {"class 0": 1.0}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            segmenter(image)  # said once
            Segmenter(segmenter.net, classes=[str(index) for index in range(21)])(image)

    def test_background(self) -> None:
        assert background_labels(None) == (0,)
        assert background_labels(["background", "cat"]) == (0,)
        assert background_labels(["wall", "floor"]) == ()

    def test_names_in_files(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("0: background\n1: cat\n\n 2: floor mat\n")
        assert read_class_names(tmp_path / "a.txt") == ("background", "cat", "floor mat")
        (tmp_path / "b.txt").write_text("\n")
        with pytest.raises(DataError, match="no class names"):
            read_class_names(tmp_path / "b.txt")
        with pytest.raises(DataError, match=r"c\.txt"):
            read_class_names(tmp_path / "c.txt")

    def test_assumed(self, tmp_path: Path) -> None:
        how = preprocessing_of(fcnproto.load(colour_net(tmp_path)[0]), "data")
        assert (how.kind, how.why) == ("bgr", "assumed")

    @pytest.mark.skipif(not (SHARED / "fcn").is_dir(), reason="the published prototxts are not here")
    def test_published_nets(self) -> None:
        """Inputs, scores and preprocessing of late fusion, whose data layer gives two images and a label."""
        net = fcnproto.Net(read_net(SHARED / "fcn" / "nyud-fcn32s-color-hha" / "trainval.prototxt"), fill=False)
        segmenter = Segmenter(net)
        assert (segmenter.blobs, segmenter.inputs) == (["score"], ["color", "hha"])
        color, hha = segmenter.preprocessing["color"], segmenter.preprocessing["hha"]
        assert (color.kind, hha.kind) == ("bgr", "rgb")
        assert color.mean is not None
        assert hha.mean is not None
        assert (color.mean.tolist(), hha.mean.tolist()) == ([116.190, 97.203, 92.318], [132.431, 94.076, 118.477])
