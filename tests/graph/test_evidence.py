"""Which fork a net is taken to be written for."""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path

import pytest

import fcnproto
from fcnproto.graph.evidence import dialect_of
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse
from fcnproto.schema.upgrade import upgrade_net

RECORDINGS = Path(__file__).parents[1] / "golden" / "dialects.zip"
PRIORS = (
    'layer {{ name: "p" type: "PriorBox" bottom: "f" bottom: "data" top: "p" prior_box_param {{ {0} }} }}'
    'layer {{ name: "f_mbox_loc" type: "Convolution" bottom: "f" top: "l" convolution_param {{ num_output: {1} }} }}'
)
SIGNS = [
    ('layer { type: "BN" bn_param { slope_filler {} } }', "pspnet"),
    ('layer { type: "BN" bn_param { bn_mode: INFERENCE } }', "segnet"),
    ('layer { type: "BN" bn_param { var_eps: 1e-5 } }', "imcl"),
    ('layer { type: "Lstm" lstm_param { num_output: 3 } } layer { type: "BN" bn_param { scale_filler {} } }', "ctpn"),
    ('layer { type: "BN" bn_param { scale_filler {} shift_filler {} } }', None),
    ('layer { type: "Unpooling" unpooling_param {} } layer { type: "BN" bn_param { bn_mode: LEARN } }', "deconvnet"),
    ('layer { type: "Pooling" pooling_param { pool: AVE_EXC_PAD } }', "synopsys"),
    ('layer { type: "Pooling" pooling_param { pool: AVE } }', None),
    ('layer { type: "Normalize" normalize_param {} }', "happynear"),
    ('layer { type: "ROIPooling" roi_pooling_param { pad_ratio: 0.5 } }', "cascade-rcnn"),
    ('layer { type: "BboxAccuracy" bbox_reg_param {} } layer { type: "BoxOutput" box_output_param {} }', "mscnn"),
    ('layers { type: CONVOLUTION convolution_param { hole: 2 } }', "deeplab1"),
    (PRIORS.format("min_size: 30 max_size: 60 aspect_ratio: 2", 16), "ssd"),
    (PRIORS.format("min_size: 30 max_size: 60 aspect_ratio: 2 aspect_ratio: 5 flip: false", 32), "textboxes"),
    (PRIORS.format("min_size: 32 min_size: 64 min_size: 128", 84), "faceboxes"),
    (PRIORS.format("min_size: 30 denser_prior_boxes: true", 8), "textboxes++"),
    ('layer { type: "Convolution" convolution_param { dilation: 2 } }', None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "dialect"), SIGNS)
def test_fields_show_the_fork(text: str, dialect: str | None) -> None:
    net = parse(text, caffe_pb2.NetParameter)
    upgrade_net(net)
    assert dialect_of(net) == dialect


def test_what_the_caller_says_counts(tmp_path: Path) -> None:
    text = 'layer { type: "Input" name: "i" top: "x" input_param { shape { dim: 1 dim: 2 } } }'
    (tmp_path / "n.prototxt").write_text(
        text + 'layer { type: "ReLU" name: "r" bottom: "x" top: "y" relu_param { maximum: 4 } }'
    )
    net = fcnproto.load(tmp_path / "n.prototxt")
    assert net.dialect == net.layer("r").dialect == "synopsys"
    assert fcnproto.load(tmp_path / "n.prototxt", dialect="ssd").layer("r").dialect == "ssd"


def test_where_nothing_decides_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "n.prototxt").write_text(
        'input: "x" input_dim: 1 input_dim: 2 input_dim: 3 input_dim: 3 layer { name: "b" type: "BN" bottom: "x" top: "y" }'
    )
    with pytest.warns(fcnproto.FcnprotoWarning, match=r"BN is another layer in several forks.*'b'.*--dialect"):
        fcnproto.load(tmp_path / "n.prototxt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*input fields are deprecated")
        fcnproto.load(tmp_path / "n.prototxt", dialect="segnet")


def test_no_recording_is_taken_for_one_of_a_fork_whose_words_mean_something_else() -> None:
    """Where a dialect changes what layers compute, evidence may only name the fork that the recording is from."""
    changing = {"textboxes", "textboxes++", "faceboxes", "sstd", "imcl", "ctpn", "hed", "synopsys"}
    with zipfile.ZipFile(RECORDINGS) as archive:
        for name in archive.namelist():
            if not name.endswith("net.prototxt"):
                continue
            facts = json.loads(archive.read(name.replace("net.prototxt", "case.json")))
            net = parse(archive.read(name).decode(), caffe_pb2.NetParameter)
            upgrade_net(net)
            found = dialect_of(net)
            assert found == facts["dialect"] or found not in changing, name
