"""Nets of the papers that were never published as files: FCN-GoogLeNet and FCN-32s-fixed, on PASCAL VOC.

Their definitions are ours, after the CVPR paper's tables 1 and 2; no weights of them exist.
"""

from __future__ import annotations

from typing import Any

from . import datasets, fcn, sources
from .catalog import Model

PAPER = "Long, Shelhamer, Darrell, CVPR 2015"
SNAPSHOTS = {"test_iter": [736], "max_iter": 100000, "snapshot": 4000, "snapshot_prefix": "snapshot/train"}


def models() -> list[Model]:
    """The nets, each made anew."""
    return [
        # The rate is the paper's for a batch of 20 images and a loss that is a mean over the pixels.
        _model(
            "voc-fcn-googlenet",
            fcn.fcn_googlenet,
            {"base_lr": 5e-5, "momentum": 0.9, "iter_size": 20},
            42.5,
            "table 1",
            base="GoogLeNet",
            initial_weights=("GoogLeNet",),
        ),
        _model(
            "voc-fcn32s-fixed",
            fcn.fcn32s,
            {"base_lr": 1e-10},
            45.4,
            "table 2",
            base="VGG16",
            initial_weights=("VGG16",),
            finish=fcn.fixed_features,
        ),
    ]


def _model(name: str, build: Any, solver: dict[str, Any], mean_iu: float, table: str, **facts: Any) -> Model:
    score = {
        "data": "PASCAL VOC 2011 validation",
        "metrics": {"mean IU": mean_iu},
        "source": f"{PAPER}, {table}",
        "verified": True,
    }
    return Model(
        name=name,
        dataset="PASCAL VOC",
        build=build,
        train=("train", sources.sbd("train")),
        test=("val", sources.voc("seg11valid")),
        inputs={"data": datasets.VOC_IMAGE},
        size=datasets.VOC_SIZE,
        classes={"label": datasets.VOC_CLASSES},
        solver=SNAPSHOTS | solver,
        scores=[score],
        **facts,
    )
