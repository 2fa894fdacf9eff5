"""py-faster-rcnn's and R-FCN's Python layer that makes proposals, known by its module and class names.

It is computed here; none of its code is needed or run. The numbers that it reads from the project's `cfg` may stand in
its `param_str` beside the fork's own keys; where they don't, they are the defaults of that `cfg`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from fcnproto.data.python_layer import register_python_layer
from fcnproto.dialects.proposals import RATIOS, SCALES, Limits, ProposalLayer, anchor_boxes
from fcnproto.layers.base import Layer, Shape
from fcnproto.schema import caffe_pb2

_READ = ("feat_stride", "scales", "ratios", "base_size", "pre_nms_topn", "post_nms_topn", "nms_thresh", "min_size")
_LINE = re.compile(r"""^\s*(['"]?)(\w+)\1\s*:\s*(.*?)\s*,?\s*$""")
_BARE_KEY = re.compile(r"([{,]\s*)([A-Za-z_]\w*)\s*:")
_TAG = re.compile(r"!!python/tuple\b")


def read_param_str(layer: Layer) -> dict[str, Any]:
    """A `param_str` in the YAML that such layers have: `'key': value` a line, or {...}; values are Python's or YAML's
    numbers, texts and lists. Nothing is run. Raises `LayerError` for what is neither."""
    text = _TAG.sub("", layer.config.param_str).strip()
    if text.startswith("{"):
        text = _BARE_KEY.sub(r"\1'\2':", text)
        lines = [(str(key), value) for key, value in _literal(layer, text, {}).items()]
    else:
        lines = []
        for line in filter(str.strip, text.splitlines()):
            match = _LINE.match(line)
            if match is None:
                layer.fail(f"param_str: expected lines such as 'feat_stride': 16, got {line.strip()!r}")
            lines.append((match[2], _literal(layer, match[3], 0)))
    return dict(lines)


def _literal(layer: Layer, text: str, like: Any) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        value = None
    if value is None or (isinstance(like, dict) and not isinstance(value, dict)):
        layer.fail(f"param_str: {text!r} is no number, list or mapping")
    return value


def numbers(layer: Layer, options: dict[str, Any], name: str, default: Sequence[float]) -> list[float]:
    """An option that is one or several positive numbers."""
    value = options.get(name, list(default))
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values or any(isinstance(v, bool) or not isinstance(v, int | float) or not v > 0 for v in values):
        layer.fail(f"param_str: {name!r} takes positive numbers, got {value!r}")
    return [float(v) for v in values]


def number(layer: Layer, options: dict[str, Any], name: str, default: float) -> float:
    """An option that is one number from 0 on."""
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**31:
        layer.fail(f"param_str: {name!r} takes a number from 0 on, got {value!r}")
    return float(value)


def warn_others(layer: Layer, options: dict[str, Any], known: Sequence[str]) -> None:
    """Warn of options that nothing reads."""
    others = sorted(set(options) - set(known))
    if others:
        layer.warn(f"param_str: {', '.join(map(repr, others))} has no effect; read are {', '.join(known)}")


@register_python_layer("rpn.proposal_layer", "ProposalLayer")
class RegionProposals(ProposalLayer):
    """rpn.proposal_layer.ProposalLayer: as the layer type Proposal with a batch of one image.

    `param_str`: `feat_stride`, `scales`, `ratios`, `base_size`, and of cfg `pre_nms_topn`, `post_nms_topn` (TEST 6000
    and 300, TRAIN 12000 and 2000), `nms_thresh` (0.7), `min_size` (16).
    """

    type: ClassVar[str] = "Python"  # type: ignore[assignment]
    config_field = "python_param"
    scores_have_axis = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        options = read_param_str(self)
        known = (
            "feat_stride",
            "scales",
            "ratios",
            "base_size",
            "pre_nms_topn",
            "post_nms_topn",
            "nms_thresh",
            "min_size",
        )
        warn_others(self, options, known)
        if "feat_stride" not in options:
            self.fail("param_str lacks 'feat_stride'")
        training = self.param.phase == caffe_pb2.TRAIN if self.param.HasField("phase") else self.training
        before, after = (12000, 2000) if training else (6000, 300)
        self.stride = int(number(self, options, "feat_stride", 16))
        base = numbers(self, options, "base_size", [16])[0]
        scales, ratios = numbers(self, options, "scales", SCALES), numbers(self, options, "ratios", RATIOS)
        self.anchors = anchor_boxes(base, ratios, scales, np.round)
        self.limits = Limits(
            int(number(self, options, "pre_nms_topn", before)),
            int(number(self, options, "post_nms_topn", after)),
            number(self, options, "nms_thresh", 0.7),
            number(self, options, "min_size", 16),
        )
        super().setup(shapes)

    def check_bottoms(self, shapes: Sequence[Sequence[int]]) -> None:
        super().check_bottoms(shapes)
        if shapes[0][0] != 1:
            self.fail(f"takes one image at a time, got {shapes[0][0]}")
