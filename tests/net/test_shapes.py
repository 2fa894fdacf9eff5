"""What loading does with data sources: nothing, unless a parameter's shape depends on what only they know."""

from __future__ import annotations

import builtins
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from data_layers import write_images, write_lmdb

import fcnproto
from fcnproto.data import PythonLayer, register_python_layer
from fcnproto.errors import FcnprotoWarning, GraphError, LayerError, WeightsError

CONVOLUTION = (
    'layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 2 kernel_size: 1 } }'
)
PRODUCT = 'layer { name: "p" type: "InnerProduct" bottom: "data" top: "p" inner_product_param { num_output: 2 } }'
LMDB = 'type: "Data" data_param { source: "db" backend: LMDB batch_size: 2 }'
IMAGES = 'type: "ImageData" top: "label" image_data_param { source: "list.txt" root_folder: "im/" }'
HDF5 = 'type: "HDF5Data" hdf5_data_param { source: "files.txt" batch_size: 2 }'
WINDOWS = 'type: "WindowData" top: "label" window_data_param { source: "w.txt" batch_size: 2 } transform_param { crop_size: 5 }'


def write_sources(folder: Path) -> None:
    write_lmdb(folder / "db", [("0", np.zeros((4, 6, 5), np.uint8), 0)])
    write_images(folder / "im", 1, 6, 5)
    (folder / "list.txt").write_text("image0.png 1\n")
    with h5py.File(folder / "a.h5", "w") as file:
        file["data"] = np.zeros((3, 4, 6, 5), np.float32)
    (folder / "files.txt").write_text("a.h5\n")


def load(folder: Path, source: str, rest: str, **options: Any) -> fcnproto.Net:
    (folder / "net.prototxt").write_text(f'layer {{ name: "source" top: "data" {source} }} {rest}')
    return fcnproto.load(folder / "net.prototxt", **options)


def count_openings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note every file in the folder that is opened, but for prototxts."""
    import lmdb

    opened: list[str] = []
    for owner, name in ((builtins, "open"), (h5py, "File"), (lmdb, "open")):
        original = getattr(owner, name)

        def noted(path: Any, *args: Any, _original: Any = original, **options: Any) -> Any:
            if str(path).startswith(str(folder)) and not str(path).endswith(".prototxt"):
                opened.append(str(path))
            return _original(path, *args, **options)

        monkeypatch.setattr(owner, name, noted)
    return opened


@pytest.mark.parametrize(
    ("source", "rest"),
    [
        (LMDB, ""),
        (LMDB + " transform_param { mean_value: [1, 2, 3, 4] crop_size: 3 }", CONVOLUTION + PRODUCT),
        (LMDB + " transform_param { mean_value: [1, 2, 3, 4] }", CONVOLUTION),
        (IMAGES, CONVOLUTION),
        (IMAGES + " transform_param { crop_size: 3 }", PRODUCT),
        (IMAGES.replace("root_folder", "new_height: 3 new_width: 4 root_folder"), PRODUCT),
        (HDF5, 'layer { name: "r" type: "ReLU" bottom: "data" top: "r" }'),
        (WINDOWS, CONVOLUTION + PRODUCT),
    ],
)
def test_no_source_is_opened_where_the_prototxt_says_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, rest: str
) -> None:
    pytest.importorskip("lmdb")
    write_sources(tmp_path)
    opened = count_openings(tmp_path, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path, source, rest)
    assert opened == []


@pytest.mark.parametrize(
    ("source", "rest", "shape"),
    [
        (LMDB, CONVOLUTION, (2, 4, 1, 1)),
        (LMDB + " transform_param { crop_size: 3 }", CONVOLUTION, (2, 4, 1, 1)),
        (LMDB, PRODUCT, (2, 4 * 6 * 5)),
        (IMAGES, PRODUCT, (2, 3 * 6 * 5)),
        (HDF5, CONVOLUTION, (2, 4, 1, 1)),
        (HDF5, 'layer { name: "r" type: "ReLU" bottom: "data" top: "r" }' + PRODUCT, (2, 4 * 6 * 5)),
    ],
)
def test_sources_are_asked_where_a_parameter_depends_on_them(
    tmp_path: Path, source: str, rest: str, shape: tuple[int, ...]
) -> None:
    pytest.importorskip("lmdb")
    write_sources(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = load(tmp_path, source, rest)
    (blobs,) = net.params.values()
    assert tuple(blobs[0].shape) == shape


def test_shapes_of_sources_are_looked_up_when_they_are_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("lmdb")
    write_sources(tmp_path)
    net = load(tmp_path, LMDB + ' top: "label"', "")
    assert net.source_shapes == {"data": (2, 4, 6, 5), "label": (2,)}
    given = load(tmp_path, HDF5, "", shapes={"data": (1, None, 7)})  # type: ignore[list-item]
    assert given.source_shapes == {"data": (1, None, 7)}


def test_channels_that_nobody_knows_are_three_and_told(tmp_path: Path) -> None:
    with pytest.warns(FcnprotoWarning, match=r"how many channels 'data' has; taken to be 3"):
        net = load(tmp_path, LMDB, CONVOLUTION)
    assert tuple(net.params["c"][0].shape) == (2, 3, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = load(tmp_path, LMDB, CONVOLUTION, shapes={"data": (2, 4, None, None)})
    assert tuple(net.params["c"][0].shape) == (2, 4, 1, 1)
    net = load(tmp_path, LMDB, PRODUCT)
    assert net.unknown == [("p", "InnerProduct")]
    with pytest.raises(GraphError, match=r"'p' \(InnerProduct\): waits for the size of 'data'.*shapes="):
        net.plan("data", "p")


def test_layers_before_the_one_that_depends_are_set_up_once(tmp_path: Path) -> None:
    pytest.importorskip("lmdb")
    write_sources(tmp_path)
    calls: list[str] = []

    @register_python_layer("counting", "Counting")
    class Counting(PythonLayer):
        def setup(self, bottom: Any, top: Any) -> None:
            calls.append(self.param_str)

        def reshape(self, bottom: Any, top: Any) -> None:
            top[0].reshape(*bottom[0].shape)

        def forward(self, bottom: Any, top: Any) -> None:
            top[0].data[...] = bottom[0].data
            calls.append("forward")

    python = (
        'layer {{ name: "{0}" type: "Python" bottom: "{1}" top: "{0}" '
        'python_param {{ module: "counting" layer: "Counting" param_str: "{0}" }} }}'
    )
    net = load(tmp_path, LMDB, python.format("first", "data") + PRODUCT + python.format("second", "p"))
    assert calls == ["first", "second"]
    assert tuple(net.params["p"][0].shape) == (2, 4 * 6 * 5)
    assert tuple(net(blobs=["first"])["second"].shape) == (2, 2)


OWN_BLOBS = [
    ('type: "BatchNorm"', (7,)),
    ('type: "PReLU"', (7,)),
    ('type: "Scale"', (7,)),
    ('type: "Bias"', (7,)),
    ('type: "Scale" scale_param { axis: 0 }', (4,)),
    ('type: "Bias" bias_param { axis: 0 num_axes: 2 }', (4, 7)),
    ('type: "InnerProduct" inner_product_param { num_output: 2 }', (2, 7, -1)),
    ('type: "InnerProduct" inner_product_param { num_output: 2 axis: 0 }', (2, 28, -1)),
    ('type: "Convolution" convolution_param { num_output: 2 kernel_size: 1 }', (2, 7, 1)),
]


@pytest.mark.parametrize("extents", [(8, 7), (8, 7, 4, 4), (8, 7, 5, 4, 4)], ids=len)
@pytest.mark.parametrize(("settings", "shape"), OWN_BLOBS, ids=lambda value: str(value)[:40])
def test_blobs_directly_on_the_data_have_the_datas_shape(
    tmp_path: Path, settings: str, shape: tuple[int, ...], extents: tuple[int, ...]
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.zeros(extents, np.float32)
    (tmp_path / "files.txt").write_text("a.h5\n")
    source = HDF5.replace("batch_size: 2", "batch_size: 4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = load(tmp_path, source, f'layer {{ name: "n" bottom: "data" top: "n" {settings} }}', phase="train")
    rest = extents[2:]
    if shape[-1] == -1:  # all that is behind the outputs, in one axis
        shape = (shape[0], shape[1] * int(np.prod(rest)))
    elif len(shape) == 3:
        shape = (*shape[:2], *[1] * len(rest))
    assert tuple(net.params["n"][0].shape) == shape
    net()


@pytest.mark.parametrize("kind", ["BatchNorm", "PReLU"])
def test_a_grey_database_is_seen_before_its_first_layer_is_sized(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("lmdb")
    write_lmdb(tmp_path / "db", [(str(i), np.zeros((1, 6, 5), np.uint8), 0) for i in range(2)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = load(tmp_path, LMDB, f'layer {{ name: "n" type: "{kind}" bottom: "data" top: "n" }}', phase="train")
    assert tuple(net.params["n"][0].shape) == (1,)
    net()


RELU = 'layer { name: "s" type: "ReLU" bottom: "data" top: "s" } '


@pytest.mark.parametrize(
    "rest",
    [
        'layer { name: "c" type: "BatchNorm" bottom: "data" top: "c" }',
        CONVOLUTION,
        RELU + CONVOLUTION.replace('bottom: "data"', 'bottom: "s"'),
        CONVOLUTION.replace("num_output: 2", "num_output: 2 group: 2"),
    ],
    ids=["BatchNorm", "Convolution", "ReLU, Convolution", "groups"],
)
def test_weights_say_how_many_channels_data_have_that_are_not_there(tmp_path: Path, rest: str) -> None:
    made = load(tmp_path, LMDB, rest, shapes={"data": (2, 6, 8, 8)})
    made.save(tmp_path / "w.caffemodel")
    made.save(tmp_path / "w.h5")
    for name in ("w.caffemodel", "w.h5"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            net = load(tmp_path, LMDB, rest, weights=tmp_path / name)
        assert [blob.shape for blob in net.params["c"]] == [blob.shape for blob in made.params["c"]]


def test_errors_that_follow_from_three_channels_say_so(tmp_path: Path) -> None:
    batch_norm = 'layer { name: "c" type: "BatchNorm" bottom: "data" top: "c" }'
    with pytest.warns(FcnprotoWarning, match=r"how many channels 'data' has; taken to be 3"):
        net = load(tmp_path, LMDB, batch_norm)
    with pytest.raises(LayerError, match=r"got a bottom of shape.*'data' has; taken to be 3.*shapes="):
        net(data=np.zeros((1, 5, 2, 2), np.float32))
    made = load(tmp_path, LMDB, batch_norm, shapes={"data": (2, 5, 8, 8)})
    made.save(tmp_path / "w.caffemodel")
    with pytest.raises(WeightsError, match=r"'data' has; taken to be 3.*shapes="):
        net.copy_from(tmp_path / "w.caffemodel")
    net = load(tmp_path, LMDB, CONVOLUTION.replace("num_output: 2", "num_output: 2 group: 2"))
    assert net.unknown == [("c", "Convolution")]
    assert net(data=np.zeros((1, 4, 2, 2), np.float32))["c"].shape == (1, 2, 2, 2)
    assert tuple(net.params["c"][0].shape) == (2, 2, 1, 1)


def test_colour_is_assumed_of_what_the_layer_reads_alone(tmp_path: Path) -> None:
    """Of two tops of unknown channels one is cut beyond 3, which waits; what the other's layer needs is no reason for
    an error there, and its own assumption names it alone."""
    cut = (
        'layer { name: "cut" type: "Slice" bottom: "labels" top: "class" top: "box" slice_param { slice_point: 4 } } '
        'layer { name: "six" type: "Reshape" bottom: "box" top: "six" reshape_param { shape { dim: -1 dim: 6 } } } '
    )
    source = (
        'layer { name: "s" type: "HDF5Data" top: "data" top: "labels" hdf5_data_param { source: "no" batch_size: 2 } } '
    )
    (tmp_path / "net.prototxt").write_text(source + cut + CONVOLUTION)
    with pytest.warns(FcnprotoWarning, match=r"how many channels 'data' has; taken to be 3"):
        net = fcnproto.load(tmp_path / "net.prototxt")
    assert tuple(net.params["c"][0].shape) == (2, 3, 1, 1)
    assert "cut" in [name for name, _ in net.unknown]
    said = fcnproto.load(tmp_path / "net.prototxt", shapes={"data": (2, 3, 8, 8), "labels": (2, 10)})
    assert not said.unknown


def test_another_forks_layer_of_a_name_holds_its_place(tmp_path: Path) -> None:
    inputs = "".join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }} '
        for name, dims in (("x", "dim: 1 dim: 2 dim: 5 dim: 5"), ("r", "dim: 1 dim: 5"), ("w", "dim: 3 dim: 50"))
    )
    layers = (
        'layer { name: "a" type: "ROIAlign" bottom: "x" bottom: "r" top: "a" roi_align_param { pooled_h: 1 pooled_w: 1 } } '
        'layer { name: "p" type: "InnerProduct" bottom: "x" bottom: "w" top: "p" inner_product_param { bias_term: false } }'
    )
    (tmp_path / "net.prototxt").write_text(inputs + layers)
    with pytest.warns(FcnprotoWarning, match="hold their places"):
        net = fcnproto.load(tmp_path / "net.prototxt")
    assert net.unknown == [("a", "ROIAlign"), ("p", "InnerProduct")]
    with pytest.raises(GraphError, match="expected 1"):
        fcnproto.load(tmp_path / "net.prototxt", strict=True)


def test_settings_of_another_fork_excuse_a_layer_that_cant_be_set_up(tmp_path: Path) -> None:
    text = (
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 dim: 5 dim: 5 } } } '
        'layer { name: "i" type: "Interp" bottom: "x" top: "i" interp_param { SETTING } } '
        'layer { name: "r" type: "ReLU" bottom: "x" top: "r" }'
    )
    (tmp_path / "net.prototxt").write_text(text.replace("SETTING", "times: 2"))
    with pytest.warns(
        FcnprotoWarning, match=r"layer 'i' \(Interp\): holds its place .*InterpParameter.times may tell of"
    ):
        net = fcnproto.load(tmp_path / "net.prototxt")
    assert net.unknown == [("i", "Interp")]
    assert net.plan("x", "r")
    with pytest.raises(GraphError, match="give height and width.*another fork's layer"):
        net.plan("x", "i")
    (tmp_path / "net.prototxt").write_text(text.replace("SETTING", ""))
    with pytest.raises(LayerError, match="give height and width"):
        fcnproto.load(tmp_path / "net.prototxt")
