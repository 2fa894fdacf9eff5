"""DetectionOutput in the forms of TextBoxes++ (outlines) and Synopsys (bottoms of single maps), by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden_cases import assert_close
from layer_maker import make_layer, seeded

from fcnproto.errors import LayerError

PRIORS = torch.tensor([[[0.1, 0.2, 0.5, 0.4, 0.5, 0.5, 0.9, 0.9], [0.1, 0.1, 0.2, 0.2] * 2]])
TEXT = (
    'type: "DetectionOutput" detection_output_param { num_classes: 2 code_type: CENTER_SIZE confidence_threshold: 0.5'
)


@pytest.mark.parametrize("polygon", [True, False])
def test_outlines_are_predicted_from_the_prior_of_a_detection(polygon: bool) -> None:
    more = 8 if polygon else 5
    values = seeded(1, 2, 4 + more).float()
    confidences = torch.tensor([[0.9, 0.1, 0.2, 0.8]])  # the second prior holds an object
    text = f"{TEXT} use_polygon: {str(polygon).lower()} }}"
    layer = make_layer(text, (1, 2 * (4 + more)), confidences.shape, PRIORS.shape)
    top = layer(values.flatten(1), confidences, PRIORS)
    assert top.shape == (1, 1, 1, 7 + more) == tuple(layer.top_shapes([])[0])
    v = values[0, 1].double().numpy()
    width, height, x, y = 0.4, 0.4, 0.7, 0.7
    half = width * math.exp(0.2 * v[2]) / 2, height * math.exp(0.2 * v[3]) / 2
    centre = x + 0.1 * v[0] * width, y + 0.1 * v[1] * height
    box = [centre[0] - half[0], centre[1] - half[1], centre[0] + half[0], centre[1] + half[1]]
    if polygon:
        corners = [0.5, 0.5, 0.9, 0.5, 0.9, 0.9, 0.5, 0.9]
        outline = [0.1 * value * 0.4 + corner for value, corner in zip(v[4:], corners, strict=True)]
    else:
        outline = [0.1 * value * 0.4 + 0.7 for value in v[4:8]] + [math.exp(0.2 * v[8]) * 0.4]
    assert_close(top[0, 0, 0], np.array([0, 1, 0.8, *box, *outline]), 1e-6, "row")
    nothing = layer(values.flatten(1), torch.zeros(1, 4), PRIORS)
    assert nothing.flatten().tolist() == [0] + [-1] * (6 + more)


def test_outlines_need_centres_and_sizes() -> None:
    with pytest.raises(LayerError, match="code_type CENTER_SIZE"):
        make_layer(f"{TEXT} use_polygon: true }}".replace("CENTER_SIZE", "CORNER"), (1, 24), (1, 4), PRIORS.shape)


@pytest.mark.parametrize("permuted", [False, True])
def test_bottoms_of_single_maps_are_those_of_all(permuted: bool) -> None:
    """Maps of 2 x 3 and 1 x 1 places and another of 1 x 2, with 2, 3 and 1 boxes each."""
    maps = [(2, 2, 3), (3, 1, 1), (1, 1, 2)]
    total = sum(math.prod(shape) for shape in maps)
    corners = seeded(total, 2).abs() * 0.2
    priors = torch.cat([corners, corners + 0.05 + seeded(total, 2, seed=1).abs() * 0.3], 1).flatten()
    priors = torch.stack([priors, priors.new_tensor([0.1, 0.1, 0.2, 0.2]).repeat(total)]).unsqueeze(0)
    settings = "num_classes: 3 code_type: CENTER_SIZE confidence_threshold: 0.05 keep_top_k: 9 nms_param { top_k: 8 }"
    plain = f'type: "DetectionOutput" detection_output_param {{ {settings} }}'
    split = f'type: "DetectionOutput" detection_output_param {{ {settings} nbottom: 3 no_permute: {not permuted} }}'
    locations, scores = [], []
    for index, (boxes, height, width) in enumerate(maps):
        locations.append(seeded(2, boxes * 4, height, width, seed=index))
        scores.append(seeded(2, 3, boxes, height * width, seed=9 + index).softmax(1))
    by_place = [x.permute(0, 2, 3, 1).flatten(1) for x in locations]
    by_place_scores = [x.permute(0, 3, 2, 1).flatten(1) for x in scores]
    joined = [torch.cat(by_place, 1), torch.cat(by_place_scores, 1), priors]
    wanted = make_layer(plain, *(x.shape for x in joined))(*joined)
    given = [*by_place_scores, *by_place, priors] if permuted else [*scores, *locations, priors]
    found = make_layer(split.replace("True", "true").replace("False", "false"), *(x.shape for x in given))(*given)
    assert found.shape == wanted.shape
    assert found.shape[2] > 9
    assert_close(found, wanted.numpy(), 1e-12, "rows")


def test_other_numbers_of_bottoms_hold_their_place() -> None:
    layer = make_layer(f"{TEXT} visualize: true }}", (1, 8), (1, 4), PRIORS.shape, (1, 3, 9, 9))
    assert layer(torch.zeros(1, 8), torch.ones(1, 4), PRIORS, torch.zeros(1, 3, 9, 9)).shape == (1, 1, 2, 7)
    with pytest.raises(LayerError, match="takes 3 bottoms, 5 with .*, or 13 of 6 maps .*, got 4"):
        make_layer(f"{TEXT} }}", (1, 8), (1, 4), PRIORS.shape, (1, 4))
    with pytest.raises(LayerError, match="ratio_permute"):
        make_layer(f"{TEXT} ratio_permute: true }}", (1, 8), (1, 4), PRIORS.shape)
