"""py-faster-rcnn's and R-FCN's Python layer that makes proposals, and CTPN's, known by their module and class names.

It is computed here; none of its code is needed or run. The numbers that it reads from the project's `cfg` may stand in
its `param_str` beside the fork's own keys; where they don't, they are the defaults of that `cfg`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fcnproto.data.python_layer import register_python_layer
from fcnproto.dialects.proposals import (
    RATIOS,
    SCALES,
    Limits,
    ProposalLayer,
    anchor_boxes,
    at_places,
    image_info,
    places_last,
    within,
)
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.examples import Draw, positive
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
    unread: ClassVar[tuple[str, ...]] = ()
    """Options that concern nothing here."""

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
        warn_others(self, {name: value for name, value in options.items() if name not in self.unread}, known)
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


_TEXT_HEIGHTS = (11, 16, 23, 33, 48, 68, 97, 139, 198, 283)
"""Of CTPN's anchors, all 16 pixels wide."""


@register_python_layer("layers.text_proposal_layer", "ProposalLayer")
class TextProposals(Layer):
    """CTPN's layers.text_proposal_layer.ProposalLayer: of ten anchors a place boxes as wide as they are (16 pixels),
    moved and stretched along y alone by predictions (1, 20, H, W): the centre in units of the anchor's height, and the
    logarithm of the height. Cut by the image, whose height and width bottom 2 says.

    Tops: boxes (H * W * 10, 4) as x1, y1, x2, y2 and their scores (H * W * 10, 1), the second half of bottom 0's
    channels; no gradient. `param_str`: `feat_stride`.
    """

    type: ClassVar[str] = "Python"  # type: ignore[assignment]
    config_field = "python_param"
    bottoms = (3, 3)
    tops = (2, 2)
    in_place = False
    index_bottoms = (2,)
    force_backward_refuses = (0, 1, 2)

    def keeps_images_apart(self) -> bool:
        return False

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return {0: positive, 2: image_info(first, self.stride)}.get(bottom)

    def setup(self, shapes: Sequence[Shape]) -> None:
        options = read_param_str(self)
        warn_others(self, options, ("feat_stride",))
        if "feat_stride" not in options:
            self.fail("param_str lacks 'feat_stride'")
        self.stride = int(number(self, options, "feat_stride", 16))
        # The fork's corners are whole numbers, cut off towards 0, and its halves of heights, too.
        half = np.array(_TEXT_HEIGHTS) // 2
        sides = np.stack([np.full(len(half), -0.5), 7.5 - half, np.full(len(half), 15.5), 7.5 + half], 1)
        self.anchors = torch.from_numpy(np.trunc(sides))
        self.top_shapes(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        scores, values, _ = (tuple(shape) for shape in shapes)
        count = len(self.anchors)
        wanted = (1, 2 * count, *scores[2:])
        if len(scores) != 4 or scores != wanted or values != wanted:
            self.fail(f"needs scores and values (1, {2 * count}, H, W) of one image, got {scores} and {values}")
        boxes = count * scores[2] * scores[3]
        return [(boxes, 4), (boxes, 1)]

    @torch.no_grad()
    def forward(self, scores: Tensor, values: Tensor, info: Tensor) -> tuple[Tensor, Tensor]:
        self.top_shapes([scores.shape, values.shape, info.shape])
        placed = at_places(self.anchors.to(values), scores.shape[2], scores.shape[3], self.stride)
        centre, height = (placed[:, 1] + placed[:, 3]) / 2, placed[:, 3] - placed[:, 1] + 1
        moves = places_last(values[0], 2)
        new = moves[:, 1].exp() * height
        top = moves[:, 0] * height + centre - new / 2
        boxes = torch.stack([placed[:, 0], top, placed[:, 2], top + new], 1)
        height_of_image, width = (float(value) for value in info.flatten()[:2])
        return within(boxes, height_of_image, width), places_last(scores[0, len(self.anchors) :], 1)
