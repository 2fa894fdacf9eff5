"""What is run: for each experiment its nets, where their weights begin, its solver, and which table it belongs to.

All nets are the published ones with the widths of fcn-mini and, to learn in minutes, its warm-up's batch normalisation
and little padding; all begin with fcn-mini's classifier, as the published ones began with VGG16. Rates, numbers of
iterations and sizes are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.experiments.rooms import SPLITS
from fcnproto import zoo
from fcnproto.netspec import NetSpec
from fcnproto.schema import caffe_pb2

fcn, mini, sources = (zoo.definitions(name) for name in ("fcn", "mini", "sources"))

CLASSIFIER = "classifier"
"""The name that stands for the classifier's weights."""

SCENE_SIZE, CHECKED_SCENES = 160, 200
CLASSES, SURFACES = len(mini.CLASSES), 3
RATE, FINER_RATE = 2e-3, 5e-4


@dataclass(frozen=True)
class Experiment:
    """One net and its training.

    `build` makes the net of a phase ("TRAIN", "TEST"). `start` names what the weights begin with: an experiment's name
    (or the classifier), or a name by suffix for a net of several streams. `images` is how many are scored.
    """

    name: str
    title: str
    table: str
    build: Callable[[str], caffe_pb2.NetParameter]
    start: str | Mapping[str, str]
    images: int
    iterations: int
    rate: float = RATE
    iter_size: int = 1
    sampling: str = ""
    checkpoints: int = 0

    @property
    def images_per_iteration(self) -> int:
        """How many images an iteration sees: four, and by the inverse of the share of the loss that is kept more."""
        keep = float(self.sampling.partition(":")[0] or 1)
        return round(4 / keep)

    def solver(self) -> caffe_pb2.SolverParameter:
        """The solver, for a folder that holds the nets."""
        return caffe_pb2.SolverParameter(
            train_net="train.prototxt",
            type="Adam",
            base_lr=self.rate,
            momentum=0.9,
            momentum2=0.98,
            lr_policy="fixed" if self.checkpoints else "poly",
            power=None if self.checkpoints else 1.0,
            weight_decay=1e-5,
            clip_gradients=5.0,
            iter_size=self.iter_size,
            max_iter=self.iterations,
            display=20,
            average_loss=20,
            random_seed=1,
            snapshot=self.checkpoints or 100,
            snapshot_prefix="snapshot/train",
        )


def scenes(phase: str) -> NetSpec:
    """Drawn scenes, four a batch, two of them new ones."""
    if phase == "TRAIN":
        return mini.drawn("DrawnSceneLayer", {"seed": 21, "batch": 4, "fresh": 2, "size": SCENE_SIZE})
    return mini.drawn("DrawnSceneLayer", {"seed": 22, "batch": 4, "count": CHECKED_SCENES, "size": SCENE_SIZE})


def nyud(images: Mapping[str, str]) -> Callable[[str], NetSpec]:
    """Drawn rooms through NYUDv2's layer; `images` names for each top what it holds."""
    return lambda phase: sources.nyud(_split(phase), images, data="../data")


def sift_flow(phase: str) -> NetSpec:
    """Drawn rooms through SIFT Flow's layer: tops data, sem, geo."""
    return sources.sift_flow(_split(phase), data="../data")


def _split(phase: str) -> str:
    return "train" if phase == "TRAIN" else "val"


def experiments() -> list[Experiment]:
    """All of them, each after those that it begins with."""
    return [*_strides(), *_fusions(), *_tasks(), *_samplings()]


def _on(data: Callable[[str], NetSpec], architecture: Any, classes: Any = CLASSES) -> Any:
    """A builder of nets of an architecture on some data."""

    def build(phase: str) -> caffe_pb2.NetParameter:
        net = architecture(data(phase), classes, mini.WIDTHS).to_proto()
        return mini.warm_up(mini.averaged(net))

    return build


def _strides() -> list[Experiment]:
    common = {"table": "strides", "images": CHECKED_SCENES // 4}
    whole, more = 900, 450

    def fixed(phase: str) -> caffe_pb2.NetParameter:
        net = fcn.fixed_features(_on(scenes, fcn.fcn32s)(phase))
        for layer in net.layer:
            if layer.type == "BatchNorm":
                layer.batch_norm_param.use_global_stats = True
            elif layer.type == "Scale":
                layer.param.extend([caffe_pb2.ParamSpec(lr_mult=0, decay_mult=0)] * 2)
            elif layer.type == "Convolution" and not layer.convolution_param.bias_term:
                del layer.param[1:]
        return net

    return [
        Experiment("fcn32s-fixed", "FCN-32s, fixed", build=fixed, start=CLASSIFIER, iterations=whole, **common),
        Experiment("fcn32s", "FCN-32s", build=_on(scenes, fcn.fcn32s), start=CLASSIFIER, iterations=whole, **common),
        Experiment(
            "fcn32s-longer",
            "FCN-32s, longer",
            build=_on(scenes, fcn.fcn32s),
            start="fcn32s",
            iterations=2 * more,
            rate=FINER_RATE,
            **common,
        ),
        Experiment(
            "fcn16s",
            "FCN-16s",
            build=_on(scenes, fcn.fcn16s),
            start="fcn32s",
            iterations=more,
            rate=FINER_RATE,
            **common,
        ),
        Experiment(
            "fcn8s",
            "FCN-8s",
            build=_on(scenes, fcn.fcn8s),
            start="fcn16s",
            iterations=more,
            rate=FINER_RATE,
            **common,
        ),
        Experiment(
            "fcn8s-atonce",
            "FCN-8s at once",
            build=_on(scenes, fcn.fcn8s),
            start=CLASSIFIER,
            iterations=whole + 2 * more,
            **common,
        ),
    ]


def _fusions() -> list[Experiment]:
    common = {"table": "fusion", "images": SPLITS["val"][1], "iter_size": 4}
    both = {"color": "color", "hha": "hha"}
    early = nyud({"color": "color", "depth": "depth"})
    return [
        Experiment(
            "rooms-color",
            "colour",
            build=_on(nyud({"data": "color"}), fcn.fcn32s),
            start=CLASSIFIER,
            iterations=500,
            **common,
        ),
        Experiment(
            "rooms-color-d",
            "colour and depth, early",
            build=_on(early, fcn.fcn32s_early_fusion),
            start=CLASSIFIER,
            iterations=500,
            **common,
        ),
        Experiment(
            "rooms-hha",
            "HHA",
            build=_on(nyud({"data": "hha"}), fcn.fcn32s),
            start=CLASSIFIER,
            iterations=500,
            **common,
        ),
        Experiment(
            "rooms-color-hha",
            "colour and HHA, late",
            build=_on(nyud(both), fcn.fcn32s_late_fusion),
            start={"color": "rooms-color", "hha": "rooms-hha"},
            iterations=160,
            rate=FINER_RATE,
            **common,
        ),
    ]


def _tasks() -> list[Experiment]:
    common = {"table": "tasks", "images": SPLITS["val"][1], "iter_size": 4, "iterations": 250, "start": CLASSIFIER}
    return [
        Experiment("rooms-objects", "objects alone", build=_on(sift_flow, fcn.fcn16s, {"sem": CLASSES}), **common),
        Experiment("rooms-surfaces", "surfaces alone", build=_on(sift_flow, fcn.fcn16s, {"geo": SURFACES}), **common),
        Experiment(
            "rooms-both", "both heads", build=_on(sift_flow, fcn.fcn16s, {"sem": CLASSES, "geo": SURFACES}), **common
        ),
    ]


def _samplings() -> list[Experiment]:
    common = {
        "table": "sampling",
        "build": _on(scenes, fcn.fcn32s),
        "start": CLASSIFIER,
        "images": CHECKED_SCENES // 4,
        "checkpoints": 50,
    }
    return [
        Experiment("sampling-none", "whole images", iterations=200, **common),
        Experiment("sampling-half", "half of the cells", iterations=150, sampling="0.5:32", **common),
        Experiment("sampling-quarter", "a quarter of the cells", iterations=100, sampling="0.25:32", **common),
    ]
