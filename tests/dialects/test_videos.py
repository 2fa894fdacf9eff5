"""VideoData: which fork's layer it is, and what its tops are."""

from __future__ import annotations

import pytest
import torch

import fcnproto
from fcnproto.errors import DataError, LayerError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

SSD = (
    "transform_param { mean_value: 1 mean_value: 2 mean_value: 3 resize_param { height: 30 width: 40 } } "
    "data_param { batch_size: 2 } video_data_param { video_type: WEBCAM }"
)
SEGMENTS = (
    'video_data_param { source: "s" batch_size: 4 new_length: 5 num_segments: 3 new_height: 20 new_width: 30 %s }'
)
C3D = 'video_data_param { source: "s" use_image: true batch_size: 2 new_length: 8 new_height: 128 new_width: 171 %s }'


def net_of(text: str, tops: str) -> fcnproto.Net:
    names = " ".join(f'top: "{top}"' for top in tops.split())
    return fcnproto.Net(
        parse(f'layer {{ name: "v" type: "VideoData" {names} {text} }}', caffe_pb2.NetParameter, strict=False), "test"
    )


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        (SSD, [(2, 3, 30, 40)]),
        (SEGMENTS % "modality: FLOW", [(4, 30, 20, 30), (4, 1, 1, 1)]),
        (SEGMENTS % "" + " transform_param { crop_size: 16 }", [(4, 45, 16, 16), (4, 1, 1, 1)]),
        (SEGMENTS % "grayscale: true", [(4, 15, 20, 30), (4, 1, 1, 1)]),
        (C3D % "" + " transform_param { crop_size: 112 }", [(2, 3, 8, 112, 112), (2,)]),
        (C3D % "use_multiple_label: true num_of_labels: 7", [(2, 3, 8, 128, 171), (2, 7)]),
        (
            "image_data_param { batch_size: 3 crop_size: 112 new_length: 16 use_image: true }",
            [(3, 3, 16, 112, 112), (3, 1, 1, 1, 1)],
        ),
    ],
)
def test_the_tops_of_each_fork(text: str, shapes: list[tuple[int, ...]]) -> None:
    net = net_of(text, "data label" if len(shapes) > 1 else "data")
    assert [tuple(shape or ()) for shape in net.source_shapes.values()] == shapes
    assert not net.unknown
    with pytest.raises(DataError, match=r"'v' \(VideoData\): reads videos, which is not done here; give data"):
        net()
    given = {name: torch.zeros(shape) for name, shape in zip(net.source_shapes, shapes, strict=True)}
    assert net(given)["data"].shape == shapes[0]


def test_ssds_has_no_labels() -> None:
    with pytest.raises(LayerError, match="gives 1 top, has 2"):
        net_of(SSD, "data label")
