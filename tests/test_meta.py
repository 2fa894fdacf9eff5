"""What belongs to a net: where it is known from, and that files which are written carry it on."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tokenize
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_nets import colour_net, small_fcn

import fcnproto
from fcnproto import export, zoo
from fcnproto import meta as metas
from fcnproto.cli._main import main
from fcnproto.errors import DataError
from fcnproto.images import Preprocessing
from fcnproto.meta import ByBlob, ImageInput, Meta, ScoreOutput
from fcnproto.net import Net
from fcnproto.net.tensor_files import read_metadata
from fcnproto.schema.text import read_net

MINI = zoo.info("fcn-mini")
NAMES = ("b", 'g "quoted"\n', "r\u202e")


def told(**fields: object) -> Meta:
    how = Preprocessing("rgb", np.array([1.0, 2.0, 3.5]), 0.25, "given")
    return Meta("own", ByBlob([ImageInput.of("data", how)]), ByBlob([ScoreOutput("score", NAMES, True)]), **fields)  # type: ignore[arg-type]


class TestRecognition:
    def test_a_copied_published_net_keeps_its_mean(self, tmp_path: Path) -> None:
        """By its layers, under any name; the names of classes need more than that, and it is said."""
        for name in ("voc-fcn8s", "pascalcontext-fcn32s", "siftflow-fcn16s"):
            file = tmp_path / f"{name}.prototxt"
            shutil.copy(zoo.path(name, "deploy"), file)
            net = Net(read_net(file), file=file, fill=False)
            assert net.meta.inputs["data"].mean == zoo.info(name).mean
            assert all(one == f"class {label}" for label, one in enumerate(net.meta.classes)) and net.meta.classes
            assert "nobody says the names of its classes" in net.meta.source and not net.meta.scores

    def test_by_the_name(self) -> None:
        file = zoo.path("voc-fcn8s", "deploy")
        meta = Net(read_net(file), file=file, fill=False).meta
        record = zoo.info("voc-fcn8s")
        assert (meta.name, meta.classes, meta.scores) == ("voc-fcn8s", record.classes, record.scores)
        assert meta.palette == record.palette and "loaded as the zoo's voc-fcn8s" in meta.source
        data = meta.inputs[0]
        assert (data.channels, data.order, data.mean, data.scale) == (3, "BGR", record.mean, 1.0)

    def test_by_the_weights(self, tmp_path: Path) -> None:
        """Bytes count, whatever their file is called; one other byte, and they are some net's."""
        shutil.copy(zoo.path("fcn-mini", "deploy"), tmp_path / "n.prototxt")
        shutil.copy(zoo.path("fcn-mini", "weights"), tmp_path / "any.caffemodel")
        net = fcnproto.load(tmp_path / "n.prototxt", tmp_path / "any.caffemodel")
        assert net.meta.classes == MINI.classes and net.meta.scores == MINI.scores
        net.params["conv1_1"][0].data[0, 0, 0, 0] += 1
        net._told = net._told and ()
        other = tmp_path / "fcn-mini.caffemodel"
        net.save(other)
        metas.beside(other).unlink()
        assert fcnproto.load(tmp_path / "n.prototxt", other).meta.classes[0] == "class 0"

    def test_remembered_weights(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Weights that were fetched are known by their hash wherever they lie."""
        from fcnproto.zoo import cache

        monkeypatch.setenv(cache.PLACE, str(tmp_path / "cache"))
        (tmp_path / "cache").mkdir()
        model, weights = small_fcn(tmp_path)
        shutil.copy(weights, tmp_path / "cache" / "w.caffemodel")
        row = {"file": "w.caffemodel", "size": weights.stat().st_size, "sha256": cache.sha256(weights), "url": "u"}
        (tmp_path / "cache" / cache.RECORD).write_text(json.dumps({"voc-fcn8s": row}))
        assert zoo.weights_of(weights) == "voc-fcn8s" and zoo.path("voc-fcn8s", "weights").name == "w.caffemodel"
        assert fcnproto.load(model, weights).meta.classes[0] == "class 0"  # its layers are not that net's
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        assert zoo.weights_of(weights) is None

    def test_nets_of_ones_own(self, tmp_path: Path) -> None:
        model, weights = colour_net(tmp_path)
        meta = fcnproto.load(model, weights).meta
        assert meta.classes == ("class 0", "class 1", "class 2") and meta.inputs[0].why == "assumed"
        assert not metas.beside(weights).exists()  # nothing is known that could be written


class TestFiles:
    @pytest.mark.parametrize("name", ["w.caffemodel", "w.caffemodel.h5", "w.safetensors"])
    def test_saved_weights_carry_it(self, tmp_path: Path, name: str) -> None:
        net = fcnproto.load(*colour_net(tmp_path))
        net.meta = told()
        net.save(tmp_path / name)
        assert metas.beside(tmp_path / name).exists() == (not name.endswith(".safetensors"))
        again = fcnproto.load(tmp_path / "colours.prototxt", tmp_path / name)
        assert again.meta == net.meta and again.meta.classes == NAMES and f"said in {name}" in again.meta.source
        copied = fcnproto.load(tmp_path / "colours.prototxt")
        copied.copy_from(tmp_path / name)
        assert copied.meta == net.meta
        assert (again.preprocess(np.full((2, 2, 3), 9, np.uint8))["data"][0, :, 0, 0].numpy() == [2, 1.75, 1.375]).all()
        image = Image.fromarray(np.zeros((6, 8, 3), np.uint8))
        assert again.segment(image)[0].names == NAMES

    @pytest.mark.parametrize("name", ["w.pt", "w.py", "w.pt2", "w.onnx"])
    def test_converted_files_carry_it(self, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """In the file itself, with the endings that --argmax gives a net too; a state_dict brings it home."""
        if name.endswith(".onnx"):
            pytest.importorskip("onnxscript")
        model, weights = colour_net(tmp_path)
        net = fcnproto.load(model, weights)
        net.meta = told()
        net.save(weights)
        ends = [] if name == "w.pt" else ["--argmax"]
        assert main(["convert", str(model), str(weights), str(tmp_path / name), *ends]) == 0
        assert export.read_meta(tmp_path / name) == net.meta
        if name == "w.pt":
            state = torch.load(tmp_path / name, weights_only=True)
            assert state._metadata[""][metas.KEY] == metas.to_text(net.meta)
            plain = fcnproto.load(model)
            plain.load_state_dict(state)
            assert main(["convert", str(model), str(tmp_path / name), str(tmp_path / "home.caffemodel")]) == 0
            assert fcnproto.load(model, tmp_path / "home.caffemodel").meta == net.meta
        if name == "w.onnx":
            monkeypatch.setitem(sys.modules, "onnx", None)
            with pytest.raises(fcnproto.UsageError, match=r"needs the package onnx: pip install 'fcnproto\[onnx\]'"):
                export.read_meta(tmp_path / name)

    def test_no_name_says_the_encoding_of_a_module(self, tmp_path: Path) -> None:
        """Python looks for one in the comments of the first two lines; in UTF-7 a name could end its docstring."""
        model, weights = colour_net(tmp_path)
        model.write_text(re.sub('name: "[^"]*"', 'name: "+AAo-raise SystemExit+AAo-"', model.read_text(), count=1))
        net = fcnproto.load(model, weights)
        net.meta = replace(told(), name="coding: utf-7 ")
        net.save(weights)
        assert main(["convert", str(model), str(weights), str(tmp_path / "w.py")]) == 0
        with tokenize.open(tmp_path / "w.py") as source:
            assert source.encoding == "utf-8"
        assert export.read_meta(tmp_path / "w.py") == net.meta

    @pytest.mark.parametrize("name", ["w.pt", "w.pt2", "w.onnx", "w.safetensors"])
    def test_converted_files_that_say_nothing(self, tmp_path: Path, name: str) -> None:
        if name.endswith(".onnx"):
            pytest.importorskip("onnx")
        else:
            model, weights = colour_net(tmp_path)
            assert main(["convert", str(model), str(weights), str(tmp_path / name)]) == 0
            assert export.read_meta(tmp_path / name) is None
        (tmp_path / name).write_bytes(b"damaged")
        with pytest.raises((DataError, fcnproto.WeightsError), match=name):
            export.read_meta(tmp_path / name)
        with pytest.raises(DataError, match="no such file"):
            export.read_meta(tmp_path / f"absent-{name}")

    def test_no_absolute_path(self, tmp_path: Path) -> None:
        net = fcnproto.load(zoo.path("fcn-mini", "deploy"), zoo.path("fcn-mini", "weights"))
        net.save(tmp_path / "w.caffemodel")
        net.save(tmp_path / "w.safetensors")
        again = fcnproto.load(tmp_path / "w.caffemodel" and zoo.path("fcn-mini", "deploy"), tmp_path / "w.caffemodel")
        texts = [
            metas.beside(tmp_path / "w.caffemodel").read_text(),
            *read_metadata(tmp_path / "w.safetensors").values(),
        ]
        texts += [metas.comment(again.meta), again.meta.source]
        assert all(str(tmp_path) not in text and os.sep + "work" not in text for text in texts)
        assert not any(str(zoo.path("fcn-mini", "deploy").parent) in text for text in texts)

    def test_a_stale_word_goes(self, tmp_path: Path) -> None:
        model, weights = colour_net(tmp_path)
        known = fcnproto.load(model)
        known.meta = told()
        known.save(weights)
        fcnproto.load(model).save(weights)
        assert not metas.beside(weights).exists()
        metas.beside(weights).write_text('{"a file": "of somebody else\'s"}')
        known.save(weights)
        assert "somebody" in metas.beside(weights).read_text()

    def test_mean_images(self, tmp_path: Path) -> None:
        mean = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)
        meta = Meta("", ByBlob([ImageInput.of("data", Preprocessing("bgr", mean, why="given"))]))
        again = metas.from_text(metas.to_text(meta), "x")
        assert again is not None and again == meta and (again.inputs[0].mean == mean).all()
        (tmp_path / "n.prototxt").write_text(metas.comment(meta) + 'name: "n"\n')
        short = metas.from_comment(tmp_path / "n.prototxt")  # averages do in a comment
        assert short is not None and short.inputs[0].mean == pytest.approx((9.5, 29.5, 49.5))

    def test_comments(self, tmp_path: Path) -> None:
        model, _ = colour_net(tmp_path)
        text = metas.comment(told())
        assert all(line.startswith("#") and len(line) <= 120 and line.isascii() for line in text.splitlines())
        model.write_text(text + model.read_text())
        assert fcnproto.load(model).meta.classes == NAMES
        assert main(["upgrade", str(model), str(tmp_path / "new.prototxt")]) == 0
        assert metas.from_comment(tmp_path / "new.prototxt") == told()

    @pytest.mark.parametrize(
        "change",
        [
            {"outputs": [{"blob": "score", "classes": "abc"}]},
            {"outputs": [{"blob": "score", "classes": [["a"]] * 3}]},
            {"outputs": [{"blob": "score", "classes": ["a" * 2000] * 3}]},
            {"inputs": [{"blob": "data", "kind": "../x", "order": "BGR"}]},
            {"inputs": [{"blob": "data", "kind": "bgr", "order": "BGR", "mean": [float("nan")] * 3}]},
            {"inputs": [{"blob": "data", "kind": "bgr", "order": "BGR", "mean": [1.0, 2.0]}]},
            {"inputs": [{"blob": "data", "kind": "bgr", "order": "BGR", "scale": True}]},
            {
                "inputs": [
                    {"blob": "data", "kind": "bgr", "order": "BGR", "mean": {"shape": [3, 9, 9], "float32": "AAAA"}}
                ]
            },
            {"inputs": 3},
            {"scores": [{"data": "x", "metrics": {"a": "b"}, "source": "", "verified": True}]},
        ],
    )
    def test_damaged_words_are_left_out(self, tmp_path: Path, change: dict[str, object]) -> None:
        model, weights = colour_net(tmp_path)
        text = json.dumps({"format": metas.KEY, **change})
        with pytest.raises(DataError, match="damaged"):
            metas.from_text(text, "x")
        metas.beside(weights).write_text(text)
        with pytest.warns(fcnproto.FcnprotoWarning, match=r"colours\.caffemodel\.json: .*; it is left out"):
            net = fcnproto.load(model, weights)
        assert net.meta.classes[0] == "class 0"

    def test_words_about_another_net(self, tmp_path: Path) -> None:
        model, weights = small_fcn(tmp_path)  # five classes
        metas.write_beside(weights, told())
        net = fcnproto.load(model, weights)
        assert net.meta.classes == tuple(f"class {label}" for label in range(5))
        assert metas.from_text("{" * 100_000 if False else "[]", "x") is None
        with pytest.raises(DataError, match="no readable JSON"):
            metas.from_text("[" * 100_000, "x")


class TestCommands:
    def test_convert_keeps_it(self, tmp_path: Path) -> None:
        for name in ("a.caffemodel", "b.safetensors", "c.caffemodel.h5", "d.py"):
            assert main(["convert", "fcn-mini", "fcn-mini", str(tmp_path / name)]) == 0
        shutil.copy(zoo.path("fcn-mini", "deploy"), tmp_path / "n.prototxt")
        for name in ("a.caffemodel", "b.safetensors", "c.caffemodel.h5"):
            meta = fcnproto.load(tmp_path / "n.prototxt", tmp_path / name).meta
            assert meta.classes == MINI.classes and meta.inputs[0].mean == MINI.mean
        found = metas.from_text(read_metadata(tmp_path / "d.safetensors")[metas.KEY], "d")
        assert found is not None and found.classes == MINI.classes

    def test_surgery_keeps_the_mean(self, tmp_path: Path) -> None:
        new, weights = tmp_path / "new.prototxt", tmp_path / "new.caffemodel"
        line = ["surgery", "set-classes", "fcn-mini", "fcn-mini", "--classes", "4", "-o", str(new)]
        assert main([*line, "--output-weights", str(weights)]) == 0
        for net in (fcnproto.load(new), fcnproto.load(new, weights)):
            assert net.meta.inputs[0].mean == MINI.mean and "said in" in net.meta.inputs[0].why
            assert net.meta.classes == ("class 0", "class 1", "class 2", "class 3")

    def test_snapshots_write_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        model, _ = colour_net(tmp_path)
        model.write_text(metas.comment(told()) + model.read_text())
        Path("s.prototxt").write_text(f'net: "{model}" base_lr: 0.1 lr_policy: "fixed" snapshot_prefix: "snap"')
        fcnproto.Solver("s.prototxt").snapshot()
        assert Path("snap_iter_0.caffemodel").exists() and not list(tmp_path.glob("snap*model.json"))


def test_finetuned_nets_keep_mean_and_classes(tmp_path: Path) -> None:
    from fcnproto.finetune.nets import first_weights, read_base

    (tmp_path / "in").mkdir()
    shutil.copy(zoo.path("fcn-mini", "train"), tmp_path / "in" / "mine.prototxt")
    base = read_base(str(tmp_path / "in" / "mine.prototxt"), 2)
    net, _, _ = first_weights(base, {"": zoo.path("fcn-mini", "weights")}, {"score": ("cat", "dog")})
    assert net.meta.classes == ("cat", "dog") and net.meta.inputs[0].mean == MINI.mean
    net.save(tmp_path / "w.safetensors")
    shutil.copy(zoo.path("fcn-mini", "deploy"), tmp_path / "n.prototxt")
    assert metas.from_text(read_metadata(tmp_path / "w.safetensors")[metas.KEY], "w") == net.meta.known
