"""Region proposals: anchors, Proposal in both its forms and the known Python layer, against plain loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import assert_close
from layer_maker import make_layer, seeded

import fcnproto
from fcnproto.dialects import proposals
from fcnproto.errors import FcnprotoWarning, LayerError

ANCHORS = [
    [-84, -40, 99, 55],
    [-176, -88, 191, 103],
    [-360, -184, 375, 199],
    [-56, -56, 71, 71],
    [-120, -120, 135, 135],
    [-248, -248, 263, 263],
    [-36, -80, 51, 95],
    [-80, -168, 95, 183],
    [-168, -344, 183, 359],
]
"""The well-known ones: a base of 16, ratios 0.5, 1, 2, scales 8, 16, 32."""
PYTHON = 'type: "Python" python_param {{ module: "rpn.proposal_layer" layer: "ProposalLayer" param_str: "{}" }}'


def test_the_usual_anchors() -> None:
    assert proposals.anchor_boxes(16, proposals.RATIOS, proposals.SCALES).tolist() == ANCHORS
    assert proposals.anchor_boxes(16, proposals.RATIOS, proposals.SCALES, np.round).tolist() == ANCHORS


def test_halves_are_rounded_as_the_language_does() -> None:
    """A width of 13 and a height of 6.5: 7 in C, 6 in NumPy."""
    high = [
        float(made[3] - made[1]) + 1
        for made in (proposals.anchor_boxes(9.2, [0.5], [1])[0], proposals.anchor_boxes(9.2, [0.5], [1], np.round)[0])
    ]
    assert high == [7, 6]


def test_anchors_in_pixels() -> None:
    found = proposals.pixel_anchor_boxes(16, [0.5, 2], [80])
    sides = [(math.sqrt(256 / r) * 80 / 16, math.sqrt(256 / r) * r * 80 / 16) for r in (0.5, 2)]
    expected = []
    for wide, high in sides:
        right, down = 0.5 * int(wide - 1 + 0.5), 0.5 * int(high - 1 + 0.5)
        expected.append([7.5 - right, 7.5 - down, 7.5 + right, 7.5 + down])
    assert found.tolist() == expected


def reference(
    scores: np.ndarray,
    values: np.ndarray,
    anchors: list[list[float]],
    stride: int,
    info: list[float],
    before: int,
    after: int,
    threshold: float,
    min_size: float,
    keeps_small: bool,
) -> list[list[float]]:
    """Rows x1, y1, x2, y2, score of one image."""
    count, height, width = values.shape[0] // 4, *values.shape[1:]
    found = []
    for i in range(height):
        for j in range(width):
            for a in range(count):
                x1, y1, x2, y2 = (c + s for c, s in zip(anchors[a], (j * stride, i * stride) * 2, strict=True))
                w, h = x2 - x1 + 1, y2 - y1 + 1
                dx, dy, dw, dh = values[4 * a : 4 * a + 4, i, j]
                cx, cy, w, h = x1 + w / 2 + dx * w, y1 + h / 2 + dy * h, w * math.exp(dw), h * math.exp(dh)
                row = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
                row = [max(0.0, min(v, info[1 - k % 2] - 1)) for k, v in enumerate(row)]
                large = row[2] - row[0] + 1 >= min_size * info[-1] and row[3] - row[1] + 1 >= min_size * info[2]
                if large or keeps_small:
                    found.append([*row, scores[count + a, i, j] if large else 0.0])
    found.sort(key=lambda row: -row[4])
    kept: list[list[float]] = []
    for row in found[:before]:
        if len(kept) == after:
            break
        for k in kept:
            w, h = min(row[2], k[2]) - max(row[0], k[0]) + 1, min(row[3], k[3]) - max(row[1], k[1]) + 1
            shared = max(w, 0) * max(h, 0)
            areas = [(r[2] - r[0] + 1) * (r[3] - r[1] + 1) for r in (row, k)]
            if shared / (sum(areas) - shared) > threshold:
                break
        else:
            kept.append(row)
    return kept


def bottoms(count: int, anchors: int) -> tuple[torch.Tensor, torch.Tensor]:
    return seeded(count, 2 * anchors, 4, 5, seed=1).sigmoid(), seeded(count, 4 * anchors, 4, 5, seed=2).mul(0.4)


def compare(
    layer: torch.nn.Module, info: list[float], limits: tuple[int, int, float, float], keeps_small: bool
) -> None:
    count = len(layer.anchors)
    batch = 1 if layer.type == "Python" else 2
    scores, values = bottoms(batch, count)
    rows, found = layer(scores, values, torch.tensor([info], dtype=torch.float64))
    expected = []
    for n in range(batch):
        one = reference(
            scores[n].numpy(), values[n].numpy(), layer.anchors.tolist(), layer.stride, info, *limits, keeps_small
        )
        expected += [[n, *row] for row in one]
    assert rows.shape == (len(expected), 5) and len(expected) > 2
    assert_close(torch.cat([rows, found.reshape(-1, 1)], 1), np.array(expected), 1e-12, "rows and scores")


@pytest.mark.parametrize(
    ("settings", "limits"),
    [
        ("min_size: 24 pre_nms_topn: 60 post_nms_topn: 30", (60, 30, 0.7, 24)),
        ("base_size: 12 ratio: 0.4 scale: 2.5 scale: 6 nms_thresh: 0.3 feat_stride: 8", (6000, 300, 0.3, 16)),
        ("max_rois: 4 rpn_min_size: 30.5 rpn_nms_thresh: 0.5 anchor_scale: 1 anchor_ratio: 3", (6000, 4, 0.5, 30.5)),
        ("anchor_base_size: 8", (6000, 300, 0.7, 16)),
    ],
)
def test_proposal(settings: str, limits: tuple[int, int, float, float]) -> None:
    few = make_layer(f'type: "Proposal" proposal_param {{ {settings} }}', *score_shapes(settings), (1, 3), tops=2)
    compare(few, [70, 90, 1.5], limits, keeps_small=False)


def score_shapes(settings: str) -> list[tuple[int, ...]]:
    anchors = 2 if "ratio: 0.4" in settings else 3 if "anchor_scale: 1" in settings else 9
    return [(2, 2 * anchors, 4, 5), (2, 4 * anchors, 4, 5)]


def test_proposal_in_pixels_keeps_small_boxes_behind() -> None:
    text = 'type: "Proposal" proposal_param { ratio: 0.5 ratio: 1.5 scale: 40 min_size: 30 nms_thresh: 0.95 }'
    layer = make_layer(text, (2, 4, 4, 5), (2, 8, 4, 5), (1, 4), tops=2)
    assert layer.keeps_small
    scores, values = bottoms(2, 2)
    rows, found = layer(scores, values, torch.tensor([[70.0, 90, 1, 1.3]]))
    assert (found == 0).any() and (rows[:, 0] == 1).any()
    # Those that score are in the order of the reference; the others have no order to compare.
    for n in range(2):
        anchors = layer.anchors.tolist()
        expected = reference(
            scores[n].numpy(), values[n].numpy(), anchors, 16, [70, 90, 1, 1.3], 6000, 300, 0.95, 30, True
        )
        wanted = np.array([row for row in expected if row[4] > 0])
        got = torch.cat([rows[:, 1:], found.unsqueeze(1)], 1)[(rows[:, 0] == n) & (found > 0)]
        assert_close(got, wanted, 1e-12, "rows")


@pytest.mark.parametrize("train", [False, True])
def test_the_python_layer(train: bool) -> None:
    limits = (12000, 2000, 0.7, 16) if train else (6000, 300, 0.7, 16)
    layer = make_layer(PYTHON.format("'feat_stride': 16"), (1, 18, 4, 5), (1, 36, 4, 5), (1, 3), tops=2, train=train)
    assert layer.limits == limits and layer.anchors.tolist() == ANCHORS
    compare(layer, [70, 90, 1.5], limits, keeps_small=False)
    scores, values = bottoms(1, 9)
    assert layer(scores, values, torch.tensor([[70.0, 90, 1]]))[1].dim() == 2


@pytest.mark.parametrize(
    "text",
    [
        "'feat_stride': 8 \\n'scales': !!python/tuple [2, 4]\\n'ratios': [0.5]\\n 'min_size': 4",
        "{'feat_stride': 8, 'scales': [2, 4], 'ratios': [0.5], 'min_size': 4}",
        "{feat_stride: 8, scales: [2, 4], ratios: 0.5, min_size: 4}",
        "feat_stride: 8,\\nscales: (2, 4)\\nratios: 0.5\\nmin_size: 4",
    ],
)
def test_its_param_str(text: str) -> None:
    layer = make_layer(PYTHON.format(text), (1, 4, 4, 5), (1, 8, 4, 5), (1, 3))
    assert layer.stride == 8 and layer.limits.min_size == 4
    assert torch.equal(layer.anchors, proposals.anchor_boxes(16, [0.5], [2, 4]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lacks 'feat_stride'"),
        ("feat_stride 16", "expected lines such as"),
        ("'feat_stride': __import__('os')", "is no number, list or mapping"),
        ("'feat_stride': 16\\n'scales': [0]", "'scales' takes positive numbers"),
        ("'feat_stride': -1", "'feat_stride' takes a number from 0 on"),
        ("'feat_stride': 16\\n'scales': [8]", r"3 anchors need scores \(N, 6, H, W\)"),
    ],
)
def test_param_strs_that_do_not_go(text: str, words: str) -> None:
    with pytest.raises(LayerError, match=words):
        make_layer(PYTHON.format(text), (1, 18, 4, 5), (1, 36, 4, 5), (1, 3))


def test_an_option_that_nothing_reads_is_told() -> None:
    with pytest.warns(FcnprotoWarning, match="'use_gpu' has no effect"):
        make_layer(PYTHON.format("'feat_stride': 16\\n'use_gpu': 1"), (1, 18, 4, 5), (1, 36, 4, 5), (1, 3))


def test_nothing_found_and_no_images() -> None:
    layer = make_layer('type: "Proposal"', (1, 18, 4, 5), (1, 36, 4, 5), (1, 3), tops=2)
    scores, values = bottoms(1, 9)
    rows, found = layer(scores, values, torch.tensor([[4.0, 4, 1]]))
    assert rows.shape == (0, 5) and found.shape == (0,)
    assert layer(scores[:0], values[:0], torch.zeros(1, 3))[0].shape == (0, 5)


HEAD = """
input: "data" input_shape {{ dim: 1 dim: 3 dim: 64 dim: 96 }} input: "im_info" input_shape {{ dim: 1 dim: 3 }}
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {{ num_output: 18 kernel_size: 16
  stride: 16 weight_filler {{ type: "gaussian" std: 0.02 }} }} }}
layer {{ name: "deltas" type: "Convolution" bottom: "conv" top: "deltas" convolution_param {{ num_output: 36 kernel_size: 1
  weight_filler {{ type: "gaussian" std: 0.1 }} }} }}
layer {{ name: "halves" type: "Reshape" bottom: "conv" top: "halves" reshape_param {{ shape {{ dim: 0 dim: 2 dim: -1 dim: 0 }} }} }}
layer {{ name: "prob" type: "Softmax" bottom: "halves" top: "prob" }}
layer {{ name: "scores" type: "Reshape" bottom: "prob" top: "scores" reshape_param {{ shape {{ dim: 0 dim: 18 dim: -1 dim: 0 }} }} }}
layer {{ name: "rois" {} bottom: "scores" bottom: "deltas" bottom: "im_info" top: "rois" }}
layer {{ name: "pool" type: "ROIPooling" bottom: "conv" bottom: "rois" top: "pool"
  roi_pooling_param {{ pooled_w: 2 pooled_h: 2 spatial_scale: 0.0625 }} }}
layer {{ name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param {{ num_output: 3
  weight_filler {{ type: "gaussian" std: 0.1 }} }} }}
"""


def test_a_detector_of_two_stages_at_two_sizes(tmp_path: Path) -> None:
    """Scores to regions to features to classes, the number of regions being known at the call alone."""
    made = []
    for layer in (
        'type: "Proposal" proposal_param { scale: 1 scale: 2 scale: 4 }',
        PYTHON.format("'feat_stride': 16\\n'scales': [1, 2, 4]"),
    ):
        path = tmp_path / "net.prototxt"
        path.write_text(HEAD.format(layer))
        torch.manual_seed(1)
        net = fcnproto.load(path)
        outs = []
        for height, width in ((64, 96), (112, 80)):
            data = seeded(1, 3, height, width, dtype=torch.float32)
            outs.append(net(data=data, im_info=torch.tensor([[height, width, 1.0]]), blobs=["rois", "fc"]))
            assert len(outs[-1]["rois"]) == len(outs[-1]["fc"]) > 3
        made.append(outs)
        outs[0]["fc"].sum().backward()
        assert net.params["conv"][0].grad is not None and net.params["deltas"][0].grad is None
    assert all(torch.equal(made[0][i]["fc"], made[1][i]["fc"]) for i in range(2))
