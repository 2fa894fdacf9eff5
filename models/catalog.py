"""The 15 published nets: which architecture on which data, how it was trained, and what is known of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fcnproto.netspec import NetSpec
from fcnproto.schema import caffe_pb2

from . import datasets, fcn, sources

WEIGHTS_HOST = "http://dl.caffe.berkeleyvision.org/"
REPOSITORY = "FCN repository (fcn.berkeleyvision.org)"
PAPER = "Shelhamer, Long, Darrell, PAMI 2017; recalled, not checked against the paper"
PAPER_METRICS = ("pixel accuracy", "mean accuracy", "mean IU", "frequency weighted IU")


@dataclass(frozen=True)
class Model:
    """One published net.

    `build` is a function of `fcn`; `train` and `test` are the file's name and the spec with the data layer; `inputs`
    are the image blobs with their preprocessing; `classes` are the class names by label blob; `solver` holds what
    differs from net to net; `finish` changes the nets that learn once they are built.
    """

    name: str
    dataset: str
    base: str
    build: Callable[..., NetSpec]
    train: tuple[str, NetSpec]
    test: tuple[str, NetSpec]
    inputs: Mapping[str, Mapping[str, Any]]
    size: tuple[int, int]
    classes: Mapping[str, list[str]]
    solver: Mapping[str, Any]
    initial_weights: tuple[str, ...]
    weights: str | None = None
    scores: list[dict[str, Any]] = field(default_factory=list)
    finish: Callable[[caffe_pb2.NetParameter], caffe_pb2.NetParameter] = lambda net: net

    @property
    def counts(self) -> fcn.Classes:
        """The `classes` argument of the architecture: a number, or one per label where there are several."""
        counts = {label: len(names) for label, names in self.classes.items()}
        return counts["label"] if list(counts) == ["label"] else counts

    def nets(self) -> dict[str, caffe_pb2.NetParameter]:
        """The train, test and deploy nets by file name (without suffix). To be called once per Model."""
        shapes = {blob: (1, len(facts["mean"]), *self.size) for blob, facts in self.inputs.items()}
        specs = dict([self.train, self.test]) | {"deploy": sources.inputs(shapes)}
        nets = {name: self.build(spec, self.counts).to_proto() for name, spec in specs.items()}
        return {name: net if name == "deploy" else self.finish(net) for name, net in nets.items()}

    def solver_message(self) -> caffe_pb2.SolverParameter:
        """The solver as published: plain SGD at a fixed rate; it has a test net but never runs it by itself."""
        settings = {
            "train_net": f"{self.train[0]}.prototxt",
            "test_net": [f"{self.test[0]}.prototxt"],
            "test_interval": 999999999,
            "test_initialization": False,
            "display": 20,
            "average_loss": 20,
            "lr_policy": "fixed",
            "momentum": 0.99,
            "iter_size": 1,
            "weight_decay": 0.0005,
        }
        return caffe_pb2.SolverParameter(**(settings | dict(self.solver)))

    def record(self) -> dict[str, Any]:
        """What `fcnproto.zoo` says of the net, for model.json."""
        outputs = [
            {
                "blob": f"score{task.suffix}",
                "label": task.label,
                "ignore_label": fcn.IGNORE_LABEL,
                "classes": self.classes[task.label],
            }
            for task in fcn.tasks(self.counts)
        ]
        return {
            "dataset": self.dataset,
            "base": self.base,
            "weights_url": WEIGHTS_HOST + self.weights if self.weights else None,
            "initial_weights": list(self.initial_weights),
            "inputs": [{"blob": blob, **facts} for blob, facts in self.inputs.items()],
            "outputs": outputs,
            "scores": self.scores,
        }


def models() -> list[Model]:
    """The published nets, each made anew."""
    return [*_voc(), *_nyud(), *_sift_flow(), *_pascal_context()]


def repository_score(mean_iu: float, data: str = "PASCAL VOC 2011 seg11valid") -> dict[str, Any]:
    """A score that the authors' repository states."""
    return {"data": data, "metrics": {"mean IU": mean_iu}, "source": REPOSITORY, "verified": True}


def paper_score(data: str, *percents: float, **more: float) -> dict[str, Any]:
    """Scores from the paper, in the order of PAPER_METRICS."""
    metrics = dict(zip(PAPER_METRICS, percents, strict=True)) | more
    return {"data": data, "metrics": metrics, "source": PAPER, "verified": False}


def _voc() -> list[Model]:
    snapshots = {"test_iter": [736], "max_iter": 100000, "snapshot": 4000, "snapshot_prefix": "snapshot/train"}
    valid = "PASCAL VOC 2011 seg11valid"

    def model(name: str, build: Any, solver: dict[str, Any], data: str = "../data", **facts: Any) -> Model:
        return Model(
            name=name,
            dataset="PASCAL VOC",
            build=build,
            train=("train", sources.sbd("train", data)),
            test=("val", sources.voc("seg11valid", data)),
            inputs={"data": datasets.VOC_IMAGE},
            size=datasets.VOC_SIZE,
            classes={"label": datasets.VOC_CLASSES},
            solver=snapshots | solver,
            **({"base": "VGG16"} | facts),
        )

    return [
        model(
            "voc-fcn32s",
            fcn.fcn32s,
            {"base_lr": 1e-10},
            initial_weights=("VGG16",),
            weights="fcn32s-heavy-pascal.caffemodel",
            scores=[repository_score(63.6), paper_score(valid, 90.5, 76.5, 63.6, 83.5)],
        ),
        model(
            "voc-fcn16s",
            fcn.fcn16s,
            {"base_lr": 1e-12},
            data="../../data",
            initial_weights=("voc-fcn32s",),
            weights="fcn16s-heavy-pascal.caffemodel",
            scores=[repository_score(65.0), paper_score(valid, 91.0, 78.1, 65.0, 84.3)],
        ),
        model(
            "voc-fcn8s",
            fcn.fcn8s,
            {"base_lr": 1e-14},
            initial_weights=("voc-fcn16s",),
            weights="fcn8s-heavy-pascal.caffemodel",
            scores=[
                repository_score(65.5),
                repository_score(67.2, "PASCAL VOC 2012 test"),
                paper_score(valid, 91.2, 77.6, 65.5, 84.5),
            ],
        ),
        model(
            "voc-fcn8s-atonce",
            fcn.fcn8s_at_once,
            {"base_lr": 1e-10, "max_iter": 300000},
            initial_weights=("VGG16",),
            weights="fcn8s-atonce-pascal.caffemodel",
            scores=[repository_score(65.4), paper_score(valid, 91.1, 78.5, 65.4, 84.4)],
        ),
        model(
            "voc-fcn-alexnet",
            fcn.fcn_alexnet,
            {"base_lr": 1e-4, "momentum": 0.9, "iter_size": 20},
            base="CaffeNet",
            initial_weights=("CaffeNet",),
            weights="fcn-alexnet-pascal.caffemodel",
            scores=[repository_score(48.0)],
        ),
    ]


def _nyud() -> list[Model]:
    streams = {"color": datasets.NYUD_COLOR, "hha": datasets.NYUD_HHA, "depth": datasets.NYUD_DEPTH}

    def model(name: str, build: Any, images: dict[str, str], rate: float, metrics: list[float], **facts: Any) -> Model:
        published = f"nyud-fcn32s-{name}-heavy.caffemodel"
        return Model(
            name=f"nyud-fcn32s-{name}",
            dataset="NYUDv2",
            base="VGG16",
            build=build,
            train=("trainval", sources.nyud("trainval", images)),
            test=("test", sources.nyud("test", images)),
            inputs={blob: streams[holds] for blob, holds in images.items()},
            size=datasets.NYUD_SIZE,
            classes={"label": datasets.NYUD_CLASSES},
            solver={
                "base_lr": rate,
                "test_iter": [654],
                "max_iter": 300000,
                "snapshot": 2000,
                "snapshot_prefix": "snapshot/train",
            },
            scores=[paper_score("NYUDv2 test", *metrics)],
            **({"weights": published, "initial_weights": ("VGG16",)} | facts),
        )

    color_and_depth = {"color": "color", "depth": "depth"}
    color_and_hha = {"color": "color", "hha": "hha"}
    parts = ("nyud-fcn32s-color", "nyud-fcn32s-hha")
    return [
        model("color", fcn.fcn32s, {"data": "color"}, 1e-10, [61.8, 44.7, 31.6, 46.0]),
        model("hha", fcn.fcn32s, {"data": "hha"}, 1e-10, [58.3, 35.7, 25.2, 41.7]),
        model("color-d", fcn.fcn32s_early_fusion, color_and_depth, 1e-10, [62.1, 44.8, 31.7, 46.3], weights=None),
        model(
            "color-hha", fcn.fcn32s_late_fusion, color_and_hha, 1e-12, [65.3, 44.0, 33.3, 48.6], initial_weights=parts
        ),
    ]


def _sift_flow() -> list[Model]:
    classes = {"sem": datasets.SIFT_FLOW_SEMANTIC_CLASSES, "geo": datasets.SIFT_FLOW_GEOMETRIC_CLASSES}

    def model(stride: int, build: Any, rate: float, initial: str, scores: list[dict[str, Any]]) -> Model:
        return Model(
            name=f"siftflow-fcn{stride}s",
            dataset="SIFT Flow",
            base="VGG16",
            build=build,
            train=("trainval", sources.sift_flow("trainval")),
            test=("test", sources.sift_flow("test")),
            inputs={"data": datasets.SIFT_FLOW_IMAGE},
            size=datasets.SIFT_FLOW_SIZE,
            classes=classes,
            solver={"base_lr": rate, "test_iter": [200], "max_iter": 300000},
            initial_weights=(initial,),
            weights=f"siftflow-fcn{stride}s-heavy.caffemodel",
            scores=scores,
        )

    scores_8s = [paper_score("SIFT Flow test", 85.9, 53.9, 41.2, 77.2, **{"geometric pixel accuracy": 94.6})]
    return [
        model(32, fcn.fcn32s, 1e-10, "VGG16", []),
        model(16, fcn.fcn16s, 1e-12, "siftflow-fcn32s", []),
        model(8, fcn.fcn8s, 1e-12, "siftflow-fcn16s", scores_8s),
    ]


def _pascal_context() -> list[Model]:
    def model(stride: int, build: Any, rate: float, initial: str, metrics: list[float]) -> Model:
        return Model(
            name=f"pascalcontext-fcn{stride}s",
            dataset="PASCAL-Context",
            base="VGG16",
            build=build,
            train=("train", sources.pascal_context("train")),
            test=("val", sources.pascal_context("val")),
            inputs={"data": datasets.CONTEXT_IMAGE},
            size=datasets.VOC_SIZE,
            classes={"label": datasets.CONTEXT_CLASSES},
            solver={
                "base_lr": rate,
                "test_iter": [5105],
                "max_iter": 300000,
                "snapshot": 4000,
                "snapshot_prefix": "snapshot/train",
            },
            initial_weights=(initial,),
            weights=f"pascalcontext-fcn{stride}s-heavy.caffemodel",
            scores=[paper_score("PASCAL-Context val, 59 classes", *metrics)],
        )

    return [
        model(32, fcn.fcn32s, 1e-10, "VGG16", [65.5, 49.1, 36.7, 50.9]),
        model(16, fcn.fcn16s, 1e-12, "pascalcontext-fcn32s", [66.9, 51.3, 38.4, 52.3]),
        model(8, fcn.fcn8s, 1e-14, "pascalcontext-fcn16s", [67.5, 52.3, 39.1, 53.0]),
    ]
