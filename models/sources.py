"""What feeds the nets: the published Python data layers, and plain inputs. Each function begins a new NetSpec.

The folders in `param_str` are those of the published files; they count from where training is started.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fcnproto.netspec import NetSpec
from fcnproto.netspec import layers as L

SEED = 1337
VOC_MEAN = (104.00699, 116.66877, 122.67892)


def sbd(split: str, data: str = "../data") -> NetSpec:
    """VOC images with the labels of the Semantic Boundaries Dataset; tops data, label."""
    param = {"sbdd_dir": f"{data}/sbdd/dataset", "seed": SEED, "split": split, "mean": VOC_MEAN}
    return _python("voc_layers", "SBDDSegDataLayer", param, ["data", "label"])


def voc(split: str, data: str = "../data") -> NetSpec:
    """PASCAL VOC 2011; tops data, label."""
    param = {"voc_dir": f"{data}/pascal/VOC2011", "seed": SEED, "split": split, "mean": VOC_MEAN}
    return _python("voc_layers", "VOCSegDataLayer", param, ["data", "label"])


def pascal_context(split: str, data: str = "../../data") -> NetSpec:
    """PASCAL-Context; tops data, label."""
    param = {"context_dir": f"{data}/pascal-context", "seed": SEED, "split": split, "voc_dir": f"{data}/pascal"}
    return _python("pascalcontext_layers", "PASCALContextSegDataLayer", param, ["data", "label"])


def sift_flow(split: str, data: str = "../data") -> NetSpec:
    """SIFT Flow with semantic and geometric labels; tops data, sem, geo."""
    param = {"siftflow_dir": f"{data}/sift-flow", "seed": SEED, "split": split}
    return _python("siftflow_layers", "SIFTFlowSegDataLayer", param, ["data", "sem", "geo"])


def nyud(split: str, images: Mapping[str, str], data: str = "../data") -> NetSpec:
    """NYUDv2; `images` names for each top what it holds (color, depth or hha); the label comes last."""
    param = {"tops": [*images.values(), "label"], "seed": SEED, "nyud_dir": f"{data}/nyud", "split": split}
    return _python("nyud_layers", "NYUDSegDataLayer", param, [*images, "label"])


def inputs(shapes: Mapping[str, Sequence[int]]) -> NetSpec:
    """One Input layer with a top of the given shape per name; any other image size may be fed."""
    net = NetSpec()
    shape = [{"dim": list(dimensions)} for dimensions in shapes.values()]
    _name_tops(net, L.Input(name="input", ntop=len(shapes), input_param={"shape": shape}), list(shapes))
    return net


def _python(module: str, layer: str, param: Mapping[str, Any], tops: Sequence[str]) -> NetSpec:
    net = NetSpec()
    _name_tops(net, L.Python(ntop=len(tops), module=module, layer=layer, param_str=str(param)), tops)
    return net


def _name_tops(net: NetSpec, tops: Any, names: Sequence[str]) -> None:
    for name, top in zip(names, tops if isinstance(tops, tuple) else (tops,), strict=True):
        net[name] = top
