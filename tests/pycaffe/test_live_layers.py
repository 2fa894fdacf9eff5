"""Python layers on live blobs, and the rest of the module: specifications, coordinate maps, classifiers, drawings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fcnproto
import fcnproto.pycaffe as caffe
from fcnproto.errors import LayerError, UsageError
from fcnproto.pycaffe import layers as L
from fcnproto.pycaffe import params as P
from fcnproto.pycaffe.coord_map import coord_map_from_to, crop

MODULE = """
import caffe
import numpy as np

class Twice(caffe.Layer):
    def setup(self, bottom, top):
        self.blobs.add_blob(1, 2)
        self.blobs[0].data[...] = 1
        self.calls = []
    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)
    def forward(self, bottom, top):
        self.calls.append(self.phase)
        top[0].data[...] = 2 * bottom[0].data + self.blobs[0].data[0, 0]
        bottom[0].data.flat[0] = -7                 # layers may write to what they read
    def backward(self, top, propagate_down, bottom):
        if propagate_down[0]:
            bottom[0].diff[...] = 2 * top[0].diff
        self.blobs[0].diff[0, 0] += top[0].diff.sum()

class Rois(caffe.Layer):                            # shapes its tops in setup and forward alone
    def setup(self, bottom, top):
        top[0].reshape(1, 4)
        self.rows = 1
    def reshape(self, bottom, top):
        pass
    def forward(self, bottom, top):
        self.rows += 1
        top[0].reshape(self.rows, 4)
        top[0].data[...] = self.rows

class Fails(Twice):
    def forward(self, bottom, top):
        raise KeyError("of the user's")

class FailsEarly(Twice):
    def setup(self, bottom, top):
        self.value = float(self.param_str)

class OfTheTime(Twice):                             # as Caffe of 2015 had it
    def setup(self, bottom, top):
        Twice.setup(self, bottom, top)
        assert self.param_str_ == self.param_str
        self.key = str(self.phase), '%d' % self.phase, '{}'.format(self.phase)
"""
NET = """force_backward: true
layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 2 dim: 3 }} }} }}
layer {{ name: "py" type: "Python" bottom: "x" top: "y" python_param {{ module: "own_layers_of_test" layer: "{layer}" param_str: "" }} }}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_layers_of_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def net(layer: str, phase: int = caffe.TRAIN) -> caffe.Net:
    Path("net.prototxt").write_text(NET.format(layer=layer))
    return caffe.Net("net.prototxt", phase)


def test_python_layers_work_on_live_blobs(folder: Path) -> None:
    made = net("Twice")
    made.blobs["x"].data[...] = 3
    assert (made.forward()["y"] == 7).all() and made.blobs["x"].data[0, 0] == -7
    layer = made.layers[1]
    assert layer.type == "Python" and layer.calls == [0] and layer is made.layer_dict["py"]
    assert np.shares_memory(layer.blobs[0].data, made.params["py"][0].data)
    made.blobs["y"].diff[...] = 5
    made.backward()
    made.backward()
    assert (made.blobs["x"].diff == 10).all() and made.params["py"][0].diff.tolist() == [[60, 0]]
    made.params["py"][0].data[...] = 9
    made.save("w")
    other = caffe.Net("net.prototxt", caffe.TEST, weights="w")
    assert other.forward(x=np.ones((2, 3)))["y"][0, 0] == 11 and other.layers[1].calls == [1]
    other.blobs["x"].reshape(5, 1)
    other.reshape()
    assert other.blobs["y"].shape == (5, 1)


def test_names_that_caffe_had_in_2015(folder: Path) -> None:
    assert net("OfTheTime", caffe.TEST).layers[1].key == ("TEST", "1", "1")
    assert net("OfTheTime").layers[1].key == ("TRAIN", "0", "0")


def test_layers_that_shape_their_tops_by_themselves(folder: Path) -> None:
    text = 'layer { name: "r" type: "Python" top: "r" python_param { module: "own_layers_of_test" layer: "Rois" } }'
    text += 'layer { name: "p" type: "Power" bottom: "r" top: "p" power_param { scale: 2 } }'
    (folder / "net.prototxt").write_text(text)
    made = caffe.Net("net.prototxt", caffe.TEST)
    assert made.blobs["r"].shape == made.blobs["p"].shape == (1, 4)
    assert (made.forward()["p"] == np.full((2, 4), 4)).all() and (made.forward()["p"] == np.full((3, 4), 6)).all()


def test_what_a_layer_raises_comes_out_as_that_too(folder: Path) -> None:
    made = net("Fails")
    for kind in (KeyError, LayerError):
        with pytest.raises(kind, match="layer 'py'.*own_layers_of_test.py, line"):
            made.forward()
    with pytest.raises(ValueError, match="could not convert"):
        net("FailsEarly")


def test_a_module_of_ones_own_comes_before_the_published_one(folder: Path) -> None:
    """A `voc_layers.py` beside the script may be another than Berkeley's."""
    from fcnproto.data.python_layer import register_python_layer, registered_python_layer

    known = registered_python_layer("voc_layers", "VOCSegDataLayer")
    assert known is not None
    (folder / "voc_layers.py").write_text(MODULE.replace("class Rois", "class VOCSegDataLayer"))
    text = 'layer { name: "r" type: "Python" top: "r" python_param { module: "voc_layers" layer: "VOCSegDataLayer" } }'
    (folder / "net.prototxt").write_text(text)
    try:
        assert (caffe.Net("net.prototxt", caffe.TEST).forward()["r"] == 2).all()
    finally:
        register_python_layer("voc_layers", "VOCSegDataLayer")(known)


def test_specifications_and_maps() -> None:
    spec = caffe.NetSpec()
    spec.data, spec.label = L.DummyData(shape=[{"dim": [1, 3, 20, 20]}, {"dim": [1, 1, 1, 1]}], ntop=2)
    spec.conv = L.Convolution(spec.data, num_output=2, kernel_size=3, pad=10)
    spec.relu = L.ReLU(spec.conv, in_place=True)
    spec.pool = L.Pooling(spec.relu, pool=P.Pooling.MAX, kernel_size=2, stride=2)
    spec.up = L.Deconvolution(spec.pool, convolution_param={"num_output": 2, "kernel_size": 4, "stride": 2})
    spec.score = crop(spec.up, spec.data)
    axis, scale, shift = coord_map_from_to(spec.up, spec.data)
    assert (axis, scale.tolist(), shift.tolist()) == (1, [1.0], [-10.0])
    assert spec.to_proto().layer[-1].crop_param.offset == [10] and coord_map_from_to(spec.relu, spec.conv) == (
        None,
        1,
        0,
    )
    assert "Convolution" in str(caffe.to_proto(spec.conv))
    with pytest.raises(TypeError, match="^Silence input 1 is not a Top"):
        L.Silence(spec.data, (spec.label,), ntop=0)
    spec.flat = L.InnerProduct(spec.up, num_output=1)
    with pytest.raises(RuntimeError):
        coord_map_from_to(spec.flat, spec.data)
    spec.small = L.Pooling(spec.up, kernel_size=3, stride=3)
    with pytest.raises(AssertionError):
        crop(spec.small, spec.data)


CLASSES = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 3 dim: 3 dim: 8 dim: 8 } } }
layer { name: "pool" type: "Pooling" bottom: "data" top: "pool" pooling_param { pool: AVE global_pooling: true } }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip" inner_product_param { num_output: 3 } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""


@pytest.fixture
def classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A net that says which of three colours (BGR, 0..255 less 100) an image has most of."""
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(CLASSES)
    made = caffe.Net("net.prototxt", caffe.TEST)
    made.params["ip"][0].data[...] = 0.1 * np.eye(3)
    made.save("w.caffemodel")
    return "net.prototxt", "w.caffemodel"


def test_classifier(classes: tuple[str, str]) -> None:
    classifier = caffe.Classifier(
        *classes, image_dims=(10, 12), mean=np.full(3, 100), raw_scale=255, channel_swap=(2, 1, 0)
    )
    images = [np.zeros((20, 30, 3), np.float32) for _ in range(2)]
    images[0][:, :, 0] = 1  # red
    images[1][:, :, 2] = 1  # blue
    for oversample in (True, False):
        found = classifier.predict(images, oversample)
        assert found.shape == (2, 3) and found.argmax(1).tolist() == [2, 0] and np.allclose(found.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("context", [None, 2])
def test_detector(classes: tuple[str, str], context: int | None) -> None:
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:, :20, 0], pixels[:, 20:, 1] = 255, 255
    Image.fromarray(pixels).save("image.png")
    detector = caffe.Detector(
        *classes, mean=np.full(3, 100), raw_scale=255, channel_swap=(2, 1, 0), context_pad=context
    )
    windows = np.array([[2, 3, 14, 13], [4, 26, 20, 39]])
    found = detector.detect_windows([("image.png", windows)])
    assert [int(entry["prediction"].argmax()) for entry in found] == [2, 1]
    assert found[0]["filename"] == "image.png" and (found[1]["window"] == windows[1]).all()
    assert detector.detect_windows([]) == []
    with pytest.raises(UsageError, match="detect_windows"):
        detector.detect_selective_search(["image.png"])


def test_drawings_timers_and_blobs_in_messages(classes: tuple[str, str], tmp_path: Path) -> None:
    from fcnproto.schema.text import read_net

    param = read_net("net.prototxt")
    for name in ("net.png", "net.svg"):
        caffe.draw.draw_net_to_file(param, name, "TB", caffe.TEST)
        assert (tmp_path / name).stat().st_size > 500
    param.layer[0].type = "Data"  # whose sizes a database tells that isn't there
    param.layer[0].data_param.source = "nowhere"
    caffe.draw.draw_net_to_file(param, "data.svg")
    assert "nowhere" not in (tmp_path / "data.svg").read_text() and "Data" in (tmp_path / "data.svg").read_text()
    with pytest.raises(UsageError, match="net.pdf"):
        caffe.draw.draw_net_to_file(param, "net.pdf")
    with pytest.raises(UsageError):
        caffe.draw.get_pydot_graph(param, "LR")
    timer = caffe.Timer()
    assert not timer.has_run_at_least_once
    timer.start()
    timer.stop()
    assert timer.has_run_at_least_once and timer.us >= timer.ms >= timer.seconds >= 0
    blob = caffe.proto.caffe_pb2.BlobProto()
    blob.ParseFromString(caffe.io.array_to_blobproto(np.ones((1, 2))).SerializeToString())
    assert caffe.io.blobproto_to_array(blob).shape == (1, 2) and fcnproto.schema.caffe_pb2 is caffe.proto.caffe_pb2
