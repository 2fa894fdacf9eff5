"""Facts of the data sets that the published nets learn: classes, means, sizes. Reading them is for `fcnproto.data`."""

from __future__ import annotations

from typing import Any


def _names(text: str) -> list[str]:
    return text.split(", ")


VOC_CLASSES = _names(
    "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, "
    "motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"
)

CONTEXT_CLASSES = VOC_CLASSES + _names(
    "bag, bed, bench, book, building, cabinet, ceiling, clothes, computer, cup, door, fence, floor, flower, food, "
    "grass, ground, keyboard, light, mountain, mouse, curtain, platform, sign, plate, road, rock, shelves, sidewalk, "
    "sky, snow, bedcloth, track, tree, truck, wall, water, window, wood"
)

# "refridgerator" is the data set's own spelling.
NYUD_CLASSES = _names(
    "wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, blinds, desk, shelves, "
    "curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, refridgerator, television, paper, towel, "
    "shower curtain, box, whiteboard, person, night stand, toilet, sink, lamp, bathtub, bag, otherstructure, "
    "otherfurniture, otherprop"
)

SIFT_FLOW_SEMANTIC_CLASSES = _names(
    "awning, balcony, bird, boat, bridge, building, bus, car, cow, crosswalk, desert, door, fence, field, grass, "
    "moon, mountain, person, plant, pole, river, road, rock, sand, sea, sidewalk, sign, sky, staircase, streetlight, "
    "sun, tree, window"
)

SIFT_FLOW_GEOMETRIC_CLASSES = ["sky", "horizontal", "vertical"]

# Images as the nets want them: values 0..255, in this channel order, less these means. HHA images (horizontal
# disparity, height above ground, angle with gravity) keep their files' channels; depth is ln(depth) less its mean.
VOC_IMAGE: dict[str, Any] = {"kind": "image", "channels": "BGR", "mean": [104.00699, 116.66877, 122.67892]}
CONTEXT_IMAGE: dict[str, Any] = {"kind": "image", "channels": "BGR", "mean": [104.007, 116.669, 122.679]}
SIFT_FLOW_IMAGE: dict[str, Any] = {"kind": "image", "channels": "BGR", "mean": [114.578, 115.294, 108.353]}
NYUD_COLOR: dict[str, Any] = {"kind": "image", "channels": "BGR", "mean": [116.190, 97.203, 92.318]}
NYUD_HHA: dict[str, Any] = {"kind": "hha", "channels": "HHA", "mean": [132.431, 94.076, 118.477]}
NYUD_DEPTH: dict[str, Any] = {"kind": "depth", "channels": "D", "mean": [7.844]}

# Height and width of the deploy nets' inputs: usual ones of the data set; any size may be fed.
VOC_SIZE = (500, 500)
NYUD_SIZE = (425, 560)
SIFT_FLOW_SIZE = (256, 256)
