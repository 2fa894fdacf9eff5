"""The scene generator: repeatable, well labelled, and not to be solved by colour alone."""

import numpy as np
import pytest

from fcnproto.scenes.objects import OBJECTS
from fcnproto.scenes.scenes import CLASSES, draw_scene, draw_scenes
from fcnproto.scenes.textures import FIELDS, texture


@pytest.fixture(scope="module")
def scenes():
    return list(draw_scenes(seed=11, count=24))


def test_the_same_seed_gives_the_same_scene_and_another_one_another():
    first, again, other = draw_scene((5, 3)), draw_scene((5, 3)), draw_scene((5, 4))
    assert np.array_equal(first.image, again.image) and np.array_equal(first.label, again.label)
    assert not np.array_equal(first.image, other.image)


def test_a_series_is_made_of_single_scenes(scenes):
    assert np.array_equal(scenes[7].image, draw_scene((11, 7)).image)


def test_global_random_state_is_neither_read_nor_changed():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    draw_scene(1)
    assert np.array_equal(before, np.random.get_state()[1])


def test_shapes_types_and_labels(scenes):
    for scene in scenes:
        assert scene.image.shape == (256, 256, 3) and scene.image.dtype == np.uint8
        assert scene.label.shape == (256, 256) and scene.label.dtype == np.uint8
        assert scene.label.max() < len(CLASSES)
    assert len(CLASSES) == 11 and CLASSES[0] == "background"


def test_other_sizes():
    assert draw_scene(2, size=320).image.shape == (320, 320, 3)


def test_every_class_occurs_and_scenes_hold_several_objects(scenes):
    present = [set(np.unique(scene.label)) for scene in scenes]
    assert set.union(*present) == set(range(len(CLASSES)))
    assert np.mean([len(labels) for labels in present]) > 3
    background = np.mean([np.mean(scene.label == 0) for scene in scenes])
    assert 0.5 < background < 0.85


def test_colour_does_not_tell_the_class(scenes):
    """Class averages of colour lie much closer together than single objects of one class do."""
    colours = {index: [] for index in range(1, len(CLASSES))}
    for scene in scenes:
        for index in np.unique(scene.label)[1:]:
            colours[index].append(scene.image[scene.label == index].mean(axis=0))
    within = np.mean([np.std(values, axis=0).mean() for values in colours.values() if len(values) > 2])
    between = np.std([np.mean(values, axis=0) for values in colours.values()], axis=0).mean()
    assert within > 35 and between < 0.8 * within


def test_pictures_are_textured_noisy_and_use_the_range(scenes):
    for scene in scenes:
        assert np.abs(np.diff(scene.image.astype(int), axis=1)).mean() > 0.5
    assert np.min([scene.image.min() for scene in scenes]) == 0
    assert np.max([scene.image.max() for scene in scenes]) == 255


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_fill_their_unit_square_and_vary(name):
    outlines = [OBJECTS[name](np.random.default_rng(seed)) for seed in range(6)]
    for outline in outlines:
        points = np.concatenate(outline.loops)
        assert np.abs(points).max() < 1.35
        assert np.ptp(points, axis=0).max() > 1.7
        assert all(0 <= part.paint <= 3 for part in outline.parts)
    first, second = (np.concatenate(outline.loops) for outline in outlines[:2])
    assert first.shape != second.shape or not np.allclose(first, second)


def test_edges_in_the_picture_are_where_the_labels_say():
    """Across the labels' edges neighbouring pixels differ far more than elsewhere."""
    across, elsewhere = [], []
    for scene in draw_scenes(seed=12, count=8):
        step = np.abs(np.diff(scene.image.astype(int), axis=1)).sum(axis=2)
        edge = np.diff(scene.label.astype(int), axis=1) != 0
        across.append(step[edge].mean())
        elsewhere.append(step[~edge].mean())
    assert np.mean(across) > 2 * np.mean(elsewhere)


@pytest.mark.parametrize("index", range(len(FIELDS)))
def test_texture_fields_stay_in_range(index):
    for height, width in ((40, 64), (4, 4)):
        field = FIELDS[index](np.random.default_rng(index), height, width)
        assert np.broadcast_shapes(field.shape, (height, width)) == (height, width)
        assert np.isfinite(field).all() and field.min() > -0.3 and field.max() < 1.3


def test_textures_are_float32_colours():
    for seed in range(12):
        colours = texture(np.random.default_rng(seed), 32, 48, calm=bool(seed % 2))
        assert colours.shape == (32, 48, 3) and colours.dtype == np.float32
