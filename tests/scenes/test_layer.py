"""The data layers that draw scenes and objects, and rooms with depth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from data_layers import assert_resumes, batches, make_source

from fcnproto.data.hha import geometry
from fcnproto.errors import LayerError
from fcnproto.scenes import layer as drawn_layer
from fcnproto.scenes.layer import vary
from fcnproto.scenes.rooms import SURFACES, camera, draw_room
from fcnproto.scenes.scenes import CLASSES, Scene, draw_object, draw_scene


def source(layer: str = "DrawnSceneLayer", **options: Any) -> Any:
    return make_source(
        f'type: "Python" top: "data" top: "label" python_param {{ module: "fcnproto_layers" layer: "{layer}" '
        f'param_str: "{options!r}" }}'
    )


def image_of(drawing: Any, mean: float = 112.0) -> np.ndarray:
    return drawing.image[:, :, ::-1].transpose(2, 0, 1).astype(np.float32) - np.float32(mean)


def test_scenes_in_order_wrap_around() -> None:
    layer = source(seed=5, batch=2, count=3)
    assert layer.top_shapes([]) == [(2, 3, 256, 256), (2, 1, 256, 256)]
    first, second = batches(layer, 2)
    for item, index in ((first, 0), (second, 2)):
        scene = draw_scene((5, index))
        np.testing.assert_array_equal(item[0][0], image_of(scene))
        np.testing.assert_array_equal(item[1][0, 0], scene.label)
    np.testing.assert_array_equal(second[0][1], first[0][0])
    assert [top.shape for top in batches(source(seed=5, batch=1, size=96), 1)[0]] == [(1, 3, 96, 96), (1, 1, 96, 96)]


def test_objects_have_one_label_each() -> None:
    layer = source("DrawnObjectLayer", seed=5, batch=3, mean=(0, 0, 0))
    assert layer.top_shapes([]) == [(3, 3, 224, 224), (3, 1)]
    data, label = batches(layer, 1)[0]
    drawn = [draw_object((5, index)) for index in range(3)]
    np.testing.assert_array_equal(data, np.stack([image_of(item, 0) for item in drawn]))
    assert label[:, 0].tolist() == [item.label for item in drawn]


def test_a_batch_of_new_and_varied_scenes() -> None:
    layer = source("DrawnObjectLayer", seed=5, batch=4, fresh=1, memory=2)
    third = batches(layer, 3)[2]
    np.testing.assert_array_equal(third[0][0], image_of(draw_object((5, 2))))
    known = {draw_object((5, index)).label for index in (1, 2)}
    assert set(third[1][1:, 0]) <= known
    assert not any(np.array_equal(third[0][0], other) for other in third[0][1:])


def test_a_resumed_layer_gives_what_it_would_have() -> None:
    assert_resumes(lambda: source("DrawnObjectLayer", seed=2, batch=3, fresh=1, memory=4))
    assert_resumes(lambda: source("DrawnObjectLayer", seed=2, batch=3, count=7))


def test_workers_draw_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    images = []
    for rank in range(2):
        monkeypatch.setattr(drawn_layer.SourceLayer, "share", lambda self, rank=rank: (rank, 2))
        images += list(batches(source("DrawnObjectLayer", seed=3, batch=2), 1)[0][0])
    expected = [image_of(draw_object((3, index))) for index in (0, 2, 1, 3)]
    np.testing.assert_array_equal(np.stack(images), np.stack(expected))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "'batch' must be a whole number of 1 or more, not None"),
        ({"batch": 1}, "'seed' must be"),
        ({"seed": 1, "batch": True}, "'batch' must be"),
        ({"seed": 1, "batch": 1, "mean": 3}, "'mean' must be three numbers"),
        ({"seed": 1, "batch": 1, "colour": 3}, "'colour' is unknown; there are seed, batch"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        source(**options)


def test_variations_keep_image_and_label_together() -> None:
    scene = draw_scene(3)
    marked = Scene(np.repeat(20 * scene.label[:, :, None], 3, axis=2), scene.label)
    for seed in range(8):
        varied = vary(np.random.default_rng(seed), marked)
        assert varied.image.shape == (256, 256, 3) and varied.label.shape == (256, 256)
        for index in np.unique(varied.label):
            values = varied.image[varied.label == index]
            assert (values == values[0]).all()


def test_rooms_are_repeatable_and_well_labelled() -> None:
    rooms = [draw_room((4, index)) for index in range(8)]
    again = draw_room((4, 2))
    for name in ("image", "label", "surface", "depth"):
        assert np.array_equal(getattr(again, name), getattr(rooms[2], name))
    for room in rooms:
        assert room.image.shape == (256, 256, 3) and room.image.dtype == np.uint8
        assert room.label.shape == room.surface.shape == room.depth.shape == (256, 256)
        assert room.label.max() < len(CLASSES) and room.surface.max() < len(SURFACES)
        assert (room.surface[room.label > 0] == SURFACES.index("upright")).all()
        assert room.depth.dtype == np.float32 and room.depth.min() >= 0.3 and room.depth.max() < 13
    seen = {int(value) for room in rooms for value in np.unique(room.surface)}
    assert seen == {0, 1, 2}


def test_depth_shows_the_rooms_surfaces() -> None:
    """Normals fitted to the depth map lie along gravity on the floor and across it on the wall."""
    for index in range(4):
        room = draw_room((4, index))
        scene = geometry(room.depth, camera())
        angles = scene.angles()
        for name, angle in (("floor", 0.0), ("upright", 90.0)):
            here = (room.surface == SURFACES.index(name)) & (room.label == 0)
            if here.sum() > 3000:
                assert abs(float(np.median(angles[here])) - angle) < 12, (index, name)


def test_objects_stand_in_front_of_what_they_cover() -> None:
    nearer = []
    for index in range(6):
        room = draw_room((9, index))
        edges = (room.label[:, 1:] > 0) & (room.label[:, :-1] == 0)
        nearer.append(float(np.mean(room.depth[:, 1:][edges] < room.depth[:, :-1][edges])))
    assert min(nearer) > 0.9
