"""Every layer type of a fork either becomes plain PyTorch or is refused in one line that names it."""

from __future__ import annotations

from pathlib import Path

import golden_cases
import pytest
import torch

import fcnproto
from fcnproto.errors import FcnprotoWarning, UnsupportedLayerError
from fcnproto.export.shapes import blob_shapes
from fcnproto.export.source import endpoints, make_source
from fcnproto.net import Net


def net_of(case: golden_cases.Case) -> Net:
    return case.net(**({"dialect": case.facts["dialect"]} if case.facts["needs_dialect"] else {}))


def one_case_a_type() -> dict[str, str]:
    """A recorded case of a few layers for each layer type that is a fork's own."""
    from fcnproto.layers.registry import find

    found: dict[str, str] = {}
    for name in golden_cases.names("dialects"):
        layers = golden_cases.load("dialects", name).facts["layers"]
        if len(layers) <= 4:
            for layer in layers:
                known = find(layer["type"])
                if known is not None and known.fork:
                    found.setdefault(layer["type"], name)
    return found


TYPES = one_case_a_type()
REFUSED = {
    *("BoxGroupOutput", "DecodeBBox", "DetectionEvaluate", "DetectionOutput", "PriorBox", "Proposal", "RegionLoss"),
    *("SegAccuracy", "YoloDetectionOutput", "Yolov3DetectionOutput"),
}
"""Those that select boxes, sum up over calls, or only train; Caffe's own files and .safetensors take them."""


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_each_type_is_said_in_plain_pytorch_or_refused_by_its_name(kind: str) -> None:
    case = golden_cases.load("dialects", TYPES[kind])
    net = net_of(case)
    names, _ = endpoints(net, losses=True)
    shapes = blob_shapes(net, {key: tuple(torch.from_numpy(case.keys("in")[key]).shape) for key in names})
    if kind not in REFUSED:
        assert make_source(net, shapes, "w.safetensors", losses=True).outputs
        return
    with pytest.raises(UnsupportedLayerError) as caught:
        make_source(net, shapes, "w.safetensors", losses=True)
    assert "\n" not in str(caught.value) and f"({kind}) can't be written as plain PyTorch" in str(caught.value)


def test_place_holders_are_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 } } }\n'
        'layer { name: "w" type: "Warp" bottom: "x" top: "w" }\n'
    )
    with pytest.warns(FcnprotoWarning, match="Warp"):
        net = fcnproto.load(tmp_path / "net.prototxt")
    with pytest.raises(UnsupportedLayerError, match=r"'w' \(Warp\) can't be written as plain PyTorch: it only holds a"):
        make_source(net, blob_shapes(net, {"x": (1, 2)}), "w.safetensors")
